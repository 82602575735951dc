"""The released layout of LAR-Gen: small checkpoints by the names of LDM open, paint, or say why not."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from capriccio import Edit, Scene, Studio, Subject
from capriccio.attention import layers_of
from capriccio.backbones import loading
from capriccio.backbones.loading import open_backbone
from capriccio.backbones.unet import UNetBackbone
from capriccio.errors import CapriccioError
from capriccio.formats import ip_adapter, largen
from capriccio.modules.lar_gen import LarGen, crossings, decoder

SMALL: dict[str, Any] = {"width": 48, "height": 32, "num_inference_steps": 2, "guidance_scale": 3.0}
PREFIX = "model.diffusion_model."
SDXL: dict[str, Any] = {
    "in_channels": 9,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "transformer_layers_per_block": (1, 2, 10),
    "projection_class_embeddings_input_dim": 2816,
}
TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def by_ldm(name: str, unet: Any) -> str:
    """What LDM calls a weight of a U-Net: its blocks are counted through, and each has parts 0, 1, 2."""
    stem, _, kind = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{kind}"
    side, *rest = name.split(".")
    if side == "mid_block":
        part, number, *inner = rest
        block = f"middle_block.{2 * int(number) if part == 'resnets' else 1}"
    else:
        level, part, number, *inner = rest
        layers = unet.config.layers_per_block
        if side == "down_blocks":
            count = 1 + int(level) * (layers + 1) + (layers if part == "downsamplers" else int(number))
            block = f"input_blocks.{count}.{int(part == 'attentions')}"
        else:
            count = int(level) * (layers + 1) + (layers if part == "upsamplers" else int(number))
            attends = hasattr(unet.up_blocks[int(level)], "attentions")
            block = f"output_blocks.{count}.{1 + attends if part == 'upsamplers' else int(part == 'attentions')}"
    if part == "resnets":
        inner[0] = RESNET[inner[0]]
    elif part == "downsamplers":
        inner[0] = "op"
    return ".".join([block, *inner])


def ldm(unet: Any, prefix: str = PREFIX) -> dict[str, Tensor]:
    """A whole model by the names of LDM; of VAE and text encoder a weight each."""
    others = {f"{part}.weight": torch.zeros(1) for part in ("first_stage_model", "conditioner", "cond_stage_model")}
    return {f"{prefix}{by_ldm(name, unet)}": value for name, value in unet.state_dict().items()} | others


def assign_of(module: LarGen, unet: Any, prefix: str = PREFIX) -> dict[str, Tensor]:
    """Keys and values of Assign, as they lie beside those of the text."""
    found = {}
    for side, made in (("to_k", module.to_k), ("to_v", module.to_v)):
        for layer, name in zip(made, module.layers, strict=True):
            found[prefix + by_ldm(f"{name}.{side}.weight", unet).replace(side, f"{side}_ip")] = layer.weight
    return found


@dataclass(frozen=True)
class Release:
    """A model that paints from text, beside the three things of the release, and the networks that they hold."""

    folder: Path
    unet: UNet2DConditionModel
    module: LarGen

    @property
    def base(self) -> Path:
        return self.folder / "sdxl"

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @property
    def file(self) -> Path:
        return self.models / largen.CHECKPOINT

    @property
    def state(self) -> dict[str, Tensor]:
        return ldm(self.unet) | assign_of(self.module, self.unet)

    def write(self, state: Mapping[str, Any], name: str = largen.CHECKPOINT) -> Path:
        torch.save(state, self.models / name)
        return self.models / name

    def open(self, inpainting: Path | None = None, module: Path | None = None) -> Studio:
        modules = {"lar-gen": module or self.models}
        return Studio.open(self.base, device="cpu", inpainting=inpainting or self.file, modules=modules)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Release:
    backbone = UNetBackbone(
        tiny.stable_diffusion("sdxl"), fill=tiny.stable_diffusion("sdxl", inpaint=True, seed=4).unet
    )
    made = Release(tmp_path_factory.mktemp("release"), backbone.fill, tiny.lar_gen(backbone, refine=False))
    backbone.pipe.save_pretrained(made.base)
    made.module.eye.encoder.save_pretrained(made.models / largen.ENCODER)
    # Of the adapter the resampler alone counts.
    flat = ip_adapter.published(made.module.resampler, made.module.to_k, made.module.to_v)
    other = {name: torch.zeros_like(v) if name.startswith("ip_adapter.") else v for name, v in flat.items()}
    torch.save(ip_adapter.groups(other, made.models), made.models / largen.ADAPTERS[0])
    made.write(made.state)
    return made


@pytest.fixture
def release(whole: Release, tmp_path: Path) -> Release:
    """A copy that a test may damage."""
    return replace(whole, folder=Path(shutil.copytree(whole.folder, tmp_path / "release")))


def equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


# --- opening ---


def test_the_release_opens_as_it_lies(whole: Release) -> None:
    for source in (whole.models, whole.file):
        backbone = whole.open(module=source).backbone
        module = backbone.modules["lar-gen"]
        equal(backbone.fill.state_dict(), whole.unet.state_dict())
        assert backbone.engines == ("fill", "hold")
        assert module.layers == tuple(layer.name for layer in crossings(whole.unet))
        for name, value in whole.module.state_dict().items():
            if not name.startswith("eye."):
                torch.testing.assert_close(module.state_dict()[name], value, msg=name)
        assert module.refine is None
        equal(module.eye.encoder.state_dict(), whole.module.eye.encoder.state_dict())
        assert module.eye.mean.flatten().tolist() == pytest.approx([0.48145466, 0.4578275, 0.40821073])  # plain CLIP's


@pytest.mark.parametrize("wrap", [lambda state: {"model": state}, lambda state: {"state_dict": state}, dict])
@pytest.mark.parametrize("prefix", [PREFIX, "model."])
def test_names_may_begin_in_either_way_and_lie_deeper(release: Release, wrap: Callable[..., Any], prefix: str) -> None:
    release.write(wrap(ldm(release.unet, prefix) | assign_of(release.module, release.unet, prefix)))
    backbone = release.open().backbone
    equal(backbone.fill.state_dict(), release.unet.state_dict())
    assert torch.equal(backbone.modules["lar-gen"].to_v[1].weight, release.module.to_v[1].weight)


def test_a_subject_is_painted(
    whole: Release, subject_picture: Image.Image, picture: Image.Image, spot: Image.Image
) -> None:
    studio = whole.open()
    subject = Subject(subject_picture, name="mug", remove_background=False)
    plan = studio.plan(Scene("a {mug}", [subject, Edit(picture, mask=spot)], **SMALL))
    assert plan.method.name == "lar-gen"
    assert "RefineNet" not in str(plan)
    weak, strong = (
        np.asarray(studio.paint(Scene("a {mug}", [own, Edit(picture, mask=spot)], **SMALL)).images[0])
        for own in (subject.model_copy(update={"options": {"beta": beta}}) for beta in (0, 1))
    )
    inside = np.asarray(spot) > 127
    assert (weak[inside] != strong[inside]).any()
    assert (strong[~inside] == np.asarray(picture)[~inside]).all()


@pytest.mark.parametrize("kind", ["sd15", "sd2", "sdxl"])
def test_any_single_file_of_an_inpainting_model_opens(tmp_path: Path, kind: str) -> None:
    tiny.stable_diffusion(kind).save_pretrained(tmp_path / "base")
    unet = tiny.stable_diffusion(kind, inpaint=True, seed=4).unet
    save_file(ldm(unet), tmp_path / "inpainting.safetensors")
    backbone = open_backbone(tmp_path / "base", device="cpu", inpainting=tmp_path / "inpainting.safetensors")
    equal(backbone.fill.state_dict(), unet.state_dict())
    assert not backbone.fill.training
    half = open_backbone(
        tmp_path / "base", device="cpu", dtype=torch.bfloat16, inpainting=tmp_path / "inpainting.safetensors"
    )
    assert half.fill.dtype == torch.bfloat16


def test_at_its_published_size_every_weight_has_its_place() -> None:
    """Of SDXL: 70 layers of cross-attention, and 36 of self-attention that RefineNet would lend its states to."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL)
    names = [layer.name for layer in crossings(unet)]
    sides = [(f"{name}.{side}.weight", side) for name in names for side in ("to_k", "to_v")]
    own = {PREFIX + by_ldm(name, unet).replace(side, f"{side}_ip"): unet.get_parameter(name) for name, side in sides}
    found = largen._converted(ldm(unet) | own, unet.config, Path("released"))
    expected = {name: value.shape for name, value in unet.state_dict().items()}
    expected |= {name.replace(side, f"{side}_ip"): expected[name] for name, side in sides}
    assert {name: value.shape for name, value in found.items()} == expected
    assert len(names) == 70
    assert sum(layer in decoder(unet) for layer in layers_of(unet)) == 36


# --- what does not open ---

FIRST, KEY = f"{PREFIX}input_blocks.0.0.weight", f"{PREFIX}output_blocks.0.0.in_layers.2.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({KEY: None}, r"does not inpaint .* 1 keys are missing .*'up_blocks\.0\.resnets\.0\.conv1\.weight' is missing"),
        ({f"{PREFIX}odd": torch.zeros(1)}, r"0 keys are missing and 1 unexpected \('odd'"),
        ({KEY: torch.zeros(3)}, r"conv1\.weight' has the shape \(3,\) instead of"),
        ({FIRST: torch.zeros(16, 4, 3, 3)}, r"shape \(16, 4, 3, 3\) instead of \(16, 9, 3, 3\); give the inpainting"),
        ({FIRST: None}, "holds no U-Net by the names of LDM .* give a single file of an inpainting model"),
        ({f"{PREFIX}label_emb.0.2.bias": None}, r"it has no 'label_emb\.0\.2\.bias'; give the inpainting"),
    ],
)
def test_a_file_of_no_inpainting_model_is_a_sentence(release: Release, change: dict[str, Any], says: str) -> None:
    changed = {name: value for name, value in (release.state | change).items() if value is not None}
    with pytest.raises(CapriccioError, match=says):
        open_backbone(release.base, device="cpu", inpainting=release.write(changed, "changed.pth"))


@pytest.mark.parametrize(
    ("side", "value", "says"),
    [
        ("to_k_ip", None, r"Assign in .* 1 keys are missing .*attn2\.to_k_ip\.weight' is missing.*inpainting="),
        ("to_v_ip", torch.zeros(2, 3), r"attn2\.to_v_ip\.weight' has the shape \(2, 3\) instead of"),
    ],
)
def test_an_assign_that_is_not_whole_is_a_sentence(
    release: Release, side: str, value: Tensor | None, says: str
) -> None:
    key = next(name for name in release.state if side in name)
    changed = {name: new for name, new in (release.state | {key: value}).items() if new is not None}
    with pytest.raises(CapriccioError, match=says):
        release.open(module=release.write(changed, "changed.pth"))


def test_what_should_lie_beside_is_missed(release: Release) -> None:
    release.models.joinpath(largen.ADAPTERS[0]).unlink()
    with pytest.raises(CapriccioError, match=r"no 'ip-adapter-plus_sdxl_vit-h\.bin'.*put it there"):
        release.open()
    shutil.rmtree(release.models / largen.ENCODER)
    with pytest.raises(CapriccioError, match=r"no image_encoder in .*call it clip_encoder"):
        release.open()
    release.models.joinpath(largen.ENCODER).mkdir()
    with pytest.raises(CapriccioError, match=r"CLIP vision model in .* could not be read"):
        release.open()


def test_another_clip_is_told(release: Release) -> None:
    config = copy.copy(release.module.eye.encoder.config)
    config.hidden_size = 16
    CLIPVisionModelWithProjection(config).save_pretrained(release.models / largen.ENCODER)
    with pytest.raises(CapriccioError, match="from features of width 32, but the model reads 64 and its CLIP sees 16"):
        release.open()


def test_a_file_of_no_lar_gen_is_a_sentence(release: Release) -> None:
    plain = release.write(ldm(release.unet), "plain.pth")
    with pytest.raises(CapriccioError, match="holds neither an IP-Adapter nor LAR-Gen"):
        release.open(module=plain)
    for damaged in (b"", b"nothing"):
        plain.write_bytes(damaged)
        for own in ({"inpainting": plain}, {"module": plain}):
            with pytest.raises(CapriccioError, match="could not be read"):
                release.open(**own)
    torch.save({"picture": Image.new("L", (1, 1))}, plain)  # which only code could make
    with pytest.raises(CapriccioError, match="nothing but weights by name"):
        release.open(inpainting=plain)
    release.file.unlink()
    with pytest.raises(CapriccioError, match=r"with ip_adapter\.safetensors or largen_ckpt_s22k\.pth"):
        Studio.open(release.base, device="cpu", modules={"lar-gen": release.models})


def test_assign_fits_the_model_that_it_was_trained_with(release: Release, tmp_path: Path) -> None:
    tiny.stable_diffusion("sd15").save_pretrained(tmp_path / "sd15")
    with pytest.raises(CapriccioError, match=r"Assign in .* does not fit the inpainting model.*open the SDXL model"):
        Studio.open(tmp_path / "sd15", device="cpu", modules={"lar-gen": release.models})


def test_single_files_are_not_quantised(whole: Release) -> None:
    with pytest.raises(CapriccioError, match="is a single file; use 'offload'"):
        loading._engine(whole.file, tiny.stable_diffusion("sdxl"), torch.float32, "4bit")
