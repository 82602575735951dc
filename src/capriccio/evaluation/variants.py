"""Ways to paint the same examination paper: without the reference, with it, and with one factor changed at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from capriccio.evaluation.cases import Ask, Case, references
from capriccio.evaluation.metrics import to_pictures
from capriccio.scene import Scene, Subject
from capriccio.studio import Studio


@dataclass(frozen=True)
class Variant:
    """One way to paint: with the reference panel or without, with which of the method's own settings."""

    name: str
    reference: bool = True
    remove_background: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


TEXT_ONLY = Variant("text_only", reference=False)
DIPTYCH = Variant("diptych")


def scene_of(ask: Ask, picture: Image.Image, variant: Variant, steps: int | None = None) -> Scene:
    """Return what is asked of the studio.

    Args:
        ask: The subject and where it should be.
        picture: The one picture of the subject.
        variant: How to paint it.
        steps: Denoising steps, or the backbone's own number.
    """
    shared = {"seed": ask.seed, "num_inference_steps": steps}
    if not variant.reference:
        return Scene(ask.caption, **shared)
    subject = Subject(
        picture,
        name=ask.case.name,
        by="diptych",
        remove_background=variant.remove_background,
        options=dict(variant.options),
    )
    return Scene(ask.prompt, [subject], **shared)


def reference_pictures(cases: Sequence[Case]) -> dict[int, Image.Image]:
    """Return the reference picture of each case by its number."""
    pictures = to_pictures(references(cases)[0])
    return {case.number: picture for case, picture in zip(cases, pictures, strict=True)}


def paint(
    studio: Studio,
    asks: Sequence[Ask],
    variant: Variant,
    *,
    steps: int | None = None,
    batch: int = 16,
    told: Callable[[int], None] = lambda pictures: None,
) -> list[Image.Image]:
    """Paint what is asked for, a batch at a time.

    Args:
        studio: Who paints.
        asks: The pictures.
        variant: How.
        steps: Denoising steps, or the backbone's own number.
        batch: Pictures a batch.
        told: Called after each batch with the number of pictures in it.
    """
    given = reference_pictures(list({ask.case.number: ask.case for ask in asks}.values()))
    painted: list[Image.Image] = []
    for start in range(0, len(asks), batch):
        part = asks[start : start + batch]
        scenes = [scene_of(ask, given[ask.case.number], variant, steps) for ask in part]
        painted += [painting.images[0] for painting in studio.paint_all(scenes)]
        told(len(part))
    return painted
