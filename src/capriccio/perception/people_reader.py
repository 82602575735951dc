"""Reading people in pictures of the miniature's world: who is seen, what is worn, and whether two faces are one.

>>> from capriccio.perception.people_reader import read_people, same_person
>>> reading = read_people(pixels)                  # (B, 3, H, W) in [-1, 1]
>>> reading.kind, reading.hair, reading.top        # ['woman', ...], ['curly', ...], ['sweater', ...]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from torch import Tensor

from capriccio.modules.people_reader import PeopleReader
from capriccio.modules.reader import Reader
from capriccio.perception.reader import identity_threshold, understand, with_weights

ASSET = "miniature/people-reader"


@dataclass(frozen=True)
class PeopleReading:
    """What was read in B pictures of one person each; every list has one name a picture.

    A reader always says something: of what a picture does not show (the legs of a bust, the hair under a hat) its
    names mean nothing.
    """

    kind: list[str]
    skin: list[str]
    hair: list[str]
    hair_colour: list[str]
    glasses: list[str]
    beard: list[str]
    expression: list[str]
    hat: list[str]
    """``"none"`` where none is worn, as with glasses and beard."""
    pose: list[str]
    view: list[str]
    """``"whole"``, ``"half"`` or ``"bust"``."""
    top: list[str]
    """An upper garment or ``"dress"``."""
    top_colour: list[str]
    top_pattern: list[str]
    lower: list[str]
    """``"none"`` under a dress."""
    lower_colour: list[str]
    backdrop: list[str]
    style: list[str]
    box: Tensor
    """(B, 4): left, top, right, bottom of the person as fractions."""
    face_box: Tensor
    """(B, 4): of the face, ears too, hair not."""
    face: Tensor
    """(B, 64) of unit length: near for pictures of the same person."""
    confidence: dict[str, Tensor]
    """For each name, the probability (B,) that the reader gives to what it read."""


@cache
def load_people_reader(name: str = ASSET) -> Reader:
    """Load the trained reader of people, once.

    Args:
        name: Its asset folder.

    Raises:
        CapriccioError: If its weights are not installed.
    """
    return with_weights(PeopleReader(), name)


def read_people(pixels: Tensor, reader: Reader | None = None) -> PeopleReading:
    """Read pictures of one person each.

    Args:
        pixels: (B, 3, H, W) in [-1, 1]; other sizes than 128 x 128 are resized.
        reader: Who reads; the miniature's own if not given.

    Raises:
        CapriccioError: If the pixels have another shape, or no reader is given and its weights are not installed.
    """
    chosen = reader or load_people_reader()
    names, confidence, said = understand(pixels, chosen)
    boxes = dict(zip(chosen.sight.looks, said["box"].clamp(0, 1).unbind(1), strict=True))
    return PeopleReading(
        **names, box=boxes["person"], face_box=boxes["face"], face=said["identity"], confidence=confidence
    )


def same_person(pixels: Tensor, others: Tensor) -> Tensor:
    """Return whether pictures, pair by pair, show the same person beyond the 5 % impostor threshold, (B,)."""
    cosine = (read_people(pixels).face * read_people(others).face).sum(dim=1)
    return cosine > identity_threshold(ASSET)
