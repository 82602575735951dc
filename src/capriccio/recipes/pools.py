"""What a reader learns from whose pictures take long to draw: each process draws a pool of them once, and keeps it.

They are shown zoomed, mirrored, softened and recoloured, never twice alike. Half of them are families of four: one
individual twice, then a rival in the very same two pictures, so that only the individual itself tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from capriccio.modules.reader import Sight, bounds
from capriccio.recipes.reader import ReaderTask, look, shaken, soften, zooms
from capriccio.training.hands import spare_hands, spread
from capriccio.training.trainer import Batch
from capriccio.world.whole import Picture

QUARTERS = 4
"""A cell is four samples: shares are kept as their number."""


def small(pixels: Tensor, cells: Tensor, answers: Batch) -> dict[str, np.ndarray]:
    """Pictures as a pool keeps them: arrays, which processes can hand on.

    Args:
        pixels: (B, 3, 128, 128) in [-1, 1], kept as bytes.
        cells: (B, looks + inks, 32, 32) in [0, 1], how much of each cell masks and inks fill, kept in quarters.
        answers: Class indices (B,) for each name.
    """
    kept = {"pixels": ((pixels + 1) * 127.5).round().to(torch.uint8), "cells": (QUARTERS * cells).to(torch.uint8)}
    return {name: values.numpy() for name, values in {**kept, **answers}.items()}


def mirrored(pictures: Tensor, which: Tensor) -> Tensor:
    """Pictures (B, C, H, W), those of ``which`` (B,) with left and right exchanged."""
    return torch.where(which[:, None, None, None], pictures.flip(-1), pictures)


def varied(pixels: Tensor, cells: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, 128, 128) and their cells (B, C, 32, 32), half of them mirrored, six in ten zoomed a little."""
    turned = torch.from_numpy(rng.random(len(pixels)) < 0.5)
    pixels, cells = mirrored(pixels, turned), mirrored(cells, turned)
    chosen = torch.from_numpy(np.flatnonzero(rng.random(len(pixels)) < 0.6))
    subject = bounds(cells[chosen, 0] > 0.5)
    # close views fill the picture: whom they show must not leave it
    affine = zooms(subject[:, :2] + subject[:, 2:] - 1, rng, nearer=1.15, farther=1.15, stray=0.12)
    pixels[chosen], cells[chosen] = look(pixels[chosen], affine), look(cells[chosen], affine)
    return pixels, cells


@dataclass
class PooledReaderTask(ReaderTask):
    """Train a reader, half on families of four pictures, half on pictures that come once.

    Attributes:
        sight: What the reader names, and where it looks.
        drawn: Pictures in the pool of every process, by budget.
        families: Of a batch, by budget; as many pictures again come once.
    """

    rank: int = 0
    processes: int = 1

    sight: ClassVar[Sight]
    drawn: ClassVar[Mapping[str, int]]
    families: ClassVar[Mapping[str, int]] = {"cpu": 4, "gpu": 64}

    @property
    def shown(self) -> Callable[[Any], dict[str, np.ndarray]]:
        """Draws pictures and returns them as ``small`` does; a function of a module, so that others can be sent it."""
        raise NotImplementedError

    def draw_family(self, rng: np.random.Generator) -> Sequence[Picture]:
        """Four pictures to learn from: two of one individual, and the same two of a rival."""
        raise NotImplementedError

    def draw_once(self, rng: np.random.Generator) -> Picture:
        """A picture of somebody who comes once."""
        raise NotImplementedError

    @cached_property
    def pool(self) -> Batch:
        """Families of four one after the other, then pictures that come once."""
        rng = np.random.default_rng([self.schedule.seed, self.rank])
        half = self.drawn[self.budget] // 2
        pictures = [picture for _ in range(half // 4) for picture in self.draw_family(rng)]
        pictures += [self.draw_once(rng) for _ in range(half)]
        parts = [pictures[start : start + 64] for start in range(0, len(pictures), 64)]
        chunks = list(spread(self.shown, parts, spare_hands(self.budget, self.processes)))
        members = torch.cat([torch.arange(half // 2).repeat_interleave(2), torch.arange(half // 2, half // 2 + half)])
        kept = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
        return {name: torch.from_numpy(values) for name, values in kept.items()} | {"member": members}

    def batch(self, rng: np.random.Generator) -> Batch:
        half, families = len(self.pool["pixels"]) // 2, self.families[self.budget]
        first = 4 * rng.choice(half // 4, families, replace=False)
        once = half + rng.choice(half, 4 * families, replace=False)
        rows = torch.from_numpy(np.concatenate([(first[:, None] + np.arange(4)).ravel(), once]))
        taken = {name: value[rows] for name, value in self.pool.items()}
        pixels, cells = varied(taken.pop("pixels").float() / 127.5 - 1, taken.pop("cells").float() / QUARTERS, rng)
        masks, inks = cells.split([len(self.sight.looks), len(self.sight.inks)], dim=1)
        return {
            "pixels": soften(pixels, rng).contiguous(memory_format=torch.channels_last),
            "mask": masks.squeeze(1),  # one look has no axis
            "inks": inks,
            "box": torch.stack([shaken(bounds(mask > 0.5), rng) for mask in masks.unbind(1)], dim=1),
            **taken,
        }
