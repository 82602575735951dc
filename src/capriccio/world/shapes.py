"""Signed distances of plain shapes: negative inside, positive outside, in the unit of the coordinates.

All functions are elementwise over tensors that broadcast; ``x`` runs right and ``y`` runs down.
Numbers that describe a shape may be floats or tensors of shape (n, 1, 1), one per individual.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi, sin, sqrt

import torch
from torch import Tensor

Number = float | Tensor
Corners = Sequence[tuple[Number, Number]]


def length(x: Tensor, y: Tensor) -> Tensor:
    """Length of a vector; several times faster than ``torch.hypot``, and nothing here can overflow."""
    return (x * x).addcmul(y, y).sqrt_()


def circle(x: Tensor, y: Tensor, cx: Number, cy: Number, radius: Number) -> Tensor:
    """Distance to a disc."""
    return length(x - cx, y - cy) - radius


def ellipse(x: Tensor, y: Tensor, cx: Number, cy: Number, rx: Number, ry: Number) -> Tensor:
    """Distance to an ellipse, exact on its outline and to first order beside it."""
    u, v = (x - cx) / rx, (y - cy) / ry
    far = length(u, v)
    return far * (far - 1) / length(u / rx, v / ry).clamp_min(1e-4)


def box(x: Tensor, y: Tensor, cx: Number, cy: Number, hx: Number, hy: Number, rounding: Number = 0.08) -> Tensor:
    """Distance to a box of half sides ``hx``, ``hy`` with rounded corners."""
    u, v = (x - cx).abs() - (hx - rounding), (y - cy).abs() - (hy - rounding)
    return length(u.clamp_min(0), v.clamp_min(0)) + torch.maximum(u, v).clamp_max(0) - rounding


def capsule(x: Tensor, y: Tensor, ax: Number, ay: Number, bx: Number, by: Number, radius: Number) -> Tensor:
    """Distance to a thick line from (ax, ay) to (bx, by) with round ends."""
    dx, dy = bx - ax, by - ay
    u, v = x - ax, y - ay
    along = ((u * dx + v * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return length(u - along * dx, v - along * dy) - radius


def ring(x: Tensor, y: Tensor, cx: Number, cy: Number, radius: Number, half: Number) -> Tensor:
    """Distance to a ring of the given middle radius and half thickness."""
    return (length(x - cx, y - cy) - radius).abs() - half


def convex(x: Tensor, y: Tensor, corners: Corners, rounding: float = 0.08) -> Tensor:
    """Distance to a convex polygon, corners clockwise as seen on the picture, softened corners."""
    distance: Tensor | None = None
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        dx, dy = bx - ax, by - ay
        side_length = (dx * dx + dy * dy) ** 0.5
        side = (x - ax) * (dy / side_length) - (y - ay) * (dx / side_length)
        distance = side if distance is None else join_inside(distance, side, rounding)
    if distance is None:
        raise ValueError("a polygon needs corners")
    return distance


def star(x: Tensor, y: Tensor, radius: Number, waist: Number) -> Tensor:
    """Distance to a five-pointed star around the origin; ``waist`` is the inner radius over the outer."""
    sector = 2 * pi / 5
    around = torch.atan2(x, -y)
    folded = (around - sector * torch.round(around / sector)).abs()
    far = length(x, y)
    u, v = far * torch.sin(folded), far * torch.cos(folded)
    bx, by = radius * waist * sin(sector / 2), radius * waist * cos(sector / 2)
    dx, dy = bx, by - radius
    along = ((u * dx + (v - radius) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    side = torch.sign((v - radius) * dx - u * dy)
    return length(u - along * dx, v - radius - along * dy) * side


def heart(x: Tensor, y: Tensor) -> Tensor:
    """Distance to a heart whose tip is at the origin and whose lobes reach up to y = -1.1, |x| = 0.6."""
    x, y = x.abs(), -y
    lobe = length(x - 0.25, y - 0.75) - sqrt(2) / 4
    half = (x + y).clamp_min(0) / 2
    notch = x * x + (y - 1) ** 2
    flank = (x - half) ** 2 + (y - half) ** 2
    rest = torch.minimum(notch, flank).clamp_min(1e-8).sqrt() * torch.sign(x - y)
    return rest.lerp(lobe, (x + y > 1).to(x))


def turn(x: Tensor, y: Tensor, angle: Number, cx: Number = 0.0, cy: Number = 0.0) -> tuple[Tensor, Tensor]:
    """Coordinates in a frame at (cx, cy) turned by ``angle`` radians clockwise."""
    turned = torch.as_tensor(angle, dtype=x.dtype, device=x.device)
    c, s = torch.cos(turned), torch.sin(turned)
    u, v = x - cx, y - cy
    return u * c + v * s, v * c - u * s


def join(a: Tensor, b: Tensor, softness: float) -> Tensor:
    """Union whose seam is rounded over ``softness``."""
    over = (softness - (a - b).abs()).clamp_min(0)
    return torch.minimum(a, b) - over * over / (4 * softness)


def join_inside(a: Tensor, b: Tensor, softness: float) -> Tensor:
    """Intersection whose corner is rounded over ``softness``."""
    over = (softness - (a - b).abs()).clamp_min(0)
    return torch.maximum(a, b) + over * over / (4 * softness)


def union(*distances: Tensor) -> Tensor:
    """Plain union."""
    result = distances[0]
    for distance in distances[1:]:
        result = torch.minimum(result, distance)
    return result
