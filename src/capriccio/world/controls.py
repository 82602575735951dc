"""Exact control pictures: edges, depth, segmentation and key points, straight from the renderer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from capriccio.world.draw import NUM_PARTS, Drawing
from capriccio.world.graph import FEET, SceneGraph, Thing
from capriccio.world.kinds import Place, build

KEYPOINTS = ("centre", "foot", "head", "eyes", "neck")
"""Names of the key points of every thing, in order."""


def edges(drawing: Drawing) -> Tensor:
    """Soft lines of about 3 px where things, parts or colours meet, (B, 1, H, W) in [0, 1]."""
    owner = (drawing.subjects * torch.arange(1, drawing.subjects.shape[1] + 1).to(drawing.inks)[:, None, None]).sum(1)
    codes = torch.stack([owner, drawing.parts, drawing.inks], 1).float()
    change = max_pool2d(codes, 3, 1, 1) + max_pool2d(-codes, 3, 1, 1)
    return avg_pool2d((change.amax(1, keepdim=True) > 0).float(), 3, 1, 1)


def depth(drawing: Drawing) -> Tensor:
    """Nearness, (B, 1, H, W) in [0, 1]: ground rises towards the viewer, things stand in paint order."""
    return drawing.depth[:, None].clamp(0, 1)


def segmentation(drawing: Drawing) -> Tensor:
    """Part map as a colour picture, (B, 3, H, W) in [0, 1]: one well separated colour a class, black background."""
    return segment_colours().to(drawing.pixels)[drawing.parts].permute(0, 3, 1, 2)


def segment_colours() -> Tensor:
    """Colour of every class of the part map, (classes, 3) in [0, 1]."""
    hue = torch.arange(NUM_PARTS) * 0.61803398875 % 1
    # Hues a golden section apart, as three shifted triangle waves.
    shifted = (hue[:, None] + torch.tensor([0.0, 1 / 3, 2 / 3])) % 1
    colours = (3 * (shifted - 0.5).abs() - 0.25).clamp(0.1, 1)
    colours[0] = 0
    return colours


def keypoints(scenes: Sequence[SceneGraph]) -> list[Tensor]:
    """Where the key points of every thing are.

    Args:
        scenes: B scene graphs.

    Returns:
        For each scene (N, 5, 2): x and y as fractions of the picture, in the order of ``KEYPOINTS``.
    """
    return [torch.stack([_points(thing) for thing in scene.things]) if scene.things else torch.empty(0, 5, 2)
            for scene in scenes]  # fmt: skip


def _points(thing: Thing) -> Tensor:
    origin = torch.zeros(1, 1, 1)
    figure = build(thing.identity.kind, origin, origin, torch.tensor([thing.identity.shape]))
    places: list[Place] = [figure.head, figure.eyes, figure.neck]
    local = [(0.0, 0.0), (0.0, FEET[thing.identity.kind]), *((float(x), float(y)) for x, y, _ in places)]
    half, sign = thing.size / 2, -1.0 if thing.flipped else 1.0
    return torch.tensor([(thing.x + sign * x * half, thing.y + y * half) for x, y in local])
