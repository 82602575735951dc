"""Exact control pictures: edges, depth, segmentation, key points and poses, straight from the renderer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from capriccio.world import skeleton
from capriccio.world.draw import NUM_PARTS, Drawing, draw
from capriccio.world.graph import FEET, SceneGraph, Thing
from capriccio.world.inks import cover
from capriccio.world.kinds import Place
from capriccio.world.people import FOOT, Sitter
from capriccio.world.shapes import capsule
from capriccio.world.styles import soften
from capriccio.world.windows import built

KEYPOINTS = ("centre", "foot", "head", "eyes", "neck")
"""Names of the key points of every subject, in order; the joints of people are in ``skeleton``."""

CONTROLS = ("canny", "tile", "depth", "blur", "pose")
"""The kinds of control picture that the miniature's ControlNet knows, in the order and by the names of the public Union
for FLUX: edges, the picture at a fourth of its size, nearness, the blurred picture, key points."""


def control_pictures(kind: str, scenes: Sequence[SceneGraph], size: int = 128) -> Tensor:
    """Draw control pictures, (B, 3, size, size) in [0, 1]; but for ``tile`` and ``blur`` light on black.

    Args:
        kind: One of ``CONTROLS``.
        scenes: B scene graphs.
        size: Pixels a side.
    """
    if kind == "pose":
        return dots(scenes, size)
    drawing = draw(scenes, size)
    from_drawing = {"canny": edges, "tile": tile, "depth": depth, "blur": blur}
    return from_drawing[kind](drawing).expand(-1, 3, -1, -1)


def edges(drawing: Drawing) -> Tensor:
    """Soft lines of about 3 px where things, parts or colours meet, (B, 1, H, W) in [0, 1]."""
    owner = (drawing.subjects * torch.arange(1, drawing.subjects.shape[1] + 1).to(drawing.inks)[:, None, None]).sum(1)
    codes = torch.stack([owner, drawing.parts, drawing.inks], 1).float()
    change = max_pool2d(codes, 3, 1, 1) + max_pool2d(-codes, 3, 1, 1)
    return avg_pool2d((change.amax(1, keepdim=True) > 0).float(), 3, 1, 1)


def depth(drawing: Drawing) -> Tensor:
    """Nearness, (B, 1, H, W) in [0, 1]: ground rises towards the viewer, things stand in paint order."""
    return drawing.depth[:, None].clamp(0, 1)


def tile(drawing: Drawing) -> Tensor:
    """The picture shrunk to a fourth and enlarged again, (B, 3, H, W) in [0, 1]."""
    shown = (drawing.pixels + 1) / 2
    small = interpolate(shown, scale_factor=0.25, mode="area")
    return interpolate(small, shown.shape[-2:], mode="bilinear").clamp(0, 1)


def blur(drawing: Drawing) -> Tensor:
    """The picture out of focus, nearly a Gaussian of 4 px at 128 px, (B, 3, H, W) in [0, 1]."""
    width = 2 * round(drawing.pixels.shape[-1] / 28) + 1
    return soften((drawing.pixels + 1) / 2, width).clamp(0, 1)


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
    """Where the key points of every subject are.

    Args:
        scenes: B scene graphs.

    Returns:
        For each scene (N, 5, 2): x and y as fractions of the picture, in the order of ``KEYPOINTS``.
    """
    return [
        torch.stack([_sitter_points(one) if isinstance(one, Sitter) else _points(one) for one in scene.cast])
        if scene.cast
        else torch.empty(0, len(KEYPOINTS), 2)
        for scene in scenes
    ]


def poses(scenes: Sequence[SceneGraph], size: int = 128) -> Tensor:
    """Skeletons of people as bold coloured sticks on black, (B, 3, size, size) in [0, 1], as OpenPose renders them.

    Limbs have one well separated colour each and are 4 px thick at 128 px; what is outside the picture is cut off.
    """
    pictures = torch.zeros(len(scenes), 3, size, size)
    colours = segment_colours()[1:]
    axis = torch.arange(size) + 0.5
    x, y = axis[None, :].expand(size, size), axis[:, None].expand(size, size)
    for picture, scene in zip(pictures, scenes, strict=True):
        for sitter in scene.people:
            points = (skeleton.keypoints(sitter)[0] * size).tolist()
            for colour, (start, end) in zip(colours, skeleton.LIMBS, strict=False):
                (ax, ay), (bx, by) = points[start], points[end]
                stick = cover(capsule(x, y, ax, ay, bx, by, size / 64))
                picture.lerp_(colour[:, None, None], stick)
    return pictures


def dots(scenes: Sequence[SceneGraph], size: int = 128) -> Tensor:
    """Key points of all subjects as bold dots on black, (B, 3, size, size) in [0, 1], over the skeletons of people.

    Each key point has one well separated colour and is 6 px wide at 128 px.
    """
    pictures = poses(scenes, size)
    colours = segment_colours()[-len(KEYPOINTS) :]
    axis = torch.arange(size) + 0.5
    for picture, points in zip(pictures, keypoints(scenes), strict=True):
        for subject in (points * size).tolist():
            for colour, (x, y) in zip(colours, subject, strict=True):
                away = torch.hypot(axis[None, :] - x, axis[:, None] - y)
                picture.lerp_(colour[:, None, None], cover(away - 3 * size / 128))
    return pictures


def _points(thing: Thing) -> Tensor:
    origin = torch.zeros(1, 1, 1)
    figure = built(thing.identity.kind, origin, origin, [thing.identity])
    places: list[Place] = [figure.head, figure.eyes, figure.neck]
    local = [(0.0, 0.0), (0.0, FEET[thing.identity.kind]), *((float(x), float(y)) for x, y, _ in places)]
    half, sign = thing.size / 2, -1.0 if thing.flipped else 1.0
    return torch.tensor([(thing.x + sign * x * half, thing.y + y * half) for x, y in local])


def _sitter_points(sitter: Sitter) -> Tensor:
    known, half = skeleton.joints(sitter), sitter.size / 2
    (rx, ry), (lx, ly) = known["right eye"], known["left eye"]
    head = (known["head"][0], known["head"][1] - skeleton.HEAD)
    local = [(0.0, 0.0), (0.0, FOOT), head, ((rx + lx) / 2, (ry + ly) / 2), known["neck"]]
    return torch.tensor([(sitter.x + x * half, sitter.y + y * half) for x, y in local])
