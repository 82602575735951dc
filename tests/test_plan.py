"""Plans: made without the denoiser, printable, complete, and strict."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
import tiny
from PIL import Image

from capriccio.attention import Weigh
from capriccio.backbones.flux import FluxBackbone
from capriccio.draft import Draft, Method, choose_method, read_options
from capriccio.errors import CapriccioError
from capriccio.methods import METHODS
from capriccio.plan import Plan, make_plan, prepare
from capriccio.scene import Edit, Lora, Scene, Style, Subject

SMALL: dict[str, Any] = {"width": 48, "height": 32, "num_inference_steps": 3, "max_sequence_length": 32}


@pytest.fixture(scope="module")
def backbone() -> FluxBackbone:
    pipe = tiny.flux()
    return FluxBackbone(pipe, controlnet=tiny.controlnet(pipe.transformer), fill=tiny.fill().transformer)


def plan_of(backbone: FluxBackbone, prompt: str = "a mug", *conditions: Any, **settings: Any) -> Plan:
    return make_plan(Scene(prompt, conditions, **SMALL | settings), backbone, METHODS)


def test_no_denoiser_runs(
    backbone: FluxBackbone, monkeypatch: pytest.MonkeyPatch, subject_picture: Image.Image
) -> None:
    def never(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("a plan ran a network")

    for network in backbone.parts.values():
        monkeypatch.setattr(network, "forward", never)
    plan = plan_of(backbone, "a {mug}", Subject(subject_picture, name="mug"))
    assert plan.cost.forwards == 6
    assert str(plan)


def test_plain_painting(backbone: FluxBackbone) -> None:
    plan = plan_of(backbone)
    assert plan.method is None
    assert plan.engine is None
    assert plan.compiled.empty
    assert [branch.role for branch in plan.branches] == ["positive"]
    assert plan.layout.length == 32 + 96
    assert plan.guidance_scale == 3.5
    assert "no edits" in str(plan)


def test_defaults_are_diffusers(backbone: FluxBackbone) -> None:
    settings = make_plan(Scene("a mug", width=48, height=32), backbone, METHODS).settings
    assert (settings.num_inference_steps, settings.true_cfg_scale, settings.max_sequence_length) == (28, 1.0, 512)


def test_everything_is_said(backbone: FluxBackbone, subject_picture: Image.Image) -> None:
    plan = plan_of(backbone, "a {mug}", Subject(subject_picture, name="mug"), Lora("folder/ink.safetensors"), seed=9)
    said = str(plan)
    for part in ("diptych", "controlnet", "image:right", "image:left", "1.3", "steps [0, 3)", "seed 9", "ink", "FLOP"):
        assert part in said
    assert "folder" not in said


def test_it_is_json(backbone: FluxBackbone, subject_picture: Image.Image) -> None:
    plan = plan_of(backbone, "a {mug}", Subject(subject_picture, name="mug"))
    data = json.loads(json.dumps(plan.as_dict()))
    assert data["method"] == "diptych"
    assert data["options"]["attention_weight"] == 1.3
    assert data["coefficients"] == {"negative": -2.5, "positive": 3.5}
    assert json.loads(json.dumps(plan_of(backbone).as_dict()))["method"] is None


def test_words_of_a_condition_are_a_token_group(backbone: FluxBackbone, subject_picture: Image.Image) -> None:
    plan = plan_of(backbone, "a {mug}", Subject(subject_picture, name="mug"), max_sequence_length=200)
    # Three times in the template and once in the prompt, each time three letters and the mark of a word.
    assert plan.layout.groups["text:mug"].sum() == 4 * 4


def test_cost_counts_every_branch_and_step(backbone: FluxBackbone) -> None:
    one, two = plan_of(backbone), plan_of(backbone, negative_prompt="x", true_cfg_scale=3)
    assert (one.cost.forwards, two.cost.forwards) == (3, 6)
    assert two.cost.flops == 2 * one.cost.flops
    attention = 4 * 4 * 2 * 16 * (32 + 96) ** 2
    assert one.cost.flops == 3 * (backbone.flops(None, 32, 96) + attention)


# --- what is said aloud ---


def test_a_negative_prompt_without_guidance_is_said(backbone: FluxBackbone) -> None:
    assert "negative_prompt has no effect" in plan_of(backbone, negative_prompt="ugly").notes[0]


def test_guidance_without_a_negative_prompt_is_said(backbone: FluxBackbone) -> None:
    plan = plan_of(backbone, true_cfg_scale=3)
    assert "empty prompt" in plan.notes[0]
    assert [branch.prompt for branch in plan.branches] == ["a mug", ""]


def test_a_prompt_that_is_too_long_is_said(backbone: FluxBackbone) -> None:
    assert "its end is lost" in plan_of(backbone, 40 * "long ").notes[0]


def test_a_long_prompt_gets_room_when_nobody_says_how_much(backbone: FluxBackbone) -> None:
    short = replace(backbone.defaults, max_sequence_length=16, longest_text=64)
    narrow = FluxBackbone(backbone.pipe, defaults=short)
    settings = {name: value for name, value in SMALL.items() if name != "max_sequence_length"}
    plan = make_plan(Scene("a mug in the deep snow", **settings), narrow, METHODS)
    assert plan.settings.max_sequence_length == 32
    assert not plan.notes
    plan = make_plan(Scene(20 * "long ", **settings), narrow, METHODS)
    assert plan.settings.max_sequence_length == 64
    assert "shorten it" in plan.notes[0]


def test_a_lora_of_weight_zero_is_left_out_and_said(backbone: FluxBackbone) -> None:
    plan = plan_of(backbone, "a mug", Lora("ink.safetensors", weight=0))
    assert plan.loras == ()
    assert "weight 0" in plan.notes[0]


def test_a_filling_model_paints_text_on_an_empty_canvas() -> None:
    plan = make_plan(Scene("a mug", **SMALL), FluxBackbone(tiny.fill()), METHODS)
    assert plan.engine == "fill"
    assert prepare(plan)["paint"].all()
    assert "only fills" in plan.notes[0]


def test_a_model_may_have_a_scheduler_that_it_is_painted_with_unless_the_scene_names_another() -> None:
    pipe = tiny.flux()
    backbone = FluxBackbone(pipe, defaults=replace(FluxBackbone(pipe).defaults, scheduler="Euler stochastic"))
    own, asked = (plan_of(backbone, scheduler=name) for name in (None, "Euler"))
    assert [plan.settings.scheduler for plan in (own, asked)] == ["Euler stochastic", "Euler"]
    assert "Euler stochastic" in str(own)
    assert own.batch_key != asked.batch_key


# --- what is refused ---


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"width": 50}, "nearest sizes that are: 48 x 32 and 52 x 32"),
        ({"true_cfg_scale": 0.5}, "starts at 1"),
        ({"scheduler": "Euler a"}, "did you mean 'Euler'"),
        ({"max_sequence_length": 513}, "at most 512"),
    ],
)
def test_settings_that_cannot_be(backbone: FluxBackbone, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(CapriccioError, match=says):
        plan_of(backbone, **settings)


def test_embedded_guidance_needs_a_model_that_has_it() -> None:
    with pytest.raises(CapriccioError, match="no embedded guidance; use true_cfg_scale"):
        plan_of(FluxBackbone(tiny.flux(guidance=False)), guidance_scale=3.5)
    assert plan_of(FluxBackbone(tiny.flux(guidance=False))).guidance_scale is None


def test_a_lora_takes_no_method(backbone: FluxBackbone) -> None:
    with pytest.raises(CapriccioError, match="leave them out"):
        plan_of(backbone, "a mug", Lora("x.safetensors", by="diptych"))


def test_methods_are_chosen(
    backbone: FluxBackbone, subject_picture: Image.Image, picture: Image.Image, spot: Image.Image
) -> None:
    subject, style, edit = Subject(subject_picture, name="mug"), Style(picture), Edit(picture, mask=spot)
    assert choose_method([], METHODS, backbone) is None
    assert choose_method([subject], METHODS, backbone).name == "diptych"
    assert choose_method([style], METHODS, backbone).name == "diptych"
    assert choose_method([edit, subject], METHODS, backbone).name == "diptych"
    assert choose_method([edit], METHODS, backbone).name == "inpainting"


def test_methods_that_cannot_be(
    backbone: FluxBackbone, subject_picture: Image.Image, picture: Image.Image, spot: Image.Image
) -> None:
    def subject(name: str, by: str | None = None) -> Subject:
        return Subject(subject_picture, name=name, by=by)

    with pytest.raises(CapriccioError, match="did you mean 'diptych'"):
        choose_method([subject("mug", by="diptich")], METHODS, backbone)
    with pytest.raises(CapriccioError, match="subject \\+ subject together"):
        choose_method([subject("mug"), subject("cat")], METHODS, backbone)
    with pytest.raises(CapriccioError, match="inpainting takes edit"):
        choose_method([subject("mug", by="inpainting")], METHODS, backbone)
    edit = Edit(picture, mask=spot, by="inpainting")
    with pytest.raises(CapriccioError, match="name one of them"):
        choose_method([subject("mug", by="diptych"), edit], METHODS, backbone)


@dataclass(frozen=True)
class Options:
    strength: float = 1.0
    count: int | None = None
    mode: Literal["a", "b"] = "a"
    on: bool = True


TOY = Method("toy", "Toy", "", "", (frozenset({"style"}),), Options, lambda draft, conditions, options: draft)


def test_options_are_typed(picture: Image.Image) -> None:
    found = read_options(TOY, [Style(picture, options={"strength": 2, "count": 3, "mode": "b", "on": False})])
    assert found == Options(2.0, 3, "b", False)
    assert read_options(TOY, [Style(picture, options={"count": None})]) == Options()
    assert TOY.settings == {"strength": 1.0, "count": None, "mode": "a", "on": True}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"strenght": 1}, "did you mean 'strength'"),
        ({"strength": "much"}, "expects a number"),
        ({"strength": True}, "expects a number"),
        ({"count": 1.5}, "expects a whole number"),
        ({"on": 1}, "expects true or false"),
        ({"mode": "c"}, "received 'c'"),
        ({"mode": ["a"]}, "received"),
    ],
)
def test_options_that_cannot_be(picture: Image.Image, options: dict[str, Any], says: str) -> None:
    with pytest.raises(CapriccioError, match=says):
        read_options(TOY, [Style(picture, options=options)])


def test_conditions_that_disagree(picture: Image.Image, spot: Image.Image) -> None:
    one, two = (Style(picture, options={"strength": value}) for value in (1, 2))
    with pytest.raises(CapriccioError, match="give it once"):
        read_options(TOY, [one, two])


def test_an_engine_that_is_not_there() -> None:
    draft = Draft(Scene("x"), FluxBackbone(tiny.flux()), None, "x")
    with pytest.raises(CapriccioError, match="inpainting="):
        draft.inpaint("fill")


# --- batches ---


def test_plans_that_share_forwards(backbone: FluxBackbone, subject_picture: Image.Image) -> None:
    def key(prompt: str = "a {mug}", weight: float = 1.3, **settings: Any) -> Any:
        subject = Subject(subject_picture, name="mug", options={"attention_weight": weight})
        return plan_of(backbone, prompt, subject, **settings).batch_key

    assert key() == key("another {mug}") == key(seed=4)
    assert len({key(), key(weight=1.5), key(true_cfg_scale=2), key(num_inference_steps=2), key(width=32)}) == 5
    assert hash(key()) != hash(plan_of(backbone).batch_key)


def test_programs_on_words_are_shared_by_equal_words_alone(backbone: FluxBackbone, picture: Image.Image) -> None:
    def by_words(draft: Draft, conditions: Any, options: Any) -> Draft:
        return replace(draft, program=type(draft.program)((Weigh("image", "text:ink", 2.0),)))

    table = {"toy": replace(TOY, plan=by_words)}
    keys = {
        make_plan(Scene(prompt, [Style(picture, name="ink")], **SMALL), backbone, table).batch_key
        for prompt in ("{ink} mug", "{ink} cat", "a {ink} mug")
    }
    assert len(keys) == 2
