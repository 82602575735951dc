"""Drawing scene graphs: batched signed distance functions with soft light, in plain torch.

Things of one kind are drawn together, whatever scene they belong to, each in a window round itself; then every window
is laid onto its scene from the farthest to the nearest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from capriccio.errors import CapriccioError
from capriccio.world import backdrops, styles
from capriccio.world.figures import draw_sitters
from capriccio.world.graph import KINDS, STUDIO, Panels, SceneGraph, Thing
from capriccio.world.inks import INKS
from capriccio.world.people import GARMENTS, Sitter
from capriccio.world.windows import NUM_PARTS, Windows, draw_kind

__all__ = ["NUM_INKS", "NUM_PARTS", "Drawing", "draw", "draw_panels"]

NUM_INKS = 1 + len(INKS)
"""Classes of the ink map: background, each colour, each tone of people."""


@dataclass(frozen=True)
class Drawing:
    """Pictures and their truth."""

    pixels: Tensor
    """(B, 3, H, W) float in [-1, 1]."""
    subjects: Tensor
    """(B, N, H, W) bool: the visible pixels of each subject of the cast, accessory included, in paint order."""
    parts: Tensor
    """(B, H, W) int64: 0 background, 1 + 2k body and 2 + 2k accent part of kind k, then the accessory; parts of people
    (``windows.body_part``) and garments (``windows.garment_part``) after it."""
    inks: Tensor
    """(B, H, W) int64: 0 background, else 1 + index of the ink (``inks.INKS``) painted there, pattern included."""
    depth: Tensor
    """(B, H, W) float in [0, 1]: nearness, 0 is infinitely far."""

    def rows(self, which: slice | Sequence[int]) -> Drawing:
        """Some of the pictures with their truth."""
        return Drawing(*(getattr(self, field.name)[which] for field in fields(self)))


@torch.no_grad()
def draw(scenes: Sequence[SceneGraph], size: int = 128, device: torch.device | str = "cpu") -> Drawing:
    """Draw scenes with all their truth.

    Args:
        scenes: One or more scene graphs.
        size: Side of the pictures in pixels.
        device: Where to draw.

    Raises:
        CapriccioError: If there is nothing to draw or the size is not positive.
    """
    if not scenes or size < 8:
        raise CapriccioError(f"Received {len(scenes)} scenes at {size} px: give at least one scene and 8 px or more.")
    ground = backdrops.paint([scene.backdrop for scene in scenes], size, device)
    sheets = _Sheets.blank(scenes, ground)
    pieces: dict[tuple[int, int], list[tuple[Windows, int]]] = {}
    for place, windows, at in _windows(scenes, size, device):
        pieces.setdefault(place, []).append((windows, at))
    for row, scene in enumerate(scenes):
        for index in range(len(scene.cast)):
            for windows, at in pieces[row, index]:
                sheets.lay(row, index, len(scene.cast), windows, at)
    pixels = _styled(scenes, sheets).mul_(2).sub_(1)
    return Drawing(pixels, sheets.subjects, sheets.parts.long(), sheets.inks.long(), sheets.depth)


def draw_panels(panels: Panels | Sequence[Panels], size: int = 128, device: torch.device | str = "cpu") -> Drawing:
    """Draw panels as one wide picture each, ``columns * size`` by ``rows * size``.

    Args:
        panels: One grid or several of the same form.
        size: Side of a panel in pixels.
        device: Where to draw.

    Raises:
        CapriccioError: If the grids differ in form.
    """
    grids = [panels] if isinstance(panels, Panels) else list(panels)
    forms = {(grid.rows, grid.columns) for grid in grids}
    if len(forms) != 1:
        raise CapriccioError(f"Received panels of {len(forms)} forms: draw grids of one form at a time.")
    rows, columns = forms.pop()
    drawing = draw([scene for grid in grids for scene in grid.scenes], size, device)
    return Drawing(*(_tile(getattr(drawing, field.name), rows, columns) for field in fields(Drawing)))


def _tile(cells: Tensor, rows: int, columns: int) -> Tensor:
    """(B * rows * columns, ..., H, W) -> (B, ..., rows * H, columns * W)."""
    *middle, height, width = cells.shape[1:]
    split = cells.reshape(-1, rows, columns, *middle, height, width)
    rank = len(middle)
    order = (0, *range(3, 3 + rank), 1, 3 + rank, 2, 4 + rank)
    return split.permute(order).reshape(-1, *middle, rows * height, columns * width)


@dataclass
class _Sheets:
    """Pictures under way."""

    lit: Tensor
    flat: Tensor
    cover: Tensor
    subjects: Tensor
    parts: Tensor
    inks: Tensor
    depth: Tensor

    @classmethod
    def blank(cls, scenes: Sequence[SceneGraph], ground: Tensor) -> _Sheets:
        count, _, height, width = ground.shape
        things = max(len(scene.cast) for scene in scenes)
        near = backdrops.nearness([scene.backdrop for scene in scenes], height, ground.device)
        empty = ground.new_zeros(count, height, width)
        return cls(
            lit=ground,
            flat=ground.clone(),
            cover=ground.new_zeros(count, 1, height, width),
            subjects=ground.new_zeros(count, things, height, width, dtype=torch.bool),
            parts=empty,
            inks=empty.clone(),
            depth=near.expand(count, height, width).clone(),
        )

    def lay(self, row: int, index: int, things: int, one: Windows, at: int) -> None:
        """Lay one window onto its scene, in front of what is there."""
        height, width = one.cover.shape[2:]
        window = (slice(one.top[at], one.top[at] + height), slice(one.left[at], one.left[at] + width))
        every = (row, slice(None), *window)
        self.lit[every].mul_(one.shade[at]).lerp_(one.colour[at], one.cover[at])
        self.flat[every].lerp_(one.flat[at], one.cover[at])
        covered = self.cover[every]
        torch.maximum(covered, one.cover[at], out=covered)
        solid = one.cover[at, 0] > 0.5
        self.subjects[every] &= ~solid
        self.subjects[(row, index, *window)] |= solid
        near = 0.55 + 0.4 * (index + 1) / things + 0.05 * one.relief[at]
        mask = solid.to(near)
        for sheet, value in ((self.parts, one.parts[at]), (self.inks, one.inks[at]), (self.depth, near)):
            sheet[(row, *window)].lerp_(value, mask)


def _styled(scenes: Sequence[SceneGraph], sheets: _Sheets) -> Tensor:
    picture = sheets.lit
    for style in dict.fromkeys(scene.style for scene in scenes):
        if style != "shaded":
            rows = [row for row, scene in enumerate(scenes) if scene.style == style]
            layers = styles.Layers(sheets.lit[rows], sheets.flat[rows], sheets.cover[rows])
            picture[rows] = styles.render(style, layers)
    return picture.clamp_(0, 1)


def _windows(
    scenes: Sequence[SceneGraph], size: int, device: torch.device | str
) -> Iterator[tuple[tuple[int, int], Windows, int]]:
    """Draw every subject; yields ((scene, subject), windows, place in them), the back windows of a subject first."""
    cast = [((row, index), one) for row, scene in enumerate(scenes) for index, one in enumerate(scene.cast)]
    grounded = [scene.backdrop.kind != STUDIO for scene in scenes]
    for kind in (*KINDS, *GARMENTS):
        members = [(place, one) for place, one in cast if isinstance(one, Thing) and one.identity.kind == kind]
        if members:
            things = [thing for _, thing in members]
            drawn = draw_kind(kind, things, [grounded[row] for (row, _), _ in members], size, device)
            yield from ((place, drawn, at) for at, (place, _) in enumerate(members))
    people = [(place, one) for place, one in cast if isinstance(one, Sitter)]
    for row, windows, at in draw_sitters(
        [one for _, one in people], [grounded[place[0]] for place, _ in people], size, device
    ):
        yield people[row][0], windows, at
