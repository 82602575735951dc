"""A run: every sample painted by every painter, kept as it comes, so that a run that was stopped goes on.

    OUT/manifest.json                 what was measured by what: a folder goes on with the same manifest only
    OUT/pictures/VARIANT/SAMPLE.png   each painting, written whole
    OUT/samples.csv                   one row a sample and variant, appended whole

Sample by sample, all variants in turn: a run that is stopped has compared like with like.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from capriccio.errors import CapriccioError
from capriccio.evaluation.lar_gen.measures import Examiner
from capriccio.evaluation.lar_gen.painters import Painter
from capriccio.evaluation.lar_gen.samples import Sample
from capriccio.pictures import open_picture, save_png, write_whole

Row = Mapping[str, Any]
KEYS = ("variant", "sample", "number", "scene", "subject", "prompt")
"""Columns of a row before its measures."""

_LOOSE = ("machine",)  # what may differ between the parts of one run


def run(
    samples: Sequence[Sample],
    painters: Mapping[str, Painter],
    examiner: Examiner,
    folder: Path,
    manifest: Mapping[str, Any],
    told: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Paint and read whatever a folder does not have yet.

    Args:
        samples: In order.
        painters: By variant.
        examiner: Who reads the paintings.
        folder: Where everything is kept.
        manifest: What the numbers depend on, as JSON holds it.
        told: Called after each picture with how many are done and how many there are.

    Returns:
        One row for each sample and variant, sample by sample.

    Raises:
        CapriccioError: If the folder belongs to another run, or another run is writing it.
    """
    total, rows = len(samples) * len(painters), []
    with _alone(folder):
        _claim(folder / "manifest.json", manifest)
        journal = Journal(folder / "samples.csv", examiner.measures)
        for sample in samples:
            for variant, painter in painters.items():
                row = journal.rows.get((variant, sample.id))
                if row is None:
                    picture = painted(folder, variant, sample, painter)
                    row = journal.append(_row(variant, sample, examiner.read(sample, picture)))
                rows.append(row)
                told(len(rows), total)
    return rows


def painted(folder: Path, variant: str, sample: Sample, painter: Painter) -> Image.Image:
    """Return a painting from its file, painting it first if there is none."""
    place = picture_path(folder, variant, sample.id)
    if not place.exists():
        save_png(painter(sample, sample.number).convert("RGB"), place)
    return open_picture(place)


def picture_path(folder: Path, variant: str, sample: str) -> Path:
    """Return where the painting of a sample (its id) by a variant is kept."""
    return folder / "pictures" / variant / f"{sample}.png"


class Journal:
    """Rows in a CSV file, each appended whole; a row cut short by a power failure is dropped when it is opened.

    Attributes:
        rows: By variant and sample.
    """

    def __init__(self, path: Path, measures: Sequence[str]) -> None:
        """Open a file, or begin it.

        Raises:
            CapriccioError: If it has other columns.
        """
        self.path, self.columns = path, (*KEYS, *measures)
        whole, _, rest = (path.read_bytes() if path.exists() else b"").rpartition(b"\n")
        if rest or not whole:
            write_whole(path, whole + b"\n" if whole else _line(self.columns))
        reader = csv.DictReader(io.StringIO(path.read_text("utf-8")))
        if tuple(reader.fieldnames or ()) != self.columns:
            raise CapriccioError(
                f"{str(path)!r} has the columns {', '.join(reader.fieldnames or ())}, but this run writes "
                f"{', '.join(self.columns)}; choose another --out."
            )
        self.rows = {(row["variant"], row["sample"]): _typed(row) for row in reader}

    def append(self, row: Row) -> dict[str, Any]:
        """Keep a row, on disk before this returns, and return it as it will be read again."""
        line = _line([row[column] for column in self.columns])
        with self.path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        kept = _typed(dict(zip(self.columns, map(str, (row[column] for column in self.columns)), strict=True)))
        self.rows[kept["variant"], kept["sample"]] = kept
        return kept


def _row(variant: str, sample: Sample, read: Mapping[str, float]) -> Row:
    names = (variant, sample.id, sample.number, sample.place.id, sample.guest.id, sample.wish.id)
    return dict(zip(KEYS, names, strict=True)) | dict(read)


def _typed(row: Mapping[str, str]) -> dict[str, Any]:
    measures = {name: float(value) for name, value in row.items() if name not in KEYS}
    return {name: row[name] for name in KEYS} | {"number": int(row["number"])} | measures


def _line(values: Sequence[Any]) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(values)
    return stream.getvalue().encode()


def _claim(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, or check that the one there says the same."""
    wanted = json.loads(json.dumps(manifest))
    if path.exists():
        try:
            there = json.loads(path.read_text("utf-8"))
        except ValueError:
            there = {}
        other = sorted(key for key in {*wanted, *there} if key not in _LOOSE and wanted.get(key) != there.get(key))
        if other:
            raise CapriccioError(
                f"{str(path.parent)!r} holds another run ({', '.join(other)} differ); choose another --out, or repeat "
                "that run's settings."
            )
        return
    write_whole(path, (json.dumps(wanted, indent=1, ensure_ascii=False) + "\n").encode())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder while writing into it; the system lets go of it when this process ends, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise CapriccioError(f"{str(folder)!r} cannot be written ({error.strerror}); choose another --out.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CapriccioError(
                f"Another run is writing {str(folder)!r}; wait for it, or choose another --out."
            ) from None
        yield
