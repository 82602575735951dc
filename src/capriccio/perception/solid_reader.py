"""Reading solids in pictures of the miniature's world: what stands there, which side is seen, whether two are one.

>>> from capriccio.perception.solid_reader import read_solids, same_solid
>>> reading = read_solids(pixels)                  # (B, 3, H, W) in [-1, 1]
>>> reading.kind, reading.view                     # ['robot', ...], ['front', ...]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from torch import Tensor

from capriccio.modules.reader import Reader
from capriccio.modules.solid_reader import SolidReader
from capriccio.perception.reader import identity_threshold, understand, with_weights

ASSET = "miniature/solid-reader"


@dataclass(frozen=True)
class SolidReading:
    """What was read in B pictures of one solid each; every list has one name a picture."""

    kind: list[str]
    main: list[str]
    accent: list[str]
    pattern: list[str]
    view: list[str]
    """``"front"``, ``"side"``, ``"back"`` or ``"overhead"``; of kinds without a front it means nothing."""
    backdrop: list[str]
    box: Tensor
    """(B, 4): left, top, right and bottom of the solid as fractions."""
    mask: Tensor
    """(B, 32, 32): probability that a cell of 4 x 4 pixels shows the solid."""
    identity: Tensor
    """(B, 64) of unit length: near for views of the same solid."""
    confidence: dict[str, Tensor]
    """For each name, the probability (B,) that the reader gives to what it read."""


@cache
def load_solid_reader(name: str = ASSET) -> Reader:
    """Load the trained reader of solids, once.

    Args:
        name: Its asset folder.

    Raises:
        CapriccioError: If its weights are not installed.
    """
    return with_weights(SolidReader(), name)


def read_solids(pixels: Tensor, reader: Reader | None = None) -> SolidReading:
    """Read pictures of one solid each.

    Args:
        pixels: (B, 3, H, W) in [-1, 1]; other sizes than 128 x 128 are resized.
        reader: Who reads; the miniature's own if not given.

    Raises:
        CapriccioError: If the pixels have another shape, or no reader is given and its weights are not installed.
    """
    names, confidence, said = understand(pixels, reader or load_solid_reader())
    return SolidReading(
        **names,
        box=said["box"].clamp(0, 1),
        mask=said["mask"].sigmoid(),
        identity=said["identity"],
        confidence=confidence,
    )


def same_solid(pixels: Tensor, others: Tensor) -> Tensor:
    """Return whether pictures, pair by pair, show the same solid beyond the 5 % impostor threshold, (B,)."""
    cosine = (read_solids(pixels).identity * read_solids(others).identity).sum(dim=1)
    return cosine > identity_threshold(ASSET)
