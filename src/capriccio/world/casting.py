"""Choosing people: who they are, what they wear, how they hold themselves, where they stand.

Every choice comes from the generator that is passed in. Faces and garments of the test split are held out by hash, as
objects are; a scene of the test split shows nobody and nothing that training has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from capriccio.errors import CapriccioError
from capriccio.world import people as names
from capriccio.world.graph import (
    ACCESSORIES,
    BACKDROPS,
    COLOURS,
    SPLITS,
    STUDIO,
    Backdrop,
    Garment,
    Panels,
    SceneGraph,
    Thing,
    sample_backdrop,
    sample_identity,
    sample_style,
    standing,
)
from capriccio.world.people import FOOT, POSES, SLOTS, Person, Pose, Sitter, held_out, known, slot_of

VIEWS: dict[str, tuple[float, float]] = {"whole": (0.80, 0.90), "half": (1.30, 1.45), "bust": (1.75, 1.95)}
"""Range of the heights of figures in each view, as fractions of the picture."""

_HELD_OUT_ONE_IN = 8
_TOPS = {"half": (0.09, 0.14), "bust": (0.14, 0.20)}  # free space above a head that is shown close up
_SIZES = {1: (0.80, 0.90), 2: (0.76, 0.86), 3: (0.66, 0.74)}
_COLUMNS = {1: (0.5,), 2: (0.27, 0.73), 3: (0.20, 0.5, 0.80)}
_CLOSE = {"half": ("standing", "hip", "waving", "raised"), "bust": ("standing",)}
_ACCESSORY_SHARE = 0.2
_CALM = ("standing", "hip")  # poses that leave room for a neighbour
_JITTER = 0.12  # radians


def sample_person(rng: np.random.Generator, split: str = "train") -> Person:
    """Draw somebody whose words belong to ``split``.

    Raises:
        CapriccioError: If the split is unknown.
    """
    known(split, SPLITS, "split")
    while True:
        kind = _pick(rng, names.PEOPLE)
        beard = _pick(rng, names.BEARDS) if kind == "man" and rng.random() < 0.45 else None
        person = Person(
            kind,
            _pick(rng, tuple(names.SKINS)),
            _pick(rng, names.FACES),
            _pick(rng, names.HAIRS if kind == "man" else names.HAIRS[1:]),
            _pick(rng, tuple(names.HAIR_COLOURS)),
            _pick(rng, tuple(names.EYES)),
            _pick(rng, names.BROWS),
            _pick(rng, names.GLASSES) if rng.random() < 0.3 else None,
            beard,
            tuple(_uniform(rng, -1, 1) for _ in range(10)),
        )
        if held_out(person, _HELD_OUT_ONE_IN) == (split == "test"):
            return person


def sample_garment(
    rng: np.random.Generator, split: str = "train", kind: str | None = None, slot: str | None = None
) -> Garment:
    """Draw a garment whose kind, colours and pattern belong to ``split``.

    Args:
        rng: Source of every choice.
        split: ``"train"`` or ``"test"``.
        kind: One of ``GARMENTS``, or ``None`` for any.
        slot: One of ``SLOTS`` that it is worn at, or ``None`` for any; a kind must fit it.

    Raises:
        CapriccioError: If a name is unknown.
    """
    known(slot, (None, *SLOTS), "slot")
    one = sample_identity(rng, split, kind, SLOTS[slot] if slot else names.GARMENTS)
    printable = one.pattern == "plain" and slot_of(one.kind) in ("upper", "dress") and one.kind != "jacket"
    motif = _pick(rng, names.MOTIFS) if printable and rng.random() < 0.6 else None
    # Worn garments are smaller than objects: a wider pattern keeps its period above 10 px.
    return Garment(**{**asdict(one), "pitch": round(one.pitch + 4, 4), "motif": motif})


def sample_outfit(rng: np.random.Generator, split: str = "train", dresses: float = 0.25) -> tuple[Garment, ...]:
    """Draw clothes: a dress or an upper and a lower garment, shoes or boots, one time in five a hat or a cap.

    Args:
        rng: Source of every choice.
        split: ``"train"`` or ``"test"``.
        dresses: How often it is a dress.
    """
    slots = ("dress",) if rng.random() < dresses else ("upper", "lower")
    hat = ("hat",) if rng.random() < 0.2 else ()
    return tuple(sample_garment(rng, split, slot=slot) for slot in (*slots, "shoes", *hat))


def sample_pose(rng: np.random.Generator, options: Sequence[str] = tuple(POSES)) -> Pose:
    """Draw a pose near one of those with a name; half of them are mirrored."""
    name = _pick(rng, options)
    right, left, right_leg, left_leg = POSES[name]
    if rng.random() < 0.5:
        right, left, right_leg, left_leg = left, right, left_leg, right_leg

    def near(angles: names.Angles, reach: float) -> names.Angles:
        return (round(angles[0] + _uniform(rng, -reach, reach), 4), round(angles[1] + _uniform(rng, -reach, reach), 4))

    return Pose(
        name,
        near(right, _JITTER),
        near(left, _JITTER),
        near(right_leg, 0.04),
        near(left_leg, 0.04),
        _uniform(rng, -0.05, 0.05),
        _uniform(rng, -1, 1),
        _uniform(rng, -0.12, 0.12),
    )


def sample_people(
    rng: np.random.Generator,
    people: int = 1,
    split: str = "train",
    style: str | None = None,
    view: str | None = None,
    things: int = 0,
    accessories: bool = True,
) -> SceneGraph:
    """Draw a scene of one to three people, perhaps with an object before them.

    Args:
        rng: Source of every choice.
        people: How many people, 1 to 3.
        split: ``"train"`` or ``"test"``.
        style: One of ``STYLES``; ``None`` takes ``"shaded"`` three times in four.
        view: One of ``VIEWS`` for somebody who is alone; ``None`` takes a bust one time in three.
        things: How many objects stand beside somebody alone, 0 or 1.
        accessories: Whether people may wear a crown, a scarf and the like.

    Raises:
        CapriccioError: If a name is unknown, or so many people or things do not fit.
    """
    known(view, (None, *VIEWS), "view")
    close = view in ("half", "bust")
    if people not in _COLUMNS or things not in (0, 1) or (people > 1 and (things or close)) or (things and close):
        raise CapriccioError(
            f"Received {people} people and {things} things in the view {view!r}: ask for 1 to 3 people, "
            "and for one thing or a close view only where one person stands alone."
        )
    chosen, backdrop = sample_style(rng, style), sample_backdrop(rng)
    if people == 1 and not things:
        sitter = sample_sitter(rng, sample_person(rng, split), sample_outfit(rng, split), view, accessories)
        return SceneGraph((), backdrop, chosen, (sitter,))
    columns, toys = (_COLUMNS[people], ()) if not things else _side_by_side(rng, split)
    sitters = (
        _stand(rng, sample_person(rng, split), x, _SIZES[people], sample_outfit(rng, split), accessories)
        for x in columns
    )
    return SceneGraph(toys, backdrop, chosen, tuple(sitters))


def sample_sitter(
    rng: np.random.Generator,
    person: Person,
    outfit: tuple[Garment, ...],
    view: str | None = None,
    accessories: bool = True,
) -> Sitter:
    """Place somebody who is alone in the picture.

    Args:
        rng: Source of every choice.
        person: Who it is.
        outfit: What they wear.
        view: One of ``VIEWS``, or ``None`` for a bust one time in three, a half figure one time in six.
        accessories: Whether they may wear a crown, a scarf and the like.
    """
    chosen = view or str(rng.choice(list(VIEWS), p=(1 / 2, 1 / 6, 1 / 3)))
    if chosen == "whole":
        sitter = _stand(rng, person, 0.5, VIEWS["whole"], outfit, accessories, tuple(POSES))
        return replace(sitter, x=_uniform(rng, 0.42, 0.58))
    size = _uniform(rng, *VIEWS[chosen])
    top = _uniform(rng, *_TOPS[chosen])
    pose = replace(sample_pose(rng, _CLOSE[chosen]), lean=_uniform(rng, -0.03, 0.03))
    x, y = _uniform(rng, 0.44, 0.56), round(top + 0.96 * size / 2, 4)
    return _dressed_up(rng, Sitter(person, x, y, size, pose, outfit, _mood(rng)), accessories)


def sample_people_panels(
    rng: np.random.Generator,
    rows: int = 1,
    columns: int = 2,
    split: str = "train",
    style: str | None = None,
    view: str | None = None,
) -> Panels:
    """Draw the same person in ``rows * columns`` different places, in one style; half of the time in the same clothes.

    Args:
        rng: Source of every choice.
        rows: Rows of the grid.
        columns: Columns of the grid; at most ten panels in all, since no backdrop comes twice.
        split: ``"train"`` or ``"test"``.
        style: One of ``STYLES``; ``None`` takes ``"shaded"`` three times in four.
        view: One of ``VIEWS`` for all panels; ``None`` draws one for each.

    Raises:
        CapriccioError: If a name is unknown or there are more panels than backdrops.
    """
    count = rows * columns
    if not 1 <= count <= len(BACKDROPS):
        raise CapriccioError(f"Received {rows} x {columns} panels, but there are 10 backdrops: ask for 1 to 10 panels.")
    person, chosen = sample_person(rng, split), sample_style(rng, style)
    kept = sample_outfit(rng, split) if rng.random() < 0.5 else None
    kinds = (str(name) for name in rng.choice(BACKDROPS, count, replace=False))
    sitters = (sample_sitter(rng, person, kept or sample_outfit(rng, split), view) for _ in range(count))
    scenes = (
        SceneGraph((), sample_backdrop(rng, kind), chosen, (sitter,))
        for kind, sitter in zip(kinds, sitters, strict=True)
    )
    return Panels(rows, columns, tuple(scenes))


def sample_tryon(rng: np.random.Generator, split: str = "train", slot: str | None = None) -> tuple[SceneGraph, Garment]:
    """Draw a person before a backdrop, shaded, and another garment to try on.

    The garment goes to a place where the person wears one, so that it takes the place of that one.

    Args:
        rng: Source of every choice.
        split: ``"train"`` or ``"test"``.
        slot: One of ``SLOTS``, or ``None`` for any.

    Raises:
        CapriccioError: If a name is unknown.
    """
    known(slot, (None, *SLOTS), "slot")
    chosen = slot or _pick(rng, tuple(SLOTS))
    view = "half" if chosen in ("upper", "hat") and rng.random() < 0.5 else "whole"
    dresses = {"dress": 1.0, "upper": 0.0, "lower": 0.0}.get(chosen, 0.25)
    outfit = put_on(sample_outfit(rng, split, dresses), sample_garment(rng, split, slot=chosen))
    sitter = sample_sitter(rng, sample_person(rng, split), outfit, view, accessories=False)
    return SceneGraph((), sample_backdrop(rng), "shaded", (sitter,)), sample_garment(rng, split, slot=chosen)


def sample_tryon_panels(rng: np.random.Generator, split: str = "train", slot: str | None = None) -> Panels:
    """Draw a garment laid flat and, beside it, somebody who wears it."""
    scene, garment = sample_tryon(rng, split, slot)
    worn = wearing(scene.people[0], garment)
    return Panels(1, 2, (flat(garment), replace(scene, people=(worn,))))


def flat(garment: Garment) -> SceneGraph:
    """The product picture of a garment: laid flat on plain white."""
    return SceneGraph((Thing(garment, 0.5, 0.5, 0.84),), Backdrop(STUDIO))


def put_on(outfit: tuple[Garment, ...], garment: Garment) -> tuple[Garment, ...]:
    """An outfit with a garment in it; what was in its place is taken off.

    A dress takes the place of an upper and a lower garment, and an upper or a lower garment that of a dress.
    """
    slot = slot_of(garment.kind)
    gone = {"dress": ("dress", "upper", "lower"), "upper": ("upper", "dress"), "lower": ("lower", "dress")}
    return (*(one for one in outfit if slot_of(one.kind) not in gone.get(slot, (slot,))), garment)


def wearing(sitter: Sitter, garment: Garment) -> Sitter:
    """The same person in the same pose with the garment put on."""
    return replace(sitter, outfit=put_on(sitter.outfit, garment))


def _side_by_side(rng: np.random.Generator, split: str) -> tuple[tuple[float, ...], tuple[Thing, ...]]:
    """Where somebody stands, and a toy beside them."""
    left = rng.random() < 0.5
    size, identity = _uniform(rng, 0.34, 0.40), sample_identity(rng, split)
    x = 0.26 if left else 0.74
    return (0.98 - x,) if left else (1.02 - x,), (standing(Thing(identity, x, 0.5, size), 0.95),)


def _stand(
    rng: np.random.Generator,
    person: Person,
    x: float,
    sizes: tuple[float, float],
    outfit: tuple[Garment, ...],
    accessories: bool,
    poses: Sequence[str] = _CALM,
) -> Sitter:
    size, foot = _uniform(rng, *sizes), _uniform(rng, 0.93, 0.965)
    pose = sample_pose(rng, poses)
    x, y = round(x + _uniform(rng, -0.02, 0.02), 4), round(foot - FOOT * size / 2, 4)
    return _dressed_up(rng, Sitter(person, x, y, size, pose, outfit, _mood(rng)), accessories)


def _dressed_up(rng: np.random.Generator, sitter: Sitter, accessories: bool) -> Sitter:
    """Perhaps with an accessory that does not quarrel with hat or glasses."""
    if not accessories or rng.random() >= _ACCESSORY_SHARE:
        return sitter
    hatted = any(slot_of(garment.kind) == "hat" for garment in sitter.outfit)
    barred = {"hat", *(("bow", "crown") if hatted else ()), *(("sunglasses",) if sitter.person.glasses else ())}
    worn = _pick(rng, [name for name in ACCESSORIES if name not in barred])
    return replace(sitter, accessory=worn, accessory_colour=_pick(rng, tuple(COLOURS)))


def _mood(rng: np.random.Generator) -> str:
    return "smiling" if rng.random() < 0.55 else _pick(rng, names.EXPRESSIONS[1:])


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return str(options[int(rng.integers(len(options)))])


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return round(float(rng.uniform(low, high)), 4)
