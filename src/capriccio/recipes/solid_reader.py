"""The miniature's reader of solids: names what stands in the round and which side of it is seen, and who it is.

The recipe is that of the reader of objects, from a pool (`capriccio.recipes.pools`). In a family a solid comes twice,
from two sides and before two backdrops; a rival of its kind stands in the very same two views, and one rival in three
is a twin in the same colours and pattern, so that only the proportions tell them apart. Cameras go once round; one in
eight looks down from above.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from capriccio.modules.reader import Reader
from capriccio.modules.solid_reader import SIGHT, SolidReader
from capriccio.recipes.pools import PooledReaderTask, small
from capriccio.recipes.reader import accuracies, cell_shares, indices, same_member_rate, twin_of
from capriccio.training.trainer import Batch, Row, Schedule
from capriccio.world.solids import FRONTED, sample_solid
from capriccio.world.views import View, draw_views, sample_view

WEIGHTS = {"kind": 1.0, "main": 1.0, "accent": 1.0, "pattern": 1.0, "view": 1.0, "backdrop": 0.5}
OVERHEAD, HIGH = 1 / 8, (62.0, 88.0)
"""Share of the views from above, and their elevations in degrees."""
MEASURED = 512  # held-out views
SURE = ("kind", "main")
"""What paintings are judged by; where front becomes side is a matter of one degree, so views cannot be as sure."""


def draw_view(rng: np.random.Generator, split: str = "train") -> View:
    """A view before any backdrop, one in eight from above."""
    view = sample_view(rng, split, front=0.2)
    return from_above(view, rng) if rng.random() < OVERHEAD else view


def from_above(view: View, rng: np.random.Generator) -> View:
    """The view from a camera that is raised until it looks down."""
    return replace(view, elevation=round(float(rng.uniform(*HIGH)), 4))


def draw_family(rng: np.random.Generator, split: str = "train", twins: float = 1 / 3) -> list[View]:
    """Two views of one solid, and the same two views of a rival of its kind.

    Args:
        rng: Source of every choice.
        split: ``"train"`` or ``"test"``.
        twins: How often the rival is one of which the same words are true.
    """
    first = draw_view(rng, split)
    views = [first, replace(draw_view(rng, split), solid=first.solid)]
    rival = sample_solid(rng, split, first.solid.kind)
    if rng.random() < twins:
        rival = twin_of(first.solid, rival)
    return views + [replace(view, solid=rival) for view in views]


def truth(views: Sequence[View]) -> Batch:
    """Class indices (B,) for each name of the sight; what cannot be seen is ``IGNORED``."""
    return indices([_names(view) for view in views], SIGHT.classes)


def shown(views: Sequence[View]) -> dict[str, np.ndarray]:
    """Draw views and keep them small."""
    sights = draw_views(views)
    cells = cell_shares(sights.mask[:, None], torch.zeros_like(sights.parts), 0)
    return small(sights.pixels, cells, truth(views))


@dataclass
class SolidReaderTask(PooledReaderTask):
    """Train the reader of solids."""

    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=24, warmup=50))
    name: str = "solid-reader"

    network: ClassVar[type[Reader]] = SolidReader
    weights: ClassVar[Mapping[str, float]] = WEIGHTS
    sight = SIGHT
    drawn: ClassVar[Mapping[str, int]] = {"cpu": 9_216, "gpu": 36_864}

    @property
    def shown(self) -> Callable[[Sequence[View]], dict[str, np.ndarray]]:
        return shown

    def draw_family(self, rng: np.random.Generator) -> list[View]:
        return draw_family(rng)

    def draw_once(self, rng: np.random.Generator) -> View:
        return draw_view(rng)

    def family(self, rng: np.random.Generator) -> list[View]:
        """A held-out family on which identity is measured; its rival is no twin."""
        return draw_family(rng, "test", twins=0)

    def measure(self, model: nn.Module) -> list[Row]:
        """From the heights at which the world draws solids; that a camera looks down from above, by itself."""
        rng = np.random.default_rng(5)
        views = [sample_view(rng, "test") for _ in range(MEASURED)]
        high = [from_above(sample_view(rng, "test", kind), rng) for kind in FRONTED for _ in range(MEASURED // 32)]
        rates = accuracies(model, draw_views(views).pixels, truth(views))
        above = accuracies(model, draw_views(high).pixels, {"view": truth(high)["view"]})
        bars = {name: (0.97, 0.995) if name in SURE else (0.90, 0.97) for name in SIGHT.classes}
        return [
            *(Row(f"solid_reader_{name}", rates[name], *bar) for name, bar in bars.items()),
            Row("solid_reader_from_above", above["view"], 0.90, 0.97),
            Row("solid_reader_same_solid", same_member_rate(model, self.family), 0.90, 0.97),
        ]


def _names(view: View) -> dict[str, str]:
    """What can be read of a view; a solid without a front tells no side."""
    solid = view.solid
    return {
        "kind": solid.kind,
        "main": solid.main,
        "accent": solid.accent,
        "pattern": solid.pattern,
        "view": view.word if solid.kind in FRONTED else "",
        "backdrop": view.backdrop.kind,
    }
