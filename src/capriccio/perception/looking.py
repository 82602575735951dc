"""Looking at any picture: what is in it, where, and what to call it.

Four small protocols; one model may keep several of them. `GroundedSegmenter` finds boxes and fills them (Grounding DINO
and SAM), `Florence` names and describes (Florence-2, Xiao and others 2024), `Llava` describes (LLaVA, Liu and others
2023), and `WorldEye` does all four in the miniature's world. Boxes are left, top, right and bottom in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from PIL import Image

from capriccio.errors import CapriccioError, nearest
from capriccio.perception.segment import Mask, Sighting

_WORDS = 64
"""Tokens of an answer at most."""


class Tagger(Protocol):
    """Something that names what a picture shows."""

    def tags(self, image: Image.Image) -> list[str]:
        """Return names of what an RGB picture shows, each once; places and materials may be among them."""


class Localiser(Protocol):
    """Something that finds what has a name."""

    def boxes(self, image: Image.Image, name: str) -> list[Sighting]:
        """Return where things of a name may be."""


class BoxSegmenter(Protocol):
    """Something that tells a thing from the rest of its box."""

    def inside(self, image: Image.Image, box: Sequence[float]) -> Mask:
        """Return the pixels of the thing in a box, (H, W) truth values; all false if there is none."""


class Captioner(Protocol):
    """Something that says what a part of a picture shows."""

    def caption(self, image: Image.Image, box: Sequence[float]) -> str:
        """Return a phrase on what is in a box; empty if there is nothing to say."""


def cropped(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """Return the part of a picture in a box, a pixel at least."""
    left, top = (min(max(int(edge), 0), side - 1) for edge, side in zip(box[:2], image.size, strict=True))
    right, bottom = (min(max(round(edge), 1), side) for edge, side in zip(box[2:], image.size, strict=True))
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


@dataclass(frozen=True)
class Florence:
    """Names the things of a picture, and describes a part of it; loaded when first used.

    Attributes:
        name: Repository or folder of a Florence-2 in the layout of transformers.
        device: Where it runs.
    """

    name: str = "florence-community/Florence-2-base-ft"
    device: str = "cpu"

    def tags(self, image: Image.Image) -> list[str]:
        """Return the names that object detection gives, in alphabetical order."""
        found = self._answer(image, "<OD>")
        return sorted({label.strip().lower() for label in found["labels"] if label.strip()})

    def caption(self, image: Image.Image, box: Sequence[float]) -> str:
        """Return the caption of what a box shows, which sees nothing else."""
        return str(self._answer(cropped(image, box), "<CAPTION>")).strip()

    def _answer(self, image: Image.Image, task: str) -> Any:
        import torch

        processor, model = self._loaded
        inputs = processor(text=task, images=image, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            said = model.generate(**inputs, max_new_tokens=16 * _WORDS, num_beams=3, do_sample=False)
        text = processor.batch_decode(said, skip_special_tokens=False)[0]
        return processor.post_process_generation(text, task=task, image_size=image.size)[task]

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import Florence2ForConditionalGeneration, Florence2Processor

        return load(self.name, Florence2Processor, Florence2ForConditionalGeneration, self.device)


@dataclass(frozen=True)
class Llava:
    """Describes a part of a picture, as the data engine of LAR-Gen does; loaded when first used.

    Attributes:
        name: Repository or folder of a LLaVA 1.5 in the layout of transformers.
        question: What it is asked about the crop.
        device: Where it runs.
    """

    name: str = "llava-hf/llava-1.5-7b-hf"
    question: str = "What is the main object in this picture, with its colours and parts? Answer with one short phrase."
    device: str = "cpu"

    def caption(self, image: Image.Image, box: Sequence[float]) -> str:
        """Return its answer about the crop."""
        import torch

        processor, model = self._loaded
        prompt = f"USER: <image>\n{self.question} ASSISTANT:"
        inputs = processor(text=prompt, images=cropped(image, box), return_tensors="pt").to(self.device)
        with torch.inference_mode():
            said = model.generate(**inputs, max_new_tokens=_WORDS, do_sample=False)
        answer = said[0, inputs["input_ids"].shape[1] :]
        return str(processor.decode(answer, skip_special_tokens=True)).strip()

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import LlavaForConditionalGeneration, LlavaProcessor

        return load(self.name, LlavaProcessor, LlavaForConditionalGeneration, self.device)


def load(name: str, processor: Any, model: Any, device: str) -> tuple[Any, Any]:
    """Return a processor and a model of transformers, ready to answer.

    Raises:
        CapriccioError: If they are not there.
    """
    try:
        return processor.from_pretrained(name), model.from_pretrained(name).to(device).eval()
    except (OSError, ValueError):
        raise CapriccioError(
            f"{name!r}, which looks at pictures, could not be loaded; connect to download it, or give its folder."
        ) from None


def captioner(name: str, device: str = "cpu") -> Captioner:
    """Return who describes, by the kind of model that a repository or folder says it holds.

    Raises:
        CapriccioError: If it is no Florence-2 or LLaVA, or is not there.
    """
    from transformers import AutoConfig

    try:
        kind = AutoConfig.from_pretrained(name).model_type
    except (OSError, ValueError):
        raise CapriccioError(
            f"{name!r}, which should describe, could not be loaded; connect to download it, or give its folder."
        ) from None
    if kind == "florence2":
        return Florence(name, device=device)
    if kind == "llava":
        return Llava(name, device=device)
    raise CapriccioError(f"{name!r} is a {kind!r}, which describes no pictures here; {nearest(kind, _CAPTIONERS)}")


_CAPTIONERS = ("florence2", "llava")
