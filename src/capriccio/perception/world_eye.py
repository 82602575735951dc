"""Looking at the miniature's world, from pixels alone: what stands where, and what to call it.

The trained reader says about where things are; a minimal cut then finds their outlines, and each piece is read by
itself, once in its place with its neighbours painted over, once cut out on white. Things that touch are one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from capriccio.modules.reader import CLASSES, SIZE
from capriccio.perception.reader import load_reader, understand
from capriccio.perception.segment import Mask, Sighting, lab, minimal_cut
from capriccio.world.captions import identity_phrase, worn_phrase
from capriccio.world.graph import Identity, Thing
from capriccio.world.words import COLOURLESS

_SMOOTHNESS = 5.0
"""Cost of an edge of the cut where colours are equal, in logits of the reader."""
_SURE = 8.0
"""Logits beyond this count no more."""
_LEAST = 0.003
"""Share of the picture under which a piece is noise."""
_AROUND, _CLOSE = 1.75, 1.3
"""Sides of the two views in which a piece is read, its place and its cut-out, over its own longer side."""


@dataclass(frozen=True)
class Piece:
    """One connected thing of a picture, and what it was read as.

    Attributes:
        mask: (128, 128) truth values.
        box: Round them: left, top, right and bottom as fractions.
        identity: Its kind, colours and pattern; what no caption says is zero.
        accessory: What it wears, or nothing.
        score: The probability of its kind.
    """

    mask: Mask
    box: tuple[float, float, float, float]
    identity: Identity
    accessory: str | None
    score: float


@dataclass(frozen=True)
class View:
    """What was seen in a picture: where it is, how it is drawn, and what stands there."""

    backdrop: str
    style: str
    pieces: tuple[Piece, ...]


class WorldEye:
    """Tags, finds, outlines and describes things of the world; one look serves all questions on one picture."""

    def tags(self, image: Image.Image) -> list[str]:
        """Return the kinds of the things that are seen, and the place."""
        seen = look(image)
        return sorted({piece.identity.kind for piece in seen.pieces} | {seen.backdrop})

    def boxes(self, image: Image.Image, name: str) -> list[Sighting]:
        """Return where things of a kind are, with the probability of that kind."""
        pieces = [piece for piece in look(image).pieces if piece.identity.kind == name]
        return [Sighting(_on(image, piece.box), piece.score) for piece in pieces]

    def inside(self, image: Image.Image, box: Sequence[float]) -> Mask:
        """Return the pixels of the thing that shares most with a box."""
        piece = _nearest(image, box)
        if piece is None:
            return np.zeros((image.height, image.width), dtype=bool)
        return np.asarray(Image.fromarray(piece.mask).resize(image.size, Image.Resampling.NEAREST))

    def caption(self, image: Image.Image, box: Sequence[float]) -> str:
        """Say the thing that shares most with a box: ``"a red mug with a blue handle wearing a hat"``."""
        piece = _nearest(image, box)
        if piece is None:
            return ""
        # The same picture gets the same words, another one perhaps their synonyms.
        rng = np.random.default_rng(crc32(piece.mask.tobytes()))
        phrase = identity_phrase(piece.identity, rng, "full", look(image).style)
        # The reader tells no colour of what is worn, so none is said, as in pictures without any.
        worn = Thing(piece.identity, 0.5, 0.5, 0.5, piece.accessory)
        return phrase + worn_phrase(worn, rng, "kind", next(iter(COLOURLESS)))


def look(image: Image.Image) -> View:
    """Return what is seen in an RGB picture of any size."""
    small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)
    return _look(small.tobytes())


@lru_cache(maxsize=1)
def _look(data: bytes) -> View:
    colours = np.frombuffer(data, np.uint8).reshape(SIZE, SIZE, 3) / 255.0
    pixels = torch.from_numpy(colours).permute(2, 0, 1).float() * 2 - 1
    names, _, said = understand(pixels[None], load_reader())
    logits = F.interpolate(said["mask"][:, None], (SIZE, SIZE), mode="bilinear")[0, 0].numpy()
    masks = _pieces(minimal_cut(logits.clip(-_SURE, _SURE), lab(colours), _SMOOTHNESS))
    whole = sum(masks, np.zeros((SIZE, SIZE), dtype=bool))
    pieces = tuple(_read(pixels, mask, whole & ~mask) for mask in masks)
    return View(names["backdrop"][0], names["style"][0], pieces)


def _pieces(mask: Mask) -> list[Mask]:
    """Connected parts with their holes filled, from the top left on; specks are left out."""
    from scipy import ndimage

    numbers, count = ndimage.label(ndimage.binary_fill_holes(mask), structure=np.ones((3, 3)))
    parts = [numbers == number for number in range(1, count + 1)]
    return [part for part in parts if part.mean() >= _LEAST]


def _box(mask: Mask) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _read(pixels: torch.Tensor, mask: Mask, others: Mask) -> Piece:
    """Read one piece of a picture (3, 128, 128); what both its views make of it together counts."""
    box = _box(mask)
    views = torch.stack([_square(_without(pixels, mask, others), box, _AROUND), _cut_out(pixels, mask, box)])
    said = understand(views, load_reader())[2]
    best = {name: said[name].softmax(dim=1).mean(dim=0).max(dim=0) for name in _NAMED}
    names = {name: CLASSES[name][int(found.indices)] for name, found in best.items()}
    accessory = names.pop("accessory")
    left, top, right, bottom = (edge / SIZE for edge in box)
    return Piece(
        mask,
        (left, top, right, bottom),
        Identity(**names, shape=(0.0,) * 6, pitch=0.0, angle=0.0),
        None if accessory == "none" else accessory,
        float(best["kind"].values),
    )


_NAMED = ("kind", "main", "accent", "pattern", "accessory")


def _without(pixels: torch.Tensor, mask: Mask, others: Mask) -> torch.Tensor:
    """The picture with all other pieces, and their soft edges, painted over by what is nearest to them."""
    from scipy import ndimage

    hidden = ndimage.binary_dilation(others, iterations=2) & ~mask
    if not hidden.any():
        return pixels
    rows, columns = ndimage.distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return pixels[:, torch.from_numpy(rows), torch.from_numpy(columns)]


def _cut_out(pixels: torch.Tensor, mask: Mask, box: tuple[int, int, int, int]) -> torch.Tensor:
    """A piece by itself on white."""
    margin = SIZE // 2  # so that the square round a piece at the border is white there too
    white = F.pad(torch.where(torch.from_numpy(mask), pixels, 1.0), [margin] * 4, value=1.0)
    left, top, right, bottom = (edge + margin for edge in box)
    return _square(white, (left, top, right, bottom), _CLOSE)


def _square(pixels: torch.Tensor, box: tuple[int, int, int, int], reach: float) -> torch.Tensor:
    """What lies round a box as a picture (3, 128, 128); beyond the border its last rows and columns go on."""
    left, top, right, bottom = box
    half = max(right - left, bottom - top) * reach / 2
    across, down = (left + right) / 2, (top + bottom) / 2
    rows = torch.arange(round(down - half), round(down + half)).clamp(0, pixels.shape[1] - 1)
    columns = torch.arange(round(across - half), round(across + half)).clamp(0, pixels.shape[2] - 1)
    around = pixels[:, rows][:, :, columns]
    return F.interpolate(around[None], (SIZE, SIZE), mode="bilinear", antialias=True)[0]


def _on(image: Image.Image, box: Sequence[float]) -> tuple[float, ...]:
    return tuple(edge * side for edge, side in zip(box, image.size * 2, strict=True))


def _nearest(image: Image.Image, box: Sequence[float]) -> Piece | None:
    """The piece with most of its own box within a box, or nothing where none reaches it."""

    def shared(piece: Piece) -> float:
        left, top, right, bottom = _on(image, piece.box)
        across = min(right, box[2]) - max(left, box[0])
        down = min(bottom, box[3]) - max(top, box[1])
        return max(across, 0) * max(down, 0) / ((right - left) * (bottom - top))

    best = max(look(image).pieces, key=shared, default=None)
    return best if best is not None and shared(best) > 0 else None
