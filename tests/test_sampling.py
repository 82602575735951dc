"""The predictor and the one loop: stock to the last bit, deterministic, and the same alone or in company."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import FluxPipeline
from PIL import Image

from capriccio.attention import AttentionProgram, TokenLayout, attach, compile_program, layers_of
from capriccio.backbones import schedules
from capriccio.backbones.base import Inputs, Known
from capriccio.backbones.flux import FluxBackbone
from capriccio.canvas import hold
from capriccio.guidance import classifier_free
from capriccio.methods import METHODS
from capriccio.plan import make_plan
from capriccio.sampling import Forward, Predictor, count_steps, denoise, paint
from capriccio.scene import Lora, Scene

SMALL: dict[str, Any] = {"width": 48, "height": 32, "num_inference_steps": 3, "max_sequence_length": 24}


@pytest.fixture(scope="module")
def backbone() -> FluxBackbone:
    pipe = tiny.flux()
    return FluxBackbone(pipe, controlnet=tiny.controlnet(pipe.transformer), fill=tiny.fill().transformer)


def painted(backbone: FluxBackbone, *scenes: Scene) -> list[np.ndarray]:
    plans = [make_plan(scene, backbone, METHODS) for scene in scenes]
    return [np.asarray(one.image) for group in paint(plans, backbone) for one in group]


def stock(pipe: FluxPipeline, seeds: Sequence[int] = (3,), **settings: Any) -> list[np.ndarray]:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipe("a red mug", generator=generators, num_images_per_prompt=len(seeds), **SMALL | settings).images
    return [np.asarray(image) for image in images]


# --- no edit = stock ---


def test_a_model_without_embedded_guidance_is_diffusers_to_the_last_bit() -> None:
    pipe = tiny.flux(guidance=False)
    (ours,) = painted(FluxBackbone(pipe), Scene("a red mug", seed=3, negative_prompt="", true_cfg_scale=4, **SMALL))
    assert np.array_equal(ours, stock(pipe, negative_prompt="", true_cfg_scale=4.0)[0])


def test_half_precision_is_diffusers_to_the_last_bit() -> None:
    pipe = tiny.flux().to(torch.bfloat16)
    (ours,) = painted(FluxBackbone(pipe), Scene("a red mug", seed=3, **SMALL))
    assert np.array_equal(ours, stock(pipe)[0])


@pytest.mark.parametrize("name", ["DPM++ 2M", "DPMSolverMultistepScheduler", "UniPC", "UniPCMultistepScheduler"])
def test_other_schedulers_are_diffusers_to_the_last_bit(name: str) -> None:
    pipe = tiny.flux()
    backbone = FluxBackbone(pipe)
    own = pipe.scheduler
    (ours,) = painted(backbone, Scene("a red mug", seed=3, scheduler=name, **SMALL))
    assert pipe.scheduler is own
    (plain,) = painted(backbone, Scene("a red mug", seed=3, **SMALL))
    assert not np.array_equal(ours, plain)
    pipe.scheduler = schedules.make(name, own)
    assert np.array_equal(ours, stock(pipe)[0])


def test_a_stochastic_step_goes_to_the_estimate_and_draws_all_its_noise_anew() -> None:
    """By hand: x = (1 - s') (x - s v) + s' e, where each picture draws its e from its own generator."""
    scheduler = FluxBackbone(tiny.flux()).schedule("Euler stochastic", 2, 16)
    latents, velocity = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0)).unbind()
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    stepped = schedules.step(scheduler, velocity, scheduler.timesteps[0], latents, generators)
    drawn = torch.cat([torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6)])
    sigma, after = scheduler.sigmas[:2]
    assert torch.allclose(stepped, (1 - after) * (latents - sigma * velocity) + after * drawn)
    assert schedules.make("Euler", scheduler).config.stochastic_sampling is False


def test_a_lora_is_diffusers_to_the_last_bit(tmp_path: Any) -> None:
    path = tiny.save_lora(tmp_path)
    backbone = FluxBackbone(tiny.flux())
    given = (Lora(path, weight=0.7), (), Lora(path, weight=0))
    scenes = [Scene("a red mug", loras, seed=3, **SMALL) for loras in given]
    with_lora, without, none = (painted(backbone, scene)[0] for scene in scenes)
    assert not np.array_equal(with_lora, without)
    assert np.array_equal(none, without)
    backbone.pipe.load_lora_weights(str(tmp_path), weight_name=path.name, adapter_name="x")
    backbone.pipe.set_adapters(["x"], [0.7])
    assert np.array_equal(with_lora, stock(backbone.pipe)[0])


# --- seeds and batches ---


def test_more_pictures_than_fit_together_are_painted_in_turns(backbone: FluxBackbone) -> None:
    seeds = tuple(range(backbone.defaults.rows + 1))
    scene = Scene("a red mug", seeds=seeds, **SMALL)
    assert count_steps([make_plan(scene, backbone, METHODS)], backbone) == 2 * 3
    found = painted(backbone, scene)
    assert len(found) == len(seeds)
    alone = painted(backbone, scene.single(seeds[-1]))[0]
    assert np.array_equal(found[-1], alone)


# --- engines ---


def test_fill_is_diffusers_fill_where_nothing_is_drawn_by_chance() -> None:
    """With the same latents as conditions, one prediction of ours is one prediction of diffusers'."""
    pipe = tiny.fill()
    backbone = FluxBackbone(pipe)
    text = backbone.encode_text("a mug", 24)
    noise = backbone.noise(0, 4, 6)
    paint_here = np.zeros((16, 24), bool)
    paint_here[:, :12] = True
    known = backbone.known("fill", Image.new("RGB", (24, 16), "red"), paint_here)
    ours = backbone.predict(noise, torch.tensor(700.0), text, "positive", Inputs((4, 6), "fill", known, 30.0))
    theirs = pipe.transformer(
        hidden_states=torch.cat([noise, known.condition], dim=2),
        timestep=torch.tensor([0.7]),
        guidance=torch.tensor([30.0]),
        pooled_projections=text.pooled,
        encoder_hidden_states=text.tokens,
        txt_ids=torch.zeros(24, 3),
        img_ids=pipe._prepare_latent_image_ids(1, 4, 6, "cpu", torch.float32),
        return_dict=False,
    )[0]
    assert torch.equal(ours, theirs)


def test_a_controlnet_at_zero_is_not_there(backbone: FluxBackbone) -> None:
    text, noise = backbone.encode_text("a mug", 24), backbone.noise(0, 4, 6)
    known = backbone.known("controlnet", Image.new("RGB", (24, 16), "red"), np.ones((16, 24), bool))

    def predict(*inputs: Any) -> torch.Tensor:
        return backbone.predict(noise, torch.tensor(700.0), text, "positive", Inputs((4, 6), *inputs))

    plain = predict(None, None, 3.5)
    assert torch.equal(predict("controlnet", known, 3.5, 0.0), plain)
    assert not torch.equal(predict("controlnet", known, 3.5, 0.5), plain)


# --- the loop by itself ---


class Euler:
    """A scheduler one can follow by hand: from noise level 1 to 0.5 to 0."""

    timesteps, sigmas = torch.tensor([1000.0, 500.0]), torch.tensor([1.0, 0.5, 0.0])

    def __init__(self) -> None:
        self.index = 0

    def step(self, velocity: torch.Tensor, time: torch.Tensor, latents: torch.Tensor, return_dict: bool) -> Any:
        width = self.sigmas[self.index] - self.sigmas[self.index + 1]
        self.index += 1
        return (latents - width * velocity,)


def test_the_loop_by_hand() -> None:
    told: list[tuple[int, float]] = []
    result = denoise(
        lambda latents, time, step: torch.full_like(latents, float(step + 1)),
        Euler(),
        torch.zeros(1, 1, 1),
        told=lambda step, estimate: told.append((step, estimate.item())),
    )
    assert result.item() == -0.5 * 1 - 0.5 * 2
    assert told == [(1, -1.0), (2, -0.5 - 0.5 * 2)]


def test_held_latents_end_as_they_are_known() -> None:
    known = Known(latents=torch.full((1, 2, 1), 7.0), keep=torch.tensor([[[1.0], [0.0]]]))
    seen: list[float] = []

    def predictor(latents: torch.Tensor, time: torch.Tensor, step: int) -> torch.Tensor:
        seen.append(latents[0, 0, 0].item())
        return torch.ones_like(latents)

    result = denoise(predictor, Euler(), torch.full((1, 2, 1), 3.0), known)
    assert result.flatten().tolist() == [7.0, 2.0]
    middle = hold(torch.zeros(1), torch.tensor([7.0]), torch.tensor([3.0]), torch.ones(1), torch.tensor(0.5))
    assert seen == [3.0, middle.item()]


def test_held_latents_lie_in_memory_as_diffusers_has_them() -> None:
    rows = torch.ones(1, 4, 3, 2)
    known = rows.to(memory_format=torch.channels_last)
    assert hold(rows, known, known, rows, torch.tensor(0.5)).is_contiguous()


def test_the_predictor_works_without_the_loop(backbone: FluxBackbone) -> None:
    texts = {"positive": backbone.encode_text("a mug", 24), "negative": backbone.encode_text("", 24)}
    layout = TokenLayout(24 + 24, {})
    compiled = compile_program(AttentionProgram(), layout, layers=layers_of(backbone.base), num_steps=1)
    noise, time, inputs = backbone.noise(0, 4, 6), torch.tensor(500.0), Inputs((4, 6), guidance_scale=3.5)
    with attach(backbone.base, compiled) as attachment:
        forwards = [Forward(range(1), (role,), text, attachment) for role, text in texts.items()]
        guided = Predictor(backbone, classifier_free(3), forwards, inputs)(noise, time, 0)
    positive, negative = (backbone.predict(noise, time, texts[role], role, inputs) for role in ("positive", "negative"))
    assert torch.equal(guided, negative + 3 * (positive - negative))


def test_branches_are_told_to_step_caches(backbone: FluxBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    context = backbone.base.cache_context
    monkeypatch.setattr(backbone.base, "cache_context", lambda name: names.append(name) or context(name))
    painted(backbone, Scene("a mug", negative_prompt="", true_cfg_scale=3, **SMALL | {"num_inference_steps": 1}))
    assert names == ["cond", "uncond"]
