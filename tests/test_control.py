"""Control pictures: diffusers' own ControlNet pipelines to the last bit, on both families, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import (
    AutoencoderKL,
    FluxControlNetPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionPipeline,
)
from diffusers.pipelines.flux import pipeline_flux_controlnet
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from capriccio.backbones.flux import FluxBackbone
from capriccio.backbones.loading import open_backbone
from capriccio.backbones.unet import UNetBackbone
from capriccio.controls import window
from capriccio.errors import CapriccioError
from capriccio.methods import METHODS
from capriccio.plan import Plan, make_plan
from capriccio.sampling import paint
from capriccio.scene import Control, Edit, Lora, Region, Scene, Subject
from capriccio.studio import Studio

SIZE = {"width": 48, "height": 32}
REGIONS = (Region("a mug", box=(0, 0, 24, 32)), Region("a red hat", box=(24, 0, 48, 32)))


def drawing(seed: int = 0, size: tuple[int, int] = (48, 32)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8))


EDGES, DEPTH = drawing(1), drawing(2)


def half(size: tuple[int, int] = (48, 32)) -> Image.Image:
    """White in the left half."""
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def new(family: str) -> Any:
    """A backbone with the nets ``edges``, ``depth``, on FLUX and SDXL ``union``, on U-Nets ``shuffle`` as well."""
    if family == "flux":
        pipe = tiny.flux()
        nets = {"edges": tiny.control_flux(), "depth": tiny.control_flux(seed=6), "union": tiny.control_flux(7)}
        return FluxBackbone(pipe, controlnet=tiny.controlnet(pipe.transformer), controlnets=nets)
    pipe = tiny.stable_diffusion(family)
    nets = {"edges": tiny.control_unet(pipe.unet), "depth": tiny.control_unet(pipe.unet, seed=6)}
    nets |= {"shuffle": tiny.control_unet(pipe.unet, seed=8, global_pool_conditions=True)}
    nets |= {"union": tiny.control_union(pipe.unet)} if family == "sdxl" else {}
    return UNetBackbone(pipe, controlnets=nets)


@pytest.fixture(scope="module")
def flux() -> FluxBackbone:
    return new("flux")


@pytest.fixture(scope="module")
def sdxl() -> UNetBackbone:
    return new("sdxl")


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def unet(request: pytest.FixtureRequest) -> UNetBackbone:
    return new(request.param)


@pytest.fixture(scope="module", params=["flux", "sd15", "sdxl"])
def backbone(request: pytest.FixtureRequest) -> Any:
    return new(request.param)


def plan_of(backbone: Any, *conditions: Any, prompt: str = "a street", **settings: Any) -> Plan:
    room = {} if isinstance(backbone, UNetBackbone) else {"max_sequence_length": 24}
    return make_plan(
        Scene(prompt, conditions, **{"seed": 3, "num_inference_steps": 4} | SIZE | room | settings), backbone, METHODS
    )


def latents_of(backbone: Any, *conditions: Any, **settings: Any) -> Tensor:
    """Paint, and return the clean latents instead of pictures."""
    return latents_from(backbone, plan_of(backbone, *conditions, **settings))


def latents_from(backbone: Any, *plans: Plan) -> Tensor:
    found: list[Tensor] = []
    decode, backbone.decode = backbone.decode, lambda latents, *grid: found.append(latents) or decode(latents, *grid)
    try:
        paint(plans, backbone)
    finally:
        del backbone.decode
    return torch.cat(found)


def stock(backbone: Any, monkeypatch: pytest.MonkeyPatch, names: list[str], images: list[Any], **settings: Any) -> Any:
    """The latents of diffusers' own ControlNet pipeline, given one net or several."""
    nets = [backbone.controlnets[name] for name in names]
    one = len(nets) == 1
    parts = backbone.pipe.components | {"controlnet": nets[0] if one else nets}
    room: dict[str, Any] = SIZE | {"num_inference_steps": 4, "output_type": "latent"}
    if isinstance(backbone, FluxBackbone):
        # It draws from the posterior, out of the generator of the noise; a seed is no longer that seed.
        mode = lambda encoded, **_: encoded.latent_dist.mode()  # noqa: E731
        monkeypatch.setattr(pipeline_flux_controlnet, "retrieve_latents", mode)
        if one or len({*names}) > 1:
            pipe = FluxControlNetPipeline(**parts)
        else:  # pictures of several modes for one union
            pipe = FluxControlNetPipeline(**parts | {"controlnet": [nets[0]]})
        room |= {"max_sequence_length": 24, "guidance_scale": 3.5}
        key = "control_image"
    elif backbone.is_xl:
        pipe = StableDiffusionXLControlNetPipeline(**parts, add_watermarker=False)
        key = "image"
    else:
        pipe = StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
        key = "image"
    pipe.set_progress_bar_config(disable=True)
    settings[key] = images[0] if one else images
    generator = torch.Generator().manual_seed(3)
    return pipe("a street", generator=generator, **room | settings).images


def union_stock(backbone: Any, image: Any, mode: Any, **settings: Any) -> Tensor:
    """The latents of diffusers' pipeline of the union of SDXL."""
    pipe = StableDiffusionXLControlNetUnionPipeline(
        **backbone.pipe.components | {"controlnet": backbone.controlnets["union"]}, add_watermarker=False
    )
    pipe.set_progress_bar_config(disable=True)
    room: dict[str, Any] = SIZE | {"num_inference_steps": 4, "output_type": "latent"}
    generator = torch.Generator().manual_seed(3)
    return pipe("a street", control_image=image, control_mode=mode, generator=generator, **room | settings).images


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


# --- as in diffusers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"controlnet_conditioning_scale": 0.6},
        {"controlnet_conditioning_scale": 1.5, "control_guidance_start": 0.25, "control_guidance_end": 0.8},
    ],
    ids=["plain", "weak", "window"],
)
@pytest.mark.parametrize("guided", [False, True], ids=["alone", "guided"])
def test_one_net_is_diffusers_to_the_last_bit(
    backbone: Any, settings: dict[str, Any], guided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_flux = isinstance(backbone, FluxBackbone)
    scale = "true_cfg_scale" if is_flux else "guidance_scale"
    numbers = {scale: 3.0, "negative_prompt": "a dog"} if guided else {} if is_flux else {scale: 1.0}
    ours = latents_of(backbone, Control(EDGES, "edges", **settings), **numbers)
    assert torch.equal(ours, stock(backbone, monkeypatch, ["edges"], [EDGES], **settings, **numbers))
    assert off(ours, latents_of(backbone, **numbers)) > 1e-4


def test_two_nets_are_diffusers_to_the_last_bit(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names, pictures = ["edges", "depth"], [EDGES, DEPTH]
    scales, starts, ends = [0.5, 0.9], [0.0, 0.25], [0.8, 1.0]
    given = zip(pictures, names, scales, starts, ends, strict=True)
    controls = [
        Control(image, net, controlnet_conditioning_scale=s, control_guidance_start=a, control_guidance_end=b)
        for image, net, s, a, b in given
    ]
    settings = {"controlnet_conditioning_scale": scales, "control_guidance_start": starts, "control_guidance_end": ends}
    theirs = stock(backbone, monkeypatch, names, pictures, **settings)
    assert torch.equal(latents_of(backbone, *controls), theirs)


def test_a_union_is_diffusers_to_the_last_bit(flux: FluxBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    depth = latents_of(flux, Control(DEPTH, "union", mode="depth"))
    assert torch.equal(depth, stock(flux, monkeypatch, ["union"], [DEPTH], control_mode=2))
    assert torch.equal(depth, latents_of(flux, Control(DEPTH, "union", mode=2)))
    assert not torch.equal(depth, latents_of(flux, Control(DEPTH, "union", mode="pose")))


@pytest.mark.parametrize("net", ["edges", "shuffle"])
@pytest.mark.parametrize("guided", [False, True], ids=["alone", "guided"])
def test_guess_mode_is_diffusers_to_the_last_bit(
    unet: UNetBackbone, net: str, guided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A net that pools its picture is in guess mode without being asked."""
    numbers = {"guidance_scale": 3.0, "negative_prompt": "a dog"} if guided else {"guidance_scale": 1.0}
    control = Control(EDGES, net, controlnet_conditioning_scale=0.8, guess_mode=net == "edges")
    plan = plan_of(unet, control, **numbers)
    assert "the prompt's branch alone (guess mode)" in plan.sections()["controls"][0]
    ours = latents_from(unet, plan)
    settings = {"controlnet_conditioning_scale": 0.8, "guess_mode": net == "edges"}
    assert torch.equal(ours, stock(unet, monkeypatch, [net], [EDGES], **settings, **numbers))
    assert off(ours, latents_of(unet, **numbers)) > 1e-5
    if net == "edges":
        assert not torch.equal(ours, latents_of(unet, control.model_copy(update={"guess_mode": False}), **numbers))


def test_two_nets_that_guess_are_diffusers_to_the_last_bit(unet: UNetBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    controls = [Control(EDGES, "edges", guess_mode=True), Control(DEPTH, "depth", guess_mode=True)]
    theirs = stock(unet, monkeypatch, ["edges", "depth"], [EDGES, DEPTH], guess_mode=True)
    assert torch.equal(latents_of(unet, *controls), theirs)
    one = [controls[0], Control(DEPTH, "depth")]  # diffusers has one setting for all
    assert not torch.equal(latents_of(unet, *one), theirs)


def test_a_net_that_pools_its_picture_steers_its_place_alone(unet: UNetBackbone) -> None:
    found: list[Any] = []
    steer, unet.steer = unet.steer, lambda *a: found.append(steer(*a)) or found[-1]
    try:
        latents_of(unet, Control(EDGES, "shuffle", mask=half()), num_inference_steps=1, guidance_scale=3.0)
    finally:
        del unet.steer
    for value in (*found[0]["down_block_additional_residuals"], found[0]["mid_block_additional_residual"]):
        without, steered = value
        columns = value.shape[-1]
        assert not without.any()
        assert steered[..., : columns // 2].abs().min() > 0
        assert not steered[..., columns // 2 :].any()


@pytest.mark.parametrize(
    ("settings", "guidance"),
    # With guess mode and guidance, diffusers' pipeline of the union gives it rows of two sizes, and stops.
    [({}, 1.0), ({}, 3.0), ({"guess_mode": True}, 1.0), ({"controlnet_conditioning_scale": 0.6}, 3.0)],
    ids=str,
)
def test_the_union_of_sdxl_is_diffusers_to_the_last_bit(
    sdxl: UNetBackbone, settings: dict[str, Any], guidance: float
) -> None:
    numbers = {"guidance_scale": guidance}
    depth = latents_of(sdxl, Control(DEPTH, "union", mode="depth", **settings), **numbers)
    assert torch.equal(depth, union_stock(sdxl, [DEPTH], [1], **settings, **numbers))
    assert torch.equal(depth, latents_of(sdxl, Control(DEPTH, "union", mode=1, **settings), **numbers))
    assert not torch.equal(depth, latents_of(sdxl, Control(DEPTH, "union", mode="canny", **settings), **numbers))
    both = [Control(DEPTH, "union", mode="depth", **settings), Control(EDGES, "union", mode="canny", **settings)]
    theirs = union_stock(sdxl, [DEPTH, EDGES], [1, 3], **settings, **numbers)
    assert torch.equal(latents_of(sdxl, *both, **numbers), theirs)


def test_pictures_of_a_union_have_strengths_and_places_of_their_own(sdxl: UNetBackbone) -> None:
    depth, edges = Control(DEPTH, "union", mode="depth"), Control(EDGES, "union", mode="canny")
    both = latents_of(sdxl, depth, edges)
    for settings in ({"controlnet_conditioning_scale": 0.5}, {"mask": half()}, {"control_guidance_end": 0.5}):
        assert off(both, latents_of(sdxl, depth, Control(EDGES, "union", mode="canny", **settings))) > 1e-4


def test_several_modes_and_nets_are_diffusers_to_the_last_bit(
    flux: FluxBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    controls = [Control(DEPTH, "union", mode="depth"), Control(EDGES, "edges", controlnet_conditioning_scale=0.5)]
    settings: dict[str, Any] = {"control_mode": [2, None], "controlnet_conditioning_scale": [1.0, 0.5]}
    theirs = stock(flux, monkeypatch, ["union", "edges"], [DEPTH, EDGES], **settings)
    assert torch.equal(latents_of(flux, *controls), theirs)


def test_half_precision_is_diffusers_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = new("sd15")
    backbone.pipe.to(torch.bfloat16)
    for net in backbone.controlnets.values():
        net.to(torch.bfloat16)
    ours = latents_of(backbone, Control(EDGES, "edges"))
    assert torch.equal(ours, stock(backbone, monkeypatch, ["edges"], [EDGES]))


@pytest.mark.parametrize(("start", "end", "steps"), [(0, 1, 7), (0.1, 0.9, 10), (0.3, 0.5, 11), (0.5, 1, 24)])
def test_windows_are_those_of_diffusers(start: float, end: float, steps: int) -> None:
    kept = [i for i in range(steps) if not (i / steps < start or (i + 1) / steps > end)]
    control = Control(EDGES, control_guidance_start=start, control_guidance_end=end)
    assert list(window(control, steps)) == kept


# --- what is ours -------------------------------------------------------------------------------------------------


def test_without_scale_it_is_plain_painting_bit_for_bit(backbone: Any) -> None:
    neutral = Control(EDGES, "edges", controlnet_conditioning_scale=0)
    plan = plan_of(backbone, neutral)
    assert plan.controls == ()
    assert any("controlnet_conditioning_scale 0 and is left out" in note for note in plan.notes)
    assert torch.equal(latents_from(backbone, plan), latents_of(backbone))


def test_a_mask_of_ones_is_no_mask_and_one_of_a_half_steers_a_half(backbone: Any) -> None:
    everywhere = latents_of(backbone, Control(EDGES, "edges"))
    white = Control(EDGES, "edges", mask=Image.new("L", (48, 32), 255))
    assert torch.equal(latents_of(backbone, white), everywhere)
    left = Control(EDGES, "edges", mask=half())
    plan = plan_of(backbone, left)
    assert "in its place on the canvas alone" in plan.sections()["controls"][0]
    found = latents_from(backbone, plan)
    assert off(found, everywhere) > 1e-4
    assert off(found, latents_of(backbone)) > 1e-4


def test_residuals_are_nothing_outside_the_mask(backbone: Any) -> None:
    found: list[Any] = []
    steer, backbone.steer = backbone.steer, lambda *a: found.append(steer(*a)) or found[-1]
    try:
        latents_of(backbone, Control(EDGES, "edges", mask=half()), num_inference_steps=1, true_cfg_scale=1.0)
    finally:
        del backbone.steer
    (residuals,) = found
    for value in residuals.values():
        for sample in value if isinstance(value, list) else [value]:
            grid = sample.unflatten(1, (8, 12)).movedim(-1, 1) if sample.ndim == 3 else sample
            columns = grid.shape[-1]
            assert grid[..., : columns // 2].abs().min() > 0
            assert not grid[..., columns // 2 :].any()


def test_a_picture_of_another_size_is_fitted_and_that_is_said(backbone: Any) -> None:
    tall = Control(drawing(4, (32, 64)), "edges")
    plan = plan_of(backbone, tall)
    (says,) = (p.says for p in plan.preparations if p.name == "control:1")
    assert "resized to 16 x 32 and padded to 48 x 32" in says
    assert not plan.controls[0].everywhere  # beyond its edges it steers nothing
    cropped = Control(drawing(4, (32, 64)), "edges", fit="crop")
    assert plan_of(backbone, cropped).controls[0].everywhere
    assert not torch.equal(latents_from(backbone, plan), latents_of(backbone, cropped))


def test_what_is_transparent_is_black(backbone: Any) -> None:
    clear = EDGES.copy()
    clear.putalpha(half())
    black = Image.composite(EDGES, Image.new("RGB", EDGES.size), half())
    assert torch.equal(latents_of(backbone, Control(clear, "edges")), latents_of(backbone, Control(black, "edges")))


def test_nets_of_other_depths_add_up(flux: FluxBackbone) -> None:
    """Where diffusers would lose the residuals of the deeper net, and all single blocks behind a net without them."""
    shallow, deep = tiny.control_flux(num_single_layers=0), tiny.control_flux(seed=6, num_layers=2, num_single_layers=2)
    nets = FluxBackbone(flux.pipe, controlnets={"shallow": shallow, "deep": deep})
    both = latents_of(nets, Control(EDGES, "shallow"), Control(DEPTH, "deep"))
    assert torch.equal(both, latents_of(nets, Control(DEPTH, "deep"), Control(EDGES, "shallow")))
    assert off(both, latents_of(nets, Control(DEPTH, "deep"))) > 1e-4
    assert off(both, latents_of(nets, Control(EDGES, "shallow"))) > 1e-4


def test_the_layout_of_xlabs_is_diffusers_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels instead of latents, patches of 16 pixels, and double blocks that take turns."""
    pipe = tiny.flux()
    torch.manual_seed(9)
    eighth = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=tiny.LATENTS,
        norm_num_groups=4,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    parts = pipe.components | {"vae": eighth.eval()}
    net = tiny.control_flux(num_single_layers=0, patch_size=2, conditioning_embedding_channels=4)
    backbone = FluxBackbone(type(pipe)(**parts), controlnets={"edges": net})
    ours = latents_of(backbone, Control(EDGES))
    assert torch.equal(ours, stock(backbone, monkeypatch, ["edges"], [EDGES]))
    assert off(ours, latents_of(backbone)) > 1e-4


# --- together with the rest ---------------------------------------------------------------------------------------


def test_a_batch_equals_singles(backbone: Any) -> None:
    given = Control(EDGES, "edges", mask=half())
    both = latents_of(backbone, given, num_images=2, true_cfg_scale=3.0)
    singles = [latents_of(backbone, given, seed=seed, true_cfg_scale=3.0) for seed in (3, 4)]
    assert off(both, torch.cat(singles)) <= 1e-4


def test_other_pictures_share_forwards_and_other_settings_do_not(backbone: Any) -> None:
    one, two = plan_of(backbone, Control(EDGES, "edges")), plan_of(backbone, Control(DEPTH, "edges"))
    assert one.batch_key == two.batch_key
    singles = torch.cat([latents_from(backbone, one), latents_from(backbone, two)])
    assert off(latents_from(backbone, one, two), singles) <= 1e-4
    others: list[dict[str, Any]] = [
        {"net": "depth"},
        {"controlnet_conditioning_scale": 0.5},
        {"control_guidance_end": 0.5},
        {"mask": half()},
    ]
    for settings in others:
        other = plan_of(backbone, Control(EDGES, **{"net": "edges"} | settings))
        assert other.batch_key != one.batch_key


def test_with_regions_it_reads_the_whole_prompt_and_steers_the_regional_stream(backbone: Any) -> None:
    lengths: list[int] = []
    net = backbone.controlnets["edges"]

    def seen(module: Any, arguments: Any, settings: dict[str, Any]) -> None:
        lengths.append(settings["encoder_hidden_states"].shape[1])

    hook = net.register_forward_pre_hook(seen, with_kwargs=True)
    regional = latents_of(backbone, *REGIONS, Control(EDGES, "edges"))
    hook.remove()
    assert {*lengths} == {77 if isinstance(backbone, UNetBackbone) else 24}
    assert len(lengths) == 4
    assert off(regional, latents_of(backbone, *REGIONS)) > 1e-4
    assert off(regional, latents_of(backbone, Control(EDGES, "edges"))) > 1e-4


def test_with_diptych_it_steers_the_new_picture_alone(backbone: Any, subject_picture: Image.Image) -> None:
    plan = plan_of(backbone, Subject(subject_picture, name="mug"), Control(EDGES, "edges"), prompt="a {mug}")
    assert plan.method.name == "diptych"
    assert not plan.controls[0].everywhere
    plain = plan_of(backbone, Subject(subject_picture, name="mug"), prompt="a {mug}")
    assert off(latents_from(backbone, plan), latents_from(backbone, plain)) > 1e-4


def test_with_inpainting_residuals_add(flux: FluxBackbone, picture: Image.Image, spot: Image.Image) -> None:
    edit = Edit(picture, mask=spot, options={"engine": "controlnet"})
    size = {"width": 64, "height": 48}
    plan = plan_of(flux, edit, Control(drawing(1, (64, 48)), "edges"), **size)
    assert plan.engine == "controlnet"
    found = latents_from(flux, plan)
    assert off(found, latents_of(flux, edit, **size)) > 1e-4
    off_ = Edit(picture, mask=spot, options={"engine": "controlnet", "control_scale": 0.0})
    assert off(found, latents_of(flux, off_, Control(drawing(1, (64, 48)), "edges"), **size)) > 1e-4


def test_image_to_image_and_loras_go_along(flux: FluxBackbone, picture: Image.Image, tmp_path: Path) -> None:
    size = {"width": 64, "height": 48}
    control = Control(drawing(1, (64, 48)), "edges")
    plan = plan_of(flux, Edit(picture, strength=0.6), control, **size)
    assert plan.controls[0].steps == range(plan.num_steps)
    assert torch.isfinite(latents_from(flux, plan)).all()
    lora = Lora(tiny.save_lora(tmp_path / "lora"))
    assert off(latents_of(flux, lora, control, **size), latents_of(flux, control, **size)) > 1e-4


def test_pipelines_bring_their_nets_along(backbone: Any) -> None:
    parts = backbone.pipe.components | {"controlnet": [backbone.controlnets["edges"], backbone.controlnets["depth"]]}
    if isinstance(backbone, FluxBackbone):
        pipe: Any = FluxControlNetPipeline(**parts)
    elif backbone.is_xl:
        pipe = StableDiffusionXLControlNetPipeline(**parts, add_watermarker=False)
    else:
        pipe = StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    own = Studio(pipe).backbone
    assert list(own.controlnets) == ["controlnet", "controlnet-2"]
    found = latents_of(own, Control(EDGES, "controlnet-2"))
    assert torch.equal(found, latents_of(backbone, Control(EDGES, "depth")))
    assert own.fingerprint().keys() >= {"controlnet/controlnet", "controlnet/controlnet-2"}
    assert "controlnet" not in own.fingerprint()


@pytest.mark.parametrize("guided", [False, True])
def test_counted_cost_is_what_the_networks_do(backbone: Any, guided: bool) -> None:
    controls = [Control(EDGES, "edges", control_guidance_end=0.5), Control(DEPTH, "depth", mask=half())]
    if "union" in backbone.controlnets:
        controls += [Control(DEPTH, "union", mode="depth"), Control(EDGES, "union", mode="canny")]
    if "shuffle" in backbone.controlnets:
        controls += [Control(DEPTH, "shuffle")]
    plan = plan_of(backbone, *controls, true_cfg_scale=2.0 if guided else 1.0)
    counts: list[int] = []
    networks = [backbone.base, *backbone.controlnets.values()]
    forwards = [network.forward for network in networks]

    def counting(forward: Any) -> Any:
        def counted(*arguments: Any, **settings: Any) -> Any:
            # the fused kernel of a CPU is unknown to the counter; plain products are not
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                found = forward(*arguments, **settings)
            counts.append(counter.get_total_flops())
            return found

        return counted

    for network, forward in zip(networks, forwards, strict=True):
        network.forward = counting(forward)
    try:
        paint([plan], backbone)
    finally:
        for network, forward in zip(networks, forwards, strict=True):
            network.forward = forward
    assert sum(counts) == pytest.approx(plan.cost.flops, rel=0.05)


# --- opening ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ControlNet of FLUX."""
    folder = tmp_path_factory.mktemp("nets") / "edges"
    tiny.control_flux().save_pretrained(folder)
    return folder


def test_folders_open_by_name(flux_folder: Path, net_folder: Path) -> None:
    listed = Studio.open(flux_folder, controlnets=[net_folder])
    assert list(listed.backbone.controlnets) == ["edges"]
    named = Studio.open(flux_folder, controlnets={"lines": net_folder})
    assert list(named.backbone.controlnets) == ["lines"]
    control = Control(EDGES)  # there is one net, so it needs no name
    assert torch.equal(latents_of(named.backbone, control), latents_of(listed.backbone, control))
    assert "controlnet/lines" in named.weights
    plain = Studio.open(flux_folder).backbone
    assert named.backbone.memory > plain.memory


def test_a_unets_folder_opens(tmp_path: Path) -> None:
    pipe = tiny.stable_diffusion()
    pipe.save_pretrained(tmp_path / "sd")
    tiny.control_unet(pipe.unet).save_pretrained(tmp_path / "edges")
    backbone = open_backbone(tmp_path / "sd", controlnets={"edges": tmp_path / "edges"})
    assert torch.equal(latents_of(backbone, Control(EDGES)), latents_of(new("sd15"), Control(EDGES, "edges")))


def test_a_folder_of_the_union_opens_under_both_its_names(sdxl: UNetBackbone, tmp_path: Path) -> None:
    sdxl.pipe.save_pretrained(tmp_path / "sdxl")
    tiny.control_union(sdxl.pipe.unet).save_pretrained(tmp_path / "union")
    ours = latents_of(sdxl, Control(DEPTH, "union", mode="depth"))
    file = tmp_path / "union" / "config.json"
    for name in ("ControlNetUnionModel", "ControlNetModel_Union"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": name}))
        backbone = open_backbone(tmp_path / "sdxl", controlnets=[tmp_path / "union"])
        # Weights read from a file lie elsewhere in memory, which some processors' kernels round differently.
        torch.testing.assert_close(latents_of(backbone, Control(DEPTH, mode="depth")), ours)


def test_nets_of_another_family_are_refused(flux_folder: Path, controlnet_folder: Path, tmp_path: Path) -> None:
    pipe = tiny.stable_diffusion()
    tiny.control_unet(pipe.unet).save_pretrained(tmp_path / "edges")
    with pytest.raises(CapriccioError, match="holds a ControlNetModel, but this model is steered by a FluxControlNet"):
        open_backbone(flux_folder, controlnets=[tmp_path / "edges"])
    with pytest.raises(CapriccioError, match="open it with inpainting="):
        open_backbone(flux_folder, controlnets=[controlnet_folder])
    with pytest.raises(CapriccioError, match=r"'lines' is a ControlNetModel, but .* is of the FLUX family"):
        FluxBackbone(tiny.flux(), controlnets={"lines": tiny.control_unet(pipe.unet)})
    with pytest.raises(CapriccioError, match=r"'lines' is a FluxControlNetModel, but .* Stable Diffusion family"):
        UNetBackbone(pipe, controlnets={"lines": tiny.control_flux()})


def test_folders_that_cannot_be_opened(flux_folder: Path, net_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CapriccioError, match=r"could not be loaded .* check the name and the connection"):
        open_backbone(flux_folder, controlnets=[tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CapriccioError, match=r"give the folder of a ControlNet, with its config.json"):
        open_backbone(flux_folder, controlnets=[tmp_path / "empty"])
    with pytest.raises(CapriccioError, match="Two ControlNets are in folders called 'edges'"):
        open_backbone(flux_folder, controlnets=[net_folder, net_folder])
    broken = tmp_path / "broken"
    tiny.control_flux().save_pretrained(broken)
    config = json.loads((broken / "config.json").read_text()) | {"num_single_layers": 2}
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(CapriccioError, match=r"does not fit its config.json"):
        open_backbone(flux_folder, controlnets=[broken])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"joint_attention_dim": 16}, "joint_attention_dim 16, but the FluxTransformer2DModel .* has 32"),
        ({"num_attention_heads": 3}, "is 48 wide, but the transformer that it would steer 32"),
        ({"in_channels": 32}, "takes 32 channels and 32 of its picture, but this VAE gives 16"),
        ({"conditioning_embedding_channels": 4, "patch_size": 2}, "reads patches of 16 pixels, but a token .* is 4"),
    ],
)
def test_nets_that_do_not_fit_flux(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(CapriccioError, match=says):
        FluxBackbone(tiny.flux(), controlnets={"edges": tiny.control_flux(**settings)})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"cross_attention_dim": 64}, "cross_attention_dim 64, but the UNet2DConditionModel .* has 32"),
        ({"block_out_channels": (16, 16)}, r"block_out_channels \(16, 16\)"),
        ({"conditioning_embedding_out_channels": (8, 8, 8)}, "cells of 4 pixels"),
        ({"conditioning_channels": 1}, "1 of a picture"),
    ],
)
def test_nets_that_do_not_fit_a_unet(settings: dict[str, Any], says: str) -> None:
    pipe = tiny.stable_diffusion()
    with pytest.raises(CapriccioError, match=says):
        UNetBackbone(pipe, controlnets={"edges": tiny.control_unet(pipe.unet, **settings)})


def test_a_net_of_sdxl_does_not_fit_stable_diffusion() -> None:
    net = tiny.control_unet(tiny.unet("sdxl"))
    with pytest.raises(CapriccioError, match="give a ControlNet that was trained with this model"):
        UNetBackbone(tiny.stable_diffusion(), controlnets={"edges": net})


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"image": None}, "give a path, a PIL image or a numpy array"),
        ({"control_guidance_start": 0.5, "control_guidance_end": 0.5}, "starts at 0.5 and ends at 0.5"),
        ({"control_guidance_start": 0.9, "control_guidance_end": 0.1}, "which leaves none"),
        ({"control_guidance_end": 1.5}, "for 'control_guidance_end'; input should be less than or equal to 1"),
        ({"controlnet_conditioning_scale": -0.5}, "-0.5 for 'controlnet_conditioning_scale'"),
        ({"mode": "dept"}, "mode 'dept' is unknown; did you mean 'depth'"),
        ({"mode": -1}, "received -1 for 'mode'"),
        ({"mode": [1]}, r"received \[1\] for 'mode'"),
        ({"by": "diptych"}, "A control names a method or options, but needs none"),
        ({"strength": 1}, "A control has no setting 'strength'"),
    ],
)
def test_bad_controls_are_refused_in_a_sentence(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(CapriccioError, match=says):
        Control(**{"image": EDGES} | settings)
    with pytest.raises(CapriccioError, match="A control needs 'image'; give it"):
        Control()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "names no ControlNet, and .* has 'edges', 'depth', 'union'; give net= one of them"),
        ({"net": "egdes"}, "has no ControlNet 'egdes'; did you mean 'edges'"),
        ({"net": "edges", "mode": "depth"}, "'edges' knows one kind of picture only; leave it out"),
        ({"net": "union"}, "'union' knows 7 kinds of picture, but the control does not say which; give mode= 'canny'"),
        ({"net": "union", "mode": "segment"}, "'union' knows no picture of mode='segment'; valid names are"),
        ({"net": "edges", "guess_mode": True}, "the ControlNets of FLUX, as 'edges', have none; leave it out"),
        ({"net": "union", "mode": 7}, "mode=7 was given, but the ControlNet 'union' knows 7 .* 0 to 6"),
        (
            {"net": "edges", "control_guidance_start": 0.3, "control_guidance_end": 0.4},
            "0.3 to 0.4 of 4 steps holds no",
        ),
        ({"net": "edges", "mask": Image.new("L", (8, 8), 255)}, "mask of the control is 8 x 8 pixels"),
        ({"net": "edges", "mask": Image.new("L", (48, 32))}, "mask of the control is all black"),
        ({"net": "edges", "image": "missing.png"}, "missing.png' does not exist"),
    ],
)
def test_controls_that_cannot_be_planned(flux: FluxBackbone, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(CapriccioError, match=says):
        plan_of(flux, Control(**{"image": EDGES} | settings))


def test_a_mask_that_is_cropped_away(flux: FluxBackbone) -> None:
    mask = Image.new("L", (32, 128))
    mask.paste(255, (0, 0, 32, 8))
    with pytest.raises(CapriccioError, match="Nothing of the control's mask is left"):
        plan_of(flux, Control(drawing(4, (32, 128)), "edges", mask=mask, fit="crop"))


def test_without_a_net_there_is_a_remedy() -> None:
    with pytest.raises(CapriccioError, match="was opened without a ControlNet; open it with controlnets="):
        plan_of(FluxBackbone(tiny.flux()), Control(EDGES))


# --- what is told -------------------------------------------------------------------------------------------------


def test_a_plan_says_it_all(flux: FluxBackbone) -> None:
    control = Control(DEPTH, "union", mode="depth", controlnet_conditioning_scale=0.7, control_guidance_end=0.5)
    plan = plan_of(flux, control, Control(EDGES, "edges"))
    assert plan.sections()["controls"] == [
        "ControlNet union, mode 2 (depth) x 0.7, steps [0, 2): sees control:1",
        "ControlNet edges x 1, steps [0, 4): sees control:2",
    ]
    assert plan_of(flux).sections()["controls"] == ["no control picture"]
    assert plan.method is None
    json.dumps(plan.as_dict())


def test_a_scene_with_controls_travels(flux: FluxBackbone, tmp_path: Path) -> None:
    EDGES.save(tmp_path / "edges.png")
    half().save(tmp_path / "left.png")
    control = Control(
        tmp_path / "edges.png", "union", mode="tile", mask=tmp_path / "left.png", control_guidance_end=0.5
    )
    scene = Scene("a street", [control], **SIZE)
    again = Scene.load(scene.save(tmp_path / "scene.yaml"))
    assert again == scene
    assert (again.conditions[0].net, again.conditions[0].mode) == ("union", "tile")
    assert "control" in Scene.json_schema()["properties"]["conditions"]["items"]["discriminator"]["mapping"]
    painting = Studio(flux).paint(again.but(num_inference_steps=2, max_sequence_length=24))
    (file,) = painting.save(tmp_path / "street.png")
    (inside,) = Scene.load(file).conditions
    assert isinstance(inside, Control)
    assert inside.image.path is None  # embedded, for a recipe names no file
    assert inside.net == "union"
