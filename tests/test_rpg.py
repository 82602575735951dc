"""RPG: both published modes beside their plain re-statements, and a page that paints without its planner."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from capriccio.backbones import schedules
from capriccio.backbones.base import Inputs
from capriccio.backbones.flux import FluxBackbone
from capriccio.backbones.unet import UNetBackbone
from capriccio.errors import CapriccioError
from capriccio.methods import METHODS
from capriccio.perception.pages import Page
from capriccio.plan import Plan, make_plan
from capriccio.sampling import paint_latents
from capriccio.scene import Layout, Scene

SMALL: dict[str, Any] = {"width": 48, "height": 32, "seed": 3, "num_inference_steps": 3}
SENTENCE = "a red mug on the left and a blue hat on the right"
PAGE = Page(prompt="a shelf", base="a shelf", ratio="1,1,1;1", regions=("a mug", "a hat", "a cat"))


@pytest.fixture(scope="module", params=["flux", "sd15", "sdxl"])
def backbone(request: pytest.FixtureRequest) -> Any:
    return FluxBackbone(tiny.flux()) if request.param == "flux" else UNetBackbone(tiny.stable_diffusion(request.param))


def plan_of(backbone: Any, layout: Layout | None = None, prompt: str = "a shelf", **settings: Any) -> Plan:
    text = {} if isinstance(backbone, UNetBackbone) else {"max_sequence_length": 64}
    return make_plan(Scene(prompt, [layout] if layout else [], **SMALL | text | settings), backbone, METHODS)


def paged(page: Page = PAGE, **options: Any) -> Layout:
    return Layout(page=page.model_dump(mode="json"), options=options)


def latents_of(backbone: Any, layout: Layout | None = None, **settings: Any) -> Tensor:
    return paint_latents(plan_of(backbone, layout, **settings), backbone)


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


# --- the released code: cropped cross-attention ------------------------------------------------------------------


class Cropped(nn.Module):
    """Cross-attention of every cell against its own text, cropped, as the release computes it; guided rows only."""

    def __init__(self, texts: Tensor, ratio: float) -> None:
        super().__init__()
        self.texts, self.ratio = texts, ratio

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *rest: Any, **more: Any
    ) -> Tensor:
        def look(text: Tensor) -> Tensor:
            query, key, value = (
                linear(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for linear, x in ((attn.to_q, hidden_states), (attn.to_k, text), (attn.to_v, text))
            )
            return attn.to_out[0](scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

        base, *cells = (look(text) for text in self.texts.split(77, dim=1))
        tokens = hidden_states.shape[1]
        rows = round((tokens * 32 / 48) ** 0.5)
        top, columns = rows // 2, tokens // rows
        grids = [cell.unflatten(1, (rows, columns)) for cell in cells]
        out = grids[2].clone()
        out[:, :top, : columns // 2] = grids[0][:, :top, : columns // 2]
        out[:, :top, columns // 2 :] = grids[1][:, :top, columns // 2 :]
        return (1 - self.ratio) * out.flatten(1, 2) + self.ratio * base


@pytest.mark.parametrize("ratio", [0.3, 0.0])
def test_attention_mode_is_the_release(ratio: float) -> None:
    backbone = UNetBackbone(tiny.stable_diffusion())
    found = latents_of(backbone, paged(base_ratio=ratio), true_cfg_scale=1.0)
    texts = [backbone.encode_text(prompt, 77).tokens for prompt in ("a shelf", *PAGE.regions)]
    stock = dict(backbone.base.attn_processors)
    literal = Cropped(torch.cat(texts, 1), ratio)
    backbone.base.set_attn_processor(
        {name: literal if "attn2" in name else processor for name, processor in stock.items()}
    )
    try:
        expected = latents_of(backbone, true_cfg_scale=1.0)
    finally:
        backbone.base.set_attn_processor(stock)
    assert off(found, expected) <= 1e-5
    assert off(latents_of(backbone, true_cfg_scale=1.0), expected) > 1e-4


# --- the paper: latents ------------------------------------------------------------------------------------------


def test_latent_mode_is_the_paper(backbone: Any) -> None:
    found = latents_of(backbone, paged(mode="latent", base_ratio=0.3), true_cfg_scale=1.0)
    length = 77 if isinstance(backbone, UNetBackbone) else 64
    texts = [backbone.encode_text(prompt, length) for prompt in ("a shelf", *PAGE.regions)]
    grid = (32 // backbone.token, 48 // backbone.token)
    scheduler = backbone.schedule(None, 3, grid[0] * grid[1])
    inputs = Inputs(grid, guidance_scale=3.5)
    latents = schedules.first(scheduler, backbone.noise(3, *grid))
    half = grid[0] // 2
    for time in scheduler.timesteps:
        seen = schedules.seen(scheduler, latents, time)
        velocities = [backbone.predict(seen, time, text, "positive", inputs) for text in texts]
        stepped = scheduler.step(torch.cat(velocities), time, latents.repeat(4, *[1] * (latents.ndim - 1))).prev_sample
        base, one, two, three = backbone.as_grid(stepped, grid).split(1)
        small = {"size": (half, grid[1] // 2), "mode": "nearest-exact"}
        top = torch.cat([interpolate(one, **small), interpolate(two, **small)], dim=-1)
        below = interpolate(three, size=(grid[0] - half, grid[1]), mode="nearest-exact")
        latents = backbone.from_grid(0.3 * base + 0.7 * torch.cat([top, below], dim=-2))
    assert off(found, latents) <= 1e-4


def test_two_pictures_are_two_runs(backbone: Any) -> None:
    for mode in ("attention", "latent"):
        layout = paged(mode=mode)
        both = latents_of(backbone, layout, num_images=2)
        singles = torch.cat([latents_of(backbone, layout, seed=seed) for seed in (3, 4)])
        assert off(both, singles) <= 1e-4


def test_guidance_works_in_both_modes(backbone: Any) -> None:
    for mode in ("attention", "latent"):
        strong, weak = (latents_of(backbone, paged(mode=mode), true_cfg_scale=scale) for scale in (4.0, 1.0))
        assert off(strong, weak) > 1e-3


def test_a_base_ratio_of_one_is_plain_painting_bit_for_bit(backbone: Any) -> None:
    settings = {"true_cfg_scale": 3.0}
    for mode in ("attention", "latent"):
        assert torch.equal(
            latents_of(backbone, paged(mode=mode, base_ratio=1), **settings), latents_of(backbone, **settings)
        )


def test_more_base_is_nearer_to_the_base(backbone: Any) -> None:
    plain = latents_of(backbone, true_cfg_scale=1.0)
    for mode in ("attention", "latent"):
        away = [
            float((latents_of(backbone, paged(mode=mode, base_ratio=ratio), true_cfg_scale=1.0) - plain).norm())
            for ratio in (0.0, 0.5, 0.9)
        ]
        assert away[0] > away[1] > away[2] > 0


# --- the planner -------------------------------------------------------------------------------------------------


def test_the_grammar_divides_a_sentence(backbone: Any) -> None:
    plan = plan_of(backbone, Layout(), prompt=SENTENCE)
    assert any("planner 'grammar': 1,1 cuts the page" in note for note in plan.notes)
    assert {"text:region/1", "text:region/2"} <= {preparation.name for preparation in plan.preparations}


def test_the_page_travels_with_the_scene(backbone: Any, tmp_path: Any) -> None:
    plan = plan_of(backbone, Layout(), prompt=SENTENCE)
    (layout,) = plan.scene.conditions
    assert layout.page["regions"] == ["a red mug", "a blue hat"]
    again = Scene.load(plan.scene.save(tmp_path / "scene.yaml"))
    assert torch.equal(
        paint_latents(make_plan(again, backbone, METHODS), backbone), latents_of(backbone, Layout(), prompt=SENTENCE)
    )


def test_cost_counts_every_voice() -> None:
    backbone = FluxBackbone(tiny.flux())
    plain, latent = plan_of(backbone), plan_of(backbone, paged(mode="latent"))
    assert latent.cost.flops == 4 * plain.cost.flops
    assert latent.cost.forwards == 4 * plain.cost.forwards


@pytest.mark.parametrize(
    ("layout", "sentence"),
    [
        (Layout(page={"prompt": "x", "base": "x", "ratio": "1,1", "regions": ["a cat"]}), "2 cells"),
        (Layout(page={"prompt": "x", "base": "x", "ratio": "1,99", "regions": ["a", "b"]}), "smaller than a token"),
        (Layout(planner="gramar"), "grammar"),
        (paged(base_ratio=2.0), "base_ratio received 2"),
        (paged(mode="latents"), "latent"),
    ],
)
def test_bad_pages_are_refused_in_a_sentence(layout: Layout, sentence: str) -> None:
    with pytest.raises(CapriccioError, match=sentence):
        plan_of(FluxBackbone(tiny.flux()), layout)


def test_a_recipe_may_not_choose_whom_to_ask(tmp_path: Any) -> None:
    from PIL import Image

    from capriccio.pictures import save_png

    scene = Scene("two pets", [Layout(planner="http://localhost:1/v1#model")])
    path = tmp_path / "picture.png"
    save_png(Image.new("RGB", (8, 8)), path, {"scene": scene.recipe()})
    with pytest.raises(CapriccioError, match="which a recipe may not choose"):
        Scene.load(path)
    asked = Scene("two pets", [Layout(planner="http://localhost:1/v1#model", page=PAGE.model_dump(mode="json"))])
    save_png(Image.new("RGB", (8, 8)), path, {"scene": asked.recipe()})
    assert Scene.load(path).conditions[0].page["ratio"] == PAGE.ratio
