"""The page: which part of a picture shows what, as plain data that a person can save, edit and paint later.

A page is cut into rows, and each row into cells, by the split ratios of RPG (Yang et al. 2024, "Mastering Text-to-Image
Diffusion: Recaptioning, Planning, and Generating with Multimodal LLMs"; the grammar is that of its prompt template):

    Page(prompt="a cat beside a dog", base="a cat beside a dog", ratio="1,1", regions=("a cat", "a dog"))
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BeforeValidator, field_validator, model_validator

from capriccio.data import read_mapping, write_mapping
from capriccio.errors import CapriccioError
from capriccio.scene import Model, Region, Scene

MAX_PAGE_BYTES = 2**20
_KEYS = "'prompt', 'base', 'ratio' and 'regions'"
_FILE = ("a page", _KEYS, MAX_PAGE_BYTES, "a page is a few sentences")
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+")
_EXAMPLE = "write '1,1' for two columns, '1;1' for two rows, '2,1,1;1,3,1' for two rows of two cells"

# --- split ratios ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A rectangle of the page, in fractions of its width and height, from the upper left corner."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Row:
    """A row of the page: its height against that of other rows, and the widths of its cells against each other."""

    height: float = 1.0
    widths: tuple[float, ...] = (1.0,)


def split_cells(ratio: str) -> tuple[Cell, ...]:
    """Return the cells of a split ratio, row by row, each row from left to right.

    Neighbours share their edges exactly, and the last edge is exactly 1: wherever edges are rounded to, nothing
    overlaps and nothing stays open.

    Args:
        ratio: As `split_rows` reads it.

    Raises:
        CapriccioError: If it is no split ratio.
    """
    rows = split_rows(ratio)
    tops = _edges([row.height for row in rows], ratio)
    return tuple(
        Cell(left, top, right, bottom)
        for row, (top, bottom) in zip(rows, pairwise(tops), strict=True)
        for left, right in pairwise(_edges(row.widths, ratio))
    )


def split_rows(ratio: str) -> tuple[Row, ...]:
    """Read a split ratio: ``"1,2"`` is one row of two cells; with a semicolon, each row's first number is its height.

    Blanks, and the asterisks and backticks of Markdown, are left aside. Where the published code takes what is not a
    number for 1, this refuses it.

    Raises:
        CapriccioError: If it is empty, or a part of it is empty, not a number, or not above zero.
    """
    plain = re.sub(r"[*`\s]", "", ratio)
    rows = [[_part(part, ratio) for part in row.split(",")] for row in plain.split(";")]
    if len(rows) == 1:
        return (Row(widths=tuple(rows[0])),)
    return tuple(Row(height, tuple(widths) or (1.0,)) for height, *widths in rows)


def join_ratio(rows: Iterable[Row]) -> str:
    """Write rows as a split ratio, which `split_rows` reads again; the height of a single row means nothing."""
    rows = tuple(rows)
    if len(rows) == 1:
        return _written(rows[0].widths)
    return ";".join(_written((row.height, *(row.widths if len(row.widths) > 1 else ()))) for row in rows)


def _part(text: str, ratio: str) -> float:
    if not text:
        raise CapriccioError(f"The split ratio {_short(ratio)} has an empty part; {_EXAMPLE}.")
    if not _NUMBER.fullmatch(text.removeprefix("-")):
        raise CapriccioError(f"The split ratio {_short(ratio)} has {_short(text)} for a number; {_EXAMPLE}.")
    if float(text) <= 0:
        raise CapriccioError(f"The split ratio {_short(ratio)} has a part {text}, but parts are above 0; {_EXAMPLE}.")
    return float(text)


def _edges(parts: Sequence[float], ratio: str) -> list[float]:
    """The edges between parts, from 0 to exactly 1."""
    *sums, whole = accumulate(parts)
    edges = [0.0, *(one / whole for one in sums), 1.0]
    # Neither an infinite sum nor a part that is lost in rounding passes this.
    if not all(first < last for first, last in pairwise(edges)):
        raise CapriccioError(f"The split ratio {_short(ratio)} has parts too unequal to be seen; {_EXAMPLE}.")
    return edges


def _written(parts: Iterable[float]) -> str:
    return ",".join(np.format_float_positional(part, trim="-") for part in parts)


def _short(value: str) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- the page ----------------------------------------------------------------------------------------------------


def _as_text(value: Any) -> Any:
    # YAML reads the ratio of a single cell, 1, as a number.
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


class Page(Model):
    """What every part of a picture shows.

    Attributes:
        prompt: What was asked for.
        base: The whole picture in a sentence.
        ratio: How the page is cut into cells; see `split_rows`.
        regions: What each cell shows, row by row from left to right.
    """

    noun = "a page"
    prompt: str
    base: str
    ratio: Annotated[str, BeforeValidator(_as_text)]
    regions: tuple[str, ...]

    def __init__(self, /, **settings: Any) -> None:
        # A type checker would else want a `str` for each ratio, and a tuple where any sequence will do.
        super().__init__(**settings)

    @field_validator("prompt", "base")
    @classmethod
    def _says_something(cls, text: str) -> str:
        if not text.strip():
            raise CapriccioError("A page came with an empty prompt or base; say what the whole picture shows.")
        return text

    @model_validator(mode="after")
    def _one_prompt_for_each_cell(self) -> Self:
        cells, regions = len(self.cells), len(self.regions)
        if cells != regions:
            raise CapriccioError(
                f"The split ratio {_short(self.ratio)} cuts the page into {_counted(cells, 'cell')}, but "
                f"{_counted(regions, 'region')} came with it; give one prompt for each cell, row by row."
            )
        for number, region in enumerate(self.regions, 1):
            if not region.strip():
                raise CapriccioError(f"Region {number} of {regions} is empty; say what that part of the page shows.")
        return self

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Where each region is, in the order of the regions."""
        return split_cells(self.ratio)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Save the page as YAML or JSON, whole or not at all.

        Raises:
            CapriccioError: If the name has another ending, or the file cannot be written.
        """
        return write_mapping(path, self.model_dump(mode="json"), "a page")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Page:
        """Return the page of a YAML or JSON file.

        Raises:
            CapriccioError: If the file or what is in it cannot be used.
        """
        data = read_mapping(path, *_FILE)
        try:
            return cls(**{str(name): value for name, value in data.items()})
        except CapriccioError as error:
            raise CapriccioError(f"In {os.fspath(path)!r}: {error}") from None


def page_regions(page: Page, **settings: Any) -> tuple[Region, ...]:
    """Return what each cell of a page shows as a condition of a scene, with its place in fractions of the picture.

    Args:
        page: Whose cells are meant, in their order.
        settings: Of every region, such as ``by``, ``strength`` or ``options``.
    """
    return tuple(
        Region(prompt, (cell.left, cell.top, cell.right, cell.bottom), **settings)
        for cell, prompt in zip(page.cells, page.regions, strict=True)
    )


def page_scene(page: Page, **settings: Any) -> Scene:
    """Return the scene that paints a page: its base prompt, and a region for each cell.

    Args:
        page: What is painted where.
        settings: Of the scene; its ``conditions`` stand before the regions.

    Raises:
        CapriccioError: If the base prompt names a condition that is not among them.
    """
    given = settings.pop("conditions", ())
    return Scene(page.base, (*given, *page_regions(page)), **settings)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"
