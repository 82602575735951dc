"""The miniature family: what is trained, from what, where it lands, and the card that goes with it.

``train`` starts the worker of this module on as many processes as there are cores (one per process learns faster than
one process with several threads), or on the GPU; the worker trains, saves, measures and writes the card.
``train_family`` does so for every model that is missing, unfinished or stale, each behind all that it needs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from capriccio import assets
from capriccio.errors import CapriccioError, nearest
from capriccio.recipes.family import (
    Member,
    Origin,
    State,
    Step,
    Trace,
    Wanted,
    differences,
    in_order,
    judge,
    plan_family,
)
from capriccio.recipes.gallery import gallery_folder
from capriccio.recipes.runs import (
    commit,
    launch_worker,
    rank,
    read_record,
    replace_folder,
    set_aside,
    write_record,
)
from capriccio.world.whole import SHEETS

FAMILY = {
    "vae": Member("vae.VAETask"),
    "vae-tune": Member("vae.TuneTask", base="vae", lands_in="vae"),
    "reader": Member("reader.ReaderTask"),
    "people-reader": Member("people_reader.PeopleReaderTask"),
    "solid-reader": Member("solid_reader.SolidReaderTask"),
    "clip": Member("clip.ClipTask", needs=("vae",)),
    "t5": Member("t5.T5Task"),
    "flux": Member("flux.FluxTask", needs=("vae", "clip", "t5")),
    "fill": Member("inpainting.FillTask", needs=("vae", "clip"), base="flux"),
    "controlnet-inpaint": Member("inpainting.ControlNetTask", needs=("vae", "clip"), base="flux"),
    "style-lora": Member("style_lora.StyleLoraTask", needs=("vae", "clip"), base="flux"),
    "controlnet-union": Member("control.UnionTask", needs=("vae", "clip"), base="flux"),
    "sd": Member("sd.SDTask", needs=("vae", "clip")),
    "sd-inpaint": Member("sd.SDInpaintTask", needs=("vae", "clip"), base="sd"),
    "paint-by-example": Member("paint_by_example.PaintByExampleTask", needs=("vae", "clip"), base="sd-inpaint"),
    "lar-gen-assign": Member("lar_gen.miniature.AssignTask", needs=("vae", "clip"), base="sd-inpaint"),
    "lar-gen": Member("lar_gen.miniature.RefineTask", needs=("vae", "clip", "sd", "sd-inpaint"), base="lar-gen-assign"),
}
ORDER = in_order(FAMILY)
"""The names of the family, each behind all that it needs."""


@dataclass(frozen=True)
class Order:
    """One training to be done.

    Args:
        name: One of the family.
        runs: Folder of checkpoints, logs and the gallery.
        budget: ``"cpu"`` or ``"gpu"``: sizes of galleries and batches. Models have one size: two cores paint with them
            in seconds, and they travel with the package; a GPU teaches them longer.
        minutes: How long to learn, over all runs; ``None`` takes the recipe's.
        seed: Seed of weights and data; ``None`` takes the recipe's.
        start: A finished folder of weights to go on from, where the recipe can.
        content: What its pictures show, one of ``world.whole.SHEETS``; ``None`` is the whole world.
        teacher: Of a FLUX: the folder of a Stable Diffusion that has met the same pictures, and shows it what things
            look like.
        compiled: Blocks are compiled: the same training, a quarter quicker. Not part of what it begins from.
    """

    name: str
    runs: Path = Path("runs")
    budget: str = "cpu"
    minutes: float | None = None
    seed: int | None = None
    start: Path | None = None
    content: str | None = None
    teacher: Path | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.name not in FAMILY:
            raise CapriccioError(
                f"There is no model {self.name!r} in the miniature ({nearest(self.name, FAMILY)}); "
                "--all trains the whole family."
            )
        if self.budget not in ("cpu", "gpu"):
            raise CapriccioError(f"The budget {self.budget!r} is unknown: {nearest(self.budget, ('cpu', 'gpu'))}")
        if self.content not in (None, *SHEETS):
            raise CapriccioError(f"The content {self.content!r} is unknown: {nearest(str(self.content), SHEETS)}")

    @property
    def needs(self) -> tuple[str, ...]:
        """The models that must be there before; a Fill that goes on has none of FLUX's text in its folder."""
        member = FAMILY[self.name]
        whole = self.start is not None and (self.start / "model_index.json").is_file()
        return member.before(started=whole if member.base == "flux" else self.start is not None)

    @property
    def run(self) -> Path:
        """Where checkpoint, log and record lie."""
        return self.runs / self.name

    @property
    def folder(self) -> Path:
        """Where the weights land."""
        return weights_folder(self.name)

    def written(self) -> str:
        """The order as JSON, which is the worker's one argument."""
        return json.dumps(dataclasses.asdict(self), default=str)

    @classmethod
    def read(cls, text: str) -> Order:
        """The order that ``written`` wrote."""
        given = json.loads(text)
        folders = {name: Path(given[name]) for name in ("runs", "start", "teacher") if given[name] is not None}
        return cls(**given | folders)


def weights_folder(name: str) -> Path:
    """Where the weights of a model of the family land in the package."""
    return _root() / _asset(name)


def _root() -> Path:
    return Path(assets.__file__).parent


def _asset(name: str) -> str:
    return f"miniature/{FAMILY[name].lands_in or name}"


def weights_hash(name: str) -> str:
    """Return a SHA-256 of the weights in use of a model; nothing where there are none.

    Of a VAE it is one of the shift and scale of its latents, which were measured when these came to be: others learn
    from latents, which stay when the VAE is tuned. The weights themselves count for ``vae-tune``, and for no pipeline
    that has a copy of them.
    """
    import torch
    from safetensors.torch import load_file

    place = assets.place_below(_root(), _asset(name))
    files = [file for file in sorted(place.rglob("*.safetensors")) if file.parent == place or file.parent.name != "vae"]
    digest = hashlib.sha256()
    if name == "vae" and files:
        config = json.loads((place / "config.json").read_text())
        digest.update(f"{config['shift_factor']} {config['scaling_factor']}".encode())
        return digest.hexdigest()
    for weights in map(load_file, files):
        for key, value in sorted(weights.items()):
            digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest() if files else ""


def look(order: Order) -> Wanted:
    """Return an order with what it begins from, and with the trace that is there of it."""
    from capriccio.training.trainer import minutes_learned

    schedule = make_task(order).schedule
    start = f"{order.start or ''}{f', taught by {order.teacher}' if order.teacher else ''}"
    origin = {"budget": order.budget, "seed": schedule.seed, "start": start}
    origin["content"] = order.content or "the whole world"
    origin |= {need: weights_hash(need) for need in order.needs}
    minutes, record = minutes_learned(order.run), read_record(order.run)
    saved = record.get("made", "") == weights_hash(order.name) != ""
    trace = None if minutes is None else Trace(minutes, record.get("origin"), saved)
    return Wanted(order.name, order.needs, schedule.minutes, origin, trace)


def plan(orders: Sequence[Order]) -> list[Step]:
    """Return what would be trained for these orders, each behind all that it needs."""
    return plan_family([look(order) for order in orders])


def train_family(orders: Sequence[Order], say: Callable[[str], object] = print) -> None:
    """Carry out the orders that are not done; where one fails, those that need it are left out.

    Args:
        orders: Each behind all that it needs.
        say: Is told in sentences what is set aside, has failed and is left out.

    Raises:
        CapriccioError: At the end, if not everything was trained.
        Cancelled: When interrupted.
    """
    lost: list[str] = []
    for order in orders:
        waits_for = [need for need in order.needs if need in lost]
        if waits_for:
            say(f"{order.name} is left out: it needs {' and '.join(waits_for)}.")
            lost.append(order.name)
        elif judge(look(order)).state is not State.done:
            try:
                train(order, say)
            except CapriccioError as error:
                say(str(error))
                lost.append(order.name)
    if lost:
        raise CapriccioError(f"Not trained: {', '.join(lost)}. The same command goes on with what is left.")


def train(order: Order, say: Callable[[str], object] = print) -> None:
    """Carry out one order in worker processes, with its progress on the terminal.

    A checkpoint that began from something else is set aside, never overwritten.

    Args:
        order: What to train.
        say: Is told in sentences what is set aside.

    Raises:
        CapriccioError: If something that it needs is not there, or the worker failed; its own words stand above.
        Cancelled: When interrupted.
    """
    wanted = look(order)
    missing = [need for need in order.needs if not wanted.origin[need]]
    if missing:
        commands = ", ".join(f"`capriccio train miniature {need}`" for need in missing)
        raise CapriccioError(
            f"{order.name} learns from what is not there yet: {', '.join(missing)}. Run {commands} first, "
            "or --all for everything in its order."
        )
    _clear(order, wanted, say)
    write_record(order.run, {"origin": wanted.origin})
    if launch(order):
        raise CapriccioError(f"{order.name} stopped before its end; the same command goes on from {order.run}.")
    write_record(order.run, {"origin": wanted.origin, "made": weights_hash(order.name)})


def _clear(order: Order, wanted: Wanted, say: Callable[[str], object]) -> None:
    """Put out of the way what does not belong to what is wanted, and tell of what may not."""
    step = judge(wanted)
    if step.state is State.stale:
        aside = set_aside(order.run)
        say(f"{order.name} begins anew, for {step.reason}; what was learned before is set aside in {aside}.")
    elif wanted.trace is not None and wanted.trace.origin is None:
        say(f"{order.run} does not say what it began from; it is taken to be what is asked for, and goes on.")
    if "vae" in order.needs:
        _clear_gallery(gallery_folder(order.runs, order.content), {"vae": wanted.origin["vae"]}, say)


def _clear_gallery(folder: Path, origin: Origin, say: Callable[[str], object]) -> None:
    """Remove a gallery that another VAE has encoded; it is drawn again from its seed."""
    then = read_record(folder).get("origin")
    if folder.exists() and then is None:
        say(f"{folder} does not say which vae encoded it; it is taken to be the present one (if not, remove it).")
    elif differences(then, origin, ("vae",)):
        say(f"The gallery in {folder} was encoded by another vae; it is drawn and encoded anew.")
        shutil.rmtree(folder)
    write_record(folder, {"origin": origin})


def launch(order: Order) -> int:
    """Run the worker to its end and return its exit code.

    Raises:
        Cancelled: When interrupted, after the worker has written its checkpoint.
    """
    processes = 1 if order.budget == "gpu" else os.cpu_count() or 1
    return launch_worker("capriccio.recipes.miniature", order.written(), processes, order.run)


def _refuse(order: Order, accepted: Container[str]) -> None:
    """Refuse what an order asks for and its recipe, which accepts so much, cannot do."""
    if order.start is not None and "start" not in accepted:
        raise CapriccioError(f"The recipe of {order.name!r} cannot go on from a folder; leave --start out.")
    if order.content is not None and "content" not in accepted:
        raise CapriccioError(f"The recipe of {order.name!r} draws its own pictures; leave --content out.")
    if order.teacher is not None and "teacher" not in accepted:
        raise CapriccioError(f"The recipe of {order.name!r} has no teacher, only FLUX's has; leave --teacher out.")
    if order.teacher is not None:
        from capriccio.recipes.teacher import ask_folder

        ask_folder(order.teacher)


def make_task(order: Order) -> Any:
    """The task of an order, with what it asks for."""
    module, name = FAMILY[order.name].task.rsplit(".", 1)
    kind: Callable[..., Any] = getattr(import_module(f"capriccio.recipes.{module}"), name)
    accepted = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if FAMILY[order.name].base == "flux":
        accepted -= {"teacher"}  # what learns beside a FLUX has none
    _refuse(order, accepted)
    given = {
        "budget": order.budget,
        "runs": order.runs,
        "start": order.start,
        "content": order.content,
        "teacher": order.teacher,
        "rank": rank(),
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
    }
    task = kind(**{key: value for key, value in given.items() if key in accepted})
    changes = {"minutes": order.minutes, "seed": order.seed, "compiled": order.compiled}
    task.schedule = dataclasses.replace(task.schedule, **{k: v for k, v in changes.items() if v is not None})
    return task


def card(order: Order, task: Any, parameters: int, steps: int, rows: list[Any]) -> str:
    """The card of a trained model, in Markdown."""
    lines = [
        f"# Miniature: {order.name}",
        "",
        (import_module(type(task).__module__).__doc__ or "").strip(),
        "",
        f"- Data: the procedural world of capriccio, training split, seed {task.schedule.seed}; drawn on the fly.",
        f"- Recipe: `capriccio train miniature {order.name} --budget {order.budget} "
        f"--minutes {task.schedule.minutes:g}{f' --content {order.content}' if order.content else ''}`"
        f"{', going on from earlier weights' if order.start else ''}"
        f"{', taught by Stable Diffusion' if order.teacher else ''}.",
        f"- Steps: {steps}; parameters that learned: {parameters / 1e6:.1f} M; weights: average, half precision.",
        f"- Machine: {platform.machine()}, {os.cpu_count()} cores; commit {commit()}.",
        "- Licence: Apache-2.0.",
    ]
    if rows:
        lines += ["", "| held-out figure | value | floor | aim |", "| --- | --- | --- | --- |"]
        lines += [f"| {row.name} | {row.value:g} | {row.floor:g} | {row.aim:g} |" for row in rows]
    return "\n".join(lines) + "\n"


def carry_out(order: Order) -> None:
    """Train, save, measure: the worker's whole job (every process runs it; the first one writes)."""
    import torch

    from capriccio.training.trainer import fit, steps_learned, write_rows

    torch.set_num_threads(1 if order.budget == "cpu" else 8)
    task = make_task(order)
    model = fit(task, order.run)
    if rank() == 0:
        torch.set_num_threads(os.cpu_count() or 1)  # the other processes are done
        replace_folder(order.folder, lambda scratch: task.save(model, scratch))
        model.float()
        rows = task.measure(model)
        write_rows(rows, order.folder / "metrics.json")
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        (order.folder / "README.md").write_text(card(order, task, parameters, steps_learned(order.run) or 0, rows))
        illustrate(order.name)


def illustrate(name: str) -> None:
    """Draw the contact sheet of a model from its weights in use, and show it at the end of its card."""
    from capriccio.evaluation.sheets import sheet

    folder = weights_folder(name)
    sheet(name).save(folder / "sheet.jpg", quality=88)
    place, line = folder / "README.md", "![What it makes of held-out pictures and sentences](sheet.jpg)\n"
    text = place.read_text()
    if line not in text:
        place.write_text(f"{text}\n{line}")


if __name__ == "__main__":
    carry_out(Order.read(sys.argv[1]))
