"""The reader's sister for solids: what stands there in the round, and which side of it is seen."""

from __future__ import annotations

from capriccio.modules.reader import Look, Reader, Sight
from capriccio.world.cameras import VIEWS
from capriccio.world.graph import COLOURS, PATTERNS
from capriccio.world.solids import SOLIDS
from capriccio.world.views import GROUNDS

SIGHT = Sight(
    {
        "kind": SOLIDS,
        "main": tuple(COLOURS),
        "accent": tuple(COLOURS),
        "pattern": PATTERNS,
        "view": VIEWS,
        "backdrop": GROUNDS,
    },
    {"solid": Look(frozenset({"kind", "main", "accent", "pattern", "view"}))},
    who="solid",
    inks=(),
)
"""One solid; light and shade make inks of its colours that no map of inks would tell apart."""


class SolidReader(Reader):
    """Reads pictures of one solid; narrower than the reader of objects, for solids come in one style.

    Args:
        widths: Channels of the three stages of glance and close look.
    """

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__(SIGHT, widths, thought=96)
