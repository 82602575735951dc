"""A picture of sitters that grows stroke by stroke: paint, print, light and classes, from back to front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capriccio.world.bodies import Coordinates
from capriccio.world.garments import laid, scale
from capriccio.world.graph import Garment
from capriccio.world.inks import INKS, cover, palette, pattern
from capriccio.world.windows import Frame, Windows, contact, differences, halo, light

Window = tuple[slice, slice]
"""Rows and columns of a part of the windows of several sitters."""


@dataclass(frozen=True)
class Cloth:
    """Whose garments a stroke belongs to, where its points lie on the mannequin, and whether the print shows on it."""

    garments: Sequence[Garment | None]
    origin: Coordinates
    printed: bool

    def rows(self) -> list[int]:
        """Whose garments show a pattern."""
        return [row for row, one in enumerate(self.garments) if self.printed and one and one.pattern != "plain"]

    def shown(self, row: int, half: Tensor) -> Tensor:
        """How much of the accent shows on one garment, (h, w): the print of the flat view, wherever it has gone.

        Args:
            row: Whose garment.
            half: Half heights of the figures in pixels, (n, 1, 1).
        """
        garment = self.garments[row]
        if garment is None:
            raise ValueError("nothing is worn here")
        side = half[row] * scale(garment.kind)
        x, y = laid(garment.kind, (self.origin[0][row], self.origin[1][row]))
        return pattern((x * side)[None], (y * side)[None], [garment], 2 * side[None])[0]


@dataclass(frozen=True)
class Stroke:
    """One part of ``n`` sitters: its distance in half heights, its paint, its classes."""

    distance: Tensor
    relief: float
    inks: Sequence[str]
    """Names of ``INKS``."""
    parts: Sequence[int]
    """Classes of the part map."""
    cloth: Cloth | None = None


class Coat:
    """A picture of sitters that grows stroke by stroke, from back to front."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.nearest = torch.full_like(frame.x, 1e3)
        self.lean_x, self.lean_y, self.laid = (torch.zeros_like(frame.x) for _ in range(3))
        self.colours = palette(frame.x.device)
        self.colour = frame.x.new_zeros(len(frame.x), 3, *frame.x.shape[1:])
        # Which stroke is seen: a column of the tables below, of which the first stands for nothing.
        self.seen = torch.zeros_like(frame.x, dtype=torch.uint8)
        self.parts: list[Sequence[int]] = [[0] * len(frame.x)]
        self.inks: list[Sequence[int]] = [[0] * len(frame.x)]

    def over(self, stroke: Stroke, window: Window) -> None:
        """Lay one stroke over the earlier ones."""
        where = (slice(None), *window)
        pixels = stroke.distance * self.frame.half
        covered = cover(pixels)
        self.nearest[where] = torch.minimum(self.nearest[where], pixels)
        if stroke.relief > 0:
            curve = pixels.div(stroke.relief * self.frame.half).add_(1).clamp_(0, 1).mul_(0.5)
            along_x, along_y = differences(pixels)
            along_y[:, -1] = along_y[:, -2]  # a bust runs on below the picture
            self.lean_x[where].lerp_(along_x.mul_(curve), covered)
            self.lean_y[where].lerp_(along_y.mul_(curve), covered)
        self.laid[where].lerp_(covered.new_ones(()), covered)
        solid = pixels < 0
        self.seen[where].masked_fill_(solid, len(self.parts))
        self.parts.append(stroke.parts)
        self._paint(stroke, where, covered, solid)

    def windows(self, foot: float | None, grounded: Sequence[bool]) -> Windows:
        """The picture, lit; ``foot`` is where a contact shadow falls, if one does."""
        frame = self.frame
        # Colours have been mixed into nothing: what is half covered shows half of them.
        flat = self.colour / self.laid.clamp_min(1e-3)[:, None]
        lean_x, lean_y = soften(self.lean_x), soften(self.lean_y)
        dark = halo(self.nearest)
        if foot is not None:
            torch.maximum(dark, contact(frame.x * 1.5, frame.y, foot), out=dark)
        return Windows(
            frame.left,
            frame.top,
            light(flat, lean_x, lean_y, frame.y),
            flat,
            cover(self.nearest)[:, None],
            (1 - dark * frame.x.new_tensor(grounded)[:, None, None])[:, None],
            self._looked_up(self.parts),
            self._looked_up(self.inks),
            (1 - lean_x.square() - lean_y.square()).clamp_(0, 1).sqrt_(),
        )

    def _paint(self, stroke: Stroke, where: tuple[slice, ...], covered: Tensor, solid: Tensor) -> None:
        inks = [INKS.index(name) for name in stroke.inks]
        picture = self.colour[(where[0], *where)]
        picture.lerp_(self.colours[inks][:, :, None, None], covered[:, None])
        self.inks.append([ink + 1 for ink in inks])
        if stroke.cloth is None or not stroke.cloth.rows():
            return
        accents = [INKS.index(one.accent) if one else 0 for one in stroke.cloth.garments]
        for row in stroke.cloth.rows():
            shown = stroke.cloth.shown(row, self.frame.half)
            change = (self.colours[accents[row]] - self.colours[inks[row]])[:, None, None]
            picture[row].addcmul_(change, shown * covered[row])
            self.seen[where][row].masked_fill_(solid[row] & (shown > 0.5), len(self.parts))
        self.parts.append(stroke.parts)
        self.inks.append([ink + 1 for ink in accents])

    def _looked_up(self, table: Sequence[Sequence[int]]) -> Tensor:
        columns = torch.tensor(table, dtype=torch.float32, device=self.seen.device).T
        return columns.gather(1, self.seen.flatten(1).long()).view(self.seen.shape)


def soften(field: Tensor) -> Tensor:
    """Blur (n, h, w) over three pixels, so that no glint flickers along an edge; the border stays."""
    across = field.clone()
    across[:, :, 1:-1] = (field[:, :, :-2] + field[:, :, 2:]).add_(field[:, :, 1:-1], alpha=2).mul_(0.25)
    down = across.clone()
    down[:, 1:-1] = (across[:, :-2] + across[:, 2:]).add_(across[:, 1:-1], alpha=2).mul_(0.25)
    return down
