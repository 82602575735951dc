"""The one trainer: a task says what learns, from what, by which loss; ``fit`` does the rest.

Every batch is drawn from a generator seeded by (seed, step, process), so a run that is interrupted and resumed sees
the data that it would have seen. A checkpoint is written atomically every ``checkpoint_minutes`` and at the end.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from capriccio.training.hands import spare_hands
from capriccio.training.optimisers import quick_dtype, warm_constant_decay

Batch = dict[str, Tensor]
CHECKPOINT = "checkpoint.pt"


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
    the training, and the learning rate decays towards it. ``half`` lets the forward run in bfloat16 where the machine
    is quick at it.
    """

    minutes: float
    steps: int = 1_000_000
    warmup: int = 200
    decay: float = 0.35
    average: float = 0.999
    seed: int = 0
    half: bool = True
    checkpoint_minutes: float = 3.0


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


class Average:
    """Exponential moving average of a module's state, warmed up so that it follows early learning."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the module after ``step`` steps."""
        weight = 1.0 - min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
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
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    return float(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["elapsed"]) / 60


class Steps(Dataset[Batch]):
    """The batch of every step: what a process learns at it, whoever asks and when."""

    def __init__(self, task: Task, rank: int) -> None:
        self.task, self.rank = task, rank

    def __getitem__(self, step: int) -> Batch:
        return self.task.batch(np.random.default_rng([self.task.schedule.seed, step, self.rank]))


class Run:
    """A training in progress: what changes from step to step, and its checkpoint."""

    def __init__(self, task: Task, folder: Path, accelerator: Accelerator) -> None:
        self.task, self.folder, self.accelerator = task, folder, accelerator
        self.step, self.elapsed = 0, 0.0
        self.module = task.models()
        self.optimisers = task.optimisers(self.module)
        self.rates = [[group["lr"] for group in optimiser.param_groups] for optimiser in self.optimisers]
        self.average = Average(self.module, task.schedule.average)
        self._load()
        self.model, *prepared = accelerator.prepare(self.module, *self.optimisers)
        self.steppers = list(prepared)

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

    def _load(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["model"])
        self.average.state = state["average"]
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.elapsed = state["step"], state["elapsed"]

    def save(self) -> None:
        """Write the checkpoint (first process only)."""
        if self.accelerator.is_main_process:
            save_atomically(
                {
                    "model": self.module.state_dict(),
                    "average": self.average.state,
                    "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
                    "step": self.step,
                    "elapsed": self.elapsed,
                },
                self.checkpoint,
            )

    def batches(self) -> Iterator[Batch]:
        """The batches of all steps to come; beside a GPU they are made by all cores that are free."""
        budget = "cpu" if self.accelerator.device.type == "cpu" else "gpu"
        hands = min(12, spare_hands(budget, self.accelerator.num_processes))
        steps = Steps(self.task, self.accelerator.process_index)
        to_come = range(self.step, self.task.schedule.steps)
        yield from DataLoader(steps, batch_size=None, sampler=to_come, num_workers=hands)  # type: ignore[arg-type]

    def advance(self, batch: Batch, progress: float) -> dict[str, float]:
        """One step of learning from a batch; returns its readings."""
        task, schedule, rank = self.task, self.task.schedule, self.accelerator.process_index
        batch = {name: value.to(self.accelerator.device) for name, value in batch.items()}
        noise = torch.Generator().manual_seed((schedule.seed * 1_000_003 + self.step) * 64 + rank)
        factor = warm_constant_decay(progress, self.step, schedule.warmup, schedule.decay)
        for optimiser, rates in zip(self.optimisers, self.rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        loss, readings = task.loss(self.model, batch, noise)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.module.parameters(), 1.0)
        for stepper in self.steppers:
            stepper.step()
            stepper.zero_grad()
        self.step += 1
        self.average.update(self.module, self.step)
        return {"loss": float(loss.detach())} | {name: float(value.detach()) for name, value in readings.items()}


class Log:
    """Running means of the readings, printed and appended to ``log.jsonl`` every ``every`` steps."""

    def __init__(self, run: Run, every: int = 50) -> None:
        self.run, self.every = run, every
        self.sums: dict[str, list[float]] = {}

    def add(self, readings: dict[str, float], progress: float) -> None:
        for name, value in readings.items():
            self.sums.setdefault(name, []).append(value)
        if self.run.step % self.every == 0 and self.run.accelerator.is_main_process:
            means = {name: round(float(np.mean(values)), 4) for name, values in self.sums.items()}
            line = {"step": self.run.step, "minutes": round(self.run.elapsed / 60, 2), **means}
            print(f"{self.run.task.name} {100 * progress:5.1f} %  {json.dumps(line)}", flush=True)
            with (self.run.folder / "log.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        if self.run.step % self.every == 0:
            self.sums.clear()


def fit(task: Task, folder: Path) -> nn.Module:
    """Train ``task`` until its schedule ends, resuming from ``folder`` when a checkpoint is there.

    Args:
        task: What to train.
        folder: Where checkpoint and log live; made if absent.

    Returns:
        The module with the averaged weights, on the CPU, in evaluation mode.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cpu = not torch.cuda.is_available()
    half = task.schedule.half and quick_dtype("cpu" if cpu else "cuda") == torch.bfloat16
    run = Run(task, folder, Accelerator(cpu=cpu, mixed_precision="bf16" if half else "no"))
    with _short_attention() if cpu else nullcontext():
        _learn(run)
    run.accelerator.wait_for_everyone()
    run.module.load_state_dict(run.average.state)
    return run.module.to("cpu").eval()


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
            log.add(run.advance(next(batches), progress), progress)
            run.elapsed += time.monotonic() - started
            if time.monotonic() - saved > 60 * task.schedule.checkpoint_minutes:
                run.save()
                saved = time.monotonic()
    finally:
        run.save()


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write figures as JSON, atomically."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    os.replace(scratch, path)
