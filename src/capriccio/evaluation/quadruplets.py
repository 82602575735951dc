"""Are quadruplets right? Judged by the truth of the world they were found in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from capriccio.perception.segment import Mask
from capriccio.world.captions import NOUNS
from capriccio.world.graph import COLOURS, SceneGraph
from capriccio.world.words import COLOURLESS, SYNONYMS

OVERLAP = 0.7
"""Intersection over union with a thing's visible pixels from which a mask is right."""

_COLOUR_OF = {word: colour for colour in COLOURS for word in SYNONYMS.get(colour, (colour,))}


@dataclass(frozen=True)
class Rates:
    """How many quadruplets there should be, were found, and are right."""

    wanted: int
    found: int
    right: int

    @property
    def precision(self) -> float:
        return self.right / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        return self.right / self.wanted if self.wanted else 0.0


def rates(pictures: Iterable[tuple[SceneGraph, Sequence[Mask], Sequence[tuple[Mask, str]]]]) -> Rates:
    """Count over pictures.

    Args:
        pictures: For each, its graph, the true masks of its things (H, W), and the masks and texts found there.
    """
    wanted = found = right = 0
    for graph, masks, finds in pictures:
        wanted, found, right = wanted + len(masks), found + len(finds), right + right_ones(graph, masks, finds)
    return Rates(wanted, found, right)


def right_ones(graph: SceneGraph, masks: Sequence[Mask], finds: Sequence[tuple[Mask, str]]) -> int:
    """Return how many finds are right, each thing of the scene once.

    A find is right if its mask overlaps that of a thing by `OVERLAP` or more, and its text names the kind of the thing
    and, where the style of the picture shows colours, its main colour first.

    Args:
        graph: What the picture shows.
        masks: Visible pixels (H, W) of each thing, in the order of the graph.
        finds: Masks and texts.
    """
    met: set[int] = set()
    for mask, text in finds:
        overlaps = [overlap(mask, truth) for truth in masks]
        best = int(np.argmax(overlaps))
        if overlaps[best] >= OVERLAP and names(text, graph, best):
            met.add(best)
    return len(met)


def names(text: str, graph: SceneGraph, thing: int) -> bool:
    """Return whether a text names the kind and the main colour of a thing, as far as its picture shows them."""
    identity = graph.things[thing].identity
    words = text.replace(",", " ").split()
    colours = [_COLOUR_OF[word] for word in words if word in _COLOUR_OF]
    kind = any(noun in words for noun in NOUNS.get(identity.kind, (identity.kind,)))
    return kind and (graph.style in COLOURLESS or colours[:1] == [identity.main])


def overlap(one: Mask, other: Mask) -> float:
    """Return the intersection over union of two masks."""
    both = int((one | other).sum())
    return float((one & other).sum()) / both if both else 0.0
