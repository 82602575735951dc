"""Both stages of LAR-Gen by a recipe, each in a folder of its own; what was interrupted goes on.

OUT/NAME/assign/            stage 1: checkpoint, log, record
OUT/NAME/assign/weights/    Assign, CLIP, and in ``inpainting`` the inpainting model that learned
OUT/NAME/refine/            stage 2
OUT/NAME/refine/weights/    Assign, RefineNet and CLIP: all that LAR-Gen adds to that inpainting model
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capriccio.collect.shards import Quadruplets
from capriccio.errors import Cancelled, CapriccioError, nearest
from capriccio.recipes.family import State, Step, Trace, Wanted, judge, plan_family
from capriccio.recipes.lar_gen.recipe import Recipe
from capriccio.recipes.runs import commit, launch_worker, rank, read_record, replace_folder, set_aside, write_record

NAMES = ("assign", "refine")
"""The stages in their order."""


@dataclass(frozen=True)
class Training:
    """One stage of a recipe.

    Args:
        recipe: What is trained, from what.
        stage: ``"assign"`` or ``"refine"``.
        out: Folder of both stages.
    """

    recipe: Recipe
    stage: str
    out: Path

    def __post_init__(self) -> None:
        if self.stage not in NAMES:
            raise CapriccioError(f"There is no stage {self.stage!r}; {nearest(self.stage, NAMES)}")

    @property
    def run(self) -> Path:
        """Where checkpoint, log and record lie."""
        return self.out / self.stage

    @property
    def weights(self) -> Path:
        """Where what it made lies."""
        return self.run / "weights"

    @property
    def before(self) -> Training | None:
        """The stage that it goes on from."""
        return Training(self.recipe, "assign", self.out) if self.stage == "refine" else None

    @property
    def made(self) -> str:
        """A hash of what it made; nothing before it has ended."""
        return str(read_record(self.run).get("made", "")) if self.weights.is_dir() else ""

    def written(self) -> str:
        """The training as JSON, which is the worker's one argument."""
        return json.dumps({"recipe": self.recipe.model_dump(mode="json"), "stage": self.stage, "out": str(self.out)})

    @classmethod
    def read(cls, text: str) -> Training:
        """The training that ``written`` wrote."""
        given = json.loads(text)
        return cls(Recipe(**given["recipe"]), given["stage"], Path(given["out"]))


def trainings(path: str | os.PathLike[str], out: str | os.PathLike[str], stage: str | None = None) -> list[Training]:
    """Return the trainings that a recipe asks for.

    Args:
        path: Of the recipe's file.
        out: Folder of runs; the recipe has a folder in it, of its own name.
        stage: One of the two; both by default.

    Raises:
        CapriccioError: If the recipe or the stage cannot be used.
    """
    recipe, place = Recipe.load(path), Path(out) / Path(path).stem
    return [Training(recipe, name, place) for name in (NAMES if stage is None else (stage,))]


def look(training: Training) -> Wanted:
    """Return a training with what it begins from, and with the trace that is there of it."""
    from capriccio.training.trainer import steps_learned

    data, recipe = Quadruplets(training.recipe.shards), training.recipe
    if not len(data):
        raise CapriccioError(f"{str(recipe.shards)!r} holds no quadruplets to learn from; collect from more pictures.")
    told = "".join(str(shard["sha256"]) for shard in data.manifest["shards"])
    origin = recipe.begins_from(training.stage) | {"shards": hashlib.sha256(told.encode()).hexdigest()}
    origin |= {} if training.before is None else {"assign": training.before.made}
    steps, record = steps_learned(training.run), read_record(training.run)
    trace = None if steps is None else Trace(steps, record.get("origin"), training.made != "")
    needs = () if training.before is None else ("assign",)
    return Wanted(training.stage, needs, recipe.stage(training.stage).steps, origin, trace)


def plan(asked: Sequence[Training]) -> list[Step]:
    """Return how each stage stands."""
    return plan_family([look(training) for training in asked])


def train(training: Training, say: Callable[[str], object] = print) -> None:
    """Train one stage to its end, with its progress on the error stream; nothing happens if it is done.

    Args:
        training: Which stage.
        say: Is told in sentences what is set aside.

    Raises:
        CapriccioError: If stage 1 is not there, a model or the shards cannot be used, or a process failed.
        Cancelled: When interrupted, after the checkpoint was written.
    """
    before, wanted = training.before, look(training)
    if before is not None and not before.made:
        raise CapriccioError(
            f"The stage refine goes on from what assign has learned, which is not in {str(before.weights)!r} yet; run "
            "--stage assign first, or both by leaving --stage out."
        )
    step = judge(wanted)
    if step.state is State.done:
        return
    if step.state is State.stale:
        aside = set_aside(training.run)
        say(f"{training.stage} begins anew, for {step.reason}; what was learned before is set aside in {aside}.")
    write_record(training.run, {"origin": wanted.origin})
    _work(training)
    write_record(training.run, {"origin": wanted.origin, "made": _hash(training.weights)})


def _work(training: Training) -> None:
    """Carry a training out, here or in several processes."""
    if training.recipe.processes > 1:
        if launch_worker(__name__, training.written(), training.recipe.processes, training.run):
            raise CapriccioError(f"{training.stage} stopped before its end; the same command goes on.")
        return
    try:
        with redirect_stdout(sys.stderr):
            carry_out(training)
    except KeyboardInterrupt:
        raise Cancelled(f"Stopped; the same command goes on from {training.run}.") from None


def carry_out(training: Training) -> None:
    """Train and save: the worker's whole job (every process runs it; the first one writes)."""
    from capriccio.recipes.lar_gen.shards import ShardTask
    from capriccio.recipes.lar_gen.stages import STAGES
    from capriccio.training.trainer import fit

    before = None if training.before is None else training.before.weights
    task = ShardTask(training.recipe, STAGES[training.stage], before)
    model = fit(task, training.run)
    if rank() == 0:
        parameters = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)

        def write(folder: Path) -> None:
            task.save(model, folder)
            (folder / "README.md").write_text(card(training, task.__class__.__module__, parameters))

        replace_folder(training.weights, write)


def card(training: Training, module: str, parameters: int) -> str:
    """The card of what a stage made, in Markdown.

    Args:
        training: The stage.
        module: Whose first words say what was trained.
        parameters: How many weights learned.
    """
    recipe, own = training.recipe, training.recipe.stage(training.stage)
    first = training.weights if training.before is None else training.before.weights
    counts = Quadruplets(recipe.shards).manifest["counts"]
    settings = recipe.model_dump(mode="json", exclude={"assign", "refine", "shards"})
    lines = [
        f"# LAR-Gen: {training.stage}",
        "",
        (sys.modules[module].__doc__ or "").strip(),
        "",
        "```python",
        "Studio.open(",
        f"    {recipe.model!r},",
        f"    inpainting={str(first / 'inpainting')!r},",
        f'    modules={{"lar-gen": {str(training.weights)!r}}},',
        ")",
        "```",
        "",
        f"- Data: {counts['quadruplets']} quadruplets in {str(recipe.shards)!r}.",
        f"- Steps: {own.steps} of {recipe.parts}; learning rate {own.rate:g}; parameters that learned: "
        f"{parameters / 1e6:.1f} M; weights: average, half precision.",
        f"- Settings: {', '.join(f'{name} {value}' for name, value in settings.items())}.",
        f"- Machine: {platform.machine()}, {os.cpu_count()} cores; commit {commit()}.",
        "- Licence: that of the model, the adapter and the pictures it learned from.",
    ]
    return "\n".join(lines) + "\n"


def _hash(folder: Path) -> str:
    """Return a SHA-256 of all weights in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def folders(asked: Sequence[Training]) -> list[str]:
    """Return where what the stages make lies."""
    return [str(training.weights) for training in asked]


def as_rows(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Return a plan as plain data."""
    return [{"stage": s.name, "needs": s.needs, "steps": s.length, "state": str(s)} for s in steps]


if __name__ == "__main__":
    carry_out(Training.read(sys.argv[1]))
