"""What a model learns from that paints a subject into a hole: pairs of the gallery, one panel shown, one with the hole.

The subject of one panel, alone on white, belongs into a box of the other panel. So a model meets another view of the
subject, in another state, than the one it is to paint, where published methods cut the subject out of the very picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from capriccio import assets
from capriccio.methods.lar_gen import RIM
from capriccio.modules.lar_gen import Eye
from capriccio.recipes.gallery import PANEL
from capriccio.recipes.masks import box_around
from capriccio.recipes.painting import FACTOR
from capriccio.recipes.sd import SDInpaintTask
from capriccio.training.trainer import Batch, Row
from capriccio.world.graph import Panels, SceneGraph


def alone(pixels: Tensor, mask: Tensor) -> Tensor:
    """Return a subject on white, in a square a little larger than itself, as pixels (3, 128, 128).

    Args:
        pixels: (3, H, W) in [-1, 1].
        mask: (H, W), true somewhere.
    """
    rows, columns = (torch.where(mask.any(dim=dim))[0] for dim in (1, 0))
    box = (..., slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    close = torch.where(mask, pixels, pixels.new_ones(()))[box]
    side = round(RIM * max(close.shape[-2:]))
    left, top = ((side - length) // 2 for length in (close.shape[-1], close.shape[-2]))
    rims = (left, side - close.shape[-1] - left, top, side - close.shape[-2] - top)
    square = pad(close, rims, value=1.0)
    return interpolate(square[None], (PANEL, PANEL), mode="bicubic", antialias=True)[0].clamp(-1, 1)


def nothing(eye: Eye, side: int) -> Tensor:
    """Return the picture (3, side, side) of no subject, on the CPU, where batches are drawn."""
    return eye.nothing.cpu().expand(3, side, side)


@dataclass
class SubjectTask(SDInpaintTask):
    """A model that begins as the miniature's inpainting model, and learns to paint a subject that it is shown.

    Attributes:
        dropout: How often a batch shows no subject.
    """

    dropout: ClassVar[float]

    @property
    def base(self) -> Path:
        """The inpainting model."""
        return Path(assets.path("miniature/sd-inpaint"))

    @cached_property
    def eye(self) -> Eye:
        """The miniature's CLIP."""
        return Eye.load(Path(assets.path("miniature/clip")))

    @cached_property
    def blank(self) -> Tensor:
        """No subject, (3, 128, 128)."""
        return nothing(self.eye, PANEL)

    def batch(self, rng: np.random.Generator) -> Batch:
        pictures = self.wings["pairs"]
        rows = rng.integers(0, len(pictures), 2 * self.sizes["pairs"] * (1 if self.budget == "cpu" else 8))
        sides = rng.integers(0, 2, len(rows))
        targets = [_scenes(pictures.graphs[row])[side] for row, side in zip(rows, sides, strict=True)]
        pixels = pictures.pixels(rows).unflatten(-1, (2, PANEL))
        each = torch.arange(len(rows))
        masks = pictures.masks(rows).unflatten(-1, (2, PANEL))
        subjects = [
            self.blank if rng.random() < self.dropout or not mask.any() else alone(picture, mask)
            for picture, mask in zip(pixels[each, :, :, 1 - sides], masks[each, :, 1 - sides], strict=True)
        ]
        latents = torch.from_numpy(pictures.latents[rows]).float().unflatten(-1, (2, PANEL // FACTOR))
        return {
            "latents": latents[each, :, :, sides],
            "pixels": pixels[each, :, :, sides],
            "mask": torch.stack([box_around(rng, mask.numpy())[None] for mask in masks[each, :, sides]]),
            "subject": torch.stack(subjects),
            **self.sentences(list(targets), rng),
        }

    def measure(self, model: nn.Module) -> list[Row]:
        return []  # what it is worth, the benchmark of LAR-Gen says


def _scenes(sheet: object) -> Sequence[SceneGraph]:
    assert isinstance(sheet, Panels)
    return sheet.scenes
