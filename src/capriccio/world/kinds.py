"""The sixteen kinds, each a list of parts from back to front with places for things to wear.

A part is a signed distance in the frame of the object: the centre is the origin, the longer side runs from -1 to 1,
``y`` runs down. The six shape numbers of an identity bend every kind in its own way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor

from capriccio.world.shapes import (
    Corners,
    Number,
    box,
    capsule,
    circle,
    convex,
    ellipse,
    heart,
    join,
    join_inside,
    ring,
    star,
    turn,
    union,
)


class Role(IntEnum):
    """With what a part is painted."""

    MAIN = 0
    ACCENT = 1
    DETAIL = 2
    LIGHT = 3
    WORN = 4


@dataclass(frozen=True)
class Part:
    """One part: its distance (n, h, w), its paint, and how far from its edge the surface still curves (0: as below)."""

    distance: Tensor
    role: Role
    relief: Number = 0.42


Place = tuple[Number, Number, Number]
"""Centre and half width of a place where something is worn."""


@dataclass
class Figure:
    """What a kind is made of while it is being built."""

    x: Tensor
    y: Tensor
    shape: Tensor
    """(n, 6, 1, 1) numbers in [-1, 1]."""
    parts: list[Part] = field(default_factory=list)
    head: Place = (0.0, -0.8, 0.4)
    eyes: Place = (0.0, -0.2, 0.4)
    neck: Place = (0.0, 0.2, 0.5)

    def between(self, index: int, low: float, high: float) -> Tensor:
        """The shape number ``index``, mapped from [-1, 1] to [low, high]."""
        return low + (high - low) * (self.shape[:, index] + 1) / 2

    def add(self, role: Role, distance: Tensor, relief: Number = 0.42) -> None:
        """Put a part in front of the earlier ones."""
        self.parts.append(Part(distance, role, relief))

    def eye(self, cx: Number, cy: Number, radius: float = 0.17) -> None:
        """A white eye with a dark pupil that looks a little to the left."""
        self.add(Role.LIGHT, circle(self.x, self.y, cx, cy, radius), 0.3)
        self.add(Role.DETAIL, circle(self.x, self.y, cx - 0.03, cy, radius * 0.62), 0.0)


def _mug(f: Figure) -> None:
    x, y = f.x, f.y
    width, top, cx = f.between(0, 0.44, 0.58), -f.between(1, 0.42, 0.74), -0.2
    middle, tall = (top + 0.80) / 2, (0.80 - top) / 2
    tapered = (x - cx) / (1 - f.between(2, -0.10, 0.20) * (y - top)) + cx
    grip = f.between(3, 0.25, 0.34)
    squared = box(x, y, cx + width, middle, grip + 0.06, grip + 0.04, 0.16).add(0.11).abs().sub(0.11)
    rounded = ring(x, y, cx + width, middle, grip, 0.11)
    f.add(Role.ACCENT, rounded + (squared - rounded) * (f.between(4, 0, 1) > 0.5), 0.12)
    f.add(Role.MAIN, box(tapered, y, cx, middle, width, tall, f.between(5, 0.10, 0.34)), 0.5)
    f.add(Role.ACCENT, ellipse(x, y, cx, top + 0.05, width + 0.03, 0.2), 0.10)
    f.add(Role.DETAIL, ellipse(x, y, cx, top + 0.05, width - 0.1, 0.1), 0.1)
    f.head, f.eyes, f.neck = (cx, top - 0.05, 0.44), (cx, middle - 0.06, 0.42), (cx, middle + 0.12, width)


def _teapot(f: Figure) -> None:
    x, y = f.x, f.y
    rx, ry = f.between(0, 0.50, 0.62), f.between(1, 0.42, 0.58)
    cy = 0.70 - ry
    tip = cy - f.between(2, 0.18, 0.46)
    root, spout = capsule(x, y, -0.4, cy + 0.2, -0.72, cy, 0.16), capsule(x, y, -0.72, cy, -0.88, tip, 0.1)
    f.add(Role.ACCENT, join(root, spout, 0.2), 0.2)
    f.add(Role.ACCENT, ring(x, y, rx + 0.03, cy - 0.04, f.between(3, 0.22, 0.30), 0.1), 0.12)
    f.add(Role.ACCENT, circle(x, y, 0.0, cy - ry - 0.17, f.between(4, 0.11, 0.17)), 0.16)
    f.add(Role.MAIN, ellipse(x, y, 0.0, cy, rx, ry), 0.55)
    f.add(Role.ACCENT, ellipse(x, y, 0.0, cy - ry + 0.05, f.between(5, 0.28, 0.40), 0.15), 0.15)
    f.head, f.eyes, f.neck = (0.0, cy - ry - 0.22, 0.34), (0.0, cy - 0.06, 0.42), (0.0, cy + 0.18, rx - 0.06)


def _house(f: Figure) -> None:
    x, y = f.x, f.y
    half, eaves, apex = f.between(0, 0.50, 0.68), f.between(1, -0.16, 0.14), -f.between(2, 0.74, 0.98)
    side = f.between(3, -0.24, 0.24)
    f.add(Role.MAIN, box(x, y, side.sign() * 0.32, apex + 0.42, 0.12, 0.36, 0.04), 0.15)
    f.add(Role.MAIN, box(x, y, 0.0, (eaves - 0.2 + 0.95) / 2, half, (1.15 - eaves) / 2, 0.05), 0.25)
    ridge = f.between(4, 0.02, 0.36)
    low = eaves + 0.06
    roof = convex(x, y, [(-ridge, apex), (ridge, apex), (half + 0.22, low), (-half - 0.22, low)], 0.07)
    f.add(Role.ACCENT, roof, 0.25)
    tall = f.between(5, 0.26, 0.36)
    f.add(Role.ACCENT, box(x, y, side - side.sign() * 0.02, 0.97 - tall, 0.15, tall, 0.12), 0.12)
    f.add(Role.LIGHT, box(x, y, side - side.sign() * 0.42, 0.42, 0.13, 0.14, 0.05), 0.1)
    f.head, f.eyes, f.neck = (0.0, apex + 0.1, 0.4), (0.0, eaves + 0.2, 0.42), (0.0, eaves + 0.3, half)


def _tree(f: Figure) -> None:
    x, y = f.x, f.y
    trunk, wide, low = f.between(0, 0.11, 0.18), f.between(1, 0.30, 0.44), f.between(2, 0.0, 0.18)
    f.add(Role.ACCENT, box(x / (1 + 0.5 * (y - 0.6).clamp_min(0)), y, 0.0, 0.6, trunk, 0.4, 0.06), 0.16)
    peak = f.between(3, 0.26, 0.46)
    left = circle(x, y, -wide, low, f.between(4, 0.34, 0.46))
    right = circle(x, y, wide, low - 0.03, f.between(5, 0.34, 0.46))
    crown = join(join(left, right, 0.2), circle(x, y, 0.0, -0.96 + peak, peak), 0.3)
    f.add(Role.MAIN, join(crown, ellipse(x, y, 0.0, low - 0.28, wide + 0.12, 0.5), 0.25), 0.45)
    f.head, f.eyes, f.neck = (0.0, -0.86, 0.36), (0.0, -0.2, 0.4), (0.0, 0.42, trunk + 0.16)


def _mushroom(f: Figure) -> None:
    x, y = f.x, f.y
    rx, ry, rim = f.between(1, 0.64, 0.92), f.between(2, 0.62, 0.98), f.between(3, 0.0, 0.16)
    stem, belly, sag = f.between(0, 0.17, 0.27), f.between(4, -0.15, 0.45), f.between(5, -0.04, 0.12)
    f.add(Role.ACCENT, box(x / (1 + belly * (y - 0.1).clamp_min(0)), y, 0.0, 0.45, stem, 0.47, 0.14), 0.24)
    cap = join_inside(ellipse(x, y, 0.0, rim, rx, ry), y - rim - sag * (1 - (x / rx) ** 2), 0.16)
    f.add(Role.MAIN, cap, 0.42)
    f.head, f.eyes, f.neck = (0.0, rim - ry + 0.06, 0.38), (0.0, rim - 0.26, 0.42), (0.0, rim + 0.3, stem + 0.06)


def _fish(f: Figure) -> None:
    x, y = f.x, f.y
    rx, ry, cx = f.between(0, 0.58, 0.68), f.between(1, 0.36, 0.50), -0.24
    cy, spread = 0.60 - ry, f.between(2, 0.30, 0.50)
    tail = convex(x, y, [(0.26, cy), (0.94, cy - spread), (0.94, cy + spread)], 0.08)
    notch = circle(x, y, 1.04, cy, f.between(3, 0.16, 0.28))
    f.add(Role.ACCENT, join_inside(tail, -notch, 0.06), 0.25)
    u, v = turn(x, y, f.between(4, 0.1, 0.6), cx + 0.12, cy - ry + 0.04)
    f.add(Role.ACCENT, ellipse(u, v, 0.0, 0.0, 0.38, 0.22), 0.2)
    f.add(Role.MAIN, ellipse(x, y, cx, cy, rx, ry), 0.45)
    u, v = turn(x, y, f.between(5, 0.1, 0.7), cx + 0.14, cy + 0.12)
    f.add(Role.ACCENT, ellipse(u, v, 0.0, 0.0, 0.23, 0.12), 0.12)
    f.eye(cx - rx * 0.54, cy - 0.1, 0.15)
    f.head, f.eyes, f.neck = (cx - 0.08, cy - ry - 0.02, 0.34), (cx - 0.26, cy - 0.1, 0.36), (cx - 0.02, cy + 0.2, 0.42)


def _boat(f: Figure) -> None:
    x, y = f.x, f.y
    wide, keel, deck = f.between(0, 0.78, 0.96), f.between(1, 0.40, 0.62), f.between(2, 0.24, 0.40)
    mast, reach = f.between(3, -0.14, 0.10), f.between(4, 0.52, 0.76)
    f.add(Role.DETAIL, box(x, y, mast, -0.2, 0.065, 0.72, 0.05), 0.1)
    boom, jib = deck - 0.12, f.between(5, 0.34, 0.6)
    # Tops of sails and ears are cut a little: past a sharp corner these distances grow too slowly for the halo.
    sail: Corners = [(0.04, -0.96), (0.10, -0.96), (reach, boom), (0.04, boom)]
    f.add(Role.ACCENT, convex(x - mast, y, sail, 0.08), 0.25)
    sail = [(-0.12, -0.7), (-0.06, -0.7), (-0.06, boom), (-0.06 - jib, boom)]
    f.add(Role.LIGHT, convex(x - mast, y, sail, 0.08), 0.25)
    f.add(Role.MAIN, convex(x, y, [(-wide, deck), (wide, deck), (keel, 0.88), (-keel, 0.88)], 0.14), 0.3)
    f.head, f.eyes, f.neck = (mast, -0.84, 0.3), (0.0, deck + 0.24, 0.42), (0.0, deck + 0.1, wide - 0.2)


def _car(f: Figure) -> None:
    x, y = f.x, f.y
    wheel, roof, long = f.between(0, 0.21, 0.29), f.between(1, 0.40, 0.60), f.between(2, 0.28, 0.46)
    at, belt, axle = f.between(3, -0.12, 0.16), -0.06, f.between(4, 0.46, 0.58)
    cabin: Corners = [(-long, -roof), (long, -roof), (long + 0.24, 0.1), (-long - 0.24, 0.1)]
    f.add(Role.ACCENT, convex(x - at, y, cabin, 0.14), 0.25)
    pane = -roof + 0.13
    corners: Corners = [(0.07, pane), (long - 0.02, pane), (long + 0.11, belt - 0.02), (0.07, belt - 0.02)]
    f.add(Role.LIGHT, convex((x - at).abs(), y, corners, 0.05), 0.1)
    f.add(Role.MAIN, box(x, y, 0.0, (belt + 0.48) / 2, 0.95, (0.48 - belt) / 2, f.between(5, 0.12, 0.26)), 0.3)
    tyre = circle(x.abs(), y, axle, 0.64 - wheel, wheel)
    f.add(Role.DETAIL, tyre, 0.2)
    f.add(Role.ACCENT, tyre + wheel * 0.42, 0.14)
    f.head, f.eyes, f.neck = (at, -roof - 0.02, 0.38), (-0.46, 0.1, 0.36), (0.0, 0.1, 0.88)


def _star(f: Figure) -> None:
    x, y = turn(f.x, f.y, f.between(1, -0.16, 0.16), 0.0, 0.08)
    waist = f.between(0, 0.44, 0.60)
    body = star(x / f.between(2, 0.9, 1.04), y, 0.94, waist) - f.between(3, 0.03, 0.09)
    f.add(Role.MAIN, body, 0.4)
    tips = f.between(4, 0.60, 0.74) - (x * x + y * y).sqrt()
    f.add(Role.ACCENT, join_inside(body, tips, 0.05), 0.25)
    apart = f.between(5, 0.17, 0.24)
    f.add(Role.DETAIL, ellipse(f.x.abs(), f.y, apart, 0.04, 0.095, 0.13), 0.1)
    f.head, f.eyes, f.neck = (0.0, -0.68, 0.32), (0.0, 0.02, 0.42), (0.0, 0.3, 0.42)


def _heart(f: Figure) -> None:
    x, y = turn(f.x, f.y, f.between(1, -0.14, 0.14), 0.0, 0.92)
    wide, tall = f.between(0, 1.48, 1.70), f.between(2, 1.42, 1.66)
    plump = f.between(3, 0.0, 0.06)
    body = heart(x / wide, (y + 0.04) / tall) * 1.5 - plump
    f.add(Role.ACCENT, body, 0.3)
    f.add(Role.MAIN, body + f.between(4, 0.15, 0.24), f.between(5, 0.25, 0.45))
    f.head, f.eyes, f.neck = (0.36, 0.92 - tall * 1.02, 0.36), (0.0, -0.12, 0.46), (0.0, 0.2, 0.52)


def _ball(f: Figure) -> None:
    body = ellipse(f.x, f.y, 0.0, 0.0, f.between(5, 0.84, 0.96), 0.92)
    f.add(Role.MAIN, body, 0.9)
    u, v = turn(f.x, f.y, f.between(0, -0.8, 0.8))
    # The seam of the two caps bends in or out and waves; one cap may be larger than the other.
    seam = f.between(1, 0.50, 0.68) + f.between(2, -0.25, 0.25) * u * u + f.between(4, 0.0, 0.07) * torch.cos(8 * u)
    f.add(Role.ACCENT, join_inside(body, seam - (v + f.between(3, -0.14, 0.14)).abs(), 0.05), 0.9)
    f.head, f.eyes, f.neck = (0.0, -0.82, 0.46), (0.0, -0.2, 0.5), (0.0, 0.36, 0.82)


def _gift(f: Figure) -> None:
    x, y = f.x, f.y
    half, lid = f.between(0, 0.58, 0.82), f.between(1, -0.40, -0.12)
    loop, tilt = f.between(2, 0.24, 0.34), f.between(3, 0.2, 0.8)
    u, v = turn(x.abs(), y, -tilt, 0.27, lid - 0.2)
    f.add(Role.ACCENT, ellipse(u, v, 0.0, 0.0, loop, 0.17), 0.17)
    f.add(Role.MAIN, box(x, y, 0.0, (lid + 0.92) / 2, half - 0.06, (0.92 - lid) / 2, 0.07), 0.25)
    f.add(Role.MAIN, box(x, y, 0.0, lid + 0.12, half + 0.06, f.between(4, 0.14, 0.19), 0.06), 0.12)
    f.add(Role.ACCENT, box(x, y, f.between(5, -0.2, 0.2), (lid + 0.90) / 2, 0.14, (0.98 - lid) / 2, 0.04), 0.12)
    f.add(Role.ACCENT, circle(x, y, 0.0, lid - 0.12, 0.15), 0.15)
    f.head, f.eyes, f.neck = (0.0, lid - 0.22, 0.4), (0.0, 0.34, 0.44), (0.0, 0.4, half)


def _cat(f: Figure) -> None:
    x, y = f.x, f.y
    body, face, tall = f.between(0, 0.40, 0.54), f.between(1, 0.44, 0.56), f.between(2, 0.36, 0.44)
    tip, cy = f.between(3, 0.0, 0.44), -0.30
    tail = join(capsule(x, y, 0.3, 0.84, 0.74, 0.74, 0.11), capsule(x, y, 0.74, 0.74, 0.84, tip, 0.11), 0.12)
    f.add(Role.ACCENT, tail, 0.12)
    ear = f.between(4, 0.84, 0.98)
    mirrored = x.abs()
    corners: Corners = [(0.06, -0.5), (face * 0.74, -ear), (face * 0.86, -ear), (face * 0.98, -0.3)]
    f.add(Role.ACCENT, convex(mirrored, y, corners, 0.08), 0.2)
    f.add(Role.MAIN, ellipse(x, y, 0.0, 0.48, body, 0.49), 0.42)
    f.add(Role.ACCENT, ellipse(mirrored, y, 0.22, 0.87, 0.18, 0.11), 0.11)
    f.add(Role.MAIN, ellipse(x, y, 0.0, cy, face, tall), 0.42)
    f.add(Role.ACCENT, ellipse(x, y, 0.0, cy + 0.17, f.between(5, 0.13, 0.2), 0.12), 0.12)
    f.add(Role.DETAIL, ellipse(mirrored, y, face * 0.44, cy - 0.06, 0.1, 0.12), 0.1)
    f.head, f.eyes, f.neck = (0.0, cy - tall + 0.06, 0.38), (0.0, cy - 0.05, 0.44), (0.0, 0.14, body - 0.08)


def _bird(f: Figure) -> None:
    x, y = f.x, f.y
    rx, ry, head = f.between(0, 0.50, 0.62), f.between(1, 0.40, 0.50), f.between(2, 0.30, 0.38)
    cy, hx, hy = 0.62 - ry, -0.40, f.between(3, -0.52, -0.34)
    f.add(Role.ACCENT, capsule((x - 0.02).abs(), y, 0.13, cy + 0.2, 0.16, 0.79, 0.07), 0.08)
    u, v = turn(x, y, -f.between(4, 0.1, 0.7), 0.46, cy)
    f.add(Role.ACCENT, box(u, v, 0.22, 0.0, 0.32, 0.15, 0.1), 0.15)
    beak: Corners = [
        (hx - head - 0.24, hy + 0.08),
        (hx - head - 0.24, hy + 0.02),
        (hx - 0.16, hy - 0.16),
        (hx - 0.16, hy + 0.2),
    ]
    f.add(Role.ACCENT, convex(x, y, beak, 0.07), 0.14)
    u, v = turn(x, y, -0.16, 0.02, cy)
    f.add(Role.MAIN, join(ellipse(u, v, 0.0, 0.0, rx, ry), circle(x, y, hx, hy, head), 0.3), 0.4)
    u, v = turn(x, y, -f.between(5, 0.1, 0.6), 0.18, cy - 0.02)
    f.add(Role.ACCENT, ellipse(u, v, 0.0, 0.0, 0.34, 0.19), 0.18)
    f.eye(hx - 0.06, hy - 0.04, 0.15)
    f.head, f.eyes = (hx, hy - head + 0.06, 0.34), (hx - 0.04, hy - 0.04, 0.34)
    f.neck = (hx + 0.14, hy + head + 0.02, 0.34)


def _robot(f: Figure) -> None:
    x, y = f.x, f.y
    half, head, brow = f.between(0, 0.38, 0.52), f.between(1, 0.32, 0.46), -f.between(2, 0.62, 0.74)
    mirrored = x.abs()
    leg = box(mirrored, y, half * 0.52, 0.82, f.between(3, 0.12, 0.17), 0.16, 0.08)
    arm = capsule(mirrored, y, half, 0.06, half + 0.26, f.between(4, 0.1, 0.46), 0.11)
    f.add(Role.ACCENT, union(leg, arm), 0.12)
    f.add(Role.DETAIL, box(x, y, 0.0, brow - 0.06, 0.065, 0.2, 0.05), 0.1)
    f.add(Role.ACCENT, circle(x, y, 0.0, brow - 0.2, 0.12), 0.12)
    f.add(Role.MAIN, box(x, y, 0.0, 0.28, half, 0.44, f.between(5, 0.08, 0.26)), 0.3)
    f.add(Role.ACCENT, box(x, y, 0.0, (brow - 0.16) / 2, head, (-0.16 - brow) / 2 + 0.04, 0.12), 0.2)
    f.add(Role.LIGHT, circle(mirrored, y, head * 0.46, brow / 2 - 0.08, 0.12), 0.12)
    f.head, f.eyes, f.neck = (0.0, brow, 0.38), (0.0, brow / 2 - 0.08, 0.42), (0.0, -0.1, half)


def _rocket(f: Figure) -> None:
    x, y = f.x, f.y
    half, bulge = f.between(0, 0.32, 0.44), f.between(1, 0.0, 0.3)
    spread, rise = f.between(2, 0.60, 0.78), f.between(3, 0.10, 0.36)
    f.add(Role.DETAIL, box(x, y, 0.0, 0.86, half * 0.55, 0.13, 0.05), 0.12)
    corners: Corners = [(half * 0.5, rise), (spread, 0.72), (spread, 0.98), (half * 0.5, 0.76)]
    f.add(Role.ACCENT, convex(x.abs(), y, corners, 0.08), 0.18)
    body = join_inside(ellipse(x, y, 0.0, bulge, half, 0.98 + bulge), y - 0.82, 0.12)
    f.add(Role.MAIN, body, 0.4)
    f.add(Role.ACCENT, join_inside(body, y + f.between(4, 0.36, 0.52), 0.05), 0.4)
    port = f.between(5, 0.17, 0.22)
    f.add(Role.ACCENT, circle(x, y, 0.0, -0.06, port + 0.09), 0.1)
    f.add(Role.LIGHT, circle(x, y, 0.0, -0.06, port - 0.02), 0.2)
    f.head, f.eyes, f.neck = (0.0, -0.74, 0.32), (0.0, -0.06, 0.36), (0.0, 0.34, half)


BUILDERS: dict[str, Callable[[Figure], None]] = {
    "mug": _mug, "teapot": _teapot, "house": _house, "tree": _tree, "mushroom": _mushroom, "fish": _fish,
    "boat": _boat, "car": _car, "star": _star, "heart": _heart, "ball": _ball, "gift": _gift,
    "cat": _cat, "bird": _bird, "robot": _robot, "rocket": _rocket,
}  # fmt: skip


def build(kind: str, x: Tensor, y: Tensor, shape: Tensor) -> Figure:
    """Build the parts of ``n`` individuals of one kind.

    Args:
        kind: One of the kinds.
        x: Abscissae in the frame of each object, shape (n, h, w).
        y: Ordinates, downwards, shape (n, h, w).
        shape: The six shape numbers, shape (n, 6).
    """
    figure = Figure(x, y, shape[:, :, None, None])
    BUILDERS[kind](figure)
    return figure


def _hat(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return union(capsule(x, y, -w, 0.0, w, 0.0, 0.09), box(x, y, 0.0, -0.26, w * 0.62, 0.26, 0.07))


def _crown(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    # Three points: a triangle wave of period 2/3 of the width.
    wave = ((x / w * 1.5 + 0.5) % 1 - 0.5).abs() * 2
    top = -0.16 - 0.28 * (1 - wave)
    return join_inside(box(x, y, 0.0, -0.14, w * 1.06, 0.32, 0.05), (top - y) * 0.65, 0.05)


def _sunglasses(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    lenses = ellipse(x.abs(), y, w * 0.54, 0.0, w * 0.44, w * 0.38)
    return union(lenses, box(x, y, 0.0, -0.05, w, 0.07, 0.04))


def _scarf(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    # The band follows the body: it sags a little in the middle.
    band = box(x, y - 0.1 * (1 - (x / w) ** 2).clamp(-0.5, 1), 0.0, 0.0, w + 0.05, 0.13, 0.1)
    u, v = turn(x, y, -0.15, w * 0.4, 0.28)
    return union(band, box(u, v, 0.0, 0.0, 0.14, 0.26, 0.06))


def _bow(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    side = x.abs() / w
    wings = join_inside(side - 1.0, y.abs() / w - 0.18 - 0.45 * side, 0.15) * w * 0.9
    return union(wings, ellipse(x, y, 0.0, 0.0, w * 0.28, w * 0.28))


WORN_AT: dict[str, tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "hat": ("head", _hat),
    "crown": ("head", _crown),
    "sunglasses": ("eyes", _sunglasses),
    "scarf": ("neck", _scarf),
    "bow": ("head", _bow),
}
"""Where each accessory is worn, and its distance from coordinates round that place and the half width there."""


def worn(figure: Figure, accessory: str, rows: Tensor) -> Tensor:
    """Distance (len(rows), h, w) of an accessory on the figures of the given rows."""
    where, shape = WORN_AT[accessory]
    cx, cy, w = (_rows(value, rows, figure.x) for value in getattr(figure, where))
    return shape(figure.x[rows] - cx, figure.y[rows] - cy, w)


def _rows(value: Number, rows: Tensor, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value[rows]
    return like.new_full((len(rows), 1, 1), value)
