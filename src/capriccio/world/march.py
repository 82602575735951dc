"""Seeing solids: sphere tracing of signed distances, and what is true where a ray meets or passes the surface.

A ray steps by the distance to the surface (Hart 1996), first one ray for each tile of pixels with the width of a cone,
then one for each pixel of the tiles that may see something. The search needs no gradient: at the point it finds, the
surface is evaluated once more, which gives exact derivatives of the cover (its least distance is stationary along the
ray) and of the depth (one Newton step on the implicit surface, Yariv et al. 2020, equation 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from capriccio.world.cameras import Cameras, cam_to_world, directions, pixel_size
from capriccio.world.inks import EDGE

Field = Callable[[Tensor, Tensor], Tensor]
"""Distances (N,) at points (N, 3), each of the solid of a row (N,) int64."""

RADIUS = 1.15
"""Every solid lies within this distance of the origin."""

_TILE = 8
_INSET = 1.0  # pixels below the surface that rays aim at, so that a hit is told from a graze in finitely many steps
_SURE = -0.5 * EDGE  # pixels of depth at which the cover is whole
_TILE_STEPS, _STEPS, _SIFT = 12, 28, 4


@dataclass(frozen=True)
class Rays:
    """N rays that may see something."""

    row: Tensor
    """(N,) int64: the camera."""
    pixel: Tensor
    """(N,) int64: row-major place in its picture."""
    origin: Tensor
    """(N, 3)."""
    direction: Tensor
    """(N, 3), unit."""
    width: Tensor
    """(N,) width of a pixel at distance 1 along the ray."""
    along: Tensor
    """(N,) where the ray meets the surface, or comes nearest to it at a silhouette; without gradient."""
    whole: Tensor
    """(N,) bool: whether the ray goes in so deep that its pixel is wholly covered; else it is at a silhouette."""

    def points(self) -> Tensor:
        """(N, 3)."""
        return self.origin + self.along[:, None] * self.direction

    def take(self, index: Tensor) -> Rays:
        """Some of the rays."""
        return Rays(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def march(field: Field, c: Cameras, size: int) -> Rays:
    """Find where rays meet or come nearest to the surface.

    Args:
        field: Distances; row ``b`` is the solid before camera ``b``.
        c: B cameras outside ``RADIUS``.
        size: Side of the pictures in pixels.

    Returns:
        The rays that come within an edge's width of the surface, by camera and pixel; differentiable in the cameras.
    """
    with torch.no_grad():
        row, pixel, start = _candidates(field, c, size)
        along, nearest = _search(field, _shoot(c, row, pixel, size, start, row < 0))
        seen = (nearest < 0.5 * EDGE).nonzero().squeeze(1)
    return _shoot(c, row[seen], pixel[seen], size, along[seen], nearest[seen] <= _SURE)


def _shoot(c: Cameras, row: Tensor, pixel: Tensor, size: int, along: Tensor, whole: Tensor) -> Rays:
    """Rays through given pixels of given cameras."""
    step = pixel_size(c, size)[row]
    turn = cam_to_world(c)[row]
    x, y = (pixel % size + 0.5 - size / 2) * step, (size / 2 - pixel // size - 0.5) * step
    stretch = (x * x + y * y + 1).rsqrt()
    local = torch.stack([x, y, torch.full_like(x, -1.0)], -1) * stretch[:, None]
    direction = (turn[:, :3, :3] * local[:, None]).sum(-1)
    return Rays(row, pixel, turn[:, :3, 3], direction, step * stretch, along, whole)


def _candidates(field: Field, c: Cameras, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, pixels and starts of rays whose tile may see something, by cone marching."""
    tiles = -(-size // _TILE)
    axis = (torch.arange(tiles, device=c.azimuth.device) + 0.5) * _TILE
    towards = directions(c, axis[None, None, :], axis[None, :, None], size).reshape(-1, 3)
    row = torch.arange(len(c), device=axis.device).repeat_interleave(tiles * tiles)
    origin, far = cam_to_world(c)[row, :3, 3], c.distance[row] + RADIUS
    # A tile's corner is _TILE / sqrt(2) pixels from its centre; soft edges need two more.
    cone = pixel_size(c, size)[row] * (0.7072 * _TILE + 2)
    along = (c.distance[row] - RADIUS).clamp_min(0)
    for _ in range(_TILE_STEPS):
        free = field(origin + along[:, None] * towards, row) - cone * along
        along = along + free.clamp_min(0) * 0.95
    alive = (along < far).nonzero().squeeze(1)
    corner = alive % (tiles * tiles)
    inner = torch.arange(_TILE, device=axis.device)
    down = ((corner // tiles)[:, None, None] * _TILE + inner[None, :, None]).expand(-1, _TILE, _TILE)
    across = ((corner % tiles)[:, None, None] * _TILE + inner[None, None, :]).expand(-1, _TILE, _TILE)
    inside = ((down < size) & (across < size)).flatten()
    spread = alive.repeat_interleave(_TILE * _TILE)[inside]
    return row[spread], (down * size + across).flatten()[inside], along[spread]


def _search(field: Field, rays: Rays) -> tuple[Tensor, Tensor]:
    """Where rays meet the surface, else come nearest to it, (N,), and how near in pixels, (N,), below 0 inside."""
    result = torch.stack([rays.along, torch.full_like(rays.along, 1e3)])
    index = torch.arange(len(rays.row), device=result.device)
    at = before = along = rays.along
    last = near = result[1]
    met = torch.full_like(at, torch.inf)
    far = rays.origin.norm(dim=1) + RADIUS
    for step in range(_STEPS):
        distance = field(rays.origin + at[:, None] * rays.direction, rays.row)
        pixel = rays.width * at
        # Between the last point outside and the first one inside the distance is as good as linear.
        entering = (distance < 0) & met.isinf()
        met = torch.where(entering, before + (at - before) * last / (last - distance), met)
        nearer = distance / pixel < near
        along, near = torch.where(nearer, at, along), torch.where(nearer, distance / pixel, near)
        before, last, at = at, distance, at + (distance + _INSET * pixel) * 0.95
        if step % _SIFT == _SIFT - 1 or step == _STEPS - 1:
            result[:, index] = torch.stack([torch.where(near <= _SURE, met, along), near])
            going = ((near > _SURE) & (at < far)).nonzero().squeeze(1)
            rays, index = rays.take(going), index[going]
            at, before, last, met, along, near, far = (one[going] for one in (at, before, last, met, along, near, far))
    return result[0], result[1]
