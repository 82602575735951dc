"""Readers: small networks that say what a picture of the world shows, and who.

A reader glances at the whole picture for the place, the style, and where things are; then it looks closely at what it
has found, each part cut out and brought to one size, which is what makes it learn shapes from few pictures. One eye
does all the close looking. What a reader names, and from which look, is a declaration, ``Sight``: ``OBJECTS`` is that
of the reader of one object, ``people_reader.SIGHT`` that of its sister.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capriccio.world.graph import ACCESSORIES, BACKDROPS, COLOURS, KINDS, PATTERNS, STYLES

SIZE = 128
MAP = 32
"""Side of the maps of masks and inks: one cell for 4 x 4 pixels."""
CLOSE = 64
"""Side of a close view in pixels."""


@dataclass(frozen=True)
class Look:
    """A close look at one part of the picture, found by a mask of its own."""

    names: frozenset[str]
    """What is named from it."""
    reach: float = 1.1
    """Side of what it shows over the longer side of the part."""


@dataclass(frozen=True)
class Sight:
    """What a reader names and where it looks for it."""

    classes: Mapping[str, tuple[str, ...]]
    """What is named, and the names in the order of the logits."""
    looks: Mapping[str, Look]
    """Close looks, the first at the whole subject; what no look names belongs to the place and is told at a glance."""
    who: str
    """The look that tells one individual from another."""
    inks: tuple[str, ...]
    """What may be painted on the subject."""

    def look_of(self, name: str) -> str:
        """The look that names something, or ``"place"``."""
        return next((key for key, look in self.looks.items() if name in look.names), "place")


CLASSES: Mapping[str, tuple[str, ...]] = {
    "kind": KINDS,
    "main": tuple(COLOURS),
    "accent": tuple(COLOURS),
    "pattern": PATTERNS,
    "backdrop": BACKDROPS,
    "style": STYLES,
    "accessory": ("none", *ACCESSORIES),
}
"""What the reader of objects names, and the names in the order of its logits."""

OBJECTS = Sight(
    CLASSES,
    {"subject": Look(frozenset({"kind", "main", "accent", "pattern", "accessory"}))},
    who="subject",
    inks=tuple(COLOURS),
)
"""One object: all but the place is read from a close look at it."""


class Convolution(nn.Module):
    """A convolution whose kernel is kept as a matrix (outputs, inputs * side * side), so that Muon can train it."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int = 1) -> None:
        super().__init__()
        bound = (inputs * side * side) ** -0.5
        self.kernel = nn.Parameter(torch.empty(outputs, inputs * side * side).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.side, self.stride = side, stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        kernel = self.kernel.view(len(self.kernel), -1, self.side, self.side)
        return F.conv2d(x, kernel, self.bias, self.stride, self.side // 2)


class Residual(nn.Module):
    """Two 3 x 3 convolutions round which the input goes on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            Convolution(width, width, 3),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            Convolution(width, width, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) -> the same shape."""
        return x + self.layers(x)


class Stage(nn.Sequential):
    """Halve the side (or quarter it) with a convolution, then refine."""

    def __init__(self, inputs: int, outputs: int, side: int = 3, stride: int = 2) -> None:
        super().__init__(
            Convolution(inputs, outputs, side, stride), Residual(outputs), nn.GroupNorm(8, outputs), nn.SiLU()
        )


class Reader(nn.Module):
    """Reads pictures of one subject.

    Args:
        sight: What it names, and from which look.
        widths: Channels of the three stages of glance and close look.
        identity: Length of the identity embedding.
        thought: Length of what is thought of each look before it is named.
    """

    def __init__(
        self,
        sight: Sight = OBJECTS,
        widths: tuple[int, int, int] = (32, 64, 128),
        identity: int = 64,
        thought: int = 256,
    ) -> None:
        super().__init__()
        self.sight = sight
        fine, middle, coarse = widths
        self.glance = nn.ModuleList([Stage(3, fine, 7, 4), Stage(fine, middle), Stage(middle, coarse)])
        self.across = nn.ModuleList([Convolution(width, middle, 1) for width in widths])
        cells = len(sight.looks) + len(sight.inks)
        self.cells = nn.Sequential(nn.GroupNorm(8, middle), nn.SiLU(), Convolution(middle, cells, 1))
        self.close = nn.Sequential(
            Convolution(3, fine, 5, 2),
            nn.SiLU(),
            Stage(fine, middle),
            Stage(middle, coarse),
            Convolution(coarse, middle, 3, 2),
        )
        seen = 16 * middle + len(sight.inks)
        self.mind = nn.ModuleDict(
            {
                "place": _thought(2 * coarse, thought),
                **{name: _thought(seen, thought) for name in sight.looks},
                "identity": _thought(seen, thought),
            }
        )
        self.heads = nn.ModuleDict({name: nn.Linear(thought, len(names)) for name, names in sight.classes.items()})
        self.embed = nn.Linear(thought, identity)

    def forward(self, pixels: Tensor, box: Tensor | None = None) -> dict[str, Tensor]:
        """Read pictures. Where there is one look only, masks and boxes have no axis of looks.

        Args:
            pixels: (B, 3, 128, 128) in [-1, 1].
            box: Where to look closely, (B, looks, 4) as fractions; where the masks are, if not given.

        Returns:
            Logits (B, classes) for each name of the classes; ``"mask"`` logits (B, looks, 32, 32) of the parts that
            are looked at and ``"inks"`` (B, inks, 32, 32) of what is painted there; ``"box"`` (B, looks, 4): left,
            top, right and bottom of the masks as fractions; ``"identity"`` (B, 64) of unit length.
        """
        looks = len(self.sight.looks)
        place, cells = self._glance(pixels)
        masks, inks = cells[:, :looks], cells[:, looks:]
        found = torch.stack([bounds(mask > 0) for mask in masks.unbind(1)], dim=1)
        seen = self._look(pixels, found if box is None else box.view(-1, looks, 4), masks, inks)
        thoughts = {name: self.mind[name](what) for name, what in {"place": place, **seen}.items()}
        return {
            **{name: head(thoughts[self.sight.look_of(name)]) for name, head in self.heads.items()},
            "mask": masks.squeeze(1),
            "inks": inks,
            "box": found.squeeze(1),
            "identity": F.normalize(self.embed(self.mind["identity"](seen[self.sight.who])), dim=1),
        }

    def _look(self, pixels: Tensor, boxes: Tensor, masks: Tensor, inks: Tensor) -> dict[str, Tensor]:
        """What each close look sees, (B, 16 * middle + inks): shapes in its view, and what is painted in its mask."""
        looks = self.sight.looks
        views = [close_up(pixels, box, look.reach) for box, look in zip(boxes.unbind(1), looks.values(), strict=True)]
        shapes = self.close(torch.cat(views)).flatten(1).chunk(len(looks))
        paint = inks.softmax(dim=1)
        return {
            name: torch.cat([shape, _mean_over(paint, mask.sigmoid())], dim=1)
            for name, shape, mask in zip(looks, shapes, masks.unbind(1), strict=True)
        }

    def _glance(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The place as a vector (B, 2 * coarse), and the cells (B, looks + inks, 32, 32)."""
        seen = [pixels]
        for stage in self.glance:
            seen.append(stage(seen[-1]))
        fine, middle, coarse = (across(features) for across, features in zip(self.across, seen[1:], strict=True))
        place = torch.cat([seen[-1].mean(dim=(2, 3)), seen[-1].amax(dim=(2, 3))], dim=1)
        return place, self.cells(fine + _twice(middle + _twice(coarse)))


def bounds(mask: Tensor) -> Tensor:
    """Left, top, right and bottom (B, 4), of truth values (B, H, W), as fractions; everything if all are false."""
    sides = []
    for dim in (1, 2):
        shown = mask.any(dim)
        shown = shown | ~shown.any(1, keepdim=True)
        length = shown.shape[1]
        sides.append((shown.int().argmax(1) / length, 1 - shown.flip(1).int().argmax(1) / length))
    return torch.stack([sides[0][0], sides[1][0], sides[0][1], sides[1][1]], dim=1)


def close_up(pixels: Tensor, box: Tensor, reach: float = 1.1) -> Tensor:
    """Cut squares round boxes (B, 4), ``reach`` times as wide as their longer sides, out of pixels: (B, 3, 64, 64)."""
    centre = box[:, :2] + box[:, 2:] - 1  # in [-1, 1]
    half = reach * (box[:, 2:] - box[:, :2]).amax(1)
    affine = torch.cat([torch.eye(2, device=box.device) * half[:, None, None], centre[:, :, None]], dim=2)
    grid = F.affine_grid(affine, [len(pixels), 3, CLOSE, CLOSE], align_corners=False)
    return F.grid_sample(pixels, grid.to(pixels.dtype), padding_mode="border", align_corners=False)


def _thought(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, outputs), nn.SiLU())


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _mean_over(x: Tensor, weight: Tensor) -> Tensor:
    """The mean (B, C) of x (B, C, H, W) by weights (B, H, W)."""
    return (x * weight[:, None]).sum(dim=(2, 3)) / weight.sum(dim=(1, 2)).clamp_min(1e-3)[:, None]
