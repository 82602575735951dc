"""Bleeding: what belongs to one subject of a picture and is seen at another.

A name that both subjects share cannot tell, and what is read wrong is no bleeding unless it is the other's.

    bleeding(graphs, pixels)      # [False, True, ...]: whether anything bled, picture by picture
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from capriccio.errors import CapriccioError
from capriccio.evaluation.targets import half_view
from capriccio.perception.reader import read
from capriccio.world.graph import SceneGraph, Thing


def bled(seen: Mapping[str, str], own: Mapping[str, str], other: Mapping[str, str]) -> tuple[str, ...]:
    """Return which names bled: what is seen at one place is not its own, but the other's.

    Args:
        seen: What is read at a place, by what it says: ``{"kind": "mug", "colour": "red"}``.
        own: What should be there.
        other: What should be at the other place.
    """
    return tuple(name for name in own if seen[name] == other[name] != own[name])


def bleeding(graphs: Sequence[SceneGraph], pixels: Tensor) -> list[bool]:
    """Return whether kind or main colour of one of two subjects is read in the half of the other.

    Args:
        graphs: What was asked for, two subjects each, side by side.
        pixels: What was painted, (B, 3, 128, 128) in [-1, 1].

    Raises:
        CapriccioError: If a scene has not two subjects.
    """
    for graph in graphs:
        if len(graph.things) != 2:
            raise CapriccioError(
                f"Bleeding is read from pairs, but a scene has {len(graph.things)} subjects; give scenes of two."
            )
    pairs = [[_looks(thing) for thing in sorted(graph.things, key=lambda thing: thing.x)] for graph in graphs]
    halves = []
    for side in (0, 1):
        reading = read(half_view(pixels, side))
        seen = [{"kind": kind, "colour": main} for kind, main in zip(reading.kind, reading.main, strict=True)]
        halves.append([bool(bled(s, pair[side], pair[1 - side])) for s, pair in zip(seen, pairs, strict=True)])
    return [left or right for left, right in zip(*halves, strict=True)]


def _looks(thing: Thing) -> dict[str, str]:
    return {"kind": thing.identity.kind, "colour": thing.identity.main}
