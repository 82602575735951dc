"""Eight ways to render the same scene; all but the shaded one are remade from its layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d


@dataclass(frozen=True)
class Layers:
    """What a style is made from, for scenes of one style: colours in [0, 1], masks in [0, 1]."""

    shaded: Tensor
    """(B, 3, H, W) the default rendering."""
    flat: Tensor
    """(B, 3, H, W) things in pure colour, without light, on the backdrop."""
    cover: Tensor
    """(B, 1, H, W) where things are."""


def _grey(picture: Tensor) -> Tensor:
    return (picture * picture.new_tensor([0.30, 0.59, 0.11])[None, :, None, None]).sum(1, keepdim=True)


def _blur(picture: Tensor, width: int) -> Tensor:
    """Box blur with repeated borders, by running sums: its cost does not grow with the width."""
    for dim in (2, 3):
        before, after = width // 2 + 1, width // 2
        size = picture.shape[dim]
        index = torch.arange(-before, size + after, device=picture.device).clamp(0, size - 1)
        sums = picture.index_select(dim, index).cumsum(dim)
        picture = (sums.narrow(dim, width, size) - sums.narrow(dim, 0, size)) / width
    return picture


def soften(picture: Tensor, width: int) -> Tensor:
    """Box blur twice, nearly a Gaussian: (B, C, H, W) by odd widths in pixels."""
    return _blur(_blur(picture, width), width)


def _outline(layers: Layers) -> Tensor:
    """Soft lines of about 5 px, (B, 1, H, W) in [0, 1], round things and where their colours meet."""
    stacked = torch.cat([layers.flat * layers.cover, 2 * layers.cover], 1)
    spread = max_pool2d(stacked, 3, 1, 1) + max_pool2d(-stacked, 3, 1, 1)
    return (_blur(spread.amax(1, keepdim=True), 3) * 1.5).clamp(0, 1)


def _contours(tone: Tensor) -> Tensor:
    """Broad soft lines, (B, 1, H, W) in [0, 1], where the light of a place changes: horizons, hills, bricks."""
    smooth = _blur(tone, 3)
    spread = max_pool2d(smooth, 5, 1, 2) + max_pool2d(-smooth, 5, 1, 2)
    return (_blur(spread, 3) * 3 - 0.12).clamp(0, 1)


def _steps(picture: Tensor, levels: int, softness: float) -> Tensor:
    """Posterise with soft steps."""
    scaled = picture * levels
    whole = scaled.floor()
    part = ((scaled - whole - 0.5) / softness + 0.5).clamp(0, 1)
    return (whole + part) / levels


def _flat(layers: Layers) -> Tensor:
    ground = _steps(soften(layers.flat, 5), 3, 0.35) * 0.75 + 0.25
    return ground + (layers.flat - ground) * layers.cover


def _pencil(layers: Layers) -> Tensor:
    tone = soften(_grey(layers.shaded), 3)
    height, width = tone.shape[2:]
    across, down = (torch.arange(side).to(tone) for side in (width, height))
    hatch = 0.5 + 0.5 * torch.sin(2 * pi * (across[None, :] + down[:, None]) / 12)
    paper = tone.new_tensor([0.97, 0.95, 0.90])[None, :, None, None]
    graphite = (0.42 + 0.24 * layers.cover) * (1 - tone) * (0.6 + 0.7 * hatch)
    lines = torch.maximum(0.85 * _outline(layers), 0.42 * _contours(tone) * (1 - layers.cover))
    ink = (graphite + lines).clamp(0, 0.88)
    return paper * (1 - ink) + 0.16 * ink


def _pixel(layers: Layers) -> Tensor:
    size = layers.shaded.shape[-2:]
    cells = [max(side * 24 // 128, 1) for side in size]
    blocks = interpolate(layers.shaded, size=cells, mode="area")
    blocks = ((blocks - 0.5) * 1.15 + 0.5 + 0.25 * (blocks - _grey(blocks))).clamp(0, 1)
    return _blur(interpolate(_steps(blocks, 6, 0.5), size=size, mode="nearest"), 3)


def _blotches(picture: Tensor) -> Tensor:
    """Low-frequency washes in [-1, 1] that are the same on every sheet of this paper."""
    height, width = picture.shape[2:]
    ys = torch.linspace(0, height / 128, height).to(picture)[:, None]
    xs = torch.linspace(0, width / 128, width).to(picture)[None, :]
    return (torch.sin(11 * xs + 4 * torch.sin(9 * ys)) + torch.sin(13 * ys + 4 * torch.sin(8 * xs + 1))) / 2


def _watercolour(layers: Layers) -> Tensor:
    wash = soften(layers.shaded * 0.5 + layers.flat * 0.5, 3)
    ground = soften(layers.shaded, 11)
    wash = ground + (wash - ground) * soften(layers.cover, 3)
    rim = (4 * (soften(layers.cover, 5) * (1 - soften(layers.cover, 5)))).clamp(0, 1) * layers.cover
    pigment = 0.62 + 0.13 * _blotches(wash) + 0.22 * layers.cover + 0.25 * rim
    border = _paper(wash)
    return 1 - (1 - wash) * (pigment * border).clamp(0, 1.1)


def _paper(picture: Tensor) -> Tensor:
    """The painted area of the sheet: it fades to white along an uneven border."""
    height, width = picture.shape[2:]
    ys = torch.linspace(-1, 1, height).to(picture)[:, None]
    xs = torch.linspace(-1, 1, width).to(picture)[None, :]
    edge = torch.maximum(xs.abs(), ys.abs()) + 0.03 * torch.sin(7 * xs + 5 * ys)
    return ((1.03 - edge) / 0.12).clamp(0, 1)


def _neon(layers: Layers) -> Tensor:
    line = _outline(layers)
    vivid = (layers.flat * 1.25 - 0.25 * _grey(layers.flat) + 0.12).clamp(0, 1)
    night = layers.shaded * 0.26 * layers.shaded.new_tensor([0.9, 0.75, 1.4])[None, :, None, None]
    picture = night + (vivid * 0.42 - night) * layers.cover
    halo = soften(line * vivid, 9)
    return (picture + line * (vivid * 0.95 + 0.10 - picture).clamp_min(0) + 0.85 * halo).clamp(0, 1)


def _blueprint(layers: Layers) -> Tensor:
    height, width = layers.shaded.shape[2:]
    ys, xs = (torch.arange(side).to(layers.shaded) * (2 * pi / 16) for side in (height, width))
    grid = torch.maximum(torch.cos(xs)[None, :].expand(height, width), torch.cos(ys)[:, None].expand(height, width))
    paper = layers.shaded.new_tensor([0.09, 0.27, 0.60])[None, :, None, None]
    tone = soften(_grey(layers.flat), 3)
    place = 0.08 * (grid - 0.6).clamp_min(0) / 0.4 + 0.42 * (tone - 0.5) + 0.30 * _contours(tone)
    thing = 0.38 * tone - 0.04
    chalk = place + (thing - place) * layers.cover + 0.80 * _outline(layers)
    return (paper + (0.97 - paper) * chalk.clamp(-0.3, 1)).clamp(0, 1)


def _mosaic(layers: Layers) -> Tensor:
    size = layers.shaded.shape[-2:]
    cells = [max(side * 12 // 128, 1) for side in size]
    tiles = interpolate(interpolate(layers.shaded, size=cells, mode="area"), size=size, mode="nearest")
    down, across = (
        (torch.arange(side).to(tiles) + 0.5) * (2 * pi * count / side) for side, count in zip(size, cells, strict=True)
    )
    bevel = (torch.sin(across)[None, :] + torch.sin(down)[:, None]) / 2
    grout = torch.maximum(torch.cos(across)[None, :].expand(size), torch.cos(down)[:, None].expand(size))
    mixed = (tiles * 0.35 + layers.shaded * 0.65) * (1.03 + 0.12 * bevel)
    return (mixed + (0.30 - mixed) * 0.34 * grout.clamp(0, 1) ** 2).clamp(0, 1)


_RENDERERS: dict[str, Callable[[Layers], Tensor]] = {
    "flat": _flat,
    "pencil": _pencil,
    "pixel": _pixel,
    "watercolour": _watercolour,
    "neon": _neon,
    "blueprint": _blueprint,
    "mosaic": _mosaic,
}


def render(style: str, layers: Layers) -> Tensor:
    """Render the layers in a style, (B, 3, H, W) in [0, 1]."""
    return layers.shaded if style == "shaded" else _RENDERERS[style](layers)
