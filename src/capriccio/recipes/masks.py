"""Random masks for inpainting: rectangles over scenes and panels, never a whole panel.

Diptych Prompting is zero-shot only if no training step ever paints a whole panel from its neighbour. Here at most half
of a scene, and at most 60 % of a panel, is hidden.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SCENE_SHARE, PANEL_SHARE = 0.5, 0.6
UNMASKED = 0.1  # share of pictures in which nothing is hidden


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
