"""A run: from a folder of pictures to a folder of shards, whatever interrupts it.

    OUT/quadruplets-00000.tar ...   shards, each of the same number of sources, in the order of their paths
    OUT/manifest.json               settings, versions, counts, hashes: written last
    OUT/quarantine.jsonl            pictures that were refused, and why
    OUT/journal.jsonl               what became of every picture so far; the file that a resumed run reads
    OUT/.lock                       held while a run writes

Results come in the order of the sources, so that what is done is always a prefix of them, and the journal needs no
more than one line for each. The bytes of a picture's quadruplets reach the shard under way before its line is written;
a resumed run cuts off whatever has no line. Hence a run that was killed, however often, ends with the files of one that
was not.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from capriccio.collect.engines import Engine, engine
from capriccio.collect.shards import END, FORMATS, Format, parquet_bytes, read_tar, tar_bytes
from capriccio.collect.sources import Listing, Settings, Unit, list_pictures, work
from capriccio.errors import CapriccioError, nearest
from capriccio.pictures import sha256, write_whole

SCHEMA_VERSION = 1
_PACKAGES = ("capriccio", "torch", "transformers", "numpy", "scipy", "pillow")
Told = Callable[[int, int], object]


def collect_quadruplets(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    form: Format = "tar",
    per_shard: int = 256,
    by: Engine | None = None,
    device: str = "cpu",
    told: Told = lambda done, total: None,
) -> dict[str, Any]:
    """Make quadruplets of every picture in a folder; a run that was interrupted goes on.

    Args:
        source: The folder; the folders in it are looked into.
        out: Where shards and manifest go.
        settings: What decides what is made of a picture.
        form: ``"tar"`` (WebDataset) or ``"parquet"``.
        per_shard: Sources of one shard.
        by: Who does the work; this process if not given.
        device: Where models run.
        told: Called with the number of pictures done and of all.

    Returns:
        The manifest.

    Raises:
        CapriccioError: If the source holds no pictures, the output belongs to another run or other settings, or an
            engine or a model fails. What is finished is kept.
    """
    if form not in FORMATS:
        raise CapriccioError(f"There are no {form!r} shards; {nearest(form, FORMATS)}")
    if per_shard < 1:
        raise CapriccioError(f"per_shard received {per_shard}; give 1 or more.")
    if form == "parquet":
        parquet_bytes([])  # who lacks pyarrow hears of it now
    settings, began, out = settings or Settings(), time.monotonic(), Path(out)
    listing = list_pictures(Path(source), leave_out=out)
    with locked(out), _room_on_disk(out):
        run = Run.begin(out, heading(listing, settings, form, per_shard))
        before = len(run.lines)
        told(before, len(listing.pictures))
        for unit in (by or engine())(partial(work, listing.root, settings, device), listing.pictures[before:]):
            run.add(unit)
            told(len(run.lines), len(listing.pictures))
        here = {"seconds": round(time.monotonic() - began, 3), "pictures": len(run.lines) - before, "device": device}
        return run.finish(listing, here)


def heading(listing: Listing, settings: Settings, form: Format, per_shard: int) -> dict[str, Any]:
    """Return what must not change between a run and its resumption."""
    names = "\n".join(listing.pictures).encode("utf-8", "surrogateescape")
    cast = {"stages": settings.cast.stages, **dict(settings.cast.models)}
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "quadruplets",
        "settings": cast
        | asdict(settings.limits)
        | {"longest": settings.longest, "format": form, "per_shard": per_shard},
        "sources": {"pictures": len(listing.pictures), "sha256": sha256(names)},
        "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
    }


# --- the lock ----------------------------------------------------------------------------------------------------


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold an output folder, making it if needed; the system lets go of it when the process ends, however it ends.

    Raises:
        CapriccioError: If another run holds it, or it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise CapriccioError(f"{str(out)!r} cannot be written ({error.strerror}); choose another folder.") from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            who = os.pread(file, 200, 0).decode(errors="replace").strip() or "unknown"
            raise CapriccioError(
                f"Another run is writing to {str(out)!r} ({who}); wait until it ends, or choose another folder."
            ) from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(file)


@contextmanager
def _room_on_disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CapriccioError(
            f"{str(out)!r} cannot be written ({error.strerror or error}); make room or mend it, and run the same "
            "command: what is finished is kept."
        ) from None


# --- the journal -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Journal:
    """What a journal tells.

    Attributes:
        heading: Of the run; nothing if it never began.
        lines: One for each picture that is done, in order.
        shards: One for each shard that is sealed, in order.
        size: Bytes of the journal that are whole lines.
    """

    heading: dict[str, Any] | None = None
    lines: tuple[dict[str, Any], ...] = ()
    shards: tuple[dict[str, Any], ...] = ()
    size: int = 0


def read_journal(data: bytes) -> Journal:
    """Return what a journal tells; a last line that was cut short is left out.

    Raises:
        CapriccioError: If any other line is damaged.
    """
    whole = data[: data.rfind(b"\n") + 1]
    try:
        entries = [json.loads(line) for line in whole.splitlines()]
        heads = [entry["run"] for entry in entries[:1]]
        lines = tuple(entry["unit"] for entry in entries[1:] if "unit" in entry)
        shards = tuple(entry["shard"] for entry in entries[1:] if "shard" in entry)
    except (ValueError, KeyError, TypeError):
        raise CapriccioError("The journal of this folder is damaged; collect into another folder.") from None
    return Journal(heads[0] if heads else None, lines, shards, len(whole))


def under_way(lines: Sequence[Mapping[str, Any]], sealed: int, per_shard: int) -> list[Mapping[str, Any]]:
    """Return the lines of the shard under way: all that no sealed shard holds."""
    return list(lines[sealed * per_shard :])


# --- the run -----------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """An output folder being written; made by `begin`, which finds out how far it is."""

    out: Path
    heading: dict[str, Any]
    lines: list[dict[str, Any]] = field(default_factory=list)
    shards: list[dict[str, Any]] = field(default_factory=list)
    first: dict[str, str] = field(default_factory=dict)
    """The first source of every content so far."""

    @classmethod
    def begin(cls, out: Path, heading: dict[str, Any]) -> Run:
        """Return a new run, or one that goes on where it was interrupted.

        Raises:
            CapriccioError: If the folder holds another run, or lost a shard.
        """
        run = cls(out, heading)
        data = run.journal.read_bytes() if run.journal.exists() else b""
        told = read_journal(data)
        if told.heading is None:
            write_whole(run.journal, _line({"run": heading}))
            return run
        _check_same(out, told.heading, heading)
        os.truncate(run.journal, told.size)
        run.lines, run.shards = list(told.lines), list(told.shards)
        run._check_shards()
        run._recover()
        for line in run.lines:
            run.first.setdefault(line["sha256"], line["source"])
        return run

    @property
    def journal(self) -> Path:
        return self.out / "journal.jsonl"

    @property
    def per_shard(self) -> int:
        return int(self.heading["settings"]["per_shard"])

    @property
    def part(self) -> Path:
        """The shard under way, always a tar file that is still open at its end."""
        return self.out / f".quadruplets-{len(self.shards):05d}.part"

    def add(self, unit: Unit) -> None:
        """Keep what became of the next picture; of equal files only the first counts."""
        first = self.first.setdefault(unit.sha256, unit.source) if unit.sha256 else unit.source
        fresh = first == unit.source and unit.refused is None
        records = unit.records if fresh else ()
        number = len(self.lines)
        data = b"".join(tar_bytes(f"{number:08d}-{index:02d}", one) for index, one in enumerate(records))
        with self.part.open("ab") as file:
            file.write(data)
            end = file.tell()
        line = {"source": unit.source, "sha256": unit.sha256, "quadruplets": len(records), "end": end}
        if first != unit.source:
            line["copy_of"] = first
        elif unit.refused is not None:
            line["refused"] = unit.refused
        elif unit.dropped:
            line["dropped"] = dict(unit.dropped)
        self._note({"unit": line})
        self.lines.append(line)
        if len(self.lines) % self.per_shard == 0 or len(self.lines) == self.heading["sources"]["pictures"]:
            self._seal()

    def finish(self, listing: Listing, timings: Mapping[str, Any]) -> dict[str, Any]:
        """Write quarantine and manifest, and return the manifest; one that is there already stays."""
        refused = [{"source": line["source"], "reason": line["refused"]} for line in self.lines if "refused" in line]
        write_whole(self.out / "quarantine.jsonl", b"".join(map(_line, refused)))
        path = self.out / "manifest.json"
        if path.exists():
            return dict(json.loads(path.read_text()))
        manifest = manifest_of(self.heading, self.lines, self.shards, listing) | {"timings": dict(timings)}
        write_whole(path, (json.dumps(manifest, indent=1) + "\n").encode())
        return manifest

    def _check_shards(self) -> None:
        for shard in self.shards:
            path = self.out / shard["name"]
            if not path.exists() or path.stat().st_size != shard["bytes"]:
                raise CapriccioError(
                    f"The finished shard {str(path)!r} is missing or changed; put it back, "
                    "or collect into another folder."
                )

    def _recover(self) -> None:
        """Cut off what has no line, forget lines whose bytes are lost, and seal what only lacked its seal."""
        mine = under_way(self.lines, len(self.shards), self.per_shard)
        if mine and not self.part.exists() and self._final.exists():
            self._sealed()  # interrupted between the shard and its line
            return
        there = self.part.stat().st_size if self.part.exists() else 0
        kept = [line for line in mine if line["end"] <= there]
        if len(kept) < len(mine):  # only where a machine lost power
            self.lines = self.lines[: len(self.lines) - len(mine) + len(kept)]
            told = [{"shard": one} for one in self.shards] + [{"unit": one} for one in self.lines]
            write_whole(self.journal, b"".join(map(_line, [{"run": self.heading}, *told])))
        if self.part.exists():
            os.truncate(self.part, kept[-1]["end"] if kept else 0)
        if kept and (len(kept) == self.per_shard or len(self.lines) == self.heading["sources"]["pictures"]):
            self._seal()

    @property
    def _final(self) -> Path:
        return self.out / f"quadruplets-{len(self.shards):05d}.{self.heading['settings']['format']}"

    def _seal(self) -> None:
        """Turn the shard under way into a finished one, whole or not at all."""
        with self.part.open("ab") as file:
            file.write(END)
            file.flush()
            os.fsync(file.fileno())
        if self._final.suffix == ".tar":
            os.replace(self.part, self._final)
        else:
            write_whole(self._final, parquet_bytes(read_tar(self.part)))
            self.part.unlink()
        self._sealed()

    def _sealed(self) -> None:
        mine = under_way(self.lines, len(self.shards), self.per_shard)
        with self._final.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        shard = {
            "name": self._final.name,
            "sha256": digest,
            "bytes": self._final.stat().st_size,
            "pictures": len(mine),
            "quadruplets": sum(line["quadruplets"] for line in mine),
        }
        self._note({"shard": shard}, sync=True)
        self.shards.append(shard)

    def _note(self, entry: Mapping[str, Any], sync: bool = False) -> None:
        with self.journal.open("ab") as file:
            file.write(_line(entry))
            file.flush()
            if sync:
                os.fsync(file.fileno())


def manifest_of(
    heading: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    shards: Sequence[Mapping[str, Any]],
    listing: Listing,
) -> dict[str, Any]:
    """Return the manifest of a finished run, but for its timings: a function of sources and settings alone."""
    dropped = sum((Counter(line.get("dropped", {})) for line in lines), Counter[str]())
    return {
        **heading,
        "sources": {
            **heading["sources"],
            "other_files": listing.other_files,
            "linked_folders_not_followed": list(listing.linked_folders),
        },
        "counts": {
            "pictures": dict(sorted(Counter(map(outcome, lines)).items())),
            "quadruplets": sum(line["quadruplets"] for line in lines),
            "dropped": dict(sorted(dropped.items())),
        },
        "quarantine": [{"source": line["source"], "reason": line["refused"]} for line in lines if "refused" in line],
        "copies": [{"source": line["source"], "copy_of": line["copy_of"]} for line in lines if "copy_of" in line],
        "shards": list(shards),
    }


def outcome(line: Mapping[str, Any]) -> str:
    """Return what became of a picture: ``"used"``, ``"empty"``, ``"copy"`` or ``"refused"``."""
    if "copy_of" in line:
        return "copy"
    return "refused" if "refused" in line else "used" if line["quadruplets"] else "empty"


def _line(entry: Mapping[str, Any]) -> bytes:
    return (json.dumps(entry) + "\n").encode()


def _check_same(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a folder that was begun otherwise, and name the first thing that differs."""
    was, is_ = _flat(before), _flat(now)
    for name in is_:
        if was.get(name) != is_[name]:
            raise CapriccioError(
                f"{str(out)!r} was begun with another {name} ({was.get(name)} before, {is_[name]} now); "
                "use what it was begun with, or collect into another folder."
            )


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        key = f"{prefix}{name}"
        flat |= _flat(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return flat
