"""Regional Prompting: the published latents, exactly; plain painting without strength; and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from capriccio.backbones.flux import FluxBackbone
from capriccio.backbones.unet import UNetBackbone
from capriccio.errors import CapriccioError
from capriccio.evaluation.published import regional_flux, regional_mask
from capriccio.methods import METHODS
from capriccio.plan import Plan, make_plan
from capriccio.sampling import paint, paint_latents
from capriccio.scene import Lora, Region, Scene, Style

SMALL: dict[str, Any] = {"width": 48, "height": 32, "seed": 3}
LEFT, RIGHT = Region("a mug", box=(0, 0, 24, 32)), Region("a red hat", box=(24, 0, 48, 32))
PLACES = (LEFT, Region("a cat", box=(0.6, 0.25, 0.9, 1)))


@pytest.fixture(scope="module")
def flux() -> FluxBackbone:
    return FluxBackbone(tiny.flux())


@pytest.fixture(scope="module", params=["flux", "sd15", "sdxl"])
def backbone(request: pytest.FixtureRequest) -> Any:
    return FluxBackbone(tiny.flux()) if request.param == "flux" else UNetBackbone(tiny.stable_diffusion(request.param))


def plan_of(backbone: Any, *conditions: Any, prompt: str = "a street", **settings: Any) -> Plan:
    steps = {"num_inference_steps": 4} | ({} if isinstance(backbone, UNetBackbone) else {"max_sequence_length": 24})
    return make_plan(Scene(prompt, conditions, **SMALL | steps | settings), backbone, METHODS)


def latents_of(backbone: Any, *conditions: Any, **settings: Any) -> Tensor:
    return paint_latents(plan_of(backbone, *conditions, **settings), backbone)


def regions(*places: Region, **options: Any) -> list[Region]:
    return [Region(place.prompt, box=place.box, options=options) for place in places]


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


# --- as published ------------------------------------------------------------------------------------------------


def published(backbone: FluxBackbone, conditions: list[Region], injected: int, ratio: float, every: Any) -> Tensor:
    """The published denoising loop, re-stated: regional forwards, then plain ones, by Euler's method."""
    places = [condition.prompt for condition in conditions]
    masks = []
    for condition in conditions:
        left, top, right, bottom = (int(edge) for edge in condition.box or ())
        mask = torch.zeros(32, 48, dtype=torch.bool)
        mask[top:bottom, left:right] = True
        masks.append(mask[2::4, 2::4].flatten())
    if not torch.stack(masks).any(0).all():
        places.append("a photo")
        masks.append(~torch.stack(masks).any(0))
    base = backbone.encode_text("a street", 24)
    texts = torch.cat([backbone.encode_text(prompt, 24).tokens for prompt in places], dim=1)
    who = regional_mask([24] * len(places), torch.stack(masks))
    scheduler = backbone.schedule(None, 4, 96)
    latents = backbone.noise(3, 8, 12)
    positions = torch.cartesian_prod(torch.zeros(1), torch.arange(8.0), torch.arange(12.0))
    for step, time in enumerate(scheduler.timesteps):
        inputs = {
            "hidden_states": latents,
            "timestep": time.expand(1) / 1000,
            "guidance": torch.full([1], 3.5),
            "pooled_projections": base.pooled,
            "encoder_hidden_states": base.tokens,
            "txt_ids": torch.zeros(24, 3),
            "img_ids": positions,
        }
        with torch.no_grad():
            if step < injected:
                velocity = regional_flux(backbone.base, inputs, texts, who, ratio, every)
            else:
                velocity = backbone.base(**inputs, return_dict=False)[0]
        latents = latents + (scheduler.sigmas[step + 1] - scheduler.sigmas[step]) * velocity
    return latents


@pytest.mark.parametrize(
    ("boxes", "injected", "ratio", "every"),
    [
        ([(0, 0, 24, 32), (24, 0, 48, 32)], 2, 0.2, (1, 1)),
        ([(0, 0, 20, 32), (28, 8, 44, 32)], 3, 0.1, (1, 2)),
        ([(0, 0, 28, 32), (20, 0, 48, 32)], 4, 0.3, (2, 2)),  # they overlap
        ([(1, 1, 15, 17), (19, 3, 47, 31)], 1, 0.0, (1, 1)),
    ],
)
def test_latents_are_the_published_ones(
    flux: FluxBackbone, boxes: list[Any], injected: int, ratio: float, every: tuple[int, int]
) -> None:
    conditions = [
        Region(
            prompt,
            box=box,
            options={
                "mask_inject_steps": injected,
                "base_ratio": ratio,
                "double_inject_blocks_interval": every[0],
                "single_inject_blocks_interval": every[1],
            },
        )
        for prompt, box in zip(("a mug", "a red hat", "a cat"), boxes, strict=False)
    ]
    expected = published(flux, conditions, injected, ratio, every)
    assert off(latents_of(flux, *conditions), expected) <= 1e-5
    assert off(latents_of(flux), expected) > 2e-4


def test_the_order_of_regions_does_not_matter(backbone: Any) -> None:
    assert off(latents_of(backbone, LEFT, RIGHT), latents_of(backbone, RIGHT, LEFT)) <= 1e-5


def test_two_layouts_in_a_row_are_two_fresh_runs(backbone: Any) -> None:
    one, two = latents_of(backbone, LEFT, RIGHT), latents_of(backbone, *PLACES)
    fresh = FluxBackbone(tiny.flux()) if isinstance(backbone, FluxBackbone) else UNetBackbone(backbone.pipe)
    assert torch.equal(two, latents_of(fresh, *PLACES))
    assert torch.equal(one, latents_of(fresh, LEFT, RIGHT))
    assert off(two, one) > 1e-3


# --- strength ----------------------------------------------------------------------------------------------------


def test_what_is_usual_is_the_papers_on_flux_and_rpgs_on_unets(backbone: FluxBackbone | UNetBackbone) -> None:
    steps, ratio = (4, 0.5) if isinstance(backbone, UNetBackbone) else (2, 0.2)
    usual = latents_of(backbone, *regions(LEFT, RIGHT))
    assert torch.equal(usual, latents_of(backbone, *regions(LEFT, RIGHT, mask_inject_steps=steps, base_ratio=ratio)))
    assert not torch.equal(usual, latents_of(backbone, *regions(LEFT, RIGHT, mask_inject_steps=steps, base_ratio=0.4)))


@pytest.mark.parametrize("neutral", [{"mask_inject_steps": 0}, {"base_ratio": 1.0}])
def test_without_strength_it_is_plain_painting_bit_for_bit(backbone: Any, neutral: dict[str, Any]) -> None:
    settings = {"num_inference_steps": 24} if isinstance(backbone, FluxBackbone) else {}
    plain = latents_of(backbone, **settings)
    assert torch.equal(latents_of(backbone, *regions(LEFT, RIGHT, **neutral), **settings), plain)
    weak = [Region(place.prompt, box=place.box, strength=0) for place in (LEFT, RIGHT)]
    assert torch.equal(latents_of(backbone, *weak, **settings), plain)


def test_one_region_under_the_whole_prompt_is_plain_painting(backbone: Any) -> None:
    whole = Region("a street", box=(0, 0, 1, 1), options={"mask_inject_steps": 4})
    assert off(latents_of(backbone, whole), latents_of(backbone)) <= 1e-4


def test_strength_is_inject_steps_base_ratio_and_intervals(flux: FluxBackbone) -> None:
    strong = [Region(place.prompt, box=place.box, strength=0.5) for place in (LEFT, RIGHT)]
    steps = {"num_inference_steps": 24}
    said = plan_of(flux, *strong, **steps)
    assert [(phase.steps.start, phase.steps.stop) for phase in said.phases] == [(0, 10), (10, 24)]
    same = latents_of(flux, *regions(LEFT, RIGHT, mask_inject_steps=10, base_ratio=0.2), **steps)
    assert torch.equal(latents_of(flux, *strong, **steps), same)


def test_on_unets_strength_is_steps_and_half_of_the_prompt_at_least() -> None:
    unet = UNetBackbone(tiny.stable_diffusion("sd15"))
    for strength, steps, ratio in ((1.0, 4, 0.5), (0.5, 2, 0.75)):
        strong = [Region(place.prompt, box=place.box, strength=strength) for place in (LEFT, RIGHT)]
        same = latents_of(unet, *regions(LEFT, RIGHT, mask_inject_steps=steps, base_ratio=ratio))
        assert torch.equal(latents_of(unet, *strong), same)


def test_each_region_has_a_strength_of_its_own(flux: FluxBackbone) -> None:
    both = [Region(p.prompt, box=p.box, strength=s) for p, s in ((LEFT, 1.0), (RIGHT, 0.4))]
    plan = plan_of(flux, *both, num_inference_steps=12)
    assert plan.phases[0].steps == range(10)
    ended = [line for line in plan.compiled.lines() if "image:region/2 by 1 " in line]
    assert len(ended) == 1
    assert "[4, 10)" in ended[0]


# --- together with the rest ---------------------------------------------------------------------------------------


def test_a_batch_equals_singles(backbone: Any) -> None:
    both = latents_of(backbone, *PLACES, num_images=2)
    singles = torch.cat([latents_of(backbone, *PLACES, seed=seed) for seed in (3, 4)])
    assert off(both, singles) <= 1e-4


def test_guidance_masks_the_positive_branch_alone(backbone: Any) -> None:
    """With a scale of 1 the negative branch does not count; regions still do, and its own prompt is not masked."""
    guided = {"true_cfg_scale": 3.0, "negative_prompt": "a dog"}
    plan = plan_of(backbone, LEFT, RIGHT, **guided)
    for one in plan.phases[0].passes:
        if "positive" not in one.roles:
            assert one.compiled.empty
        elif len(one.roles) > 1:
            assert one.texts["negative"] == ("text:negative",) * 3
    found = latents_of(backbone, LEFT, RIGHT, **guided)
    assert off(found, latents_of(backbone, LEFT, RIGHT, true_cfg_scale=3.0)) > 1e-3


def test_the_regional_part_is_gone_after_injection(flux: FluxBackbone) -> None:
    plan = plan_of(flux, LEFT, RIGHT, num_inference_steps=4)
    regional, plain = plan.phases
    (one,) = plain.passes
    assert one.compiled.empty
    assert one.lengths == (24,)
    assert regional.passes[0].lengths == (24, 24, 24)
    assert "steps [0, 2)" in str(plan)


def test_weights_of_words_count_inside_a_region(backbone: Any) -> None:
    plain, loud = Region("a mug", box=(0, 0, 24, 32)), Region("a (mug)3", box=(0, 0, 24, 32))
    changed = latents_of(backbone, loud, RIGHT)
    assert off(changed, latents_of(backbone, plain, RIGHT)) > 1e-4
    assert off(latents_of(backbone, LEFT, RIGHT, prompt="a (street)3"), latents_of(backbone, LEFT, RIGHT)) > 1e-5


def test_trimmed_texts_are_shorter_and_near(flux: FluxBackbone) -> None:
    settings = {"max_sequence_length": 64}
    plan = plan_of(flux, *regions(LEFT, RIGHT, trim_text=True), **settings)
    assert plan.phases[0].passes[0].lengths == (64, 16, 16)
    whole, trimmed = (
        latents_of(flux, LEFT, RIGHT, **settings),
        latents_of(flux, *regions(LEFT, RIGHT, trim_text=True), **settings),
    )
    assert 0 < off(trimmed, whole) < 0.5


def test_a_lora_works_with_regions(flux: FluxBackbone, tmp_path: Any) -> None:
    lora = Lora(tiny.save_lora(tmp_path / "lora"))
    assert off(latents_of(flux, LEFT, RIGHT, lora), latents_of(flux, LEFT, RIGHT)) > 1e-4


@pytest.mark.parametrize("trim", [False, True])
def test_counted_cost_is_what_the_model_does(backbone: Any, trim: bool) -> None:
    conditions = regions(LEFT, RIGHT, **({"trim_text": True} if trim and isinstance(backbone, FluxBackbone) else {}))
    plan = plan_of(backbone, *conditions, true_cfg_scale=2.0)
    denoiser = backbone.base
    forward, counts = denoiser.forward, []

    def counted(*arguments: Any, **settings: Any) -> Any:
        # the fused kernel of a CPU is unknown to the counter; plain products are not
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            found = forward(*arguments, **settings)
        counts.append(counter.get_total_flops())
        return found

    denoiser.forward = counted
    try:
        paint([plan], backbone)
    finally:
        denoiser.forward = forward
    assert len(counts) == sum(len(phase.steps) * len(phase.passes) for phase in plan.phases)
    assert sum(counts) == pytest.approx(plan.cost.flops, rel=0.05)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_no_cell_of_a_unet_is_nobodys(kind: str) -> None:
    """Borders in the middle of cells, at every resolution: each cell is somebody's."""
    plan = plan_of(
        UNetBackbone(tiny.stable_diffusion(kind)),
        Region("a mug", box=(0, 0, 23, 15)),
        Region("a hat", box=(23, 0, 37, 32)),
    )
    for layer in plan.compiled.layers:
        image = plan.compiled.layout.at(layer).queries
        assert image.tokens("image:region").all(), layer


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        (Region("a mug", box=(0, 0, 60, 32)), "reaches to \\(60, 32\\), outside the picture of 48 x 32"),
        (Region("a mug", box=(0, 0, 1, 0.01)), "is empty on the grid of 4 x 4 pixels"),
        (Region("a mug", mask=Image.new("L", (8, 8), 255)), "mask of the region 'a mug' is 8 x 8 pixels"),
        (Region("a mug", box=(0, 0, 1, 1), options={"base_ratio": 2}), "base_ratio received 2"),
        (Region("a mug", box=(0, 0, 1, 1), options={"mask_inject_steps": 9}), "mask_inject_steps=9 of 4 steps"),
        (Region("a mug", box=(0, 0, 1, 1), options={"single_inject_blocks_interval": 0}), "give 1 \\(every block\\)"),
        (Region("a mug", box=(0, 0, 1, 1), options={"inject_steps": 2}), "mask_inject_steps"),
        (Region("a mug", box=(0, 0, 1, 1), strength=0.5, options={"base_ratio": 0.1}), "keep one of them"),
    ],
)
def test_bad_regions_are_refused_in_a_sentence(flux: FluxBackbone, condition: Region, sentence: str) -> None:
    with pytest.raises(CapriccioError, match=sentence):
        plan_of(flux, condition)


def test_a_region_is_one_place() -> None:
    with pytest.raises(CapriccioError, match="neither a box nor a mask"):
        Region("a mug")
    with pytest.raises(CapriccioError, match="both a box and a mask"):
        Region("a mug", box=(0, 0, 1, 1), mask=Image.new("L", (8, 8)))
    with pytest.raises(CapriccioError, match=r"the box \(0.5, 0, 0.5, 1\), which holds nothing"):
        Region("a mug", box=(0.5, 0, 0.5, 1))


def test_more_regions_than_tokens(flux: FluxBackbone) -> None:
    with pytest.raises(CapriccioError, match="97 regions were given, but the picture has 96 tokens"):
        plan_of(flux, *[LEFT] * 97)


def test_intervals_are_flux_alone() -> None:
    with pytest.raises(CapriccioError, match="counts blocks of FLUX"):
        plan_of(UNetBackbone(tiny.stable_diffusion()), *regions(LEFT, single_inject_blocks_interval=2))


def test_what_no_method_paints_together(flux: FluxBackbone, picture: Image.Image) -> None:
    with pytest.raises(CapriccioError, match=r"paints region \+ style together"):
        plan_of(flux, LEFT, Style(picture))


def test_a_scene_with_regions_travels(flux: FluxBackbone, tmp_path: Any) -> None:
    mask = np.zeros((32, 48), np.uint8)
    mask[:, 24:] = 255
    Image.fromarray(mask).save(tmp_path / "right.png")
    drawn = Region("a red hat", mask=tmp_path / "right.png", name="hat")
    scene = Scene("a street", [LEFT, drawn], **SMALL)
    again = Scene.load(scene.save(tmp_path / "scene.yaml"))
    assert again == scene
    assert torch.equal(latents_of(flux, *again.conditions), latents_of(flux, LEFT, RIGHT))
