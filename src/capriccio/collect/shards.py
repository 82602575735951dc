"""Shards: many quadruplets in one file, as WebDataset tar or as Parquet, and read back.

A shard is a function of what it holds: no clock, no user and no machine is in its bytes, so equal work gives equal
files. In a tar, the members of one quadruplet share their key: ``KEY.source.png``, ``KEY.mask.png``,
``KEY.subject.png``, ``KEY.txt`` and ``KEY.json``; a Parquet file has the same as columns.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
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
    # PNG pictures do not get smaller.
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), stream, compression="none")
    return stream.getvalue()


_COLUMNS = dict(zip(("source", "mask", "subject", "text", "about"), PARTS, strict=True))


def read_parquet(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield the keys and records of a Parquet shard, in their order."""
    _, parquet = _pyarrow()
    for batch in parquet.ParquetFile(path).iter_batches(batch_size=16):
        for row in batch.to_pylist():
            values = {ending: row[name] for name, ending in _COLUMNS.items()}
            yield row["key"], {e: value.encode() if isinstance(value, str) else value for e, value in values.items()}


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise CapriccioError(
            "Parquet shards need pyarrow, which is not installed; pip install 'capriccio[parquet]', or use tar shards."
        ) from None
    return pyarrow, parquet


class Quadruplets(IterableDataset[dict[str, Any]]):
    """What a folder of shards holds, one quadruplet after the other, for a trainer's data loader.

    >>> for one in Quadruplets("quadruplets"):
    ...     one["source"], one["mask"], one["subject"]      # PIL pictures: RGB, L, RGB
    ...     one["text"], one["about"]["tag"]

    Workers of a data loader share the shards among them.

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
                pictures = {name: Image.open(BytesIO(parts[_COLUMNS[name]])) for name in ("source", "mask", "subject")}
                yield {"key": key, **pictures, "text": parts["txt"].decode(), "about": json.loads(parts["json"])}
