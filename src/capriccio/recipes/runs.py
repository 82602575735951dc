"""What a training leaves in its folder, and the processes that it runs in: the same for every recipe.

A run's folder holds the trainer's files and a ``record.json``: what it began from (settings, and hashes of the weights
it needs) and, once it has ended, a hash of what it made.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from capriccio.errors import Cancelled

THRIFT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
"""One thread a process; and glibc keeps what it is given back, for a quarter of a step went into fresh pages."""


def launch_worker(module: str, order: str, processes: int, run: Path) -> int:
    """Run a module with one argument on so many processes to its end, and return its exit code.

    Args:
        module: Whose main part is the worker.
        order: Its argument.
        processes: On this machine; each GPU has one.
        run: Where its checkpoint lies.

    Raises:
        Cancelled: When interrupted, after the worker has written its checkpoint.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    worker = subprocess.Popen([*command, "-m", module, order], env=THRIFT | os.environ, stdout=sys.stderr)
    try:
        return worker.wait()
    except KeyboardInterrupt:
        worker.wait()  # the terminal has interrupted the worker as well: it writes its checkpoint
        raise Cancelled(f"Stopped; the same command goes on from {run}.") from None


def rank() -> int:
    """The number of this process among those of a worker; the first one writes."""
    return int(os.environ.get("RANK", 0))


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of a folder; nothing where there is none."""
    path = folder / "record.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write the record of a folder, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / "record.tmp"
    scratch.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(scratch, folder / "record.json")


def set_aside(run: Path) -> Path:
    """Move the folder of a run out of the way, and return where it is now."""
    aside = next(place for place in (Path(f"{run}.old{n}") for n in count(1)) if not place.exists())
    run.rename(aside)
    return aside


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Put what ``write`` leaves in a scratch folder into the place of ``folder``: nothing old stays, nothing half."""
    scratch, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    write(scratch)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    scratch.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def commit() -> str:
    """The commit of the folder that this runs in, or ``"unknown"``."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
