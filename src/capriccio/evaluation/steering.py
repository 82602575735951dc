"""Does a picture keep to its control picture? Edges, silhouette and place of held-out scenes, read from its pixels.

>>> from capriccio.evaluation.steering import kept, paint_along
>>> pictures = paint_along(studio, graphs, "depth", scale=1.0)
>>> kept("depth", to_pixels(pictures), graphs).mean()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from capriccio.evaluation.metrics import to_pixels
from capriccio.evaluation.regions import paint_graphs
from capriccio.evaluation.targets import scenes
from capriccio.perception.reader import read
from capriccio.scene import Control
from capriccio.studio import Studio
from capriccio.training.trainer import Row
from capriccio.world.controls import control_pictures, edges
from capriccio.world.draw import draw
from capriccio.world.graph import SceneGraph

Told = Callable[[int], object]
NEAR = 2
"""Pixels that an edge may lie beside the line that asks for it."""


def on_the_lines(pixels: Tensor, graphs: Sequence[SceneGraph]) -> Tensor:
    """Return which share of the strongest edges lies on the lines of the control picture, (B,) in [0, 1].

    The strongest are as many as the lines have pixels, so a picture full of edges gains nothing.

    Args:
        pixels: (B, 3, H, W) in [-1, 1].
        graphs: B scenes whose edges were asked for.
    """
    lines = (edges(draw(graphs, pixels.shape[-1])) > 0.5).float()
    near = F.max_pool2d(lines, 2 * NEAR + 1, 1, NEAR).flatten(1)
    strength = _steepness(pixels).flatten(1)
    counts = lines.flatten(1).sum(1).long()
    return torch.stack(
        [
            there[steep.topk(int(count)).indices].mean()
            for there, steep, count in zip(near, strength, counts, strict=True)
        ]
    )


def in_the_silhouette(pixels: Tensor, graphs: Sequence[SceneGraph]) -> Tensor:
    """Return how far the subject that is read covers the one that was asked for: intersection over union, (B,)."""
    wanted = F.adaptive_avg_pool2d(draw(graphs).subjects.any(1, keepdim=True).float(), 32)[:, 0] > 0.5
    found = read(pixels).mask > 0.5
    return (wanted & found).flatten(1).sum(1) / (wanted | found).flatten(1).sum(1).clamp_min(1)


def in_its_place(pixels: Tensor, graphs: Sequence[SceneGraph]) -> Tensor:
    """Return how far the box of the subject that is read covers that of the one asked for: over their union, (B,)."""
    wanted = torch.stack([_box(mask) for mask in draw(graphs).subjects.any(1)])
    found = read(pixels).box
    inside = torch.minimum(wanted[:, 2:], found[:, 2:]) - torch.maximum(wanted[:, :2], found[:, :2])
    both = inside.clamp_min(0).prod(1)
    return both / ((wanted[:, 2:] - wanted[:, :2]).prod(1) + (found[:, 2:] - found[:, :2]).prod(1) - both)


KEPT = {"canny": on_the_lines, "depth": in_the_silhouette, "pose": in_its_place}
"""What is read of pictures that were painted along each kind of control picture."""


def kept(kind: str, pixels: Tensor, graphs: Sequence[SceneGraph]) -> Tensor:
    """Return how well pictures keep to control pictures of a kind, (B,) in [0, 1].

    Args:
        kind: One of ``KEPT``.
        pixels: (B, 3, H, W) in [-1, 1].
        graphs: What the control pictures were drawn from.
    """
    return KEPT[kind](pixels, graphs)


def paint_along(
    studio: Studio,
    graphs: Sequence[SceneGraph],
    kind: str,
    scale: float,
    regional: bool = False,
    told: Told = lambda pictures: None,
) -> list[Image.Image]:
    """Paint scenes from their captions along their own control pictures; seeds are their numbers.

    Args:
        studio: Of a model with a ControlNet called ``union``.
        graphs: What to paint.
        kind: Of control picture.
        scale: The ``controlnet_conditioning_scale``.
        regional: Whether every thing has a region as well.
        told: Is told how many pictures were finished.
    """
    shown = (control_pictures(kind, graphs) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    controls = [
        Control(Image.fromarray(hint), "union", mode=kind, controlnet_conditioning_scale=scale) for hint in shown
    ]
    return paint_graphs(studio, graphs, regional, told=told, beside=controls)


def rows(studio: Studio, count: int = 32) -> list[Row]:
    """Return how well control pictures of each kind are kept; floors are pictures without them, aims true renders."""
    graphs, found = scenes(count, seed=9), []
    drawn = draw(graphs).pixels
    free = to_pixels(paint_along(studio, graphs, "canny", 0.0))
    for kind in KEPT:
        steered = to_pixels(paint_along(studio, graphs, kind, 1.0))
        value, floor, aim = (float(kept(kind, pixels, graphs).mean()) for pixels in (steered, free, drawn))
        found.append(Row(f"{kind}_kept", value, floor, aim))
    return found


def _steepness(pixels: Tensor) -> Tensor:
    """Length of the gradient over all colours together, (B, H, W), of the picture without its finest grain."""
    smooth = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    padded = F.pad(smooth, (1, 1, 1, 1), mode="replicate")
    across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    return (across.square() + down.square()).sum(1).sqrt()


def _box(mask: Tensor) -> Tensor:
    """Left, top, right and bottom of a mask (H, W), as fractions."""
    rows, columns = (torch.where(mask.any(dim))[0] for dim in (1, 0))
    height, width = mask.shape
    return torch.stack([columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height])
