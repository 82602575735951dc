"""Shards: many quadruplets in one file, as WebDataset tar or as Parquet, and read back.

A shard is a function of what it holds: no clock, no user and no machine is in its bytes, so equal work gives equal
files. In a tar, the members of one quadruplet share their key: ``KEY.source.png``, ``KEY.mask.png``,
``KEY.subject.png``, ``KEY.txt`` and ``KEY.json``; a Parquet file has the same as columns.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from capriccio.errors import CapriccioError
from capriccio.pictures import png_bytes

Format = Literal["tar", "parquet"]
FORMATS: tuple[Format, ...] = ("tar", "parquet")
Record = Mapping[str, bytes]
"""The bytes of one quadruplet by the ending of their name."""

PICTURES = ("source.png", "mask.png", "subject.png")
PARTS = (*PICTURES, "txt", "json")
END = bytes(2 * tarfile.BLOCKSIZE)
"""What closes a tar file."""


def record(source: Image.Image, mask: Image.Image, subject: Image.Image, text: str, about: Mapping[str, Any]) -> Record:
    """Return one quadruplet as bytes: three PNG pictures, its text, and what else is known of it as JSON."""
    pictures = zip(PICTURES, (source, mask, subject), strict=True)
    known = json.dumps(about, sort_keys=True)
    return {ending: png_bytes(image) for ending, image in pictures} | {"txt": text.encode(), "json": known.encode()}


def tar_bytes(key: str, parts: Record) -> bytes:
    """Return one quadruplet as members of a tar file that is still open at its end."""
    return b"".join(_member(f"{key}.{ending}", parts[ending]) for ending in PARTS)


def _member(name: str, data: bytes) -> bytes:
    head = tarfile.TarInfo(name)
    head.size = len(data)  # all else keeps its default: no owner, no time
    return head.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def read_tar(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield the keys and records of a tar shard, in their order."""
    key, parts = "", dict[str, bytes]()
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            stem, _, ending = member.name.partition(".")
            if stem != key and parts:
                yield key, parts
                parts = {}
            key = stem
            parts[ending] = tar.extractfile(member).read()  # type: ignore[union-attr]
    if parts:
        yield key, parts


def parquet_bytes(records: Iterable[tuple[str, Record]]) -> bytes:
    """Return records as a Parquet file with the columns key, source, mask, subject, text and about.

    Raises:
        CapriccioError: If pyarrow is not installed.
    """
    pyarrow, parquet = _pyarrow()
    kinds = {name: pyarrow.binary() if ending in PICTURES else pyarrow.string() for name, ending in _COLUMNS.items()}
    schema = pyarrow.schema({"key": pyarrow.string()} | kinds)
    rows = [{"key": key} | {name: parts[ending] for name, ending in _COLUMNS.items()} for key, parts in records]
    stream = BytesIO()
    # PNG pictures do not get smaller; and who wants one row reads its group alone.
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    parquet.write_table(table, stream, compression="none", row_group_size=_GROUP)
    return stream.getvalue()


_COLUMNS = dict(zip(("source", "mask", "subject", "text", "about"), PARTS, strict=True))
_GROUP = 16
"""Rows that are read at once."""


def read_parquet(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield the keys and records of a Parquet shard, in their order."""
    _, parquet = _pyarrow()
    for batch in parquet.ParquetFile(path).iter_batches(batch_size=_GROUP):
        yield from map(_row, batch.to_pylist())


def _row(row: Mapping[str, Any]) -> tuple[str, Record]:
    values = {ending: row[name] for name, ending in _COLUMNS.items()}
    return row["key"], {e: value.encode() if isinstance(value, str) else value for e, value in values.items()}


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise CapriccioError(
            "Parquet shards need pyarrow, which is not installed; pip install 'capriccio[parquet]', or use tar shards."
        ) from None
    return pyarrow, parquet


# --- one among many ----------------------------------------------------------------------------------------------


class TarPlaces:
    """Where each quadruplet of a tar shard lies: any is read without those before it."""

    def __init__(self, path: Path) -> None:
        self.path, found = path, dict[str, dict[str, tuple[int, int]]]()
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                found.setdefault(key, {})[ending] = member.offset_data, member.size
        self.places = list(found.items())

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> tuple[str, Record]:
        key, places = self.places[number]
        parts = {}
        with self.path.open("rb") as file:
            for ending, (start, size) in places.items():
                file.seek(start)
                parts[ending] = file.read(size)
        return key, parts


class ParquetPlaces:
    """The same of a Parquet shard, of which the group of rows around it is read."""

    def __init__(self, path: Path) -> None:
        _, self.parquet = _pyarrow()
        self.path, about = path, self.parquet.ParquetFile(path).metadata
        groups = (about.row_group(group).num_rows for group in range(about.num_row_groups))
        self.places = [(group, row) for group, rows in enumerate(groups) for row in range(rows)]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> tuple[str, Record]:
        group, row = self.places[number]
        return _row(self.parquet.ParquetFile(self.path).read_row_group(group).slice(row, 1).to_pylist()[0])


class Quadruplets(IterableDataset[dict[str, Any]]):
    """What a folder of shards holds: one quadruplet after the other, for a data loader, or any by its number.

    >>> for one in Quadruplets("quadruplets"):
    ...     one["source"], one["mask"], one["subject"]      # PIL pictures: RGB, L, RGB
    ...     one["text"], one["about"]["tag"]
    >>> Quadruplets("quadruplets")[7]["text"]

    Workers of a data loader share the shards among them. The first time that a number is asked for, all shards are
    looked through for where their quadruplets begin.

    Args:
        folder: What ``capriccio collect quadruplets`` made.

    Raises:
        CapriccioError: If the folder holds no finished collection.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.manifest: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text())
            self.shards = [self.folder / shard["name"] for shard in self.manifest["shards"]]
        except (OSError, ValueError, KeyError, TypeError):
            raise CapriccioError(
                f"{str(folder)!r} holds no finished collection; "
                f"run capriccio collect quadruplets SOURCE {folder} first."
            ) from None

    def __len__(self) -> int:
        return int(self.manifest["counts"]["quadruplets"])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        mine = self.shards[worker.id :: worker.num_workers] if worker else self.shards
        for shard in mine:
            read = read_parquet if shard.suffix == ".parquet" else read_tar
            for key, parts in read(shard):
                yield _opened(key, parts)

    def __getitem__(self, number: int) -> dict[str, Any]:
        shard, inside = self._places[number]
        return _opened(*shard[inside])

    @cached_property
    def _places(self) -> list[tuple[TarPlaces | ParquetPlaces, int]]:
        """The shard of each quadruplet, and its number there."""
        try:
            shards = [(ParquetPlaces if path.suffix == ".parquet" else TarPlaces)(path) for path in self.shards]
        except (OSError, tarfile.TarError) as error:
            raise CapriccioError(
                f"A shard of {str(self.folder)!r} cannot be read ({error}); put it back, or collect anew."
            ) from None
        return [(shard, inside) for shard in shards for inside in range(len(shard))]


def _opened(key: str, parts: Record) -> dict[str, Any]:
    """Return a quadruplet for Python: pictures, text, and what else is known of it."""
    pictures = {name: Image.open(BytesIO(parts[_COLUMNS[name]])) for name in ("source", "mask", "subject")}
    return {"key": key, **pictures, "text": parts["txt"].decode(), "about": json.loads(parts["json"])}
