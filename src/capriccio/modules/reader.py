"""The reader: a small network that says what a picture of the world shows, and who.

It finds the subject first (a mask, and for every cell which colour is painted there and what kind of thing it belongs
to), then looks at the picture through that mask.
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

SIZE = 128
MAP = 32
"""Side of the maps of mask and inks: one cell for 4 x 4 pixels."""


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


class Reader(nn.Module):
    """Reads pictures of one subject.

    Args:
        widths: Channels at a quarter, an eighth and a sixteenth of the picture's side.
        identity: Length of the identity embedding.
    """

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 128), identity: int = 64) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.fine = nn.Sequential(Convolution(3, fine, 7, stride=4), Residual(fine))
        self.middle = nn.Sequential(Convolution(fine, middle, 3, stride=2), Residual(middle))
        self.coarse = nn.Sequential(
            Convolution(middle, coarse, 3, stride=2),
            Residual(coarse),
            Residual(coarse),
            nn.GroupNorm(8, coarse),
            nn.SiLU(),
        )
        self.from_middle, self.from_coarse = Convolution(middle, coarse, 1), Convolution(coarse, coarse, 1)
        self.from_fine, self.to_fine = Convolution(fine, middle, 1), Convolution(coarse, middle, 1)
        self.features = nn.Sequential(nn.GroupNorm(8, coarse), nn.SiLU())
        self.details = nn.Sequential(nn.GroupNorm(8, middle), nn.SiLU())
        self.cells = Convolution(middle, 1 + len(COLOURS) + len(KINDS), 1)
        seen = 3 * coarse + len(COLOURS) + len(KINDS)
        self.mind = nn.Sequential(nn.LayerNorm(seen), nn.Linear(seen, 256), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(256, len(names)) for name, names in CLASSES.items()})
        self.identity = nn.Sequential(nn.LayerNorm(seen), nn.Linear(seen, 256), nn.SiLU(), nn.Linear(256, identity))
        self.box = nn.Linear(2 * MAP, 4)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Read pictures.

        Args:
            pixels: (B, 3, 128, 128) in [-1, 1].

        Returns:
            Logits (B, classes) for each name of ``CLASSES``. For each cell of the subject: ``"mask"`` (B, 32, 32),
            ``"inks"`` (B, colours, 32, 32) and ``"kinds"`` (B, kinds, 32, 32). ``"box"`` (B, 4): left, top, right and
            bottom as fractions. ``"identity"`` (B, 64) of unit length.
        """
        fine = self.fine(pixels)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        features = self.features(self.from_middle(middle) + _twice(self.from_coarse(coarse)))
        details = self.details(self.from_fine(fine) + _twice(self.to_fine(features)))
        mask, inks, kinds = self.cells(details).split([1, len(COLOURS), len(KINDS)], dim=1)
        presence = mask.sigmoid()
        seen = torch.cat(
            [
                _weighted_mean(features, F.avg_pool2d(presence, 2)),
                _weighted_mean(torch.cat([inks.softmax(dim=1), kinds.softmax(dim=1)], dim=1), presence),
                coarse.mean(dim=(2, 3)),
                coarse.amax(dim=(2, 3)),
            ],
            dim=1,
        )
        thought = self.mind(seen)
        return {
            **{name: head(thought) for name, head in self.heads.items()},
            "mask": mask[:, 0],
            "inks": inks,
            "kinds": kinds,
            "box": self.box(torch.cat([presence.amax(2), presence.amax(3)], dim=2)[:, 0]),
            "identity": F.normalize(self.identity(seen), dim=1),
        }


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3)).clamp_min(1e-3)
