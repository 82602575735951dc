"""Opening Stable Diffusion and SDXL: in every published layout, with learned words and IP-Adapters, and mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from capriccio import Scene, Studio
from capriccio.backbones.flux import FluxBackbone
from capriccio.backbones.loading import open_backbone
from capriccio.backbones.unet import UNetBackbone
from capriccio.errors import CapriccioError

SMALL: dict[str, Any] = {"width": 32, "height": 32, "num_inference_steps": 2, "seed": 3}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tiny") / "sd"
    tiny.stable_diffusion().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def fill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tiny") / "sd-inpaint"
    tiny.stable_diffusion(inpaint=True).save_pretrained(place)
    return place


def test_the_family_is_told_by_what_is_there(folder: Path, fill: Path, flux_folder: Path, tmp_path: Path) -> None:
    backbone = open_backbone(folder, device="cpu")
    assert isinstance(backbone, UNetBackbone)
    assert backbone.engines == ("hold",)
    assert open_backbone(fill, device="cpu").engines == ("fill",)
    assert open_backbone(folder, device="cpu", inpainting=fill).engines == ("fill", "hold")
    assert isinstance(open_backbone(flux_folder, device="cpu"), FluxBackbone)
    tiny.stable_diffusion("sdxl").save_pretrained(tmp_path / "xl")
    assert open_backbone(tmp_path / "xl", device="cpu").is_xl


def test_a_single_file_opens_with_its_config(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / WEIGHTS)
    save_file(state, tmp_path / "unet.safetensors")
    backbone = open_backbone(tmp_path / "unet.safetensors", device="cpu", config=folder)
    assert isinstance(backbone, UNetBackbone)
    assert all(torch.equal(value, state[key]) for key, value in backbone.base.state_dict().items())


@pytest.mark.parametrize(
    ("mark", "family"), [("conditioner.embedders.1.", "XL"), ("cond_stage_model.", "StableDiffusionPipeline")]
)
def test_a_whole_file_goes_to_its_family(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path, mark: str, family: str
) -> None:
    from capriccio.backbones import loading

    asked: list[Any] = []
    for _, kind in loading._WHOLE_FILES:
        own = classmethod(lambda cls, name, **given: asked.append((cls, given)) or tiny.stable_diffusion())
        monkeypatch.setattr(kind, "from_single_file", own)
    save_file({f"{mark}weight": torch.zeros(1)}, tmp_path / "whole.safetensors")
    open_backbone(tmp_path / "whole.safetensors", device="cpu", config=folder)
    ((kind, given),) = asked
    assert family in kind.__name__
    assert given["config"] == str(folder)


def test_missing_keys_are_told(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "lacking")
    state = load_file(folder / WEIGHTS)
    del state["conv_out.bias"]
    save_file(state, tmp_path / "lacking" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CapriccioError, match=r"The unet in .*lacking.*conv_out\.bias"):
        open_backbone(tmp_path / "lacking", device="cpu")


def test_tiles(folder: Path) -> None:
    backbone = open_backbone(folder, device="cpu", tiling=True)
    assert backbone.pipe.vae.use_tiling
    assert Studio(backbone).paint(Scene("a mug", **SMALL)).images[0].size == (32, 32)


def test_learned_words_are_read_and_found(folder: Path, tmp_path: Path) -> None:
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    save_file({"emb_params": vectors}, tmp_path / "mymug.safetensors")
    plain, taught = (
        Studio.open(folder, device="cpu", textual_inversions=words) for words in ((), [tmp_path / "mymug.safetensors"])
    )
    one, two = (np.asarray(studio.paint(Scene("a mymug", **SMALL)).images[0]) for studio in (plain, taught))
    assert not np.array_equal(one, two)
    # Both vectors of the word stand in the text, and the group of words behind them moves on.
    backbone = taught.backbone
    assert np.flatnonzero(backbone.word_tokens("a mymug b", "mymug", 77)).tolist() == [2, 3]
    assert np.flatnonzero(backbone.word_tokens("a mymug b", "b", 77)).tolist() == [4]
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.load_textual_inversion(str(tmp_path / "mymug.safetensors"), token="mymug")
    pipe.set_progress_bar_config(disable=True)
    settings = {name: value for name, value in SMALL.items() if name != "seed"}
    stock = pipe("a mymug", generator=torch.Generator().manual_seed(3), **settings).images[0]
    assert np.array_equal(two, np.asarray(stock))


def test_an_ip_adapter_opens_and_is_shown_nothing(folder: Path, tmp_path: Path) -> None:
    state = {
        f"{part}.{key}": value for part, values in tiny.ip_adapter(tiny.unet()).items() for key, value in values.items()
    }
    save_file(state, tmp_path / "ip.safetensors")
    studio = Studio.open(folder, device="cpu", ip_adapter=tmp_path / "ip.safetensors")
    painting = studio.paint(Scene("a mug", **SMALL))
    assert any("IP-Adapter is loaded" in note for note in painting.plan.notes)
    settings = {name: value for name, value in SMALL.items() if name != "seed"}
    generator = torch.Generator().manual_seed(3)
    nothing = [torch.zeros(2, 1, 32)]
    pipe = studio.backbone.pipe
    pipe.set_progress_bar_config(disable=True)
    stock = pipe("a mug", generator=generator, ip_adapter_image_embeds=nothing, **settings).images[0]
    assert np.array_equal(np.asarray(painting.images[0]), np.asarray(stock))
    pipe.unload_ip_adapter()
    plain = Studio.open(folder, device="cpu").paint(Scene("a mug", **SMALL)).images[0]
    assert np.array_equal(np.asarray(studio.paint(Scene("a mug", **SMALL)).images[0]), np.asarray(plain))


def test_mistakes_are_sentences(folder: Path, flux_folder: Path, tmp_path: Path) -> None:
    save_file({"odd": torch.zeros(1)}, tmp_path / "odd.safetensors")
    for settings in (
        {"textual_inversions": [tmp_path / "odd.safetensors"]},
        {"ip_adapter": tmp_path / "odd.safetensors"},
    ):
        with pytest.raises(CapriccioError, match="could not be loaded"):
            open_backbone(folder, device="cpu", **settings)
    with pytest.raises(CapriccioError, match="is neither; leave them out"):
        open_backbone(flux_folder, device="cpu", ip_adapter=tmp_path / "odd.safetensors")


@pytest.mark.needs_miniature
def test_the_miniature_sd_opens_where_it_is() -> None:
    from capriccio import assets

    if not assets.available("miniature/sd"):
        pytest.skip("the miniature's Stable Diffusion is not in this copy")
    backbone = open_backbone("miniature-sd", device="cpu")
    assert backbone.defaults.num_inference_steps == 24
