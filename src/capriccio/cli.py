"""The command line: paint, plan, layout, methods, demo, train, collect, evaluate, schema.

    capriccio paint "the {mug} in the snow" --subject mug.png:mug -o snow.png
    capriccio paint --scene snow.png

Heavy libraries are imported by the command that needs them, so that help comes at once.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from capriccio.errors import Cancelled, CapriccioError

if TYPE_CHECKING:
    from capriccio.perception.pages import Page
    from capriccio.recipes.family import Step
    from capriccio.scene import Condition, Scene

DEFAULT_MODEL = "miniature"


class Memory(StrEnum):
    """How a model is held in memory; the modes of diffusers."""

    full = "full"
    offload = "offload"
    sequential = "sequential"
    eight_bit = "8bit"
    four_bit = "4bit"


class Budget(StrEnum):
    """Sizes of galleries and batches when training."""

    cpu = "cpu"
    gpu = "gpu"


# --- speaking ----------------------------------------------------------------------------------------------------

_errors = Console(stderr=True)


class _Speaking(typer.core.TyperGroup):
    """Commands whose mistakes end in one sentence and exit code 2, and whose interruption ends in 130."""

    def invoke(self, ctx: Any) -> Any:
        # The libraries below warn of what a person at a terminal cannot change; who wants that sets these variables.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
        try:
            return super().invoke(ctx)
        except CapriccioError as error:
            _fail(str(error), 2)
        except (KeyboardInterrupt, Cancelled) as stop:
            _fail(str(stop) or "Stopped; nothing was left half-written.", 130)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            _fail("There is too little memory for this; try --memory offload, sequential, 8bit or 4bit.", 2)


def _say(sentence: str, style: str = "yellow") -> None:
    _errors.print(sentence, style=style, markup=False, highlight=False, soft_wrap=True)


def _fail(sentence: str, code: int) -> None:
    _say(sentence, "red" if code == 2 else "yellow")
    raise typer.Exit(code)


def _out_of_memory(error: Exception) -> bool:
    # PyTorch speaks of the memory of a processor in a plain RuntimeError, of a GPU's in its own kind of it.
    words = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in words
        or "out of memory" in words
    )


def _report(data: Any, words: str, as_json: bool) -> None:
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False, default=str) if as_json else words)


@contextmanager
def _progress(words: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on the error stream; yields a function of (done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_errors, disable=quiet, transient=True) as bar:
        task = bar.add_task(words, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


# --- reading what was typed --------------------------------------------------------------------------------------


def _subjects(texts: Sequence[str], mask: Path | None) -> list[Condition]:
    """Return a subject for each name in ``FILE:name``; files of one name are pictures of one subject."""
    from capriccio.scene import Subject

    files: dict[str, list[str]] = {}
    for text in texts:
        file, _, name = text.rpartition(":")
        if not file or not name or "/" in name:
            raise CapriccioError(
                f'--subject received {text!r}, but needs a file and a name; write FILE:name, as in "mug.png:mug".'
            )
        files.setdefault(name, []).append(file)
    return [Subject(paths, name=name, mask=mask) for name, paths in files.items()]


def _loras(texts: Sequence[str]) -> list[Condition]:
    """Return a LoRA for each ``FILE[:WEIGHT][@REGION]``."""
    from capriccio.scene import Lora

    loras: list[Condition] = []
    for text in texts:
        file, at, region = text.rpartition("@")
        # What is a file, or goes on behind the mark as a path does, has the mark in its own name.
        if not at or "/" in region or Path(_weighted(text)[0]).exists():
            file, region = text, ""
        elif not file or not region:
            raise CapriccioError(
                f"--lora received {text!r}, but needs a file and the name of a region around its @; write "
                '"hat.safetensors:0.8@hat", beside --region "hat=0,0,0.5,1: a hat".'
            )
        path, weight = _weighted(file)
        loras.append(Lora(path, weight=weight, region=region or None))
    return loras


def _weighted(text: str) -> tuple[str, float]:
    path, _, weight = text.rpartition(":")
    try:
        return (path, float(weight)) if path else (text, 1.0)
    except ValueError:
        return text, 1.0


def _controls(texts: Sequence[str], settings: Mapping[str, Sequence[Any]]) -> list[Condition]:
    """Return a control for each ``FILE[:NET]``, with settings that were given once for all, or for each in its turn."""
    from capriccio.scene import Control

    columns = {name: _for_each(name, values, len(texts)) for name, values in settings.items() if values}
    controls: list[Condition] = []
    for number, text in enumerate(texts):
        file, colon, net = text.rpartition(":")
        if not colon or "/" in net or Path(text).is_file():
            file, net = text, ""
        elif not file or not net:
            raise CapriccioError(
                f"--control received {text!r}, but needs a picture and the name of a ControlNet around its colon; "
                'write "edges.png:edges", or "edges.png" where there is one ControlNet.'
            )
        own = {_CONTROL_OPTIONS[name]: values[number] for name, values in columns.items()}
        controls.append(Control(file, net or None, **own))
    return controls


def _for_each(option: str, values: Sequence[Any], count: int) -> Sequence[Any]:
    """Return one value of an option for each of so many controls."""
    if count and len(values) in (1, count):
        return values if len(values) == count else [*values] * count
    given = f"{len(values)} times, but there are {count} controls" if count else "without --control"
    remedy = "give it once for all of them, or once for each" if count else "give the picture to follow"
    raise CapriccioError(f"--{option} came {given}; {remedy}.")


def _mode(text: str) -> str | int | None:
    """Return which kind of picture a union of several is shown: its name or number; for other ControlNets, none."""
    return int(text) if text.isdigit() else None if text == "none" else text


_CONTROL_OPTIONS = {
    "control-mode": "mode",
    "control-scale": "controlnet_conditioning_scale",
    "control-start": "control_guidance_start",
    "control-end": "control_guidance_end",
    "guess-mode": "guess_mode",
}
"""Options that say more of controls, and what a scene calls them."""


def _controlnets(texts: Sequence[str]) -> dict[str, str]:
    """Return the ControlNets to open, by name: ``[NAME=]FOLDER``, where the folder names what has no other name."""
    nets: dict[str, str] = {}
    for text in texts:
        name, _, source = text.rpartition("=")
        name = name or Path(source).name
        if not name or not source:
            raise CapriccioError(
                f"--controlnet received {text!r}, but needs a folder or a repository; write FOLDER, or NAME=FOLDER as "
                "in edges=nets/canny."
            )
        if name in nets:
            raise CapriccioError(
                f"--controlnet received {nets[name]!r} and {source!r}, both called {name!r}; write NAME=FOLDER, as in "
                "edges=nets/canny."
            )
        nets[name] = source
    return nets


def _modules(texts: Sequence[str]) -> dict[str, str]:
    """Return what methods add to the model, by the name of the method: ``METHOD=FOLDER``."""
    modules: dict[str, str] = {}
    for text in texts:
        name, _, source = text.partition("=")
        if not name or not source or name in modules:
            raise CapriccioError(
                f"--module received {text!r}, but needs a method and its folder or file, each method once; write "
                "METHOD=FOLDER, as in lar-gen=my-lar-gen."
            )
        modules[name] = source
    return modules


def _regions(texts: Sequence[str]) -> list[Condition]:
    """Return a region for each ``[NAME=]PLACE: PROMPT``; a place is four numbers, or the file of a mask."""
    from capriccio.scene import Region

    regions: list[Condition] = []
    for text in texts:
        place, _, prompt = (part.strip() for part in text.partition(":"))
        name, equals, rest = (part.strip() for part in place.partition("="))
        # A mask may have the sign in its own name.
        name, place = (name, rest) if equals and not Path(place).is_file() else ("", place)
        if not place or not prompt:
            raise CapriccioError(f"--region received {text!r}, but needs a place and a prompt; {_REGION_EXAMPLE}.")
        if Path(place).is_file() or not _NUMBERS.fullmatch(place):
            regions.append(Region(prompt, mask=place, name=name or None))
        else:
            regions.append(Region(prompt, box=_box(place), name=name or None))
    return regions


def _box(text: str) -> tuple[float, ...]:
    try:
        edges = tuple(float(edge) for edge in text.split(","))
    except ValueError:
        edges = ()
    if len(edges) != 4:
        raise CapriccioError(
            f"--region received the place {text!r}, but a box is four numbers: left, top, right, bottom; "
            f"{_REGION_EXAMPLE}."
        )
    return edges


_NUMBERS = re.compile(r"[\d\s.,;%+-]+|[^,]*,[^,]*,[^,]*,[^,]*")
_REGION_EXAMPLE = 'write "0,0.5,0.5,1: a red car" or "mask.png: a red car", with a name as "car=mask.png: a red car"'


def _conditions(
    subjects: Sequence[str],
    styles: Sequence[Path],
    edit: Path | None,
    mask: Path | None,
    of_edit: Mapping[str, float | None],
    regions: Sequence[str],
    layout: str | None,
    companions: Sequence[Condition],
) -> list[Condition]:
    """Return the conditions of the options; a mask belongs to the edit, or else to the one subject."""
    from capriccio.scene import Edit, Style

    given = {name: value for name, value in of_edit.items() if value is not None}
    if edit is not None and mask is None and "strength" not in given and not regions:
        raise CapriccioError(
            "--edit came without --mask; give a picture that is white where to paint, --region for several places, or "
            "--strength for all of it."
        )
    if edit is None and given:
        raise CapriccioError(f"--{next(iter(given))} came without --edit; give the picture to change.")
    if mask is not None and edit is None and len(subjects) != 1:
        raise CapriccioError(
            f"--mask came with {len(subjects)} subjects and no --edit; give it one picture to belong to."
        )
    named = [Style(path) if len(styles) == 1 else Style(path, name=path.stem) for path in styles]
    edits = [Edit(edit, mask, **given)] if edit is not None else []
    told = _subjects(subjects, mask if edit is None else None)
    return [*told, *named, *edits, *_regions(regions), *_layout(layout), *companions]


def _layout(text: str | None) -> list[Condition]:
    """Return the layout of a page's file, or of a planner's name."""
    from capriccio.scene import Layout

    if text is None:
        return []
    if not text.endswith((".yaml", ".yml", ".json")):
        return [Layout(planner=text)]
    from capriccio.perception.pages import Page

    return [Layout(page=Page.load(text).model_dump(mode="json"))]


def _options(texts: Sequence[str]) -> dict[str, Any]:
    """Return the settings ``NAME=VALUE`` of a method; a value is read as YAML reads it."""
    import yaml

    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise CapriccioError(f"--option received {text!r}; write NAME=VALUE, as in attention_weight=1.2.")
        try:
            options[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            options[name] = value
    return options


def _seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(seed) for seed in text.split(","))
    except ValueError:
        raise CapriccioError(f"--seeds received {text!r}; write whole numbers with commas, as in 1,2,3.") from None


def _scene(prompt: str | None, file: Path | None, conditions: Sequence[Condition], settings: dict[str, Any]) -> Scene:
    """Return the scene of a file with what was typed put in its place, or the scene that was typed."""
    from capriccio.scene import Scene

    if file is None and prompt is None:
        raise CapriccioError("There is nothing to paint: give a sentence, or --scene FILE.")
    given = {name: value for name, value in settings.items() if value is not None}
    if file is None:
        return Scene(prompt, conditions, **given)
    if "seeds" in given:
        given = {"seed": 0, "num_images": 1} | given
    elif given.keys() & {"seed", "num_images"}:
        given["seeds"] = None
    scene = Scene.load(file, conditions)
    return scene.but(**given | ({} if prompt is None else {"prompt": prompt})) if given or prompt else scene


def _by_method(scene: Scene, by: str | None, options: dict[str, Any]) -> Scene:
    """Return the scene with its conditions given to a method, with the method's settings.

    Of a scene in turns, each condition has what a method of its own turn can be asked.
    """
    from capriccio.scene import Companion
    from capriccio.turns import are_several, turns

    if by is None and not options:
        return scene
    if all(isinstance(condition, Companion) for condition in scene.conditions):
        raise CapriccioError(
            "--by and --option need a condition to work on; add --subject, --style, --edit, --region or --layout."
        )

    # What nobody here takes is given to all, so that a plan refuses it.
    every = {condition.kind for condition in scene.conditions}
    led = set() if by is None else _kinds(by) & every or every
    scene = _each(scene, lambda condition: {"by": by} if condition.kind in led else {})
    in_turns = are_several(scene)
    if "layout" not in every:
        turns(scene)  # a place that is not clear is told before a model is opened
    takers = {name: _takers(name) & every or every if in_turns else every for name in options}

    def mine(condition: Condition) -> dict[str, Any]:
        own = {name: value for name, value in options.items() if condition.kind in takers[name]}
        return {"options": condition.options | own}

    return _each(scene, mine)


def _each(scene: Scene, settings: Callable[[Condition], dict[str, Any]]) -> Scene:
    """Return the scene with each condition that a method works on changed."""
    from capriccio.scene import Companion

    changed = [
        one if isinstance(one, Companion) else type(one)(**dict(one) | settings(one)) for one in scene.conditions
    ]
    return scene.but(conditions=changed)


def _kinds(by: str) -> set[str]:
    """Return the kinds of condition that a method takes; none if there is no such method."""
    from capriccio.methods import METHODS

    return {kind for kinds in METHODS[by].takes for kind in kinds} if by in METHODS else set()


def _takers(option: str) -> set[str]:
    """Return the kinds of condition for which a method of a turn has an option."""
    from capriccio.methods import METHODS

    # What paints subjects and regions at once is at work in no turn.
    turning = {
        name for name, method in METHODS.items() if not any({"subject", "region"} <= kinds for kinds in method.takes)
    }
    return {kind for name in turning if option in METHODS[name].settings for kind in _kinds(name)}


def _model(name: str | None, scene: Path | None) -> str:
    """Return the model to open. A recipe may not choose what is downloaded and run: it may only name it."""
    if name is not None or scene is None or scene.suffix.lower() != ".png":
        return name or DEFAULT_MODEL
    from capriccio.pictures import read_recipe

    painted_with = str(read_recipe(scene).get("model", DEFAULT_MODEL))
    if painted_with != DEFAULT_MODEL:
        raise CapriccioError(
            f"{str(scene)!r} was painted with {painted_with!r}; open it yourself with --model {painted_with}."
        )
    return DEFAULT_MODEL


def _changed_weights(scene: Path | None, studio: Any) -> list[str]:
    """Return the components whose weights are not those that a picture's recipe tells of; none without a recipe."""
    if scene is None or scene.suffix.lower() != ".png":
        return []
    from capriccio.pictures import read_recipe

    told = read_recipe(scene).get("weights")
    then = told if isinstance(told, dict) else {}
    return sorted(name for name in {*then, *studio.weights} if then.get(name) != studio.weights.get(name))


def _check_png(option: str, path: Path | None) -> None:
    if path is not None and path.suffix.lower() != ".png":
        raise CapriccioError(f"{option} received {path.name!r}, but pictures are saved as PNG; end the name in .png.")


def _place(out: Path | None) -> Path:
    _check_png("-o", out)
    free = (Path("painting.png" if number == 1 else f"painting-{number}.png") for number in count(1))
    return out or next(path for path in free if not path.exists())


# --- commands ----------------------------------------------------------------------------------------------------

app = typer.Typer(
    cls=_Speaking,
    help="Your subject in a scene that never was: every method of customised image generation in one house.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
trainings = typer.Typer(help="Train models; an interrupted training resumes.", no_args_is_help=True)
app.add_typer(trainings, name="train")
evaluations = typer.Typer(help="Measure how well things are painted.", no_args_is_help=True)
app.add_typer(evaluations, name="evaluate")
collections = typer.Typer(help="Make data to train on; an interrupted collection goes on.", no_args_is_help=True)
app.add_typer(collections, name="collect")


@evaluations.callback()
def _evaluations() -> None:
    """Measure how well things are painted; a run that was stopped goes on."""  # one command stays a group


Json = Annotated[bool, typer.Option("--json", help="Report as JSON.")]
ModelName = Annotated[
    str | None, typer.Option("--model", help="miniature, a repository, a folder or a file; the miniature by default.")
]
Inpainting = Annotated[
    str | None,
    typer.Option(help="Inpainting ControlNet or Fill model to paint into a canvas with: a repository or a folder."),
]
Overlay = Annotated[
    Path | None, typer.Option(metavar="FILE.png", help="Where to draw panels, regions, masks and token groups.")
]
ControlNet = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]FOLDER", help="A ControlNet that control pictures steer through: folder or repository."
    ),
]
Module = Annotated[
    list[str] | None,
    typer.Option(metavar="METHOD=FOLDER", help="What a method adds to the model, as in lar-gen=FOLDER."),
]
MemoryMode = Annotated[Memory, typer.Option(help="Where the weights are held, and in how many bits.")]


@app.command()
def paint(
    prompt: Annotated[str | None, typer.Argument(help="What to paint; {name} stands for a subject or a style.")] = None,
    scene: Annotated[
        Path | None, typer.Option(help="A YAML or JSON scene, or a picture that carries its recipe.")
    ] = None,
    subject: Annotated[
        list[str] | None, typer.Option(metavar="FILE:NAME", help="A picture of a subject, and its name.")
    ] = None,
    style: Annotated[list[Path] | None, typer.Option(help="A picture whose style to take.")] = None,
    edit: Annotated[Path | None, typer.Option(help="An existing picture to change, with --mask or --strength.")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="White where to paint; without --edit, where the subject is.")
    ] = None,
    strength: Annotated[float | None, typer.Option(help="How much of the --edit is changed, up to 1.")] = None,
    zoom: Annotated[
        float | None, typer.Option(help="Paint a window around the mask of the --edit alone, so many times its size.")
    ] = None,
    feather: Annotated[
        int | None, typer.Option(help="Pixels inside the mask of the --edit over which its border is blended.")
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="Let a planner divide the picture (RPG): grammar, an endpoint's address, or a saved page."),
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]PLACE: PROMPT",
            help="What to paint where: left,top,right,bottom in pixels or fractions, or a mask that is white there.",
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:NET]", help="A control picture to follow (edges, depth, a pose), and whose it is."),
    ] = None,
    control_mode: Annotated[
        list[str] | None,
        typer.Option(help="For a union: which kind of picture it is (depth, 2, none); for all or for each."),
    ] = None,
    control_scale: Annotated[
        list[float] | None, typer.Option(help="Strength of the controls, 1 by default; for all or for each.")
    ] = None,
    control_start: Annotated[
        list[float] | None, typer.Option(help="Share of the steps before a control is at work; for all or for each.")
    ] = None,
    control_end: Annotated[
        list[float] | None, typer.Option(help="Share of the steps after which it no longer is; for all or for each.")
    ] = None,
    guess_mode: Annotated[
        bool, typer.Option("--guess-mode", help="Let all controls steer the prompt's branch of guidance alone.")
    ] = False,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:WEIGHT][@REGION]", help="A low-rank adapter, everywhere or in one region alone."),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Method for the conditions; see `capriccio methods`.")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the method.")] = None,
    model: ModelName = None,
    inpainting: Inpainting = None,
    controlnet: ControlNet = None,
    module: Module = None,
    memory: MemoryMode = Memory.full,
    seed: Annotated[int | None, typer.Option(help="Seed of the first picture.")] = None,
    seeds: Annotated[str | None, typer.Option(metavar="N,N,...", help="A seed for each picture.")] = None,
    num_images: Annotated[int | None, typer.Option(help="How many pictures.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Guidance, as diffusers calls it: embedded (FLUX) or classifier-free.")
    ] = None,
    true_cfg_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to stay away from.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help='A diffusers scheduler: its class, or a name such as "DPM++ 2M Karras".')
    ] = None,
    clip_skip: Annotated[int | None, typer.Option(help="Last layers of CLIP to leave out.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to save; a free name by default.")] = None,
    recipe: Annotated[bool, typer.Option(help="Let the picture carry its recipe.")] = True,
    as_json: Json = False,
) -> None:
    """Paint a sentence or a scene."""
    settings = {
        "seed": seed,
        "seeds": _seeds(seeds),
        "num_images": num_images,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "true_cfg_scale": true_cfg_scale,
        "negative_prompt": negative_prompt,
        "width": width,
        "height": height,
        "scheduler": scheduler,
        "clip_skip": clip_skip,
    }
    place = _place(out)
    steering = {
        "control-mode": [_mode(text) for text in control_mode or ()],
        "control-scale": control_scale or (),
        "control-start": control_start or (),
        "control-end": control_end or (),
        "guess-mode": [True] * guess_mode,
    }
    along = [*_controls(control or (), steering), *_loras(lora or ())]
    of_edit = {"strength": strength, "zoom": zoom, "feather": feather}
    conditions = _conditions(subject or (), style or (), edit, mask, of_edit, region or (), layout, along)
    wanted = _by_method(_scene(prompt, scene, conditions, settings), by, _options(option or ()))
    studio = _studio(_model(model, scene), inpainting, controlnet or (), module or (), memory)
    changed = _changed_weights(scene, studio)
    if changed:
        _say(f"{scene} was painted with other weights ({', '.join(changed)}); the new picture will differ from it.")
    with _progress("painting", quiet=as_json) as told:
        painting = studio.paint(wanted, callback=lambda progress: told(progress.step, progress.total))
    files = painting.save(place, recipe=recipe)
    data = {"seeds": wanted.all_seeds(), "plan": painting.plan.as_dict(), "readings": dict(painting.readings)}
    _report({"files": files} | data, "\n".join(map(str, files)), as_json)


def _studio(
    model: str, inpainting: str | None, controlnets: Sequence[str], modules: Sequence[str], memory: Memory
) -> Any:
    from capriccio.studio import Studio

    beside: dict[str, Any] = {"controlnets": _controlnets(controlnets), "modules": _modules(modules)}
    return Studio.open(model, inpainting=inpainting, memory=memory.value, **beside)


@app.command()
def plan(
    file: Annotated[Path, typer.Argument(help="A YAML or JSON scene, or a picture that carries its recipe.")],
    model: ModelName = None,
    inpainting: Inpainting = None,
    controlnet: ControlNet = None,
    module: Module = None,
    memory: MemoryMode = Memory.full,
    overlay: Overlay = None,
    as_json: Json = False,
) -> None:
    """Print what a scene becomes, and what it costs, without painting it."""
    from capriccio.scene import Scene

    _check_png("--overlay", overlay)
    scene = Scene.load(file)
    made = _studio(_model(model, file), inpainting, controlnet or (), module or (), memory).plan(scene)
    if overlay is not None:
        from capriccio.overlay import overlay as draw
        from capriccio.pictures import save_png

        save_png(draw(made), overlay)
    _report(made.as_dict(), str(made), as_json)


@app.command()
def layout(
    sentence: Annotated[str, typer.Argument(help="What the whole picture shows.")],
    planner: Annotated[
        str,
        typer.Option(help="grammar; an address and its model, http://...#NAME; a transformers model or its folder."),
    ] = "grammar",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to save the page: .yaml or .json.")] = None,
    scene: Annotated[Path | None, typer.Option(help="Where to save a scene with a region for each cell.")] = None,
    overlay: Overlay = None,
    as_json: Json = False,
) -> None:
    """Ask a planner which part of a picture shows what; the page can be edited and painted later."""
    from capriccio.data import check_ending
    from capriccio.perception.pages import page_scene
    from capriccio.perception.planners import planner as planner_of

    _check_png("--overlay", overlay)
    if out is not None:
        check_ending(out, "a page")
    page = planner_of(planner).plan(sentence)
    if out is not None:
        page.save(out)
    if scene is not None:
        page_scene(page).save(scene)
    if overlay is not None:
        from capriccio.overlay import page_overlay
        from capriccio.pictures import save_png

        save_png(page_overlay(page), overlay)
    cells = [
        {"cell": [cell.left, cell.top, cell.right, cell.bottom], "prompt": prompt}
        for cell, prompt in zip(page.cells, page.regions, strict=True)
    ]
    if as_json:
        _report(page.model_dump(mode="json") | {"cells": cells}, "", as_json)
    else:
        Console().print(_cells(page))


def _cells(page: Page) -> Table:
    table = Table("cell", "left", "top", "right", "bottom", "shows", title=escape(page.base), title_justify="left")
    for number, (cell, prompt) in enumerate(zip(page.cells, page.regions, strict=True), 1):
        edges = (f"{edge:.1%}" for edge in (cell.left, cell.top, cell.right, cell.bottom))
        table.add_row(str(number), *edges, escape(prompt))
    return table


@app.command()
def methods(as_json: Json = False) -> None:
    """List the methods, their papers and what they do."""
    from capriccio.methods import METHODS

    columns = ("name", "title", "what", "settings", "neutral", "paper")
    rows = [{column: getattr(method, column) for column in columns} for method in METHODS.values()]
    if as_json:
        _report(rows, "", as_json)
    else:
        Console().print(_table(rows))


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("method", "what it does", "settings (--option)", show_lines=True)
    for row in rows:
        settings = "\n".join(f"{name}={value}" for name, value in row["settings"].items())
        what = "\n".join(filter(None, (row["title"], row["what"], row["paper"])))
        table.add_row(row["name"], escape(what), escape(settings))
    return table


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the contact sheet.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Which subjects.")] = 0,
    as_json: Json = False,
) -> None:
    """Paint four subjects nobody trained on in four new scenes each, and let the world's truth judge."""
    from capriccio.evaluation.demo import demo as run

    with _progress("painting", quiet=as_json) as told:
        result = run(out, told=told, seed=seed)
    _report(result.as_dict(), str(result), as_json)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a scene file."""
    from capriccio.scene import Scene

    _report(Scene.json_schema(), "", as_json=True)


@trainings.command()
def miniature(
    name: Annotated[str | None, typer.Argument(help="One model of the family; what it needs must be there.")] = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="The whole family: what --out has not done yet, each model behind all it needs."),
    ] = False,
    budget: Annotated[Budget, typer.Option(help="Sizes of galleries and batches.")] = Budget.cpu,
    minutes: Annotated[
        float | None, typer.Option(help="How long each model learns, over all runs; the recipe's by default.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of checkpoints and logs.")] = Path("runs"),
    seed: Annotated[int | None, typer.Option(help="Seed of weights and data; the recipe's by default.")] = None,
    start: Annotated[Path | None, typer.Option(help="A finished folder of weights to go on from.")] = None,
    content: Annotated[
        str | None, typer.Option(help="Learn from pictures of objects, people or garments alone; all by default.")
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(help="Of FLUX: the folder of a Stable Diffusion that has met such pictures, to learn forms from."),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile blocks: a quarter off each step, after slow minutes.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be trained.")] = False,
    as_json: Json = False,
) -> None:
    """Train the miniature on its own world.

    One model learns from the weights in the package, and replaces its own there. With --all, what counts is what
    --out has done: weights that came with the package are trained anew. A training that was stopped goes on with the
    same command; what began from something else is set aside.
    """
    from capriccio.recipes import miniature as family

    if minutes is not None and minutes <= 0:
        raise CapriccioError(f"--minutes received {minutes:g}; give a time above 0.")
    if everything == (name is not None):
        raise CapriccioError(f"Say what to train: one of {', '.join(family.ORDER)}, or else --all.")
    one = {"--start": start, "--content": content, "--teacher": teacher, "--compile": compiled or None}
    for option, given in one.items():
        if everything and given is not None:
            raise CapriccioError(f"{option} is for one model; leave it out, or train that model by its name.")
    names = family.ORDER if name is None else (name,)
    orders = [family.Order(each, out, budget.value, minutes, seed, start, content, teacher, compiled) for each in names]
    steps = family.plan(orders)
    if not as_json:
        Console(stderr=not dry_run).print(_steps(steps, "minutes"))
    if not dry_run:
        family.train_family(orders, _say) if everything else family.train(orders[0], _say)
    folders = list(dict.fromkeys(str(order.folder) for order in orders))
    rows = [{"name": step.name, "needs": step.needs, "minutes": step.length, "state": str(step)} for step in steps]
    if as_json or not dry_run:
        _report({"plan": rows, "folders": folders}, "\n".join(folders), as_json)


def _steps(steps: Sequence[Step], unit: str) -> Table:
    table = Table("model", "needs", unit, "state")
    for step in steps:
        table.add_row(step.name, ", ".join(step.needs), f"{step.length:g}", str(step))
    return table


@trainings.command("lar-gen")
def train_lar_gen(
    recipe: Annotated[Path, typer.Argument(help="A YAML file of models, shards and numbers; see examples/training.")],
    stage: Annotated[
        str | None, typer.Option(help="assign, or refine, which goes on from it; both in turn by default.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of runs; the recipe's name is added.")] = Path(
        "runs"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be trained.")] = False,
    as_json: Json = False,
) -> None:
    """Train LAR-Gen on a Stable Diffusion from the shards of `collect quadruplets`, as the paper does.

    A training that was stopped goes on with the same command; what began from something else is set aside. Each stage
    ends with a folder of weights and a card that says how to open it.
    """
    from capriccio.recipes.lar_gen import training as lar_gen

    asked = lar_gen.trainings(recipe, out, stage)
    steps, parts = lar_gen.plan(asked), asked[0].recipe.parts
    if not as_json:
        Console(stderr=not dry_run).print(_steps(steps, "steps"), escape(parts))
    if not dry_run:
        for each in asked:
            lar_gen.train(each, _say)
    folders = lar_gen.folders(asked)
    if as_json or not dry_run:
        data = {"plan": lar_gen.as_rows(steps), "batch": parts, "folders": folders}
        _report(data, "\n".join(folders), as_json)


@evaluations.command("lar-gen")
def lar_gen(
    coco: Annotated[
        Path | None, typer.Option(help="COCO's folder, with annotations/ and val2017/; the miniature's world without.")
    ] = None,
    dreambooth: Annotated[
        Path | None, typer.Option(help="DreamBooth's folder, with prompts_and_classes.txt and its subjects.")
    ] = None,
    model: ModelName = None,
    inpainting: Inpainting = None,
    module: Module = None,
    flux: Annotated[
        str | None, typer.Option(help="A FLUX that can inpaint, for our port: miniature, or a repository or folder.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="A fair choice of so many samples, the same for all variants; all by default.")
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="A way to paint; all that the model can by default.")
    ] = None,
    paint_by_example: Annotated[
        Path | None, typer.Option(help="Folder of a Paint-by-Example checkpoint, for that baseline.")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="CLIP that judges: a folder or repository in the public layout.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the model's own by default.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; the model's own by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of scenes and subjects.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of pictures, tables and report.")] = Path("lar-gen"),
    as_json: Json = False,
) -> None:
    """Paint subjects into holes of pictures, in several ways, and compare them as LAR-Gen's paper does."""
    from capriccio.evaluation.lar_gen.benchmark import Benchmark
    from capriccio.evaluation.lar_gen.painters import Settings
    from capriccio.evaluation.lar_gen.tables import benchmark_rows

    settings, opened = Settings(steps, guidance, paint_by_example), (inpainting, _modules(module or ()), flux)
    wanted = Benchmark(
        model or DEFAULT_MODEL, *opened, coco, dreambooth, samples, tuple(variant or ()), settings, clip, seed
    )
    with _progress("painting", quiet=as_json) as told:
        result = wanted.run(out, told, _say)
    data = {"page": result.page, "rows": benchmark_rows(result.rows), "verdicts": [vars(v) for v in result.verdicts]}
    _report(data, str(result), as_json)


ModelFolder = Annotated[str | None, typer.Option(help="Repository or folder, with --stages transformers.")]


@collections.command()
def quadruplets(
    source: Annotated[Path, typer.Argument(help="A folder of pictures; the folders in it are looked into.")],
    out: Annotated[Path, typer.Argument(help="Folder of the shards; one that was begun is gone on with.")],
    stages: Annotated[
        str, typer.Option(help="world, for pictures of the miniature's world; or transformers, for photographs.")
    ] = "world",
    tagger: ModelFolder = None,
    localiser: ModelFolder = None,
    segmenter: ModelFolder = None,
    captioner: ModelFolder = None,
    least_share: Annotated[float, typer.Option(help="Share of its picture that a thing covers at least.")] = 0.01,
    most_share: Annotated[float, typer.Option(help="Share of its picture that a thing covers at most.")] = 0.6,
    least_score: Annotated[float, typer.Option(help="How sure a box is at least.")] = 0.3,
    longest: Annotated[int, typer.Option(help="Pixels of a picture's longer side at most.")] = 1024,
    form: Annotated[str, typer.Option("--format", help="tar (WebDataset) or parquet.")] = "tar",
    per_shard: Annotated[int, typer.Option(help="Pictures of one shard.")] = 256,
    engine: Annotated[str, typer.Option(help="here, or ray.")] = "here",
    workers: Annotated[int, typer.Option(help="Processes on this machine.")] = 1,
    ray_address: Annotated[str | None, typer.Option(help="A Ray cluster; a local one is started by default.")] = None,
    device: Annotated[str, typer.Option(help="Where models run: cpu, cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Make quadruplets of pictures: source, mask, subject and its text, as the data engine of LAR-Gen does.

    A run that was stopped, even by kill -9, goes on with the same command and ends with the same files. Pictures that
    cannot be used are listed in OUT/quarantine.jsonl, with the reason.
    """
    from capriccio.collect import Limits, Settings, cast, collect_quadruplets
    from capriccio.collect.engines import engine as engine_of

    models = {"tagger": tagger, "localiser": localiser, "segmenter": segmenter, "captioner": captioner}
    who = cast(stages, **{stage: name for stage, name in models.items() if name is not None})
    limits = Limits(least_score, least_share=least_share, most_share=most_share)
    by = engine_of(engine, workers, ray_address, gpu=device.startswith("cuda"))
    with _progress("collecting", quiet=as_json) as told:
        manifest = collect_quadruplets(
            source,
            out,
            Settings(who, limits, longest),
            form=form,  # type: ignore[arg-type]  # checked there
            per_shard=per_shard,
            by=by,
            device=device,
            told=told,
        )
    _report(manifest, _collected(manifest, out), as_json)


def _collected(manifest: dict[str, Any], out: Path) -> str:
    counts, lines = manifest["counts"], []
    pictures = ", ".join(f"{number} {what}" for what, number in counts["pictures"].items())
    lines.append(f"{counts['quadruplets']} quadruplets in {len(manifest['shards'])} shards in {out}")
    lines.append(f"pictures: {pictures}")
    if counts["dropped"]:
        lines.append("finds dropped: " + ", ".join(f"{number} {why}" for why, number in counts["dropped"].items()))
    if manifest["quarantine"]:
        lines.append(f"refused, with reasons: {out / 'quarantine.jsonl'}")
    linked = manifest["sources"]["linked_folders_not_followed"]
    if linked:
        lines.append(f"folders behind links, not followed: {', '.join(linked)}")
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    # diffusers warns of itself whenever its own FLUX ControlNet is made: nothing that a person could do about
    warnings.filterwarnings("ignore", "`FluxPosEmbed` is deprecated", FutureWarning)
    app()


if __name__ == "__main__":
    main()
