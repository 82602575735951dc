"""The canvas: panels, boxes, masks, the grid of image tokens, and the rules that hold latents while sampling.

Masks are boolean arrays (height, width) in pixels; boxes are whole pixels; tokens are counted row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageChops
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from capriccio.errors import CapriccioError, nearest

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels, from its left upper corner."""

    left: int
    top: int
    width: int
    height: int

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom, as Pillow takes them."""
        return self.left, self.top, self.left + self.width, self.top + self.height

    def inner(self, width: int, height: int) -> Box:
        """Return the box of this size in the middle."""
        return Box(self.left + (self.width - width) // 2, self.top + (self.height - height) // 2, width, height)

    def __str__(self) -> str:
        return f"{self.width} x {self.height} at ({self.left}, {self.top})"


@dataclass(frozen=True)
class Canvas:
    """What is painted at once: one picture, or several panels side by side.

    Attributes:
        width: Pixels.
        height: Pixels.
        token: Pixels a side of one image token.
        panels: Name and box of each panel; none for a plain picture.
    """

    width: int
    height: int
    token: int
    panels: tuple[tuple[str, Box], ...] = ()

    def __post_init__(self) -> None:
        check_size(self.width, self.height, self.token)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return self.height // self.token, self.width // self.token

    @property
    def num_tokens(self) -> int:
        """Number of image tokens."""
        return self.grid[0] * self.grid[1]

    def panel(self, name: str) -> Box:
        """Return the box of a panel."""
        boxes = dict(self.panels)
        if name not in boxes:
            raise CapriccioError(f"the canvas has no panel {name!r}; {nearest(name, boxes)}")
        return boxes[name]

    def mask(self, box: Box) -> Mask:
        """Return the mask (height, width) of a box."""
        mask = np.zeros((self.height, self.width), bool)
        left, top, right, bottom = box.corners
        mask[top:bottom, left:right] = True
        return mask

    def tokens(self, mask: Mask) -> Mask:
        """Return which tokens (rows * columns,) a mask covers: more than half, or the best covered one if none is."""
        return rasterise(mask, self.token)

    def __str__(self) -> str:
        rows, columns = self.grid
        panels = "".join(f"; {name} {box}" for name, box in self.panels)
        return f"{self.width} x {self.height} px, {columns} x {rows} = {self.num_tokens} tokens{panels}"


def rasterise(mask: Mask, cell: int) -> Mask:
    """Return which square cells a mask covers, row by row: more than half, or the best covered one if none is.

    Args:
        mask: (height, width) in pixels.
        cell: Pixels a side; cells at the right and lower border may be cut off, and count what is left of them.
    """
    shares = coverage(mask, cell)
    chosen = shares > 0.5
    return chosen if chosen.any() or not mask.any() else shares == shares.max()


def coverage(mask: Mask, cell: int) -> NDArray[np.float64]:
    """Return how much of each square cell a mask covers, row by row, 0 to 1; arguments are those of `rasterise`."""
    padding = [(0, -side % cell) for side in mask.shape]
    inside, there = (np.pad(pixels, padding) for pixels in (mask, np.ones_like(mask)))
    rows, columns = (side // cell for side in inside.shape)
    covered, area = (
        pixels.reshape(rows, cell, columns, cell).sum(axis=(1, 3)).reshape(-1) for pixels in (inside, there)
    )
    return covered / area


def side_by_side(names: tuple[str, ...], width: int, height: int, token: int) -> Canvas:
    """Return a canvas of panels of equal size (pixels) in one row."""
    panels = tuple((name, Box(i * width, 0, width, height)) for i, name in enumerate(names))
    return Canvas(len(names) * width, height, token, panels)


def cut_out(picture: Image.Image, inner: Box, panel: Box, spoiled: int) -> Image.Image:
    """Cut a box out of a panel; what neighbours of the panel spoil repeats the nearest pixels that they do not.

    Args:
        picture: The whole canvas, whose own border spoils nothing.
        inner: What is cut out.
        panel: The panel that it lies in.
        spoiled: Pixels at the border of a panel that show something of its neighbour.
    """
    borders = zip(inner.corners, panel.corners, (0, 0, *picture.size), strict=True)
    left, top, right, bottom = (
        max(0, spoiled - abs(side - end)) if end != border else 0 for side, end, border in borders
    )
    x0, y0, x1, y1 = inner.corners
    clean = np.asarray(picture.crop((x0 + left, y0 + top, x1 - right, y1 - bottom)))
    return Image.fromarray(np.pad(clean, ((top, bottom), (left, right), (0, 0)), mode="edge"))


def check_size(width: int, height: int, token: int) -> None:
    """Check that a picture is made of whole tokens.

    Raises:
        CapriccioError: With the nearest sizes that are.
    """
    if width > 0 and height > 0 and width % token == 0 and height % token == 0:
        return
    down = [max(token, side // token * token) for side in (width, height)]
    up = [max(token, ceil(side / token) * token) for side in (width, height)]
    raise CapriccioError(
        f"The size {width} x {height} is not made of whole tokens of {token} x {token} pixels; "
        f"the nearest sizes that are: {down[0]} x {down[1]} and {up[0]} x {up[1]}."
    )


def window(mask: Mask, zoom: float, shape: tuple[int, int], least: int = 0) -> Box:
    """Return the box around a mask to be painted by itself, enlarged (the zoom-in of LAR-Gen, arXiv 2403.19534).

    Args:
        mask: (height, width), true somewhere.
        zoom: Size of the box in sizes of what is masked, at least 1.
        shape: Width and height of the canvas; the box grows to their ratio.
        least: Pixels a side at least.

    Returns:
        A box inside the picture that holds the mask and a rim of it: moved, where it would reach beyond the picture,
        and cut where it is larger.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    width, height = (max(zoom * (places[-1] + 1 - places[0]), least) for places in (columns, rows))
    width, height = max(width, height * shape[0] / shape[1]), max(height, width * shape[1] / shape[0])
    (left, across), (top, down) = (
        _side(places, length, side)
        for places, length, side in ((columns, width, mask.shape[1]), (rows, height, mask.shape[0]))
    )
    return Box(left, top, across, down)


def _side(places: NDArray[np.intp], length: float, side: int) -> tuple[int, int]:
    """Return where one side of a window starts, and its length."""
    rim = int(places[-1] + 1 - places[0]) + 2  # a window of nothing but mask would show nothing to go by
    whole = min(max(round(length), rim), side)
    start = round((places[0] + places[-1] + 1 - whole) / 2)
    return min(max(start, 0), side - whole), whole


def size_like(width: int, height: int, area: int, token: int) -> tuple[int, int]:
    """Return the size of whole tokens nearest to a picture's shape, of about ``area`` pixels."""
    scale = sqrt(area / (width * height))
    return tuple(max(token, round(side * scale / token) * token) for side in (width, height))  # type: ignore[return-value]


def on_colour(picture: Image.Image, mask: Image.Image, colour: str = "white") -> Image.Image:
    """Return the picture where the mask (``"L"``) is white, on a plain colour elsewhere."""
    plain = Image.new("RGB", picture.size, colour)
    return Image.composite(picture.convert("RGB"), plain, mask.convert("L"))


def lay(canvas: Canvas, pictures: dict[str, Image.Image], colour: str = "black") -> Image.Image:
    """Lay pictures of the panels' sizes on the canvas."""
    laid = Image.new("RGB", (canvas.width, canvas.height), colour)
    for name, picture in pictures.items():
        laid.paste(picture.convert("RGB"), canvas.panel(name).corners)
    return laid


def opaque(picture: Image.Image) -> Image.Image:
    """Return a picture as RGB, on white where it is transparent."""
    return on_colour(picture, picture.getchannel("A")) if picture.mode == "RGBA" else picture.convert("RGB")


def paste_back(
    painted: Image.Image, picture: Image.Image, mask: Image.Image, box: tuple[int, int, int, int]
) -> Image.Image:
    """Return the picture with what was painted where the mask is white; every other pixel stays as it was.

    Args:
        painted: The picture in the size that was painted, changed.
        picture: As it was given.
        mask: Of the picture's size, mode ``"L"``.
        box: Where the picture lay when it was fitted: left, top, right, bottom in pixels of ``painted``.
    """
    place = (-box[0], -box[1])
    whole, seen = (Image.new(mode, (box[2] - box[0], box[3] - box[1])) for mode in ("RGB", "L"))
    whole.paste(painted, place)
    seen.paste(255, (*place, place[0] + painted.width, place[1] + painted.height))
    if whole.size != picture.size:
        whole = whole.resize(picture.size, Image.Resampling.LANCZOS)
        seen = seen.resize(picture.size, Image.Resampling.NEAREST)
    return Image.composite(whole, picture, ImageChops.darker(mask, seen))


def softened(mask: Image.Image, feather: int) -> Image.Image:
    """Return a mask whose white fades to black over so many pixels inside its border; black stays black.

    Args:
        mask: White (255) and black (0), mode ``"L"``.
        feather: Pixels; 0 returns the mask as it is. The border of the picture is no border of the mask.
    """
    white = np.asarray(mask) > 127
    if not feather or white.all():
        return mask
    # A pixel at the border is one pixel away from the nearest black one.
    share = np.minimum(distance_transform_edt(white) / (feather + 1), 1)
    return Image.fromarray((share * 255).round().astype(np.uint8))


def to_pixels(picture: Image.Image) -> Tensor:
    """Turn an RGB picture into pixels (1, 3, H, W) in [-1, 1]."""
    array = np.asarray(picture.convert("RGB"), np.float32) / 127.5 - 1
    return torch.from_numpy(array).permute(2, 0, 1)[None].contiguous()


def latent_cells(mask: Tensor, factor: int) -> Tensor:
    """Return which latent cells (B, 1, H/f, W/f) a pixel mask (B, 1, H, W) touches at all; values 0 and 1."""
    return max_pool2d(mask, factor)


def collage(latents: Tensor, cells: Sequence[Box], ratio: float, size: tuple[int, int]) -> Tensor:
    """Put pictures together: ``x = ratio x_base + (1 - ratio) x_cells``, where cells hold whole pictures, resized.

    Args:
        latents: (1 + cells, C, H, W): the base, then one for each cell, which together cover everything.
        cells: In pixels.
        ratio: Weight of the base.
        size: Width and height of the picture in pixels.

    Returns:
        (1, C, H, W).
    """
    base, *others = latents.split(1)
    together = base.clone()
    across, down = size[0] // base.shape[-1], size[1] // base.shape[-2]
    for box, whole in zip(cells, others, strict=True):
        left, top, right, bottom = box.corners
        cell = together[..., top // down : bottom // down, left // across : right // across]
        # the nearest latent, for a mean of several would take from the variance of the noise
        cell.copy_(interpolate(whole, size=cell.shape[-2:], mode="nearest-exact"))
    return ratio * base + (1 - ratio) * together


def hold(
    latents: Tensor, known: Tensor, noise: Tensor, keep: Tensor, sigma: Tensor, signal: Tensor | None = None
) -> Tensor:
    """Hold the known region on the path from its noise to its picture: ``x = keep (a z + s e) + (1 - keep) x``.

    Args:
        latents: Being painted, at noise level ``sigma``.
        known: Clean latents z of the same shape.
        noise: The noise e that the run started from, the same in every step.
        keep: 1 where known, 0 where painted.
        sigma: Noise level s; that of a flow is 0 to 1.
        signal: The factor a of the picture; that of a flow, 1 - s, by default.
    """
    path = (1 - sigma if signal is None else signal) * known + sigma * noise
    # A VAE gives channels last, diffusers decodes channels first, and the last bits depend on it.
    return torch.where(keep > 0.5, path.to(latents.dtype), latents).contiguous()
