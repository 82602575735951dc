"""Pinhole cameras that look at the origin: where they stand, which rays they see, and the word for their view.

Conventions, once for all. The world is right-handed with z up; the front of a solid looks along +x. Azimuth runs from
+x (0, the front) towards +y (90) to the back (180), elevation from the horizon (0) to the zenith (90), both in degrees,
as is ``fov``, the vertical field of view. Camera axes are OpenGL's: x right, y up, the camera looks along -z. Pictures
are square, row 0 on top; the centre of pixel (row, column) is at (row + 0.5, column + 0.5).

Everything is differentiable in the four numbers of a camera, at the zenith too.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, tan

import numpy as np
import torch
from torch import Tensor

from capriccio.errors import CapriccioError

VIEWS = ("front", "side", "back", "overhead")
"""View words, in the order of DreamFusion's view-dependent prompts (Poole et al. 2023, section 3.2)."""


@dataclass(frozen=True)
class Cameras:
    """B cameras; each field is a tensor (B,)."""

    azimuth: Tensor
    """Degrees from the front, towards +y."""
    elevation: Tensor
    """Degrees above the horizon, -90 to 90."""
    distance: Tensor
    """From the origin, in units of the world."""
    fov: Tensor
    """Vertical field of view in degrees."""

    def __len__(self) -> int:
        return len(self.azimuth)

    def to(self, device: torch.device | str) -> Cameras:
        """The same cameras on a device."""
        return Cameras(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def cameras(azimuth: object, elevation: object = 15.0, distance: object = None, fov: object = 40.0) -> Cameras:
    """Make cameras from numbers, sequences or tensors, which broadcast.

    Args:
        azimuth: Degrees.
        elevation: Degrees.
        distance: In units of the world; by default such that 1.2 units above the origin touch the border.
        fov: Degrees, between 0 and 180.

    Raises:
        CapriccioError: If a distance is not positive or a field of view not between 0 and 180 degrees.
    """
    numbers = [torch.as_tensor(value, dtype=torch.float32) for value in (azimuth, elevation, fov)]
    if distance is None:
        numbers.append(standoff(numbers[2], 1.2))
    else:
        numbers.append(torch.as_tensor(distance, dtype=torch.float32))
    turned, raised, angle, far = torch.broadcast_tensors(*(torch.atleast_1d(value) for value in numbers))
    if not bool((far > 0).all() and (angle > 0).all() and (angle < 180).all()):
        raise CapriccioError(
            f"Received distances from {far.min():g} and fields of view of {angle.min():g} to {angle.max():g} degrees: "
            "give positive distances and angles between 0 and 180."
        )
    return Cameras(turned, raised, far, angle)


def orbit(count: int = 4, azimuth: float = 0.0, elevation: float = 15.0, fov: float = 40.0) -> Cameras:
    """``count`` cameras evenly round the solid; four of them are the views of MVDream (Shi et al. 2024)."""
    return cameras([azimuth + 360 / count * step for step in range(count)], elevation, fov=fov)


def sample_rig(rng: np.random.Generator, count: int = 4, reach: tuple[float, float] = (1.10, 1.25)) -> Cameras:
    """Draw a rig of cameras as MVDream's training data has them.

    They share an elevation of 0 to 30 degrees, a field of view of 15 to 60 degrees and a distance at which ``reach``
    units above the origin touch the border; azimuths are evenly spaced from a random phase.
    """
    fov, elevation = float(rng.uniform(15, 60)), float(rng.uniform(0, 30))
    distance = float(rng.uniform(*reach)) / tan(fov * pi / 360)
    phase = float(rng.uniform(0, 360))
    return cameras([(phase + 360 / count * step) % 360 for step in range(count)], elevation, distance, fov)


def standoff(fov: Tensor, reach: float) -> Tensor:
    """Distance at which ``reach`` units above the origin touch the border, for fields of view in degrees."""
    return reach / torch.tan(torch.deg2rad(fov) / 2)


def cam_to_world(c: Cameras) -> Tensor:
    """Matrices (B, 4, 4) from camera to world: columns right, up, back and position."""
    turned, raised = torch.deg2rad(c.azimuth), torch.deg2rad(c.elevation)
    ca, sa, ce, se, nought = turned.cos(), turned.sin(), raised.cos(), raised.sin(), torch.zeros_like(turned)
    # Written out rather than as cross products with z, which vanish at the zenith.
    right = torch.stack([-sa, ca, nought, nought], -1)
    up = torch.stack([-se * ca, -se * sa, ce, nought], -1)
    back = torch.stack([ce * ca, ce * sa, se, nought], -1)
    place = torch.cat([back[:, :3] * c.distance[:, None], torch.ones_like(turned)[:, None]], -1)
    return torch.stack([right, up, back, place], -1)


def pixel_size(c: Cameras, size: int) -> Tensor:
    """Side of a pixel at distance 1 along the axis, (B,), for pictures of ``size`` pixels."""
    return 2 * torch.tan(torch.deg2rad(c.fov) / 2) / size


def directions(c: Cameras, x: Tensor, y: Tensor, size: int) -> Tensor:
    """Unit vectors (B, ..., 3) in the world through points of the picture.

    Args:
        c: B cameras.
        x: Abscissae in pixels from the left border, (B, ...) or broadcasting to it.
        y: Ordinates in pixels from the upper border, likewise.
        size: Side of the picture in pixels.
    """
    turn, step = cam_to_world(c)[:, :3, :3], pixel_size(c, size)
    step = step.reshape(-1, *(1 for _ in range(x.dim() - 1)))
    local = torch.stack(torch.broadcast_tensors((x - size / 2) * step, (size / 2 - y) * step, x.new_tensor(-1.0)), -1)
    local = local / local.norm(dim=-1, keepdim=True)
    return torch.einsum("b...i,bji->b...j", local, turn)


def rays(c: Cameras, size: int) -> tuple[Tensor, Tensor]:
    """Origins (B, 3) and unit directions (B, size, size, 3) through every pixel centre."""
    axis = torch.arange(size, device=c.azimuth.device, dtype=c.azimuth.dtype) + 0.5
    return cam_to_world(c)[:, :3, 3], directions(c, axis[None, None, :], axis[None, :, None], size)


def project(c: Cameras, points: Tensor) -> tuple[Tensor, Tensor]:
    """Where points of the world are seen.

    Args:
        c: B cameras.
        points: (B, N, 3) or (N, 3).

    Returns:
        (B, N, 2) x and y as fractions of the picture, and (B, N) depth along the axis, negative behind the camera.
    """
    matrices = cam_to_world(c)
    local = torch.einsum("bni,bij->bnj", points.expand(len(c), *points.shape[-2:]) - matrices[:, None, :3, 3],
                         matrices[:, :3, :3])  # fmt: skip
    depth = -local[..., 2]
    scale = depth * (2 * torch.tan(torch.deg2rad(c.fov) / 2))[:, None]
    return torch.stack([0.5 + local[..., 0] / scale, 0.5 - local[..., 1] / scale], -1), depth


def embedding(c: Cameras) -> Tensor:
    """MVDream's condition, (B, 16): the matrix with its position scaled to length 1, row by row.

    Field of view and distance are left out, as there.
    """
    matrices = cam_to_world(c)
    place = matrices[:, :3, 3:]
    unit = torch.cat([matrices[:, :3, :3], place / place.norm(dim=1, keepdim=True)], 2)
    return torch.cat([unit, matrices[:, 3:]], 1).flatten(1)


def view_word(azimuth: float, elevation: float, sector: float = 45.0, overhead: float = 60.0) -> str:
    """The word of ``VIEWS`` for a camera: overhead above ``overhead`` degrees, front and back within ``sector``."""
    if elevation > overhead:
        return "overhead"
    away = abs((azimuth + 180) % 360 - 180)
    return "front" if away < sector else "back" if away > 180 - sector else "side"
