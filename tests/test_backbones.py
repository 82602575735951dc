"""FLUX wrapped: loading in every published layout, latents, engines' inputs, LoRAs, and mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from diffusers import FluxControlNetPipeline, FluxPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from capriccio.backbones.flux import FluxBackbone
from capriccio.backbones.loading import open_backbone
from capriccio.errors import CapriccioError
from capriccio.formats.alimama import load_inpainting_controlnet, takes_masks
from capriccio.scene import Lora

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def backbone() -> FluxBackbone:
    pipe = tiny.flux()
    return FluxBackbone(pipe, controlnet=tiny.controlnet(pipe.transformer), fill=tiny.fill().transformer)


# --- facts and latents ---


def test_facts(backbone: FluxBackbone) -> None:
    assert (backbone.factor, backbone.token, backbone.channels) == (2, 4, 4)
    assert backbone.engines == ("controlnet", "fill", "hold")
    assert backbone.heads(None) == (2, 16)
    assert [layer.kind for layer in backbone.layers(None)] == ["double", "double", "single", "single"]
    assert backbone.memory > 1e5


def test_engines_are_what_is_there() -> None:
    assert FluxBackbone(tiny.flux()).engines == ("hold",)
    only_fill = FluxBackbone(tiny.fill())
    assert only_fill.engines == ("fill",)
    assert not only_fill.can_start_from_text


def test_a_pipelines_own_inpainting_controlnet_is_found() -> None:
    pipe = tiny.flux()
    whole = FluxControlNetPipeline(**pipe.components | {"controlnet": tiny.controlnet(pipe.transformer)})
    assert FluxBackbone(whole).engines == ("controlnet", "hold")


def test_packing_is_reversible(backbone: FluxBackbone) -> None:
    latents = torch.randn(2, 4, 6, 8)
    tokens = backbone.pack(latents)
    assert tokens.shape == (2, 12, 16)
    assert torch.equal(backbone.unpack(tokens, 3, 4), latents)


def test_noise_is_that_of_diffusers(backbone: FluxBackbone) -> None:
    generator = torch.Generator().manual_seed(5)
    stock, _ = backbone.pipe.prepare_latents(1, 4, 32, 48, torch.float32, "cpu", generator)
    assert torch.equal(backbone.noise(5, 8, 12), stock)


def test_prompts_are_encoded_once(backbone: FluxBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encode = backbone.pipe.encode_prompt
    monkeypatch.setattr(backbone.pipe, "encode_prompt", lambda *a, **k: calls.append(a) or encode(*a, **k))
    first = backbone.encode_text("never seen before", 16)
    assert backbone.encode_text("never seen before", 16) is first
    assert len(calls) == 1
    assert backbone.encode_text("never seen before", 24).tokens.shape == (1, 24, 32)


def test_flops_are_counted_by_hand() -> None:
    width, text, image = 32, 10, 20
    square = width * width
    blocks = 2 * (4 + 8) * (text + image)  # two double blocks: four projections, a feed-forward layer of four widths
    blocks += 2 * (3 + 4 + 5) * (text + image)  # two single blocks: three projections, the layer in, the layer out
    once = 2 * 2 * 6 + 2 * 3 + 2  # modulations of double and single blocks and of the output, one token each
    edges = 2 * (16 * width) * image + square * text  # embedder and output of the image, embedder of the text
    time = 2 * (256 * width + square) + (width * width + square)  # time and guidance; pooled text
    expected = 2 * ((blocks + once) * square + edges + time)
    assert FluxBackbone(tiny.flux()).flops(None, text, image) == expected


# --- what engines are given ---


def test_the_controlnet_sees_latents_and_the_inverted_mask(backbone: FluxBackbone) -> None:
    paint = np.zeros((16, 32), bool)
    paint[:, 16:] = True
    condition = backbone.known("controlnet", Image.new("RGB", (32, 16), "red"), paint).condition
    assert condition.shape == (1, 32, 4 * (4 + 1))
    known = backbone.unpack(condition, 4, 8)[0, -1]
    assert known[:, :8].min() == 1
    assert known[:, 8:].max() == 0


def test_fill_sees_latents_and_every_pixel_of_the_mask(backbone: FluxBackbone) -> None:
    rng = np.random.default_rng(0)
    picture, paint = Image.new("RGB", (32, 16), "red"), rng.random((16, 32)) < 0.5
    ours = backbone.known("fill", picture, paint).condition
    pixels = torch.from_numpy(np.asarray(picture, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    mask = torch.from_numpy(paint)[None, None].float()
    fill = tiny.fill()
    fill.vae = backbone.pipe.vae
    generator = torch.Generator().manual_seed(0)
    theirs, _ = fill.prepare_mask_latents(mask, pixels * (1 - mask), 1, 4, 1, 16, 32, torch.float32, "cpu", generator)
    assert ours.shape == (1, 32, 4 * 4 + 4 * 4)
    assert torch.equal(ours[..., 16:], theirs)


def test_what_is_hidden_does_not_show(backbone: FluxBackbone) -> None:
    paint = np.zeros((16, 32), bool)
    paint[:, 16:] = True
    one, two = (Image.new("RGB", (32, 16), "red") for _ in range(2))
    two.paste("blue", (16, 0, 32, 16))
    for engine in ("controlnet", "fill"):
        assert torch.equal(backbone.known(engine, one, paint).condition, backbone.known(engine, two, paint).condition)


def test_holding_keeps_untouched_cells(backbone: FluxBackbone) -> None:
    paint = np.zeros((16, 32), bool)
    paint[5, 7] = True
    known = backbone.known("hold", Image.new("RGB", (32, 16)), paint)
    touched = backbone.unpack(known.keep, 4, 8)[0, 0] == 0
    assert touched.sum() == 1
    assert touched[2, 3]


# --- loading ---


def test_a_folder_opens(flux_folder: Path) -> None:
    backbone = open_backbone(flux_folder, device="cpu")
    assert backbone.engines == ("hold",)
    assert backbone.name == str(flux_folder)


def test_fill_opens_beside_flux(flux_folder: Path, fill_folder: Path) -> None:
    assert open_backbone(flux_folder, device="cpu", inpainting=fill_folder).engines == ("fill", "hold")
    assert open_backbone(fill_folder, device="cpu").engines == ("fill",)


def test_the_controlnet_opens_beside_flux(flux_folder: Path, controlnet_folder: Path) -> None:
    assert open_backbone(flux_folder, device="cpu", inpainting=controlnet_folder).engines == ("controlnet", "hold")


def test_a_single_file_opens_with_its_config(flux_folder: Path, tmp_path: Path) -> None:
    state = load_file(flux_folder / "transformer" / WEIGHTS)
    save_file(state, tmp_path / "flux.safetensors")
    backbone = open_backbone(tmp_path / "flux.safetensors", device="cpu", config=flux_folder)
    assert all(torch.equal(value, state[key]) for key, value in backbone.base.state_dict().items())


def test_a_published_folder_is_plain_diffusers(flux_folder: Path) -> None:
    assert isinstance(FluxPipeline.from_pretrained(flux_folder), FluxPipeline)


def _changed(folder: Path, target: Path, change: dict[str, torch.Tensor], without: str = "") -> Path:
    shutil.copytree(folder, target)
    place = next(target.rglob(WEIGHTS)) if (target / WEIGHTS).exists() else target / "transformer" / WEIGHTS
    state = {key: value for key, value in load_file(place).items() if key != without} | change
    save_file(state, place, metadata={"format": "pt"})
    return target


def test_missing_and_unexpected_keys_of_a_transformer(flux_folder: Path, tmp_path: Path) -> None:
    lacking = _changed(flux_folder, tmp_path / "lacking", {}, "proj_out.bias")
    with pytest.raises(CapriccioError, match=r"lacking.*proj_out\.bias"):
        open_backbone(lacking, device="cpu")
    extra = _changed(flux_folder, tmp_path / "extra", {"odd.weight": torch.zeros(1)})
    with pytest.raises(CapriccioError, match=r"0 keys are missing and 1 unexpected \(such as 'odd\.weight'"):
        open_backbone(extra, device="cpu")


def test_the_controlnet_layout_comes_back_as_it_was(controlnet_folder: Path) -> None:
    config = json.loads((controlnet_folder / "config.json").read_text())
    assert config["extra_condition_channels"] == 4
    loaded = load_inpainting_controlnet(controlnet_folder)
    assert loaded.controlnet_x_embedder.in_features == 4 * (4 + 1)
    assert takes_masks(loaded)
    before = tiny.controlnet(tiny.flux().transformer).state_dict()
    assert all(torch.equal(value, before[key]) for key, value in loaded.state_dict().items())


def test_a_sharded_controlnet_loads(controlnet_folder: Path, tmp_path: Path) -> None:
    from capriccio.formats.alimama import save_inpainting_controlnet

    loaded = load_inpainting_controlnet(controlnet_folder)
    save_inpainting_controlnet(loaded, tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    again = load_inpainting_controlnet(tmp_path / "shards")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), again.parameters(), strict=True))


def test_the_public_width_is_68() -> None:
    """L = 16 latent channels give the 68 channels of the public checkpoint."""
    from capriccio.formats.alimama import new_inpainting_controlnet

    controlnet = new_inpainting_controlnet(tiny.transformer(64), num_layers=1, num_single_layers=0)
    assert controlnet.controlnet_x_embedder.in_features == 68


def test_a_new_controlnet_starts_neutral() -> None:
    from capriccio.formats.alimama import new_inpainting_controlnet

    base = tiny.transformer()
    controlnet = new_inpainting_controlnet(base, num_layers=1, num_single_layers=1)
    assert torch.equal(controlnet.transformer_blocks[0].attn.to_q.weight, base.transformer_blocks[0].attn.to_q.weight)
    outs = [*controlnet.controlnet_blocks, *controlnet.controlnet_single_blocks, controlnet.controlnet_x_embedder]
    assert not any(layer.weight.any() for layer in outs)


@pytest.mark.parametrize(
    ("change", "without", "says"),
    [
        ({}, "controlnet_x_embedder.bias", "1 keys are missing and 0 unexpected"),
        ({"odd.weight": torch.zeros(1)}, "", "0 keys are missing and 1 unexpected"),
        ({"controlnet_x_embedder.weight": torch.zeros(32, 16)}, "", r"shape \(32, 16\) instead of \(32, 20\)"),
    ],
)
def test_a_broken_controlnet_is_told(
    controlnet_folder: Path, tmp_path: Path, change: dict[str, torch.Tensor], without: str, says: str
) -> None:
    broken = _changed(controlnet_folder, tmp_path / "broken", change, without)
    with pytest.raises(CapriccioError, match=says):
        load_inpainting_controlnet(broken)


def test_an_ordinary_controlnet_is_not_an_inpainting_one(controlnet_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(controlnet_folder, tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    del config["extra_condition_channels"]
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CapriccioError, match="extra_condition_channels"):
        load_inpainting_controlnet(tmp_path / "plain")


def test_missing_weights_are_told(controlnet_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(controlnet_folder, tmp_path / "empty")
    (tmp_path / "empty" / WEIGHTS).unlink()
    with pytest.raises(CapriccioError, match="lacks the weights file"):
        load_inpainting_controlnet(tmp_path / "empty")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"memory": "ful"}, "did you mean 'full'"),
        ({"memory": "offload"}, "there is none; use 'full'"),
        ({"inpainting": "no/such-repository"}, "no/such-repository"),
        ({"config": "somewhere"}, "is for single files"),
    ],
)
def test_mistakes_in_opening(flux_folder: Path, settings: dict[str, str], says: str) -> None:
    with pytest.raises(CapriccioError, match=says):
        open_backbone(flux_folder, device="cpu", **settings)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CapriccioError, match="could not be loaded"):
        open_backbone("nobody/no-such-model", device="cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CapriccioError, match="give the folder or file of a FLUX checkpoint"):
        open_backbone(tmp_path / "empty", device="cpu")
    (tmp_path / "noise.safetensors").write_bytes(b"not weights")
    with pytest.raises(CapriccioError, match="could not be loaded"):
        open_backbone(tmp_path / "noise.safetensors", device="cpu", config=tmp_path)


def test_another_family_is_refused() -> None:
    with pytest.raises(CapriccioError, match="not a pipeline of the FLUX family"):
        FluxBackbone(object())


def test_parts_that_do_not_fit_are_refused() -> None:
    pipe = tiny.flux()
    with pytest.raises(CapriccioError, match="neither FLUX"):
        FluxBackbone(pipe, fill=tiny.transformer(28))
    with pytest.raises(CapriccioError, match="takes 36 condition channels, but this VAE gives 20"):
        FluxBackbone(pipe, controlnet=tiny.controlnet(tiny.transformer(32)))


def test_an_unknown_scheduler_names_the_nearest(backbone: FluxBackbone) -> None:
    with pytest.raises(CapriccioError, match="UniPC"):
        backbone.schedule("UniPCMultistep", 2, 16)


# --- LoRA and fingerprints ---


def _names(pipe: FluxPipeline) -> list[tuple[str, str]]:
    return [(name, type(module).__name__) for name, module in pipe.transformer.named_modules()]


def test_a_lora_works_and_leaves_no_trace(tmp_path: Path) -> None:
    lora = Lora(tiny.save_lora(tmp_path))
    backbone = FluxBackbone(tiny.flux())
    names, before = _names(backbone.pipe), backbone.fingerprint()
    text = backbone.encode_text("a mug", 16)
    with backbone.adapters(None, [lora]):
        assert _names(backbone.pipe) != names
        assert torch.equal(backbone.encode_text("a mug", 16).tokens, text.tokens)
    assert _names(backbone.pipe) == names
    assert backbone.fingerprint() == before


def test_a_persons_own_lora_stays(tmp_path: Path) -> None:
    path = tiny.save_lora(tmp_path)
    pipe = tiny.flux()
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name, adapter_name="mine")
    pipe.set_adapters(["mine"], [0.3])
    backbone = FluxBackbone(pipe)
    before = backbone.fingerprint()
    scaling = dict(pipe.transformer.transformer_blocks[0].attn.to_q.scaling)
    with backbone.adapters(None, [Lora(path, weight=0.5)]):
        assert len(pipe.get_active_adapters()) == 2
        assert pipe.transformer.transformer_blocks[0].attn.to_q.scaling["mine"] == pytest.approx(scaling["mine"])
    assert pipe.get_active_adapters() == ["mine"]
    assert pipe.transformer.transformer_blocks[0].attn.to_q.scaling == scaling
    assert backbone.fingerprint() == before


def test_a_lora_that_is_none_is_told(tmp_path: Path) -> None:
    save_file({"something.weight": torch.zeros(2, 2)}, tmp_path / "odd.safetensors")
    backbone = FluxBackbone(tiny.flux())
    names = _names(backbone.pipe)
    for path in (tmp_path / "odd.safetensors", tmp_path / "missing.safetensors"):
        with pytest.raises(CapriccioError, match="LoRA"), backbone.adapters(None, [Lora(path)]):
            pass
    assert _names(backbone.pipe) == names


def test_fingerprints_follow_the_weights() -> None:
    one, same, other = (FluxBackbone(tiny.flux(seed=seed)).fingerprint() for seed in (0, 0, 1))
    assert one == same
    assert one["transformer"] != other["transformer"]


@pytest.mark.needs_miniature
def test_the_miniature_opens() -> None:
    backbone = open_backbone("miniature", device="cpu")
    assert backbone.defaults.num_inference_steps == 28
    assert backbone.defaults.scheduler in backbone.schedulers
    assert "hold" in backbone.engines
