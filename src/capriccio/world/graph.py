"""The scene graph: everything that is true about a picture of the world, as plain frozen data.

Nothing here draws. ``draw`` turns a graph into pixels, ``captions`` into words, ``oracle`` into readings;
all three agree because they read the same graph. Every choice comes from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np

from capriccio.errors import CapriccioError
from capriccio.world.people import FOOT, GARMENTS, MOTIFS, Sitter, sitter_from_dict
from capriccio.world.people import known as _check

KINDS = (
    "mug", "teapot", "house", "tree", "mushroom", "fish", "boat", "car",
    "star", "heart", "ball", "gift", "cat", "bird", "robot", "rocket",
)  # fmt: skip
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.11, 0.13),
    "orange": (1.00, 0.52, 0.04),
    "yellow": (1.00, 0.87, 0.12),
    "green": (0.18, 0.68, 0.20),
    "teal": (0.02, 0.68, 0.68),
    "blue": (0.12, 0.32, 0.90),
    "purple": (0.52, 0.17, 0.72),
    "pink": (1.00, 0.52, 0.76),
    "white": (0.97, 0.97, 0.96),
    "black": (0.10, 0.10, 0.12),
}
PATTERNS = ("plain", "striped", "dotted", "checkered")
ACCESSORIES = ("hat", "sunglasses", "scarf", "bow", "crown")
BACKDROPS = ("beach", "snow", "meadow", "desert", "night", "sea", "bricks", "table", "sunset", "mountains")
STUDIO = "studio"  # plain white: what a subject stands before once its background is removed; never sampled by default
STYLES = ("shaded", "flat", "pencil", "pixel", "watercolour", "neon", "blueprint", "mosaic")
SIZES = ("small", "medium", "large")
SPLITS = ("train", "test")

# Bottom of each kind in half sides below its centre: where it meets the ground.
FEET: dict[str, float] = {
    "mug": 0.80, "teapot": 0.72, "house": 0.95, "tree": 1.00, "mushroom": 0.92, "fish": 0.66, "boat": 0.88, "car": 0.64,
    "star": 0.88, "heart": 0.92, "ball": 0.92, "gift": 0.92, "cat": 0.97, "bird": 0.86, "robot": 0.98, "rocket": 1.00,
    **dict.fromkeys(GARMENTS, 0.90),
}  # fmt: skip

_SIDES = {1: (0.47, 0.70), 2: (0.375, 0.455), 3: (0.31, 0.36), 4: (0.29, 0.33)}
_PITCHES = (20, 23)
_TILT = 0.13
"""Reach of pitches and angles. A pattern starts in the middle of its thing, and so narrow a reach keeps it in step out
to the outline: the word says what is where. From 20 to 30 px and a tilt of 0.9 the words told a third of it at most."""
_HELD_OUT_ONE_IN = 8
_SHADED_SHARE = 0.75
_ACCESSORY_SHARE = 0.25


@dataclass(frozen=True)
class Identity:
    """One individual: its caption words (kind, colours, pattern) and what no caption says (shape, pitch, angle)."""

    kind: str
    main: str
    accent: str
    pattern: str
    shape: tuple[float, ...]
    """Six numbers in [-1, 1]: proportions and part shapes."""
    pitch: float
    """Pattern period in pixels for an object of 80 px, at least 10."""
    angle: float
    """Pattern direction in radians."""


@dataclass(frozen=True)
class Garment(Identity):
    """One garment, laid flat as a thing or worn in an outfit: its kind is one of ``GARMENTS``."""

    motif: str | None = None
    """One of ``MOTIFS`` on the chest, or nothing."""


@dataclass(frozen=True)
class Thing:
    """An identity standing somewhere: centre and longer side as fractions of the picture."""

    identity: Identity
    x: float
    y: float
    size: float
    accessory: str | None = None
    accessory_colour: str | None = None
    flipped: bool = False


@dataclass(frozen=True)
class Backdrop:
    """A place and its variation: four numbers in [-1, 1] for horizon, light, texture phase and hue."""

    kind: str
    variation: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class SceneGraph:
    """Things in paint order (the first is the farthest) before a backdrop, in one style; and people, likewise."""

    things: tuple[Thing, ...]
    backdrop: Backdrop
    style: str = "shaded"
    people: tuple[Sitter, ...] = ()

    @property
    def cast(self) -> tuple[Thing | Sitter, ...]:
        """All subjects in paint order: who stands lower in the picture is nearer."""
        if not self.people:
            return self.things
        return tuple(sorted((*self.things, *self.people), key=foot_of))


@dataclass(frozen=True)
class Panels:
    """A grid of scenes, row by row; the first thing, or the first person, of every panel is the same individual."""

    rows: int
    columns: int
    scenes: tuple[SceneGraph, ...]


def split_of(kind: str, main: str, accent: str, pattern: str) -> str:
    """Return ``"test"`` for the one combination in eight that training never sees, else ``"train"``."""
    digest = sha256(f"{kind}/{main}/{accent}/{pattern}".encode()).digest()
    return "test" if int.from_bytes(digest[:4], "big") % _HELD_OUT_ONE_IN == 0 else "train"


def size_word(size: float) -> str:
    """Name the size of a thing that stands alone (``size`` is its longer side as a fraction of the picture)."""
    return SIZES[int(size >= 0.545) + int(size >= 0.625)]


def sample_identity(
    rng: np.random.Generator, split: str = "train", kind: str | None = None, kinds: tuple[str, ...] = KINDS
) -> Identity:
    """Draw an individual whose combination of kind, colours and pattern belongs to ``split``.

    Args:
        rng: Source of every choice.
        split: ``"train"`` or ``"test"``.
        kind: One of ``kinds``, or ``None`` for any.
        kinds: The kinds there are.

    Raises:
        CapriccioError: If the split or the kind is unknown.
    """
    _check(split, SPLITS, "split")
    if kind is not None:
        _check(kind, kinds, "kind")
    while True:
        chosen = kind or _pick(rng, kinds)
        main, accent = (str(name) for name in rng.choice(list(COLOURS), 2, replace=False))
        pattern = _pick(rng, PATTERNS)
        if split_of(chosen, main, accent, pattern) == split:
            break
    shape = tuple(round(float(value), 4) for value in rng.uniform(-1, 1, 6))
    return Identity(chosen, main, accent, pattern, shape, _uniform(rng, *_PITCHES), _uniform(rng, -_TILT, _TILT))


def sample_backdrop(rng: np.random.Generator, kind: str | None = None) -> Backdrop:
    """Draw a backdrop, of the given kind or any, with its variation."""
    if kind is not None:
        _check(kind, (*BACKDROPS, STUDIO), "backdrop")
    return Backdrop(kind or _pick(rng, BACKDROPS), tuple(_uniform(rng, -1, 1) for _ in range(4)))


def sample_scene(
    rng: np.random.Generator,
    subjects: int = 1,
    split: str = "train",
    style: str | None = None,
    accessories: bool = True,
) -> SceneGraph:
    """Draw a scene of one to four different individuals that stand apart or overlap slightly.

    Args:
        rng: Source of every choice.
        subjects: How many things, 1 to 4.
        split: ``"train"`` or ``"test"``.
        style: One of ``STYLES``; ``None`` takes ``"shaded"`` three times in four.
        accessories: Whether things may wear something.

    Raises:
        CapriccioError: If a name is unknown or the number of subjects is not 1 to 4.
    """
    if subjects not in _SIDES:
        raise CapriccioError(f"Received {subjects} subjects, but a scene holds 1 to 4: choose one of these.")
    things = tuple(
        _place(rng, sample_identity(rng, split), slot, subjects, accessories) for slot in _slots(rng, subjects)
    )
    ordered = tuple(sorted(things, key=foot_of))
    return SceneGraph(ordered, sample_backdrop(rng), sample_style(rng, style))


def sample_panels(
    rng: np.random.Generator, rows: int = 1, columns: int = 2, split: str = "train", style: str | None = None
) -> Panels:
    """Draw the same individual in ``rows * columns`` different scenes of one style.

    Backdrops are all different, positions and sizes vary, and one panel in four adds an accessory.

    Args:
        rng: Source of every choice.
        rows: Rows of the grid.
        columns: Columns of the grid; at most ten panels in all, since no backdrop comes twice.
        split: ``"train"`` or ``"test"``.
        style: One of ``STYLES``; ``None`` takes ``"shaded"`` three times in four.

    Raises:
        CapriccioError: If a name is unknown or there are more panels than backdrops.
    """
    count = rows * columns
    if not 1 <= count <= len(BACKDROPS):
        raise CapriccioError(f"Received {rows} x {columns} panels, but there are 10 backdrops: ask for 1 to 10 panels.")
    identity, chosen = sample_identity(rng, split), sample_style(rng, style)
    kinds = (str(name) for name in rng.choice(BACKDROPS, count, replace=False))
    scenes = tuple(
        SceneGraph((_place(rng, identity, _slots(rng, 1)[0], 1, True),), sample_backdrop(rng, kind), chosen)
        for kind in kinds
    )
    return Panels(rows, columns, scenes)


def foot_of(one: Thing | Sitter) -> float:
    """Height at which a subject meets the ground, as a fraction of the picture from its upper border."""
    return one.y + (FOOT if isinstance(one, Sitter) else FEET[one.identity.kind]) * one.size / 2


def standing(thing: Thing, foot: float) -> Thing:
    """The thing raised or lowered until it meets the ground at ``foot``."""
    return replace(thing, y=round(foot - FEET[thing.identity.kind] * thing.size / 2, 4))


def to_dict(graph: SceneGraph | Panels) -> dict[str, Any]:
    """Return the graph as nested dictionaries and lists that JSON can hold."""
    return _plain(asdict(graph))


def from_dict(data: Mapping[str, Any]) -> SceneGraph | Panels:
    """Rebuild what ``to_dict`` returned.

    Raises:
        CapriccioError: If a key is missing or unknown, or a name is not of the world.
    """
    try:
        if "scenes" in data:
            return Panels(int(data["rows"]), int(data["columns"]), tuple(map(_scene, data["scenes"])))
        return _scene(data)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CapriccioError):
            raise
        raise CapriccioError(f"This is no scene graph ({error}): give what capriccio.world.to_dict returns.") from error


def _scene(data: Mapping[str, Any]) -> SceneGraph:
    _check(data["style"], STYLES, "style")
    _check(data["backdrop"]["kind"], (*BACKDROPS, STUDIO), "backdrop")
    backdrop = Backdrop(data["backdrop"]["kind"], tuple(map(float, data["backdrop"]["variation"])))
    people = tuple(map(_sitter, data.get("people", ())))
    return SceneGraph(tuple(map(_thing, data["things"])), backdrop, data["style"], people)


def _thing(data: Mapping[str, Any]) -> Thing:
    _check_accessory(data)
    return Thing(**dict(data, identity=_identity(data["identity"])))


def _sitter(data: Mapping[str, Any]) -> Sitter:
    _check_accessory(data)
    return sitter_from_dict(data, tuple(Garment(**asdict(_identity(one))) for one in data["outfit"]))


def _identity(data: Mapping[str, Any]) -> Identity:
    identity = dict(data, shape=tuple(map(float, data["shape"])))
    _check(identity["kind"], (*KINDS, *GARMENTS), "kind")
    for name in (identity["main"], identity["accent"]):
        _check(name, COLOURS, "colour")
    _check(identity["pattern"], PATTERNS, "pattern")
    _check(identity.get("motif"), (None, *MOTIFS), "motif")
    return Garment(**identity) if identity["kind"] in GARMENTS else Identity(**identity)


def _check_accessory(data: Mapping[str, Any]) -> None:
    if data.get("accessory") is not None:
        _check(data["accessory"], ACCESSORIES, "accessory")
        _check(data.get("accessory_colour"), COLOURS, "colour")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        # Scenes without people read as they always did.
        return {key: _plain(item) for key, item in value.items() if key != "people" or item}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _slots(rng: np.random.Generator, subjects: int) -> list[tuple[float, float]]:
    """Where feet may stand: (x, y) of the ground contact for each thing, y downwards."""
    if subjects == 1:
        return [(_uniform(rng, 0.0, 1.0), _uniform(rng, 0.84, 0.94))]
    rows = {
        2: [(0.26, 0.86), (0.74, 0.86)],
        3: [(0.21, 0.90), (0.50, 0.78), (0.79, 0.90)],
        4: [(0.30, 0.66), (0.72, 0.66), (0.26, 0.94), (0.70, 0.94)],
    }[subjects]
    return [(x + _uniform(rng, -0.03, 0.03), y + _uniform(rng, -0.05, 0.03)) for x, y in rows]


def _place(
    rng: np.random.Generator, identity: Identity, slot: tuple[float, float], subjects: int, accessories: bool
) -> Thing:
    size = _uniform(rng, *_SIDES[subjects])
    x, foot = slot
    if subjects == 1:
        x = 0.02 + size / 2 + x * (0.96 - size)
    worn = _pick(rng, ACCESSORIES) if accessories and rng.random() < _ACCESSORY_SHARE else None
    colour = _pick(rng, [name for name in COLOURS if name != identity.main]) if worn else None
    y = min(foot, 0.97) - FEET[identity.kind] * size / 2
    return Thing(identity, round(x, 4), round(y, 4), size, worn, colour, bool(rng.random() < 0.25))


def sample_style(rng: np.random.Generator, style: str | None = None) -> str:
    """Return the style, or draw one: ``"shaded"`` three times in four."""
    if style is not None:
        _check(style, STYLES, "style")
        return style
    return STYLES[0] if rng.random() < _SHADED_SHARE else _pick(rng, STYLES[1:])


def _pick(rng: np.random.Generator, options: Any) -> str:
    return str(options[int(rng.integers(len(options)))])


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return round(float(rng.uniform(low, high)), 4)
