"""People as plain frozen data: who somebody is, how they hold themselves, where they stand and what they wear.

A ``Person`` is to a ``Sitter`` what an ``Identity`` is to a ``Thing``. The words of a person are what a caption can
say; the ten shape numbers are what it cannot. Nothing here draws or chooses: ``casting`` chooses, ``figures`` draws.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from capriccio.errors import CapriccioError, nearest

if TYPE_CHECKING:
    from capriccio.world.graph import Garment

Colour = tuple[float, float, float]

PEOPLE = ("woman", "man")
FACES = ("round", "oval", "square", "heart")
HAIRS = ("bald", "short", "curly", "straight", "long", "tied")
BROWS = ("straight", "curved", "thick")
GLASSES = ("round", "square")
BEARDS = ("beard", "mustache")
EXPRESSIONS = ("smiling", "serious", "sad", "surprised")
SKINS: dict[str, Colour] = {
    "pale": (1.00, 0.86, 0.76),
    "fair": (0.98, 0.74, 0.58),
    "olive": (0.82, 0.60, 0.40),
    "brown": (0.58, 0.36, 0.23),
    "dark": (0.36, 0.21, 0.15),
}
HAIR_COLOURS: dict[str, Colour] = {
    "black": (0.11, 0.09, 0.11),
    "brown": (0.38, 0.21, 0.11),
    "blond": (0.98, 0.79, 0.36),
    "red": (0.82, 0.30, 0.08),
    "grey": (0.62, 0.64, 0.68),
    "white": (0.96, 0.95, 0.92),
}
EYES: dict[str, Colour] = {
    "brown": (0.38, 0.20, 0.09),
    "blue": (0.10, 0.42, 0.90),
    "green": (0.10, 0.56, 0.25),
    "black": (0.09, 0.08, 0.10),
}
LIPS: dict[str, Colour] = {"woman": (0.88, 0.12, 0.24), "man": (0.62, 0.24, 0.22)}
UNDERWEAR: Colour = (0.93, 0.92, 0.90)
TONES: dict[str, Colour] = {
    **{f"{name} skin": colour for name, colour in SKINS.items()},
    **{f"{name} hair": colour for name, colour in HAIR_COLOURS.items()},
    **{f"{name} eyes": colour for name, colour in EYES.items()},
    **{f"{name}'s lips": colour for name, colour in LIPS.items()},
    "underwear": UNDERWEAR,
}
"""What people are painted with beside the ten colours."""

BODY_PARTS = (
    "face", "hair", "eyes", "brows", "mouth", "glasses", "beard", "neck", "torso", "right arm", "left arm",
    "right hand", "left hand", "right leg", "left leg", "right foot", "left foot",
)  # fmt: skip
"""Classes of a person in the part map; right and left are the person's own."""

SLOTS: dict[str, tuple[str, ...]] = {
    "upper": ("shirt", "sweater", "hoodie", "jacket", "vest"),
    "lower": ("pants", "shorts", "skirt"),
    "dress": ("dress",),
    "hat": ("hat", "cap"),
    "shoes": ("shoes", "boots"),
}
"""Where each kind of garment is worn; a dress stands for an upper and a lower garment."""
GARMENTS = tuple(kind for kinds in SLOTS.values() for kind in kinds)
MOTIFS = ("star", "heart", "ball")
"""What may be printed on the chest of a plain garment, in its accent colour."""

FOOT = 0.97
"""Soles of a standing figure in half heights below its middle."""

Angles = tuple[float, float]
"""Of the upper and the lower half of a limb in radians from straight down, positive outwards."""

POSES: dict[str, tuple[Angles, Angles, Angles, Angles]] = {
    "standing": ((0.34, 0.20), (0.34, 0.20), (0.10, 0.04), (0.10, 0.04)),
    "waving": ((1.55, 2.75), (0.34, 0.20), (0.10, 0.04), (0.10, 0.04)),
    "raised": ((2.20, 2.75), (2.20, 2.75), (0.10, 0.04), (0.10, 0.04)),
    "open": ((1.25, 1.40), (1.25, 1.40), (0.14, 0.08), (0.14, 0.08)),
    "hip": ((0.80, -0.80), (0.34, 0.20), (0.12, 0.06), (0.12, 0.06)),
    "walking": ((0.62, 0.20), (0.30, 0.75), (0.12, 0.02), (0.52, 0.02)),
    "running": ((0.80, 1.90), (0.75, -0.20), (0.16, 0.02), (0.85, 0.05)),
    "jumping": ((2.00, 2.40), (2.00, 2.40), (0.55, 0.10), (0.55, 0.10)),
}
"""Right arm, left arm, right leg, left leg."""


@dataclass(frozen=True)
class Person:
    """One individual: what a caption can say of a face, and the proportions that it cannot."""

    kind: str
    """One of ``PEOPLE``."""
    skin: str
    face: str
    hair: str
    hair_colour: str
    eyes: str
    brows: str
    glasses: str | None
    beard: str | None
    shape: tuple[float, ...]
    """Ten numbers in [-1, 1]: face width and length, eye distance and size, nose, mouth width and height, hair volume
    and line, build."""


@dataclass(frozen=True)
class Pose:
    """How somebody holds themselves; angles as in ``POSES``."""

    name: str = "standing"
    right_arm: Angles = POSES["standing"][0]
    left_arm: Angles = POSES["standing"][1]
    right_leg: Angles = POSES["standing"][2]
    left_leg: Angles = POSES["standing"][3]
    lean: float = 0.0
    """Of the trunk, radians clockwise."""
    turn: float = 0.0
    """Of the head in [-1, 1]: to the left of the picture, or to its right."""
    tilt: float = 0.0
    """Of the head, radians clockwise."""


@dataclass(frozen=True)
class Sitter:
    """A person somewhere: the middle and the height of the standing figure as fractions of the picture.

    A height above one is a close-up: the figure is as large as that, and the picture shows what falls into it.
    """

    person: Person
    x: float
    y: float
    size: float
    pose: Pose = Pose()
    outfit: tuple[Garment, ...] = ()
    """At most one garment for each of ``SLOTS``, in any order."""
    expression: str = "smiling"
    accessory: str | None = None
    accessory_colour: str | None = None


def slot_of(kind: str) -> str:
    """Where a kind of garment is worn, one of ``SLOTS``.

    Raises:
        CapriccioError: If there is no such garment.
    """
    for slot, kinds in SLOTS.items():
        if kind in kinds:
            return slot
    raise CapriccioError(f"Received the garment {kind!r}, which the world does not have: {nearest(kind, GARMENTS)}")


def garment_at(sitter: Sitter, slot: str) -> Garment | None:
    """What somebody wears at one of ``SLOTS``, or ``None``.

    Raises:
        CapriccioError: If there is no such slot.
    """
    known(slot, SLOTS, "slot")
    return next((garment for garment in sitter.outfit if slot_of(garment.kind) == slot), None)


def top_of(sitter: Sitter) -> Garment | None:
    """What somebody wears on the chest: an upper garment or a dress."""
    return garment_at(sitter, "upper") or garment_at(sitter, "dress")


def held_out(person: Person, one_in: int) -> bool:
    """Whether the words of a person are the one combination in ``one_in`` that training never sees."""
    words = (person.kind, person.skin, person.face, person.hair, person.hair_colour, person.eyes, person.beard)
    digest = sha256("/".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:4], "big") % one_in == 0


def sitter_from_dict(data: Mapping[str, Any], outfit: tuple[Garment, ...]) -> Sitter:
    """Rebuild a sitter from plain data and garments that are rebuilt already.

    Raises:
        CapriccioError: If a name is not of the world, or two garments want the same place.
    """
    person = Person(**dict(data["person"], shape=tuple(map(float, data["person"]["shape"]))))
    for name, names, what in (
        (person.kind, PEOPLE, "kind"),
        (person.skin, SKINS, "skin"),
        (person.face, FACES, "face"),
        (person.hair, HAIRS, "hair"),
        (person.hair_colour, HAIR_COLOURS, "hair colour"),
        (person.eyes, EYES, "eyes"),
        (person.brows, BROWS, "brows"),
        (person.glasses, (None, *GLASSES), "glasses"),
        (person.beard, (None, *BEARDS), "beard"),
        (data["expression"], EXPRESSIONS, "expression"),
        (data["pose"]["name"], POSES, "pose"),
    ):
        known(name, names, what)
    limbs = {name: tuple(map(float, value)) for name, value in data["pose"].items() if name.endswith(("arm", "leg"))}
    return Sitter(**dict(data, person=person, pose=Pose(**{**data["pose"], **limbs}), outfit=checked_outfit(outfit)))


def checked_outfit(outfit: tuple[Garment, ...]) -> tuple[Garment, ...]:
    """Return an outfit in which no two garments want the same place.

    Raises:
        CapriccioError: If two do.
    """
    slots = [slot_of(garment.kind) for garment in outfit]
    taken = [*slots, *(["upper", "lower"] if "dress" in slots else [])]
    if len(set(taken)) < len(taken):
        names = ", ".join(garment.kind for garment in outfit)
        raise CapriccioError(f"Received {names} for one person, but two of them want the same place: leave one away.")
    return outfit


def known(name: object, names: Collection[str | None], what: str) -> None:
    """Check that the world has something of that name.

    Raises:
        CapriccioError: If it has not.
    """
    if name not in names:
        hint = nearest(str(name), map(str, names))
        raise CapriccioError(f"Received the {what} {name!r}, which the world does not have: {hint}")
