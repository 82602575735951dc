"""Stable Diffusion and SDXL wrapped: what their users expect; what holds for every family is examined elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image

from capriccio.attention import AttentionProgram, Layers, Scope, Weigh, attach, compile_program
from capriccio.backbones import schedules
from capriccio.backbones.base import Inputs
from capriccio.backbones.flux import FluxBackbone
from capriccio.backbones.unet import UNetBackbone
from capriccio.errors import CapriccioError
from capriccio.methods import METHODS
from capriccio.plan import Plan, make_plan
from capriccio.sampling import paint
from capriccio.scene import Edit, Lora, Scene, Subject
from capriccio.studio import Studio

SMALL: dict[str, Any] = {"width": 48, "height": 32, "num_inference_steps": 3}
KINDS = ("sd15", "sd2", "sdxl")
NAMES = ("DPM++ 2M Karras", "DPM++ 2M SDE", "Euler", "Euler a", "UniPC", "LCM", "PNDM", "Heun")


@pytest.fixture(scope="module", params=KINDS)
def backbone(request: pytest.FixtureRequest) -> UNetBackbone:
    fill = tiny.stable_diffusion(request.param, inpaint=True, seed=1).unet
    return UNetBackbone(tiny.stable_diffusion(request.param), fill=fill)


@pytest.fixture(scope="module")
def plain() -> UNetBackbone:
    return UNetBackbone(tiny.stable_diffusion())


def plan_of(backbone: Any, prompt: str = "a red mug", *conditions: Any, **settings: Any) -> Plan:
    return make_plan(Scene(prompt, conditions, **SMALL | settings), backbone, METHODS)


def painted(backbone: Any, prompt: str = "a red mug", *conditions: Any, **settings: Any) -> list[np.ndarray]:
    found = paint([plan_of(backbone, prompt, *conditions, **{"seed": 3} | settings)], backbone)
    return [np.asarray(one.image) for one in found[0]]


def stock(pipe: Any, seeds: Sequence[int] = (3,), prompt: str = "a red mug", **settings: Any) -> list[np.ndarray]:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipe(prompt, generator=generators, num_images_per_prompt=len(seeds), **SMALL | settings).images
    return [np.asarray(image) for image in images]


# --- no edit = stock ---


@pytest.mark.parametrize("name", NAMES)
def test_schedulers_are_diffusers_to_the_last_bit(name: str) -> None:
    pipe = tiny.stable_diffusion()
    backbone, own = UNetBackbone(pipe), pipe.scheduler
    (ours,) = painted(backbone, scheduler=name)
    assert pipe.scheduler is own
    assert not np.array_equal(ours, painted(backbone)[0])
    kind, settings = schedules.DIFFUSION[name]
    pipe.scheduler = getattr(diffusers, kind).from_config(own.config, **settings)
    assert np.array_equal(ours, stock(pipe)[0])


def test_names_of_schedulers_are_those_that_people_know() -> None:
    own = tiny.scheduler()
    karras = schedules.make("DPM++ 2M Karras", own)
    assert isinstance(karras, DPMSolverMultistepScheduler)
    assert karras.config.use_karras_sigmas
    for name, kind in [("UniPC", UniPCMultistepScheduler), ("Euler", EulerDiscreteScheduler), ("LCM", LCMScheduler)]:
        assert type(schedules.make(name, own)) is type(schedules.make(kind.__name__, own)) is kind
        assert schedules.make(name, own).config.beta_start == own.config.beta_start
    with pytest.raises(CapriccioError, match="did you mean 'DPM\\+\\+ 2M Karras'"):
        schedules.make("DPM 2M Karras", own)


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_skipped_layers_are_diffusers_to_the_last_bit(backbone: UNetBackbone, clip_skip: int) -> None:
    (ours,) = painted(backbone, clip_skip=clip_skip, negative_prompt="ugly", guidance_scale=3)
    encoder = backbone.pipe.text_encoder
    # diffusers looks for the norm where older versions of transformers have it.
    object.__setattr__(encoder, "text_model", encoder)
    theirs = stock(backbone.pipe, clip_skip=clip_skip, negative_prompt="ugly", guidance_scale=3.0)
    object.__delattr__(encoder, "text_model")
    assert np.array_equal(ours, theirs[0])
    assert not np.array_equal(ours, painted(backbone, negative_prompt="ugly", guidance_scale=3)[0])


def test_half_precision_is_diffusers_to_the_last_bit() -> None:
    pipe = tiny.stable_diffusion().to(torch.bfloat16)
    assert np.array_equal(painted(UNetBackbone(pipe))[0], stock(pipe)[0])


def test_a_distilled_model_reads_its_guidance_as_in_diffusers() -> None:
    pipe = tiny.stable_diffusion()
    torch.manual_seed(0)
    pipe.register_modules(unet=tiny.unet(time_cond_proj_dim=16))
    backbone = UNetBackbone(pipe)
    plan = plan_of(backbone, guidance_scale=6.0)
    assert plan.guidance_scale == 6.0
    assert [branch.role for branch in plan.branches] == ["positive"]
    assert np.array_equal(painted(backbone, guidance_scale=6.0)[0], stock(pipe, guidance_scale=6.0)[0])


# --- known pictures ---


@pytest.fixture
def cells() -> Image.Image:
    """A mask made of whole latent cells, 64 x 48."""
    mask = Image.new("L", (64, 48))
    mask.paste(255, (16, 12, 40, 36))
    return mask


def test_a_model_that_only_fills_paints_text_on_an_empty_canvas(picture: Image.Image) -> None:
    backbone = UNetBackbone(tiny.stable_diffusion(inpaint=True))
    assert backbone.engines == ("fill",)
    assert not backbone.can_start_from_text
    assert "only fills" in plan_of(backbone).notes[0]
    assert painted(backbone)[0].shape == (32, 48, 3)
    assert plan_of(backbone, "a cat", Edit(picture, strength=0.6)).engine == "fill"


def test_edits_that_leave_nothing_are_refused(plain: UNetBackbone, picture: Image.Image, cells: Image.Image) -> None:
    with pytest.raises(CapriccioError, match="leaves nothing of the picture"):
        plan_of(plain, "a cat", Edit(picture))
    with pytest.raises(CapriccioError, match="leaves none of them"):
        plan_of(plain, "a cat", Edit(picture, strength=0.1))
    with pytest.raises(CapriccioError, match="outside a mask"):
        plan_of(plain, "a cat", Edit(picture, strength=0.5, options={"engine": "hold"}))
    with pytest.raises(CapriccioError, match="no strength"):
        plan_of(plain, "a {cat}", Subject(picture, name="cat"), Edit(picture, mask=cells, strength=0.5))


# --- LoRAs ---


def test_a_lora_works_and_leaves_no_trace(tmp_path: Any) -> None:
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = tiny.stable_diffusion()
    torch.manual_seed(2)
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    pipe.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    backbone = UNetBackbone(tiny.stable_diffusion())
    before = backbone.fingerprint()
    path = tmp_path / "pytorch_lora_weights.safetensors"
    with_lora, without = painted(backbone, "a red mug", Lora(path, weight=0.7))[0], painted(backbone)[0]
    assert not np.array_equal(with_lora, without)
    assert backbone.fingerprint() == before
    backbone.pipe.load_lora_weights(str(tmp_path), weight_name=path.name, adapter_name="x")
    backbone.pipe.set_adapters(["x"], [0.7])
    assert np.array_equal(with_lora, stock(backbone.pipe)[0])


# --- plans ---


def test_plans_say_it_all(backbone: UNetBackbone) -> None:
    plan = plan_of(backbone, negative_prompt="ugly", guidance_scale=4, scheduler="PNDM")
    said = str(plan)
    assert "negative + 4 (positive - negative); the branches share a forward" in said
    assert "77 text tokens" in said
    assert "24 x 16 image tokens and coarser" in said
    assert "PNDM; 4 evaluations of the denoiser" in said
    assert plan.cost.forwards == 2 * 4
    assert plan.cost.flops == plan_of(backbone, guidance_scale=1, scheduler="PNDM").cost.flops * 2


def test_flops_are_those_of_a_forward(backbone: UNetBackbone) -> None:
    counted: list[int] = []

    def count(module: Any, inputs: Any, output: torch.Tensor) -> None:
        places = output[0, 0].numel() if isinstance(module, torch.nn.Conv2d) else output[0, ..., 0].numel()
        counted.append(2 * module.weight.numel() * places)

    layers = [m for m in backbone.base.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    text = backbone.encode_text("a mug", 77)
    noise = backbone.noise(0, 16, 24)
    backbone.predict(noise, torch.tensor(5), text, "positive", Inputs((16, 24)))
    for hook in hooks:
        hook.remove()
    assert backbone.flops(None, 77, 16 * 24) == sum(counted)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", [*NAMES, "DDIM", None])
def test_estimates_invert_what_noise_does(name: str | None, prediction: str) -> None:
    """From the truth at a step, the clean latents: for every scheduler and every kind of prediction."""
    own = tiny.scheduler()
    scheduler = schedules.make(name, own)
    scheduler.register_to_config(prediction_type=prediction)
    scheduler.set_timesteps(6)
    clean, noise = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(0)).unbind(0)
    for index in (0, 3):
        schedules.begin_at(scheduler, index)
        signal, level = schedules.levels(scheduler, index, clean)
        truth = {
            "epsilon": noise,
            "sample": clean,
            "v_prediction": (signal * noise - level * clean) / (signal**2 + level**2).sqrt(),
        }[prediction]
        latents = schedules.noised(scheduler, clean, noise, index)
        found = schedules.estimate(scheduler, truth, latents, index)
        assert torch.allclose(found, clean, atol=1e-4)
        assert not torch.allclose(latents, clean, atol=1e-2)
    assert schedules.levels(scheduler, len(scheduler.timesteps), clean) == (1, 0)


def test_guidance_has_one_name_more(plain: UNetBackbone) -> None:
    keys = {plan_of(plain, **{name: 4.0}).guidance for name in ("guidance_scale", "true_cfg_scale")}
    assert len(keys) == 1
    with pytest.raises(CapriccioError, match="one and the same"):
        plan_of(plain, guidance_scale=3, true_cfg_scale=4)
    assert plan_of(plain).settings.true_cfg_scale == 7.5


def test_settings_that_cannot_be(plain: UNetBackbone) -> None:
    with pytest.raises(CapriccioError, match="always reads 77 text tokens"):
        plan_of(plain, max_sequence_length=64)
    with pytest.raises(CapriccioError, match="has 2 to leave out"):
        plan_of(plain, clip_skip=3)
    with pytest.raises(CapriccioError, match="has no use for that"):
        plan_of(FluxBackbone(tiny.flux()), max_sequence_length=16, clip_skip=1)
    with pytest.raises(CapriccioError, match="nearest sizes"):
        plan_of(plain, width=47)
    with pytest.raises(CapriccioError, match="did you mean 'Euler a'"):
        plan_of(plain, scheduler="Euler b")


def test_other_families_are_refused() -> None:
    with pytest.raises(CapriccioError, match="not a pipeline of the Stable Diffusion family"):
        UNetBackbone(tiny.flux())
    with pytest.raises(CapriccioError, match=r"takes 9 channels, which is neither|takes 6 channels"):
        UNetBackbone(tiny.stable_diffusion(), fill=tiny.unet("sd15", 6))


def test_a_studio_takes_either_family() -> None:
    pipe = tiny.stable_diffusion()
    painting = Studio(pipe).paint(Scene("a mug", seeds=(5, 6), **SMALL))
    assert len(painting.images) == 2
    assert set(painting.weights) == {"unet", "vae", "text_encoder"}
    assert isinstance(Studio(pipe).backbone, UNetBackbone)
    assert isinstance(Studio(tiny.flux()).backbone, FluxBackbone)
    told = []
    Studio(pipe).paint(Scene("a mug", **SMALL), lambda progress: told.append(progress.preview().size))
    assert told == [(48, 32)] * 3


@pytest.mark.parametrize("kind", ["sd15", "sd2"])
@pytest.mark.parametrize("name", [None, "Euler", "DPM++ 2M", "LCM", "UniPC"])
def test_the_last_preview_is_the_picture(kind: str, name: str | None) -> None:
    """Estimates of the clean picture are right for every scheduler and for noise and v."""
    shown: list[Image.Image] = []
    studio = Studio(tiny.stable_diffusion(kind))
    scene = Scene("a mug", scheduler=name, **SMALL | {"num_inference_steps": 2})
    painting = studio.paint(scene, lambda progress: shown.append(progress.preview()))
    difference = np.abs(np.asarray(shown[-1], int) - np.asarray(painting.images[0], int))
    assert difference.mean() < (3 if name in (None, "Euler") else 12)


def test_a_method_written_for_flux_edits_self_attention_alone(
    backbone: UNetBackbone, subject_picture: Image.Image
) -> None:
    plan = plan_of(backbone, "a {mug} in the snow", Subject(subject_picture, name="mug"))
    assert {plan.compiled.layers[k].kind for k in plan.compiled.edited} == {"self"}
    assert plan.settings.true_cfg_scale == backbone.defaults.true_cfg_scale


# --- weighted words ---


@pytest.mark.parametrize("role", ["positive", "negative"])
def test_weighted_words_are_an_edit_of_attention(plain: UNetBackbone, role: str) -> None:
    prompts = {"positive": "a red mug", "negative": "ugly thing"} | {role: "some (red mug)1.5 here"}
    plan = plan_of(plain, prompts["positive"], negative_prompt=prompts["negative"])
    assert {branch.role: branch.prompt for branch in plan.branches}[role] == "some red mug here"
    (edit,) = plan.compiled.program
    assert (edit.weight, edit.scope.rows) == (1.5, (role,))
    assert f"weigh image -> text:{role}/1 (red mug) by 1.5" in str(plan)
    # One token a letter: "<start>" and "some", then "red" and "mug".
    assert np.flatnonzero(plan.layout.groups[edit.keys]).tolist() == list(range(1 + 4, 1 + 4 + 6))


def test_weighted_words_are_one_edit_on_both_families(plain: UNetBackbone) -> None:
    (edit,) = plan_of(plain, "a (red)2 mug", guidance_scale=1).compiled.program
    assert edit == Weigh("image", edit.keys, 2.0, Scope(rows=("positive",)))
    flux = FluxBackbone(tiny.flux())
    assert "weigh image -> text:positive/1 (red) by 2" in str(plan_of(flux, "a (red)2 mug", max_sequence_length=24))


def test_scoped_edits_reach_one_branch_of_a_shared_forward(plain: UNetBackbone) -> None:
    layout = plan_of(plain).layout
    program = AttentionProgram((Weigh("image", "text", 0.5, Scope(Layers("cross"), rows=("positive",))),))
    compiled = compile_program(program, layout, layers=plain.layers(None), num_steps=3)
    latents, text = torch.randn(2, 4, 16, 24), torch.randn(2, 77, 32)
    run = lambda: plain.base(latents, 5, encoder_hidden_states=text, return_dict=False)[0]  # noqa: E731
    with torch.no_grad():
        before = run()
        with attach(plain.base, compiled) as attachment:
            attachment.set(step=0, roles=("negative", "positive"))
            after = run()
    assert torch.allclose(before[0], after[0], atol=1e-5)
    assert not torch.allclose(before[1], after[1], atol=1e-4)
