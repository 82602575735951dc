"""Rendering solids: the light of the world on things in the round, with everything that is true of every pixel.

Pure and differentiable: shapes, colours and cameras in, layers out. The light goes round with the camera and comes from
the upper left, as in every picture of the world.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from capriccio.errors import CapriccioError
from capriccio.world.cameras import Cameras, cam_to_world, directions
from capriccio.world.graph import Identity
from capriccio.world.inks import EDGE, NAMES, cover, inside, palette, stretch
from capriccio.world.kinds import Role
from capriccio.world.march import Field, Rays, march
from capriccio.world.solids import AXES, FOOT, Body, build

_LIGHT = (-0.46, 0.64)  # towards the light, right and up
_GLINT = (-0.34, 0.48)  # the lean at which a surface mirrors the light
_EXTENT = 1.4  # the longer side of a solid, to which its pattern is measured
_GIRTH = 0.5  # the radius of round solids, more or less
_CREVICE = 0.16  # reach of the soft darkness where parts meet
_JUMP = 0.12  # step in depth within three pixels that is an edge
_CONTACT = 0.42  # reach of the shadow on the ground
_PAINTS = (Role.MAIN, Role.ACCENT, Role.DETAIL, Role.LIGHT)


@dataclass(frozen=True)
class Model:
    """B solids of one kind as tensors."""

    kind: str
    shape: Tensor
    """(B, 6) numbers in [-1, 1]."""
    colours: Tensor
    """(B, 4, 3) in [0, 1]: main, accent, detail, light."""
    patterns: tuple[str, ...]
    """B of ``PATTERNS``."""
    period: Tensor
    """(B,) of the pattern, in units of the world."""
    angle: Tensor
    """(B,) of the pattern, in radians."""


@dataclass(frozen=True)
class Layers:
    """What B cameras see of solids, before any background."""

    colour: Tensor
    """(B, 3, H, W) lit, in [0, 1]; meant where the cover is positive."""
    cover: Tensor
    """(B, 1, H, W) in [0, 1]."""
    shade: Tensor
    """(B, 1, H, W) in [0, 1]: what the solid leaves of the light on the ground."""
    depth: Tensor
    """(B, H, W) along the axis of the camera, in units of the world; 0 where the cover is half or less."""
    normals: Tensor
    """(B, 3, H, W) unit, in the world; 0 likewise."""
    parts: Tensor
    """(B, H, W) int64: 0 likewise, else 1 + role (main, accent, detail, light)."""

    def over(self, ground: Tensor) -> Tensor:
        """Lay the solids on a ground (B, 3, H, W) in [0, 1], shadows too."""
        return torch.lerp(ground * self.shade, self.colour, self.cover)


def model_of(solids: Sequence[Identity], device: torch.device | str = "cpu") -> Model:
    """Solids of one kind as tensors; details are black, or white on black things.

    Raises:
        CapriccioError: If they are of several kinds.
    """
    kinds = {one.kind for one in solids}
    if len(kinds) != 1:
        raise CapriccioError(f"Received solids of {len(kinds)} kinds: render one kind at a time, or use draw_views.")
    names = [[one.main, one.accent, "white" if one.main == "black" else "black", "white"] for one in solids]
    return Model(
        kinds.pop(),
        torch.tensor([one.shape for one in solids], device=device),
        palette(device)[torch.tensor([[NAMES.index(name) for name in row] for row in names], device=device)],
        tuple(one.pattern for one in solids),
        torch.tensor([stretch(one) * _EXTENT for one in solids], device=device),
        torch.tensor([one.angle for one in solids], device=device),
    )


def render(model: Model, c: Cameras, size: int = 128) -> Layers:
    """Render solid ``b`` as camera ``b`` sees it; differentiable in shapes, colours, patterns and cameras.

    Args:
        model: B solids of one kind.
        c: B cameras.
        size: Side of the pictures in pixels.
    """

    def field(points: Tensor, row: Tensor) -> Tensor:
        return build(model.kind, points, model.shape[row]).distance()

    rays = march(field, c, size)
    points, pixel = rays.points(), rays.width * rays.along
    body = build(model.kind, points, model.shape[rays.row])
    distance = body.distance()
    turn = cam_to_world(c)[:, :3, :3][rays.row]
    lean, slope = _normals(field, points, rays, turn, pixel)
    normal = (turn @ lean[:, :, None])[:, :, 0]
    shares, role = _paint(body, distance, pixel, _print(model, points, normal, rays.row, pixel))
    gap = field(points + _CREVICE * normal, rays.row) / _CREVICE
    lit = _lit((model.colours[rays.row] * shares[:, :, None]).sum(1), lean, normal[:, 2], gap)
    along = rays.along - distance / slope.clamp_max(-0.3)
    depth = -(rays.direction * turn[:, :, 2]).sum(-1) * along
    truth = torch.cat([depth[:, None], normal, 1.0 + role[:, None]], 1) * (rays.whole | (distance < 0))[:, None]
    covered = torch.where(rays.whole, 1.0, cover(distance / pixel))
    sheet = _sheet(rays, torch.cat([lit, covered[:, None], truth], 1), len(c), size)
    return Layers(
        _softened(sheet[:, :3], sheet[:, 3:4], sheet[:, 4:5]),
        sheet[:, 3:4],
        _shade(field, c, size),
        sheet[:, 4],
        sheet[:, 5:8],
        sheet[:, 8].detach().round().long(),
    )


def _sheet(rays: Rays, values: Tensor, count: int, size: int) -> Tensor:
    """Values (N, channels) of rays as pictures (count, channels, size, size), 0 elsewhere."""
    blank = values.new_zeros(count * size * size, values.shape[1])
    sheet = blank.index_copy(0, rays.row * (size * size) + rays.pixel, values)
    return sheet.reshape(count, size, size, -1).permute(0, 3, 1, 2)


def _softened(colour: Tensor, covered: Tensor, depth: Tensor) -> Tensor:
    """Colours (B, 3, H, W) with soft edges where one part stands before another, as silhouettes have them."""
    jump = (max_pool2d(depth, 3, 1, 1) + max_pool2d(-depth, 3, 1, 1)).detach()
    around = avg_pool2d(colour * covered, 3, 1, 1) / avg_pool2d(covered, 3, 1, 1).clamp_min(1e-3)
    return torch.lerp(colour, around, (jump / _JUMP - 0.5).clamp(0, 1))


def _normals(field: Field, points: Tensor, rays: Rays, turn: Tensor, pixel: Tensor) -> tuple[Tensor, Tensor]:
    """Unit normals (N, 3) in the frame of the camera, and the slope (N,) of the distance along the rays.

    By central differences over about two pixels along the axes of the camera, which round edges evenly on all sides.
    """
    reach = (1.2 * pixel)[:, None]
    tips = [points + sign * reach * turn[:, :, axis] for axis in range(3) for sign in (1, -1)]
    heights = field(torch.cat(tips), rays.row.repeat(6)).reshape(3, 2, -1)
    gradient = (heights[:, 0] - heights[:, 1]).T / (2 * reach)
    unit = gradient / (gradient.square().sum(1, keepdim=True) + 1e-8).sqrt()
    towards = (rays.direction[:, None] @ turn)[:, 0]
    return unit, (gradient * towards).sum(1).detach()


def _print(model: Model, points: Tensor, normal: Tensor, row: Tensor, pixel: Tensor) -> Tensor:
    """Share (N,) of the accent colour where the pattern is painted."""
    depth = points.new_full((len(points),), -1e3)
    for name in dict.fromkeys(one for one in model.patterns if one != "plain"):
        members = torch.tensor([one == name for one in model.patterns], device=row.device)
        index = members[row].nonzero().squeeze(1)
        chosen, place = row[index], points[index]
        angle = model.angle[chosen] * (1.0 if name == "striped" else 0.5)
        wave = 2 * pi / model.period[chosen]
        if model.kind in AXES:
            radians = _wrapped(name, place[:, AXES[model.kind]], wave, angle)
        else:
            radians = _boxed(name, place * wave[:, None], normal[index], angle)
        depth = depth.index_copy(0, index, radians / wave)
    return cover(-depth / pixel)


def _wrapped(name: str, points: Tensor, wave: Tensor, angle: Tensor) -> Tensor:
    """Distance into the accent in radians of a pattern wrapped round the last axis, a whole number of times."""
    x, y, along = points.unbind(1)
    times = (wave * _GIRTH).round().clamp_min(3)
    return inside(name, times * torch.atan2(y, x) + wave * along * angle.tan(), wave * along)


def _boxed(name: str, phase: Tensor, normal: Tensor, angle: Tensor) -> Tensor:
    """The same for a pattern laid on three sides: waves, not colours, are blended by where the surface faces."""
    x, y, z = phase.unbind(1)
    cosine, sine = angle.cos(), angle.sin()
    sides = [inside(name, u * cosine + v * sine, v * cosine - u * sine) for u, v in ((y, z), (x, z), (x, y))]
    toward = normal.square().square().square()
    return (torch.stack(sides, 1) * toward).sum(1) / toward.sum(1)


def _paint(body: Body, distance: Tensor, pixel: Tensor, print_: Tensor) -> tuple[Tensor, Tensor]:
    """Shares (N, 4) of the four paints, and the role (N,) that each point's part has."""
    shares = [torch.ones_like(pixel), *[torch.zeros_like(pixel)] * 3]
    for part in body.parts:
        if part.matter:
            over = (1 - (part.distance - distance) / (EDGE * pixel)).clamp(0, 1)
        else:
            over = cover(part.distance / pixel)
        shares = [
            torch.lerp(share, torch.full_like(share, part.role == role), over)
            for role, share in zip(_PAINTS, shares, strict=True)
        ]
    roles = torch.stack(shares, 1)
    main, accent = roles[:, 0] * (1 - print_), roles[:, 1] + roles[:, 0] * print_
    return torch.cat([main[:, None], accent[:, None], roles[:, 2:]], 1), roles.detach().argmax(1)


def _lit(colour: Tensor, lean: Tensor, up: Tensor, gap: Tensor) -> Tensor:
    """Colours (N, 3) under soft light from the upper left, a glint, and a softness where little light comes in.

    Args:
        colour: Unlit, (N, 3).
        lean: Normals in the frame of the camera, (N, 3).
        up: Height of the normal in the world, (N,): the sky is brighter than the ground.
        gap: How open the surface is, (N,), 1 where nothing is near.
    """
    facing = lean[:, 0] * _LIGHT[0] + lean[:, 1] * _LIGHT[1]
    light = (1.0 + 0.40 * facing + 0.10 * up) * (0.55 + 0.45 * gap.clamp(0, 1))
    bounce = (-facing - 0.62).clamp_min(0)
    spread = (lean[:, 0] - _GLINT[0]).square() + (lean[:, 1] - _GLINT[1]).square()
    glint = (1 - spread * 7.0).clamp(0, 1).square() * 0.42 * (lean[:, 2] > 0)
    picture = colour * light[:, None] + ((facing + bounce) * 0.05)[:, None]
    return torch.lerp(picture, torch.ones_like(picture), glint[:, None]).clamp(0, 1)


def _shade(field: Field, c: Cameras, size: int) -> Tensor:
    """What is left of the light on the ground, (B, 1, size, size): soft, so seen at half resolution."""
    half = max(size // 2, 1)
    axis = torch.arange(half, device=c.azimuth.device) + 0.5
    towards = directions(c, axis[None, None, :], axis[None, :, None], half).reshape(-1, 3)
    row = torch.arange(len(c), device=axis.device).repeat_interleave(half * half)
    matrices = cam_to_world(c)[row]
    along = (FOOT - matrices[:, 2, 3]) / towards[:, 2].clamp_max(-1e-3)
    spot = matrices[:, :3, 3] + along[:, None] * towards
    near = ((along > 0) & (towards[:, 2] < -1e-3) & (spot[:, :2].square().sum(1) < 2.0)).nonzero().squeeze(1)
    # Where light would come from: a little to the left and up.
    open_ = spot[near] - 0.10 * matrices[near, :3, 0] + spot.new_tensor([0.0, 0.0, 0.05])
    dark = (1 - field(open_, row[near]) / _CONTACT).clamp(0, 1).square() * 0.5
    sheet = dark.new_zeros(len(row)).index_copy(0, near, dark).reshape(len(c), 1, half, half)
    return 1 - interpolate(sheet, size=(size, size), mode="bilinear")
