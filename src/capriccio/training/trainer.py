"""The one trainer: a task says what learns, from what, by which loss; ``fit`` does the rest.

Every batch is drawn from a generator seeded by (seed, step, process, part of the step), so a run that is interrupted
and resumed sees the data that it would have seen. A checkpoint is written atomically every ``checkpoint_minutes`` and
at the end. It holds what learns; what stays as it is comes again from where the task took it.

    checkpoint.pt    what learns, its average, the optimisers, how far they are
    log.csv          means of the readings; a table of whole rows whatever interrupts the run
    tensorboard/     the same for TensorBoard, where that is installed
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from capriccio.errors import CapriccioError, nearest
from capriccio.pictures import write_whole
from capriccio.training.hands import spare_hands
from capriccio.training.optimisers import quick_dtype, warm_constant_decay

Batch = dict[str, Tensor]
Readings = Mapping[str, float]
Precision = Literal["auto", "no", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
CHECKPOINT, LOG, BOARD = "checkpoint.pt", "log.csv", "tensorboard"


@dataclass(frozen=True)
class Row:
    """One held-out figure of a card: what was reached, the floor, and the aim."""

    name: str
    value: float
    floor: float
    aim: float


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a task learns.

    ``minutes`` bounds the time spent learning over all runs; ``steps`` the number of steps; the first one reached ends
    the training, and the learning rate decays towards it.

    Attributes:
        accumulation: Batches of one step, whose gradients are averaged: so many times the batch in the same memory.
        precision: Of the forward. ``"auto"`` is bfloat16 where the machine is quick at it; ``"no"`` leaves it single.
        compiled: Whether the repeated blocks of diffusers' models are compiled: a quarter off each step on a CPU (which
            needs a C++ compiler), for half a minute at the first picture of each size.
    """

    minutes: float
    steps: int = 1_000_000
    warmup: int = 200
    decay: float = 0.35
    average: float = 0.999
    seed: int = 0
    precision: Precision = "auto"
    accumulation: int = 1
    checkpoint_minutes: float = 3.0
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise CapriccioError(f"The precision {self.precision!r} is unknown; {nearest(self.precision, PRECISIONS)}")
        if self.accumulation < 1:
            raise CapriccioError(f"accumulation received {self.accumulation}; give 1 batch a step or more.")


class Task(Protocol):
    """What is trained. A recipe is a task."""

    name: str
    schedule: Schedule

    def models(self) -> nn.Module:
        """The module that learns; its ``forward`` is what runs on several processes."""

    def optimisers(self, model: nn.Module) -> list[Optimizer]:
        """Optimisers over the module's parameters."""

    def batch(self, rng: np.random.Generator) -> Batch:
        """One batch of CPU tensors."""

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and readings to show."""

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the averaged weights in their public layout."""

    def measure(self, model: nn.Module) -> list[Row]:
        """Figures on held-out data."""


def learned(module: nn.Module) -> dict[str, Tensor]:
    """Return the state of a module without the parameters that do not learn."""
    still = {name for name, weight in module.named_parameters(remove_duplicate=False) if not weight.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in still}


def restore(module: nn.Module, state: Mapping[str, Tensor], where: Path) -> None:
    """Put what `learned` returned, or a whole state, back into a module.

    Raises:
        CapriccioError: If it is the state of another module.
    """
    try:
        found = module.load_state_dict(state, strict=False)
        strange = [*found.unexpected_keys, *(learned(module).keys() & set(found.missing_keys))]
    except RuntimeError as error:
        strange = [str(error).splitlines()[-1].strip()]
    if strange:
        raise CapriccioError(
            f"The checkpoint in {str(where)!r} is of another model ({sorted(strange)[0]}); choose another folder."
        )


def compile_blocks(module: nn.Module) -> None:
    """Compile in place the blocks that repeat in each model of diffusers, for pictures of any size.

    A frozen model counts too: what learns beside it learns through it, forward and backward.

    Raises:
        CapriccioError: If there are none.
    """
    found = [part for part in module.modules() if getattr(part, "_repeated_blocks", None)]
    if not found:
        raise CapriccioError("Nothing here has repeated blocks to compile; leave --compile out.")
    # Blocks are small enough for the buckets of several processes; cut up for them, some fail at pictures of any size.
    torch._dynamo.config.optimize_ddp = False
    for part in found:
        part.compile_repeated_blocks(dynamic=True)  # type: ignore[operator]


class Average:
    """Exponential moving average of what learns, warmed up so that it follows early learning."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in learned(model).items()}

    def to(self, device: torch.device) -> None:
        """Move to where the module is."""
        self.state = {name: value.to(device) for name, value in self.state.items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the module after ``step`` steps."""
        weight = 1.0 - min(self.decay, (1 + step) / (10 + step))
        for name, value in learned(model).items():
            if value.is_floating_point():
                self.state[name].lerp_(value, weight)
            else:
                self.state[name].copy_(value)


def save_atomically(payload: Any, path: Path) -> None:
    """``torch.save`` that leaves either the old file or the whole new one."""
    scratch = path.with_suffix(".tmp")
    torch.save(payload, scratch)
    os.replace(scratch, path)


def minutes_learned(folder: Path) -> float | None:
    """How long the checkpoint of a run's folder has learned; ``None`` without a checkpoint."""
    found = _checkpoint(folder)
    return None if found is None else float(found["elapsed"]) / 60


def steps_learned(folder: Path) -> int | None:
    """How many steps the checkpoint of a run's folder has learned; ``None`` without a checkpoint."""
    found = _checkpoint(folder)
    return None if found is None else int(found["step"])


def _checkpoint(folder: Path) -> dict[str, Any] | None:
    path = folder / CHECKPOINT
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True) if path.exists() else None


class Batches(Dataset[Batch]):
    """The batches of all steps, by their number: what a process learns from each, whoever asks and when."""

    def __init__(self, task: Task, rank: int) -> None:
        self.task, self.rank = task, rank

    def __getitem__(self, number: int) -> Batch:
        schedule = self.task.schedule
        step, part = divmod(number, schedule.accumulation)
        # Part 0 seeds what the three numbers alone would: numpy fills up with zeros.
        return self.task.batch(np.random.default_rng([schedule.seed, step, self.rank, part]))


class Run:
    """A training in progress: what changes from step to step, and its checkpoint."""

    def __init__(self, task: Task, folder: Path, accelerator: Accelerator) -> None:
        self.task, self.folder, self.accelerator = task, folder, accelerator
        self.step, self.elapsed = 0, 0.0
        self.module = task.models()
        self.optimisers = task.optimisers(self.module)
        self._check_optimisers()
        self.rates = [[group["lr"] for group in optimiser.param_groups] for optimiser in self.optimisers]
        self.average = Average(self.module, task.schedule.average)
        self._load()
        if task.schedule.compiled:
            compile_blocks(self.module)
        self.model, *prepared = accelerator.prepare(self.module, *self.optimisers)
        self.steppers = list(prepared)
        self.average.to(accelerator.device)

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    @property
    def progress(self) -> float:
        """How much of the schedule is done, 0 to 1, the same on every process."""
        schedule = self.task.schedule
        mine = max(self.step / schedule.steps, self.elapsed / (60 * schedule.minutes))
        shared = torch.tensor([mine], device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            torch.distributed.broadcast(shared, src=0)
        return float(shared)

    def _check_optimisers(self) -> None:
        # accelerate scales the gradients back for the first optimiser, then once more for each other one.
        if self.accelerator.scaler is not None and len(self.optimisers) > 1:
            raise CapriccioError(
                f"precision 'fp16' works with one optimiser, but {self.task.name} has {len(self.optimisers)}; "
                "use 'bf16'."
            )

    def _load(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        restore(self.module, state["model"], self.folder)
        self.average.state = state["average"]
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.elapsed = state["step"], state["elapsed"]

    def save(self) -> None:
        """Write the checkpoint (first process only)."""
        scaler = self.accelerator.scaler  # of gradients, where the forward is in float16
        if self.accelerator.is_main_process:
            save_atomically(
                {
                    "model": learned(self.module),
                    "average": self.average.state,
                    "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
                    "step": self.step,
                    "elapsed": self.elapsed,
                    **({} if scaler is None else {"scaler": scaler.state_dict()}),
                },
                self.checkpoint,
            )

    def batches(self) -> Iterator[Batch]:
        """The batches of all steps to come; beside a GPU they are made by all cores that are free."""
        budget, schedule = "cpu" if self.accelerator.device.type == "cpu" else "gpu", self.task.schedule
        hands = min(12, spare_hands(budget, self.accelerator.num_processes))
        numbered = Batches(self.task, self.accelerator.process_index)
        to_come = range(self.step * schedule.accumulation, schedule.steps * schedule.accumulation)
        yield from DataLoader(numbered, batch_size=None, sampler=to_come, num_workers=hands)  # type: ignore[arg-type]

    def advance(self, batches: Iterator[Batch], progress: float) -> list[Readings]:
        """One step of learning, from as many batches as the schedule accumulates; returns the readings of each."""
        schedule, rank = self.task.schedule, self.accelerator.process_index
        noise = torch.Generator().manual_seed((schedule.seed * 1_000_003 + self.step) * 64 + rank)
        factor = warm_constant_decay(progress, self.step, schedule.warmup, schedule.decay)
        for optimiser, rates in zip(self.optimisers, self.rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        readings = [self._learn_from(next(batches), noise) for _ in range(schedule.accumulation)]
        self.step += 1
        self.average.update(self.module, self.step)
        return readings

    def _learn_from(self, batch: Batch, noise: torch.Generator) -> Readings:
        """Add the gradient of one batch; with that of the last batch of a step, take the step."""
        batch = {name: value.to(self.accelerator.device) for name, value in batch.items()}
        with self.accelerator.accumulate(self.model):
            loss, readings = self.task.loss(self.model, batch, noise)
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.module.parameters(), 1.0)
            for stepper in self.steppers:  # accelerate lets them wait for the last batch
                stepper.step()
                stepper.zero_grad()
        return {"loss": float(loss.detach())} | {name: float(value.detach()) for name, value in readings.items()}


class Log:
    """Means of the readings every so many steps: printed, in ``log.csv``, and in TensorBoard where it is installed.

    A resumed run takes up the table at its own step: what a lost run had noted beyond it is forgotten.

    Args:
        run: The training.
        every: Steps of one row.
    """

    def __init__(self, run: Run, every: int = 50) -> None:
        self.run, self.every = run, every
        self.found: list[Readings] = []
        self.writes = run.accelerator.is_main_process
        self.rows = [row for row in read_table(run.folder / LOG) if row["step"] <= run.step] if self.writes else []
        self.board = tensorboard(run.folder / BOARD, run.step + 1) if self.writes else None

    def add(self, readings: Sequence[Readings], progress: float) -> None:
        """Take in the readings of one step."""
        self.found += readings
        if self.run.step % self.every:
            return
        if self.writes:
            self._tell(means(self.found), progress)
        self.found.clear()

    def _tell(self, readings: Readings, progress: float) -> None:
        row = {"step": self.run.step, "minutes": round(self.run.elapsed / 60, 2), **readings}
        print(f"{self.run.task.name} {100 * progress:5.1f} %  {json.dumps(row)}", flush=True)
        self.rows.append(row)
        write_table(self.rows, self.run.folder / LOG)
        if self.board is not None:
            for name, value in readings.items():
                self.board.add_scalar(name, value, self.run.step)
            self.board.flush()

    def close(self) -> None:
        """Let go of TensorBoard's file."""
        if self.board is not None:
            self.board.close()


def means(readings: Sequence[Readings]) -> dict[str, float]:
    """Return the mean of each reading over those that have it, to four places."""
    names = dict.fromkeys(name for one in readings for name in one)
    return {name: round(float(np.mean([one[name] for one in readings if name in one])), 4) for name in names}


def write_table(rows: Sequence[Readings], path: Path) -> None:
    """Write rows as CSV, whole or not at all; a row without a reading has nothing in its column."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_whole(path, text.getvalue().encode())


def read_table(path: Path) -> list[dict[str, float]]:
    """Return the rows that `write_table` wrote; none if there is no file."""
    if not path.exists():
        return []
    rows = csv.DictReader(io.StringIO(path.read_text()))
    return [{name: _number(value) for name, value in row.items() if value} for row in rows]


def _number(text: str) -> float:
    return int(text) if text.isdigit() else float(text)


def tensorboard(folder: Path, step: int) -> Any:
    """Return TensorBoard's writer for a run that begins at a step; nothing where TensorBoard is not installed.

    What an earlier run wrote of that step and later ones is no longer shown.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step)  # type: ignore[no-untyped-call]


def fit(task: Task, folder: Path) -> nn.Module:
    """Train ``task`` until its schedule ends, resuming from ``folder`` when a checkpoint is there.

    Args:
        task: What to train.
        folder: Where checkpoint and log live; made if absent.

    Returns:
        The module with the averaged weights, on the CPU, in evaluation mode.
    """
    cpu, schedule = not torch.cuda.is_available(), task.schedule
    precision = chosen_precision(schedule.precision, "cpu" if cpu else "cuda")
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision, gradient_accumulation_steps=schedule.accumulation)
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(task, folder, accelerator)
    with _short_attention() if cpu else nullcontext():
        _learn(run)
    run.accelerator.wait_for_everyone()
    restore(run.module, run.average.state, folder)
    return run.module.to("cpu").eval()


def chosen_precision(asked: Precision, device: str) -> str:
    """Return the precision of the forward on a device, as accelerate calls it.

    Raises:
        CapriccioError: If float16 is asked of a CPU.
    """
    if asked == "fp16" and device == "cpu":
        raise CapriccioError("precision 'fp16' needs a GPU, and there is none; use 'auto', 'bf16' or 'no'.")
    if asked == "auto":
        return "bf16" if quick_dtype(device) == torch.bfloat16 else "no"
    return asked


@contextmanager
def _short_attention() -> Iterator[None]:
    """Attention by plain products: on CPUs, over a hundred tokens, the fused backward costs two to four times more."""
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # its name says cuda, its effect is on CPUs too
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def _learn(run: Run) -> None:
    """Step until the schedule ends; whatever happens, leave a checkpoint."""
    task = run.task
    task.batch(np.random.default_rng(0))  # galleries and pools are made on first use: that is no time of learning
    log, batches, saved = Log(run), run.batches(), time.monotonic()
    run.model.train()
    try:
        while (progress := run.progress) < 1.0:
            started = time.monotonic()
            log.add(run.advance(batches, progress), progress)
            run.elapsed += time.monotonic() - started
            if time.monotonic() - saved > 60 * task.schedule.checkpoint_minutes:
                run.save()
                saved = time.monotonic()
    finally:
        run.save()
        log.close()


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write figures as JSON, atomically."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    os.replace(scratch, path)
