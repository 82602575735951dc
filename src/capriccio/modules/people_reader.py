"""The reader's sister, which reads people: who somebody is, how they hold themselves and what they wear.

Faces are small on whole figures, and so are the patterns of clothes: beside the figure it looks closely at the face,
at the garment on the chest and at the one on the legs, each found by a mask of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from capriccio.modules.reader import Look, Reader, Sight
from capriccio.world.casting import VIEWS
from capriccio.world.graph import BACKDROPS, COLOURS, PATTERNS, STYLES
from capriccio.world.inks import INKS
from capriccio.world.people import (
    BEARDS,
    EXPRESSIONS,
    GLASSES,
    HAIR_COLOURS,
    HAIRS,
    PEOPLE,
    POSES,
    SKINS,
    SLOTS,
)

FIGURE: Mapping[str, tuple[str, ...]] = {"pose": tuple(POSES), "view": tuple(VIEWS)}
FACE: Mapping[str, tuple[str, ...]] = {
    "kind": PEOPLE,
    "skin": tuple(SKINS),
    "hair": HAIRS,
    "hair_colour": tuple(HAIR_COLOURS),
    "glasses": ("none", *GLASSES),
    "beard": ("none", *BEARDS),
    "expression": EXPRESSIONS,
    "hat": ("none", *SLOTS["hat"]),
}
TOP: Mapping[str, tuple[str, ...]] = {
    "top": (*SLOTS["upper"], *SLOTS["dress"]),
    "top_colour": tuple(COLOURS),
    "top_pattern": PATTERNS,
}
LOWER: Mapping[str, tuple[str, ...]] = {"lower": ("none", *SLOTS["lower"]), "lower_colour": tuple(COLOURS)}
"""What is named from each close look."""

WIDE = 1.5
"""Reach of the look at a face: its mask ends where the hair begins, and the hair is to be seen too."""

SIGHT = Sight(
    {**FACE, **FIGURE, **TOP, **LOWER, "backdrop": BACKDROPS, "style": STYLES},
    {
        "person": Look(frozenset(FIGURE)),
        "face": Look(frozenset(FACE), WIDE),
        "top": Look(frozenset(TOP)),
        "lower": Look(frozenset(LOWER)),
    },
    who="face",
    inks=INKS,
)
"""One person: figure, face, the garment on the chest (an upper one or a dress), the garment on the legs."""


class PeopleReader(Reader):
    """Reads pictures of one person; narrower than the reader of objects, for it looks four times.

    Args:
        widths: Channels of the three stages of glance and close look.
    """

    def __init__(self, widths: tuple[int, int, int] = (24, 32, 80)) -> None:
        super().__init__(SIGHT, widths, thought=128)
