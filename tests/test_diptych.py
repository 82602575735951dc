"""Diptych Prompting: the paper's numbers, its neutral setting, its engines and applications, and mistakes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from capriccio import CapriccioError, Edit, Scene, Studio, Style, Subject
from capriccio.attention import literal
from capriccio.backbones.flux import FluxBackbone
from capriccio.plan import Plan, prepare

SMALL: dict[str, Any] = {"width": 32, "height": 24, "num_inference_steps": 2, "max_sequence_length": 24}
ENGINES = ("controlnet", "fill", "hold")


@pytest.fixture(scope="module")
def studio() -> Studio:
    pipe = tiny.flux()
    parts = {"controlnet": tiny.controlnet(pipe.transformer), "fill": tiny.fill().transformer}
    return Studio(FluxBackbone(pipe, **parts))


@pytest.fixture
def mug(subject_picture: Image.Image) -> Subject:
    return Subject(subject_picture, name="mug")


def with_options(condition: Any, **options: Any) -> Any:
    return condition.model_copy(update={"options": options})


def scene(*conditions: Any, prompt: str = "the mug in the snow", **settings: Any) -> Scene:
    return Scene(prompt, conditions, **SMALL | settings)


def pixels(studio: Studio, *conditions: Any, **settings: Any) -> np.ndarray:
    return np.asarray(studio.paint(scene(*conditions, **settings)).images[0])


# --- the paper ---


def test_the_papers_numbers(mug: Subject) -> None:
    """On a model of FLUX.1's size, the canvas and the settings are those of the authors' code."""
    backbone = FluxBackbone(tiny.flux(), controlnet=tiny.controlnet(tiny.flux().transformer))
    backbone.defaults = replace(backbone.defaults, width=1024, height=1024)
    plan = Studio(backbone).plan(Scene("{mug} in the snow", mug))
    settings = plan.settings
    assert (settings.width, settings.height, settings.num_inference_steps) == (768, 768, 30)
    assert (settings.true_cfg_scale, settings.guidance_scale, plan.control_scale) == (3.5, 3.5, 0.95)
    assert (plan.canvas.width, plan.canvas.height) == (1568, 784)
    assert plan.canvas.panel("right").inner(768, 768).corners == (792, 8, 1560, 776)
    assert plan.engine == "controlnet"
    assert [branch.prompt for branch in plan.branches][1] == ""
    (edit,) = plan.compiled.program
    assert (edit.queries, edit.keys, edit.weight) == ("image:right", "image:left", 1.3)
    assert len(plan.compiled.edited) == 4  # every layer


def test_the_papers_template(studio: Studio, mug: Subject) -> None:
    assert studio.plan(scene(mug, prompt="{mug} in the snow")).prompt == (
        "A diptych with two side-by-side images of same mug. On the left, a photo of mug. "
        "On the right, replicate this mug exactly but as mug in the snow"
    )


def test_the_scenes_own_numbers_come_first(studio: Studio, mug: Subject) -> None:
    plan = studio.plan(scene(mug, true_cfg_scale=2, guidance_scale=5, num_inference_steps=4))
    assert (plan.settings.true_cfg_scale, plan.guidance_scale, plan.settings.num_inference_steps) == (2, 5, 4)


def test_a_backbone_keeps_numbers_of_its_own(mug: Subject) -> None:
    backbone = FluxBackbone(tiny.flux(guidance=False))
    backbone.defaults = replace(
        backbone.defaults, own=True, width=32, height=32, panel_margin=0, num_inference_steps=24, caution="Careful."
    )
    plan = Studio(backbone).plan(Scene("{mug}", mug))
    assert (plan.settings.num_inference_steps, plan.settings.true_cfg_scale) == (24, 1.0)
    assert (plan.canvas.width, plan.canvas.height) == (64, 32)
    assert "Careful." in plan.notes


def test_fill_is_guided_as_it_was_trained(studio: Studio, mug: Subject) -> None:
    plan = studio.plan(scene(with_options(mug, engine="fill")))
    assert (plan.guidance_scale, plan.settings.true_cfg_scale) == (30.0, 1.0)


def test_right_looks_more_at_left_and_nothing_else_changes(studio: Studio, mug: Subject) -> None:
    """O' - O = (lambda - 1) A[right, left] V[left] for right-panel rows, 0 elsewhere."""
    plan = studio.plan(scene(mug))
    layout = plan.layout
    seeds = [torch.Generator().manual_seed(seed) for seed in range(3)]
    query, key, value = (torch.randn(1, layout.length, 2, 16, generator=seed) for seed in seeds)
    plain, _ = literal(query, key, value, (), layout)
    edited, _ = literal(query, key, value, plan.compiled.program.edits, layout)
    right, left = (torch.from_numpy(layout.tokens(name)) for name in ("image:right", "image:left"))
    weights = torch.softmax(torch.einsum("bqhd,bkhd->bhqk", query, key) / 4, -1)
    change = 0.3 * torch.einsum("bhqk,bkhd->bqhd", weights[..., left], value[:, left])
    assert torch.equal(edited[:, ~right], plain[:, ~right])
    torch.testing.assert_close(edited[:, right] - plain[:, right], change[:, right], rtol=1e-4, atol=1e-5)


# --- neutral, seeds, options ---


@pytest.mark.parametrize("change", [{"fit": "stretch"}, {"description": "a red cup"}])
def test_every_setting_of_a_subject_has_an_effect(studio: Studio, change: dict[str, Any], picture: Image.Image) -> None:
    masked = picture.convert("RGBA")
    masked.putalpha(Image.radial_gradient("L").resize(picture.size).point(lambda value: 255 - value))
    one = Subject(masked, name="mug")
    other = one.model_copy(update=change)
    long = {"max_sequence_length": 200}
    assert not np.array_equal(pixels(studio, one, **long), pixels(studio, other, **long))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"attention_weight": -1}, "give 1"),
        ({"control_scale": -0.5}, "control_scale"),
        ({"pixel_offset": -1}, "0 or more"),
        ({"template": "no place"}, r"no place for \{prompt\}"),
        ({"template": "{prompt} {sbject}"}, "did you mean 'subject'"),
        ({"engine": "paint"}, "received 'paint'"),
        ({"lambda": 1.3}, "no option 'lambda'"),
        ({"engine": "hold", "control_scale": 0.5}, "no effect with the engine 'hold'"),
    ],
)
def test_options_that_cannot_be(studio: Studio, mug: Subject, options: dict[str, Any], says: str) -> None:
    with pytest.raises(CapriccioError, match=says):
        studio.plan(scene(with_options(mug, **options)))


@pytest.mark.parametrize("offset", [0, 1, 5, 8])
def test_panels_are_whole_tokens_and_pictures_the_size_asked_for(studio: Studio, mug: Subject, offset: int) -> None:
    painting = studio.paint(scene(with_options(mug, pixel_offset=offset)))
    left = painting.plan.canvas.panel("left")
    assert left.width % 4 == left.height % 4 == 0
    assert left.width >= 32 + 2 * offset
    assert painting.images[0].size == (32, 24)
    assert painting.canvases[0].size == (2 * left.width, left.height)


def test_a_size_that_tokens_cannot_hold(studio: Studio, mug: Subject) -> None:
    with pytest.raises(CapriccioError, match="nearest sizes"):
        studio.plan(scene(mug, width=33))


# --- the reference ---


def panel(plan: Plan) -> np.ndarray:
    outputs = prepare(plan)
    return np.asarray(next(value for name, value in outputs.items() if name.endswith(".panel")))


def test_the_subject_stands_alone_on_white(studio: Studio, mug: Subject) -> None:
    found = panel(studio.plan(scene(mug)))
    assert (found[0, 0] == 255).all()
    assert found[found.shape[0] // 2, found.shape[1] // 2].tolist() == [220, 30, 30]


def test_a_mask_of_ones_own_is_used(studio: Studio, picture: Image.Image, spot: Image.Image) -> None:
    found = panel(studio.plan(scene(Subject(picture, name="mug", mask=spot, fit="stretch"))))
    middle = found[found.shape[0] // 2, found.shape[1] * 28 // 64]
    assert (found[0, 0] == 255).all()
    assert (middle != 255).any()


def test_a_background_is_kept_when_asked(studio: Studio, picture: Image.Image) -> None:
    plan = studio.plan(scene(Subject(picture, name="mug", remove_background=False, fit="stretch")))
    assert not any(preparation.name.endswith("masks") for preparation in plan.preparations)
    assert (panel(plan)[0, 0] < 50).all()


def test_what_has_no_effect_is_said(studio: Studio, mug: Subject, picture: Image.Image, spot: Image.Image) -> None:
    plan = studio.plan(scene(Subject(picture, name="mug", mask=spot, remove_background=False, fit="stretch")))
    assert any("has no effect" in note for note in plan.notes)
    assert (panel(plan)[0, 0] < 50).all()
    plan = studio.plan(scene(mug.model_copy(update={"remove_background": False})))
    assert any("white is put there" in note for note in plan.notes)


def test_the_segmenter_is_asked_for_the_name(
    studio: Studio, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def segment(image: Image.Image, name: str, *, backbone_is_miniature: bool) -> np.ndarray:
        asked.append((name, backbone_is_miniature))
        found = np.zeros((image.height, image.width), bool)
        found[20:, 20:] = True
        return found

    monkeypatch.setattr("capriccio.perception.segment", segment)
    found = panel(studio.plan(scene(Subject(picture, name="blue mug"))))
    assert asked == [("blue mug", False)]
    assert (found[:20] == 255).all()
    assert (found[30, 30] != 255).any()


def test_of_several_pictures_the_largest_subject_is_used(studio: Studio) -> None:
    small, large = Image.new("RGBA", (40, 40)), Image.new("RGBA", (40, 40))
    small.paste((255, 0, 0, 255), (15, 15, 25, 25))
    large.paste((0, 0, 255, 255), (5, 5, 35, 35))
    plan = studio.plan(scene(Subject([small, large], name="mug")))
    found = panel(plan)
    assert found[found.shape[0] // 2, found.shape[1] // 2].tolist() == [0, 0, 255]
    assert "the one of 2 pictures that shows it largest" in str(plan)


def test_what_happens_to_a_picture_of_another_shape_is_said(studio: Studio, mug: Subject) -> None:
    assert "padded" in str(studio.plan(scene(mug)))


def test_two_subjects_are_refused(studio: Studio, mug: Subject, subject_picture: Image.Image) -> None:
    with pytest.raises(CapriccioError, match="diptych takes"):
        studio.plan(scene(mug, Subject(subject_picture, name="cat")))


# --- applications ---


def test_a_style_keeps_its_background_and_says_so_in_the_prompt(studio: Studio, picture: Image.Image) -> None:
    plan = studio.plan(scene(Style(picture, name="ink"), prompt="a cat in {ink}", max_sequence_length=200))
    assert "replicate this style exactly but as a cat in ink" in plan.prompt
    assert "a picture in ink" in plan.prompt
    assert not any(preparation.name.endswith("masks") for preparation in plan.preparations)
    assert "in this style" in studio.plan(scene(Style(picture), prompt="a cat")).prompt
    assert studio.paint(scene(Style(picture), prompt="a cat")).images[0].size == (32, 24)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_edit_paints_its_mask_alone(
    studio: Studio, mug: Subject, picture: Image.Image, spot: Image.Image, engine: str
) -> None:
    conditions = (with_options(mug, engine=engine), Edit(picture, mask=spot))
    painting = studio.paint(scene(*conditions, width=64, height=48))
    result, inside = np.asarray(painting.images[0]), np.asarray(spot) > 0
    assert np.array_equal(result[~inside], np.asarray(picture)[~inside])
    assert not np.array_equal(result[inside], np.asarray(picture)[inside])
    layout = painting.plan.layout
    (edit,) = painting.plan.compiled.program
    assert edit.queries == "image:edit"
    assert layout.tokens("image:edit").sum() < layout.tokens("image:right").sum()
    assert not (layout.tokens("image:edit") & ~layout.tokens("image:right")).any()


def test_an_edits_reference_has_an_effect(
    studio: Studio, mug: Subject, picture: Image.Image, spot: Image.Image
) -> None:
    edit = Edit(picture, mask=spot)
    other = Subject(Image.new("RGBA", (40, 40), (0, 0, 255, 254)), name="mug")
    assert not np.array_equal(pixels(studio, mug, edit), pixels(studio, other, edit))
    assert not np.array_equal(pixels(studio, mug, edit), pixels(studio, with_options(mug, attention_weight=1.0), edit))


def test_an_edit_that_cannot_be(studio: Studio, mug: Subject, picture: Image.Image, spot: Image.Image) -> None:
    with pytest.raises(CapriccioError, match="pixel_offset has no effect"):
        studio.plan(scene(with_options(mug, pixel_offset=8), Edit(picture, mask=spot)))
    with pytest.raises(CapriccioError, match="same size"):
        studio.plan(scene(mug, Edit(picture, mask=spot.resize((10, 10)))))
    with pytest.raises(CapriccioError, match="all black"):
        studio.plan(scene(mug, Edit(picture, mask=Image.new("L", picture.size))))
    edge = Image.new("L", picture.size)
    edge.paste(255, (0, 0, 2, 48))
    with pytest.raises(CapriccioError, match="left after cropping"):
        studio.plan(scene(mug, Edit(picture, mask=edge, fit="crop"), width=16, height=48))


@pytest.mark.needs_miniature
def test_the_miniature_says_what_it_knows(mug: Subject) -> None:
    plan = Studio.open("miniature").plan(Scene("the {mug} in the snow", mug))
    assert any("--model black-forest-labs/FLUX.1-dev" in note for note in plan.notes)
    assert (plan.canvas.width, plan.canvas.height) == (256, 128)
