"""What is true of a scene, read from its graph and never guessed: the standard that every reader is held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capriccio.world.draw import Drawing, draw
from capriccio.world.graph import Garment, Identity, SceneGraph, Thing, size_word
from capriccio.world.people import Person, Pose, Sitter
from capriccio.world.skeleton import keypoints, landmarks
from capriccio.world.windows import body_part

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as fractions of the picture."""

FACE_PARTS = ("face", "eyes", "brows", "mouth", "glasses", "beard")
"""Parts of a person that make the face, ears too, hair not."""


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
class SitterTruth:
    """What is true of one person of a scene."""

    person: Person
    expression: str
    pose: Pose
    outfit: tuple[Garment, ...]
    accessory: str | None
    accessory_colour: str | None
    box: Box | None
    """Round the visible pixels; ``None`` if nothing can be seen."""
    face: Box | None
    """Round the visible pixels of the face, ears too, hair not; ``None`` likewise."""
    visible: float
    """Share of the picture that the person covers."""
    keypoints: Tensor
    """(18, 2): x and y as fractions of the picture, in the order of ``skeleton.KEYPOINTS``."""
    landmarks: Tensor
    """(5, 2): of the face, in the order of ``skeleton.LANDMARKS``."""
    inside: Tensor
    """(18,) bool: which key points are in the picture."""


@dataclass(frozen=True)
class Truth:
    """What is true of a scene, things and people each in paint order."""

    things: tuple[ThingTruth, ...]
    backdrop: str
    style: str
    people: tuple[SitterTruth, ...] = ()


def read(scenes: Sequence[SceneGraph], size: int = 128) -> list[Truth]:
    """Read scenes exactly; boxes come from their drawing at ``size`` pixels."""
    drawing = draw(scenes, size)
    return [
        _truth(scene, mask, parts) for scene, mask, parts in zip(scenes, drawing.subjects, drawing.parts, strict=True)
    ]


def boxes(masks: Tensor) -> list[Box | None]:
    """Box round every mask (N, H, W) bool, as fractions; ``None`` for an empty one."""
    return [_box(mask) for mask in masks]


def subject_mask(drawing: Drawing, row: int = 0, thing: int = 0) -> Tensor:
    """Visible pixels of one thing, (H, W) bool: the segmentation that Diptych Prompting asks of a detector."""
    return drawing.subjects[row, thing]


def relation(one: Thing | Sitter, other: Thing | Sitter) -> str:
    """How ``one`` stands to ``other``: "left of", "right of", "above" or "below", along the longer way."""
    across, down = one.x - other.x, one.y - other.y
    if abs(across) >= abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"


def same_individual(one: Thing | Sitter, other: Thing | Sitter) -> bool:
    """Whether two subjects are the same individual, whatever they wear and wherever they stand."""
    first, second = (each.person if isinstance(each, Sitter) else each.identity for each in (one, other))
    return first == second


def _truth(scene: SceneGraph, masks: Tensor, parts: Tensor) -> Truth:
    seen = list(zip(scene.cast, masks, strict=False))
    things = tuple(_thing(one, mask) for one, mask in seen if isinstance(one, Thing))
    people = tuple(_sitter(one, mask, parts) for one, mask in seen if isinstance(one, Sitter))
    return Truth(things, scene.backdrop.kind, scene.style, people)


def _thing(thing: Thing, mask: Tensor) -> ThingTruth:
    return ThingTruth(
        thing.identity,
        thing.accessory,
        thing.accessory_colour,
        size_word(thing.size),
        _box(mask),
        float(mask.float().mean()),
    )


def _sitter(sitter: Sitter, mask: Tensor, parts: Tensor) -> SitterTruth:
    points, inside = keypoints(sitter)
    features = torch.tensor([body_part(name) for name in FACE_PARTS])
    return SitterTruth(
        sitter.person,
        sitter.expression,
        sitter.pose,
        sitter.outfit,
        sitter.accessory,
        sitter.accessory_colour,
        _box(mask),
        _box(mask & torch.isin(parts, features)),
        float(mask.float().mean()),
        points,
        landmarks(sitter)[0],
        inside,
    )


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
