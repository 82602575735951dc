"""The ten places, smooth all over: soft skies, hills, sand and walls, each with its own variation.

A backdrop is drawn at half resolution and enlarged: nothing in it is finer than a few pixels, and the softness behind
sharp subjects reads as depth. Every place takes a horizon, light, texture phase and hue in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from capriccio.world.graph import Backdrop
from capriccio.world.shapes import length

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Place:
    """Where and how a place is drawn: a grid in [0, 1] and the four numbers, each (n, 1, 1)."""

    x: Tensor
    y: Tensor
    horizon: Tensor
    light: Tensor
    phase: Tensor
    hue: Tensor

    def line(self, base: float, reach: float = 0.05) -> Tensor:
        """Height of the horizon of this place, 0 at the top."""
        return base + reach * self.horizon

    def tint(self, one: Colour, other: Colour) -> Tensor:
        """A colour (n, 3, 1, 1) between two, by the hue of the variation."""
        share = ((self.hue + 1) / 2)[:, None]
        return _colour(self.x, one) * (1 - share) + _colour(self.x, other) * share


def step(value: Tensor, start: Tensor | float, end: Tensor | float) -> Tensor:
    """Smooth step from 0 at ``start`` to 1 at ``end``."""
    t = ((value - start) / (end - start)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _colour(like: Tensor, colour: Colour) -> Tensor:
    return like.new_tensor(colour)[None, :, None, None]


def _blend(below: Tensor, above: Tensor | Colour, amount: Tensor) -> Tensor:
    above = _colour(below, above) if isinstance(above, tuple) else above
    return torch.lerp(below, above, amount[:, None])


def _glow(p: Place, cx: Tensor | float, cy: Tensor | float, radius: float) -> Tensor:
    """A round glow, 1 at its centre."""
    return (-((p.x - cx) ** 2 + (p.y - cy) ** 2) / radius**2).exp()


def _disc(p: Place, cx: Tensor | float, cy: Tensor | float, radius: float) -> Tensor:
    return step(length(p.x - cx, p.y - cy), radius + 0.012, radius - 0.012)


def _wave(p: Place, count: float, shift: float = 0.0) -> Tensor:
    """A gentle line across the picture, in [-1, 1]."""
    turn = 2 * pi * (count * p.x + 0.5 * p.phase + shift)
    return 0.7 * torch.sin(turn) + 0.3 * torch.sin(1.7 * turn + 4 * p.phase + shift)


def _clouds(p: Place, sky: Tensor, strength: float) -> Tensor:
    """Two soft clouds whose places follow the phase."""
    for cx, cy, wide in ((0.25, 0.14, 0.17), (0.78, 0.24, 0.13)):
        u = (p.x - cx - 0.2 * p.phase) / wide
        v = (p.y - cy - 0.04 * p.horizon) / (wide * 0.34)
        lumps = 0.35 * torch.cos(5 * u + 3 * p.phase)
        sky = _blend(sky, (1.0, 1.0, 1.0), strength * step(u * u + v * v - lumps, 1.4, 0.2))
    return sky


def _dots(p: Place, columns: float, rows: float, threshold: float) -> Tensor:
    """Soft dots on a lattice that is bent until it looks strewn."""
    u = 2 * pi * columns * (p.x + 0.07 * torch.sin(5 * p.y + 5 * p.phase)) + 5 * p.phase
    v = 2 * pi * rows * (p.y + 0.06 * torch.sin(6 * p.x + 3 * p.phase)) + 3 * p.hue
    return step(torch.cos(u) + torch.cos(v), threshold, threshold + 0.45)


def _lit(p: Place, picture: Tensor, amount: float = 0.10) -> Tensor:
    """Brighten by the light of the variation, and a little towards the upper left."""
    return picture * (1 + amount * p.light + 0.05 * (1 - p.x - p.y))[:, None]


def _beach(p: Place) -> Tensor:
    sea, shore = p.line(0.40), p.line(0.57) + 0.025 * _wave(p, 0.8)
    sky = _blend(p.tint((0.30, 0.62, 0.95), (0.42, 0.74, 0.98)), (0.80, 0.92, 1.0), step(p.y, 0.0, sea))
    picture = _clouds(p, sky, 0.85)
    water = _blend(p.tint((0.03, 0.40, 0.68), (0.02, 0.48, 0.66)), (0.20, 0.76, 0.80), step(p.y, sea, shore))
    picture = _blend(picture, water, step(p.y, sea - 0.01, sea + 0.01))
    sand = _blend(_colour(p.x, (0.97, 0.87, 0.62)), (0.90, 0.74, 0.46), step(p.y, shore, 1.0))
    sand = sand * (1 + 0.03 * torch.sin(2 * pi * (5 * p.y + 0.7 * _wave(p, 0.7))))[:, None]
    picture = _blend(picture, (0.97, 0.99, 1.0), step(p.y, shore - 0.045, shore - 0.015))
    return _lit(p, _blend(picture, sand, step(p.y, shore, shore + 0.03)))


def _snow(p: Place) -> Tensor:
    far, near = p.line(0.46) + 0.05 * _wave(p, 0.9), p.line(0.62) + 0.03 * _wave(p, 0.6, 0.4)
    sky = _blend(p.tint((0.52, 0.66, 0.86), (0.60, 0.66, 0.84)), (0.83, 0.89, 0.96), step(p.y, 0.0, far))
    sky = _blend(sky, (1.0, 1.0, 1.0), 0.9 * _dots(p, 5.0, 5.0, 1.15))
    hill = _blend(_colour(p.x, (0.93, 0.96, 1.0)), (0.72, 0.81, 0.93), step(p.y, far, far + 0.22))
    picture = _blend(sky, hill, step(p.y, far - 0.012, far + 0.012))
    ground = _blend(_colour(p.x, (0.98, 0.99, 1.0)), (0.80, 0.87, 0.96), step(p.y, near, 1.05))
    return _lit(p, _blend(picture, ground, step(p.y, near - 0.012, near + 0.02)), 0.05)


def _meadow(p: Place) -> Tensor:
    far, near = p.line(0.48) + 0.05 * _wave(p, 0.8), p.line(0.60) + 0.03 * _wave(p, 0.6, 0.3)
    sky = _blend(p.tint((0.38, 0.70, 0.98), (0.48, 0.76, 0.96)), (0.86, 0.95, 1.0), step(p.y, 0.0, far))
    picture = _clouds(p, sky, 0.9)
    hill = _blend(_colour(p.x, (0.55, 0.80, 0.36)), (0.36, 0.66, 0.28), step(p.y, far, far + 0.2))
    picture = _blend(picture, hill, step(p.y, far - 0.012, far + 0.012))
    grass = _blend(p.tint((0.42, 0.74, 0.22), (0.34, 0.70, 0.30)), (0.20, 0.52, 0.16), step(p.y, near, 1.0))
    grass = grass * (1 + 0.05 * torch.sin(2 * pi * (4 * p.y + 0.6 * _wave(p, 0.8))))[:, None]
    flowers = _dots(p, 4.5, 6.0, 1.35) * step(p.y, near + 0.04, near + 0.10)
    pink = step(torch.sin(9 * p.x + 5 * p.phase), -0.2, 0.2)
    blossom = _blend(_colour(p.x, (1.0, 0.95, 0.55)), (1.0, 0.82, 0.90), pink)
    grass = _blend(grass, blossom, 0.85 * flowers)
    return _lit(p, _blend(picture, grass, step(p.y, near - 0.012, near + 0.012)))


def _desert(p: Place) -> Tensor:
    far, near = p.line(0.46) + 0.06 * _wave(p, 0.7), p.line(0.62) + 0.06 * _wave(p, 0.5, 0.35)
    sky = _blend(p.tint((0.98, 0.72, 0.42), (0.95, 0.66, 0.46)), (1.0, 0.90, 0.66), step(p.y, 0.0, far))
    sky = _blend(sky, (1.0, 0.97, 0.84), _disc(p, 0.5 + 0.34 * p.phase, 0.17, 0.085))
    dune = _blend(_colour(p.x, (0.93, 0.66, 0.36)), (0.80, 0.50, 0.26), step(p.y, far, far + 0.2))
    picture = _blend(sky, dune, step(p.y, far - 0.012, far + 0.012))
    ripple = torch.sin(2 * pi * (6 * (p.y - 0.12 * _wave(p, 0.8)) + p.phase))
    sand = _blend(_colour(p.x, (0.97, 0.74, 0.42)), (0.86, 0.56, 0.28), step(p.y, near, 1.0))
    sand = sand * (1 + 0.05 * ripple)[:, None]
    return _lit(p, _blend(picture, sand, step(p.y, near - 0.012, near + 0.012)))


def _night(p: Place) -> Tensor:
    far, near = p.line(0.52) + 0.05 * _wave(p, 0.8), p.line(0.64) + 0.03 * _wave(p, 0.6, 0.4)
    sky = _blend(p.tint((0.06, 0.07, 0.24), (0.10, 0.06, 0.26)), (0.20, 0.26, 0.52), step(p.y, 0.0, far))
    sky = _blend(sky, (0.96, 0.96, 0.86), 0.85 * _dots(p, 4.5, 4.0, 1.45))
    cx, cy = 0.5 - 0.32 * p.phase, 0.20
    sky = _blend(sky, (0.60, 0.64, 0.80), 0.5 * _glow(p, cx, cy, 0.22))
    sky = _blend(sky, (0.99, 0.97, 0.85), _disc(p, cx, cy, 0.10))
    hill = _blend(_colour(p.x, (0.16, 0.24, 0.42)), (0.10, 0.16, 0.30), step(p.y, far, far + 0.2))
    picture = _blend(sky, hill, step(p.y, far - 0.012, far + 0.012))
    ground = _blend(_colour(p.x, (0.22, 0.34, 0.44)), (0.10, 0.18, 0.26), step(p.y, near, 1.0))
    return _lit(p, _blend(picture, ground, step(p.y, near - 0.012, near + 0.012)))


def _sea(p: Place) -> Tensor:
    bed = p.line(0.72) + 0.03 * _wave(p, 0.8)
    water = _blend(p.tint((0.28, 0.78, 0.88), (0.30, 0.74, 0.94)), (0.02, 0.26, 0.56), step(p.y, -0.1, 0.85))
    slant = 2 * pi * (p.x + 0.4 * p.y)
    beams = torch.sin(2.6 * slant + 6 * p.phase) * torch.sin(1.1 * slant - 6 * p.phase)
    water = _blend(water, (0.75, 0.96, 1.0), 0.30 * step(beams, 0.0, 1.0) * (1 - p.y))
    water = _blend(water, (0.85, 0.98, 1.0), 0.55 * _dots(p, 2.5, 2.5, 1.62))
    for at, tall in ((0.08, 0.34), (0.93, 0.26)):
        sway = p.x - at - 0.05 * p.phase + 0.025 * torch.sin(16 * p.y + 4 * p.phase)
        weed = step(sway.abs(), 0.045, 0.02) * step(p.y, 0.78 - tall, 0.84 - tall)
        water = _blend(water, (0.06, 0.48, 0.42), 0.9 * weed)
    sand = _blend(_colour(p.x, (0.72, 0.80, 0.66)), (0.40, 0.58, 0.60), step(p.y, bed, 1.0))
    return _lit(p, _blend(water, sand, step(p.y, bed - 0.015, bed + 0.015)))


def _bricks(p: Place) -> Tensor:
    floor = p.line(0.78, 0.04)
    high, wide = 0.125, 0.25
    row = ((floor - p.y) / high).floor()
    v = ((floor - p.y) / high - row - 0.5).abs() * high
    u = (((p.x + 0.25 * p.phase) / wide + 0.5 * (row % 2)) % 1 - 0.5).abs() * wide
    mortar = step(torch.maximum(v - high / 2, u - wide / 2), -0.030, -0.012)
    wobble = torch.sin(4.2 * row + 2.1 * ((p.x + 0.25 * p.phase) / wide + 0.5 * (row % 2)).floor() + 6 * p.hue)
    brick = p.tint((0.74, 0.31, 0.22), (0.66, 0.30, 0.26)) * (1 + 0.10 * wobble)[:, None]
    wall = _blend(brick, (0.84, 0.76, 0.68), mortar) * (1.04 - 0.14 * (p.x - 0.5 - 0.3 * p.phase).abs())[:, None]
    paving = _blend(_colour(p.x, (0.60, 0.57, 0.56)), (0.74, 0.70, 0.67), step(p.y, floor, 1.0))
    return _lit(p, _blend(wall, paving, step(p.y, floor - 0.012, floor + 0.012)))


def _table(p: Place) -> Tensor:
    edge = p.line(0.60)
    wall = _blend(p.tint((0.86, 0.84, 0.72), (0.76, 0.84, 0.78)), (0.66, 0.70, 0.62), step(p.y, 0.0, edge))
    pane = (p.x + 0.35 * p.y - 0.45 - 0.25 * p.phase).abs()
    beam = step(pane, 0.27, 0.22) * step(pane, 0.02, 0.05) * step((p.y - 0.26).abs(), 0.02, 0.05)
    wall = _blend(wall, (1.0, 0.97, 0.84), 0.6 * beam * step(p.y, 0.50, 0.44))
    grain = torch.sin(2 * pi * (7 * (p.y - edge) + 0.5 * _wave(p, 1.0) + p.phase))
    wood = _blend(p.tint((0.62, 0.38, 0.20), (0.56, 0.32, 0.18)), (0.44, 0.25, 0.13), step(p.y, edge, 1.0))
    wood = wood * (1 + 0.08 * grain)[:, None]
    picture = _blend(wall, wood, step(p.y, edge - 0.01, edge + 0.01))
    return _lit(p, _blend(picture, (0.80, 0.56, 0.34), 0.8 * step((p.y - edge - 0.015).abs(), 0.03, 0.01)))


def _sunset(p: Place) -> Tensor:
    sea, near = p.line(0.52), p.line(0.76) + 0.03 * _wave(p, 0.6)
    cx = 0.5 + 0.3 * p.phase
    sky = _blend(p.tint((0.36, 0.20, 0.52), (0.46, 0.20, 0.50)), (0.98, 0.44, 0.38), step(p.y, 0.0, sea * 0.75))
    sky = _blend(sky, (1.0, 0.74, 0.36), step(p.y, sea * 0.55, sea))
    sky = _blend(sky, (1.0, 0.93, 0.62), 0.6 * _glow(p, cx, sea - 0.05, 0.26))
    sky = _blend(sky, (1.0, 0.95, 0.66), _disc(p, cx, sea - 0.05, 0.13))
    water = _blend(_colour(p.x, (0.72, 0.36, 0.46)), (0.30, 0.17, 0.40), step(p.y, sea, near))
    path = (-(((p.x - cx) / (0.10 + 0.25 * (p.y - sea).clamp_min(0))) ** 2)).exp()
    water = _blend(water, (1.0, 0.76, 0.46), 0.75 * path * (0.7 + 0.3 * torch.sin(2 * pi * (12 * p.y + p.phase))))
    picture = _blend(sky, water, step(p.y, sea - 0.01, sea + 0.01))
    ground = _blend(_colour(p.x, (0.42, 0.24, 0.36)), (0.26, 0.15, 0.28), step(p.y, near, 1.0))
    return _lit(p, _blend(picture, ground, step(p.y, near - 0.012, near + 0.012)))


def _peak(p: Place, cx: Tensor | float, top: Tensor | float, slope: float) -> Tensor:
    """Height above a soft peak: positive inside the mountain."""
    away = ((p.x - cx) ** 2 + 0.0016).sqrt()
    return p.y - top - slope * away


def _mountains(p: Place) -> Tensor:
    foot, near = p.line(0.58), p.line(0.66) + 0.02 * _wave(p, 0.7)
    picture = _blend(p.tint((0.42, 0.62, 0.90), (0.56, 0.66, 0.90)), (0.90, 0.92, 0.97), step(p.y, 0.0, foot))
    for cx, top, slope in ((0.80, 0.24, 0.75), (0.24, 0.12, 0.95)):
        centre = cx + 0.12 * p.phase
        inside = _peak(p, centre, top + 0.04 * p.horizon, slope)
        rock = _blend(_colour(p.x, (0.34, 0.40, 0.58)), (0.52, 0.58, 0.74), step(centre - p.x, -0.03, 0.03))
        snowline = 0.17 + 0.022 * torch.sin(2 * pi * (7 * p.x + p.phase))
        cap = _blend(_colour(p.x, (0.80, 0.85, 0.94)), (0.99, 0.99, 1.0), step(centre - p.x, -0.03, 0.03))
        rock = _blend(rock, cap, step(p.y - top - 0.04 * p.horizon, snowline + 0.02, snowline - 0.02))
        picture = _blend(picture, rock, step(inside, -0.008, 0.012))
    haze = step(p.y, foot - 0.22, foot + 0.04)
    picture = _blend(picture, (0.70, 0.78, 0.86), 0.55 * haze)
    valley = _blend(p.tint((0.34, 0.56, 0.42), (0.40, 0.54, 0.36)), (0.18, 0.36, 0.30), step(p.y, near, 1.0))
    return _lit(p, _blend(picture, valley, step(p.y, near - 0.012, near + 0.012)))


def _studio(p: Place) -> Tensor:
    return torch.ones(p.x.shape[0], 3, *p.x.shape[1:], device=p.x.device)


_PLACES: dict[str, tuple[Callable[[Place], Tensor], float]] = {
    "beach": (_beach, 0.57), "snow": (_snow, 0.46), "meadow": (_meadow, 0.48), "desert": (_desert, 0.46),
    "night": (_night, 0.52), "sea": (_sea, 0.72), "bricks": (_bricks, 0.78), "table": (_table, 0.60),
    "sunset": (_sunset, 0.52), "mountains": (_mountains, 0.58), "studio": (_studio, 1.0),
}  # fmt: skip


def paint(backdrops: Sequence[Backdrop], size: int, device: torch.device | str = "cpu") -> Tensor:
    """Paint backdrops, (B, 3, size, size) in [0, 1]."""
    half = max(size // 2, 1)
    # Channels last: enlarging is more than twice as fast.
    canvas = torch.empty(len(backdrops), 3, half, half, device=device, memory_format=torch.channels_last)
    for kind in dict.fromkeys(one.kind for one in backdrops):
        rows = [row for row, one in enumerate(backdrops) if one.kind == kind]
        canvas[rows] = _PLACES[kind][0](_place([backdrops[row] for row in rows], half, device)).clamp(0, 1)
    return interpolate(canvas, size=(size, size), mode="bilinear").contiguous()


def nearness(backdrops: Sequence[Backdrop], size: int, device: torch.device | str = "cpu") -> Tensor:
    """Nearness of the ground, (B, size, 1): 0 above the horizon, growing to 0.5 at the lower border."""
    lines = torch.tensor([_PLACES[one.kind][1] + 0.05 * one.variation[0] for one in backdrops], device=device)
    y = (torch.arange(size, device=device) + 0.5) / size
    return (0.5 * (y - lines[:, None]) / (1 - lines[:, None]).clamp_min(0.05)).clamp(0, 0.5)[:, :, None]


def _place(backdrops: Sequence[Backdrop], size: int, device: torch.device | str) -> Place:
    numbers = torch.tensor([one.variation for one in backdrops], dtype=torch.float32, device=device)
    axis = (torch.arange(size, device=device) + 0.5) / size
    shape = (len(backdrops), size, size)
    x, y = axis[None, None, :].expand(shape), axis[None, :, None].expand(shape)
    horizon, light, phase, hue = (numbers[:, index, None, None] for index in range(4))
    return Place(x, y, horizon, light, phase, hue)
