"""What a sample is, and the order in which samples are taken, so that any number of them is a fair choice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from capriccio.canvas import opaque
from capriccio.errors import CapriccioError
from capriccio.scene import filled

MARGIN = 1.02
"""Sides of a subject's square picture, in the longer side of the subject (LAR-Gen's release, ``data_utils.py``)."""


@dataclass(frozen=True, eq=False)
class Place:
    """A picture with a hole.

    Attributes:
        id: Its name in tables and files.
        source: The picture, RGB.
        mask: Where to paint, white (255) on black (0), mode ``"L"`` and of the size of the picture.
        origin: Where it comes from, for the manifest.
        backdrop: What the world calls what is behind, to be read again; nothing for photographs.
    """

    id: str
    source: Image.Image
    mask: Image.Image
    origin: Mapping[str, Any] = field(default_factory=dict)
    backdrop: str | None = None


@dataclass(frozen=True, eq=False)
class Guest:
    """A subject that comes into a place.

    Attributes:
        id: Its name in tables and files.
        name: The word for it in a sentence, such as ``"mug"``.
        picture: It alone, RGBA and square, its background transparent.
        original: The picture that it was cut from, RGB.
        origin: Where it comes from, for the manifest.
        looks: What the world calls it, to be read again (``kind``, ``main``, ``pattern``); nothing for photographs.
    """

    id: str
    name: str
    picture: Image.Image
    original: Image.Image
    origin: Mapping[str, Any] = field(default_factory=dict)
    looks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Wish:
    """A sentence about a guest.

    Attributes:
        id: Its name in tables and files.
        words: The sentence, with ``{}`` where the guest is named: ``"a {} wearing a red hat"``.
        looks: What the world reads where the sentence is heeded (``accessory`` or ``main``); nothing for photographs.
    """

    id: str
    words: str
    looks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture that is asked for, the same for every way to paint."""

    number: int
    """Its place among all samples; it is the seed as well."""
    place: Place
    guest: Guest
    wish: Wish

    @property
    def id(self) -> str:
        """Its name in tables and files."""
        return f"{self.place.id}_{self.guest.id}_{self.wish.id}"

    @property
    def prompt(self) -> str:
        """The sentence as a scene has it, the guest a named condition: ``"a {mug} wearing a red hat"``."""
        return self.wish.words.format("{" + self.guest.name + "}")

    @property
    def text(self) -> str:
        """The sentence in plain words."""
        return filled(self.prompt)

    @property
    def subject(self) -> Image.Image:
        """The guest on white, RGB."""
        return opaque(self.guest.picture)


@dataclass(frozen=True, eq=False)
class Protocol:
    """Places, guests and wishes, all of which meet.

    Attributes:
        name: Of the data, such as ``"the miniature's world"``.
        places: Where.
        guests: Who.
        wishes: How.
        rule: How they were chosen, in words, for the manifest.
        seed: Of the choice, and of the order of samples.
    """

    name: str
    places: Sequence[Place]
    guests: Sequence[Guest]
    wishes: Sequence[Wish]
    rule: str
    seed: int = 0

    def __len__(self) -> int:
        return len(self.places) * len(self.guests) * len(self.wishes)

    def samples(self, count: int | None = None) -> list[Sample]:
        """Return all samples, or a fair choice of them; a longer choice begins with every shorter one.

        Args:
            count: How many; all by default.

        Raises:
            CapriccioError: If there are not so many, or fewer than one is asked for.
        """
        count = len(self) if count is None else count
        if not 1 <= count <= len(self):
            raise CapriccioError(
                f"{count} samples were asked for, but there are {len(self)}; ask for 1 to {len(self)}."
            )
        sizes = (len(self.places), len(self.guests), len(self.wishes))
        return [
            Sample(int(np.ravel_multi_index((p, g, w), sizes)), self.places[p], self.guests[g], self.wishes[w])
            for p, g, w in fair_order(sizes, count, self.seed)
        ]

    def manifest(self) -> dict[str, Any]:
        """Return what the data are, and a hash of every picture and word of them."""
        return {
            "name": self.name,
            "rule": self.rule,
            "seed": self.seed,
            "sha256": self.fingerprint(),
            "scenes": [{"id": place.id, "box": box_of(place.mask), **place.origin} for place in self.places],
            "subjects": [{"id": guest.id, "name": guest.name, **guest.origin} for guest in self.guests],
            "prompts": [{"id": wish.id, "words": wish.words} for wish in self.wishes],
        }

    def fingerprint(self) -> str:
        """Return a SHA-256 of all pixels and words."""
        digest = hashlib.sha256()
        pictures = [picture for place in self.places for picture in (place.source, place.mask)]
        for picture in [*pictures, *(guest.picture for guest in self.guests)]:
            digest.update(f"{picture.mode} {picture.size}".encode())
            digest.update(picture.tobytes())
        for words in [*(guest.name for guest in self.guests), *(wish.words for wish in self.wishes)]:
            digest.update(words.encode() + b"\0")
        return digest.hexdigest()


def fair_order(sizes: tuple[int, ...], count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Return cells of a table so that any first few of them treat rows, columns and so on as equally as possible.

    Each next cell is one whose coordinates were taken least often, alone first and then in pairs, as in a Latin
    square; ties are broken by the seed.

    Args:
        sizes: Of the table.
        count: How many cells, at most all.
        seed: Fixes the order; it does not depend on ``count``.

    Returns:
        Different cells, each a coordinate for every size.
    """
    rng = np.random.default_rng(seed)
    cells = rng.permutation(np.indices(sizes).reshape(len(sizes), -1).T)
    pairs = [(i, j) for i in range(len(sizes)) for j in range(i)]
    alone = [np.zeros(size, int) for size in sizes]
    together = {(i, j): np.zeros((sizes[i], sizes[j]), int) for i, j in pairs}
    chosen: list[tuple[int, ...]] = []
    for _ in range(count):
        # How far each coordinate of each open cell is ahead of the rarest of its kind.
        ahead = np.stack([taken[cells[:, axis]] - taken.min() for axis, taken in enumerate(alone)])
        met = sum((taken[cells[:, i], cells[:, j]] for (i, j), taken in together.items()), np.zeros(len(cells), int))
        best = np.lexsort((met, ahead.sum(0), ahead.max(0)))[0]
        cell = tuple(int(index) for index in cells[best])
        cells = np.delete(cells, best, axis=0)
        for axis, index in enumerate(cell):
            alone[axis][index] += 1
        for i, j in pairs:
            together[i, j][cell[i], cell[j]] += 1
        chosen.append(cell)
    return chosen


def cut_out(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """Return a subject alone: its box on a transparent square of `MARGIN` times the longer side, RGBA.

    Args:
        picture: Of the subject.
        mask: Where it is, white on black, mode ``"L"``, of the same size.

    Raises:
        CapriccioError: If the mask is black.
    """
    box = mask.getbbox()
    if box is None:
        raise CapriccioError("The mask of a subject is all black; give a picture in which the subject can be seen.")
    alone = picture.convert("RGB").crop(box)
    alone.putalpha(mask.crop(box))
    side = max(round(MARGIN * max(alone.size)), 1)
    square = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    square.paste(alone, ((side - alone.width) // 2, (side - alone.height) // 2))
    return square


def box_of(mask: Image.Image) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of what a mask (``"L"``) marks, in pixels.

    Raises:
        CapriccioError: If it marks nothing.
    """
    box = mask.getbbox()
    if box is None:
        raise CapriccioError("A mask of the benchmark marks nothing; paint white where the subject should come.")
    return box


def box_mask(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """Return a mask (``"L"``) that is white inside a box (left, top, right, bottom in pixels)."""
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask
