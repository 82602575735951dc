"""The miniature family: what is trained, in which order, where it lands, and the card that goes with it.

``train("flux")`` starts the worker of this module on as many processes as there are cores (one per process learns
faster than one process with several threads), or on the GPU; the worker trains, saves, measures and writes the card.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from capriccio import assets
from capriccio.errors import CapriccioError, nearest

ORDER = (
    "vae", "vae-decoder", "reader", "people-reader", "clip",
    "flux", "fill", "controlnet-inpaint", "sd", "sd-inpaint",
)  # fmt: skip
TASKS = {
    "vae": "vae.VAETask",
    "vae-decoder": "vae.DecoderTask",
    "reader": "reader.ReaderTask",
    "people-reader": "people_reader.PeopleReaderTask",
    "clip": "clip.ClipTask",
    "flux": "flux.FluxTask",
    "fill": "inpainting.FillTask",
    "controlnet-inpaint": "inpainting.ControlNetTask",
    "sd": "sd.SDTask",
    "sd-inpaint": "sd.SDInpaintTask",
}
LANDS_IN = {"vae-decoder": "vae"}
"""Where weights land that are not a model of their own."""

THRIFT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
"""One thread a process; and glibc keeps what it is given back, for a quarter of a step went into fresh pages."""


@dataclass(frozen=True)
class Order:
    """One training to be done.

    Args:
        name: One of ``ORDER``.
        runs: Folder of checkpoints, logs and the gallery.
        budget: ``"cpu"`` or ``"gpu"``: sizes of models and batches.
        minutes: How long to learn, over all runs; ``None`` takes the recipe's.
        seed: Seed of weights and data; ``None`` takes the recipe's.
        start: A finished folder of weights to go on from, where the recipe can.
    """

    name: str
    runs: Path = Path("runs")
    budget: str = "cpu"
    minutes: float | None = None
    seed: int | None = None
    start: Path | None = None

    def __post_init__(self) -> None:
        if self.name not in TASKS:
            raise CapriccioError(f"There is no model {self.name!r} in the miniature: {nearest(self.name, TASKS)}")
        if self.budget not in ("cpu", "gpu"):
            raise CapriccioError(f"The budget {self.budget!r} is unknown: {nearest(self.budget, ('cpu', 'gpu'))}")

    @property
    def folder(self) -> str:
        """Where the weights land, inside the assets."""
        return f"miniature/{LANDS_IN.get(self.name, self.name)}"

    def arguments(self) -> list[str]:
        """The order as arguments of this module's worker."""
        pairs = [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]
        return [f"--{name}={value}" for name, value in pairs if value is not None]


def train(order: Order, processes: int | None = None) -> None:
    """Carry out one order in worker processes, with its progress on the terminal.

    Raises:
        CapriccioError: If the worker failed; its own words stand above.
    """
    count = processes or (1 if order.budget == "gpu" else os.cpu_count() or 1)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = [*launch, "-m", "capriccio.recipes.miniature", *order.arguments()]
    if subprocess.run(command, env=THRIFT | os.environ, check=False).returncode:
        raise CapriccioError(
            f"Training {order.name!r} stopped before its end; run the same command again, it resumes from {order.runs}"
        )


def make_task(order: Order) -> Any:
    """The task of an order, with what it asks for."""
    module, name = TASKS[order.name].split(".")
    kind: Callable[..., Any] = getattr(import_module(f"capriccio.recipes.{module}"), name)
    accepted = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if order.start is not None and "start" not in accepted:
        raise CapriccioError(f"The recipe of {order.name!r} cannot go on from a folder; leave --start out.")
    given = {
        "budget": order.budget,
        "runs": order.runs,
        "start": order.start,
        "rank": int(os.environ.get("RANK", 0)),
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
    }
    task = kind(**{key: value for key, value in given.items() if key in accepted})
    changes = {"minutes": order.minutes, "seed": order.seed}
    task.schedule = dataclasses.replace(task.schedule, **{k: v for k, v in changes.items() if v is not None})
    return task


def card(order: Order, task: Any, parameters: int, steps: int, rows: list[Any]) -> str:
    """The card of a trained model, in Markdown."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    lines = [
        f"# Miniature: {order.name}",
        "",
        (import_module(type(task).__module__).__doc__ or "").strip(),
        "",
        f"- Data: the procedural world of capriccio, training split, seed {task.schedule.seed}; drawn on the fly.",
        f"- Recipe: `capriccio train miniature {order.name} --budget {order.budget} "
        f"--minutes {task.schedule.minutes:g}`",
        f"- Steps: {steps}; parameters that learned: {parameters / 1e6:.1f} M; weights: average, half precision.",
        f"- Machine: {platform.machine()}, {os.cpu_count()} cores; commit {commit.strip() or 'unknown'}.",
        "- Licence: Apache-2.0.",
        "",
        "| held-out figure | value | floor | aim |",
        "| --- | --- | --- | --- |",
        *(f"| {row.name} | {row.value:g} | {row.floor:g} | {row.aim:g} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def carry_out(order: Order) -> None:
    """Train, save, measure: the worker's whole job (every process runs it; the first one writes)."""
    import torch

    from capriccio.training.trainer import fit, write_rows

    torch.set_num_threads(1 if order.budget == "cpu" else 8)
    task = make_task(order)
    model = fit(task, order.runs / order.name)
    if int(os.environ.get("RANK", 0)) == 0:
        folder = Path(assets.__file__).parent / order.folder
        replace_folder(folder, lambda scratch: task.save(model, scratch))
        model.float()
        rows = task.measure(model)
        write_rows(rows, folder / "metrics.json")
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        last = (order.runs / order.name / "log.jsonl").read_text().splitlines()[-1]
        (folder / "README.md").write_text(card(order, task, parameters, json.loads(last)["step"], rows))


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


def _parse(arguments: list[str]) -> Order:
    parser = argparse.ArgumentParser()
    kinds = {"minutes": float, "seed": int, "runs": Path, "start": Path}
    for field in dataclasses.fields(Order):
        parser.add_argument(f"--{field.name}", type=kinds.get(field.name, str))
    given = vars(parser.parse_args(arguments))
    return Order(**{name: value for name, value in given.items() if value is not None})


if __name__ == "__main__":
    carry_out(_parse(sys.argv[1:]))
