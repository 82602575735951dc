"""How a benchmark speaks: a table for people, one JSON object a line for programs, a file that carries its recipe."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from capriccio.evaluation.statistics import mean_interval, paired_gain
from capriccio.pictures import write_whole

Row = Mapping[str, Any]
_PACKAGES = ("capriccio", "torch", "diffusers", "transformers", "numpy", "scipy")
_WIDTH = 120


def recipe(**protocol: Any) -> dict[str, Any]:
    """Return what somebody needs to get the same numbers again: machine, versions, protocol."""
    return {"machine": machine(), "versions": {name: version(name) for name in _PACKAGES}, "protocol": protocol}


def machine() -> dict[str, Any]:
    """Return the processor, its cores and threads, the accelerator (or ``None``) and the Python version."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
        "system": platform.system(),
        "python": platform.python_version(),
    }


def show(rows: Sequence[Row], title: str, as_json: bool = False) -> None:
    """Print rows to the standard output, as a table or as one JSON object a line."""
    if as_json:
        print(json_lines(rows), flush=True)
    else:
        # Where the output is no terminal, 80 columns would cut the cells.
        Console(width=max(Console().width, _WIDTH)).print(table(rows, title))


def json_lines(rows: Iterable[Row]) -> str:
    """Return one JSON object a line; numbers are rounded to six digits."""
    return "\n".join(json.dumps({key: _rounded(value) for key, value in row.items()}) for row in rows)


def rising(about: Row, values: Mapping[Any, Sequence[float]], setting: str = "scale") -> Iterator[Row]:
    """Return a row for each setting of a series, with its paired gain over the one before as ``rise``.

    Args:
        about: What all rows say.
        values: For each setting, in order, a score a subject.
        setting: What the settings are called.
    """
    before: Sequence[float] | None = None
    for name, scores in values.items():
        row = {**about, setting: name, **asdict(mean_interval(scores)), "n": len(scores)}
        if before is not None:
            gain = paired_gain(scores, before)
            row |= {"rise": gain.value, "rise_low": gain.low, "rise_high": gain.high}
        before = scores
        yield row


def table(rows: Sequence[Row], title: str) -> Table:
    """Return the rows as a table whose columns are all their keys, in the order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    result = Table(title=title)
    for column in columns:
        result.add_column(column)
    for row in rows:
        result.add_row(*(_cell(row.get(column)) for column in columns))
    return result


def save(path: str | Path, rows: Sequence[Row], made_by: Mapping[str, Any]) -> None:
    """Write rows and their recipe as one JSON file, whole or not at all.

    Args:
        path: The file, by custom ``benchmarks/results/<name>.json``.
        rows: The table.
        made_by: What :func:`recipe` returned.
    """
    lines = ",\n  ".join(json_lines([row]) for row in rows)
    text = f'{{"recipe": {json.dumps(made_by, indent=1)},\n "rows": [\n  {lines}\n ]}}\n'
    write_whole(path, text.encode())


def note(text: str) -> None:
    """Tell the person how far things are, beside the results: on the standard error."""
    print(text, file=sys.stderr, flush=True)


def counting(name: str, total: int | None = None) -> Callable[[int], None]:
    """Return what is told how many more pictures were finished, and notes how many there are."""
    done, of = 0, "" if total is None else f" of {total}"

    def told(more: int) -> None:
        nonlocal done
        done += more
        note(f"{name}: {done}{of} pictures")

    return told


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
