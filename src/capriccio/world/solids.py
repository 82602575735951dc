"""The solids: toys in the round, each a list of parts painted in the colours of an identity.

A solid stands on the plane z = ``FOOT`` about the origin, z up. Plain ones look alike from all sides but for their
paint; the others have a known front, along +x: what a model must not paint twice. The six shape numbers of an identity
bend every kind in its own way, as they do in ``kinds``, and combinations are held out by the same hash.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from capriccio.world.graph import Identity, sample_identity
from capriccio.world.kinds import Role
from capriccio.world.shapes import Corners, convex, join, join_inside, union
from capriccio.world.volumes import block, drum, ellipsoid, hoop, middle, norm, prism, rod, sphere, spike

PLAIN = ("cube", "ball", "cone", "cylinder", "ring", "capsule", "pyramid")
FRONTED = ("house", "car", "bird", "robot", "boat", "cat", "mug", "rocket", "fish")
SOLIDS = (*PLAIN, *FRONTED)
AXES = {kind: [0, 1, 2] for kind in ("ball", "cone", "cylinder", "capsule", "mug", "rocket")} | {"ring": [1, 2, 0]}
"""Kinds that are round about an axis, and their axes with that one last: patterns are wrapped about it."""
FOOT = -0.7
"""Height of the ground."""


@dataclass(frozen=True)
class Part:
    """One part: its distance (N,), its paint, and whether it is matter or only paint on what is there."""

    distance: Tensor
    role: Role
    matter: bool


@dataclass
class Body:
    """What a solid is made of at N points while it is being built."""

    x: Tensor
    y: Tensor
    z: Tensor
    shape: Tensor
    """(N, 6) numbers in [-1, 1]."""
    parts: list[Part] = field(default_factory=list)

    def between(self, index: int, low: float, high: float) -> Tensor:
        """The shape number ``index``, mapped from [-1, 1] to [low, high]."""
        return self.shape[:, index] * ((high - low) / 2) + (high + low) / 2

    def add(self, role: Role, distance: Tensor) -> None:
        """Put a part of matter in place."""
        self.parts.append(Part(distance, role, True))

    def paint(self, role: Role, region: Tensor) -> None:
        """Paint the region where a distance is negative, over the earlier parts."""
        self.parts.append(Part(region, role, False))

    def eyes(self, x: float | Tensor, apart: float | Tensor, z: float | Tensor, radius: float = 0.12) -> None:
        """Two white eyes with dark pupils that look to the front."""
        self.add(Role.LIGHT, sphere(self.x, self.y.abs(), self.z, (x, apart, z), radius))
        pupil = sphere(self.x, self.y.abs(), self.z, (x + 0.6 * radius, apart, z), radius * 0.66)
        self.add(Role.DETAIL, pupil)

    def distance(self) -> Tensor:
        """Distance (N,) to the whole solid."""
        return union(*(part.distance for part in self.parts if part.matter))


def _plate(across: Tensor, up: Tensor, corners: Corners, rounding: float = 0.06) -> Tensor:
    """Distance to a convex outline, corners clockwise as seen with ``across`` to the right and ``up`` upwards."""
    return convex(across, -up, [(x, -z) for x, z in corners], rounding)


def _cube(b: Body) -> None:
    halves = b.between(0, 0.50, 0.58), b.between(1, 0.50, 0.58), b.between(2, 0.48, 0.58)
    z = b.z - (FOOT + halves[2])
    b.add(Role.MAIN, block(b.x, b.y, z, (0.0, 0.0, 0.0), halves, 0.12))
    faces = (axis.abs() - half for axis, half in zip((b.x, b.y, z), halves, strict=True))
    b.paint(Role.ACCENT, -b.between(3, 0.12, 0.18) - middle(*faces))


def _ball(b: Body) -> None:
    b.add(
        Role.MAIN, ellipsoid(b.x, b.y, b.z, (0.0, 0.0, 0.0), (b.between(0, 0.66, 0.72), b.between(1, 0.66, 0.72), 0.7))
    )
    # Two caps about an axis that leans.
    across = b.z + b.between(2, -0.5, 0.5) * (b.y + b.between(3, -0.5, 0.5) * b.x)
    b.paint(Role.ACCENT, b.between(4, 0.42, 0.54) - (across + b.between(5, -0.06, 0.06)).abs())


def _cone(b: Body) -> None:
    tall = b.between(0, 1.30, 1.50)
    b.add(Role.MAIN, spike(norm(b.x, b.y), b.z - FOOT, b.between(1, 0.50, 0.64), tall, 0.10) - 0.03)
    b.paint(Role.ACCENT, FOOT + tall * b.between(2, 0.50, 0.62) - b.z)


def _cylinder(b: Body) -> None:
    half = b.between(0, 0.50, 0.68)
    along = b.z - (FOOT + half)
    b.add(Role.MAIN, drum(norm(b.x, b.y), along, b.between(1, 0.42, 0.56), half, 0.12))
    b.paint(Role.ACCENT, b.between(2, 0.62, 0.72) * half - along.abs())


def _ring(b: Body) -> None:
    thick = b.between(0, 0.17, 0.23)
    radius = -FOOT - thick
    around = norm(b.y, b.z)
    b.add(Role.MAIN, hoop(around, b.x, radius, thick))
    # Four bands: the cosine of four times the angle, as a polynomial of its sine.
    sine = (b.z / around) ** 2
    b.paint(Role.ACCENT, (b.between(1, -0.1, 0.4) - (8 * sine * sine - 8 * sine + 1)) * around / 4)


def _capsule(b: Body) -> None:
    radius = b.between(0, 0.34, 0.42)
    b.add(Role.MAIN, rod(b.x, b.y, b.z, (0.0, 0.0, FOOT + radius), (0.0, 0.0, -FOOT - radius), radius))
    b.paint(Role.ACCENT, b.between(1, 0.26, 0.36) - b.z.abs())


def _pyramid(b: Body) -> None:
    tall, foot = b.between(0, 1.10, 1.34), b.between(1, 0.52, 0.62)
    x, y, up = b.x.abs(), b.y.abs(), b.z - FOOT
    b.add(Role.MAIN, join_inside(spike(x, up, foot, tall, 0.10), spike(y, up, foot, tall, 0.10), 0.10) - 0.03)
    b.paint(Role.ACCENT, FOOT + tall * b.between(2, 0.48, 0.60) - b.z)


def _house(b: Body) -> None:
    wide, deep, eaves = b.between(0, 0.42, 0.52), b.between(1, 0.46, 0.56), b.between(2, 0.02, 0.14)
    apex = b.between(3, 0.62, 0.76)
    wall = block(b.x, b.y, b.z, (0.0, 0.0, (FOOT + eaves) / 2), (deep, wide, (eaves - FOOT) / 2), 0.05)
    gable = spike(b.y.abs(), b.z - eaves + 0.06, wide, apex - eaves, 0.04)
    b.add(Role.MAIN, join(wall, prism(gable, b.x, deep, 0.05), 0.04))
    b.add(Role.MAIN, block(b.x, b.y, b.z, (-deep * 0.45, wide * 0.5, apex - 0.14), (0.11, 0.11, 0.22), 0.03))
    # The roof is a wedge less the same wedge a little lower.
    outer = spike(b.y.abs(), b.z - eaves + 0.02, wide + 0.16, apex - eaves + 0.1, 0.05)
    roof = join_inside(outer, -outer - 0.13, 0.03)
    b.add(Role.ACCENT, prism(roof, b.x, deep + 0.12, 0.06))
    side = b.between(4, -0.14, 0.14)
    tall = b.between(5, 0.22, 0.27)
    b.add(Role.ACCENT, block(b.x, b.y, b.z, (deep, side, FOOT + tall), (0.05, 0.13, tall), 0.05))
    b.add(Role.LIGHT, sphere(b.x, b.y, b.z, (deep + 0.05, side + 0.08, FOOT + tall), 0.04))
    b.add(Role.LIGHT, block(b.x, b.y.abs(), b.z, (0.0, wide, FOOT + 0.44), (0.16, 0.04, 0.13), 0.04))
    b.add(Role.LIGHT, drum(norm(b.y, b.z - eaves - 0.10), b.x - deep, 0.10, 0.05, 0.03))


def _car(b: Body) -> None:
    long, wide, wheel = b.between(0, 0.74, 0.84), b.between(1, 0.34, 0.40), b.between(2, 0.20, 0.25)
    belt, roof = b.between(3, -0.20, -0.12), b.between(4, 0.18, 0.32)
    floor, at = FOOT + wheel * 0.7, b.between(5, -0.20, -0.06)
    b.add(Role.MAIN, block(b.x, b.y, b.z, (0.0, 0.0, (belt + floor) / 2), (long, wide, (belt - floor) / 2), 0.16))
    corners: Corners = [(-0.40, roof), (0.22, roof), (0.48, belt - 0.05), (-0.56, belt - 0.05)]
    cabin = prism(_plate(b.x - at, b.z, corners, 0.10), b.y, wide - 0.05, 0.12)
    b.add(Role.ACCENT, cabin)
    glass = (b.z - (belt + roof - 0.06) / 2).abs() - (roof - belt - 0.12) / 2
    b.paint(Role.LIGHT, join_inside(glass, 0.05 - (b.x - at + 0.10).abs(), 0.02))
    b.add(Role.LIGHT, ellipsoid(b.x, b.y.abs(), b.z, (long - 0.03, wide * 0.62, belt - 0.14), (0.09, 0.10, 0.09)))
    axle = norm(b.x.abs() - long * 0.56, b.z - FOOT - wheel)
    b.add(Role.DETAIL, drum(axle, b.y.abs() - wide + 0.02, wheel, 0.11, 0.07))
    b.add(Role.ACCENT, drum(axle, b.y.abs() - wide - 0.05, wheel * 0.55, 0.07, 0.04))


def _bird(b: Body) -> None:
    fat, head, neck = b.between(0, 0.36, 0.44), b.between(1, 0.29, 0.35), b.between(2, 0.28, 0.40)
    body = ellipsoid(b.x, b.y, b.z, (-0.08, 0.0, -0.18), (fat + 0.12, fat, 0.40))
    b.add(Role.MAIN, join(body, sphere(b.x, b.y, b.z, (0.26, 0.0, neck), head), 0.30))
    b.add(Role.ACCENT, spike(norm(b.y, (b.z - neck + 0.03) * 1.2), b.x - 0.44, 0.17, b.between(3, 0.36, 0.44), 0.05))
    wing = ellipsoid(b.x + 0.28 * b.z, b.y.abs(), b.z, (-0.14, fat, -0.08), (0.36, 0.10, b.between(4, 0.18, 0.25)))
    b.add(Role.ACCENT, wing * 0.95)
    lift = b.between(5, 0.0, 0.2)
    b.add(
        Role.ACCENT, ellipsoid(b.x, b.y, b.z - 0.3 * (-0.5 - b.x), (-0.64, 0.0, lift - 0.14), (0.26, 0.18, 0.10)) * 0.95
    )
    b.add(Role.ACCENT, rod(b.x, b.y.abs(), b.z, (0.0, 0.16, -0.45), (0.05, 0.17, FOOT + 0.05), 0.06))
    b.add(Role.ACCENT, ellipsoid(b.x, b.y.abs(), b.z, (0.10, 0.17, FOOT + 0.04), (0.15, 0.10, 0.05)))
    b.eyes(0.26 + 0.66 * head, 0.64 * head, neck + 0.26 * head, 0.09)


def _robot(b: Body) -> None:
    wide, head, deep = b.between(0, 0.36, 0.44), b.between(1, 0.26, 0.36), b.between(2, 0.24, 0.32)
    y = b.y.abs()
    b.add(Role.MAIN, block(b.x, b.y, b.z, (0.0, 0.0, -0.16), (deep, wide, 0.32), 0.12))
    b.add(Role.ACCENT, block(b.x, b.y, b.z, (0.0, 0.0, 0.38), (deep - 0.02, head, b.between(3, 0.19, 0.24)), 0.10))
    b.add(Role.ACCENT, drum(norm(b.x, y - wide * 0.52), b.z - FOOT - 0.15, b.between(4, 0.12, 0.16), 0.15, 0.06))
    b.add(
        Role.ACCENT, rod(b.x, y, b.z, (0.0, wide + 0.06, -0.02), (0.12, wide + 0.14, b.between(5, -0.44, -0.30)), 0.10)
    )
    b.add(Role.DETAIL, rod(b.x, b.y, b.z, (0.0, 0.0, 0.5), (0.0, 0.0, 0.78), 0.05))
    b.add(Role.ACCENT, sphere(b.x, b.y, b.z, (0.0, 0.0, 0.80), 0.10))
    b.eyes(deep - 0.02, head * 0.48, 0.42, 0.11)
    b.add(Role.LIGHT, block(b.x, b.y, b.z, (deep, 0.0, -0.12), (0.04, wide * 0.5, 0.12), 0.04))


def _boat(b: Body) -> None:
    long, wide, deck = b.between(0, 0.78, 0.90), b.between(1, 0.32, 0.42), b.between(2, -0.36, -0.26)
    # The hull is an egg, blunt behind and pointed in front, cut at the deck.
    taper = 1 - 0.35 * (b.x / long).clamp(-0.5, 1)
    hull = ellipsoid(b.x, b.y / taper, b.z, (0.0, 0.0, deck), (long, wide, deck - FOOT + 0.02)) * 0.8
    b.add(Role.MAIN, join_inside(hull, b.z - deck, 0.08))
    mast = b.between(3, -0.06, 0.10)
    b.add(Role.DETAIL, rod(b.x, b.y, b.z, (mast, 0.0, deck - 0.05), (mast, 0.0, 0.86), 0.05))
    boom, reach = deck + 0.16, b.between(4, 0.50, 0.66)
    belly = b.y + 0.10 * ((b.x - mast) / reach * 3.1).clamp(-3.1, 3.1).sin().abs()
    main = _plate(b.x - mast, b.z, [(-0.12, 0.84), (-0.06, 0.84), (-0.06, boom), (-reach, boom)])
    b.add(Role.ACCENT, prism(main, belly, 0.04, 0.03) * 0.9)
    jib = _plate(b.x - mast, b.z, [(0.08, 0.66), (0.14, 0.66), (b.between(5, 0.44, 0.60), boom), (0.08, boom)])
    b.add(Role.LIGHT, prism(jib, belly, 0.04, 0.03) * 0.9)


def _cat(b: Body) -> None:
    fat, face, tall = b.between(0, 0.31, 0.38), b.between(1, 0.38, 0.45), b.between(2, 0.31, 0.36)
    y = b.y.abs()
    b.add(Role.MAIN, ellipsoid(b.x, b.y, b.z, (-0.10, 0.0, -0.31), (0.36, fat, 0.40)))
    ear = spike(
        norm((b.x - 0.04) * 1.4, y - face * 0.60), b.z - 0.24 - tall * 0.6, 0.19, b.between(3, 0.34, 0.42), 0.06
    )
    b.add(Role.ACCENT, ear)
    b.add(Role.MAIN, ellipsoid(b.x, b.y, b.z, (0.08, 0.0, 0.24), (0.36, face, tall)))
    b.add(Role.ACCENT, ellipsoid(b.x, y, b.z, (0.20, 0.16, FOOT + 0.09), (0.20, 0.12, 0.10)))
    b.add(Role.ACCENT, ellipsoid(b.x, b.y, b.z, (0.42, 0.0, 0.15), (0.10, b.between(4, 0.12, 0.17), 0.09)))
    b.add(Role.DETAIL, ellipsoid(b.x, y, b.z, (0.38, face * 0.44, 0.31), (0.08, 0.075, 0.10)))
    tip = b.between(5, -0.20, 0.20)
    low = rod(b.x, b.y, b.z, (-0.36, 0.0, FOOT + 0.12), (-0.62, 0.14, FOOT + 0.14), 0.10)
    b.add(Role.ACCENT, join(low, rod(b.x, b.y, b.z, (-0.62, 0.14, FOOT + 0.14), (-0.66, 0.16, tip), 0.09), 0.10))


def _mug(b: Body) -> None:
    radius, top = b.between(0, 0.42, 0.52), b.between(1, 0.36, 0.62)
    half, across = (top - FOOT) / 2, norm(b.x, b.y + 0.12)
    z = b.z - FOOT - half
    outside = drum(across, z, radius, half, 0.10)
    handle = hoop(norm(b.y + 0.12 - radius, z), b.x, b.between(2, 0.24, 0.32), 0.09)
    b.add(Role.ACCENT, join_inside(handle, 0.06 - outside, 0.03))
    b.add(Role.MAIN, join_inside(outside, -drum(across, z - 0.3, radius - 0.12, half, 0.06), 0.04))
    b.add(Role.ACCENT, hoop(across, z - half + 0.02, radius - 0.04, 0.08))
    b.add(Role.DETAIL, drum(across, z - half + 0.2, radius - 0.1, 0.04, 0.02))


def _rocket(b: Body) -> None:
    fat, long = b.between(0, 0.26, 0.34), b.between(1, 0.30, 0.40)
    across = norm(b.x, b.y)
    body = ellipsoid(b.x, b.y, b.z, (0.0, 0.0, -0.06), (fat, fat, 0.90))
    b.add(Role.MAIN, join_inside(body, FOOT + 0.16 - b.z, 0.08))
    b.paint(Role.ACCENT, b.between(2, 0.30, 0.42) - b.z)
    b.add(Role.DETAIL, drum(across, b.z - FOOT - 0.09, fat * 0.6, 0.08, 0.04))
    tips: Corners = [
        (fat * 0.5, FOOT + long * 1.6),
        (fat + 0.28, FOOT + 0.2),
        (fat + 0.24, FOOT),
        (fat * 0.5, FOOT + 0.2),
    ]
    b.add(Role.ACCENT, prism(_plate(across, b.z, tips), torch.minimum(b.x.abs(), b.y.abs()), 0.06, 0.04))
    height = b.between(3, 0.0, 0.14)
    pane = norm(b.y, b.z - height)
    b.add(Role.ACCENT, drum(pane, b.x - fat + 0.02, b.between(4, 0.16, 0.19), 0.08, 0.05))
    b.add(Role.LIGHT, drum(pane, b.x - fat - 0.02, 0.10, 0.08, 0.04))


def _fish(b: Body) -> None:
    long, tall, fat = b.between(0, 0.56, 0.64), b.between(1, 0.42, 0.52), b.between(2, 0.24, 0.32)
    z = b.z - (FOOT + tall + 0.05)
    b.add(Role.MAIN, ellipsoid(b.x, b.y, z, (0.12, 0.0, 0.0), (long, fat, tall)))
    spread = b.between(3, 0.30, 0.44)
    corners: Corners = [(-0.86, spread), (-0.36, 0.06), (-0.36, -0.06), (-0.86, -spread)]
    b.add(Role.ACCENT, prism(_plate(b.x, z, corners, 0.08), b.y, 0.08, 0.06))
    u = b.x - 0.04 + 0.4 * z
    b.add(Role.ACCENT, ellipsoid(u, b.y, z, (0.20, 0.0, tall), (0.34, 0.09, b.between(4, 0.16, 0.24))) * 0.9)
    b.add(Role.ACCENT, ellipsoid(b.x + 0.5 * z, b.y.abs(), z, (0.06, fat, -0.12), (0.20, 0.10, 0.12)) * 0.9)
    b.add(Role.ACCENT, ellipsoid(b.x, b.y, z, (0.10 + long, 0.0, -0.06), (0.08, 0.11, b.between(5, 0.05, 0.08))))
    b.eyes(0.12 + 0.72 * long, fat * 0.60, FOOT + tall + 0.05 + tall * 0.28, 0.10)


BUILDERS: dict[str, Callable[[Body], None]] = {
    "cube": _cube, "ball": _ball, "cone": _cone, "cylinder": _cylinder, "ring": _ring, "capsule": _capsule,
    "pyramid": _pyramid, "house": _house, "car": _car, "bird": _bird, "robot": _robot, "boat": _boat, "cat": _cat,
    "mug": _mug, "rocket": _rocket, "fish": _fish,
}  # fmt: skip


def build(kind: str, points: Tensor, shape: Tensor) -> Body:
    """Build the parts of solids of one kind.

    Args:
        kind: One of ``SOLIDS``.
        points: (N, 3), each in the frame of its solid.
        shape: Shape numbers (N, 6) of the solid that each point is asked about, or (1, 6) for one solid.
    """
    x, y, z = points.unbind(-1)
    body = Body(x, y, z, shape)
    BUILDERS[kind](body)
    return body


def sample_solid(rng: np.random.Generator, split: str = "train", kind: str | None = None) -> Identity:
    """Draw a solid whose combination of kind, colours and pattern belongs to ``split``.

    Raises:
        CapriccioError: If the split or the kind is unknown.
    """
    return sample_identity(rng, split, kind, SOLIDS)
