"""What a plan and the denoising loop ask of a backbone, whatever its family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from capriccio.attention import LayerInfo, Layout
from capriccio.canvas import Canvas, Mask
from capriccio.scene import Lora

if TYPE_CHECKING:
    from capriccio.backbones.limits import Limits


@dataclass(frozen=True)
class Defaults:
    """The numbers a backbone is painted with when nobody says otherwise.

    Attributes:
        width: Pixels.
        height: Pixels.
        num_inference_steps: Denoising steps.
        guidance_scale: Embedded guidance; heard only by models that have it.
        true_cfg_scale: Classifier-free guidance; 1 is none. In a scene for models whose diffusers pipelines call
            it so (``plain_guidance``) it may be given as ``guidance_scale``.
        max_sequence_length: Text tokens; a longer prompt gets as many as it needs, up to ``longest_text``.
        scheduler: By one of the names that a scene may give; that of the pipeline if ``None``.
        own: These numbers belong to the model, so methods keep them instead of their paper's.
        panel_margin: Pixels that are painted around a panel and cropped again.
        panel_spoiled: Pixels at a panel's border, margin included, that show something of its neighbour: beyond the
            margin they repeat the next ones.
        engines: Ways of inpainting, the best first.
        rows: Pictures painted together at most.
        longest_text: Text tokens that the model can read.
        shortest_text: Text tokens that it always reads, padding included.
        plain_guidance: What a scene calls ``guidance_scale`` is classifier-free guidance.
        caution: What to say to a person who brings a picture.
    """

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    true_cfg_scale: float
    max_sequence_length: int
    scheduler: str | None = None
    own: bool = False
    panel_margin: int = 8
    panel_spoiled: int = 0
    engines: tuple[str, ...] = ("controlnet", "fill", "hold")
    rows: int = 4
    longest_text: int = 512
    shortest_text: int = 1
    plain_guidance: bool = False
    caution: str = ""


@dataclass(frozen=True)
class Text:
    """An encoded prompt.

    Attributes:
        tokens: (B, T, D).
        pooled: (B, P), where the model reads that too.
        pictures: Of a prompt in pictures, for each IP-Adapter that is loaded, (B, pictures, ...).
        base: How many of the tokens, from the first, are those of the prompt itself; ``None`` is all of them. Side
            networks read no others.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    pictures: tuple[Tensor, ...] = ()
    base: int | None = None

    def rows(self, chosen: slice) -> Text:
        """Return some of the encoded prompts."""
        pooled = None if self.pooled is None else self.pooled[chosen]
        return Text(self.tokens[chosen], pooled, tuple(shown[chosen] for shown in self.pictures), self.base)

    @staticmethod
    def stack(texts: Sequence[Text]) -> Text:
        """Put encoded prompts of equal length below each other."""
        pooled = [text.pooled for text in texts if text.pooled is not None]
        pictures = tuple(map(torch.cat, zip(*(text.pictures for text in texts), strict=True)))
        tokens = torch.cat([text.tokens for text in texts])
        return Text(tokens, torch.cat(pooled) if pooled else None, pictures, texts[0].base)

    @staticmethod
    def join(texts: Sequence[Text]) -> Text:
        """Put passages behind a prompt, whose pooled vector and pictures stay the only ones."""
        first = texts[0]
        if len(texts) == 1:
            return first
        tokens = torch.cat([text.tokens for text in texts], dim=1)
        return replace(first, tokens=tokens, base=first.tokens.shape[1])


@dataclass(frozen=True)
class Known:
    """The part of a canvas that is known, as one engine takes it.

    Attributes:
        condition: Extra input of the denoiser or of its ControlNet: tokens (B, N, C) or channels (B, C, H, W).
        latents: For holding: clean latents, of the shape of those painted.
        keep: For holding: 1 where known, of a shape that broadcasts to theirs.
    """

    condition: Tensor | None = None
    latents: Tensor | None = None
    keep: Tensor | None = None

    @staticmethod
    def stack(parts: Sequence[Known]) -> Known:
        """Put the parts of several canvases below each other."""
        columns = ([getattr(part, name) for part in parts] for name in ("condition", "latents", "keep"))
        return Known(*(None if column[0] is None else torch.cat(column) for column in columns))


@dataclass(frozen=True)
class Stream:
    """The tokens that pass one layer of a denoiser.

    Attributes:
        kind: ``"text"``, ``"image"``, or the ``"joint"`` sequence of both.
        level: How often the sides of the picture were halved there, in a U-Net.
        block: Name of the block that a joint sequence passes.
    """

    kind: Literal["text", "image", "joint"]
    level: int = 0
    block: str = ""


@dataclass(frozen=True)
class Steering:
    """A ControlNet at work.

    Attributes:
        net: Its name.
        mode: Number of the kind of its control picture, for a union of several.
        kind: What it calls that.
        scale: Factor of what it adds.
        steps: In which it adds that.
        hint: Name of its control picture among the outputs of the preparations.
        everywhere: Whether it steers the whole canvas.
        guess: Whether it steers the positive branch alone (diffusers' guess mode).
    """

    net: str
    mode: int | None
    kind: str
    scale: float
    steps: range
    hint: str
    everywhere: bool = True
    guess: bool = False


@dataclass(frozen=True)
class Hint:
    """A control picture, as its ControlNet takes it.

    Attributes:
        condition: Packed latents (B, N, C), or pixels (B, 3, H, W).
        places: 1 where it steers and 0 elsewhere, of each shape that residuals have, to be multiplied with them;
            nothing where it steers everywhere.
    """

    condition: Tensor
    places: tuple[Tensor, ...] = ()

    @staticmethod
    def stack(hints: Sequence[Hint]) -> Hint:
        """Put control pictures of one ControlNet below each other."""
        places = zip(*(hint.places for hint in hints), strict=True)
        return Hint(torch.cat([hint.condition for hint in hints]), tuple(map(torch.cat, places)))


Residuals = Mapping[str, Any]
"""What ControlNets add inside a denoiser, by the names of its arguments; nothing where none is at work."""


@dataclass(frozen=True)
class Inputs:
    """What every forward of one run shares.

    Attributes:
        grid: Rows and columns of image tokens.
        engine: How the known part is kept, or ``None``.
        known: That part.
        guidance_scale: Embedded guidance, or ``None`` where the model has none.
        control_scale: Strength of the residuals of an inpainting ControlNet.
        controls: ControlNets, and their control pictures.
    """

    grid: tuple[int, int]
    engine: str | None = None
    known: Known | None = None
    guidance_scale: float | None = None
    control_scale: float = 1.0
    controls: tuple[tuple[Steering, Hint], ...] = ()

    def at(self, step: int) -> tuple[tuple[Steering, Hint], ...]:
        """Return the ControlNets at work in a step."""
        return tuple(one for one in self.controls if step in one[0].steps)


def numbered(names: Sequence[str], count: int) -> tuple[str, ...]:
    """Return so many names; where they run out, numbers."""
    return tuple(names[number] if number < len(names) else str(number) for number in range(count))


def generator_of(seed: int | torch.Generator) -> torch.Generator:
    """Return a generator on the CPU, whose numbers are the same on every machine: that of a seed, or the one given."""
    return seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)


class Backbone(Protocol):
    """A loaded model family. Image tokens are counted row by row; latents travel as the denoiser takes them."""

    name: str
    defaults: Defaults

    @property
    def together(self) -> bool:
        """Whether the branches of guidance share one forward, as they do in the family's pipelines of diffusers."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences on what is loaded that a person should read in every plan."""

    @property
    def clip_layers(self) -> int:
        """Layers of a CLIP text encoder that `encode_text` can leave out; 0 where it has no use for them."""

    @property
    def token(self) -> int:
        """Pixels a side of one image token."""

    @property
    def engines(self) -> tuple[str, ...]:
        """Ways of inpainting at hand, the best first."""

    @property
    def can_start_from_text(self) -> bool:
        """Whether there is a denoiser that needs no known picture."""

    @property
    def schedulers(self) -> tuple[str, ...]:
        """Names of the schedulers that a scene may ask for."""

    @property
    def controlnets(self) -> Mapping[str, nn.Module]:
        """ControlNets that control pictures steer through, by name."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """What methods add to the model, by the name of the method."""

    @property
    def device(self) -> torch.device:
        """Where the denoiser runs."""

    @property
    def memory(self) -> int:
        """Bytes of all weights."""

    def denoiser(self, engine: str | None) -> nn.Module:
        """Return the network that paints with an engine (``None``: from text alone)."""

    def embeds_guidance(self, engine: str | None) -> bool:
        """Whether that denoiser was taught to read a guidance scale."""

    def layers(self, engine: str | None) -> tuple[LayerInfo, ...]:
        """Return its attention layers."""

    def heads(self, engine: str | None) -> tuple[int | Sequence[int], int | Sequence[int]]:
        """Return the number of attention heads and their width, of all layers or of each."""

    def flops(self, engine: str | None, text: int, image: int, *, base: int | None = None, twin: int = 0) -> int:
        """Count the FLOPs of the linear layers in one forward of one row, a ControlNet's attention included.

        Args:
            engine: Of the denoiser.
            text: Tokens.
            image: Tokens.
            base: Text tokens that side networks read; all of them if ``None``.
            twin: Tokens of a twin of the image, where it is a stream of its own.
        """

    def control_flops(self, at_work: Sequence[Steering], branches: int, text: int, image: int) -> int:
        """Count the FLOPs of the ControlNets at work in a step of so many branches, their attention included."""

    def modes(self, net: str) -> tuple[str, ...] | None:
        """Return what a ControlNet calls each kind of control picture, in order, if it has to be told which."""

    def guesses(self, net: str, asked: bool) -> bool:
        """Return whether a ControlNet steers the positive branch alone, if it is asked to or knows nothing else.

        Raises:
            CapriccioError: If it is asked to and cannot.
        """

    def word_count(self, prompt: str) -> int:
        """Return how many text tokens a prompt needs."""

    def word_tokens(self, prompt: str, phrase: str, length: int) -> Mask:
        """Return which text tokens (length,) belong to a phrase."""

    def span_tokens(self, prompt: str, span: tuple[int, int], length: int) -> Mask:
        """Return which text tokens (length,) belong to the characters from the first up to but without the second."""

    def encode_text(self, prompt: str | None, length: int, clip_skip: int | None = None) -> Text:
        """Encode one prompt, ``None`` where there is none at all; repeated prompts are encoded once."""

    def layout(
        self,
        text: Mapping[str, Mask],
        length: int,
        canvas: Canvas,
        regions: Mapping[str, Mask],
        banks: Mapping[str, int | tuple[int, int]],
    ) -> Layout:
        """Return where named groups of text tokens (length,), regions (height, width) and banks are in its layers.

        Args:
            text: Groups of text tokens, by name.
            length: Number of text tokens.
            canvas: What is painted.
            regions: Groups of image tokens, by name.
            banks: Number of tokens, or height and width of the picture that is shown, by name.
        """

    def clean(self, picture: Image.Image) -> Tensor:
        """Encode a whole picture as clean latents of one row."""

    def known(self, engine: str, canvas: Image.Image, paint: Mask) -> Known:
        """Encode the known part of one canvas for an engine."""

    def hint(self, net: str, picture: Image.Image, place: Mask | None) -> Hint:
        """Encode a control picture of the canvas's size for a ControlNet that steers in one place of it, or all."""

    def noise(self, seed: int | torch.Generator, rows: int, columns: int) -> Tensor:
        """Draw unit noise of one row for a grid of tokens, from a seed or from a generator that is used further."""

    def as_grid(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return latents as a picture of image tokens, (B, channels of a token, rows, columns)."""

    def from_grid(self, latents: Tensor) -> Tensor:
        """Return what `as_grid` was given."""

    def schedule(self, name: str | None, steps: int, tokens: int) -> Any:
        """Return a fresh scheduler whose timesteps are set."""

    def skipped(self, steps: int, strength: float) -> int:
        """Return how many of the steps a run leaves out that changes a picture by ``strength`` (0 to 1)."""

    def steer(self, latents: Tensor, time: Tensor, text: Text, step: int, inputs: Inputs, positive: slice) -> Residuals:
        """Return what the control pictures at work in a step add to predictions at ``time``.

        ``positive`` are the rows that read the prompt, among all of them.
        """

    def predict(
        self, latents: Tensor, time: Tensor, text: Text, role: str, inputs: Inputs, residuals: Residuals | None = None
    ) -> Tensor:
        """Return one prediction of the denoiser; ``role`` is that of the first rows."""

    def decode(self, latents: Tensor, rows: int, columns: int) -> list[Image.Image]:
        """Turn latents into pictures."""

    def stream(self, engine: str | None, name: str) -> Stream | None:
        """Return which tokens pass a layer of the denoiser; ``None`` if what passes it is no token."""

    def adapters(
        self, engine: str | None, loras: Sequence[Lora], regions: Mapping[str, str]
    ) -> AbstractContextManager[Limits]:
        """Put LoRAs on for the length of a ``with`` block, and restore what was there.

        Args:
            engine: Of the denoiser.
            loras: Files, folders or repositories, and their strengths.
            regions: For the regions that they name, what their token groups are called after ``image:`` and ``text:``.
        """

    def free(self) -> None:
        """Let offloaded models leave the device."""

    def fingerprint(self) -> dict[str, str]:
        """Return a hash of the weights of each component."""
