"""LAR-Gen from shards, by a recipe: both stages on tiny checkpoints, and what a recipe may say."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection
from typer.testing import CliRunner

from capriccio import Edit, Scene, Studio, Subject
from capriccio.cli import app
from capriccio.collect import collect_quadruplets
from capriccio.errors import Cancelled, CapriccioError
from capriccio.evaluation.metrics import to_pictures
from capriccio.modules.lar_gen import Eye, LarGen
from capriccio.recipes.lar_gen import training as lar_gen_training
from capriccio.recipes.lar_gen.recipe import Recipe
from capriccio.recipes.lar_gen.shards import ShardTask, adapter_file, hidden, open_eye, save_eye
from capriccio.recipes.lar_gen.stages import ASSIGN, DROPOUT, REFINE, STAGES
from capriccio.recipes.lar_gen.training import NAMES, Training, train, trainings
from capriccio.training.trainer import LOG, minutes_learned, read_table, steps_learned
from capriccio.world.draw import draw
from capriccio.world.graph import sample_scene

EXAMPLES = Path(__file__).parents[1] / "examples" / "training"
SMALL: dict[str, Any] = {"size": 32, "batch": 4, "per_device": 2, "precision": "no"}
QUICK = {"steps": 2, "rate": 1e-3, "warmup": 1}


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny checkpoints, shards of the world and a recipe, in one folder."""
    root = tmp_path_factory.mktemp("place")
    tiny.stable_diffusion("sd15").save_pretrained(root / "sd")
    tiny.stable_diffusion("sd15", inpaint=True, seed=4).save_pretrained(root / "sd-inpainting")
    torch.manual_seed(6)
    LarGen.new(tiny.unet(), tiny.eye()).save(root / "adapter")
    save_eye(tiny.eye(), root / "adapter")
    (root / "pictures").mkdir()
    rng = np.random.default_rng(3)
    for number, picture in enumerate(to_pictures(draw([sample_scene(rng) for _ in range(4)]).pixels)):
        picture.save(root / "pictures" / f"{number}.png")
    collect_quadruplets(root / "pictures", root / "shards", per_shard=2)
    settings = {"model": "sd", "inpainting": "sd-inpainting", "shards": "shards"}
    settings |= {"adapter": "adapter/ip_adapter.safetensors"}
    (root / "tiny.json").write_text(json.dumps(settings | SMALL | {"assign": QUICK, "refine": QUICK}))
    return root


@pytest.fixture(scope="module")
def recipe(place: Path) -> Recipe:
    return Recipe.load(place / "tiny.json")


@pytest.fixture(scope="module")
def finished(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages, by the command."""
    out = tmp_path_factory.mktemp("finished")
    result = run("train", "lar-gen", place / "tiny.json", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [row["state"] for row in report["plan"]] == ["to do", "to do"]
    assert report["batch"] == "4 pictures a step: 2 at once x 2 in turn x 1 process"
    assert report["folders"] == [str(out / "tiny" / name / "weights") for name in NAMES]
    return out / "tiny"


# --- what learns ---


def learning(task: ShardTask) -> tuple[set[str], torch.nn.Module]:
    """The weights that a step of a stage reaches, which are all those that are to learn."""
    model = task.models()
    loss, _ = task.loss(model, task.batch(np.random.default_rng(0)), torch.Generator().manual_seed(0))
    loss.backward()
    reached = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert reached == {name for name, weight in model.named_parameters() if weight.requires_grad}
    chosen = {id(weight) for group in task.optimisers(model)[0].param_groups for weight in group["params"]}
    assert chosen == {id(weight) for weight in model.parameters() if weight.requires_grad}
    return reached, model


def test_stage_1_learns_the_main_unet_and_assigns_keys_and_values(recipe: Recipe) -> None:
    reached, model = learning(ShardTask(recipe, ASSIGN))
    assert {name for name in reached if name.startswith("unet.")} == {
        f"unet.{name}" for name, _ in model.unet.named_parameters()
    }
    assert {name.split(".")[1] for name in reached if name.startswith("module.")} == {"to_k", "to_v"}
    # It begins as the adapter.
    again = LarGen.load(Path(recipe.adapter or ""), model.unet, None, model.module.eye)
    for left, right in zip(model.module.to_k, again.to_k, strict=True):
        assert torch.equal(left.weight, right.weight)


def test_without_an_adapter_the_resampler_learns_and_without_an_inpainting_model_channels_begin_at_zero(
    recipe: Recipe, place: Path
) -> None:
    bare = recipe.model_copy(update={"adapter": None, "inpainting": None, "clip": str(place / "adapter")})
    reached, model = learning(ShardTask(bare, ASSIGN))
    assert {name.split(".")[1] for name in reached if name.startswith("module.")} == {"to_k", "to_v", "resampler"}
    assert model.unet.conv_in.weight.shape[1] == 2 * tiny.LATENTS + 1
    assert not model.unet.conv_in.weight[:, tiny.LATENTS :].any()


def test_stage_2_learns_what_refinenet_reads_and_nothing_else(recipe: Recipe, finished: Path) -> None:
    reached, _ = learning(ShardTask(recipe, REFINE, finished / "assign" / "weights"))
    assert reached
    assert all(name.startswith("module.detail.") or ".attn2." in name for name in reached)
    assert all(name.startswith("module.") for name in reached)


def test_the_stages_work_at_the_betas_of_the_paper() -> None:
    assert {name: stage.beta for name, stage in STAGES.items()} == {"assign": 1.0, "refine": 0.3}
    assert tuple(STAGES) == NAMES
    assert Recipe.model_fields["dropout"].default == DROPOUT  # told twice, so that a recipe is read without diffusers


def test_stage_2_leaves_what_stage_1_learned(finished: Path) -> None:
    first, second = (finished / name / "weights" / "ip_adapter.safetensors" for name in NAMES)
    assert first.read_bytes() == second.read_bytes()


# --- batches ---


def test_a_batch_is_a_window_a_box_a_subject_and_words(recipe: Recipe) -> None:
    task = ShardTask(recipe, ASSIGN)
    batch = task.batch(np.random.default_rng(0))
    shapes = {name: tuple(value.shape) for name, value in batch.items()}
    assert shapes == {"pixels": (2, 3, 32, 32), "mask": (2, 1, 32, 32), "subject": (2, 3, 32, 32), "clip_ids": (2, 77)}
    assert all((0 < mask.mean() <= 1) and set(mask.unique().tolist()) <= {0.0, 1.0} for mask in batch["mask"])
    again = task.batch(np.random.default_rng(0))
    assert all(torch.equal(batch[name], again[name]) for name in batch)


def test_text_and_subject_are_left_out_by_themselves(recipe: Recipe) -> None:
    task = ShardTask(recipe.model_copy(update={"dropout": 0.5, "per_device": 64, "batch": 64}), ASSIGN)
    batch, nobody = task.batch(np.random.default_rng(1)), task._ids([""])[0]
    silent = (batch["clip_ids"] == nobody).all(dim=1)
    unseen = (batch["subject"] == task.blank).flatten(1).all(dim=1)
    both = {(bool(s), bool(u)) for s, u in zip(silent, unseen, strict=True)}
    assert both == {(False, False), (False, True), (True, False), (True, True)}
    whole = ShardTask(recipe.model_copy(update={"dropout": 0.0, "per_device": 64, "batch": 64}), ASSIGN)
    assert not (whole.batch(np.random.default_rng(1))["clip_ids"] == nobody).all(dim=1).any()


def test_the_window_holds_the_thing_and_some_of_what_is_around_it() -> None:
    source, mask = Image.new("RGB", (200, 120), "navy"), Image.new("L", (200, 120))
    source.paste("red", (90, 40, 110, 60))
    mask.paste(255, (90, 40, 110, 60))
    picture, hole = hidden(source, mask, 64, 1.3, np.random.default_rng(0))
    assert picture.size == hole.size == (64, 64)
    red = np.asarray(picture)[..., 0] > 128
    inside = np.asarray(hole) > 127
    assert red.mean() > 0.2  # it was 1 in 60
    assert (red & inside).sum() == red.sum() < inside.sum() < inside.size


# --- a training ---


def test_both_stages_end_with_weights_a_card_and_a_log(finished: Path) -> None:
    for name in NAMES:
        assert steps_learned(finished / name) == 2
        text = (finished / name / "weights" / "README.md").read_text()
        assert f'modules={{"lar-gen": {str(finished / name / "weights")!r}}}' in text
        assert "2 of 4 pictures a step: 2 at once x 2 in turn x 1 process" in text
    assert (finished / "refine" / "weights" / "refine.safetensors").is_file()
    assert not list(finished.rglob("*.tmp"))
    assert not list(finished.rglob("*.new"))


def test_what_was_learned_paints(finished: Path, place: Path, picture: Image.Image, spot: Image.Image) -> None:
    subject = Subject(Image.new("RGB", (40, 30), "red"), name="mug", remove_background=False)
    scene = Scene("a {mug}", [subject, Edit(picture, mask=spot)], width=32, height=32, num_inference_steps=1)
    inpainting = finished / "assign" / "weights" / "inpainting"
    for name in NAMES:
        modules = {"lar-gen": finished / name / "weights"}
        studio = Studio.open(place / "sd", inpainting=inpainting, modules=modules, device="cpu")
        painting = studio.paint(scene)
        assert painting.plan.method is not None
        assert painting.plan.method.name == "lar-gen"
        assert ("RefineNet" in str(painting.plan)) == (name == "refine")
        mask = np.asarray(spot) > 127
        assert np.array_equal(np.asarray(painting.images[0])[~mask], np.asarray(picture)[~mask])


def test_a_finished_training_is_done_and_more_steps_go_on(finished: Path, place: Path) -> None:
    result = run("train", "lar-gen", place / "tiny.json", "--out", finished.parent, "--dry-run", "--json")
    assert [row["state"] for row in json.loads(result.stdout)["plan"]] == ["done", "done"]
    before = (finished / "assign" / "checkpoint.pt").stat().st_mtime_ns
    train(Training(Recipe.load(place / "tiny.json"), "assign", finished))
    assert (finished / "assign" / "checkpoint.pt").stat().st_mtime_ns == before
    longer = Recipe.load(place / "tiny.json").model_copy(
        update={"assign": Recipe.load(place / "tiny.json").assign.model_copy(update={"steps": 4})}
    )
    steps = lar_gen_training.plan([Training(longer, name, finished) for name in NAMES])
    assert [str(step) for step in steps] == ["resumes at 50 %", "stale: assign must be trained first"]
    faster = longer.model_copy(update={"assign": longer.assign.model_copy(update={"rate": 1e-2})})
    assert str(lar_gen_training.plan([Training(faster, "assign", finished)])[0]) == "stale: its rate was 0.001"


def test_an_interrupted_stage_goes_on_and_ends_as_it_would_have(
    recipe: Recipe, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, calls = Training(recipe, "assign", tmp_path), [0]
    loss = ShardTask.loss

    def broken(self: ShardTask, *given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:  # in the middle of the second step
            raise KeyboardInterrupt
        return loss(self, *given)

    monkeypatch.setattr(ShardTask, "loss", broken)
    with pytest.raises(Cancelled, match="the same command goes on from"):
        train(training)
    assert steps_learned(training.run) == 1
    assert str(lar_gen_training.plan([training])[0]) == "resumes at 50 %"
    assert training.made == ""
    train(training)
    for name in ("ip_adapter.safetensors", "inpainting/unet/diffusion_pytorch_model.safetensors"):
        whole, resumed = (folder / name for folder in (finished / "assign" / "weights", training.weights))
        assert whole.read_bytes() == resumed.read_bytes()


def test_refine_waits_for_assign(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(CapriccioError, match="run --stage assign first"):
        train(Training(recipe, "refine", tmp_path))


def test_other_settings_set_aside_what_was_learned(recipe: Recipe, tmp_path: Path) -> None:
    short = recipe.assign.model_copy(update={"steps": 1})
    one = recipe.model_copy(update={"assign": short, "batch": 2})
    train(Training(one, "assign", tmp_path))
    said: list[str] = []
    train(Training(one.model_copy(update={"seed": 1}), "assign", tmp_path), said.append)
    assert said == [
        f"assign begins anew, for its seed was 0; what was learned before is set aside in {tmp_path / 'assign.old1'}."
    ]


def test_several_processes_are_a_worker(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    training = Training(recipe.model_copy(update={"processes": 2}), "assign", tmp_path)
    monkeypatch.setattr(lar_gen_training, "launch_worker", lambda *given: found.append(given) or 1)
    with pytest.raises(CapriccioError, match="the same command goes on"):
        train(training)
    module, order, processes, place = found[0]
    assert (module, processes, place) == ("capriccio.recipes.lar_gen.training", 2, tmp_path / "assign")
    assert Training.read(order) == training


@pytest.mark.slow
def test_two_processes_learn_together(place: Path, tmp_path: Path) -> None:
    settings = json.loads((place / "tiny.json").read_text()) | {"per_device": 1, "processes": 2}
    (place / "two.json").write_text(json.dumps(settings))
    (training, _) = trainings(place / "two.json", tmp_path)
    train(training)
    assert steps_learned(training.run) == 2
    assert minutes_learned(training.run)
    assert read_table(training.run / LOG) == []  # fewer steps than a row
    assert os.path.isfile(training.weights / "inpainting" / "model_index.json")


# --- recipes ---


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"modle": "sd"}, "A recipe has no setting 'modle'; did you mean 'model'"),
        ({"assign": {"stepz": 3}}, "A stage has no setting 'stepz'; did you mean 'steps'"),
        ({"refine": {"rate": 0}}, "received 0 for 'rate'"),
        ({"precision": "bf1"}, "received 'bf1' for 'precision'"),
        ({"batch": 6, "per_device": 4}, "A batch of 6 is not made of whole parts of 4 x 1 (per_device x processes)"),
        ({"zoom": 0.5}, "received 0.5 for 'zoom'"),
        ({"shards": "nowhere"}, "holds no finished collection; run capriccio collect quadruplets"),
    ],
)
def test_mistakes_in_a_recipe_are_sentences(place: Path, change: dict[str, Any], sentence: str) -> None:
    path = place / "wrong.json"
    path.write_text(json.dumps(json.loads((place / "tiny.json").read_text()) | change))
    result = run("train", "lar-gen", path, "--dry-run")
    assert result.exit_code == 2
    assert sentence in result.output
    assert result.output.count("\n") == 1


def test_what_is_not_there_is_a_sentence(place: Path, recipe: Recipe, tmp_path: Path) -> None:
    result = run("train", "lar-gen", tmp_path / "none.yaml")
    assert (result.exit_code, "cannot be read" in result.output) == (2, True)
    assert "did you mean 'assign'" in run("train", "lar-gen", place / "tiny.json", "--stage", "asign").output
    (tmp_path / "bare.yaml").write_text("model: sd\n")
    assert "A recipe needs 'shards'; give it." in run("train", "lar-gen", tmp_path / "bare.yaml").output

    def task(**change: Any) -> ShardTask:
        return ShardTask(recipe.model_copy(update=change), ASSIGN)

    with pytest.raises(CapriccioError, match="could not be loaded"):
        task(model=str(tmp_path / "nowhere")).models()
    with pytest.raises(CapriccioError, match="is no file; give the path of one"):
        task(adapter="nowhere.safetensors", clip=str(place / "adapter")).models()
    with pytest.raises(CapriccioError, match="could not be fetched"):
        adapter_file("nobody/nothing/nowhere.safetensors")
    with pytest.raises(CapriccioError, match="names no CLIP"):
        open_eye(None, None)
    with pytest.raises(CapriccioError, match="The CLIP"):
        open_eye(str(tmp_path / "nowhere"), None)
    with pytest.raises(CapriccioError, match="is not made of whole tokens"):
        task(size=34).models()


def test_models_on_which_it_cannot_learn_are_sentences(place: Path, recipe: Recipe, tmp_path: Path) -> None:
    for kind, sentence in (("sd2", "predicts v_prediction"), ("sdxl", "of another family")):
        tiny.stable_diffusion(kind).save_pretrained(tmp_path / kind)
        with pytest.raises(CapriccioError, match=sentence):
            _ = ShardTask(
                recipe.model_copy(update={"model": str(tmp_path / kind), "inpainting": None}), ASSIGN
            ).backbone
    change = {"model": str(place / "sd-inpainting"), "inpainting": None}
    with pytest.raises(CapriccioError, match="is an inpainting model"):
        _ = ShardTask(recipe.model_copy(update=change), ASSIGN).backbone


def test_a_clip_is_found_in_a_folder_beside_the_adapter_or_as_transformers_has_it(place: Path, tmp_path: Path) -> None:
    adapter = str(place / "adapter" / "ip_adapter.safetensors")
    tiny.eye().encoder.save_pretrained(tmp_path)
    shutil.copy(place / "adapter" / "feature_extractor" / "preprocessor_config.json", tmp_path)
    found = [open_eye(*given) for given in ((str(place / "adapter"), None), (None, adapter), (str(tmp_path), adapter))]
    pixels = torch.rand(1, 3, 20, 20)
    for one in found:
        torch.testing.assert_close(one.features(pixels), tiny.eye().features(pixels))


def test_an_adapter_needs_its_own_clip(recipe: Recipe, tmp_path: Path) -> None:
    config = CLIPVisionConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=16, patch_size=8)
    save_eye(Eye(CLIPVisionModelWithProjection(config), CLIPImageProcessor()), tmp_path)
    with pytest.raises(CapriccioError, match="give those that were trained together"):
        ShardTask(recipe.model_copy(update={"clip": str(tmp_path)}), ASSIGN).models()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_a_recipe(path: Path) -> None:
    found = Recipe.load(path)
    assert found.per_device * found.accumulation * found.processes == found.batch
    assert found.shards == EXAMPLES / "quadruplets"


@pytest.mark.needs_miniature
def test_the_recipe_of_the_miniature_learns_and_paints(
    place: Path, tmp_path: Path, picture: Image.Image, spot: Image.Image
) -> None:
    small = {"shards": place / "shards", "batch": 1, "per_device": 1, "processes": 1}
    task = ShardTask(Recipe.load(EXAMPLES / "lar-gen-miniature.yaml").model_copy(update=small), ASSIGN)
    reached, model = learning(task)
    assert any(name.startswith("module.resampler.") for name in reached)
    task.save(model, tmp_path)
    assert not (tmp_path / "image_encoder").exists()  # it is the miniature's own
    modules = {"lar-gen": tmp_path}
    studio = Studio.open("miniature-sd", inpainting=tmp_path / "inpainting", modules=modules, device="cpu")
    subject = Subject(Image.new("RGB", (40, 30), "red"), name="mug", remove_background=False)
    painting = studio.paint(Scene("a {mug}", [subject, Edit(picture, mask=spot)], num_inference_steps=1))
    assert painting.plan.method is not None
    assert painting.plan.method.name == "lar-gen"


def test_the_paper_is_at_its_scale() -> None:
    found = Recipe.load(EXAMPLES / "lar-gen-sd15.yaml")
    assert (found.batch, found.assign.steps, found.refine.steps) == (128, 20_000, 20_000)
    assert (found.assign.rate, found.refine.rate) == (1e-5, 1e-5)
    assert found.parts == "128 pictures a step: 16 at once x 8 in turn x 1 process"
    schedule = found.schedule("assign")
    assert (schedule.accumulation, schedule.decay) == (8, 0.0)
