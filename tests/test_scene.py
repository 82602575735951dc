"""The scene: frozen, checked at once, the same after any file, and never trusting a stranger's recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from capriccio import pictures
from capriccio.errors import CapriccioError
from capriccio.scene import CONDITIONS, Edit, Lora, Region, Scene, Style, Subject

PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
MASK = np.eye(4, dtype=bool)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("mug.png", "back.png", "style.png", "mask.png"):
        Image.fromarray(PIXELS).save(tmp_path / name)
    return tmp_path


def mug(**changes: Any) -> Subject:
    return Subject(**{"image": PIXELS, "name": "mug"} | changes)


# --- asking ---


def test_a_prompt_names_its_conditions() -> None:
    scene = Scene("the {toy car} like {style}, a {toy car}", [mug(name="toy car"), Style(PIXELS)])
    assert scene.words == "the toy car like style, a toy car"
    assert [name for name, _, _ in scene.mentions] == ["toy car", "style", "toy car"]
    assert all(scene.words[start:stop] == name for name, start, stop in scene.mentions)


def test_a_lora_is_called_by_its_file() -> None:
    assert Scene("in {ghibli} style", [Lora(Path("weights/ghibli.safetensors"))]).words == "in ghibli style"


def test_one_condition_needs_no_list() -> None:
    assert Scene("a {mug}", mug()) == Scene("a {mug}", [mug()])


def test_seeds_count_on_from_the_first() -> None:
    assert Scene("a", seed=3, num_images=3).all_seeds() == (3, 4, 5)
    assert Scene("a", seeds=(9, 1)).all_seeds() == (9, 1)
    assert Scene("a", seeds=(9, 1)).single(1) == Scene("a", seed=1)


def test_a_scene_cannot_be_changed_but_replaced() -> None:
    scene = Scene("a {mug}", [mug()], seed=3)
    with pytest.raises(Exception, match="frozen"):
        scene.seed = 4  # type: ignore[misc]
    assert scene.but(seed=4) == Scene("a {mug}", [mug()], seed=4)
    with pytest.raises(CapriccioError, match="did you mean 'seed'"):
        scene.but(sede=4)


def test_a_new_condition_takes_the_place_of_its_namesake() -> None:
    scene = Scene("a {mug}", [mug(), Lora("x.safetensors")])
    assert scene.having(mug(fit="crop"), Style(PIXELS)).conditions == (
        Lora("x.safetensors"),
        mug(fit="crop"),
        Style(PIXELS),
    )


def test_regions_without_a_name_join_the_others() -> None:
    left, right = Region("a car", box=(0, 0, 0.5, 1)), Region("a lamp", box=(0.5, 0, 1, 1))
    named = Region("a bench", box=(0, 0, 1, 1), name="bench")
    assert Scene("a street", [left]).having(right, named).conditions == (left, right, named)
    moved = Region("a bench", box=(0, 0, 0.5, 0.5), name="bench")
    assert Scene("a street", [left, named]).having(moved).conditions == (left, moved)


def test_equal_scenes_are_equal_and_hash_alike(folder: Path) -> None:
    def scene(**changes: Any) -> Scene:
        return Scene("a {mug}", [Subject(folder / "mug.png", name="mug", options={"b": 1, "a": [2]}, **changes)])

    assert scene() == scene()
    assert hash(scene()) == hash(scene())
    assert scene() != scene(fit="crop")


def test_options_are_not_shared_with_the_caller() -> None:
    options = {"scales": [1.0]}
    subject = mug(options=options)
    options["scales"].append(2.0)
    assert subject.options == {"scales": [1.0]}


def test_several_pictures_of_one_subject(folder: Path) -> None:
    several = Subject([folder / "mug.png", folder / "back.png"], name="mug")
    assert [picture.name for picture in several.images] == ["mug.png", "back.png"]
    assert [picture.name for picture in Subject([folder / "mug.png"], name="mug").images] == ["mug.png"]


# --- mistakes ---


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Scene(), "A scene needs 'prompt'"),
        (lambda: Scene("a", sed=1), "A scene has no setting 'sed'; did you mean 'seed'"),
        (lambda: Scene("a", seed=-1), "A scene received -1 for 'seed'"),
        (lambda: Scene("a", width="wide"), "A scene received 'wide' for 'width'"),
        (lambda: Scene("a", guidance_scale=float("nan")), "received nan for 'guidance_scale'"),
        (lambda: Scene("a", seeds=()), "for 'seeds'"),
        (lambda: Scene("a", seed=4, seeds=(1, 2)), "Both seed=4 and seeds"),
        (lambda: Scene("a", num_images=3, seeds=(1, 2)), "num_images=3 came with 2 seeds"),
        (lambda: Scene("a", schema_version=2), "received 2 for 'schema_version'"),
        (lambda: Scene("a {mag}", [mug()]), "refers to {mag}.*did you mean 'mug'"),
        (lambda: Scene("a {mag}"), "no condition with a name"),
        (lambda: Scene("a", [mug(), mug()]), "Two conditions are called 'mug'"),
        (lambda: Scene("a", 3), "received 3 for 'conditions'"),
        (lambda: Scene("a", [3]), "received 3 for 'conditions"),
        (lambda: Scene("a", [{"kind": "subjct"}]), "condition 1 is 'subjct'; did you mean 'subject'"),
        (lambda: Scene("a", [mug(), {"name": "x"}]), "condition 2 is None"),
        (lambda: Scene("a", [{"kind": "style"}]), "In condition 1: A style needs 'image'"),
        (lambda: Subject(PIXELS), "A subject needs 'name'"),
        (lambda: mug(fitt="pad"), "A subject has no setting 'fitt'; did you mean 'fit'"),
        (lambda: mug(fit="padd"), "received 'padd' for 'fit'"),
        (lambda: mug(image=7), "given as int; give a path"),
        (lambda: mug(image=[]), "empty list of pictures"),
        (lambda: mug(image=[PIXELS, PIXELS], mask=MASK), "2 pictures of 'mug' came with one mask"),
        (lambda: mug(options={"a": {1}}), "Options hold what JSON cannot"),
        (lambda: Scene("a mug", Edit(PIXELS)), "leaves nothing of the picture"),
        (lambda: Lora(""), "A LoRA received '' for 'path'"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(make: Any, words: str) -> None:
    with pytest.raises(CapriccioError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


# --- files ---

words = st.text(st.characters(exclude_characters="{}", exclude_categories=("Cs",)), max_size=30)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)
any_options = st.dictionaries(words, json_values, max_size=3)
any_image = st.sampled_from([PIXELS, Image.fromarray(PIXELS), "mug.png", Path("mug.png")])
any_fit = st.sampled_from(["pad", "crop", "stretch"])
subjects = st.builds(
    Subject,
    any_image | st.lists(any_image, min_size=1, max_size=3),
    name=st.just("mug"),
    by=st.none() | words,
    options=any_options,
    remove_background=st.booleans(),
    fit=any_fit,
    description=st.none() | words,
)
conditions = st.tuples(
    subjects,
    st.builds(Style, any_image, name=st.just("style"), fit=any_fit),
    st.builds(Edit, any_image, any_image),
    st.builds(Lora, st.just("weights/paper.safetensors"), weight=st.floats(-2, 2)),
).flatmap(lambda all_kinds: st.lists(st.sampled_from(all_kinds), unique_by=type, max_size=4))
seeds = st.integers(0, 2**63 - 1)
scenes = st.builds(
    Scene,
    words,
    conditions,
    negative_prompt=st.none() | words,
    width=st.none() | st.integers(1, 4096),
    seeds=st.none() | st.lists(seeds, min_size=1, max_size=3).map(tuple),
    num_inference_steps=st.none() | st.integers(1, 99),
    true_cfg_scale=st.none() | st.floats(0, 30),
    scheduler=st.none() | words,
)


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(scene=scenes, ending=st.sampled_from([".yaml", ".yml", ".json"]))
def test_a_scene_is_the_same_after_a_file(tmp_path: Path, scene: Scene, ending: str) -> None:
    again = Scene.load(scene.save(tmp_path / f"scene{ending}"))
    assert again == scene
    assert hash(again) == hash(scene)


def test_paths_start_from_the_folder_of_the_scene(folder: Path) -> None:
    scene = Scene("a {mug}", [Subject(folder / "mug.png", name="mug", mask=folder / "mask.png")])
    scene.save(folder / "scene.yaml")
    condition = yaml.safe_load((folder / "scene.yaml").read_text())["conditions"][0]
    assert (condition["image"], condition["mask"]) == ("mug.png", "mask.png")
    moved = folder.rename(folder.with_name("moved"))
    assert (np.asarray(Scene.load(moved / "scene.yaml").conditions[0].image.open()) == PIXELS).all()


def test_a_lora_is_a_file_beside_the_scene_or_a_repository(folder: Path) -> None:
    (folder / "near.safetensors").touch()
    loras = [{"kind": "lora", "path": path} for path in ("near.safetensors", "someone/far")]
    (folder / "scene.json").write_text(json.dumps({"prompt": "a", "conditions": loras}))
    near, far = Scene.load(folder / "scene.json").conditions
    assert (near.path, far.path) == (str(folder / "near.safetensors"), "someone/far")


def test_a_file_holds_only_what_was_asked(folder: Path) -> None:
    assert Scene("a mug", seed=7).as_dict() == {"schema_version": 1, "prompt": "a mug", "seed": 7}


def test_a_picture_too_large_to_write_gets_a_sentence(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)
    with pytest.raises(CapriccioError, match=r"too large to be written into a scene.*give its path"):
        Scene("a {mug}", [mug(image=noise)]).save(tmp_path / "a.yaml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.yaml", "prompt: [1", "not valid YAML near line 1"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "[" * 100_000, "not valid JSON"),
        ("a.json", "[1]", "holds list"),
        ("a.yaml", "", "holds NoneType"),
        ("a.yaml", "!!python/object/apply:os.system [ls]", "not valid YAML"),
        ("a.yaml", "prompt: a\n3: b", "no setting '3'"),
        ("a.yaml", "prompt: a\nself: b", "no setting 'self'"),
        ("a.yaml", "prompt: a\nconditions: b", "received 'b' for 'conditions'"),
        ("a.yaml", "prompt: a\nconditions: [{kind: subject, self: 1, name: b, image: c}]", "no setting 'self'"),
        ("a.yaml", "prompt: a\nseed: 1\nseed: 2", "the key 'seed' twice"),
        ("a.yaml", "prompt: a\n? [b]\n: 1", "not valid YAML"),
        ("a.json", '{"prompt": "a", "conditions": [], "conditions": [{}]}', "the key 'conditions' twice"),
        ("a.txt", "prompt: a", "is a .yaml"),
    ],
)
def test_a_file_that_is_no_scene_gets_a_sentence(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CapriccioError, match=words):
        Scene.load(tmp_path / name)


def test_a_missing_scene_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CapriccioError, match="No such file"):
        Scene.load(tmp_path / "a.yaml")
    with pytest.raises(CapriccioError, match=r"is a \.yaml"):
        Scene("a").save(tmp_path / "a.txt")


# --- recipes ---


def painted(scene: Scene | dict[str, Any], folder: Path) -> Path:
    recipe = scene.recipe() if isinstance(scene, Scene) else scene
    return pictures.save_png(Image.new("RGB", (4, 4)), folder / "painted.png", {"scene": recipe})


def test_a_painted_picture_is_a_scene_again(folder: Path) -> None:
    scene = Scene("a {mug}", [Subject(folder / "mug.png", name="mug", options={"strength": 1.3})], seed=3)
    file, scene_recipe = painted(scene, folder), scene.recipe()
    (folder / "mug.png").unlink()
    again = Scene.load(file)
    assert (again.prompt, again.seed, again.conditions[0].options) == ("a {mug}", 3, {"strength": 1.3})
    assert (np.asarray(again.conditions[0].image.open()) == PIXELS).all()
    assert again.recipe() == scene_recipe


def test_a_recipe_tells_no_folder(folder: Path) -> None:
    scene = Scene("a {mug}", [Subject(folder / "mug.png", name="mug"), Lora(folder / "x.safetensors")])
    assert str(folder) not in json.dumps(scene.recipe())


def test_a_recipe_embeds_while_there_is_room() -> None:
    noise = [np.random.default_rng(seed).integers(0, 256, (1000, 1000, 3), np.uint8) for seed in range(3)]
    recipe = Scene("a", [Subject(noise, name="mug")]).recipe()
    assert ["data" in record for record in recipe["conditions"][0]["image"]] == [True, False, False]
    assert len(json.dumps(recipe)) < pictures.RECIPE_LIMIT


@pytest.mark.parametrize(
    "condition",
    [
        {"kind": "subject", "image": "/etc/hostname", "name": "mug"},
        {"kind": "subject", "image": ["/etc/hostname"], "name": "mug"},
        {"kind": "edit", "image": {"name": "a", "sha256": "b"}, "mask": "mask.png"},
        {"kind": "lora", "path": "evil.safetensors"},
    ],
)
def test_a_recipe_may_not_open_files(folder: Path, condition: dict[str, Any]) -> None:
    with pytest.raises(CapriccioError, match=f"may not open; give the file yourself with --{condition['kind']}"):
        Scene.load(painted({"prompt": "a", "conditions": [condition]}, folder))


def test_what_a_recipe_cannot_bring_is_given_again(folder: Path) -> None:
    lora = Lora(folder / "x.safetensors", weight=0.5)
    file = painted(Scene("a {mug}", [Subject(folder / "mug.png", name="mug"), lora]), folder)
    with pytest.raises(CapriccioError, match="--lora"):
        Scene.load(file)
    given_again = Lora(folder / "x.safetensors")
    assert given_again in Scene.load(file, [given_again]).conditions


# --- the schema ---


def test_the_schema_knows_every_condition() -> None:
    schema = Scene.json_schema()
    assert set(schema["properties"]["conditions"]["items"]["discriminator"]["mapping"]) == set(CONDITIONS)
    assert schema["additionalProperties"] is False
    assert json.loads(json.dumps(schema)) == schema
