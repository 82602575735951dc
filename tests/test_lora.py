"""LoRAs: every published layout is the same picture; a region's LoRA changes its own tokens and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from capriccio.attention import AttentionProgram
from capriccio.backbones.base import Stream
from capriccio.backbones.flux import FluxBackbone
from capriccio.backbones.limits import adapted, tokens_at
from capriccio.backbones.unet import UNetBackbone
from capriccio.draft import Method
from capriccio.errors import CapriccioError
from capriccio.methods import METHODS
from capriccio.plan import Plan, make_plan
from capriccio.sampling import paint
from capriccio.scene import Lora, Region, Scene

SMALL: dict[str, Any] = {"width": 48, "height": 32, "seed": 3}
LEFT, RIGHT = Region("a mug", box=(0, 0, 24, 32), name="mug"), Region("a red hat", box=(24, 0, 48, 32), name="hat")
RANK = 2
Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""Layer of the denoiser (or, behind ``te:``, of the text encoder) -> matrices (r, in) and (out, r)."""

FLUX = {
    "transformer_blocks.0.attn.to_q": "double_blocks_0_img_attn_qkv",
    "transformer_blocks.0.attn.to_k": "double_blocks_0_img_attn_qkv",
    "transformer_blocks.0.attn.to_v": "double_blocks_0_img_attn_qkv",
    "transformer_blocks.1.attn.to_out.0": "double_blocks_1_img_attn_proj",
    "transformer_blocks.0.ff.net.0.proj": "double_blocks_0_img_mlp_0",
    "transformer_blocks.1.ff_context.net.2": "double_blocks_1_txt_mlp_2",
    "single_transformer_blocks.1.proj_out": "single_blocks_1_linear2",
}
SD15 = [
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "up_blocks.0.attentions.1.transformer_blocks.0.ff.net.0.proj",
    "te:encoder.layers.1.self_attn.q_proj",
    "te:encoder.layers.1.self_attn.out_proj",
]
SDXL = {
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "input_blocks_3_1_transformer_blocks_0_attn1_to_q",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_v": "middle_block_1_transformer_blocks_0_attn2_to_v",
    "up_blocks.0.attentions.0.transformer_blocks.1.ff.net.2": "output_blocks_0_1_transformer_blocks_1_ff_net_2",
}
LAYERS: dict[str, Sequence[str]] = {"flux": list(FLUX), "sd15": SD15, "sdxl": list(SDXL)}


def new(kind: str) -> Any:
    return FluxBackbone(tiny.flux()) if kind == "flux" else UNetBackbone(tiny.stable_diffusion(kind))


@pytest.fixture(scope="module")
def flux() -> FluxBackbone:
    return new("flux")


@pytest.fixture(scope="module", params=["flux", "sd15", "sdxl"])
def backbone(request: pytest.FixtureRequest) -> Any:
    return new(request.param)


def kind_of(backbone: Any) -> str:
    return "flux" if isinstance(backbone, FluxBackbone) else "sdxl" if backbone.is_xl else "sd15"


def pairs_for(
    backbone: Any, layers: Sequence[str], seed: int = 2, size: float = 1.0
) -> dict[str, tuple[Tensor, Tensor]]:
    """Random matrices, those of one attention's queries, keys and values with the same first one."""
    generator = torch.Generator().manual_seed(seed)
    shared: dict[tuple[str, int], Tensor] = {}
    found = {}
    for name in layers:
        encoder = getattr(backbone.pipe.text_encoder, "text_model", backbone.pipe.text_encoder)
        network = encoder if name.startswith("te:") else backbone.base
        weight = network.get_submodule(name.removeprefix("te:")).weight
        key = (re.sub(r"to_[qkv]$", "", name), weight.shape[1])
        if key not in shared:
            shape = (RANK, *weight.shape[1:])
            shared[key] = torch.randn(shape, generator=generator) * weight[0].numel() ** -0.5
        up = torch.randn((len(weight), RANK, *[1] * (weight.ndim - 2)), generator=generator) * size
        found[name] = shared[key], up
    return found


# --- layouts, as they are published -------------------------------------------------------------------------------


def write(path: Path, backbone: Any, pairs: Pairs, layout: str = "peft", **extra: Tensor) -> Path:
    """Write a LoRA file in one of the published layouts."""
    own = "transformer" if isinstance(backbone, FluxBackbone) else "unet"
    state: dict[str, Tensor] = dict(extra)
    for name, (down, up) in pairs.items():
        part = "text_encoder.text_model" if name.startswith("te:") else own
        full = f"{part}.{name.removeprefix('te:')}"
        if layout == "peft":
            state |= {f"{full}.lora_A.weight": down, f"{full}.lora_B.weight": up}
        elif layout == "diffusers":
            middle = "lora_linear_layer" if name.startswith("te:") else "lora"
            state |= {f"{full}.{middle}.down.weight": down, f"{full}.{middle}.up.weight": up}
        else:
            state |= kohya(backbone, name, pairs)
    save_file({key: value.clone().contiguous() for key, value in state.items()}, path)
    return path


def kohya(backbone: Any, name: str, pairs: Pairs) -> dict[str, Tensor]:
    """The layer in Kohya's layout with an alpha of 1: what is read is half of what is written."""
    down, up = pairs[name]
    if isinstance(backbone, FluxBackbone):
        key = f"lora_unet_{FLUX[name]}"
        if key.endswith("qkv"):
            up = torch.cat([pairs[re.sub("to_[qkv]$", f"to_{x}", name)][1] for x in "qkv"])
    elif name.startswith("te:"):
        key = "lora_te_text_model_" + name.removeprefix("te:").replace(".", "_")
    else:
        key = "lora_unet_" + (SDXL[name] if backbone.is_xl else name.replace(".", "_"))
    return {f"{key}.lora_down.weight": RANK * down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}


# --- painting -----------------------------------------------------------------------------------------------------


def plan_of(backbone: Any, *conditions: Any, prompt: str = "a street", **settings: Any) -> Plan:
    steps = {"num_inference_steps": 2} | ({} if isinstance(backbone, UNetBackbone) else {"max_sequence_length": 16})
    return make_plan(Scene(prompt, conditions, **SMALL | steps | settings), backbone, METHODS)


def latents_of(backbone: Any, *conditions: Any, **settings: Any) -> Tensor:
    """Paint, and return the clean latents instead of pictures."""
    found: list[Tensor] = []
    decode = type(backbone).decode
    try:
        type(backbone).decode = lambda self, latents, *grid: found.append(latents) or decode(self, latents, *grid)
        paint([plan_of(backbone, *conditions, **settings)], backbone)
    finally:
        type(backbone).decode = decode
    return torch.cat(found)


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def test_every_layout_paints_the_same(backbone: Any, tmp_path: Path) -> None:
    pairs = pairs_for(backbone, LAYERS[kind_of(backbone)])
    found = []
    for layout in ("peft", "diffusers", "kohya"):
        lora = Lora(write(tmp_path / f"{layout}.safetensors", backbone, pairs, layout))
        found.append(latents_of(backbone, lora))
    assert off(found[1], found[0]) <= 1e-5
    assert off(found[2], found[0]) <= 1e-5
    assert off(found[0], latents_of(backbone)) > 1e-3


def test_several_add_up_in_any_order(backbone: Any, tmp_path: Path) -> None:
    layers = LAYERS[kind_of(backbone)]
    one, two = (pairs_for(backbone, layers, seed) for seed in (2, 5))
    sum_of = {n: (torch.cat([one[n][0], two[n][0]]), torch.cat([0.5 * one[n][1], -2 * two[n][1]], 1)) for n in layers}
    first = Lora(write(tmp_path / "one.safetensors", backbone, one), weight=0.5)
    second = Lora(write(tmp_path / "two.safetensors", backbone, two, "kohya"), weight=-2.0)
    both = latents_of(backbone, first, second)
    assert off(latents_of(backbone, second, first), both) <= 1e-5
    together = Lora(write(tmp_path / "both.safetensors", backbone, sum_of))
    assert off(latents_of(backbone, together), both) <= 1e-5
    assert min(off(latents_of(backbone, lora), both) for lora in (first, second)) > 1e-3


def test_weight_scales_and_weight_0_is_none(backbone: Any, tmp_path: Path) -> None:
    layers = LAYERS[kind_of(backbone)]
    once = write(tmp_path / "once.safetensors", backbone, pairs_for(backbone, layers))
    twice = write(tmp_path / "twice.safetensors", backbone, pairs_for(backbone, layers, size=2.0))
    assert off(latents_of(backbone, Lora(once, weight=2.0)), latents_of(backbone, Lora(twice))) <= 1e-5
    assert off(latents_of(backbone, Lora(once, weight=2.0)), latents_of(backbone, Lora(once))) > 1e-3
    assert torch.equal(latents_of(backbone, Lora(once, weight=0)), latents_of(backbone))


def odd(path: Path, backbone: Any, layers: Sequence[str], **extra: Tensor) -> Lora:
    return Lora(write(path, backbone, pairs_for(backbone, layers), **extra))


def test_files_that_do_not_fit_are_refused(backbone: Any, tmp_path: Path) -> None:
    own = "transformer" if kind_of(backbone) == "flux" else "unet"
    layer = LAYERS[kind_of(backbone)][0]
    strange = {f"{own}.nowhere.to_q.lora_{x}.weight": torch.randn(shape) for x, shape in (("A", (2, 8)), ("B", (8, 2)))}
    path = tmp_path / "odd.safetensors"
    before = backbone.fingerprint()
    for layers, extra, sentence in (
        ([], strange, "could not be put on this model|fits no layer"),
        ([layer], strange, "only 1 of its 2 layers do"),
        ([layer], {k.replace(own, "elsewhere"): v for k, v in strange.items()}, "only 1 of its 2 layers do"),
    ):
        with pytest.raises(CapriccioError, match=sentence):
            latents_of(backbone, odd(path, backbone, layers, **extra))
    _, (down, up) = next(iter(pairs_for(backbone, [layer]).items()))
    with pytest.raises(CapriccioError, match="could not be put on this model"):
        latents_of(backbone, Lora(write(path, backbone, {layer: (torch.cat([down, down], 1), up)})))
    with pytest.raises(CapriccioError, match="could not be put on this model"):
        latents_of(backbone, Lora(write(path, backbone, {layer: (down, up[:-1])})))
    assert backbone.fingerprint() == before


def test_what_a_reader_of_foreign_layouts_leaves_out_is_told(flux: FluxBackbone, tmp_path: Path) -> None:
    pairs = pairs_for(flux, list(FLUX))
    scale = {"lora_unet_double_blocks_0_img_attn_proj.dora_scale": torch.ones(32, 1)}
    left = {"lora_te1_text_model_encoder_layers_0_mlp_fc1.oft_blocks": torch.ones(2, 2)}
    for extra in (scale, left):
        path = write(tmp_path / "odd.safetensors", flux, pairs, "kohya", **extra)
        with pytest.raises(CapriccioError, match="diffusers leaves out"):
            latents_of(flux, Lora(path))


def test_kohya_files_of_another_width_are_refused(flux: FluxBackbone, tmp_path: Path) -> None:
    key = "lora_unet_single_blocks_0_linear1"
    path = tmp_path / "wide.safetensors"
    save_file({f"{key}.lora_down.weight": torch.ones(2, 32), f"{key}.lora_up.weight": torch.ones(64, 2)}, path)
    with pytest.raises(CapriccioError, match="could not be put on this model"):
        latents_of(flux, Lora(path))


def test_beside_fused_loras_none_is_heard_so_it_is_refused(backbone: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", backbone, pairs_for(backbone, LAYERS[kind_of(backbone)][:2]))
    pipe = backbone.pipe
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name, adapter_name="mine")
    pipe.fuse_lora()
    try:
        with pytest.raises(CapriccioError, match=r"fused into its weights.*call unfuse_lora\(\)"):
            latents_of(backbone, Lora(path))
    finally:
        pipe.unfuse_lora()
        pipe.unload_lora_weights()


# --- regions ------------------------------------------------------------------------------------------------------

PLACES = {
    "flux": [
        "x_embedder",
        "context_embedder",
        "transformer_blocks.0.attn.to_v",
        "transformer_blocks.1.attn.add_k_proj",
        "transformer_blocks.1.attn.to_add_out",
        "transformer_blocks.0.ff_context.net.0.proj",
        "single_transformer_blocks.0.attn.to_q",
        "single_transformer_blocks.1.proj_mlp",
        "proj_out",
    ],
    "sd15": [
        "conv_in",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v",
        "down_blocks.0.downsamplers.0.conv",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
        "mid_block.attentions.0.proj_in",
        "mid_block.resnets.1.conv2",
        "up_blocks.0.upsamplers.0.conv",
        "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.2",
        "conv_out",
    ],
}
PLACES["sdxl"] = [
    "conv_in",
    "down_blocks.1.attentions.0.proj_in",
    "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_v",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "up_blocks.1.resnets.0.conv_shortcut",
]
IMAGE, TEXT = 96, 16
GRIDS = {0: (16, 24), 1: (8, 12)}


def expected(kind: str, name: str, side: int, read: bool, twin: bool) -> tuple[int, np.ndarray]:
    """Return how many tokens pass a layer and which are of the left (0) or right (1) half, written down by hand."""
    rows, columns = (8, 12) if kind == "flux" else GRIDS[level(kind, name)]
    half = np.zeros((rows, columns), bool)
    half[:, columns // 2 * side : columns // 2 * (side + 1)] = True
    length = TEXT if kind == "flux" else 77
    text = np.zeros(length * (3 if read else 1), bool)
    if read:
        text[length * (side + 1) : length * (side + 2)] = True
    if any(part in name for part in ("context", "add_", "attn2.to_k", "attn2.to_v")):
        return len(text), text
    if name.startswith("single"):
        whole = np.concatenate([text, np.zeros(IMAGE * twin, bool), half.reshape(-1)])
        return len(whole), whole
    return half.size, half.reshape(-1)


def level(kind: str, name: str) -> int:
    fine = name.startswith(("conv_", "down_blocks.0.att", "up_blocks.0.up", "up_blocks.1"))
    return 0 if fine else 1


def inputs_of(layer: nn.Module, kind: str, name: str, tokens: int) -> Tensor:
    """Two rows of noise that give this many tokens behind the layer."""
    base = layer.get_base_layer()
    if not isinstance(base, nn.Conv2d):
        return torch.randn(2, tokens, base.in_features)
    rows, columns = GRIDS[level(kind, name)]
    step = base.stride[0]
    return torch.randn(2, base.in_channels, rows * step, columns * step)


def added(layer: nn.Module, given: Tensor, without: bool = False) -> Tensor:
    """What a layer gives beside what its base gives: (2, tokens, width)."""
    change = layer(given) - layer.get_base_layer()(given)
    return change.flatten(2).transpose(1, 2) if change.ndim == 4 else change


def regional(backbone: Any, tmp_path: Path, layers: Sequence[str]) -> list[Lora]:
    return [
        Lora(write(tmp_path / f"ink-{name}.safetensors", backbone, pairs_for(backbone, layers, seed)), region=name)
        for name, seed in (("mug", 2), ("hat", 5))
    ]


def test_each_region_has_its_own_lora_in_every_layer(backbone: Any, tmp_path: Path) -> None:
    """In every phase: its delta at its own tokens, that of the other at the other's, and none at all elsewhere."""
    torch.manual_seed(0)
    kind = kind_of(backbone)
    layers = PLACES[kind]
    loras = regional(backbone, tmp_path, layers)
    plan = plan_of(backbone, LEFT, RIGHT, *loras, num_inference_steps=4, true_cfg_scale=2.0)
    assert plan.regions == {"mug": "region/1", "hat": "region/2"}
    passes = [(phase, one) for phase in plan.phases for one in phase.passes]
    with backbone.adapters(plan.engine, plan.loras, plan.regions) as limits, torch.no_grad():
        for name in layers:
            layer = backbone.base.get_submodule(name)
            ours = list(layer.lora_B)
            for phase, one in passes:
                read = "positive" in one.roles and phase is plan.phases[0]
                (count, left), (_, right) = (expected(kind, name, side, read, twin=read) for side in (0, 1))
                limits.tell(one.compiled)
                given = inputs_of(layer, kind, name, count)
                both = added(layer, given)
                alone = []
                for adapter in ours:
                    layer.set_adapter([adapter])
                    alone.append(layer.lora_B[adapter].forward(layer.lora_A[adapter](given)))
                layer.set_adapter(ours)
                alone = [x.flatten(2).transpose(1, 2) if x.ndim == 4 else x for x in alone]
                assert both.shape[1] == count
                assert not (left & right).any()
                nowhere = torch.from_numpy(~left & ~right)
                assert torch.equal(both[:, nowhere], torch.zeros_like(both[:, nowhere]))
                for mask, change in zip((left, right), alone, strict=True):
                    rows = torch.from_numpy(mask)
                    assert torch.allclose(both[:, rows], change[:, rows], atol=1e-5)
                    assert not rows.any() or change[:, rows].abs().max() > 1e-2


def test_in_a_picture_a_layer_changes_at_the_tokens_of_the_region_alone(backbone: Any, tmp_path: Path) -> None:
    """While painting: every output of ``lora_B`` is zero but there, in all steps and rows."""
    kind = kind_of(backbone)
    name = PLACES[kind][0]
    lora = regional(backbone, tmp_path, [name])[0]
    seen: list[Tensor] = []
    inside = type(backbone).predict

    def predict(self: Any, *arguments: Any) -> Tensor:
        (layer,) = adapted(self.base, next(iter(self.base.peft_config))).values()
        (module,) = layer.lora_B.values()
        handle = module.register_forward_hook(lambda module, given, output: seen.append(output))
        try:
            return inside(self, *arguments)
        finally:
            handle.remove()

    try:
        type(backbone).predict = predict
        latents_of(backbone, LEFT, RIGHT, lora, num_inference_steps=4, true_cfg_scale=2.0)
    finally:
        type(backbone).predict = inside
    _, left = expected(kind, name, 0, read=False, twin=False)
    assert sum(len(output) for output in seen) == 8
    for output in seen:
        tokens = output.flatten(2).transpose(1, 2) if output.ndim == 4 else output
        assert torch.equal((tokens != 0).any(-1).any(0), torch.from_numpy(left))
        assert (tokens[:, torch.from_numpy(left)] != 0).any(-1).any(1).all()


def test_a_region_of_everything_is_the_lora_everywhere(backbone: Any, tmp_path: Path) -> None:
    """With nothing mixed in from the prompt, whose text and twin are no part of the region."""
    options = {"base_ratio": 0.0, "mask_inject_steps": 2}
    whole = Region("a mug", box=(0, 0, 1, 1), name="all", options=options)
    path = write(tmp_path / "x.safetensors", backbone, pairs_for(backbone, PLACES[kind_of(backbone)]))
    one = {"true_cfg_scale": 1.0}  # other branches read the prompt's text, which is no region's
    limited, everywhere = (latents_of(backbone, whole, Lora(path, region=name), **one) for name in ("all", None))
    assert off(limited, everywhere) <= 1e-5
    assert off(limited, latents_of(backbone, whole, **one)) > 1e-3


def test_image_layers_of_a_region_of_everything_are_exact_with_a_base_as_well(backbone: Any, tmp_path: Path) -> None:
    """Double blocks share the image between both streams, so there the base hears the LoRA as before."""
    whole = Region("a mug", box=(0, 0, 1, 1), name="all")
    layers = {"flux": ["transformer_blocks.0.attn.to_v"]}.get(kind_of(backbone), ["conv_in"])
    path = write(tmp_path / "x.safetensors", backbone, pairs_for(backbone, layers))
    limited, everywhere = (
        latents_of(backbone, whole, Lora(path, region=name), true_cfg_scale=2.0) for name in ("all", None)
    )
    assert off(limited, everywhere) <= 1e-5


def test_the_twin_is_no_part_of_a_region(flux: FluxBackbone, tmp_path: Path) -> None:
    plan = plan_of(flux, LEFT, RIGHT)
    compiled = plan.phases[0].passes[0].compiled
    stream = flux.stream(None, "single_transformer_blocks.1.proj_mlp")
    assert stream == Stream("joint", block="single_transformer_blocks.1")
    tokens = tokens_at(compiled, stream, "region/1")
    assert tokens.shape == (3 * TEXT + 2 * IMAGE,)
    assert not tokens[3 * TEXT : 3 * TEXT + IMAGE].any()
    assert tokens[3 * TEXT + IMAGE :].sum() == IMAGE // 2


def test_a_region_of_no_strength_still_has_its_lora(flux: FluxBackbone, tmp_path: Path) -> None:
    weak = [Region(place.prompt, box=place.box, strength=0, name=place.name) for place in (LEFT, RIGHT)]
    first, second = regional(flux, tmp_path, ["proj_out"])
    plain = latents_of(flux, num_inference_steps=1)
    for lora, half in ((first, slice(0, 6)), (second, slice(6, 12))):
        found = latents_of(flux, *weak, lora, num_inference_steps=1)
        changed = (found != plain).any(-1).reshape(8, 12)
        assert changed[:, half].all()
        assert int(changed.sum()) == IMAGE // 2


def test_the_order_of_regional_loras_does_not_matter(backbone: Any, tmp_path: Path) -> None:
    first, second = regional(backbone, tmp_path, PLACES[kind_of(backbone)])
    both = latents_of(backbone, LEFT, RIGHT, first, second)
    assert off(latents_of(backbone, LEFT, RIGHT, second, first), both) <= 1e-5
    swapped = [Lora(first.path, region="hat"), Lora(second.path, region="mug")]
    assert off(latents_of(backbone, LEFT, RIGHT, *swapped), both) > 1e-3


def test_a_batch_equals_singles(backbone: Any, tmp_path: Path) -> None:
    loras = regional(backbone, tmp_path, PLACES[kind_of(backbone)])
    both = latents_of(backbone, LEFT, RIGHT, *loras, num_images=2)
    singles = torch.cat([latents_of(backbone, LEFT, RIGHT, *loras, seed=seed) for seed in (3, 4)])
    assert off(both, singles) <= 1e-4


def test_plain_and_regional_loras_work_together(flux: FluxBackbone, tmp_path: Path) -> None:
    first, second = regional(flux, tmp_path, ["x_embedder"])
    with flux.adapters(None, [Lora(first.path), second], {"hat": "region/2"}) as limits, torch.no_grad():
        limits.tell(plan_of(flux, LEFT, RIGHT).compiled)
        layer = flux.base.x_embedder
        given = torch.randn(1, IMAGE, layer.in_features)
        one, two = (layer.lora_B[name].forward(layer.lora_A[name](given)) for name in layer.lora_B)
        _, right = expected("flux", "x_embedder", 1, read=False, twin=False)
        change = one + two * torch.from_numpy(right)[:, None]
        assert torch.allclose(added(layer, given), change, atol=1e-5)


# --- what is put back ---------------------------------------------------------------------------------------------


def hooks(backbone: Any) -> list[int]:
    return [len(module._forward_hooks) for part in backbone.parts.values() for module in part.modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(backbone: Any, tmp_path: Path, fails: bool) -> None:
    loras = regional(backbone, tmp_path, PLACES[kind_of(backbone)])
    before, plain, found = backbone.fingerprint(), latents_of(backbone, LEFT, RIGHT), hooks(backbone)
    plan = plan_of(backbone, LEFT, RIGHT, *loras)

    def stop(progress: Any) -> None:
        assert hooks(backbone) != found
        if fails:
            raise KeyError("stop")

    if fails:
        with pytest.raises(KeyError):
            paint([plan], backbone, stop)
    else:
        paint([plan], backbone, stop)
    assert hooks(backbone) == found
    assert backbone.fingerprint() == before
    assert not backbone.pipe.get_list_adapters()
    assert torch.equal(latents_of(backbone, LEFT, RIGHT), plain)


def test_a_forward_of_an_untold_layout_is_refused(flux: FluxBackbone, tmp_path: Path) -> None:
    lora = regional(flux, tmp_path, ["x_embedder"])[0]
    with flux.adapters(None, [lora], {"mug": "region/1"}) as limits, torch.no_grad():
        layer = flux.base.x_embedder
        with pytest.raises(CapriccioError, match=r"call limits.tell\(compiled\)"):
            layer(torch.randn(1, IMAGE, layer.in_features))
        limits.tell(plan_of(flux, LEFT, RIGHT).compiled)
        with pytest.raises(CapriccioError, match=r"\(95,\) tokens, but the token layout has \(96,\)"):
            layer(torch.randn(1, IMAGE - 1, layer.in_features))


# --- the plan -----------------------------------------------------------------------------------------------------


def test_the_plan_says_where_a_lora_works(flux: FluxBackbone) -> None:
    plan = plan_of(flux, LEFT, RIGHT, Lora("folder/ink.safetensors", weight=0.5, region="hat"), Lora("b.safetensors"))
    said = "LoRA ink.safetensors x 0.5, in the region 'hat' alone: image:region/2, and text:region/2 while it is read"
    assert plan.sections()["weights"] == [said, "LoRA b.safetensors x 1"]
    assert said in str(plan)


def test_pictures_are_painted_together_only_where_loras_have_the_same_places(flux: FluxBackbone) -> None:
    def key(*conditions: Any) -> Any:
        return plan_of(flux, *conditions).batch_key

    mug, hat = (Lora("ink.safetensors", region=name) for name in ("mug", "hat"))
    assert key(LEFT, RIGHT, mug) == key(LEFT, RIGHT, mug)
    swapped = [Region(LEFT.prompt, box=LEFT.box, name="hat"), Region(RIGHT.prompt, box=RIGHT.box, name="mug")]
    others = [(LEFT, RIGHT, hat), (LEFT, RIGHT, Lora("ink.safetensors")), (RIGHT, LEFT, mug), (*swapped, mug)]
    assert all(key(*other) != key(LEFT, RIGHT, mug) for other in others)


def test_a_scene_with_a_regional_lora_travels(tmp_path: Path) -> None:
    scene = Scene("a street", [LEFT, Lora("someone/ink", region="mug")], **SMALL)
    assert Scene.load(scene.save(tmp_path / "scene.yaml")) == scene


# --- bad input ----------------------------------------------------------------------------------------------------


def test_a_region_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(CapriccioError, match=r"'ink' is limited to the region 'mgu'.*'mug'"):
        Scene("a street", [LEFT, RIGHT, Lora("ink", region="mgu")])
    with pytest.raises(CapriccioError, match="no region of the scene has a name; give it one"):
        Scene("a street", [Region("a mug", box=(0, 0, 1, 1)), Lora("ink", region="mug")])


def test_a_method_without_regional_tokens_refuses(flux: FluxBackbone) -> None:
    plain = Method("plain", "", "", "", (frozenset({"region"}),), AttentionProgram, lambda draft, *_: draft)
    with pytest.raises(CapriccioError, match="gives regions no tokens of their own"):
        make_plan(Scene("a street", [LEFT, Lora("ink", region="mug")], **SMALL), flux, {"plain": plain})


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        ("flux", "transformer_blocks.0.norm1.linear"),
        ("flux", "single_transformer_blocks.1.norm.linear"),
        ("flux", "norm_out.linear"),
        ("flux", "time_text_embed.timestep_embedder.linear_1"),
        ("sd15", "time_embedding.linear_1"),
        ("sd15", "down_blocks.0.resnets.0.time_emb_proj"),
        ("sdxl", "add_embedding.linear_1"),
    ],
)
def test_layers_of_no_tokens_are_refused(kind: str, layer: str, tmp_path: Path) -> None:
    backbone = new(kind)
    before = backbone.fingerprint()
    first, _ = regional(backbone, tmp_path, [layer])
    latents_of(backbone, LEFT, RIGHT, Lora(first.path))
    with pytest.raises(CapriccioError, match=f"cannot be limited to it in the layer {layer}, whose output is shared"):
        latents_of(backbone, LEFT, RIGHT, first)
    assert backbone.fingerprint() == before
    assert not backbone.pipe.get_list_adapters()


def test_text_encoders_are_refused(tmp_path: Path) -> None:
    backbone = new("sd15")
    first, _ = regional(backbone, tmp_path, SD15)
    with pytest.raises(CapriccioError, match=r"changes the text encoder too.*lora_te"):
        latents_of(backbone, LEFT, RIGHT, first)


class Linear8bit(nn.Linear):
    """A quantised layer as libraries of quantisation have it."""


def test_quantised_layers_are_refused(tmp_path: Path) -> None:
    backbone = new("flux")
    loras = regional(backbone, tmp_path, ["x_embedder"])
    backbone.base.x_embedder.__class__ = Linear8bit
    latents_of(backbone, LEFT, RIGHT, Lora(loras[0].path))
    with pytest.raises(CapriccioError, match=r"x_embedder, which is a Linear8bit: quantised.*without quantisation"):
        latents_of(backbone, LEFT, RIGHT, *loras)


def test_what_is_no_plain_lora_is_refused(tmp_path: Path) -> None:
    backbone = new("flux")
    config = LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["x_embedder"], use_dora=True)
    backbone.base.add_adapter(config, adapter_name="dora")
    backbone.base.save_lora_adapter(tmp_path, adapter_name="dora")
    backbone.base.delete_adapters("dora")
    state = {f"transformer.{k}": v for k, v in torch_file(tmp_path).items()}
    save_file(state, tmp_path / "dora.safetensors")
    with pytest.raises(CapriccioError, match="no plain LoRA"):
        latents_of(backbone, LEFT, RIGHT, Lora(tmp_path / "dora.safetensors", region="mug"))


def torch_file(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "pytorch_lora_weights.safetensors")
