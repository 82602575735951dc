"""Where the tokens of an attention layer are: named groups, in one joint sequence or in picture coordinates.

A joint sequence (FLUX) is the same in every layer, and its tokens are both queries and keys. In a U-Net every layer
sees the picture at a resolution of its own: a group of image tokens is a *shape in picture coordinates* that each
layer rasterises, and cross-attention looks at text from the picture.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np

from capriccio.attention.program import LayerInfo, Names, Twin
from capriccio.canvas import Mask, coverage, rasterise
from capriccio.errors import CapriccioError, nearest

Size = TypeVar("Size")


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """The tokens of one sequence, and the names of groups of them.

    Attributes:
        length: Number of tokens S.
        groups: Name -> boolean array or tensor of shape (S,), in the backbone's order. Groups may overlap.
            A name also stands for all groups below it: ``"image"`` is ``"image:left"`` and ``"image:right"``
            together, unless there is a group called ``"image"``.
        elsewhere: Names of groups that the model has in other sequences; none of their tokens is here.
        grid: Rows and columns of image tokens, where the sequence is one picture and nothing else.
        level: How often the sides of that grid were halved, from the finest layers of the model.
        late: Names of groups whose tokens are told later, see `Attachment.define`; until then their edits rest.
        origin: For each token, which token it is the twin of, or itself (S,); ``None`` where there are no twins.
        places: For each token, its place among those that the layer is given (S,): a twin without a stream of its own
            is its original. ``None`` where all are given.
        banks: Name and number of tokens of each bank. They are in no sequence until an edit brings them, see
            `with_banks`.
        brought: The last so many tokens are of banks.
    """

    length: int
    groups: Mapping[str, Any] = field(default_factory=dict)
    elsewhere: frozenset[str] = frozenset()
    grid: tuple[int, int] | None = None
    level: int = 0
    late: frozenset[str] = frozenset()
    origin: np.ndarray | None = None
    places: np.ndarray | None = None
    banks: Mapping[str, int] = field(default_factory=dict)
    brought: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", {name: _mask(name, m, self.length) for name, m in self.groups.items()})

    @property
    def given(self) -> int:
        """Number of tokens that the layer is given."""
        return self.length if self.places is None else int(self.places.max()) + 1

    @cached_property
    def home(self) -> np.ndarray:
        """For each token that the layer is given, which token it is; of an original and its twins, the original."""
        return np.flatnonzero(~self.views)

    @property
    def twins(self) -> Mask:
        """Which tokens (S,) are twins: seen only by who names them."""
        return np.zeros(self.length, bool) if self.origin is None else self.origin != np.arange(self.length)

    @property
    def apart(self) -> Mask:
        """Which tokens (S,) are seen only by who names them: twins, and those of banks."""
        return self.twins | (np.arange(self.length) >= self.length - self.brought)

    def with_banks(self, banks: Mapping[str, int]) -> TokenLayout:
        """Return the layout with the tokens of banks, by name and number, behind all others."""
        count = sum(banks.values())
        groups = {name: np.pad(mask, (0, count)) for name, mask in self.groups.items()}
        whose = np.repeat(np.arange(len(banks)), list(banks.values()))
        groups |= {name: np.concatenate([np.zeros(self.length, bool), whose == i]) for i, name in enumerate(banks)}
        origin, places = (
            old if old is None else np.concatenate([old, start + np.arange(count)])
            for old, start in ((self.origin, self.length), (self.places, self.given))
        )
        return replace(
            self, length=self.length + count, groups=groups, origin=origin, places=places, brought=count, grid=None
        )

    @property
    def views(self) -> Mask:
        """Which twins (S,) have no stream of their own."""
        if self.places is None or self.origin is None:
            return np.zeros(self.length, bool)
        return self.twins & (self.places == self.places[self.origin])

    def twin_tokens(self, names: Names, twin: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions (n,) of tokens, and of the twin of each.

        Raises:
            CapriccioError: If some have no such twin.
        """
        tokens, twins = np.flatnonzero(self.tokens(names)), np.flatnonzero(self.tokens(twin) & self.twins)
        of = np.full(self.length, -1)
        if self.origin is not None:
            of[self.origin[twins]] = twins
        if (of[tokens] < 0).any():
            raise CapriccioError(
                f"an edit mixes {twin!r} into {' + '.join(_several(names))}, but not all of those tokens have such a "
                "twin; declare Twin(name, of=a group that holds them all)."
            )
        return tokens, of[tokens]

    def with_twins(self, twins: Sequence[Twin], apart: Collection[Twin] = ()) -> TokenLayout:
        """Return the layout with twins, each before the first token of its group.

        Args:
            twins: Whose groups are all here.
            apart: Those that are streams of their own.
        """
        order, whose = np.arange(self.length), np.full(self.length, -1)
        for number, twin in enumerate(twins):
            members = np.flatnonzero(self.tokens(twin.of))
            before = int(np.flatnonzero((order == members[0]) & (whose < 0))[0])
            order, whose = np.insert(order, before, members), np.insert(whose, before, np.full(len(members), number))
        given = np.isin(whose, [-1, *(i for i, twin in enumerate(twins) if twin in apart)])
        place = np.cumsum(given) - 1
        here = np.flatnonzero(whose < 0)
        groups = {name: mask[order] & (whose < 0) for name, mask in self.groups.items()}
        groups |= {twin.name: whose == number for number, twin in enumerate(twins)}
        places = None if given.all() else np.where(given, place, place[here[order]])
        return replace(self, length=len(order), groups=groups, origin=here[order], places=places)

    @property
    def queries(self) -> TokenLayout:
        """Its tokens ask."""
        return self

    @property
    def keys(self) -> TokenLayout:
        """And its tokens are looked at: a joint sequence attends to itself."""
        return self

    def at(self, layer: LayerInfo) -> TokenLayout:
        """Return what a layer attends with and to: the same in every layer."""
        return self

    def bank(self, name: str, layer: LayerInfo) -> int:
        """Return how many tokens a bank has in a layer: as many in each.

        Raises:
            CapriccioError: If there is no such bank.
        """
        return _bank(self.banks, name)

    def defining(self, groups: Mapping[str, Any]) -> TokenLayout:
        """Return the layout with the tokens of late groups told.

        Raises:
            CapriccioError: If a group was not announced as late.
        """
        _check_late(groups, self.late)
        return replace(self, groups={**self.groups, **groups}, late=self.late - set(groups))

    def check(self, names: Names) -> None:
        """Refuse names that are no group.

        Raises:
            CapriccioError: With the nearest name.
        """
        self.tokens(names)

    def holds(self, names: Names) -> bool:
        """Whether any of the groups lives in this sequence; everything does where there is no other."""
        several = _several(names)
        return not (self.elsewhere and several) or any(name in self.late or self._below(name) for name in several)

    def tokens(self, names: Names) -> Mask:
        """Return the boolean membership (S,) of one group, or of several together.

        Raises:
            CapriccioError: If a name is unknown.
        """
        parts = [self._group(name) for name in _several(names)]
        return np.logical_or.reduce(parts) if parts else np.zeros(self.length, bool)

    def seen_from(self, fine: TokenLayout) -> np.ndarray:
        """Return which token of this grid each token of a finer grid of the same picture lies in."""
        if fine is self or fine.grid is None or self.grid is None:
            return np.arange(self.length)
        cells = np.arange(fine.length) if fine.places is None else fine.places
        row, column = np.divmod(cells, fine.grid[1])
        halvings = self.level - fine.level
        return self.home[(row >> halvings) * self.grid[1] + (column >> halvings)]

    def _below(self, name: str) -> list[Mask]:
        """Return the group of that name, or those below it."""
        if name in self.groups:
            return [self.groups[name]]
        return [mask for full, mask in self.groups.items() if _is_below(full, name)]

    def _group(self, name: str) -> Mask:
        below = self._below(name)
        others = {*self.elsewhere, *self.late, *self.banks}
        if not below and not any(full == name or _is_below(full, name) for full in others):
            known = {*self.groups, *others}
            hint = nearest(name, known) if known else "this layout has no groups"
            raise CapriccioError(f"the attention program names the token group {name!r}, which is unknown; {hint}")
        return np.logical_or.reduce(below) if below else np.zeros(self.length, bool)

    def __str__(self) -> str:
        return ", ".join([f"{self.length} tokens", *(f"{name} {int(m.sum())}" for name, m in self.groups.items())])


@dataclass(frozen=True)
class Sides:
    """What one layer of cross-attention attends with, and what it attends to."""

    queries: TokenLayout
    keys: TokenLayout


Attended = TokenLayout | Sides
"""What one layer attends with and to: a sequence with itself, or one with another."""


class Layout(Protocol):
    """The named groups of a run, and how each layer sees them."""

    @property
    def groups(self) -> Mapping[str, Mask]:
        """Every group by name."""

    @property
    def length(self) -> int:
        """Number of tokens, those of the picture counted at its finest."""

    @property
    def late(self) -> frozenset[str]:
        """Names of groups whose tokens are told later."""

    def at(self, layer: LayerInfo) -> Attended:
        """Return what a layer attends with and to; the very same object for layers that see the same."""

    def bank(self, name: str, layer: LayerInfo) -> int:
        """Return how many tokens a bank has in a layer."""

    def defining(self, groups: Mapping[str, Any]) -> Layout:
        """Return the layout with the tokens of late groups told."""

    def check(self, names: Names) -> None:
        """Refuse names that are no group."""


@dataclass(frozen=True, eq=False)
class PictureLayout:
    """The groups of a U-Net: shapes in picture coordinates, and groups of text tokens.

    Shapes are cells that they cover by more than half. A cell on the border of siblings (``image:region/1``,
    ``image:region/2``, ...) that none of them covers so, though together they do, is his who covers most of it: what
    has no gaps in the picture has none in a coarse layer.

    Attributes:
        text: Text tokens, the keys of ``"cross"`` layers.
        shapes: Name -> booleans (height, width) in pixels.
        size: Height and width of the picture, in pixels.
        cell: Pixels a side of one image token in the finest layers.
        late: Names of shapes that are told later, see `Attachment.define`; until then their edits rest.
        banks: For each bank its number of tokens, or the height and width in pixels of the picture that it shows at
            the resolution of each layer.
    """

    text: TokenLayout
    shapes: Mapping[str, Mask]
    size: tuple[int, int]
    cell: int
    late: frozenset[str] = frozenset()
    banks: Mapping[str, int | tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own = {name: _shape(name, shape, self.size) for name, shape in self.shapes.items()}
        object.__setattr__(self, "shapes", own)
        object.__setattr__(self, "text", replace(self.text, elsewhere=frozenset(own) | self.late | set(self.banks)))

    @property
    def groups(self) -> Mapping[str, Mask]:
        """Every group by name: text tokens (T,), shapes (height, width)."""
        return {**self.text.groups, **self.shapes}

    @property
    def length(self) -> int:
        """Number of text tokens and of image tokens in the finest layers."""
        return self.text.length + self.image(0).length

    def image(self, level: int) -> TokenLayout:
        """Return the image tokens of the layers whose grid was halved ``level`` times."""
        if level not in self._images:
            cell = self.cell << level
            rows, columns = (-(-side // cell) for side in self.size)
            groups = shared_out(self.shapes, cell)
            elsewhere = frozenset(self.text.groups) | set(self.banks)
            self._images[level] = TokenLayout(rows * columns, groups, elsewhere, (rows, columns), level, self.late)
        return self._images[level]

    def at(self, layer: LayerInfo) -> Attended:
        """Return what a layer attends with and to."""
        image = self.image(layer.level)
        if layer.kind != "cross":
            return image
        if layer.level not in self._crossings:
            self._crossings[layer.level] = Sides(image, self.text)
        return self._crossings[layer.level]

    def bank(self, name: str, layer: LayerInfo) -> int:
        """Return how many tokens a bank has in a layer.

        Raises:
            CapriccioError: If there is no such bank.
        """
        size = _bank(self.banks, name)
        if isinstance(size, int):
            return size
        cell = self.cell << layer.level
        return -(-size[0] // cell) * -(-size[1] // cell)

    def shape_of(self, tokens: Mask) -> Mask:
        """Return the shape (height, width) of some of the finest image tokens (N,), as a tap may have found them."""
        chosen = np.asarray(tokens, bool).reshape(self.image(0).grid)
        return chosen.repeat(self.cell, 0).repeat(self.cell, 1)[: self.size[0], : self.size[1]]

    def defining(self, groups: Mapping[str, Any]) -> PictureLayout:
        """Return the layout with late shapes told.

        Raises:
            CapriccioError: If a shape was not announced as late.
        """
        _check_late(groups, self.late)
        return replace(self, shapes={**self.shapes, **groups}, late=self.late - set(groups))

    def check(self, names: Names) -> None:
        """Refuse names that are no group.

        Raises:
            CapriccioError: With the nearest name.
        """
        self.text.tokens(names)

    @cached_property
    def _images(self) -> dict[int, TokenLayout]:
        return {}

    @cached_property
    def _crossings(self) -> dict[int, Sides]:
        return {}

    def __str__(self) -> str:
        shares = [f"{name} {shape.mean():.0%}" for name, shape in self.shapes.items()]
        words = [f"{name} {int(mask.sum())}" for name, mask in self.text.groups.items()]
        rows, columns = self.image(0).grid or (0, 0)
        return ", ".join(
            [f"{self.text.length} text tokens", *words, f"{columns} x {rows} image tokens and coarser", *shares]
        )


def shared_out(shapes: Mapping[str, Mask], cell: int) -> dict[str, Mask]:
    """Return which cells, row by row, each shape has; see `PictureLayout`.

    Args:
        shapes: Name -> booleans (height, width) in pixels.
        cell: Pixels a side.
    """
    found = {name: rasterise(shape, cell) for name, shape in shapes.items()}
    families: dict[str, list[str]] = {}
    for name in shapes:
        families.setdefault(name.rpartition("/")[0], []).append(name)
    for siblings in (names for family, names in families.items() if family and len(names) > 1):
        together = rasterise(np.logical_or.reduce([shapes[name] for name in siblings]), cell)
        nobodys = together & ~np.logical_or.reduce([found[name] for name in siblings])
        most = np.argmax([coverage(shapes[name], cell) for name in siblings], axis=0)
        for number, name in enumerate(siblings):
            found[name] = found[name] | (nobodys & (most == number))
    return found


def _several(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def with_banks(layout: Attended, banks: Mapping[str, int]) -> Attended:
    """Return what a layer attends with and to when banks, by name and number of tokens, stand beside its keys."""
    return Sides(layout.queries, layout.keys.with_banks(banks)) if banks else layout


def _bank(banks: Mapping[str, Size], name: str) -> Size:
    if name not in banks:
        hint = nearest(name, banks) if banks else "this layout has none"
        raise CapriccioError(f"the attention program names the bank {name!r}, which is unknown; {hint}")
    return banks[name]


def _check_late(groups: Mapping[str, Any], late: frozenset[str]) -> None:
    for name in groups:
        if name not in late:
            hint = nearest(name, late) if late else "this layout has none"
            raise CapriccioError(f"the token group {name!r} was told late, but not announced in late=; {hint}")


def _is_below(full: str, name: str) -> bool:
    return full.startswith((f"{name}:", f"{name}/"))


def _mask(name: str, mask: Sequence[bool] | Mask, length: int) -> Mask:
    array = np.asarray(mask.cpu() if hasattr(mask, "cpu") else mask)
    if array.dtype != bool or array.shape != (length,):
        raise CapriccioError(
            f"the token group {name!r} received an array of {array.dtype} and shape {array.shape}, but expects "
            f"booleans of shape ({length},); give one truth value for each token."
        )
    return array


def _shape(name: str, shape: Mask, size: tuple[int, int]) -> Mask:
    array = np.asarray(shape.cpu() if hasattr(shape, "cpu") else shape)
    if array.dtype != bool or array.shape != size:
        raise CapriccioError(
            f"the token group {name!r} received an array of {array.dtype} and shape {array.shape}, but expects "
            f"booleans of shape {size}; give one truth value for each pixel."
        )
    return array
