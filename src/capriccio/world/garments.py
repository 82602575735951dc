"""The garments, cut on the mannequin: what each is made of, worn on any body or laid flat.

One cutter serves a slot: it draws all its kinds for a batch of bodies at once, from tables of lengths and widths that
the six shape numbers of an identity bend. Lengths are half heights of the figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum

import torch
from torch import Tensor

from capriccio.world.bodies import CUT, MANNEQUIN, Body, Coordinates, Limb
from capriccio.world.graph import Garment, Identity
from capriccio.world.kinds import Figure, Part, Role
from capriccio.world.people import MOTIFS, slot_of
from capriccio.world.shapes import box, circle, ellipse, heart, join, join_inside, star
from capriccio.world.skeleton import HEAD

_HIDDEN = 1e2  # a distance at which nothing shows


class Layer(IntEnum):
    """The layers of cloth round a body, from back to front; what is worn there, see ``SLOT``."""

    HOOD = 0
    FEET = 1
    LEGS = 2
    CHEST = 3
    RIGHT_ARM = 4
    LEFT_ARM = 5
    HEAD = 6


SLOT = {
    Layer.HOOD: "upper",
    Layer.FEET: "shoes",
    Layer.LEGS: "lower",
    Layer.CHEST: "upper",
    Layer.RIGHT_ARM: "upper",
    Layer.LEFT_ARM: "upper",
    Layer.HEAD: "hat",
}
"""What is worn on each layer; dresses are cut like uppers."""


@dataclass(frozen=True)
class Piece:
    """One piece of cloth: its distance, its paint, its relief, its origin on the mannequin. Main ones are printed."""

    distance: Tensor
    role: Role
    relief: float
    origin: Coordinates


class Cut:
    """How the garments of one slot are cut, for bodies that wear one and bodies that do not."""

    def __init__(self, garments: Sequence[Garment | None], like: Tensor) -> None:
        self.garments = garments
        shapes = [garment.shape if garment else (0.0,) * 6 for garment in garments]
        self.shape = like.new_tensor(shapes)[:, :, None, None]

    def between(self, index: int, low: float, high: float) -> Tensor:
        """The shape number ``index``, mapped from [-1, 1] to [low, high], (n, 1, 1)."""
        return low + (high - low) * (self.shape[:, index] + 1) / 2

    def each(self, table: Mapping[str, float], other: float = 0.0) -> Tensor:
        """A number for each kind, (n, 1, 1)."""
        values = [table.get(garment.kind, other) if garment else other for garment in self.garments]
        return self.shape.new_tensor(values)[:, None, None]

    def only(self, distance: Tensor, *kinds: str) -> Tensor:
        """The distance where a garment is of one of the kinds (of any kind without them); elsewhere nothing shows."""
        shown = [garment is not None and (not kinds or garment.kind in kinds) for garment in self.garments]
        return distance + _HIDDEN * self.shape.new_tensor([not one for one in shown])[:, None, None]

    def has(self, *kinds: str) -> bool:
        """Whether any garment is of one of the kinds."""
        return any(garment is not None and garment.kind in kinds for garment in self.garments)


_HEM = {"shirt": 0.36, "sweater": 0.37, "hoodie": 0.38, "jacket": 0.41, "vest": 0.35, "dress": 0.66}
_FLARE = {"shirt": 0.275, "sweater": 0.27, "hoodie": 0.28, "jacket": 0.30, "vest": 0.26, "dress": 0.40}
_SLEEVE = {"shirt": 0.72, "sweater": 1.80, "hoodie": 1.80, "jacket": 1.80, "vest": -1.0, "dress": 0.52}
_NECKLINE = {"shirt": 0.09, "sweater": 0.075, "hoodie": 0.08, "jacket": 0.10, "vest": 0.17, "dress": 0.13}


def hood(body: Body, cut: Cut) -> Iterator[Piece]:
    """What of a hoodie lies behind the neck."""
    if cut.has("hoodie"):
        distance = cut.only(ellipse(*body.trunk, 0.0, -0.33, 0.30, 0.17), "hoodie")
        yield Piece(distance, Role.MAIN, 0.16, body.trunk)
        yield Piece(distance + 0.075, Role.ACCENT, 0.1, body.trunk)


def chest(body: Body, cut: Cut) -> Iterator[Piece]:
    """The trunks of shirts, sweaters, hoodies, jackets, vests and dresses."""
    x, y = body.trunk
    side = x.abs()
    dress = cut.each({"dress": 1.0})
    hem = cut.each(_HEM, 0.36) + cut.between(1, -0.02, 0.03) + dress * cut.between(1, -0.06, 0.06)
    wide = cut.each(_FLARE, 0.27) + cut.between(2, -0.01, 0.02) + dress * cut.between(2, -0.05, 0.05)
    torso = cut.only(_torso(side, y, hem, wide, cut.each({"dress": 0.205, "vest": 0.235}, 0.25)))
    holes = ellipse(x, y, 0.0, -0.335, 0.115, cut.each(_NECKLINE, 0.08) + cut.between(3, -0.01, 0.03))
    bare = _reach(cut) < 0
    if bool(bare.any()):
        holes = torch.minimum(holes, ellipse(side, y, 0.305, -0.14, 0.075, 0.15) + _HIDDEN * ~bare)
    yield Piece(torch.maximum(torso, -holes), Role.MAIN, 0.17, body.trunk)
    yield from _trimmings(cut, x, side, y, torso, hem)
    yield Piece(torch.maximum(holes.abs() - 0.042, torso - 0.012), Role.ACCENT, 0.05, body.trunk)
    yield from _motifs(cut, x, y)


def _torso(side: Tensor, y: Tensor, hem: Tensor, wide: Tensor, waist: Tensor) -> Tensor:
    """Distance to a trunk of cloth: shoulders, a waist, and a hem of some width."""
    top, middle = -0.25, 0.12
    half = 0.285 + (waist - 0.285) * ((y - top) / (middle - top)).clamp(0, 1)
    half = half + (wide - waist) * ((y - middle) / (hem - middle)).clamp(0, 1)
    ends = torch.maximum(y - hem + 0.25 * side * side, -0.355 + 0.36 * side - y)
    return join_inside((side - half) * 0.93, ends, 0.09)


def _trimmings(cut: Cut, x: Tensor, side: Tensor, y: Tensor, torso: Tensor, hem: Tensor) -> Iterator[Piece]:
    band = cut.between(4, 0.065, 0.10)
    if cut.has("sweater", "hoodie", "jacket", "dress"):
        edge = torch.maximum(torso - 0.008, hem - band - 0.25 * side * side - y)
        yield Piece(cut.only(edge, "sweater", "hoodie", "jacket", "dress"), Role.ACCENT, 0.06, (x, y))
    if cut.has("jacket"):
        lapels = side - 0.05 - 0.10 * ((0.02 - y) / 0.36).clamp(0, 1)
        yield Piece(cut.only(torch.maximum(torso, lapels), "jacket"), Role.ACCENT, 0.05, (x, y))
    if cut.has("hoodie"):
        pocket = box(x, y, 0.0, 0.19, 0.15, 0.075, 0.06)
        yield Piece(cut.only(pocket, "hoodie"), Role.ACCENT, 0.06, (x, y))
    if cut.has("dress"):
        belt = torch.maximum(torso - 0.008, (y - 0.12).abs() - band * 0.55)
        yield Piece(cut.only(belt, "dress"), Role.ACCENT, 0.06, (x, y))


def _motifs(cut: Cut, x: Tensor, y: Tensor) -> Iterator[Piece]:
    """What is printed on chests."""
    motifs = [garment.motif if garment else None for garment in cut.garments]
    for name in MOTIFS:
        if name in motifs:
            hidden = x.new_tensor([_HIDDEN * (motif != name) for motif in motifs])[:, None, None]
            yield Piece(_MOTIFS[name](x, y + 0.01) + hidden, Role.ACCENT, 0.05, (x, y))


_MOTIFS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "star": lambda x, y: star(x, y, 0.145, 0.5) - 0.015,
    "heart": lambda x, y: heart(x / 0.24, (y - 0.13) / 0.24) * 0.22,
    "ball": lambda x, y: circle(x, y, 0.0, 0.0, 0.115),
}


def _reach(cut: Cut) -> Tensor:
    """How far sleeves go: 1 is the elbow, 2 the wrist; below 0 there are none."""
    bare = cut.each({"dress": 2.0}) * (cut.shape[:, 0] < -0.2)
    return cut.each(_SLEEVE, 9.0) + cut.between(0, -0.08, 0.08) - bare


def sleeve(side: str) -> Callable[[Body, Cut], Iterator[Piece]]:
    """The cutter of the sleeves of one side."""

    def cutter(body: Body, cut: Cut) -> Iterator[Piece]:
        reach, arm = _reach(cut), body.arms[side]
        if bool((reach > 0).any()):
            wide = cut.between(5, 0.0, 0.025) + cut.each({"hoodie": 0.01, "jacket": 0.01})
            cloth = cut.only(arm.sleeve(0.115, 0.105 + wide / 2, 0.095 + wide, reach)) + _HIDDEN * (reach < 0)
            yield Piece(cloth, Role.MAIN, 0.11, arm.origin)
            yield Piece(_cuff(arm, cloth, reach, 0.075), Role.ACCENT, 0.06, arm.origin)

    return cutter


def _cuff(limb: Limb, cloth: Tensor, reach: Tensor, width: float) -> Tensor:
    return torch.maximum(cloth - 0.008, limb.beyond(reach, width))


def legs(body: Body, cut: Cut) -> Iterator[Piece]:
    """Pants, shorts and skirts."""
    x, y = body.trunk
    waist = torch.maximum(0.17 - y, x.abs() - 0.245)
    if cut.has("pants", "shorts"):
        yield from _trousers(body, cut)
    if cut.has("skirt"):
        side, hem = x.abs(), 0.60 + cut.between(1, -0.07, 0.08)
        half = 0.225 + (0.145 + cut.between(2, -0.05, 0.05)) * ((y - 0.17) / (hem - 0.17)).clamp(0, 1)
        skirt = join_inside((side - half) * 0.93, torch.maximum(0.16 - y, y - hem + 0.25 * side * side), 0.07)
        skirt = cut.only(skirt, "skirt")
        yield Piece(skirt, Role.MAIN, 0.2, body.trunk)
        band = hem - cut.between(4, 0.075, 0.12) - 0.25 * side * side - y
        yield Piece(torch.maximum(skirt - 0.008, band), Role.ACCENT, 0.06, body.trunk)
    belt = torch.maximum(waist, y - 0.245)
    yield Piece(cut.only(join_inside(belt, 0.165 - y, 0.04)), Role.ACCENT, 0.05, body.trunk)


def _trousers(body: Body, cut: Cut) -> Iterator[Piece]:
    x, y = body.trunk
    reach = cut.each({"pants": 1.76, "shorts": 0.78}, 0.5) + cut.between(0, -0.06, 0.08)
    wide = cut.between(2, -0.005, 0.02)
    hips = box(x, y, 0.0, 0.275, 0.245, 0.11, 0.07)
    tubes = {side: leg.sleeve(0.13, 0.125 + wide, 0.115 + 1.4 * wide, reach) for side, leg in body.legs.items()}
    cloth = cut.only(join(torch.minimum(tubes["right"], tubes["left"]), hips, 0.05), "pants", "shorts")
    yield Piece(cloth, Role.MAIN, 0.13, _trouser_origin(body, tubes, hips))
    for side, leg in body.legs.items():
        cuff = _cuff(leg, cut.only(tubes[side], "pants", "shorts"), reach, 0.085)
        yield Piece(cuff, Role.ACCENT, 0.06, leg.origin)


def _trouser_origin(body: Body, tubes: Mapping[str, Tensor], hips: Tensor) -> Coordinates:
    """The hips run into the nearer leg."""
    right, nearest = tubes["right"] < tubes["left"], torch.minimum(tubes["right"], tubes["left"])
    share = (0.5 + (hips - nearest) / 0.12).clamp_(0, 1)
    legs = zip(body.legs["right"].origin, body.legs["left"].origin, strict=True)
    x, y = (trunk.lerp(torch.where(right, *leg), share) for trunk, leg in zip(body.trunk, legs, strict=True))
    return x, y


def feet(body: Body, cut: Cut) -> Iterator[Piece]:
    """Shoes and boots, in the frames of the shins."""
    for side, leg in body.legs.items():
        sign = -1.0 if side == "right" else 1.0
        along, across = leg.lower.along - leg.lower.length, leg.lower.across
        long, tall = 0.125 + cut.between(0, -0.01, 0.02), 0.088 + cut.between(1, -0.01, 0.005)
        shoe = ellipse(across, along, sign * 0.042, 0.0, long, tall)
        start = torch.where(cut.each({"boots": 1.0}) > 0, cut.between(2, 0.16, 0.26), cut.between(2, 0.08, 0.11))
        shoe = join(shoe, torch.maximum(leg.lower.tapered(0.112, 0.095), -along - start), 0.05)
        origin = leg.lower.origin()
        shoe = cut.only(torch.maximum(shoe, along - 0.085))
        yield Piece(shoe, Role.MAIN, 0.1, origin)
        yield Piece(torch.maximum(shoe - 0.006, cut.between(4, 0.015, 0.03) - along), Role.ACCENT, 0.05, origin)


def hat(body: Body, cut: Cut) -> Iterator[Piece]:
    """Hats and caps, in the frames of the heads."""
    x, y = body.head
    head = CUT["head"]
    origin = x * HEAD + head[0], y * HEAD + head[1]
    if cut.has("hat"):
        top, half = cut.between(1, -1.36, -1.16), cut.between(0, 0.80, 0.92)
        dome = box(
            x / (1 + cut.between(3, -0.1, 0.14) * (y + 0.8)), y, 0.0, (top - 0.45) / 2, half, (-0.45 - top) / 2, 0.3
        )
        brim = box(x, y, 0.0, -0.52, cut.between(2, 1.14, 1.34), 0.13, 0.12)
        yield Piece(HEAD * cut.only(dome, "hat"), Role.MAIN, 0.13, origin)
        band = torch.maximum(dome - 0.02, -0.60 - cut.between(4, 0.20, 0.30) - y)
        yield Piece(HEAD * cut.only(band, "hat"), Role.ACCENT, 0.04, origin)
        yield Piece(HEAD * cut.only(brim, "hat"), Role.MAIN, 0.035, origin)
    if cut.has("cap"):
        wide, rise = cut.between(0, 0.96, 1.06), cut.between(1, 0.86, 1.0)
        dome = join_inside(ellipse(x, y, 0.0, -0.32, wide, rise), y + 0.36, 0.08)
        yield Piece(HEAD * cut.only(dome, "cap"), Role.MAIN, 0.13, origin)
        button = circle(x, y, 0.0, -0.30 - rise, 0.13)
        visor = ellipse(x, y, cut.between(3, -0.3, 0.3), -0.40, cut.between(2, 0.70, 0.88), 0.19)
        yield Piece(HEAD * cut.only(torch.minimum(button, visor), "cap"), Role.ACCENT, 0.04, origin)


CUTTERS: dict[Layer, Callable[[Body, Cut], Iterator[Piece]]] = {
    Layer.HOOD: hood,
    Layer.FEET: feet,
    Layer.LEGS: legs,
    Layer.CHEST: chest,
    Layer.RIGHT_ARM: sleeve("right"),
    Layer.LEFT_ARM: sleeve("left"),
    Layer.HEAD: hat,
}
"""Who cuts what."""

_LAID: dict[str, tuple[float, float, float]] = {
    "shirt": (0.0, 0.03, 0.47), "sweater": (0.0, 0.02, 0.63), "hoodie": (0.0, -0.04, 0.65), "jacket": (0.0, 0.04, 0.64),
    "vest": (0.0, 0.02, 0.40), "dress": (0.0, 0.22, 0.57), "pants": (0.0, 0.52, 0.38), "shorts": (0.0, 0.37, 0.33),
    "skirt": (0.0, 0.42, 0.39), "hat": (0.0, -0.92, 0.46), "cap": (0.0, -0.90, 0.38), "shoes": (0.0, 0.89, 0.36),
    "boots": (0.0, 0.81, 0.36),
}  # fmt: skip
"""Middle and half side of what a flat picture shows of the mannequin."""


def scale(kind: str) -> float:
    """Half heights of a figure in half a side of the garment laid flat."""
    return _LAID[kind][2]


def laid(kind: str, origin: Coordinates) -> Coordinates:
    """Where a point of the mannequin lies in the frame of the garment laid flat, from -1 to 1."""
    cx, cy, half = _LAID[kind]
    return (origin[0] - cx) / half, (origin[1] - cy) / half


def build_flat(kind: str, x: Tensor, y: Tensor, identities: Sequence[Identity]) -> Figure:
    """Lay ``n`` garments of one kind flat, as ``kinds.build`` builds objects.

    Args:
        kind: Their kind.
        x: Abscissae in the frame of each garment, (n, h, w).
        y: Ordinates, downwards.
        identities: The n garments.
    """
    cx, cy, half = _LAID[kind]
    garments = [one if isinstance(one, Garment) else Garment(**asdict(one)) for one in identities]
    body = Body(x * half + cx, y * half + cy, [MANNEQUIN] * len(garments))
    slot = "upper" if kind == "dress" else slot_of(kind)
    pieces = [piece for layer in CUTTERS if SLOT[layer] == slot for piece in CUTTERS[layer](body, Cut(garments, x))]
    figure = Figure(x, y, x.new_tensor([garment.shape for garment in garments])[:, :, None, None])
    figure.parts = [Part(piece.distance / half, piece.role, piece.relief / half) for piece in pieces]
    return figure
