"""Turns: subjects with places of their own, painted one after the other into one picture."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from capriccio import Cancelled, CapriccioError, Edit, Layout, Lora, Region, Scene, Studio, Style, Subject, pictures
from capriccio.attention.forms import literal_matrices
from capriccio.backbones.flux import FluxBackbone
from capriccio.canvas import softened
from capriccio.overlay import overlay
from capriccio.perception.planners import GrammarPlanner
from capriccio.sampling import Progress
from capriccio.turns import turns

SMALL: dict[str, Any] = {"width": 48, "height": 32, "num_inference_steps": 2}
SHORT = {"max_sequence_length": 24}
LEFT, RIGHT = (0, 0.25, 0.5, 1), (0.5, 0.25, 1, 1)


@pytest.fixture(scope="module")
def studio() -> Studio:
    pipe = tiny.flux()
    return Studio(FluxBackbone(pipe, controlnet=tiny.controlnet(pipe.transformer)))


@pytest.fixture
def mug(subject_picture: Image.Image) -> Subject:
    return Subject(subject_picture, name="mug")


@pytest.fixture
def hat(subject_picture: Image.Image) -> Subject:
    return Subject(subject_picture.rotate(90, expand=True), name="hat")


@pytest.fixture
def two(mug: Subject, hat: Subject) -> Scene:
    return scene(mug, hat, Region("a {mug}", LEFT), Region("a {hat}", RIGHT), prompt="a {mug} and a {hat} on a table")


def scene(*conditions: Any, prompt: str = "a table", **settings: Any) -> Scene:
    return Scene(prompt, conditions, **SMALL | SHORT | settings)


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


# --- the scene becomes turns -------------------------------------------------------------------------------------


def test_regions_first_then_each_subject_into_its_place(two: Scene, mug: Subject, hat: Subject) -> None:
    first, second, third = turns(two)
    assert first.scene(None) == two.but(
        prompt="a mug and a hat on a table", conditions=(Region("a mug", LEFT), Region("a hat", RIGHT))
    )
    picture = Image.new("RGB", (48, 32), "red")
    for turn, subject, prompt, columns in ((second, mug, "a {mug}", (0, 24)), (third, hat, "a {hat}", (24, 48))):
        asked = turn.scene(picture)
        assert (asked.prompt, asked.conditions[0]) == (prompt, subject)
        edit = asked.conditions[1]
        assert isinstance(edit, Edit)
        assert edit.mask is not None
        mask = np.zeros((32, 48))
        mask[8:, slice(*columns)] = 255
        assert np.array_equal(edit.mask.open().convert("L"), mask)
        assert np.array_equal(edit.image.open(), picture)


def test_a_scene_without_subjects_in_regions_is_one_turn(two: Scene, mug: Subject) -> None:
    for one in (scene(), scene(mug), scene(Region("a mug", LEFT))):
        (turn,) = turns(one)
        assert turn.scene(None) is one


def test_the_order_is_that_of_the_regions(two: Scene) -> None:
    mug, hat, left, right = two.conditions
    later = turns(two.but(conditions=(mug, hat, right, left)))[1:]
    assert [turn.says for turn in later] == ["the hat into 'a hat'", "the mug into 'a mug'"]


def test_everything_else_goes_where_it_works(mug: Subject) -> None:
    conditions = (
        mug.model_copy(update={"by": "diptych", "options": {"attention_weight": 1.2}}),
        Region("a {mug} in {ink}", LEFT, options={"base_ratio": 0.1}, feather=3),
        Region("a lamp like {top}", RIGHT),
        Region("sky", (0, 0, 1, 0.25), name="top"),
        Lora("ink.safetensors"),
    )
    first, second = (turn.scene(Image.new("RGB", (48, 32))) for turn in turns(scene(*conditions, seed=3)))
    assert [one.kind for one in first.conditions] == ["region", "region", "region", "lora"]
    place = first.conditions[0]
    assert isinstance(place, Region)
    assert (place.prompt, place.options, place.feather) == ("a mug in {ink}", {"base_ratio": 0.1}, 0)
    assert (second.prompt, second.seed) == ("a {mug} in {ink}", 3)
    assert [one.kind for one in second.conditions] == ["subject", "edit", "lora"]
    assert second.conditions[0] == conditions[0]
    edit = second.conditions[1]
    assert isinstance(edit, Edit)
    assert (edit.feather, edit.options, edit.by) == (3, {}, None)


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        (["a lamp"], r"none of them names the subject 'mug'; write \{mug\}"),
        (["a {mug}", "one more {mug}"], "named by two regions, 'a {mug}' and 'one more {mug}'"),
        (["a {mug} in a {hat}"], "names the subjects 'mug' and 'hat', but it is the place of one"),
        (["a {mug}"], "none of them names the subject 'hat'"),
    ],
)
def test_places_that_are_not_clear(studio: Studio, mug: Subject, hat: Subject, prompts: list[str], says: str) -> None:
    regions = [Region(prompt, LEFT) for prompt in prompts]
    with pytest.raises(CapriccioError, match=says):
        studio.plan(scene(mug, hat, *regions))


def test_a_region_that_names_nothing(mug: Subject) -> None:
    with pytest.raises(CapriccioError, match=r"prompt of the region 'a \{mgu\}' refers to \{mgu\}.*mean 'mug'"):
        scene(mug, Region("a {mgu}", LEFT))
    with pytest.raises(CapriccioError, match="the scene has no condition with a name"):
        scene(Region("a {mug}", LEFT))


def test_names_are_words_in_regions_without_subjects_too(studio: Studio) -> None:
    named, plain = (
        scene(Region(prompt, LEFT), Region("a hat", RIGHT, name="hat")) for prompt in ("beside a {hat}", "beside a hat")
    )
    plan = studio.plan(named)
    assert plan.passages["region/1"] == "beside a hat"
    assert plan.layout.groups["text:hat"].sum() == 2 * 4  # three letters and the mark of a word, in two texts
    assert np.array_equal(*(array(studio.paint(one).images[0]) for one in (named, plain)))


# --- the plan ----------------------------------------------------------------------------------------------------


def test_the_plan_tells_every_turn(studio: Studio, two: Scene) -> None:
    plan = studio.plan(two)
    assert plan.scene is two
    assert [one.method and one.method.name for one in plan.turns] == ["regional-prompting", "diptych", "diptych"]
    said = str(plan)
    for part in ("turn 1 of 3: the regions", "turn 2 of 3: the mug into 'a mug'", "turn 3 of 3: the hat", "total:"):
        assert part in said
    assert said.count("  method ") == said.count("  cost ") == 3
    assert plan.total.flops == sum(one.cost.flops for one in plan.turns) > plan.cost.flops
    assert plan.total.forwards == 2 + 4 + 4
    data = json.loads(json.dumps(plan.as_dict()))
    assert [one["method"] for one in data["later"]] == ["diptych", "diptych"]
    assert data["total"]["flops"] == plan.total.flops


def test_a_plan_of_one_turn_says_nothing_of_turns(studio: Studio) -> None:
    plan = studio.plan(scene(Region("a mug", LEFT)))
    assert plan.turns == (plan,)
    assert plan.total == plan.cost
    assert "turn" not in str(plan)
    assert not {"later", "total"} & plan.as_dict().keys()


def test_nothing_is_painted_to_plan(studio: Studio, two: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any, **settings: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(studio.backbone, "predict", never)
    studio.plan(two)


@pytest.mark.parametrize(
    ("subject", "region", "says"),
    [
        ({"options": {"atention_weight": 1}}, {}, "In turn 2 of 2, the mug into 'a mug': .*mean 'attention_weight'"),
        ({"options": {"base_ratio": 0.1}}, {}, "In turn 2 of 2, .*diptych has no option 'base_ratio'"),
        ({}, {"options": {"attention_weight": 1}}, "In turn 1 of 2, the regions: .*no option 'attention_weight'"),
        ({"by": "inpainting"}, {}, "In turn 2 of 2, .*inpainting takes edit"),
        ({}, {"box": (0, 0, 1, 1)}, "In turn 2 of 2, .*the place of 'mug', is the whole picture; make it smaller"),
        ({}, {"box": (0, 0, 90, 30)}, "In turn 1 of 2, .*outside the picture of 48 x 32"),
    ],
)
def test_what_goes_wrong_in_a_turn_is_told_before(
    studio: Studio, mug: Subject, subject: dict[str, Any], region: dict[str, Any], says: str
) -> None:
    place = Region("a {mug}", LEFT).model_copy(update=region)
    with pytest.raises(CapriccioError, match=says):
        studio.plan(scene(mug.model_copy(update=subject), place))


def test_what_the_first_turn_cannot_paint(studio: Studio, mug: Subject, picture: Image.Image) -> None:
    with pytest.raises(CapriccioError, match=r"In turn 1 of 2, the regions: .*paints region \+ style together"):
        studio.plan(scene(mug, Region("a {mug}", LEFT), Style(picture)))


def test_the_overlay_shows_the_first_turn_and_tells_of_the_others(studio: Studio, two: Scene) -> None:
    plan = studio.plan(two)
    alone = studio.plan(turns(two)[0].scene(None))
    drawn, first = overlay(plan), overlay(alone)
    assert drawn.width == first.width
    assert drawn.height > first.height  # one more note
    assert np.array_equal(array(drawn)[: first.height - 120], array(first)[:-120])
    assert overlay(plan.later[1]).width > 0


# --- painting ----------------------------------------------------------------------------------------------------


def test_each_turn_paints_its_place_in_the_picture_before(studio: Studio, two: Scene) -> None:
    painting = studio.paint(two)
    (regions,), (with_mug,) = painting.earlier
    (image,) = painting.images
    assert painting.scene is two
    assert array(regions).shape == array(image).shape == (32, 48, 3)
    assert np.array_equal(array(regions), array(studio.paint(turns(two)[0].scene(None)).images[0]))
    for before, after, columns in ((regions, with_mug, slice(0, 24)), (with_mug, image, slice(24, 48))):
        changed = (array(before) != array(after)).any(-1)
        place = np.zeros((32, 48), bool)
        place[8:, columns] = True
        assert not changed[~place].any()
        assert changed[place].mean() > 0.9


def test_turns_are_subject_driven_editing_of_the_picture_before(studio: Studio, two: Scene) -> None:
    painting = studio.paint(two.but(seed=5))
    mask = np.zeros((32, 48), bool)
    mask[8:, 24:] = True
    by_hand = scene(two.conditions[1], Edit(painting.earlier[1][0], mask=mask), prompt="a {hat}", seed=5)
    assert np.array_equal(array(painting.images[0]), array(studio.paint(by_hand).images[0]))


def test_the_later_place_lies_on_top(studio: Studio, mug: Subject, hat: Subject) -> None:
    places = [Region("a {mug}", (0, 0, 32, 32)), Region("a {hat}", (16, 0, 48, 32))]
    for order, kept in ((places, slice(0, 16)), (places[::-1], slice(32, 48))):
        painting = studio.paint(scene(mug, hat, *order))
        changed = (array(painting.earlier[1][0]) != array(painting.images[0])).any(-1)
        assert not changed[:, kept].any()
        assert changed[:, 16:32].mean() > 0.9


def test_a_soft_border_stays_inside_the_place(studio: Studio, mug: Subject) -> None:
    hard, soft = (studio.paint(scene(mug, Region("a {mug}", LEFT, feather=feather))) for feather in (0, 4))
    before = array(hard.earlier[0][0])
    one, other = (array(painting.images[0]) for painting in (hard, soft))
    assert np.array_equal(before, array(soft.earlier[0][0]))
    assert np.array_equal(other[:8], before[:8])
    assert np.array_equal(other[:, 24:], before[:, 24:])
    assert np.array_equal(other[12:, :20], one[12:, :20])
    # One pixel inside, a fifth of what is painted: 1 / (4 + 1).
    share = 51 / 255
    expected = before[20, 23] + share * (one[20, 23] - before[20, 23])
    assert np.abs(other[20, 23] - expected).max() <= 1
    assert not np.array_equal(other[20, 23], one[20, 23])


def test_softened_by_hand() -> None:
    mask = Image.new("L", (7, 1))
    mask.paste(255, (2, 0, 7, 1))
    assert softened(mask, 0) is mask
    assert array(softened(mask, 2)).tolist() == [[0, 0, 85, 170, 255, 255, 255]]


def test_a_soft_border_needs_a_border(studio: Studio, picture: Image.Image) -> None:
    with pytest.raises(CapriccioError, match="feather=2 and no mask"):
        Edit(picture, strength=0.5, feather=2)
    with pytest.raises(CapriccioError, match="only the place of a subject has a soft border"):
        studio.plan(scene(Region("a mug", LEFT, feather=2)))


def test_an_edit_alone_may_have_a_soft_border(studio: Studio, picture: Image.Image, spot: Image.Image) -> None:
    settings = SMALL | {"width": 64, "height": 48}
    images = [
        array(studio.paint(Scene("a hat", [Edit(picture, spot, feather=n)], **settings | SHORT)).images[0])
        for n in (0, 3)
    ]
    changed = (images[0] != images[1]).any(-1)
    border = (softened(spot, 3).point(lambda value: 255 * (0 < value < 255)), array(spot) > 127)
    assert changed.any()
    assert not changed[array(border[0]) == 0].any()


def test_every_picture_follows_its_own(studio: Studio, two: Scene) -> None:
    together = studio.paint(two.but(seeds=(5, 6)))
    assert [len(stage) for stage in together.earlier] == [2, 2]
    assert len(together.images) == len(together.canvases) == 2
    for index, seed in enumerate((5, 6)):
        single = studio.paint(two.single(seed))
        assert np.abs(array(together.images[index]) - array(single.images[0])).max() <= 2
        assert np.abs(array(together.earlier[0][index]) - array(single.earlier[0][0])).max() <= 1
    assert not np.array_equal(array(together.images[0]), array(together.images[1]))


def test_scenes_with_and_without_turns_are_painted_side_by_side(studio: Studio, two: Scene) -> None:
    plain = [scene(prompt="a", seed=1), scene(prompt="b", seed=2)]
    scenes = [plain[0], two, plain[1], two.but(seed=9)]
    told: list[Progress] = []
    found = studio.paint_all(scenes, told.append)
    assert [painting.scene for painting in found] == scenes
    assert [len(painting.earlier) for painting in found] == [0, 2, 0, 2]
    for painting, alone in zip((found[0], found[2]), studio.paint_all(plain), strict=True):
        assert np.array_equal(array(painting.images[0]), array(alone.images[0]))
    assert np.abs(array(found[3].images[0]) - array(studio.paint(scenes[3]).images[0])).max() <= 2
    assert [progress.step for progress in told] == list(range(1, told[0].total + 1))


def test_one_progress_over_all_turns(studio: Studio, two: Scene) -> None:
    told: list[Progress] = []
    painting = studio.paint(two, told.append)
    assert [progress.step for progress in told] == [1, 2, 3, 4, 5, 6]
    assert {progress.total for progress in told} == {6}
    watched = studio.paint(two, lambda progress: progress.preview() is not None)
    assert np.array_equal(array(painting.images[0]), array(watched.images[0]))


@pytest.mark.parametrize("last", [1, 3, 6])
def test_cancelling_in_any_turn_leaves_everything_clean(studio: Studio, two: Scene, last: int) -> None:
    before, first = list(studio.backbone.base.attn_processors.values()), studio.paint(two)
    with pytest.raises(Cancelled):
        studio.paint(two, lambda progress: progress.step < last)
    after = list(studio.backbone.base.attn_processors.values())
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert np.array_equal(array(first.images[0]), array(studio.paint(two).images[0]))


def test_too_little_memory_for_a_later_turn_is_told_first(
    studio: Studio, two: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [Region(one.prompt, one.box, options={"base_ratio": 0.0}) for one in two.conditions[2:]]
    two = two.but(conditions=(*two.conditions[:2], *places), width=64, height=64)
    plan = studio.plan(two)
    assert plan.cost.working < plan.total.working
    monkeypatch.setattr("capriccio.studio._free_memory", lambda: plan.cost.working)
    told: list[Progress] = []
    with pytest.raises(CapriccioError, match="too little memory"):
        studio.paint(two, told.append)
    assert told == []


def test_a_picture_is_painted_again_from_its_recipe(studio: Studio, two: Scene, tmp_path: Path) -> None:
    mask = np.zeros((32, 48), bool)
    mask[8:, 24:40] = True
    drawn = two.but(conditions=(*two.conditions[:3], Region("a {hat}", mask=mask, feather=2)), seed=11)
    painting = studio.paint(drawn)
    (place,) = painting.save(tmp_path / "two.png")
    again = Scene.load(place)
    assert [one.kind for one in again.conditions] == ["subject", "subject", "region", "region"]
    assert np.array_equal(array(painting.images[0]), array(studio.paint(again).images[0]))
    assert any("turn 3 of 3" in line for line in pictures.read_recipe(place)["plan"])


def test_a_lora_is_at_work_in_every_turn(studio: Studio, mug: Subject, tmp_path: Path) -> None:
    lora = Lora(tmp_path / tiny.save_lora(tmp_path).name)
    asked = scene(mug, Region("a {mug}", LEFT), Region("a lamp", RIGHT), lora)
    plan = studio.plan(asked)
    assert [one.loras for one in plan.turns] == [(lora,), (lora,)]
    painting = studio.paint(asked)
    by_hand = turns(asked)[1].scene(painting.earlier[0][0])
    without = by_hand.but(conditions=by_hand.conditions[:2])
    assert np.array_equal(array(painting.images[0]), array(studio.paint(by_hand).images[0]))
    assert not np.array_equal(array(painting.images[0]), array(studio.paint(without).images[0]))


def test_all_turns_are_of_the_size_of_the_picture(mug: Subject) -> None:
    """Without a size, the first turn's is everyone's, so that no place is resized when it is put back."""
    plan = Studio(tiny.flux()).plan(
        Scene("a {mug}", [mug, Region("a {mug}", (0, 0, 0.5, 1))], num_inference_steps=2, **SHORT)
    )
    size = plan.settings.width, plan.settings.height
    assert (plan.later[0].settings.width, plan.later[0].settings.height) == size


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_stable_diffusion_takes_turns_too(mug: Subject, kind: str) -> None:
    studio = Studio(tiny.stable_diffusion(kind))
    painting = studio.paint(Scene("a {mug}", [mug, Region("a {mug}", LEFT), Region("a hat", RIGHT)], **SMALL))
    changed = (array(painting.earlier[0][0]) != array(painting.images[0])).any(-1)
    assert changed[8:, :24].mean() > 0.9
    assert not changed[:8].any()
    assert not changed[:, 24:].any()


def test_a_lora_of_a_region_goes_into_its_place_alone(subject_picture: Image.Image) -> None:
    """Its own place has all of the turn; the places of others do without."""
    scene = Scene(
        "a {mug} and a hat",
        [
            Subject(subject_picture, name="mug"),
            Region("a {mug}", box=(0, 0, 0.5, 1), name="left"),
            Region("a hat", box=(0.5, 0, 1, 1), name="right"),
            Lora("ink.safetensors", weight=0.5, region="left"),
            Lora("oil.safetensors", weight=0.5, region="right"),
            Lora("all.safetensors", weight=0.5),
        ],
    )
    first, mug = turns(scene)
    painted = Image.new("RGB", (32, 32))
    loras = [(one.name or one.path, one.region) for one in mug.scene(painted).conditions if isinstance(one, Lora)]
    assert loras == [("ink.safetensors", None), ("all.safetensors", None)]
    assert len([one for one in first.scene(None).conditions if isinstance(one, Lora)]) == 3


# --- windows ---


def test_a_window_is_painted_by_itself_and_all_else_stays(studio: Studio) -> None:
    """Outside the mask every pixel is the one that was given, whatever the size of the picture."""
    rng = np.random.default_rng(3)
    picture = Image.fromarray(rng.integers(0, 255, (90, 140, 3), np.uint8))
    mask = np.zeros((90, 140), bool)
    mask[30:50, 60:85] = True
    spot = Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0)))
    asked = {zoom: Scene("a hat", [Edit(picture, spot, zoom=zoom)], **SMALL | SHORT) for zoom in (None, 1.3)}
    plan = studio.plan(asked[1.3])
    assert "put the window" in plan.finish[-1].says
    assert asked[1.3].conditions[0].zoom == 1.3
    near, far = (np.asarray(studio.paint(scene).images[0]) for scene in (asked[1.3], asked[None]))
    given = np.asarray(picture)
    for found in (near, far):
        assert (found[~mask] == given[~mask]).all()
        assert (found[mask] != given[mask]).any()
    assert (near[mask] != far[mask]).any()


def test_windows_that_mean_nothing_are_sentences(picture: Image.Image) -> None:
    with pytest.raises(CapriccioError, match="no mask to zoom in on"):
        Scene("a hat", Edit(picture, strength=0.5, zoom=1.3))
    with pytest.raises(CapriccioError, match="no zoom; give one"):
        Edit(picture, mask=picture, zoom_least=32)
    with pytest.raises(CapriccioError, match="zoom"):
        Edit(picture, mask=picture, zoom=0.5)


# --- several places of a given picture ---------------------------------------------------------------------------


def test_regions_of_a_given_picture_are_painted_in_turn_and_nothing_else_is(
    studio: Studio, mug: Subject, picture: Image.Image
) -> None:
    spot = np.zeros((picture.height, picture.width), np.uint8)
    spot[2:10, 30:44] = 255
    asked = Scene(
        "",
        [Edit(picture, fit="crop"), mug, Region("a {mug}", LEFT), Region("a red hat", mask=Image.fromarray(spot))],
        **SMALL | SHORT,
    )
    first, second = turns(asked)
    assert (first.says, second.says) == ("the mug into 'a mug'", "'a red hat' at its place")
    assert [one.kind for one in first.scene(None).conditions] == ["subject", "edit"]
    assert [one.kind for one in second.scene(picture).conditions] == ["edit"]
    assert first.scene(None).conditions[1].fit == "crop"
    painting = studio.paint(asked)
    plans = painting.plan.turns
    assert [plan.method.name for plan in plans] == ["diptych", "inpainting"]
    ((middle,), end, given) = (*painting.earlier, painting.images[0], array(picture))
    left = np.zeros(spot.shape, bool)
    left[round(0.25 * spot.shape[0]) :, : round(0.5 * spot.shape[1])] = True
    assert (array(middle)[~left] == given[~left]).all()
    assert (array(middle)[left] != given[left]).any()
    assert (array(end)[spot == 0] == array(middle)[spot == 0]).all()
    assert (array(end)[spot > 0] != array(middle)[spot > 0]).any()


def test_one_region_of_a_given_picture_is_its_mask(studio: Studio, picture: Image.Image) -> None:
    mask = np.zeros((picture.height, picture.width), np.uint8)
    mask[8:24, 8:32] = 255
    region = Region("a red hat", mask=Image.fromarray(mask))
    one, other = (
        studio.paint(Scene(prompt, conditions, **SMALL | SHORT))
        for prompt, conditions in (
            ("", [Edit(picture), region]),
            ("a red hat", [Edit(picture, mask=Image.fromarray(mask))]),
        )
    )
    assert one.images[0].tobytes() == other.images[0].tobytes()


@pytest.mark.parametrize(
    ("edit", "region", "says"),
    [
        ({"mask": True}, {}, "came with a mask; leave it out"),
        ({"strength": 0.5}, {}, "came with strength=0.5; leave it out"),
        ({}, {"strength": 0.5}, "strength of the region 'a hat' has no effect on a given picture"),
        ({}, {"box": (0, 0, 1, 1)}, "is the whole picture; make it smaller"),
        ({}, {"box": (0, 0, 900, 10)}, "outside the picture"),
    ],
)
def test_places_of_a_given_picture_that_cannot_be(
    studio: Studio, picture: Image.Image, edit: dict[str, Any], region: dict[str, Any], says: str
) -> None:
    own = edit | ({"mask": picture.convert("L")} if "mask" in edit else {})
    with pytest.raises(CapriccioError, match=says):
        studio.plan(Scene("", [Edit(picture, **own), Region("a hat", **{"box": LEFT} | region)], **SMALL | SHORT))
    with pytest.raises(CapriccioError, match="places of one picture; give one"):
        studio.plan(Scene("", [Edit(picture), Edit(picture), Region("a hat", LEFT)], **SMALL | SHORT))
    with pytest.raises(CapriccioError, match="leaves nothing of the picture; give a mask"):
        Scene("a hat", Edit(picture))


# --- all subjects on one canvas: ours --------------------------------------------------------------------------------


def joint(two: Scene, *conditions: Any, **options: Any) -> Scene:
    """The same scene, painted at once."""
    named = [one.model_copy(update={"by": "diptych-joint"}) for one in (*two.conditions, *conditions)]
    named[0] = named[0].model_copy(update={"options": options})
    return two.but(conditions=named, max_sequence_length=200)


def test_a_method_that_all_name_paints_all_at_once(studio: Studio, two: Scene) -> None:
    plan = studio.plan(joint(two, arrangement="stack"))
    assert len(plan.turns) == 1
    assert [name for name, _ in plan.canvas.panels] == ["reference/1", "reference/2", "picture"]
    assert plan.canvas.panel("reference/2").corners == (0, 24, 64, 48)  # 16 pixels are cropped
    assert plan.prompt.startswith("A diptych with two side-by-side images of same mug and hat.")
    assert any("An experiment: all subjects are painted on one canvas" in note for note in plan.notes)
    assert studio.plan(joint(two)).canvas.panel("picture").left == 2 * 64
    first = studio.paint(joint(two)).images[0]
    assert first.size == (48, 32)
    assert not np.array_equal(array(first), array(studio.paint(joint(two, apart=False)).images[0]))


def test_each_place_sees_its_own_reference_alone(studio: Studio, two: Scene) -> None:
    compiled = studio.plan(joint(two, attention_weight=1.5)).compiled
    visible, _, weight = literal_matrices(compiled.program.edits, compiled.attended[0])
    groups = {name: torch.from_numpy(mask) for name, mask in compiled.layout.groups.items()}
    for own, other in ((1, 2), (2, 1)):
        place, reference, foreign = (
            groups[f"image:{name}"] for name in (f"place/{own}", f"reference/{own}", f"reference/{other}")
        )
        assert (weight[place][:, reference] == 1.5).all()
        assert visible[place][:, ~foreign].all()
        assert not visible[place | reference][:, foreign].any()
    rest = groups["image:picture"] & ~groups["image:place/1"] & ~groups["image:place/2"]
    assert visible[rest].all()
    assert (weight[rest] == 1).all()


def test_where_places_overlap_the_later_one_lies_on_top(studio: Studio, two: Scene) -> None:
    mug, hat, *_ = two.conditions
    scene = two.but(conditions=(mug, hat, Region("a {mug}", (0, 0, 1, 1)), Region("a {hat}", (0.5, 0, 1, 1))))
    groups = studio.plan(joint(scene)).layout.groups
    assert not (groups["image:place/1"] & groups["image:place/2"]).any()
    assert groups["image:place/1"].sum() == groups["image:place/2"].sum()


@pytest.mark.parametrize(
    ("regions", "says"),
    [
        ([Region("a {mug}", LEFT), Region("a hat", RIGHT)], "'a hat' names no subject, but diptych-joint paints the"),
        ([Region("a {mug}", LEFT), Region("a {mug}", RIGHT)], "'mug' is named by two regions"),
        ([Region("a {mug}", LEFT), Region("a {hat}", RIGHT, strength=0.5)], "strength of the region 'a {hat}' has no"),
        ([Region("a {mug}", LEFT), Region("a {hat}", RIGHT, feather=2)], "feather of the region 'a {hat}' has no"),
        ([Region("a {mug}", LEFT), Region("a {hat}", (0, 0, 1, 1))], "Later places cover all of that of 'mug'"),
        ([Region("a {mug}", LEFT), Region("a {hat}", (0, 0, 999, 9))], "outside the picture of 48 x 32"),
    ],
)
def test_what_the_joint_canvas_cannot_combine(studio: Studio, two: Scene, regions: list[Region], says: str) -> None:
    with pytest.raises(CapriccioError, match=re.escape(says)):
        studio.plan(joint(two.but(conditions=(*two.conditions[:2], *regions))))


def test_too_many_references_for_a_panel_and_loras_of_a_place(studio: Studio, two: Scene, mug: Subject) -> None:
    small = two.but(width=16, height=4)
    with pytest.raises(CapriccioError, match="2 references do not fit on a panel of 1 rows of tokens"):
        studio.plan(joint(small, pixel_offset=0, arrangement="stack"))
    named = [one.model_copy(update={"name": "left"}) if one.kind == "region" else one for one in two.conditions[:3]]
    scene = joint(two.but(conditions=(*named, two.conditions[3])))
    with pytest.raises(CapriccioError, match="gives regions no tokens of their own; leave out its region"):
        studio.plan(scene.but(conditions=(*scene.conditions, Lora("x", region="left"))))


# --- subjects in the cells of a layout -------------------------------------------------------------------------------

PAGE = {"prompt": "a mug and a hat", "base": "two things", "ratio": "1,1", "regions": ["a big mug", "a hat (red)"]}


def test_the_cell_that_shows_a_subject_is_its_place(studio: Studio, mug: Subject, hat: Subject) -> None:
    plan = studio.plan(scene(hat, mug, Layout(page=PAGE), prompt="a {mug} and a {hat}"))
    assert [turn.method.name for turn in plan.turns] == ["rpg", "diptych", "diptych"]
    assert [turn.says for turn in plan.turns] == [
        "the layout",
        "the mug into 'a big mug'",
        "the hat into 'a hat (red)'",
    ]
    assert plan.turns[0].prompt == "two things"
    (first, second) = plan.later
    assert first.prompt.endswith("exactly but as a big mug")
    paint = [next(p.run() for p in turn.preparations if p.name == "paint") for turn in (first, second)]
    assert [np.flatnonzero(mask[:, 48:].any(0)).tolist() for mask in paint] == [[*range(24)], [*range(24, 48)]]


def test_the_planner_is_asked_once_and_its_page_travels(
    studio: Studio, mug: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = GrammarPlanner.plan
    monkeypatch.setattr(GrammarPlanner, "plan", lambda self, prompt: asked.append(prompt) or real(self, prompt))
    given = scene(mug, Layout(), prompt="a {mug} on the left and a blue star on the right", max_sequence_length=200)
    painting = studio.paint(given)
    assert asked == ["a mug on the left and a blue star on the right"]
    assert len(painting.plan.turns) == 2
    (file,) = painting.save(tmp_path / "two.png")
    layout = next(one for one in Scene.load(file).conditions if isinstance(one, Layout))
    assert layout.page is not None
    assert np.array_equal(array(studio.paint(Scene.load(file)).images[0]), array(painting.images[0]))
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        (["a hat", "a cat"], "No cell of the page shows the subject 'mug': 'a hat', 'a cat'; name it in the prompt"),
        (["a mug", "a mug, too"], "'mug' is named by two regions"),
    ],
)
def test_pages_without_a_clear_place(studio: Studio, mug: Subject, cells: list[str], says: str) -> None:
    with pytest.raises(CapriccioError, match=re.escape(says)):
        studio.plan(scene(mug, Layout(page=PAGE | {"regions": cells}), prompt="a {mug}"))
    regions = (Region("a {mug}", LEFT), Layout(page=PAGE))
    with pytest.raises(CapriccioError, match=re.escape("Nothing here paints layout + region together")):
        studio.plan(scene(mug, *regions, prompt="a {mug}"))
