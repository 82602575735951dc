"""What regions cost: grouped fused attention beside the dense mask, the published processors and plain painting.

    python benchmarks/regional.py            # CPU: 2,048 image tokens, 128 text tokens a region, 4 heads x 64, float32
    python benchmarks/regional.py --json     # one JSON object a line

Three kinds of rows, each a median of ratios of times taken in turn:

* ``attention``: ``dense_over_compiled``, the regional call alone: equal disjoint regions under one dense boolean mask,
  over the compiled groups;
* ``step``: ``published_over_ours``, one injected step of a FLUX of two blocks of each kind: the published processors,
  re-stated, over twin and mix;
* ``picture``: ``over_vanilla``, whole pictures of the miniature's FLUX (random sentences, latents only): regions over
  the same size, steps, guidance and text length without; and ``over_floor``, that ratio over the ratio of the FLOPs
  that the two plans count.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from capriccio import Region, Scene, Studio
from capriccio.attention import Steps, attach, choose_form, compile_program, layers_of
from capriccio.attention.layout import TokenLayout
from capriccio.evaluation import reports
from capriccio.evaluation.published import regional_flux, regional_mask
from capriccio.evaluation.timing import in_turn, ratio
from capriccio.methods.regional_prompting import Place, attention
from capriccio.sampling import paint_latents

HEIGHT, WIDTH, TEXT, HEADS, HEAD = 32, 64, 128, 4, 64
IMAGE = HEIGHT * WIDTH
BASE_RATIO = 0.2
STEPS, INJECTED = 5, 2


def masks(regions: int) -> np.ndarray:
    """Equal disjoint regions that cover everything, as booleans (R, rows, columns): tiles as square as can be."""
    down = 2 ** (int(np.log2(regions)) // 2)
    across = regions // down
    rows, columns = np.arange(HEIGHT) * down // HEIGHT, np.arange(WIDTH) * across // WIDTH
    tile = rows[:, None] * across + columns[None, :]
    return np.stack([tile == number for number in range(regions)])


def places(regions: int) -> list[Place]:
    """The same as places of Regional Prompting."""
    return [Place(str(n), "", mask, 1.0, BASE_RATIO) for n, mask in enumerate(masks(regions), 1)]


def layout(regions: int, base: bool) -> TokenLayout:
    """Texts, the base prompt's first if there is one, and the image behind them."""
    texts = [*(["text:base"] if base else []), *(place.text for place in places(regions))]
    total = len(texts) * TEXT + IMAGE
    position = np.arange(total)
    groups: dict[str, Any] = {name: position // TEXT == n for n, name in enumerate(texts)}
    groups["image"] = position >= len(texts) * TEXT
    groups = {name: mask & (~groups["image"] | (name == "image")) for name, mask in groups.items()}
    for place in places(regions):
        groups[place.image] = np.concatenate([np.zeros(len(texts) * TEXT, bool), place.mask.reshape(-1)])
    return TokenLayout(total, groups)


def core(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Call PyTorch's fused attention on (B, S, H, D)."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def attention_row(regions: int, rounds: int) -> dict[str, Any]:
    """Measure the regional call alone."""
    program = attention(places(regions), (1, 1), Steps())
    edits = [edit for edit in program if "base" not in str(edit.queries)]
    tokens = layout(regions, base=False)
    form = choose_form(edits, tokens)
    assert form is not None
    mask = regional_mask([TEXT] * regions, torch.from_numpy(masks(regions).reshape(regions, -1)))
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, tokens.length, HEADS, HEAD, generator=generator) for _ in range(3))
    times = in_turn((lambda: core(query, key, value, mask), lambda: form.run(query, key, value, core)), rounds)
    dense = core(query, key, value, mask)
    error = float((form.run(query, key, value, core) - dense).abs().max() / dense.abs().max())
    return _row("attention", regions, dense_over_compiled=ratio(*times), error=error)


def flux() -> FluxTransformer2DModel:
    """A FLUX of two blocks of each kind; its weights do not matter for time."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=32,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=HEAD,
        num_attention_heads=HEADS,
        joint_attention_dim=HEADS * HEAD,
        pooled_projection_dim=192,
        axes_dims_rope=(16, 24, 24),
    )
    return model.eval().requires_grad_(False)


def step_row(regions: int, rounds: int) -> dict[str, Any]:
    """Measure one injected step."""
    model, generator = flux(), torch.Generator().manual_seed(0)
    text = torch.randn(1, (regions + 1) * TEXT, HEADS * HEAD, generator=generator)
    shared = {
        "hidden_states": torch.randn(1, IMAGE, 32, generator=generator),
        "pooled_projections": torch.randn(1, 192, generator=generator),
        "timestep": torch.full((1,), 0.5),
        "img_ids": torch.cartesian_prod(torch.zeros(1), torch.arange(float(HEIGHT)), torch.arange(float(WIDTH))),
    }
    mask = regional_mask([TEXT] * regions, torch.from_numpy(masks(regions).reshape(regions, -1)))
    program = attention(places(regions), (1, 1), Steps())
    compiled = compile_program(program, layout(regions, base=True), layers=layers_of(model), num_steps=1)
    base = shared | {"encoder_hidden_states": text[:, :TEXT], "txt_ids": torch.zeros(TEXT, 3)}
    joined = shared | {"encoder_hidden_states": text, "txt_ids": torch.zeros(text.shape[1], 3)}

    def published() -> Tensor:
        return regional_flux(model, base, text[:, TEXT:], mask, BASE_RATIO)

    with attach(model, compiled) as attachment:
        attachment.set(step=0, roles=("positive",))

        def ours() -> Tensor:
            return model(**joined, return_dict=False)[0]

        times = in_turn((published, ours), rounds)
        expected = published()
        error = float((ours() - expected).abs().max() / expected.abs().max())
    return _row("step", regions, published_over_ours=ratio(*times), error=error)


def picture_row(studio: Studio, regions: int, rounds: int) -> dict[str, Any]:
    """Measure whole pictures, without the decoding."""
    settings: dict[str, Any] = {
        "width": 16 * WIDTH,
        "height": 16 * HEIGHT,
        "num_inference_steps": STEPS,
        "true_cfg_scale": 1.0,
        "max_sequence_length": TEXT,
    }
    options = {"mask_inject_steps": INJECTED, "base_ratio": BASE_RATIO}
    edges = [(m.any(0).nonzero()[0], m.any(1).nonzero()[0]) for m in masks(regions)]
    boxes = [(16 * x[0], 16 * y[0], 16 * (x[-1] + 1), 16 * (y[-1] + 1)) for x, y in edges]
    parts = [Region("a red mug", box=tuple(map(float, box)), options=options) for box in boxes]
    vanilla = studio.plan(Scene("a table", **settings))
    regional = studio.plan(Scene("a table", parts, **settings))
    # both read their sentences once, before the clock starts
    times = in_turn([lambda plan=plan: paint_latents(plan, studio.backbone) for plan in (regional, vanilla)], rounds)
    over = ratio(*times)
    counted = regional.cost.flops / vanilla.cost.flops
    return _row("picture", regions, over_vanilla=over, over_floor=over / counted, counted=counted)


def _row(name: str, regions: int, **found: float) -> dict[str, Any]:
    size = {"name": name, "regions": regions, "image_tokens": IMAGE, "text_tokens": TEXT}
    run = {"steps": 1, "injected": 1, "base_ratio": BASE_RATIO, "guidance": 1.0, "trimmed": False}
    if name == "picture":
        run |= {"steps": STEPS, "injected": INJECTED}
    return size | run | found


def measure(rounds: int) -> Iterable[dict[str, Any]]:
    """Measure everything."""
    for regions in (4, 16):
        yield attention_row(regions, rounds)
    for regions in (4, 16):
        yield step_row(regions, max(3, rounds // 2))
    studio = Studio.open("miniature")
    for regions in (2, 4, 8, 16):
        yield picture_row(studio, regions, max(3, rounds // 3))


def main() -> None:
    """Print the table, or one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each, the median counts")
    parser.add_argument("--save", metavar="FILE", help="also write rows and recipe to this JSON file")
    arguments = parser.parse_args()
    rows = []
    with torch.inference_mode():
        for row in measure(arguments.rounds):
            rows.append(row)
            if arguments.json:
                print(json.dumps(row), flush=True)
    if not arguments.json:
        reports.show(rows, "What regions cost")
    if arguments.save:
        reports.save(arguments.save, rows, reports.recipe(rounds=arguments.rounds))


if __name__ == "__main__":
    main()
