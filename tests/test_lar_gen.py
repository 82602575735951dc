"""LAR-Gen: Locate, Assign, Refine on tiny models, and their files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.embeddings import ImageProjection
from PIL import Image
from safetensors.torch import load_file, save_file

from capriccio import Edit, Scene, Studio, Subject
from capriccio.attention import layers_of
from capriccio.backbones.unet import UNetBackbone
from capriccio.errors import CapriccioError
from capriccio.formats import ip_adapter
from capriccio.methods import METHODS, lar_gen
from capriccio.modules.lar_gen import LarGen, crossings, decoder, learns_in_refine
from capriccio.studio import add_modules

SMALL: dict[str, Any] = {"width": 48, "height": 32, "num_inference_steps": 2, "guidance_scale": 3.0}


def open_studio(refine: bool = True, loaded: bool = True, kind: str = "sd15") -> Studio:
    pipe, inpainting = tiny.stable_diffusion(kind), tiny.stable_diffusion(kind, inpaint=True, seed=4)
    studio = Studio(UNetBackbone(pipe, fill=inpainting.unet, name="tiny"))
    if loaded:
        studio.backbone.modules["lar-gen"] = tiny.lar_gen(studio.backbone, refine)
    return studio


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def studio(request: pytest.FixtureRequest) -> Studio:
    return open_studio(kind=request.param)


@pytest.fixture
def mug(subject_picture: Image.Image) -> Subject:
    cut = subject_picture.convert("RGB")
    mask = np.zeros((cut.height, cut.width), np.uint8)
    mask[8:-8, 12:-12] = 255
    cut.putalpha(Image.fromarray(mask))
    return Subject(cut, name="mug")


def scene(mug: Subject, picture: Image.Image, spot: Image.Image, prompt: str = "a {mug}", **options: Any) -> Scene:
    own = mug.model_copy(update={"options": options})
    return Scene(prompt, [own, Edit(picture, mask=spot)], **SMALL)


def array(picture: Image.Image) -> Any:
    return np.asarray(picture).astype(int)


# --- the method ---


def test_the_plan_says_what_will_be(studio: Studio, mug: Subject, picture: Image.Image, spot: Image.Image) -> None:
    plan = studio.plan(scene(mug, picture, spot))
    said = str(plan)
    assert plan.method.name == "lar-gen"
    assert "16 tokens of the mug" in said
    assert "bank image -> assign:mug, in a softmax of its own x 0.3" in said
    assert "bank image -> refine:mug, in the same softmax" in said
    assert "refine:mug joined to the keys" in said
    alone = studio.plan(scene(mug, picture, spot, prompt=""))
    assert "in a softmax of its own x 1 " in str(alone)
    without = studio.plan(scene(mug, picture, spot, refine=False))
    assert without.cost.flops < plan.cost.flops
    assert "RefineNet" not in str(without)


def test_neutral_is_plain_inpainting(studio: Studio, mug: Subject, picture: Image.Image, spot: Image.Image) -> None:
    plain = studio.paint(Scene("a mug", [Edit(picture, mask=spot, by="inpainting")], **SMALL)).images[0]
    neutral = studio.paint(scene(mug, picture, spot, "a mug", beta=0, refine=False, hold=False)).images[0]
    assert (array(neutral) == array(plain)).all()


@pytest.mark.parametrize("change", [{"beta": 1.0}, {"refine": True}], ids=["assign", "refine"])
def test_each_part_has_an_effect_inside_the_mask_alone(
    studio: Studio, mug: Subject, picture: Image.Image, spot: Image.Image, change: dict[str, Any]
) -> None:
    off = {"beta": 0, "refine": False}
    one, other = (
        array(studio.paint(scene(mug, picture, spot, **off | own)).images[0]) for own in ({}, change)
    )  # fmt: skip
    mask = array(spot) > 127
    assert (one[mask] != other[mask]).any()
    for found in (one, other):
        assert (found[~mask] == array(picture)[~mask]).all()


def test_another_subject_is_another_picture(
    studio: Studio, mug: Subject, picture: Image.Image, spot: Image.Image
) -> None:
    other = Subject(Image.new("RGB", (40, 30), "red"), name="mug", remove_background=False)
    one, two = (array(studio.paint(scene(s, picture, spot, beta=1)).images[0]) for s in (mug, other))
    assert (one != two).any()


def test_seeds_together_equal_seeds_apart(
    studio: Studio, mug: Subject, picture: Image.Image, spot: Image.Image
) -> None:
    asked = scene(mug, picture, spot)
    together = studio.paint(asked.but(seeds=(5, 6))).images
    for seed, image in zip((5, 6), together, strict=True):
        assert np.abs(array(image) - array(studio.paint(asked.but(seed=seed)).images[0])).max() <= 1
    assert (array(together[0]) != array(together[1])).any()


def test_different_subjects_share_a_batch(
    studio: Studio, mug: Subject, picture: Image.Image, spot: Image.Image
) -> None:
    red = Subject(Image.new("RGB", (40, 30), "red"), name="mug", remove_background=False)
    scenes = [scene(s, picture, spot) for s in (mug, red)]
    both = [painting.images[0] for painting in studio.paint_all(scenes)]
    assert studio.plan(scenes[0]).batch_key == studio.plan(scenes[1]).batch_key
    for asked, image in zip(scenes, both, strict=True):
        assert np.abs(array(image) - array(studio.paint(asked).images[0])).max() <= 1


def test_refine_is_computed_once_a_step_for_all_pictures(
    studio: Studio, mug: Subject, picture: Image.Image, spot: Image.Image
) -> None:
    refine = studio.backbone.modules["lar-gen"].refine
    rows: list[int] = []
    handle = refine.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        studio.paint(scene(mug, picture, spot).but(seeds=(1, 2, 3)))
    finally:
        handle.remove()
    assert rows == [1, 1]


def test_models_are_left_as_they_were(studio: Studio, mug: Subject, picture: Image.Image, spot: Image.Image) -> None:
    nets = (studio.backbone.fill, studio.backbone.modules["lar-gen"].refine)
    before = [list(net.attn_processors.values()) for net in nets]
    studio.paint(scene(mug, picture, spot))
    after = [list(net.attn_processors.values()) for net in nets]
    for found, was in zip(after, before, strict=True):
        assert [id(one) for one in found] == [id(one) for one in was]


def test_known_latents_are_held_as_well(studio: Studio, mug: Subject, picture: Image.Image, spot: Image.Image) -> None:
    """Eq. 3 beside Eqs. 1 and 2: whatever the seed, what is known ends as what it is."""
    read, held = (scene(mug, picture, spot, hold=hold).but(seeds=(1, 2)) for hold in (False, True))
    paintings = [studio.paint(one) for one in (read, held)]
    assert paintings[0].plan.batch_key != paintings[1].plan.batch_key
    assert "known latents are held on their path as well" in str(paintings[1].plan)
    assert "known latents" not in str(paintings[0].plan)
    known = array(spot.resize(paintings[0].canvases[0].size)) < 128
    loose, tight = (np.abs(np.subtract(*map(array, one.canvases)))[known].mean() for one in paintings)
    assert tight < loose / 2
    with pytest.raises(CapriccioError, match="has no effect with the engine 'hold'"):
        studio.plan(scene(mug, picture, spot, hold=True, engine="hold"))


def test_it_is_chosen_where_it_is_loaded(mug: Subject, picture: Image.Image, spot: Image.Image) -> None:
    without = open_studio(loaded=False)
    assert without.plan(scene(mug, picture, spot)).method.name == "diptych"
    with pytest.raises(CapriccioError, match="Nothing of LAR-Gen is loaded"):
        without.plan(Scene("a mug", [mug.model_copy(update={"by": "lar-gen"}), Edit(picture, mask=spot)], **SMALL))


def test_what_cannot_be_is_a_sentence(mug: Subject, picture: Image.Image, spot: Image.Image) -> None:
    studio = open_studio(refine=False)
    assert "RefineNet" not in str(studio.plan(scene(mug, picture, spot)))
    with pytest.raises(CapriccioError, match="nobody has published one"):
        studio.plan(scene(mug, picture, spot, refine=True))
    with pytest.raises(CapriccioError, match="did you mean 'beta'"):
        studio.plan(scene(mug, picture, spot, betta=1))
    with pytest.raises(CapriccioError, match="give a mask"):
        studio.plan(Scene("a mug", [mug, Edit(picture, strength=0.5)], **SMALL))
    empty = Image.new("RGBA", (20, 20))
    with pytest.raises(CapriccioError, match="transparent everywhere"):
        studio.paint(scene(Subject(empty, name="mug"), picture, spot))
    with pytest.raises(CapriccioError, match="give one"):
        studio.plan(scene(Subject([picture, picture], name="mug"), picture, spot))
    flux = Studio(tiny.flux())
    with pytest.raises(CapriccioError, match="adds to a U-Net"):
        flux.plan(Scene("a mug", [mug.model_copy(update={"by": "lar-gen"}), Edit(picture, mask=spot)]))


def test_on_sdxl_refine_reads_sizes_as_the_painter_does_and_no_pooled_text(
    mug: Subject, picture: Image.Image, spot: Image.Image
) -> None:
    studio = open_studio(kind="sdxl")
    read: dict[str, list[Any]] = {"fill": [], "refine": []}
    nets = {"fill": studio.backbone.fill, "refine": studio.backbone.modules["lar-gen"].refine}
    for name, net in nets.items():
        net.register_forward_pre_hook(
            lambda module, args, given, name=name: read[name].append(given["added_cond_kwargs"]), with_kwargs=True
        )
    studio.paint(scene(mug, picture, spot))
    for painter, refine in zip(read["fill"], read["refine"], strict=True):
        assert refine["time_ids"].tolist() == [[32, 48, 0, 0, 32, 48]] == painter["time_ids"][:1].tolist()
        assert refine["text_embeds"].shape[-1] == painter["text_embeds"].shape[-1]
        assert painter["text_embeds"].any()
        assert not refine["text_embeds"].any()


# --- the networks ---


def test_the_decoder_is_every_self_attention_of_the_way_up(studio: Studio) -> None:
    unet, module = studio.backbone.base, studio.backbone.modules["lar-gen"]
    chosen = [layer.name for layer in layers_of(unet) if layer in decoder(unet)]
    assert chosen == [n.removesuffix(".processor") for n in unet.attn_processors if "up_" in n and "attn1" in n]
    noise, details = torch.randn(2, tiny.LATENTS, 8, 12), module.details(torch.zeros(2, 3, 16, 16))
    beside = studio.backbone.beside(details, (8, 12))
    states = module.reference(noise, noise, torch.tensor([0.2, 0.5]), torch.tensor(9), details, beside).states
    assert sorted(states) == sorted(chosen)


def test_only_cross_attention_learns_in_refine(studio: Studio) -> None:
    names = [name for name, _ in studio.backbone.base.named_parameters() if learns_in_refine(name)]
    assert names
    assert all(".attn2." in name for name in names)


def test_nothing_is_zeros_to_clip() -> None:
    eye = tiny.eye()
    seen = []
    eye.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    eye.features(eye.nothing.expand(1, 3, 40, 40))
    assert seen[0].abs().max() < 1e-5


# --- files ---


def test_files_come_back_the_same(tmp_path: Path, studio: Studio) -> None:
    backbone, module = studio.backbone, studio.backbone.modules["lar-gen"]
    module.save(tmp_path)
    again = LarGen.load(tmp_path, backbone.fill, backbone.base, tiny.eye())
    for (name, old), (_, new) in zip(module.state_dict().items(), again.state_dict().items(), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-3, atol=1e-3, msg=name)


def test_a_refinenet_knows_what_it_is_a_copy_of(
    tmp_path: Path, mug: Subject, picture: Image.Image, spot: Image.Image
) -> None:
    studio, asked = open_studio(), scene(mug, picture, spot)
    backbone = studio.backbone
    backbone.modules["lar-gen"].save(tmp_path)
    same, halved, other = (copy.deepcopy(backbone.base) for _ in range(3))
    other.conv_in.weight.data += 0.01
    for base, differs in ((same, False), (halved.half(), False), (other, True)):
        backbone.modules["lar-gen"] = LarGen.load(tmp_path, backbone.fill, base, tiny.eye())
        assert ("learned beside other weights" in str(studio.plan(asked))) == differs
    assert "learned beside" not in str(studio.plan(scene(mug, picture, spot, refine=False)))
    rounded = copy.deepcopy(other).bfloat16()  # of which nobody can say whether it is the same
    assert not LarGen.load(tmp_path, backbone.fill, rounded, tiny.eye()).base_differs
    save_file(load_file(tmp_path / "refine.safetensors"), tmp_path / "refine.safetensors")  # of before there was a hash
    assert not LarGen.load(tmp_path, backbone.fill, other, tiny.eye()).base_differs


def test_the_file_of_assign_is_an_ip_adapter_plus(tmp_path: Path) -> None:
    """Plain diffusers loads it, and paints with it what our bank paints."""
    studio = open_studio(refine=False)
    studio.backbone.modules["lar-gen"].save(tmp_path)
    pipe = StableDiffusionPipeline(
        **{n: p for n, p in studio.backbone.pipe.components.items() if n not in ("feature_extractor", "image_encoder")},
        feature_extractor=None, image_encoder=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name="ip_adapter.safetensors", image_encoder_folder=None)
    loaded = pipe.unet.encoder_hid_proj.image_projection_layers[0]
    ours = studio.backbone.modules["lar-gen"].resampler
    states = torch.randn(2, 5, 32)
    torch.testing.assert_close(loaded(states).reshape(2, 16, -1), ours(states), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_plain_ip_adapter_is_assign_too(
    tmp_path: Path, kind: str, mug: Subject, picture: Image.Image, spot: Image.Image
) -> None:
    """Four tokens of a picture's embedding; nobody is a zero embedding; plain diffusers reads what is saved again."""
    studio = open_studio(refine=False, kind=kind)
    backbone, module = studio.backbone, studio.backbone.modules["lar-gen"]
    width = backbone.fill.config.cross_attention_dim
    module.resampler = ImageProjection(module.eye.embedding_width, width, 4)
    module.save(tmp_path)
    again = LarGen.load(tmp_path, backbone.fill, None, tiny.eye())
    backbone.modules["lar-gen"] = again
    pixels = torch.rand(2, 3, 20, 20) * 2 - 1
    embedding = again.eye.features(pixels)[2]
    torch.testing.assert_close(again.assign(pixels).states, again.resampler(embedding))
    torch.testing.assert_close(again.nobody(1).states, again.resampler(torch.zeros_like(embedding[:1])))
    assert again.queries == 4
    plan = studio.plan(scene(mug, picture, spot))
    assert "4 tokens of the mug" in str(plan)
    weak, strong = (studio.paint(scene(mug, picture, spot, beta=b)).images[0] for b in (0, 1))
    assert (array(weak) != array(strong)).any()
    own = tiny.stable_diffusion(kind).unet
    own._load_ip_adapter_weights([ip_adapter.read(tmp_path / "ip_adapter.safetensors")])
    loaded = own.encoder_hid_proj.image_projection_layers[0]
    torch.testing.assert_close(loaded(embedding), again.resampler(embedding), rtol=1e-2, atol=1e-2)


def test_a_bin_file_is_read_as_well(tmp_path: Path, studio: Studio) -> None:
    studio.backbone.modules["lar-gen"].save(tmp_path)
    flat = load_file(tmp_path / "ip_adapter.safetensors")
    groups = {g: {k.removeprefix(f"{g}."): v for k, v in flat.items() if k.startswith(g)} for g in ip_adapter.GROUPS}
    torch.save(groups, tmp_path / "ip-adapter-plus.bin")
    read = ip_adapter.read(tmp_path / "ip-adapter-plus.bin")
    assert read.keys() == groups.keys()
    assert all(torch.equal(read[g][k], v) for g, group in groups.items() for k, v in group.items())
    assert {int(key.split(".")[0]) for key in read["ip_adapter"]} == {
        2 * i + 1 for i in range(len(crossings(studio.backbone.fill)))
    }


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_in_half_precision_all_but_the_eye_follows_the_painter(
    tmp_path: Path, kind: str, mug: Subject, picture: Image.Image, spot: Image.Image
) -> None:
    open_studio(kind=kind).backbone.modules["lar-gen"].save(tmp_path)
    pipe, inpainting = tiny.stable_diffusion(kind), tiny.stable_diffusion(kind, inpaint=True, seed=4)
    backbone = UNetBackbone(pipe.to(torch.bfloat16), fill=inpainting.unet.to(torch.bfloat16), name="tiny")
    module = LarGen.load(tmp_path, backbone.fill, backbone.base, tiny.eye())
    backbone.modules["lar-gen"] = module
    assert module.eye.encoder.dtype == torch.float32
    assert array(Studio(backbone).paint(scene(mug, picture, spot)).images[0]).std() > 1


def test_files_that_do_not_fit_are_sentences(tmp_path: Path) -> None:
    backbone = open_studio().backbone
    (tmp_path / "ip_adapter.safetensors").write_bytes(b"nothing")
    with pytest.raises(CapriccioError, match="could not be read"):
        LarGen.load(tmp_path, backbone.fill, backbone.base, tiny.eye())
    torch.save({"image_proj": {"proj.weight": torch.ones(2)}, "ip_adapter": {"1.x": torch.ones(1)}}, tmp_path / "a.bin")
    with pytest.raises(CapriccioError, match="neither a plain one nor of the Plus kind"):
        LarGen.load(tmp_path / "a.bin", backbone.fill, backbone.base, tiny.eye())
    backbone.modules["lar-gen"].save(tmp_path)
    other = tiny.stable_diffusion("sdxl").unet
    with pytest.raises(CapriccioError, match="does not fit this model"):
        LarGen.load(tmp_path, other, other, tiny.eye())
    with pytest.raises(CapriccioError, match="which is not open"):
        LarGen.load(tmp_path, backbone.fill, None, tiny.eye())
    with pytest.raises(CapriccioError, match="no image_encoder"):
        lar_gen.load(tmp_path, backbone)
    with pytest.raises(CapriccioError, match="did you mean 'lar-gen'"):
        add_modules(backbone, {"lar_gen": tmp_path}, METHODS)
