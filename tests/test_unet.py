"""Stable Diffusion and SDXL wrapped: stock to the last bit, and everything that its users expect."""

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
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
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


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance_scale": 3.0, "negative_prompt": "ugly"},
        {"guidance_scale": 3.0, "negative_prompt": ""},
        {"guidance_scale": 0.0},
        {"width": 40, "height": 56, "num_inference_steps": 4},
    ],
)
def test_painting_from_text_is_diffusers_to_the_last_bit(backbone: UNetBackbone, settings: dict[str, Any]) -> None:
    (ours,) = painted(backbone, **settings)
    assert np.array_equal(ours, stock(backbone.pipe, **settings)[0])
    assert ours.std() > 1


def test_several_seeds_are_diffusers_to_the_last_bit(backbone: UNetBackbone) -> None:
    ours = painted(backbone, seed=0, seeds=(3, 8))
    assert all(np.array_equal(one, other) for one, other in zip(ours, stock(backbone.pipe, (3, 8)), strict=True))


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
    own = tiny.stable_diffusion().scheduler
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


def by_the_mean(monkeypatch: pytest.MonkeyPatch, *kinds: type) -> None:
    """Let diffusers' pipelines encode pictures as the mean of the posterior, where no chance enters."""
    for kind in kinds:
        home = __import__(kind.__module__, fromlist=["retrieve_latents"])
        monkeypatch.setattr(home, "retrieve_latents", lambda output, *given, **named: output.latent_dist.mode())


def inside_out(result: np.ndarray, picture: Image.Image, mask: Image.Image) -> np.ndarray:
    """The pixels of a stock result where the mask is, those of the picture elsewhere."""
    return np.where((np.asarray(mask) > 0)[..., None], result, np.asarray(picture))


@pytest.mark.parametrize("strength", [1.0, 0.7])
@pytest.mark.parametrize("engine", ["fill", "hold"])
def test_inpainting_is_diffusers_to_the_last_bit(
    backbone: UNetBackbone,
    monkeypatch: pytest.MonkeyPatch,
    picture: Image.Image,
    cells: Image.Image,
    engine: str,
    strength: float,
) -> None:
    family = StableDiffusionXLInpaintPipeline if backbone.is_xl else StableDiffusionInpaintPipeline
    by_the_mean(monkeypatch, family)
    parts = backbone.pipe.components | {"unet": backbone.denoiser(engine)}
    settings = {"add_watermarker": False} if backbone.is_xl else {"requires_safety_checker": False}
    pipe = family(**parts, **settings)
    pipe.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": 4, "guidance_scale": 3.0, "negative_prompt": "ugly"}
    size = {"width": 64, "height": 48}
    theirs = stock(pipe, (3, 8), image=picture, mask_image=cells, strength=strength, **given | size)
    edit = Edit(picture, mask=cells, strength=strength, options={"engine": engine})
    ours = painted(backbone, "a red mug", edit, seed=0, seeds=(3, 8), **given | size)
    for one, other in zip(ours, theirs, strict=True):
        assert np.array_equal(one, inside_out(other, picture, cells))
        assert not np.array_equal(one, np.asarray(picture))


@pytest.mark.parametrize("name", [None, "DPM++ 2M Karras"])
def test_image_to_image_is_diffusers_to_the_last_bit(
    backbone: UNetBackbone, monkeypatch: pytest.MonkeyPatch, picture: Image.Image, name: str | None
) -> None:
    family = StableDiffusionXLImg2ImgPipeline if backbone.is_xl else StableDiffusionImg2ImgPipeline
    by_the_mean(monkeypatch, family)
    settings = {"add_watermarker": False} if backbone.is_xl else {"requires_safety_checker": False}
    scheduler = schedules.make(name, backbone.pipe.scheduler)
    pipe = family(**backbone.pipe.components | {"scheduler": scheduler}, **settings)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    given = {"num_inference_steps": 5, "guidance_scale": 3.0}
    theirs = pipe("a red mug", image=picture, strength=0.7, generator=generator, **given).images[0]
    edit = Edit(picture, strength=0.7)
    plan = plan_of(backbone, "a red mug", edit, **given | {"width": 64, "height": 48, "scheduler": name})
    assert (plan.start, plan.num_steps, plan.cost.forwards) == (2, 3, 6)
    assert "painting starts from the picture, noised, at strength 0.7" in str(plan)
    (ours,) = painted(backbone, "a red mug", edit, **given | {"width": 64, "height": 48, "scheduler": name})
    assert np.array_equal(ours, np.asarray(theirs))


def test_image_to_image_on_flux_is_diffusers_to_the_last_bit(
    monkeypatch: pytest.MonkeyPatch, picture: Image.Image
) -> None:
    by_the_mean(monkeypatch, diffusers.FluxImg2ImgPipeline)
    pipe = tiny.flux()
    changed = diffusers.FluxImg2ImgPipeline(**{k: v for k, v in pipe.components.items() if v is not None})
    changed.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": 4, "max_sequence_length": 24, "width": 64, "height": 48, "guidance_scale": 2.0}
    generator = torch.Generator().manual_seed(3)
    theirs = changed("a red mug", image=picture, strength=0.6, generator=generator, **given).images[0]
    (ours,) = painted(FluxBackbone(pipe), "a red mug", Edit(picture, strength=0.6), **given)
    assert np.array_equal(ours, np.asarray(theirs))


def test_a_model_that_only_fills_paints_text_on_an_empty_canvas(picture: Image.Image) -> None:
    backbone = UNetBackbone(tiny.stable_diffusion(inpaint=True))
    assert backbone.engines == ("fill",)
    assert not backbone.can_start_from_text
    assert "only fills" in plan_of(backbone).notes[0]
    assert painted(backbone)[0].shape == (32, 48, 3)
    assert plan_of(backbone, "a cat", Edit(picture, strength=0.6)).engine == "fill"


def test_edits_that_leave_nothing_are_refused(plain: UNetBackbone, picture: Image.Image, cells: Image.Image) -> None:
    with pytest.raises(CapriccioError, match="leaves nothing of the picture"):
        Edit(picture)
    with pytest.raises(CapriccioError, match="leaves none of them"):
        plan_of(plain, "a cat", Edit(picture, strength=0.1))
    with pytest.raises(CapriccioError, match="outside a mask"):
        plan_of(plain, "a cat", Edit(picture, strength=0.5, options={"engine": "hold"}))
    with pytest.raises(CapriccioError, match="no strength"):
        plan_of(plain, "a {cat}", Subject(picture, name="cat"), Edit(picture, mask=cells, strength=0.5))


# --- seeds, batches, LoRAs ---


@pytest.mark.parametrize("engine", [None, "fill", "hold"])
def test_a_batch_of_two_equals_two_singles(
    backbone: UNetBackbone, picture: Image.Image, spot: Image.Image, engine: str | None
) -> None:
    def scene(prompt: str, seed: int) -> Scene:
        edit = Edit(picture, mask=spot, options={"engine": engine})
        return Scene(prompt, [] if engine is None else edit, seed=seed, scheduler="Euler a", **SMALL)

    scenes = [scene("a red mug", 3), scene("a blue cat", 8)]
    plans = [make_plan(one, backbone, METHODS) for one in scenes]
    assert plans[0].batch_key == plans[1].batch_key
    together = [np.asarray(group[0].canvas, int) for group in paint(plans, backbone)]
    alone = [np.asarray(paint([plan], backbone)[0][0].canvas, int) for plan in plans]
    assert max(np.abs(one - other).max() for one, other in zip(together, alone, strict=True)) <= 1


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


def test_the_pipeline_is_given_back_unchanged(backbone: UNetBackbone) -> None:
    pipe = backbone.pipe
    before = list(pipe.unet.attn_processors.values()), pipe.scheduler, dict(pipe.config)
    painted(backbone, "a (red)1.5 mug")
    after = list(pipe.unet.attn_processors.values()), pipe.scheduler, dict(pipe.config)
    assert all(one is other for one, other in zip(before[0], after[0], strict=True))
    assert after[1] is before[1]
    assert after[2] == before[2]


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
    own = tiny.stable_diffusion().scheduler
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


def test_a_method_written_for_flux_works_here(backbone: UNetBackbone, subject_picture: Image.Image) -> None:
    """Diptych Prompting: right-panel queries see left-panel keys with more weight, in self-attention alone."""

    def mug(weight: float) -> Subject:
        return Subject(subject_picture, name="mug", options={"attention_weight": weight})

    plan = plan_of(backbone, "a {mug} in the snow", mug(1.3))
    assert {plan.compiled.layers[k].kind for k in plan.compiled.edited} == {"self"}
    assert plan.settings.true_cfg_scale == backbone.defaults.true_cfg_scale
    neutral, edited = (painted(backbone, "a {mug} in the snow", mug(weight))[0] for weight in (1.0, 3.0))
    assert neutral.shape == (32, 48, 3)
    assert not np.array_equal(neutral, edited)


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


def test_weighted_words_do_what_the_edit_does(plain: UNetBackbone) -> None:
    plan = plan_of(plain, "a (red)2 mug", guidance_scale=1)
    (edit,) = plan.compiled.program
    assert edit == Weigh("image", edit.keys, 2.0, Scope(rows=("positive",)))
    assert np.array_equal(painted(plain, "a (red)1.0 mug")[0], painted(plain, "a red mug")[0])
    assert not np.array_equal(painted(plain, "a (red)2 mug")[0], painted(plain, "a red mug")[0])
    flux = FluxBackbone(tiny.flux())
    assert "weigh image -> text:positive/1 (red) by 2" in str(plan_of(flux, "a (red)2 mug", max_sequence_length=24))
    same = [
        painted(flux, prompt, max_sequence_length=24)[0] for prompt in ("a (red)1 mug", "a red mug", "a (red)3 mug")
    ]
    assert np.array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])


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
