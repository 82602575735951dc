"""Colours as tensors and the patterns that mix the two colours of an identity."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import torch
from torch import Tensor

from capriccio.world.graph import COLOURS, Identity
from capriccio.world.people import TONES

NAMES = tuple(COLOURS)
INKS = (*NAMES, *TONES)
"""Everything there is to paint with: the ten colours, then the tones of people."""
MIN_PERIOD = 10.0
"""Pixels: the factor-8 VAE keeps no finer pattern."""
EDGE = 1.4
"""Pixels over which an edge fades."""

_RECIPES = {"plain": (1.0, 0), "striped": (1.0, 1), "dotted": (1.05, 2), "checkered": (1.45, 3)}


def palette(device: torch.device | str = "cpu") -> Tensor:
    """All colours, (inks, 3) in [0, 1], in the order of ``INKS``."""
    return torch.tensor([*COLOURS.values(), *TONES.values()], dtype=torch.float32, device=device)


def cover(distance: Tensor) -> Tensor:
    """Coverage in [0, 1] of a shape whose signed distance is given in pixels."""
    return (0.5 - distance / EDGE).clamp(0, 1)


def pattern(x: Tensor, y: Tensor, identities: Sequence[Identity], sides: Tensor) -> Tensor:
    """How much of the accent colour shows, in [0, 1], where the pattern is painted.

    Args:
        x: Abscissae from the centre of each object in pixels, (n, h, w).
        y: Ordinates likewise.
        identities: The n identities.
        sides: Longer sides in pixels, (n, 1, 1): patterns scale with their object, down to ``MIN_PERIOD``.
    """
    relative = sides.new_tensor([stretch(one) for one in identities])[:, None, None]
    period = (relative * sides).clamp_min(MIN_PERIOD)
    # Upright patterns read better on few pixels: checks and dots turn less than stripes.
    angle = sides.new_tensor([one.angle * (1.0 if one.pattern == "striped" else 0.5) for one in identities])
    c, s = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    wave = 2 * pi / period
    u, v = (x * c + y * s) * wave, (y * c - x * s) * wave
    depth = torch.full_like(x, -1e3)
    for row, one in enumerate(identities):
        depth[row] = inside(one.pattern, u[row], v[row]) * (period[row] / (2 * pi))
    return cover(-depth)


def stretch(identity: Identity) -> float:
    """Period of the pattern over the longer side of its object."""
    return _RECIPES[identity.pattern][0] * identity.pitch / 80


def inside(name: str, u: Tensor, v: Tensor) -> Tensor:
    """Distance into the accent in radians of the pattern wave, to first order."""
    if name == "striped":
        return torch.sin(u)
    if name == "checkered":
        return torch.sin(u) * torch.sin(v)
    if name == "dotted":
        return (torch.cos(u) + torch.cos(v) - 0.55) * 0.8
    return torch.full_like(u, -1e3)
