"""The main job on one sheet: subjects no model has seen, one picture of each, four new scenes, the judge's readings.

>>> from capriccio.evaluation.demo import demo
>>> print(demo("demo"))                    # demo/contact-sheet.png, about two minutes on two cores
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from capriccio import pictures
from capriccio.evaluation.cases import Ask, Case, asks, held_out_cases
from capriccio.evaluation.judge import Judge
from capriccio.evaluation.variants import DIPTYCH, TEXT_ONLY, Variant, paint, reference_pictures
from capriccio.studio import Studio

KINDS = ("mug", "fish", "cat", "rocket")
_SCENES, _BATCH = 4, 8


@dataclass(frozen=True)
class Reading:
    """What the judge read in all pictures of one way to paint: how alike subjects are (-1 to 1), and two rates."""

    variant: str
    likeness: float
    subject_kept: float
    scene_right: float

    def __str__(self) -> str:
        rates = f"subject kept {self.subject_kept:4.0%}   scene right {self.scene_right:4.0%}"
        return f"{self.variant:<28} likeness {self.likeness:4.2f}   {rates}"


@dataclass(frozen=True)
class Demonstration:
    """Where the contact sheet lies, and what the judge read with the reference panel and without."""

    sheet: Path
    readings: tuple[Reading, ...]

    def __str__(self) -> str:
        return "\n".join([*map(str, self.readings), f"contact sheet: {self.sheet}"])

    def as_dict(self) -> dict[str, Any]:
        """Return the same as data that JSON can hold."""
        return {"sheet": str(self.sheet), "readings": [asdict(reading) for reading in self.readings]}


def demo(
    folder: str | Path,
    studio: Studio | None = None,
    told: Callable[[int, int], None] = lambda done, total: None,
    seed: int = 0,
) -> Demonstration:
    """Paint four held-out subjects in four new scenes each, and leave one contact sheet.

    Likeness is the mean cosine of the reader's embeddings of reference and picture. A subject counts as kept when kind,
    main colour and pattern are all read as its own; captions name the kind alone.

    Args:
        folder: Where ``contact-sheet.png`` goes.
        studio: Who paints; the miniature if not given.
        told: Called with the number of pictures done and of all.
        seed: Which subjects.

    Raises:
        CapriccioError: If the weights of the miniature are not installed.
    """
    studio = studio or Studio.open("miniature")
    cases = held_out_cases(len(KINDS), _SCENES, seed, KINDS)
    judge, wanted = Judge(cases), asks(cases)
    total, done = 2 * len(wanted), 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        told(done, total)

    def painted(variant: Variant) -> list[Image.Image]:
        return paint(studio, wanted, variant, batch=_BATCH, told=count)

    with_reference, without = painted(DIPTYCH), painted(TEXT_ONLY)
    sheet = contact_sheet(cases, wanted, with_reference)
    place = pictures.save_png(sheet, Path(folder) / "contact-sheet.png")
    readings = (
        _reading("with the reference panel", judge, wanted, with_reference),
        _reading("without it (text only)", judge, wanted, without),
    )
    return Demonstration(place, readings)


def contact_sheet(cases: Sequence[Case], wanted: Sequence[Ask], painted: Sequence[Image.Image]) -> Image.Image:
    """Return one row a subject: the reference, then its scenes, with their captions."""
    given = reference_pictures(cases)
    cells, labels = [], []
    for case in cases:
        row = [index for index, ask in enumerate(wanted) if ask.case == case]
        cells += [given[case.number], *(painted[index] for index in row)]
        labels += [f"one picture of the {case.name}", *(wanted[index].caption for index in row)]
    return pictures.grid(cells, columns=_SCENES + 1, labels=labels)


def _reading(name: str, judge: Judge, wanted: Sequence[Ask], painted: Sequence[Image.Image]) -> Reading:
    scores = judge.score(wanted, painted)
    columns = zip(*((score.identity, score.kept, score.backdrop) for score in scores), strict=True)
    return Reading(name, *map(fmean, columns))
