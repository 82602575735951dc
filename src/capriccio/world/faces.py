"""Faces and hair, in half heights of the head: bold features, none of which is thinner than 5 px on a bust.

A face has two degrees of detail: from ``FINE`` pixels up eyes have pupils and there are brows and a nose; on smaller
heads eyes are dots and features are as thick as they must be to be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from capriccio.world import people as names
from capriccio.world.people import Person, Sitter
from capriccio.world.shapes import Number, box, circle, ellipse, join, join_inside, length, union
from capriccio.world.skeleton import Features, Point, features

FINE = 24.0
"""Pixels of half a head from which a face has all its detail."""
FULL_LIPS = 1.4
"""Thickness of women's lips over men's: with their red it tells women from men where a mouth is eight pixels wide."""
FACE = (-1.0, -0.62, 1.0, 0.98)
"""Left, top, right, bottom of a box round all features."""


def is_fine(half: float) -> bool:
    """Whether a head of half a height in pixels has all its detail."""
    return half >= FINE - 1e-3


@dataclass(frozen=True)
class Feature:
    """One part of a head: its distance, what it is, whose ink it takes, and its relief (0: as below)."""

    distance: Tensor
    part: str
    """One of ``BODY_PARTS``."""
    ink: str
    """``"skin"``, ``"hair"``, ``"eyes"``, ``"lips"``, ``"white"`` or ``"black"``."""
    relief: float


class Head:
    """``n`` heads at points (n, h, w) in their own frames, in half heights."""

    def __init__(self, x: Tensor, y: Tensor, sitters: Sequence[Sitter], pixel: Tensor) -> None:
        self.x, self.y, self.pixel = x, y, pixel
        self.people: list[Person] = [sitter.person for sitter in sitters]
        self.expressions = [sitter.expression for sitter in sitters]
        self.fine = is_fine(1 / float(pixel.max()))
        laid: list[Features] = [features(sitter.person, sitter.pose.turn) for sitter in sitters]
        self.turn = self.column([sitter.pose.turn for sitter in sitters])
        self.width, self.height = self.column([one.width for one in laid]), self.column([one.height for one in laid])
        self.apart, self.eye = self.column([one.apart for one in laid]), self.column([one.eye for one in laid])
        self.smile = self.column([one.smile for one in laid])
        self.eyes = self._point([one.eyes for one in laid])
        self.nose = self._point([one.nose for one in laid])
        self.mouth = self._point([one.mouth for one in laid])

    def column(self, values: Sequence[float]) -> Tensor:
        """One number for each head, (n, 1, 1)."""
        return torch.tensor(values, dtype=self.x.dtype, device=self.x.device)[:, None, None]

    def _point(self, points: Sequence[Point]) -> tuple[Tensor, Tensor]:
        return self.column([x for x, _ in points]), self.column([y for _, y in points])

    def shape(self, index: int, low: float, high: float) -> Tensor:
        """The shape number ``index`` of each person, mapped from [-1, 1] to [low, high]."""
        return self.column([low + (high - low) * (person.shape[index] + 1) / 2 for person in self.people])

    def rows(self, attribute: str, *names: str) -> Tensor | None:
        """Which people have one of these words for an attribute; ``None`` if nobody has."""
        found = [at for at, person in enumerate(self.people) if getattr(person, attribute) in names]
        return torch.tensor(found, device=self.x.device) if found else None

    def some(self, rows: Tensor, shape: Callable[[Head], Tensor]) -> Tensor:
        """A distance that is drawn for some rows only."""
        return self.x.new_full(self.x.shape, 1e2).index_copy_(0, rows, shape(self.at(rows)))

    def at(self, rows: Tensor) -> Head:
        """Some of the heads."""
        if len(rows) == len(self.people):
            return self
        part = object.__new__(Head)
        for name, value in vars(self).items():
            picked: object = value
            if isinstance(value, Tensor):
                picked = value[rows]
            elif isinstance(value, tuple):
                picked = tuple(one[rows] for one in value)
            elif isinstance(value, list):
                picked = [value[row] for row in rows.tolist()]
            setattr(part, name, picked)
        return part

    def thick(self, bold: float, pixels: float) -> Tensor:
        """Half a thickness: ``bold``, or what is needed to be that many pixels thick."""
        return (self.pixel * (pixels / 2)).clamp_min(bold)

    @cached_property
    def outline(self) -> Tensor:
        """Distance to the outline of the face."""
        faces = [person.face for person in self.people]
        squared = self.column([0.75 * (face == "square") for face in faces])
        narrow = self.column([{"heart": 0.36, "oval": 0.08}.get(face, 0.0) for face in faces])
        x = self.x / (1 - narrow * self.y.clamp(-0.6, 1.1))
        outline = ellipse(x, self.y, 0.0, 0.0, self.width, self.height)
        if not any(face == "square" for face in faces):
            return outline
        return outline.lerp(box(x, self.y, 0.0, 0.0, self.width * 0.97, self.height * 0.97, 0.55), squared)


def skull(h: Head) -> Iterator[Feature]:
    """The head itself, from the hair behind it to the beard."""
    if (rows := h.rows("hair", *_BACKS)) is not None:
        yield Feature(h.some(rows, _behind), "hair", "hair", 0.35)
    ears = ellipse(h.x.abs(), h.y, h.width - 0.03, 0.12, 0.15, 0.20)
    yield Feature(torch.minimum(ears, h.outline), "face", "skin", 0.45)
    if (rows := h.rows("beard", "beard")) is not None:
        yield Feature(h.some(rows, _beard), "beard", "hair", 0.2)


def face(h: Head) -> Iterator[Feature]:
    """The features, all inside ``FACE``."""
    yield from _eyes(h)
    if h.fine:
        yield Feature(ellipse(h.x, h.y, *h.nose, h.shape(4, 0.10, 0.14), h.shape(4, 0.09, 0.12)), "face", "skin", 0.1)
    yield from _mouth(h)
    if (rows := h.rows("beard", "beard", "mustache")) is not None:
        yield Feature(h.some(rows, _mustache), "beard", "hair", 0.09)


def front(h: Head) -> Iterator[Feature]:
    """Hair on the forehead."""
    if (rows := h.rows("hair", *names.HAIRS[1:])) is not None:
        yield Feature(h.some(rows, _front), "hair", "hair", 0.3)


def brow(h: Head) -> Iterator[Feature]:
    """Brows and glasses, inside ``FACE`` too."""
    if h.fine:
        yield Feature(_brows(h), "brows", "hair", 0.07)
    if (rows := h.rows("glasses", *names.GLASSES)) is not None:
        yield Feature(h.some(rows, _glasses), "glasses", "black", 0.07)


def long_hair(h: Head) -> Iterator[Feature]:
    """What falls behind the shoulders."""
    if (rows := h.rows("hair", "long")) is not None:
        yield Feature(h.some(rows, _falling), "hair", "hair", 0.4)


def _volume(h: Head) -> Tensor:
    return h.shape(7, 0.06, 0.15)


def _falling(h: Head) -> Tensor:
    """Long hair: it widens on its way down."""
    low = 1.45 + 2.0 * _volume(h)
    half = h.width + _volume(h) + 0.10 * (h.y + 0.2).clamp(0, 1.2)
    return join_inside((h.x + 0.05 * h.turn).abs() - half, torch.maximum(-0.8 - h.y, h.y - low + 0.12 * h.x * h.x), 0.3)


def _behind(h: Head) -> Tensor:
    """Hair behind the head, by style."""
    x, volume = h.x + 0.08 * h.turn, _volume(h)
    result = torch.empty_like(x)
    for style, shape in _BACKS.items():
        if (rows := h.rows("hair", style)) is not None:
            some = h.at(rows)
            result[rows] = shape(some, x[rows], volume[rows])
    return result


def _curls(h: Head, x: Tensor, volume: Tensor) -> Tensor:
    around = torch.atan2(x, h.y + 0.1)
    return (length(x, (h.y + 0.12) * 0.96) - h.width - 0.16 - volume - 0.07 * torch.cos(9 * around)) * 0.9


def _bob(h: Head, x: Tensor, volume: Tensor) -> Tensor:
    half = h.width + volume + 0.06 * (h.y + 0.3).clamp(0, 1)
    crown = length(x, h.y + 0.06) - h.width - volume - 0.05
    lobes = join_inside(x.abs() - half, torch.maximum(-h.y - 0.1, h.y - 0.62 - volume), 0.2)
    return join(crown, lobes, 0.15)


def _bun(h: Head, x: Tensor, volume: Tensor) -> Tensor:
    bun = circle(x, h.y, 0.0, -h.height - 0.12 - volume, 0.28 + volume)
    return join(bun, length(x, h.y) - h.width - 0.04, 0.1)


def _crown(h: Head, x: Tensor, volume: Tensor) -> Tensor:
    return length(x, h.y + 0.05) - h.width - volume - 0.03


_BACKS: dict[str, Callable[[Head, Tensor, Tensor], Tensor]] = {
    "curly": _curls,
    "straight": _bob,
    "tied": _bun,
    "long": _crown,
}


def _front(h: Head) -> Tensor:
    """Hair on the forehead: what of a thicker head lies above the hairline."""
    styles = [person.hair for person in h.people]
    x = h.x - 0.12 * h.turn
    part = h.shape(8, -0.45, 0.45)
    bent = h.column(
        [{"straight": 0.10, "curly": 0.55, "short": 0.62, "tied": 0.75, "long": 1.05}[one] for one in styles]
    )
    high = h.column(
        [{"straight": -0.30, "curly": -0.46, "short": -0.48, "tied": -0.56, "long": -0.62}[one] for one in styles]
    )
    slope = h.column([{"straight": 0.0, "curly": 0.05, "short": 0.28, "tied": 0.1, "long": 0.3}[one] for one in styles])
    wavy = h.column([0.05 * (one == "curly") for one in styles])
    line = high + bent * (x - 0.4 * slope * part.sign() - 0.3 * part * slope).square() + wavy * torch.cos(11 * x)
    thicker = h.outline - _volume(h) - h.column([0.10 * (one == "curly") for one in styles])
    return join_inside(thicker, (h.y - line) * 0.75, 0.08)


def _beard(h: Head) -> Tensor:
    """From ear to ear round the chin."""
    x = h.x - 0.5 * h.mouth[0]
    line = 0.46 - 0.55 * (x.abs() - 0.12).clamp_min(0).square()
    return join_inside(h.outline - 0.09, (line - h.y) * 0.8, 0.1)


def _mustache(h: Head) -> Tensor:
    mx, my = h.mouth
    u = (h.x - mx).abs()
    return _bar(u, h.y - my + 0.17 - 0.9 * (u - 0.08).clamp_min(0).square(), 0.26, h.thick(0.085, 4.5))


def _bar(u: Tensor, v: Tensor, half: Number, thick: Number) -> Tensor:
    """Distance to a level line with round ends, of a half length and a half thickness."""
    return length((u.abs() - half).clamp_min(0), v) - thick


def _mouth(h: Head) -> Iterator[Feature]:
    mx, my = h.mouth
    bend = h.column([{"smiling": 1.5, "sad": -1.4}.get(one, 0.0) for one in h.expressions])
    open_ = h.column([float(one == "surprised") for one in h.expressions])
    u = h.x - mx
    v = h.y - my + bend * (u.square() - 0.4 * h.smile.square()).clamp_max(0.12)
    full = h.column([FULL_LIPS if person.kind == "woman" else 1.0 for person in h.people])
    line = _bar(u, v, h.smile * 0.85, h.thick(0.075, 4.5) * full) * 0.85
    round_ = ellipse(h.x, h.y, mx, my + 0.02, h.smile * 0.62, h.smile * 0.85)
    yield Feature(line.lerp(round_, open_), "mouth", "lips", 0.08)


def _eyes(h: Head) -> Iterator[Feature]:
    cx, cy = h.eyes
    u, v = (h.x - cx).abs() - h.apart, h.y - cy
    if not h.fine:
        if (rows := h.rows("glasses", *names.GLASSES)) is not None:
            yield Feature(h.some(rows, _lenses), "glasses", "white", 0.0)
        yield Feature(ellipse(u, v, 0.0, 0.0, h.thick(0.19, 7.2), h.thick(0.23, 8.6)), "eyes", "white", 0.1)
        yield Feature(ellipse(u, v, 0.0, 0.02, h.thick(0.13, 4.8), h.thick(0.17, 6.2)), "eyes", "eyes", 0.0)
        return
    wide = h.column([1.1 if one == "surprised" else 1.0 for one in h.expressions])
    yield Feature(ellipse(u, v, 0.0, 0.0, h.eye * 1.05 * wide, h.eye * wide), "eyes", "white", 0.12)
    # The irises look where the head turns, and a window mirrors itself in both.
    gaze = h.x - cx - 0.05 * h.turn
    iris = length(gaze.abs() - h.apart, v - 0.01) - 0.84 * h.eye
    yield Feature(iris, "eyes", "eyes", 0.0)
    yield Feature(iris + 0.36 * h.eye, "eyes", "black", 0.0)
    shift = torch.where(gaze < 0, -h.apart, h.apart)
    yield Feature(circle(gaze - shift, v, -0.06, -0.07, h.thick(0.06, 4.6)), "eyes", "white", 0.0)


def _brows(h: Head) -> Tensor:
    styles = [person.brows for person in h.people]
    raised = h.column([{"surprised": 0.10, "sad": 0.02}.get(one, 0.0) for one in h.expressions])
    arch = h.column([1.6 * (one == "curved") + 0.1 for one in styles])
    slope = h.column([{"sad": 0.35, "serious": -0.18}.get(one, 0.0) for one in h.expressions])
    thick = h.thick(0.07, 5.0) + h.column([0.04 * (one == "thick") for one in styles])
    cx, cy = h.eyes
    u = (h.x - cx).abs() - h.apart
    v = h.y - cy + h.eye + 0.15 + raised + 0.02 - arch * (u.square() - 0.01) - slope * u
    return _bar(u, v, 0.19, thick) * 0.9


def _lenses(h: Head) -> Tensor:
    cx, cy = h.eyes
    u, v = (h.x - cx).abs() - h.apart, h.y - cy - 0.02
    reach = (h.apart - 0.02).clamp_max(0.335) if h.fine else h.apart
    styles = h.column([float(person.glasses == "square") for person in h.people])
    return circle(u, v, 0.0, 0.0, reach).lerp(box(u, v, 0.0, 0.0, reach, reach * 0.86, 0.09), styles)


def _glasses(h: Head) -> Tensor:
    half = h.thick(0.065, 4.2 if h.fine else 3.4)
    return union(_lenses(h).abs() - half, box(h.x, h.y, h.eyes[0], h.eyes[1] - 0.02, 0.12, half, 0.03))
