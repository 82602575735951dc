"""Random masks for inpainting: rectangles over scenes and panels, boxes around things, never a whole panel.

Diptych Prompting is zero-shot only if no training step ever paints a whole panel from its neighbour. Here at most half
of a scene (60 % where the box around a thing asks for it), and at most 60 % of a panel, is hidden: half of the time
parts that know nothing of what is shown, half of the time a thing, somebody, a head or a garment, in one panel.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from capriccio.recipes.gallery import CELL, Pictures, Wing
from capriccio.world.graph import KINDS
from capriccio.world.people import BODY_PARTS, GARMENTS
from capriccio.world.windows import ACCESSORY_PART, NUM_PARTS, body_part, garment_part

SCENE_SHARE, PANEL_SHARE = 0.5, 0.6
UNMASKED = 0.1  # share of the other pictures in which nothing is hidden
AROUND_THINGS = 0.5
BODY = tuple(body_part(name) for name in BODY_PARTS)
HIDDEN = (
    *((1 + 2 * kind, 2 + 2 * kind) for kind in range(len(KINDS))),  # a thing, its body and its accent
    tuple(range(ACCESSORY_PART + 1, NUM_PARTS)),  # somebody, and all that is worn
    BODY[: BODY_PARTS.index("neck")],  # a head
    *((garment_part(kind), garment_part(kind) + 1) for kind in GARMENTS),
)
"""Classes of the part map that people hide together."""


def _rectangle(rng: np.random.Generator, size: int, share: float) -> tuple[slice, slice]:
    """A random rectangle of at most ``share`` of a ``size`` x ``size`` square, sides of a quarter at least."""
    area = rng.uniform(0.08, share) * size * size
    height = float(np.clip(np.sqrt(area * np.exp(rng.uniform(-0.9, 0.9))), size / 4, size))
    width = float(np.clip(area / height, size / 8, size))
    top, left = rng.uniform(0, size - height), rng.uniform(0, size - width)
    return slice(int(top), int(top + height)), slice(int(left), int(left + width))


def panel_mask(rng: np.random.Generator, size: int, share: float) -> Tensor:
    """One to three rectangles in a square, their union at most ``share`` of it; (size, size) floats, 1 = paint."""
    mask = torch.zeros(size, size)
    for _ in range(int(rng.integers(1, 4))):
        grown = mask.clone()
        grown[_rectangle(rng, size, share)] = 1.0
        if grown.mean() <= share:
            mask = grown
    return mask


def box_around(rng: np.random.Generator, there: np.ndarray, cell: int = 1) -> Tensor:
    """A box around what a map shows, larger by a random share at each side.

    Args:
        rng: Source of every choice.
        there: (rows, columns), true somewhere.
        cell: Pixels a side of one element of the map.

    Returns:
        (rows * cell, columns * cell) floats, 1 in the box.
    """
    mask = torch.zeros([cell * side for side in there.shape])
    sides = []
    for axis in (1, 0):
        found = cell * np.flatnonzero(there.any(axis=axis))
        start, stop = int(found[0]), int(found[-1]) + cell
        first, last = rng.uniform(0.02, 0.3, 2) * (stop - start)
        sides.append(slice(max(start - round(first), 0), stop + round(last)))
    mask[sides[0], sides[1]] = 1.0
    return mask


def things_shown(parts: np.ndarray) -> list[np.ndarray]:
    """Where a part map shows each of what people would hide (``HIDDEN``), boolean of its form; only what is there."""
    found = (np.isin(parts, classes) for classes in HIDDEN)
    return [there for there in found if there.any()]


def thing_mask(rng: np.random.Generator, parts: np.ndarray, cell: int) -> Tensor | None:
    """The box around one of the things that a part map shows; ``None`` where there are none, or it is too large.

    Args:
        rng: Source of every choice.
        parts: (rows, columns), classes of the part map.
        cell: Pixels a side of one cell.
    """
    shown = things_shown(parts)
    if not shown:
        return None
    mask = box_around(rng, shown[int(rng.integers(len(shown)))], cell)
    return mask if mask.mean() <= PANEL_SHARE else None


def holes(rng: np.random.Generator, wing: Wing, pictures: Pictures, rows: np.ndarray) -> Tensor:
    """What is hidden of each of these pictures of a wing, (len(rows), 1, H, W); see ``hole``."""
    return torch.stack([hole(rng, wing.rows, wing.columns, pictures.parts[row], CELL) for row in rows])


def hole(rng: np.random.Generator, rows: int, columns: int, parts: np.ndarray, cell: int) -> Tensor:
    """What is hidden of a picture of panels, (1, H, W): in every other one the box around a thing, as people hide it.

    Args:
        rng: Source of every choice.
        rows: Of panels.
        columns: Of panels.
        parts: (H / cell, W / cell), classes of the part map.
        cell: Pixels a side of one cell.
    """
    if rng.random() < AROUND_THINGS:
        high, wide = (side // panels for side, panels in zip(parts.shape, (rows, columns), strict=True))
        top, left = (int(rng.integers(panels)) * side for panels, side in ((rows, high), (columns, wide)))
        box = thing_mask(rng, parts[top : top + high, left : left + wide], cell)
        if box is not None:
            mask = torch.zeros(1, *(cell * side for side in parts.shape))
            mask[0, cell * top : cell * (top + high), cell * left : cell * (left + wide)] = box
            return mask
    return random_mask(rng, rows, columns, parts.shape[0] * cell // rows)


def random_mask(rng: np.random.Generator, rows: int, columns: int, size: int = 128) -> Tensor:
    """Mask (1, rows * size, columns * size) of a picture of panels: rectangles hide parts of one panel, or of every."""
    mask = torch.zeros(rows, columns, size, size)
    if rng.random() >= UNMASKED:
        share = SCENE_SHARE if rows * columns == 1 else PANEL_SHARE
        chosen = rng.integers(rows * columns) if rng.random() < 0.7 else None
        for index in range(rows * columns):
            if chosen is None or index == chosen:
                mask[index // columns, index % columns] = panel_mask(rng, size, share)
    return mask.permute(0, 2, 1, 3).reshape(1, rows * size, columns * size)
