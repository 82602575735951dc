"""Signed distances of plain solids, as ``shapes`` has them for plain shapes: negative inside, z up.

All functions are elementwise over tensors that broadcast, never greater than the true distance (so that a ray may step
by them), and differentiable everywhere: edges are rounded, and no square root is taken of nought.
"""

from __future__ import annotations

import torch
from torch import Tensor

from capriccio.world.shapes import Number, join_inside

Point = tuple[Number, Number, Number]

_TINY = 1e-10


def norm(*axes: Tensor) -> Tensor:
    """Length of a vector, with a finite gradient at the origin."""
    squares = axes[0] * axes[0] + _TINY
    for axis in axes[1:]:
        squares = squares.addcmul(axis, axis)
    return squares.sqrt()


def sphere(x: Tensor, y: Tensor, z: Tensor, centre: Point, radius: Number) -> Tensor:
    """Distance to a ball."""
    return norm(x - centre[0], y - centre[1], z - centre[2]) - radius


def ellipsoid(x: Tensor, y: Tensor, z: Tensor, centre: Point, radii: Point) -> Tensor:
    """Distance to an ellipsoid, exact on its surface and to first order beside it."""
    u, v, w = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1], (z - centre[2]) / radii[2]
    far = norm(u, v, w)
    return far * (far - 1) / norm(u / radii[0], v / radii[1], w / radii[2])


def block(x: Tensor, y: Tensor, z: Tensor, centre: Point, halves: Point, rounding: float = 0.06) -> Tensor:
    """Distance to a box of the given half sides with softened edges."""
    flat = join_inside((x - centre[0]).abs() - halves[0], (y - centre[1]).abs() - halves[1], rounding)
    return prism(flat, z - centre[2], halves[2], rounding)


def prism(outline: Tensor, along: Tensor, half: Number, rounding: float = 0.06) -> Tensor:
    """A plane shape, given by its distance, drawn out to both sides along an axis."""
    return join_inside(outline, along.abs() - half, rounding)


def drum(across: Tensor, along: Tensor, radius: Number, half: Number, rounding: float = 0.06) -> Tensor:
    """Distance to a cylinder, given the distance ``across`` from its axis and the place ``along`` it."""
    return join_inside(across - radius, along.abs() - half, rounding)


def spike(across: Tensor, along: Tensor, radius: Number, tall: Number, rounding: float = 0.06) -> Tensor:
    """Distance to a cone on its base (``along`` 0) whose tip is at ``tall``; ``across`` from a plane gives a wedge."""
    slant = (radius * radius + tall * tall) ** 0.5
    return join_inside((across * tall - radius * (tall - along)) / slant, -along, rounding)


def rod(x: Tensor, y: Tensor, z: Tensor, start: Point, end: Point, radius: Number) -> Tensor:
    """Distance to a thick line with round ends."""
    dx, dy, dz = (b - a for a, b in zip(start, end, strict=True))
    u, v, w = x - start[0], y - start[1], z - start[2]
    along = ((u * dx + v * dy + w * dz) / (dx * dx + dy * dy + dz * dz)).clamp(0, 1)
    return norm(u - along * dx, v - along * dy, w - along * dz) - radius


def hoop(across: Tensor, along: Tensor, radius: Number, thick: Number) -> Tensor:
    """Distance to a ring round an axis: middle radius and half thickness."""
    return norm(across - radius, along) - thick


def middle(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The second greatest of three."""
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))
