"""What is true of a scene, read from its graph and never guessed: the standard that every reader is held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capriccio.world.draw import Drawing, draw
from capriccio.world.graph import Identity, SceneGraph, Thing, size_word

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as fractions of the picture."""


@dataclass(frozen=True)
class ThingTruth:
    """What is true of one thing of a scene."""

    identity: Identity
    accessory: str | None
    accessory_colour: str | None
    size: str
    """One of ``SIZES``."""
    box: Box | None
    """Round its visible pixels; ``None`` if it is hidden."""
    visible: float
    """Share of the picture that it covers."""


@dataclass(frozen=True)
class Truth:
    """What is true of a scene, things in paint order."""

    things: tuple[ThingTruth, ...]
    backdrop: str
    style: str


def read(scenes: Sequence[SceneGraph], size: int = 128) -> list[Truth]:
    """Read scenes exactly; boxes come from their drawing at ``size`` pixels."""
    masks = draw(scenes, size).subjects
    return [_truth(scene, mask) for scene, mask in zip(scenes, masks, strict=True)]


def boxes(masks: Tensor) -> list[Box | None]:
    """Box round every mask (N, H, W) bool, as fractions; ``None`` for an empty one."""
    return [_box(mask) for mask in masks]


def subject_mask(drawing: Drawing, row: int = 0, thing: int = 0) -> Tensor:
    """Visible pixels of one thing, (H, W) bool: the segmentation that Diptych Prompting asks of a detector."""
    return drawing.subjects[row, thing]


def relation(one: Thing, other: Thing) -> str:
    """How ``one`` stands to ``other``: "left of", "right of", "above" or "below", along the longer way."""
    across, down = one.x - other.x, one.y - other.y
    if abs(across) >= abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"


def same_individual(one: Thing, other: Thing) -> bool:
    """Whether two things are the same individual, whatever they wear and wherever they stand."""
    return one.identity == other.identity


def _truth(scene: SceneGraph, masks: Tensor) -> Truth:
    things = tuple(
        ThingTruth(
            thing.identity,
            thing.accessory,
            thing.accessory_colour,
            size_word(thing.size),
            _box(mask),
            float(mask.float().mean()),
        )
        for thing, mask in zip(scene.things, masks, strict=False)
    )
    return Truth(things, scene.backdrop.kind, scene.style)


def _box(mask: Tensor) -> Box | None:
    rows, columns = (torch.nonzero(mask.any(axis)).flatten() for axis in (1, 0))
    if not len(rows):
        return None
    height, width = mask.shape
    return (
        float(columns[0]) / width,
        float(rows[0]) / height,
        float(columns[-1] + 1) / width,
        float(rows[-1] + 1) / height,
    )
