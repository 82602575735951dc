"""The reader: a small network that says what a picture of the world shows, and who.

It glances at the whole picture for the place, the style, and where the subject is; then it looks closely at the
subject alone, cut out and brought to one size, which is what makes it learn shapes from few pictures.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capriccio.world.graph import ACCESSORIES, BACKDROPS, COLOURS, KINDS, PATTERNS, STYLES

CLASSES: Mapping[str, tuple[str, ...]] = {
    "kind": KINDS,
    "main": tuple(COLOURS),
    "accent": tuple(COLOURS),
    "pattern": PATTERNS,
    "backdrop": BACKDROPS,
    "style": STYLES,
    "accessory": ("none", *ACCESSORIES),
}
"""What the reader names, and the names in the order of its logits."""

PLACE = frozenset({"backdrop", "style"})
"""What belongs to the whole picture; all else belongs to the subject."""

SIZE = 128
MAP = 32
"""Side of the maps of mask and inks: one cell for 4 x 4 pixels."""
CLOSE = 64
"""Side of the close view of the subject in pixels."""


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
        widths: Channels of the three stages of either look.
        identity: Length of the identity embedding.
    """

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 128), identity: int = 64) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.glance = nn.ModuleList([Stage(3, fine, 7, 4), Stage(fine, middle), Stage(middle, coarse)])
        self.across = nn.ModuleList([Convolution(width, middle, 1) for width in widths])
        self.cells = nn.Sequential(nn.GroupNorm(8, middle), nn.SiLU(), Convolution(middle, 1 + len(COLOURS), 1))
        self.close = nn.Sequential(
            Convolution(3, fine, 5, 2),
            nn.SiLU(),
            Stage(fine, middle),
            Stage(middle, coarse),
            Convolution(coarse, middle, 3, 2),
        )
        place, subject = 2 * coarse, 16 * middle + len(COLOURS)
        self.mind = nn.ModuleDict(
            {"place": _thought(place), "subject": _thought(subject), "identity": _thought(subject)}
        )
        self.heads = nn.ModuleDict({name: nn.Linear(256, len(names)) for name, names in CLASSES.items()})
        self.embed = nn.Linear(256, identity)

    def forward(self, pixels: Tensor, box: Tensor | None = None) -> dict[str, Tensor]:
        """Read pictures.

        Args:
            pixels: (B, 3, 128, 128) in [-1, 1].
            box: Where to look closely, (B, 4) as fractions; where the mask is, if not given.

        Returns:
            Logits (B, classes) for each name of ``CLASSES``; ``"mask"`` logits (B, 32, 32) of the subject and
            ``"inks"`` (B, colours, 32, 32) of what is painted on it; ``"box"`` (B, 4): left, top, right and bottom of
            the mask as fractions; ``"identity"`` (B, 64) of unit length.
        """
        place, cells = self._glance(pixels)
        mask, inks = cells[:, 0], cells[:, 1:]
        found = bounds(mask > 0)
        close = self.close(close_up(pixels, found if box is None else box)).flatten(1)
        subject = torch.cat([close, _mean_over(inks.softmax(dim=1), mask.sigmoid())], dim=1)
        thoughts = {"place": self.mind["place"](place), "subject": self.mind["subject"](subject)}
        return {
            **{name: head(thoughts["place" if name in PLACE else "subject"]) for name, head in self.heads.items()},
            "mask": mask,
            "inks": inks,
            "box": found,
            "identity": F.normalize(self.embed(self.mind["identity"](subject)), dim=1),
        }

    def _glance(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The place as a vector (B, 2 * coarse), and the cells (B, 1 + colours, 32, 32)."""
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


def close_up(pixels: Tensor, box: Tensor) -> Tensor:
    """Cut squares round boxes (B, 4), a tenth wider than their longer sides, out of pixels: (B, 3, 64, 64)."""
    centre = box[:, :2] + box[:, 2:] - 1  # in [-1, 1]
    half = 1.1 * (box[:, 2:] - box[:, :2]).amax(1)
    affine = torch.cat([torch.eye(2, device=box.device) * half[:, None, None], centre[:, :, None]], dim=2)
    grid = F.affine_grid(affine, [len(pixels), 3, CLOSE, CLOSE], align_corners=False)
    return F.grid_sample(pixels, grid.to(pixels.dtype), padding_mode="border", align_corners=False)


def _thought(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, 256), nn.SiLU())


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _mean_over(x: Tensor, weight: Tensor) -> Tensor:
    """The mean (B, C) of x (B, C, H, W) by weights (B, H, W)."""
    return (x * weight[:, None]).sum(dim=(2, 3)) / weight.sum(dim=(1, 2)).clamp_min(1e-3)[:, None]
