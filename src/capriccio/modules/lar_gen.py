"""The networks of LAR-Gen (arXiv 2403.19534): what it adds to an inpainting U-Net.

*Assign* sees the subject as sixteen tokens: CLIP's features, a resampler, and keys and values of its own in every layer
of cross-attention (IP-Adapter-Plus, whose published layout its file has). *Refine* is a second U-Net, RefineNet, that
denoises the subject itself and lends its states to the self-attention of the decoder; it reads CLIP's features through
one linear layer in the place of text.

A folder holds ``ip_adapter.safetensors``; with Refine, ``refine.safetensors`` with what RefineNet learned (the rest of
it is the model that paints from text, whose hash the file tells); and CLIP as ``image_encoder`` with its
``feature_extractor``, unless the miniature's own is meant. The authors' release lies otherwise: see
`capriccio.formats.largen`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from capriccio.attention import (
    AttentionProgram,
    CompiledProgram,
    Features,
    LayerInfo,
    Layers,
    PictureLayout,
    Scope,
    TokenLayout,
    Tokens,
    attach,
    compile_program,
    layers_of,
)
from capriccio.errors import CapriccioError
from capriccio.formats import ip_adapter, largen, tensors
from capriccio.formats.ip_adapter import Projection
from capriccio.objectives import diffused

ASSIGN_FILE, REFINE_FILE = "ip_adapter.safetensors", "refine.safetensors"
QUERIES = 16
COPIED = "copy_of"  # what the file of Refine calls the hash of what RefineNet is a copy of
HEAD = 64  # width of a head of the resampler, in all published files


class Eye(nn.Module):
    """CLIP's vision tower, and how pictures are prepared for it; never trained."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: CLIPVisionModelWithProjection, processor: CLIPImageProcessor) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        mean, std = (torch.tensor(x)[:, None, None] for x in (processor.image_mean, processor.image_std))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    @classmethod
    def load(cls, folder: Path) -> Eye:
        """Load CLIP from a folder where `encoder_in` finds it.

        Pictures are prepared as ``preprocessor_config.json`` says, in ``feature_extractor`` or with the weights; where
        there is none, as for plain CLIP.

        Raises:
            CapriccioError: If it is not there, not whole, or of another kind.
        """
        place = encoder_in(folder)
        if place is None:
            raise CapriccioError(
                f"There is no image_encoder in {str(folder)!r}; put the CLIP vision model that the adapter was trained "
                f"with there (or call it {largen.ENCODER}, as LAR-Gen's release does)."
            )
        known = [one for one in (folder / "feature_extractor", place) if (one / "preprocessor_config.json").is_file()]
        try:
            encoder, info = CLIPVisionModelWithProjection.from_pretrained(
                place, dtype=torch.float32, output_loading_info=True
            )
            processor = CLIPImageProcessor.from_pretrained(known[0]) if known else CLIPImageProcessor()
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CapriccioError(
                f"The CLIP vision model in {str(place)!r} could not be read ({type(error).__name__}); give a folder of "
                "transformers with config.json and weights."
            ) from None
        if info["missing_keys"]:
            raise CapriccioError(
                f"The CLIP vision model in {str(place)!r} lacks {min(info['missing_keys'])!r}; give a whole one, with "
                "projection."
            )
        return cls(encoder, processor)

    @property
    def width(self) -> int:
        """Channels of its features."""
        return self.encoder.config.hidden_size

    @property
    def embedding_width(self) -> int:
        """Channels of its embedding of a whole picture."""
        return self.encoder.config.projection_dim

    @property
    def nothing(self) -> Tensor:
        """Pixels (3, 1, 1) that are zeros to CLIP: what it is shown where there is no subject, as IP-Adapter does."""
        return 2 * self.mean - 1

    @property
    def patches(self) -> int:
        """Number of its features: one for each patch, and one for the whole."""
        return (self.encoder.config.image_size // self.encoder.config.patch_size) ** 2 + 1

    def prepared(self, pixels: Tensor) -> Tensor:
        """Return pictures (B, 3, h, w) as CLIP is given them; of square ``pixels`` (B, 3, H, W) in [-1, 1]."""
        side = self.encoder.config.image_size
        sized = interpolate(pixels.float(), (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
        return ((sized + 1) / 2 - self.mean) / self.std

    @torch.no_grad()
    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features (B, T, C) of the last layer but one, of the last, and the embedding (B, E) of the whole.

        Args:
            pixels: (B, 3, H, W) in [-1, 1], square.
        """
        given = self.prepared(pixels)
        found = self.encoder(given.to(self.encoder.dtype), output_hidden_states=True)
        return found.hidden_states[-2], found.last_hidden_state, found.image_embeds


class LarGen(nn.Module):
    """Assign, and Refine where it is there.

    Args:
        eye: What it sees subjects with.
        resampler: Features (B, T, C) to tokens (B, 16, D); of a plain IP-Adapter, the embedding (B, E) to (B, 4, D).
        to_k: For each layer of cross-attention, keys of those tokens.
        to_v: Values.
        layers: Names of those layers, in order.
        detail: Features to what RefineNet reads in the place of text.
        refine: RefineNet.

    Attributes:
        base_differs: Whether the rest of RefineNet is a copy of other weights than those beside which it learned.
    """

    base_differs = False

    def __init__(
        self,
        eye: Eye,
        resampler: Projection,
        to_k: Sequence[nn.Linear],
        to_v: Sequence[nn.Linear],
        layers: Sequence[str],
        detail: nn.Linear | None = None,
        refine: UNet2DConditionModel | None = None,
    ) -> None:
        super().__init__()
        self.eye, self.resampler = eye, resampler
        self.to_k, self.to_v = nn.ModuleList(to_k), nn.ModuleList(to_v)
        self.layers = tuple(layers)
        self.detail, self.refine = detail, refine
        self._programs: dict[tuple[int, ...], CompiledProgram] = {}

    @classmethod
    def new(cls, unet: UNet2DConditionModel, eye: Eye, depth: int = 4) -> LarGen:
        """Return an untrained Assign for a U-Net: its keys and values start as those of the text."""
        width = unet.config.cross_attention_dim
        resampler = IPAdapterPlusImageProjection(
            embed_dims=eye.width,
            output_dims=width,
            hidden_dims=width,
            depth=depth,
            dim_head=HEAD,
            heads=max(width // HEAD, 1),
            num_queries=QUERIES,
        )
        names = [layer.name for layer in crossings(unet)]
        to_k, to_v = ([copy.deepcopy(getattr(unet.get_submodule(n), side)) for n in names] for side in ("to_k", "to_v"))
        return cls(eye, resampler, to_k, to_v, names)

    def add_refine(self, unet: UNet2DConditionModel) -> None:
        """Add a RefineNet that starts as a copy of the U-Net that paints from text."""
        self.refine = copy.deepcopy(unet)
        self.detail = nn.Linear(self.eye.width, unet.config.cross_attention_dim)

    @property
    def queries(self) -> int:
        """How many tokens a subject becomes."""
        one = self.resampler
        return one.num_image_text_embeds if isinstance(one, ImageProjection) else one.latents.shape[1]

    # --- what banks hold ---

    def assign(self, pixels: Tensor) -> Tokens:
        """Return what the layers of cross-attention see of subjects (B, 3, H, W) in [-1, 1], or of `Eye.nothing`."""
        features, _, embedding = self.eye.features(pixels)
        seen = embedding if isinstance(self.resampler, ImageProjection) else features
        return self.tokens(self.resampler(seen.to(next(self.resampler.parameters()).dtype)))

    def nobody(self, rows: int) -> Tokens:
        """Return what those layers see where there is no subject, as IP-Adapter does: of zeros, given to CLIP, or of a
        zero embedding."""
        if isinstance(self.resampler, ImageProjection):
            weight = self.resampler.image_embeds.weight
            return self.tokens(self.resampler(weight.new_zeros(rows, weight.shape[1])))
        side = self.eye.encoder.config.image_size
        return self.assign(self.eye.nothing.expand(rows, 3, side, side))

    def tokens(self, tokens: Tensor) -> Tokens:
        """Return tokens (B, T, D) with the projections of every layer."""
        to_k, to_v = (dict(zip(self.layers, made, strict=True)) for made in (self.to_k, self.to_v))
        return Tokens(tokens, to_k, to_v)

    def details(self, pixels: Tensor) -> Tensor:
        """Return what RefineNet reads (B, T, D) of subjects (B, 3, H, W) in [-1, 1]."""
        if self.detail is None:
            raise CapriccioError("LAR-Gen was loaded without Refine; give a folder with refine.safetensors.")
        return self.detail(self.eye.features(pixels)[1].to(self.detail.weight.dtype))

    def reference(
        self,
        latents: Tensor,
        noise: Tensor,
        alpha: Tensor,
        time: Tensor,
        details: Tensor,
        beside: dict[str, Tensor] | None = None,
    ) -> Tokens:
        """Return RefineNet's states of subjects, as noisy as the picture that is painted (Eqs. 8 to 10).

        Args:
            latents: Of the subjects, (B, C, h, w), clean.
            noise: Of the same shape.
            alpha: Share of their variance that is left, (B,).
            time: Of that noise.
            details: As `details` returned them.
            beside: On SDXL, pooled text (B, P) and sizes (B, 6), by diffusers' names.
        """
        assert self.refine is not None
        size = *latents.shape[-2:], details.shape[1]
        if size not in self._programs:
            self._programs[size] = _remembering(self.refine, size[:2], size[2])
        with attach(self.refine, self._programs[size]) as reader:
            noisy = diffused(latents, noise, alpha)
            self.refine(noisy, time, encoder_hidden_states=details, added_cond_kwargs=beside, return_dict=False)
            return Tokens(reader.features["states"])

    # --- files ---

    def save(self, folder: Path) -> None:
        """Write what was learned, in half precision."""
        folder.mkdir(parents=True, exist_ok=True)
        linears = [[layer for layer in made if isinstance(layer, nn.Linear)] for made in (self.to_k, self.to_v)]
        ip_adapter.write(folder / ASSIGN_FILE, ip_adapter.published(self.resampler, *linears))
        if self.refine is not None and self.detail is not None:
            own = {f"detail.{key}": value for key, value in self.detail.state_dict().items()}
            own |= {key: value for key, value in self.refine.state_dict().items() if learns_in_refine(key)}
            halves = {key: value.half().contiguous() for key, value in own.items()}
            save_file(halves, folder / REFINE_FILE, {COPIED: copied(self.refine)})

    @classmethod
    def load(cls, folder: Path, unet: UNet2DConditionModel, base: UNet2DConditionModel | None, eye: Eye) -> LarGen:
        """Load what `save` wrote, or the file of any IP-Adapter, plain or Plus, that fits.

        Args:
            folder: With ``ip_adapter.safetensors``, or the authors' release (`capriccio.formats.largen`); or a file
                of either layout.
            unet: The inpainting model.
            base: The model that paints from text, of which RefineNet is a copy.
            eye: CLIP.

        Raises:
            CapriccioError: If a file is damaged or does not fit the model.
        """
        names = [layer.name for layer in crossings(unet)]
        state = _assign(folder, unet, names)
        resampler = ip_adapter.projection_of(state["image_proj"])
        to_k, to_v = (_linears(state["ip_adapter"], side, unet, names, folder) for side in ("to_k", "to_v"))
        _check_resampler(resampler, eye, unet, folder)
        whole = cls(eye, resampler, to_k, to_v, names)
        if folder.is_dir() and (folder / REFINE_FILE).is_file():
            if base is None:
                raise CapriccioError(
                    f"RefineNet in {str(folder)!r} is a copy of the model that paints from text, which is not open; "
                    "open that one, with inpainting= the inpainting model."
                )
            whole.add_refine(base)
            whole._read_refine(load_file(folder / REFINE_FILE), folder)
            whole.base_differs = _learned_beside_another(folder / REFINE_FILE, base)
        whole._in_step_with(unet)
        return whole.eval().requires_grad_(False)

    def _in_step_with(self, unet: UNet2DConditionModel) -> None:
        """Compute with the precision of the U-Net; the eye keeps its own, for it must see zeros where there is none."""
        for part in (self.resampler, self.to_k, self.to_v, self.detail, self.refine):
            if part is not None:
                part.to(unet.dtype)

    def _read_refine(self, state: Mapping[str, Tensor], folder: Path) -> None:
        assert self.refine is not None
        assert self.detail is not None
        own = {key.removeprefix("detail."): value for key, value in state.items() if key.startswith("detail.")}
        rest = {key: value for key, value in state.items() if not key.startswith("detail.")}
        try:
            self.detail.load_state_dict(own)
            unknown = self.refine.load_state_dict(rest, strict=False).unexpected_keys
        except RuntimeError as error:
            unknown = [str(error).splitlines()[-1].strip()]
        if unknown:
            raise CapriccioError(f"RefineNet in {str(folder)!r} does not fit this model ({unknown[0]}); give its own.")


def _remembering(unet: UNet2DConditionModel, size: Sequence[int], length: int) -> CompiledProgram:
    """Return the program that remembers the states of all tokens in the decoder.

    Args:
        unet: RefineNet.
        size: Height and width of its latents.
        length: Of what it reads in the place of text.
    """
    whole = np.ones(tuple(size), bool)
    layout = PictureLayout(TokenLayout(length), {"image": whole}, whole.shape, 1)  # type: ignore[arg-type]
    program = AttentionProgram((Features("states", "image", Scope(decoder(unet))),))
    return compile_program(program, layout, layers=layers_of(unet), num_steps=1)


def crossings(unet: UNet2DConditionModel) -> list[LayerInfo]:
    """Return the layers of cross-attention in order."""
    return [layer for layer in layers_of(unet) if layer.kind == "cross"]


def decoder(unet: UNet2DConditionModel) -> Layers:
    """Return the layers of self-attention in the decoder, whose states RefineNet lends (section 4.3)."""
    numbers = [one.index for one in layers_of(unet) if one.kind == "self" and one.name.startswith("up_blocks")]
    return Layers(("self",), start=numbers[0], stop=numbers[-1] + 1)


def learns_in_refine(name: str) -> bool:
    """Whether a weight of RefineNet learns: those of its cross-attention (section 4.4)."""
    return ".attn2." in name


def copied(unet: UNet2DConditionModel) -> str:
    """Return a hash of what of RefineNet does not learn, in half precision."""
    rest = {name: value for name, value in unet.state_dict().items() if not learns_in_refine(name)}
    return tensors.digest(rest, torch.float16)


def _learned_beside_another(path: Path, unet: UNet2DConditionModel) -> bool:
    """Whether a file of Refine tells of another U-Net; one that tells of none, or a U-Net in bfloat16, cannot say."""
    with safe_open(path, "pt") as file:
        told = (file.metadata() or {}).get(COPIED)
    return told is not None and unet.dtype != torch.bfloat16 and told != copied(unet)


def encoder_in(folder: Path) -> Path | None:
    """Return where CLIP is in a folder of weights: as we and IP-Adapter call it, or as LAR-Gen's release does."""
    return next((folder / name for name in ("image_encoder", largen.ENCODER) if (folder / name).is_dir()), None)


def _assign(source: Path, unet: UNet2DConditionModel, names: Sequence[str]) -> dict[str, tensors.State]:
    """Return the two groups of weights of Assign, from whichever layout is there."""
    path = source
    if source.is_dir():
        path = next((source / name for name in (ASSIGN_FILE, largen.CHECKPOINT) if (source / name).is_file()), source)
    if not path.is_file():
        raise CapriccioError(
            f"There is no file {str(path)!r} and no folder of that name with {ASSIGN_FILE} or {largen.CHECKPOINT}; "
            "give one."
        )
    loaded = tensors.read(path)
    if largen.is_largen(loaded):
        return largen.groups(loaded, path, unet, names)
    return ip_adapter.groups(loaded, path)


def _check_resampler(resampler: Projection, eye: Eye, unet: UNet2DConditionModel, source: Path) -> None:
    if isinstance(resampler, ImageProjection):
        widths, sees = (resampler.image_embeds.in_features, resampler.norm.normalized_shape[0]), eye.embedding_width
    else:
        widths, sees = (resampler.proj_in.in_features, resampler.proj_out.out_features), eye.width
    expected = sees, unet.config.cross_attention_dim
    if widths != expected:
        raise CapriccioError(
            f"The resampler for {str(source)!r} makes tokens of width {widths[1]} from features of width {widths[0]}, "
            f"but the model reads {expected[1]} and its CLIP sees {expected[0]}; give those that were trained together."
        )


def _linears(
    state: Mapping[str, Tensor], side: str, unet: UNet2DConditionModel, names: Sequence[str], source: Path
) -> list[nn.Linear]:
    """Return the linear layers of one side, keys or values, for layers of those names."""
    linears = []
    for index, name in enumerate(names):
        key, expected = f"{2 * index + 1}.{side}_ip.weight", getattr(unet.get_submodule(name), side).weight.shape
        if key not in state or state[key].shape != expected:
            found = tuple(state[key].shape) if key in state else "nothing"
            raise CapriccioError(
                f"{str(source)!r} does not fit this model: {key} is {found} and should be {tuple(expected)}; give an "
                "adapter that was trained for it."
            )
        linear = nn.Linear(expected[1], expected[0], bias=False)
        linear.load_state_dict({"weight": state[key]})
        linears.append(linear)
    return linears
