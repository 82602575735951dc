"""Cuttings: what is around one thing of a scene of several, cut out of its latents, with a sentence on it alone.

A model that has met pictures of one large thing, and of several small ones, has not met what a region asks of it: one
small thing, of which the words alone speak. A cutting is a picture of just that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeGuard

import numpy as np

from capriccio.evaluation.regions import boxes_of
from capriccio.recipes.gallery import PANEL
from capriccio.world.graph import SceneGraph
from capriccio.world.whole import Picture

UNIT = 16  # pixels that the sides of a cutting are multiples of: a token of FLUX, two latents


class Window(NamedTuple):
    """A part of a picture, in units; the ends are not in it."""

    left: int
    top: int
    right: int
    bottom: int

    def of(self, values: np.ndarray, side: int) -> np.ndarray:
        """This part of arrays (..., H, W) with ``side`` entries along a unit."""
        return values[..., side * self.top : side * self.bottom, side * self.left : side * self.right]


@dataclass(frozen=True)
class Cuttings:
    """Which thing of which picture can be cut out where: rows and things by their window."""

    windows: Mapping[Window, list[tuple[int, int]]]

    @classmethod
    def of(cls, graphs: Sequence[Picture]) -> Cuttings:
        """Everything that shares its scene, in the region that would be asked for it."""
        windows: dict[Window, list[tuple[int, int]]] = {}
        for row, graph in enumerate(graphs):
            if not can_be_cut(graph):
                continue
            for thing, box in enumerate(boxes_of(graph)):
                left, top, right, bottom = (round(edge * PANEL / UNIT) for edge in box)
                if right - left > 1 and bottom - top > 1:
                    windows.setdefault(Window(left, top, right, bottom), []).append((row, thing))
        return cls(windows)

    def choose(self, rng: np.random.Generator, count: int) -> tuple[Window, list[tuple[int, int]]]:
        """A window, as often as things stand in it, and so many of them."""
        windows, held = list(self.windows), list(self.windows.values())
        sizes = np.array([len(things) for things in held])
        chosen = int(rng.choice(len(windows), p=sizes / sizes.sum()))
        return windows[chosen], [held[chosen][number] for number in rng.integers(0, sizes[chosen], count)]


def can_be_cut(graph: Picture) -> TypeGuard[SceneGraph]:
    """Whether a picture is a scene of several things, and of nobody."""
    return isinstance(graph, SceneGraph) and not graph.people and len(graph.things) > 1


def only(graph: Picture, thing: int) -> SceneGraph:
    """A scene graph with one of its things."""
    assert isinstance(graph, SceneGraph)
    return replace(graph, things=(graph.things[thing],))
