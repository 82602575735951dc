"""Edits: two scenes that differ in one thing, the instruction that leads from one to the other, and where it shows.

What InstructPix2Pix (Brooks et al. 2023, section 3.1) had painted by a model and then filtered is exact here: the
pictures agree bit for bit outside the mask, and both captions are true.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from capriccio.errors import CapriccioError, nearest
from capriccio.world.captions import caption
from capriccio.world.changes import CHANGES, MAKERS, Asked
from capriccio.world.draw import Drawing, draw
from capriccio.world.graph import SPLITS, SceneGraph, sample_scene
from capriccio.world.windows import extent

_TRIES = 16  # captions among which the one most like that of the scene before is chosen
_SPREAD = 12  # pixels that a style other than shaded carries a change beyond where it is
_VISIBLE = 1e-4  # of the range from -1 to 1: less than this, the running sums of the styles round differently anywhere


@dataclass(frozen=True)
class Edit:
    """A scene, the same scene changed in one thing, and the words for both and for the change."""

    change: str
    """One of ``CHANGES``."""
    before: SceneGraph
    after: SceneGraph
    things: tuple[tuple[int, ...], tuple[int, ...]] | None
    """Which things of the scene before and of the scene after the change concerns; ``None`` for the whole picture."""
    instruction: str
    captions: tuple[str, str]
    """Of the scene before and of the scene after, alike but for the change."""


@dataclass(frozen=True)
class Pairs:
    """Pictures of edits with all their truth."""

    before: Drawing
    after: Drawing
    mask: Tensor
    """(B, 1, H, W) bool: where the pictures differ; everywhere else they are equal to the last bit."""


def sample_edit(rng: np.random.Generator, change: str | None = None, split: str = "train") -> Edit:
    """Draw an edit whose subjects, before and after, belong to ``split``.

    Args:
        rng: Source of every choice.
        change: One of ``CHANGES``, or ``None`` for any.
        split: ``"train"`` or ``"test"``.

    Raises:
        CapriccioError: If a name is unknown.
    """
    for name, names, what in ((split, SPLITS, "split"), (change or CHANGES[0], CHANGES, "change")):
        if name not in names:
            raise CapriccioError(f"Received the {what} {name!r}, which edits do not have: {nearest(name, names)}")
    chosen = change or CHANGES[int(rng.integers(len(CHANGES)))]
    subjects, maker = MAKERS[chosen]
    made = None
    while made is None:
        scene = sample_scene(rng, subjects[int(rng.integers(len(subjects)))], split)
        made = maker(Asked(rng, scene, int(rng.integers(len(scene.things))), split))
    instruction = made.wordings[int(rng.integers(len(made.wordings)))]
    captions = _told(made.before, made.after, int(rng.integers(2**32)))
    return Edit(chosen, made.before, made.after, made.things, instruction, captions)


def draw_edits(edits: Sequence[Edit], size: int = 128, device: torch.device | str = "cpu") -> Pairs:
    """Draw edits with the truth of both pictures and of their difference.

    Args:
        edits: One or more edits.
        size: Side of the pictures in pixels.
        device: Where to draw.

    Raises:
        CapriccioError: If there is nothing to draw or the size is less than 8.
    """
    # In one batch, so that what is the same on both sides is drawn with the same rounding.
    drawing = draw([scene for edit in edits for scene in (edit.before, edit.after)], size, device)
    before, after = drawing.rows(slice(0, None, 2)), drawing.rows(slice(1, None, 2))
    least = before.pixels.new_tensor([0.0 if _exact(edit) else _VISIBLE for edit in edits])[:, None, None, None]
    differs = ((before.pixels - after.pixels).abs() > least).any(1, keepdim=True)
    mask = differs & torch.stack([region(edit, size) for edit in edits]).to(device)
    return Pairs(before, replace(after, pixels=torch.where(mask, after.pixels, before.pixels)), mask)


def region(edit: Edit, size: int = 128) -> Tensor:
    """Where an edit may show at all, (1, size, size) bool, from the graphs alone: boxes round what it concerns."""
    if edit.things is None:
        return torch.ones(1, size, size, dtype=torch.bool)
    spread = 0 if _exact(edit) else _SPREAD
    result = torch.zeros(1, size, size, dtype=torch.bool)
    for scene, things in zip((edit.before, edit.after), edit.things, strict=True):
        for at in things:
            left, top, right, bottom = extent(scene.things[at], size)
            result[:, max(top - spread, 0) : bottom + spread, max(left - spread, 0) : right + spread] = True
    return result


def _exact(edit: Edit) -> bool:
    """Whether both pictures are shaded, where every pixel is drawn for itself."""
    return edit.before.style == edit.after.style == "shaded"


def _told(before: SceneGraph, after: SceneGraph, seed: int) -> tuple[str, str]:
    """Captions of both scenes, the second in the words of the first as far as they are true of it.

    The same seed makes the same choices until the change shifts them; of some seeds the likest telling is taken.
    """
    told = caption(before, np.random.default_rng((seed, 0)))
    words = Counter(told.split())

    def strange(text: str) -> int:
        other = Counter(text.split())
        return ((words - other) + (other - words)).total()

    return told, min((caption(after, np.random.default_rng((seed, number))) for number in range(_TRIES)), key=strange)
