"""The command line: what is typed becomes a scene, what is wrong becomes one sentence, and help comes at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image
from typer.testing import CliRunner, Result

from capriccio import pictures
from capriccio.cli import app
from capriccio.errors import Cancelled
from capriccio.perception.pages import Page
from capriccio.scene import Control, Edit, Lora, Region, Scene, Style, Subject

PLACED = ("--subject", "mug.png:mug", "--region", "0,0.25,0.5,1: a {mug}", "--region", "0.5,0.25,1,1: a hat")
EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


class Painting:
    """What a studio gives back: one white picture."""

    readings: dict[str, Any] = {"seconds": 1.0}  # noqa: RUF012

    def __init__(self, scene: Scene, weights: dict[str, str]) -> None:
        self.scene = self.plan = scene
        self.weights = weights

    def save(self, path: Path, recipe: bool) -> list[Path]:
        carried = {"scene": self.scene.recipe(), "model": "miniature", "weights": self.weights} if recipe else None
        return [pictures.save_png(Image.new("RGB", (8, 8), "white"), path, carried)]


class Easel:
    """A studio that paints nothing and remembers what it was asked."""

    def __init__(self) -> None:
        self.opened: list[tuple[Any, dict[str, Any]]] = []
        self.scenes: list[Scene] = []
        self.failure: BaseException | None = None
        self.weights: dict[str, str] = {"transformer": "1a"}

    def open(self, model: str, **settings: Any) -> Easel:
        self.opened.append((model, settings))
        return self

    def paint(self, scene: Scene, callback: Any = None) -> Painting:
        self.scenes.append(scene)
        if self.failure is not None:
            raise self.failure
        return Painting(scene, self.weights)

    @property
    def scene(self) -> Scene:
        return self.scenes[-1]


@pytest.fixture
def easel(monkeypatch: pytest.MonkeyPatch) -> Easel:
    easel = Easel()
    monkeypatch.setattr("capriccio.studio.Studio", easel)
    return easel


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("mug.png", "back.png", "style.png", "mask.png"):
        Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(tmp_path / name)
    return tmp_path


# --- what is typed becomes a scene ---


def test_a_sentence_and_a_subject(easel: Easel, folder: Path) -> None:
    result = run("paint", "the {toy mug} in the snow", "--subject", "mug.png:toy mug", "--seed", 7, "-o", "snow.png")
    assert (result.exit_code, result.stdout) == (0, "snow.png\n")
    assert easel.scene == Scene("the {toy mug} in the snow", [Subject("mug.png", name="toy mug")], seed=7)
    assert easel.opened == [("miniature", {"inpainting": None, "controlnets": {}, "modules": {}, "memory": "full"})]
    assert Image.open("snow.png").size == (8, 8)


def test_every_setting_reaches_the_scene(easel: Easel, folder: Path) -> None:
    counts = ("--num-images", 2, "--steps", 9, "--width", 64, "--height", 32)
    scales = ("--guidance-scale", 3.5, "--true-cfg-scale", 4)
    words = ("--negative-prompt", "blur", "--scheduler", "DDIMScheduler")
    assert run("paint", "a mug", *counts, *scales, *words, "-o", "a.png").exit_code == 0
    assert easel.scene == Scene(
        "a mug",
        num_images=2,
        num_inference_steps=9,
        guidance_scale=3.5,
        true_cfg_scale=4.0,
        width=64,
        height=32,
        negative_prompt="blur",
        scheduler="DDIMScheduler",
    )


def test_every_condition_can_be_typed(easel: Easel, folder: Path) -> None:
    files = ("--subject", "mug.png:mug", "--subject", "back.png:mug", "--style", "style.png")
    more = ("--edit", "back.png", "--mask", "mask.png", "--lora", "a.safetensors:0.5", "--lora", "someone/b")
    assert run("paint", "a {mug}", *files, *more, "--seeds", "3,1").exit_code == 0
    assert easel.scene.all_seeds() == (3, 1)
    assert easel.scene.conditions == (
        Subject(["mug.png", "back.png"], name="mug"),
        Style("style.png"),
        Edit("back.png", "mask.png"),
        Lora("a.safetensors", weight=0.5),
        Lora("someone/b"),
    )


def test_a_strength_needs_no_mask(easel: Easel, folder: Path) -> None:
    assert run("paint", "a", "--edit", "back.png", "--strength", "0.6", "--clip-skip", "1").exit_code == 0
    assert easel.scene == Scene("a", Edit("back.png", strength=0.6), clip_skip=1)


def test_an_edit_may_zoom_in_and_be_soft(easel: Easel, folder: Path) -> None:
    edit = ("--edit", "back.png", "--mask", "mask.png", "--zoom", "1.3", "--feather", "4")
    assert run("paint", "a", *edit).exit_code == 0
    assert easel.scene.conditions == (Edit("back.png", "mask.png", zoom=1.3, feather=4),)


def test_a_mask_without_an_edit_is_the_subjects(easel: Easel, folder: Path) -> None:
    assert run("paint", "a {mug}", "--subject", "mug.png:mug", "--mask", "mask.png").exit_code == 0
    assert easel.scene.conditions == (Subject("mug.png", name="mug", mask="mask.png"),)


def test_regions_are_boxes_or_masks(easel: Easel, folder: Path) -> None:
    places = (
        "--region",
        "0,0.5,0.5,1: a red car: old",
        "--region",
        " 8, 0, 16, 4:a lamp",
        "--region",
        "mask.png: a cat",
    )
    assert run("paint", "a street", *places, "--option", "mask_inject_steps=8").exit_code == 0
    options = {"mask_inject_steps": 8}
    assert easel.scene.conditions == (
        Region("a red car: old", box=(0, 0.5, 0.5, 1), options=options),
        Region("a lamp", box=(8, 0, 16, 4), options=options),
        Region("a cat", mask="mask.png", options=options),
    )


def test_regions_have_names_that_loras_work_in(easel: Easel, folder: Path) -> None:
    Path("a=b.png").write_bytes(Path("mask.png").read_bytes())
    Path("at@home.safetensors").touch()
    places = ("--region", "hat=0,0,0.5,1: a hat", "--region", "cat = mask.png: a cat", "--region", "a=b.png: a dog")
    names = ("wool.safetensors:0.8@hat", "someone/fur@cat", "at@home.safetensors:2", "at@home.safetensors")
    assert run("paint", "a shelf", *places, *(word for name in names for word in ("--lora", name))).exit_code == 2
    assert run("paint", "a shelf", *places, *(word for name in names[:3] for word in ("--lora", name))).exit_code == 0
    assert easel.scene.conditions == (
        Region("a hat", box=(0, 0, 0.5, 1), name="hat"),
        Region("a cat", mask="mask.png", name="cat"),
        Region("a dog", mask="a=b.png"),
        Lora("wool.safetensors", weight=0.8, region="hat"),
        Lora("someone/fur", region="cat"),
        Lora("at@home.safetensors", weight=2.0),
    )


def test_controls_have_settings_for_all_or_for_each(easel: Easel, folder: Path) -> None:
    pictures = ("--control", "mug.png:union", "--control", "back.png:edges")
    each = ("--control-mode", "depth", "--control-mode", "none", "--control-scale", 0.5, "--control-scale", 0.9)
    assert run("paint", "a", *pictures, *each, "--control-start", 0.1, "--control-end", 0.8).exit_code == 0
    steps = {"control_guidance_start": 0.1, "control_guidance_end": 0.8}
    assert easel.scene.conditions == (
        Control("mug.png", "union", mode="depth", controlnet_conditioning_scale=0.5, **steps),
        Control("back.png", "edges", controlnet_conditioning_scale=0.9, **steps),
    )
    Path("a:b.png").write_bytes(Path("mask.png").read_bytes())
    for typed in ("mug.png", "a:b.png"):
        assert run("paint", "a", "--control", typed, "--control-mode", 2, "--guess-mode").exit_code == 0
        assert easel.scene.conditions == (Control(typed, mode=2, guess_mode=True),)


def test_a_typed_control_takes_the_place_of_those_of_a_scene(easel: Easel, folder: Path) -> None:
    Scene("a", [Control("mug.png", "edges"), Control("back.png", "depth")]).save("scene.yaml")
    assert run("paint", "--scene", "scene.yaml", "--control", "style.png:edges").exit_code == 0
    assert easel.scene.conditions == (Control("style.png", "edges"),)


def test_a_plan_shows_controls_and_loras(flux_folder: Path, folder: Path) -> None:
    tiny.control_flux().save_pretrained("edges")
    lora = tiny.save_lora(folder / "lora")
    hat = Region("a hat", box=(0, 0, 0.5, 1), name="hat")
    Scene("a shelf", [hat, Control("mug.png"), Lora(lora, name="wool", region="hat")], max_sequence_length=24).save(
        "scene.yaml"
    )
    opened = ("--model", flux_folder, "--controlnet", "lines=edges")
    said = run("plan", "scene.yaml", *opened).stdout
    assert "ControlNet lines x 1" in said
    assert "LoRA wool x 1, in the region 'hat' alone" in said
    assert "opened without a ControlNet; open it with controlnets=" in run("plan", "scene.yaml", *opened[:2]).stderr


def test_typed_regions_join_those_of_a_scene(easel: Easel, folder: Path) -> None:
    Scene("a street", [Region("a car", box=(0, 0, 0.5, 1))]).save("scene.yaml")
    assert run("paint", "--scene", "scene.yaml", "--region", "0.5,0,1,1: a lamp").exit_code == 0
    assert [region.prompt for region in easel.scene.conditions] == ["a car", "a lamp"]


def test_method_and_options_go_to_the_conditions(easel: Easel, folder: Path) -> None:
    options = ("--by", "diptych", "--option", "attention_weight=1.2", "--option", "engine=fill")
    assert run("paint", "a {mug}", "--subject", "mug.png:mug", "--lora", "a.safetensors", *options).exit_code == 0
    subject, lora = easel.scene.conditions
    assert (subject.by, subject.options) == ("diptych", {"attention_weight": 1.2, "engine": "fill"})
    assert lora == Lora("a.safetensors")


def test_a_joint_canvas_takes_what_is_given_and_turns_do_not(easel: Easel, folder: Path) -> None:
    weight = ("--option", "attention_weight=1.2")
    assert run("paint", "a {mug}", *PLACED[:4], *weight).exit_code == 0
    assert [one.options for one in easel.scene.conditions] == [{"attention_weight": 1.2}, {}]
    assert run("paint", "a {mug}", *PLACED[:4], *weight, "--by", "diptych-joint").exit_code == 0
    assert {one.by for one in easel.scene.conditions} == {"diptych-joint"}
    assert easel.scene.conditions[0].options == {"attention_weight": 1.2}


def test_a_free_name_is_found_when_none_is_given(easel: Easel, folder: Path) -> None:
    names = [run("paint", "a mug").stdout.strip() for _ in range(3)]
    assert names == ["painting.png", "painting-2.png", "painting-3.png"]


def test_json_reports_what_was_painted(easel: Easel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("paint", "a mug", "--seed", 3, "-o", "a.png", "--json")
    assert json.loads(result.stdout) == {
        "files": ["a.png"],
        "seeds": [3],
        "plan": {"schema_version": 1, "prompt": "a mug", "seed": 3},
        "readings": {"seconds": 1.0},
    }


def test_models_are_opened_as_asked(easel: Easel, folder: Path) -> None:
    nets = ("--controlnet", "some/canny", "--controlnet", "far=nets/depth")
    more = (*nets, "--module", "lar-gen=mine", "--memory", "8bit")
    run("paint", "a mug", "--model", "some/flux", "--inpainting", "some/net", *more)
    opened = {"canny": "some/canny", "far": "nets/depth"}
    beside = {"controlnets": opened, "modules": {"lar-gen": "mine"}, "memory": "8bit"}
    assert easel.opened == [("some/flux", {"inpainting": "some/net"} | beside)]


@pytest.mark.parametrize("module", ["mine", "=mine", "lar-gen="])
def test_a_module_needs_its_method(easel: Easel, folder: Path, module: str) -> None:
    result = run("paint", "a mug", "--module", module)
    assert result.exit_code == 2
    assert "write METHOD=FOLDER, as in lar-gen=my-lar-gen" in result.stderr


# --- scenes and recipes ---


def test_a_scene_is_painted_and_what_is_typed_comes_first(easel: Easel, folder: Path) -> None:
    Scene("a {mug}", [Subject("mug.png", name="mug")], seeds=(1, 2), width=64).save("scene.yaml")
    assert run("paint", "--scene", "scene.yaml", "--seed", 9, "--subject", "back.png:mug").exit_code == 0
    assert easel.scene == Scene("a {mug}", [Subject("back.png", name="mug")], seed=9, width=64)
    assert run("paint", "one {mug}", "--scene", "scene.yaml", "--seeds", "5").exit_code == 0
    assert easel.scene == Scene("one {mug}", [Subject("mug.png", name="mug")], seeds=(5,), width=64)


def test_a_picture_is_painted_again(easel: Easel, folder: Path) -> None:
    run("paint", "a {mug}", "--subject", "mug.png:mug", "--seed", 4, "-o", "a.png")
    Path("mug.png").unlink()
    assert run("paint", "--scene", "a.png", "-o", "b.png").exit_code == 0
    assert easel.scene.seed == 4
    assert easel.scene.conditions[0].image.open().size == (4, 4)
    assert pictures.read_recipe("b.png") == pictures.read_recipe("a.png")


def test_other_weights_are_told_before_a_picture_is_painted_again(easel: Easel, folder: Path) -> None:
    run("paint", "a mug", "-o", "a.png")
    assert "other weights" not in run("paint", "--scene", "a.png", "-o", "b.png").stderr
    easel.weights = {"transformer": "1a", "controlnet": "2b"}
    assert "other weights (controlnet)" in run("paint", "--scene", "a.png", "-o", "b.png").stderr


def test_without_recipe_nothing_is_carried(easel: Easel, folder: Path) -> None:
    run("paint", "a mug", "--no-recipe", "-o", "a.png")
    assert "carries no recipe" in run("paint", "--scene", "a.png").stderr


def test_a_recipe_does_not_choose_the_model(easel: Easel, folder: Path) -> None:
    recipe = {"scene": {"prompt": "a"}, "model": "evil/weights"}
    pictures.save_png(Image.new("RGB", (4, 4)), "a.png", recipe)
    result = run("paint", "--scene", "a.png")
    assert result.exit_code == 2
    assert "open it yourself with --model evil/weights" in result.stderr
    assert easel.opened == []
    assert run("paint", "--scene", "a.png", "--model", "evil/weights").exit_code == 0


# --- what is wrong becomes one sentence ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["paint"], "nothing to paint"),
        (["paint", "a", "--subject", "mug.png"], "write FILE:name"),
        (["paint", "a {mog}", "--subject", "mug.png:mug"], "did you mean 'mug'"),
        (["paint", "a", "-o", "a.jpg"], "end the name in .png"),
        (["paint", "a", "--edit", "mug.png"], "--edit came without --mask"),
        (["paint", "a", "--strength", "0.5"], "--strength came without --edit"),
        (["paint", "a", "--zoom", "1.3"], "--zoom came without --edit"),
        (["paint", "a", "--mask", "mask.png"], "--mask came with 0 subjects"),
        (["paint", "a", "--seeds", "one"], "--seeds received 'one'"),
        (["paint", "a", "--seeds", "1,2", "--seed", "3"], "Both seed=3 and seeds"),
        (["paint", "a", "--width", "0"], "received 0 for 'width'"),
        (["paint", "a", "--by", "diptych"], "need a condition to work on"),
        (["paint", "a", "--subject", "mug.png:mug", "--option", "x"], "write NAME=VALUE"),
        (["paint", "a", "--region", "a car"], "needs a place and a prompt"),
        (["paint", "a", "--region", "car=: a car"], "needs a place and a prompt"),
        (["paint", "a", "--region", "0,0,1,1: a car", "--lora", "x@car"], "no region of the scene has a name"),
        (["paint", "a", "--region", "car=0,0,1,1: a car", "--lora", "x@cat"], "did you mean 'car'"),
        (["paint", "a", "--lora", "@car"], "--lora received '@car', but needs a file and the name of a region"),
        (["paint", "a", "--lora", "x:0.5@"], "--lora received 'x:0.5@'"),
        (["paint", "a", "--control", "mug.png:"], "--control received 'mug.png:', but needs a picture"),
        (["paint", "a", "--control", "mug.png", "--control-mode", "dept"], "did you mean 'depth'"),
        (["paint", "a", "--control", "mug.png", "--control-scale", "-1"], "'controlnet_conditioning_scale'"),
        (["paint", "a", "--control", "mug.png", "--control-start", "1"], "which leaves none"),
        (["paint", "a", "--guess-mode"], "--guess-mode came without --control"),
        (["paint", "a", "--control-end", "0.5"], "--control-end came without --control; give the picture"),
        (
            ["paint", "a", *["--control", "mug.png"] * 3, *["--control-scale", "1"] * 2],
            "--control-scale came 2 times, but there are 3 controls; give it once for all of them, or once for each",
        ),
        (["paint", "a", "--controlnet", "x="], "--controlnet received 'x=', but needs a folder"),
        (["paint", "a", "--controlnet", "a/x", "--controlnet", "b/x"], "both called 'x'; write NAME=FOLDER"),
        (["paint", "a", "--region", "0,0,1,1:"], "needs a place and a prompt"),
        (["paint", "a", "--region", "0,0,1: a car"], "a box is four numbers"),
        (["paint", "a", "--region", "0,0,x,1: a car"], "a box is four numbers"),
        (["paint", "a", "--region", "0,0,50%,1: a car"], "a box is four numbers"),
        (["paint", "a", "--region", "1,0,1,1: a car"], "holds nothing"),
        (["paint", "a", "--region", "-1,0,1,1: a car"], "received -1.0 for 'box.0'"),
        (["plan", "missing.yaml", "--overlay", "a.jpg"], "--overlay received 'a.jpg'"),
        (["layout", "a cat", "--overlay", "a.jpg"], "--overlay received 'a.jpg'"),
        (["layout", "a cat", "-o", "a.txt"], "A page is a .yaml, .yml or .json file"),
        (["layout", " "], "The prompt is empty"),
        (["layout", "a cat", "--planner", "grammer"], "did you mean 'grammar'"),
        (["layout", "a {mug}", "--scene", "a.yaml"], "refers to {mug}"),
        (["paint", "a", *PLACED[:2], "--region", "0,0,1,1: a hat", "--option", "engine=hold"], "none of them names"),
        (["paint", "a", "--region", "0,0,1,1: a {hat}"], "refers to {hat}"),
        (["paint", "--scene", "missing.yaml"], "cannot be read"),
        (["paint", "--scene", "mug.png"], "carries no recipe"),
        (["plan", "missing.yaml"], "cannot be read"),
        (["train", "miniature", "vea"], "did you mean 'vae'"),
        (["train", "miniature", "all"], "--all trains the whole family"),
        (["train", "miniature"], "Say what to train: one of vae"),
        (["train", "miniature", "vae", "--all"], "or else --all"),
        (["train", "miniature", "--all", "--start", "x"], "--start is for one model"),
        (["train", "miniature", "--all", "--compile"], "--compile is for one model"),
        (["train", "miniature", "vae", "--minutes", "-1"], "give a time above 0"),
    ],
)
def test_a_mistake_is_one_sentence_and_two(easel: Easel, folder: Path, arguments: list[str], words: str) -> None:
    before = sorted(folder.iterdir())
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert easel.opened == []
    assert sorted(folder.iterdir()) == before


def test_an_unknown_option_is_told_by_name(folder: Path) -> None:
    result = run("paint", "a", "--sede", "3")
    assert result.exit_code == 2
    assert "--sede" in result.stderr


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Cancelled()])
def test_an_interruption_leaves_nothing(easel: Easel, folder: Path, error: BaseException) -> None:
    easel.failure = error
    before = sorted(folder.iterdir())
    result = run("paint", "a mug")
    assert result.exit_code == 130
    assert "half-written" in result.stderr
    assert sorted(folder.iterdir()) == before


class OutOfMemoryError(RuntimeError):
    """As a GPU raises it."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_names_the_remedy(easel: Easel, folder: Path, error: Exception) -> None:
    easel.failure = error
    result = run("paint", "a mug")
    assert result.exit_code == 2
    assert "--memory offload" in result.stderr


def test_a_fault_of_our_own_is_not_hidden(easel: Easel, folder: Path) -> None:
    easel.failure = RuntimeError("shapes differ")
    assert isinstance(run("paint", "a mug").exception, RuntimeError)


# --- reports ---


def test_the_schema_is_printed() -> None:
    assert json.loads(run("schema").stdout) == Scene.json_schema()


def test_a_sentence_is_laid_out(folder: Path) -> None:
    files = ("-o", "page.yaml", "--scene", "scene.yaml", "--overlay", "page.png")
    told = run("layout", "a red mug on the left and a blue star on the right", *files)
    assert told.exit_code == 0, told.stderr
    assert "a blue star" in told.stdout
    page = Page.load("page.yaml")
    assert (page.ratio, page.regions) == ("1,1", ("a red mug", "a blue star"))
    assert Scene.load("scene.yaml").conditions[1] == Region("a blue star", box=(0.5, 0, 1, 1))
    assert Image.open("page.png").width >= 768
    data = json.loads(run("layout", "a red mug on the left and a blue star on the right", "--json").stdout)
    assert data.pop("cells")[1] == {"cell": [0.5, 0, 1, 1], "prompt": "a blue star"}
    assert Page(**data) == page


def test_methods_are_listed_in_both_ways() -> None:
    rows = json.loads(run("methods", "--json").stdout)
    assert {"name", "paper", "what", "settings"} <= rows[0].keys()
    listed = run("methods").stdout
    assert all(row["name"] in listed for row in rows)


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[Any]:
    """The trainings asked for; none is carried out."""
    from capriccio.recipes import family, miniature

    found: list[miniature.Order] = []
    monkeypatch.setattr(miniature, "train", lambda order, say: found.append(order))
    monkeypatch.setattr(miniature, "look", lambda order: family.Wanted(order.name, order.needs, order.minutes, {}))
    return found


def test_all_trains_each_model_behind_what_it_needs(orders: list[Any]) -> None:
    from capriccio.recipes.miniature import ORDER

    result = run("train", "miniature", "--all", "--budget", "gpu", "--minutes", 5, "--out", "here", "--json")
    assert [order.name for order in orders] == list(ORDER)
    assert {(order.budget, order.minutes, order.runs) for order in orders} == {("gpu", 5.0, Path("here"))}
    report = json.loads(result.stdout)
    assert report["folders"][0].endswith(f"miniature/{ORDER[0]}")
    assert report["plan"][0] == {"name": ORDER[0], "needs": [], "minutes": 5.0, "state": "to do"}


@pytest.mark.parametrize("what", ["--all", "flux"])
def test_a_dry_run_trains_nothing(orders: list[Any], what: str) -> None:
    result = run("train", "miniature", what, "--minutes", 5, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "flux" in result.stdout
    assert ("sd-inpaint" in result.stdout) == (what == "--all")
    assert orders == []


def test_a_training_that_is_stopped_says_how_to_go_on(orders: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from capriccio.recipes import miniature

    def stop(order: Any, say: Any) -> None:
        raise Cancelled("the same command goes on")

    monkeypatch.setattr(miniature, "train", stop)
    result = run("train", "miniature", "vae", "--minutes", 5)
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr


def test_a_small_checkpoint_plans_and_paints(flux_folder: Path, folder: Path) -> None:
    small = ("--model", flux_folder, "--steps", 2, "--width", 64, "--height", 64)
    painted = run("paint", "a mug in the snow", *small, "-o", "a.png", "--json")
    assert painted.exit_code == 0, painted.stderr
    again = run("paint", "--scene", "a.png", "--model", flux_folder, "-o", "b.png")
    assert again.exit_code == 0, again.stderr
    assert (np.asarray(Image.open("a.png")) == np.asarray(Image.open("b.png"))).all()
    planned = run("plan", "a.png", "--model", flux_folder, "--json")
    assert json.loads(planned.stdout) == json.loads(painted.stdout)["plan"]
    assert run("plan", "a.png", "--model", flux_folder, "--overlay", "layout.png").stdout.strip()
    assert Image.open("layout.png").width >= 768


def test_a_subject_in_a_region_is_planned_and_painted_in_turns(
    flux_folder: Path, folder: Path, subject_picture: Image.Image
) -> None:
    subject_picture.save("mug.png")
    small = ("--model", flux_folder, "--steps", 2, "--width", 64, "--height", 64)
    painted = run("paint", "a {mug}", *PLACED, *small, "-o", "a.png", "--json")
    assert painted.exit_code == 0, painted.stderr
    again = run("paint", "--scene", "a.png", "--model", flux_folder, "-o", "b.png")
    assert again.exit_code == 0, again.stderr
    assert (np.asarray(Image.open("a.png")) == np.asarray(Image.open("b.png"))).all()
    planned = run("plan", "a.png", "--model", flux_folder, "--overlay", "layout.png")
    assert "turn 2 of 2: the mug into 'a mug'" in planned.stdout
    assert Image.open("layout.png").width >= 768
    (later,) = json.loads(painted.stdout)["plan"]["later"]
    assert later["method"] == "diptych"


def test_options_go_to_the_turns_that_have_them(easel: Easel, folder: Path) -> None:
    given = ("--option", "base_ratio=0.1", "--option", "attention_weight=1.2")
    assert run("paint", "a {mug}", *PLACED, *given, "--by", "diptych").exit_code == 0
    subject, *regions = easel.scene.conditions
    assert (subject.by, subject.options) == ("diptych", {"attention_weight": 1.2})
    assert [(region.by, region.options) for region in regions] == [(None, {"base_ratio": 0.1})] * 2
    # What no turn has goes to all of them, and the plan refuses it.
    assert run("paint", "a {mug}", *PLACED, "--option", "mode=latent", "--by", "inpainting").exit_code == 0
    assert {(one.by, one.options["mode"]) for one in easel.scene.conditions} == {("inpainting", "latent")}


# --- speed ---


def test_help_comes_at_once() -> None:
    """What takes seconds to import is not imported for it."""
    code = (
        "import sys; sys.argv = ['capriccio', '--help']\n"
        "from capriccio.cli import main\n"
        "try: main()\n"
        "finally: print('slow:', sorted({'torch', 'diffusers', 'transformers', 'numpy'} & sys.modules.keys()))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Usage" in said
    assert said.endswith("slow: []\n")


def test_layout_takes_a_planner_or_a_page(tmp_path: Path) -> None:
    """The grammar divides the sentence; a saved page is painted without asking anybody."""
    from capriccio.cli import _layout
    from capriccio.perception.pages import Page

    page = Page(prompt="two pets", base="two pets", ratio="1,1", regions=("a cat", "a dog"))
    (given,) = _layout(str(page.save(tmp_path / "page.yaml")))
    assert given.page == page.model_dump(mode="json")
    assert _layout("grammar")[0].planner == "grammar"
    assert _layout(None) == []
