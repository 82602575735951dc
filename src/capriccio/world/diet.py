"""A broader diet for the VAE than the scenes, so that it need not change when the world grows.

Smooth pictures of anything: washes, gradients, shapes with prints, strokes, paper dolls and faces, in any colour.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from capriccio.world.inks import cover
from capriccio.world.shapes import box, capsule, circle, convex, ellipse, heart, join, join_inside, ring, star, turn

_SHAPES_A_PICTURE = 5
_SKINS = ((0.98, 0.82, 0.70), (0.90, 0.68, 0.52), (0.72, 0.48, 0.33), (0.48, 0.30, 0.20), (0.33, 0.20, 0.14))

_LIPS = ((0.75, 0.25, 0.28), (0.55, 0.20, 0.20))


class _Easel:
    """Pictures (n, 3, size, size) under way, with a common grid from -1 to 1."""

    def __init__(self, rng: np.random.Generator, count: int, size: int, device: torch.device | str) -> None:
        self.rng, self.count, self.size, self.device = rng, count, size, device
        axis = (torch.arange(size, device=device) + 0.5) * 2 / size - 1
        self.x = axis[None, None, :].expand(count, size, size).contiguous()
        self.y = axis[None, :, None].expand(count, size, size).contiguous()
        self.picture = self.wash(int(rng.integers(2, 6)))

    def numbers(self, low: float, high: float) -> Tensor:
        """One number for each picture, (n, 1, 1)."""
        values = self.rng.uniform(low, high, (self.count, 1, 1))
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def colours(self) -> Tensor:
        """One colour for each picture, (n, 3, 1, 1), often saturated."""
        values = self.rng.uniform(0, 1, (self.count, 3, 1, 1)) ** self.rng.uniform(0.5, 1.8, (self.count, 1, 1, 1))
        vivid = self.rng.random((self.count, 1, 1, 1)) < 0.5
        stretched = (values - values.min(1, keepdims=True)) / np.ptp(values, axis=1, keepdims=True).clip(0.05)
        return torch.tensor(np.where(vivid, stretched, values), dtype=torch.float32, device=self.device)

    def chosen(self, options: tuple[tuple[float, float, float], ...]) -> Tensor:
        """One of the colours for each picture, (n, 3, 1, 1)."""
        rows = self.rng.integers(len(options), size=self.count)
        return torch.tensor(options, device=self.device)[rows][:, :, None, None]

    def wash(self, cells: int) -> Tensor:
        """Soft random colour fields."""
        knots = self.rng.uniform(-0.1, 1.1, (self.count, 3, cells, cells)).astype(np.float32)
        pale = self.rng.uniform(0, 1, (self.count, 1, 1, 1)).astype(np.float32)
        mixed = torch.tensor(knots * (1 - 0.6 * pale) + 0.5 * pale, device=self.device)
        return interpolate(mixed, size=(self.size, self.size), mode="bicubic", align_corners=True).clamp(0, 1)

    def lay(self, distance: Tensor, ink: Tensor, relief: Tensor | float = 0.25, show: Tensor | None = None) -> None:
        """Lay a shape over the pictures, lit from the upper left; ``show`` (n, 1, 1) hides it where it is 0."""
        pixels = distance * (self.size / 2)
        covered = cover(pixels)
        if show is not None:
            covered = covered * show
        curve = (1 + distance / relief).clamp(0, 1)
        across, down = torch.gradient(pixels, dim=(2, 1))
        light = 1 - (0.20 * across + 0.28 * down).clamp(-0.4, 0.4) * curve
        halo = (1 - pixels / 7).clamp(0, 1).square() * 0.2 * (1 if show is None else show)
        self.picture = (self.picture * (1 - halo)[:, None]).lerp((ink * light[:, None]).clamp(0, 1), covered[:, None])

    def printed(self) -> Tensor:
        """Two inks mixed by a random print of stripes, checks or dots, (n, 3, size, size)."""
        u, v = turn(self.x, self.y, self.numbers(-1.6, 1.6))
        wave = 2 * pi / (self.numbers(11, 40) * 2 / 128)
        u, v = torch.sin(u * wave), torch.sin(v * wave)
        kind = torch.tensor(self.rng.integers(4, size=(self.count, 1, 1)), device=self.device)
        field = torch.where(kind == 0, u, torch.where(kind == 1, u * v, torch.where(kind == 2, u + v - 0.55, -1.0)))
        return self.colours().lerp(self.colours(), cover(-field * self.size / 2 / wave)[:, None])


def _ellipses(e: _Easel, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return ellipse(x, y, 0.0, 0.0, r, r * e.numbers(0.4, 1.0))


def _boxes(e: _Easel, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return box(x, y, 0.0, 0.0, r, r * e.numbers(0.3, 1.0), r * e.numbers(0.05, 0.28))


def _rings(e: _Easel, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return ring(x, y, 0.0, 0.0, r * 0.8, r * e.numbers(0.16, 0.35))


def _stars(e: _Easel, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return star(x, y, r, e.numbers(0.35, 0.7)) - 0.03


def _hearts(e: _Easel, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    wide = r * e.numbers(1.2, 1.7)
    return heart(x / wide, (y - 0.5 * r) / wide) * wide


def _wedges(e: _Easel, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    corners = [(r * e.numbers(-0.6, 0.2), -r), (r, r * e.numbers(-0.2, 0.8)), (-r, r * e.numbers(-0.2, 1.0))]
    return convex(x, y, corners, 0.06)


def _blobs(e: _Easel, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    around = torch.atan2(y, x)
    lobes = torch.tensor(e.rng.integers(2, 6, (e.count, 1, 1)), device=e.device)
    return (torch.hypot(x, y) - r * (0.75 + 0.16 * torch.sin(around * lobes + e.numbers(0, 6)))) * 0.8


def _strokes(e: _Easel, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    thick, bend_x, bend_y = e.numbers(0.05, 0.12), r * e.numbers(-0.5, 0.5), r * e.numbers(-1.2, 1.2)
    first = capsule(x, y, -1.4 * r, r * e.numbers(-0.6, 0.6), bend_x, bend_y, thick)
    return join(first, capsule(x, y, bend_x, bend_y, 1.4 * r, r * e.numbers(-0.6, 0.6), thick), 0.2)


_SHAPES: tuple[Callable[[_Easel, Tensor, Tensor, Tensor], Tensor], ...] = (
    _ellipses, _boxes, _rings, _stars, _hearts, _wedges, _blobs, _strokes,
)  # fmt: skip


def _scatter(easel: _Easel) -> None:
    """Shapes of every sort anywhere."""
    for index in easel.rng.integers(len(_SHAPES), size=_SHAPES_A_PICTURE):
        x, y = turn(easel.x, easel.y, easel.numbers(-3.1, 3.1), easel.numbers(-0.9, 0.9), easel.numbers(-0.9, 0.9))
        distance = _SHAPES[index](easel, x, y, easel.numbers(0.15, 0.75))
        easel.lay(distance, easel.printed(), easel.numbers(0.05, 0.5))


def _doll(easel: _Easel) -> None:
    """A paper doll: legs, arms, a printed garment, a head with hair."""
    x, y = easel.x - easel.numbers(-0.5, 0.5), easel.y - easel.numbers(-0.1, 0.1)
    skin, cloth, hair = easel.chosen(_SKINS), easel.printed(), easel.colours() * 0.7
    hip, shoulder, hem = easel.numbers(0.12, 0.2), easel.numbers(0.18, 0.27), easel.numbers(0.14, 0.5)
    for side in (-1, 1):
        foot = side * (hip + easel.numbers(-0.05, 0.15))
        easel.lay(capsule(x, y, side * 0.11, 0.2, foot, 0.82, 0.085), easel.colours(), 0.1)
        easel.lay(ellipse(x, y, foot, 0.88, 0.13, 0.08), easel.colours(), 0.1)
        hand = (side * (shoulder + easel.numbers(0.05, 0.4)), easel.numbers(-0.5, 0.3))
        easel.lay(capsule(x, y, side * shoulder, -0.26, *hand, 0.07), skin, 0.1)
    top = convex(x, y, [(-shoulder, -0.36), (shoulder, -0.36), (hem, 0.34), (-hem, 0.34)], 0.1)
    easel.lay(top, cloth, 0.12)
    easel.lay(circle(x, y, 0.0, -0.62, easel.numbers(0.2, 0.27)), hair, 0.2)
    easel.lay(ellipse(x, y, 0.0, -0.58, 0.16, 0.2), skin, 0.2)


def _face(easel: _Easel) -> None:
    """A bust whose features are all 5 px or more."""
    x, y = easel.x - easel.numbers(-0.25, 0.25), easel.y - easel.numbers(-0.1, 0.15)
    skin, hair, dark = easel.chosen(_SKINS), easel.colours() * 0.8, easel.colours() * 0.35
    wide, tall = easel.numbers(0.36, 0.5), easel.numbers(0.46, 0.6)
    easel.lay(ellipse(x, y, 0.0, -0.12, wide + 0.14, tall + easel.numbers(0.08, 0.2)), hair, 0.4)
    easel.lay(ellipse(x, y, 0.0, 1.1, easel.numbers(0.6, 0.95), 0.6), easel.printed(), 0.3)
    easel.lay(box(x, y, 0.0, 0.45, 0.17, 0.25, 0.1), skin, 0.15)
    easel.lay(ellipse(x, y, 0.0, 0.0, wide, tall), skin, 0.4)
    easel.lay(join_inside(ellipse(x, y, 0.0, 0.0, wide, tall), y + easel.numbers(0.2, 0.4), 0.1), hair, 0.15)
    apart, level = easel.numbers(0.15, 0.22), easel.numbers(-0.1, 0.02)
    mirrored = x.abs()
    easel.lay(ellipse(mirrored, y, apart, level, 0.1, 0.075), torch.ones_like(skin), 0.1)
    easel.lay(circle(mirrored, y, apart, level, 0.055), dark, 0.1)
    easel.lay(
        capsule(mirrored, y, apart - 0.08, level - 0.15, apart + 0.1, level - 0.15 + easel.numbers(-0.06, 0.06), 0.035),
        hair * 0.6,
        0.05,
    )
    easel.lay(capsule(x, y, 0.0, level + 0.06, 0.02, level + 0.18, 0.045), skin * 0.86, 0.06)
    mouth = easel.numbers(-0.06, 0.06)
    easel.lay(
        capsule(mirrored, y, 0.0, 0.32, 0.13, 0.32 + mouth, 0.045),
        easel.chosen(((0.75, 0.25, 0.28), (0.55, 0.2, 0.2))),
        0.06,
    )
    glasses = ring(mirrored, y, apart, level, 0.15, 0.04)
    easel.lay(glasses, dark, 0.06, (easel.numbers(0, 1) < 0.3).float())


def _solids(easel: _Easel) -> None:
    """Three-faced boxes and shaded balls on a plain floor."""
    floor = easel.numbers(-0.2, 0.4)
    easel.lay(floor - easel.y, easel.colours(), 0.01)
    for _ in range(2):
        x, y = easel.x - easel.numbers(-0.6, 0.6), easel.y - easel.numbers(-0.1, 0.5)
        ink, r, turned = easel.colours(), easel.numbers(0.22, 0.42), easel.numbers(-0.5, 0.5)
        lean = r * 0.5
        top = [(turned * r, -r - lean), (r, -r), (turned * -r, -r + lean), (-r, -r)]
        left = [(-r, -r), (turned * -r, -r + lean), (turned * -r, r), (-r, r - lean)]
        right = [(turned * -r, -r + lean), (r, -r), (r, r - lean), (turned * -r, r)]
        for corners, light in ((left, 0.8), (right, 0.55), (top, 1.1)):
            easel.lay(convex(x, y, corners, 0.02), (ink * light).clamp(0, 1), 0.02)
        easel.lay(
            circle(easel.x, easel.y, easel.numbers(-0.8, 0.8), easel.numbers(0.2, 0.8), r * 0.7),
            easel.colours(),
            r * 0.7,
        )


_SCENES = ((_scatter, 0.5), (_doll, 0.18), (_face, 0.18), (_solids, 0.14))


@torch.no_grad()
def draw_diet(rng: np.random.Generator, count: int, size: int = 128, device: torch.device | str = "cpu") -> Tensor:
    """Draw pictures for the VAE.

    Args:
        rng: Source of every choice.
        count: How many pictures.
        size: Side in pixels; shapes keep their share of the picture.
        device: Where to draw.

    Returns:
        (count, 3, size, size) float in [-1, 1], in random order of subject.
    """
    shares = rng.multinomial(count, [share for _, share in _SCENES])
    pictures = []
    for (scene, _), number in zip(_SCENES, shares, strict=True):
        if number:
            easel = _Easel(rng, int(number), size, device)
            scene(easel)
            pictures.append(easel.picture)
    order = torch.as_tensor(rng.permutation(count), device=device)
    return torch.cat(pictures)[order] * 2 - 1
