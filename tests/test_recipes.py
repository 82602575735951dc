"""Every recipe learns for a step and saves folders that plain diffusers loads, on tiny untrained parts."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FluxControlNetModel,
    FluxFillPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import Attention
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    T5EncoderModel,
)

from capriccio import assets
from capriccio.backbones.flux import FluxBackbone
from capriccio.backbones.loading import open_backbone
from capriccio.errors import CapriccioError
from capriccio.evaluation import holes, sheets, targets
from capriccio.evaluation.lar_gen.painters import VARIANTS, Settings
from capriccio.evaluation.lar_gen.samples import Guest, Place, Sample, Wish
from capriccio.formats.alimama import load_inpainting_controlnet
from capriccio.modules.lar_gen import Eye, LarGen
from capriccio.objectives import flow_matching_pair
from capriccio.recipes import (
    control,
    cuttings,
    flux,
    gallery,
    inpainting,
    masks,
    miniature,
    paint_by_example,
    painting,
    sd,
    style_lora,
    t5,
    teacher,
    told,
    vae,
)
from capriccio.recipes.clip import NAMED, ClipTask, Towers, distinct, image_processor, patch_shares, truths
from capriccio.recipes.diffusion import noised
from capriccio.recipes.lar_gen import miniature as lar_gen
from capriccio.recipes.reader import IGNORED, indices
from capriccio.recipes.subjects import alone
from capriccio.scene import Control, Edit, Lora, Scene, Subject
from capriccio.studio import Studio
from capriccio.training.trainer import Schedule
from capriccio.world.captions import NOUNS, caption
from capriccio.world.casting import VIEWS, flat, sample_people, sample_people_panels
from capriccio.world.draw import NUM_PARTS, draw
from capriccio.world.graph import PATTERNS, Backdrop, Identity, SceneGraph, Thing, sample_panels, sample_scene
from capriccio.world.people import top_of
from capriccio.world.tokenizers import clip_tokenizer
from capriccio.world.views import sample_view
from capriccio.world.whole import UNKNOWN
from capriccio.world.windows import body_part

WINGS = {
    "cpu": tuple(gallery.Wing(name, rows, columns, 4) for name, rows, columns in [("scenes", 1, 1), ("pairs", 1, 2)])
}


def small_vae() -> AutoencoderKL:
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=8,
        norm_num_groups=2,
        shift_factor=0.1,
        scaling_factor=1.2,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return model.eval().requires_grad_(False)


def small_clip() -> CLIPTextModel:
    words = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=192,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return CLIPTextModel(config).eval().requires_grad_(False)


def small_t5() -> T5EncoderModel:
    return t5.new_text_encoder(len(flux.t5_tokenizer()), width=64, layers=1).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained FLUX pipeline folder."""
    torch.manual_seed(0)
    size = flux.Size(heads=1, double=2, single=2)
    encoder = small_t5()
    folder = tmp_path_factory.mktemp("flux")
    flux.pipeline(flux.new_transformer(size), encoder, small_vae(), small_clip()).save_pretrained(folder)
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "SHARD", 4)
    monkeypatch.setattr(gallery, "WINGS", WINGS)
    for task in (flux.FluxTask, inpainting.FillTask, inpainting.ControlNetTask, sd.SDTask):
        monkeypatch.setattr(task, "shares", {"scenes": 0.5, "pairs": 0.5})
        monkeypatch.setattr(task, "sizes", {"scenes": 2, "pairs": 2})
    monkeypatch.setattr(control.UnionTask, "sizes", {"scenes": 2})


def prepared(task: Any) -> Any:
    task.__dict__.update(vae=small_vae(), clip=small_clip())
    if type(task) is flux.FluxTask:  # what learns beside a FLUX takes the base's own
        task.__dict__["text_encoder"] = small_t5()
    return task


def one_step(task: Any) -> tuple[torch.nn.Module, Tensor]:
    model = task.models()
    loss, readings = task.loss(model, task.batch(np.random.default_rng(3)), torch.Generator().manual_seed(0))
    loss.backward()
    assert all(torch.isfinite(value) for value in readings.values())
    return model, loss


def test_clips_loss_reaches_every_weight_and_ignores_what_a_caption_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "SHARD", 64)
    monkeypatch.setattr(gallery, "WINGS", {"cpu": (gallery.Wing("scenes", 1, 1, 64),)})
    task = prepared(ClipTask(tmp_path))
    batch = task.batch(np.random.default_rng(0))
    told, seen = (batch[f"{side}/main"] != IGNORED for side in ("text", "image"))
    assert told.sum() < seen.sum()
    assert not (told & ~seen).any()
    few = {name: value[:32] for name, value in batch.items()}
    model = task.models()
    loss, _ = task.loss(model, few, torch.Generator())
    loss.backward()
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert loss.isfinite()
    assert unused == set()


def test_saved_encoders_load_as_flux_and_plain_clip_need_them(tmp_path: Path) -> None:
    task = ClipTask(tmp_path)
    torch.manual_seed(0)
    model = Towers(task.tokenizer, layers=1).eval()
    task.save(model, tmp_path)
    ids = task.ids(["a red mug in the snow", "the cat"])
    pooled = CLIPTextModel.from_pretrained(tmp_path / "text_encoder", dtype=torch.float32)(ids).pooler_output
    embedded = CLIPTextModelWithProjection.from_pretrained(tmp_path / "text_encoder", dtype=torch.float32)(ids)
    assert pooled.shape == embedded.text_embeds.shape == (2, 192)
    assert not torch.allclose(pooled, embedded.text_embeds)
    images = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "image_encoder", dtype=torch.float32)
    pixels = torch.rand(1, 3, 128, 128) * 2 - 1
    expected = model.image_encoder(pixel_values=pixels).image_embeds
    assert torch.allclose(images(pixel_values=pixels).image_embeds, expected, atol=0.02)
    CLIPImageProcessor.from_pretrained(tmp_path / "feature_extractor")


def test_the_image_processor_gives_the_pixels_that_were_learned() -> None:
    from PIL import Image

    pixels = image_processor()(Image.new("RGB", (200, 128), "white"), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 128, 128)
    assert torch.allclose(pixels, torch.ones(()))


def test_patch_shares_are_distributions() -> None:
    rng = np.random.default_rng(0)
    labels = draw([sample_scene(rng) for _ in range(6)]).parts[:, 2::4, 2::4]
    shares = patch_shares(labels, NUM_PARTS)
    assert shares.shape == (6, 64, NUM_PARTS)
    assert torch.allclose(shares.sum(-1), torch.ones(()))
    assert torch.equal(patch_shares(torch.full_like(labels, UNKNOWN), NUM_PARTS), torch.zeros_like(shares))


def test_retrieval_is_asked_on_distinct_captions() -> None:
    for content in ("objects", "people"):
        found, texts = distinct(np.random.default_rng(0), 32, content)
        assert len(found) == len(set(texts)) == 32


def test_clip_names_what_stands_alone() -> None:
    rng = np.random.default_rng(0)
    one, two, view, worn = (
        sample_scene(rng, 1, style="pencil"),
        sample_scene(rng, 2),
        sample_view(rng),
        sample_people(rng, view="half", style="shaded"),
    )
    assert set(truths(one)) == {"kind", "pattern", "backdrop", "style"}
    assert set(truths(two)) == {"backdrop", "style"}
    assert truths(view)["main"] == view.solid.main
    assert truths(worn)["hair colour"] == worn.people[0].person.hair_colour
    garment = top_of(worn.people[0])
    assert garment is not None
    assert truths(worn)["cloth"] == garment.main
    found = indices([truths(one), truths(worn)], NAMED)
    assert found["main"].tolist() == [IGNORED, IGNORED]
    assert NAMED["style"][int(found["style"][0])] == "pencil"


def test_clip_goes_on_from_a_folder(tmp_path: Path) -> None:
    first = ClipTask(tmp_path).models()
    for part in ("text_encoder", "image_encoder"):
        getattr(first, part).save_pretrained(tmp_path / part)
    torch.manual_seed(9)
    again = ClipTask(tmp_path, start=tmp_path, schedule=Schedule(minutes=1, seed=9)).models()
    for part in ("text_encoder", "image_encoder"):
        twins = zip(getattr(first, part).parameters(), getattr(again, part).parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in twins)
    assert not torch.equal(first.cells.weight, again.cells.weight)


@pytest.mark.usefixtures("small")
def test_flux_learns_and_saves(tmp_path: Path, base: Path) -> None:
    task = prepared(flux.FluxTask(tmp_path, start=base))
    model, loss = one_step(task)
    assert torch.isfinite(loss)
    assert model.transformer.proj_out.weight.grad.abs().sum() > 0
    task.save(model, tmp_path / "out")
    pipe = FluxPipeline.from_pretrained(tmp_path / "out")  # as the README does, with no word on precision
    assert not any("_name_or_path" in place.read_text() for place in (tmp_path / "out").glob("*/config.json"))
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a mug", height=32, width=32, num_inference_steps=1, max_sequence_length=16, output_type="np").images
    assert picture.shape == (1, 32, 32, 3)
    assert np.isfinite(picture).all()


def test_a_new_t5_tells_before_from_after() -> None:
    encoder = t5.new_text_encoder(32, width=256, layers=1)
    encoder.set_attn_implementation("eager")
    torch.nn.init.zeros_(encoder.encoder.block[0].layer[0].SelfAttention.q.weight)  # by order alone
    there = encoder(torch.tensor([[5, 6, 7, 8, 9, 1]]), output_attentions=True).attentions[0][0].detach()
    back, ahead, near, anywhere = there[:, 3]  # what the fourth of six words looks at
    assert back[:4].sum() > 0.9
    assert ahead[4:].sum() > 0.9
    assert near.argmax() == 3
    assert near[2] > near[1] > near[0]
    assert near[4] > near[5]
    assert torch.allclose(anywhere, torch.full((6,), 1 / 6))


def test_questions_ask_for_what_stands_where_in_the_order_of_sentences() -> None:
    rng = np.random.default_rng(0)
    pair, four, person = sample_scene(rng, 2), sample_scene(rng, 4), sample_people(rng, view="half", style="shaded")
    asked = told.told([pair, four, person, None, sample_view(rng)])
    assert asked["told/count"].tolist() == [2, 4, 1, 0, 0]
    left, right = sorted(pair.things, key=lambda thing: thing.x)
    kinds = [told.ASKED["kind"].index(thing.identity.kind) for thing in (left, right)]
    assert asked["told/kind"][0].tolist() == [*kinds, IGNORED, IGNORED]
    corners = [told.ASKED["kind"][index] for index in asked["told/kind"][1]]
    said = re.findall(r"([a-z]+) at the (top|bottom) (left|right)", caption(replace(four, style="pencil"), rng, "kind"))
    nouns = {f"{row} {side}": noun for noun, row, side in said}
    for kind, corner in zip(corners, ("top left", "top right", "bottom left", "bottom right"), strict=True):
        assert nouns[corner] in NOUNS.get(kind, (kind,))
    assert told.ASKED["person"][asked["told/person"][2, 0]] == person.people[0].person.kind
    assert (asked["told/kind"][2:] == IGNORED).all()  # a person has no such kind; nothing said, nothing asked


def test_questions_learn_from_what_there_is_to_name_alone() -> None:
    rng = np.random.default_rng(1)
    asked = told.told([sample_scene(rng, 2, style="shaded"), None])
    answers = {name: torch.zeros(2, told.PLACES, len(words)) for name, words in told.ASKED.items()}
    for name in ("kind", "main", "accent", "pattern"):
        answers[name][0].scatter_(1, asked[f"told/{name}"][0].clamp_min(0)[:, None], 50.0)
    assert float(told.told_loss(answers, asked)) < 1e-6
    assert float(told.told_loss(answers, told.told([None, None]))) == 0.0


def test_t5_learns_what_sentences_tell_and_saves(tmp_path: Path) -> None:
    schedule = Schedule(minutes=1, steps=30, warmup=3, average=0.5)
    task = t5.T5Task(schedule=schedule, content="objects")
    model = task.models()
    optimisers = task.optimisers(model)
    said: list[float] = []
    for step in range(schedule.steps):
        loss, readings = task.loss(model, task.batch(np.random.default_rng(step)), torch.Generator())
        assert set(readings) == {"told"}
        said.append(loss.item())
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
    assert np.mean(said[-5:]) < 0.85 * np.mean(said[:5])
    rows = {row.name: row.value for row in task.measure(model)}
    assert set(rows) == {"t5_kind_by_side", "t5_main_by_side"}
    task.save(model, tmp_path / "out")
    again = T5EncoderModel.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(t5.distances(again), t5.distances(model.text_encoder))


@pytest.mark.parametrize(("largest", "stays", "inside"), [(0.2, False, ""), (2.0, True, "text_encoder_2")])
def test_a_t5_to_which_sentences_are_bags_of_words_is_shown_their_order(
    tmp_path: Path, largest: float, stays: bool, inside: str
) -> None:
    encoder = t5.new_text_encoder(len(flux.t5_tokenizer()), width=64, layers=1)
    torch.nn.init.constant_(t5.distances(encoder), largest)
    torch.nn.init.ones_(encoder.encoder.block[0].layer[0].SelfAttention.q.weight)
    encoder.save_pretrained(tmp_path / inside)
    task = t5.T5Task(start=tmp_path)
    model = task.models()
    text = model.text_encoder
    assert torch.equal(t5.distances(text), t5.distances(encoder)) == stays
    assert t5.knows_order(text)
    assert torch.equal(text.shared.weight, encoder.shared.weight)  # words mean what they meant
    layer = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert torch.equal(text.state_dict()[layer], encoder.state_dict()[layer]) == stays
    loss, readings = task.loss(model, task.batch(np.random.default_rng(0)), torch.Generator())
    assert float(loss) == pytest.approx(float(readings["told"] + t5.AS_BEFORE * readings["departure"]))
    assert (float(readings["departure"]) < 1e-6) == stays
    assert task.measure(model)[-1].name == "t5_alike_before"


@pytest.mark.usefixtures("small")
def test_flux_learns_beside_a_text_that_stays(tmp_path: Path, base: Path) -> None:
    model, _ = one_step(prepared(flux.FluxTask(tmp_path, start=base)))
    assert not any(name.startswith("text_encoder") for name, value in model.named_parameters() if value.requires_grad)
    assert all(value.grad is None for value in model.text_encoder.parameters())
    assert any(value.grad is not None for value in model.transformer.parameters())


def test_half_of_the_sentences_reach_flux_by_their_words_alone(tmp_path: Path, base: Path) -> None:
    task = prepared(flux.FluxTask(tmp_path, start=base))
    ids = task.sentences.clip_ids(["a red mug", "a cat in the snow"] * 40)
    heard, told = task.heard(ids, torch.Generator().manual_seed(0)), task.pooled(ids)
    silent = (heard == task.silence).all(1)
    assert 25 < int(silent.sum()) < 55
    assert torch.equal(heard[~silent], told[~silent])


@pytest.mark.usefixtures("small")
def test_fill_starts_as_its_base_and_saves(tmp_path: Path, base: Path) -> None:
    task = prepared(inpainting.FillTask(tmp_path, start=base))
    model, _ = one_step(task)
    learning = {name for name, value in model.named_parameters() if value.grad is not None}
    assert not any(name.startswith("text_encoder") for name in learning)
    assert not model.transformer.x_embedder.weight[:, 32:].any()
    task.save(model, tmp_path / "out")
    transformer = FluxTransformer2DModel.from_pretrained(tmp_path / "out", subfolder="transformer")  # plain diffusers
    assert FluxFillPipeline.from_pretrained(base, transformer=transformer).transformer.config.in_channels == 320
    assert open_backbone(str(base), inpainting=tmp_path / "out", device="cpu").fill is not None


@pytest.mark.usefixtures("small")
def test_a_fill_goes_on_where_it_was(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared(inpainting.FillTask(tmp_path, start=base))
    model, _ = one_step(first)
    first.save(model, tmp_path / "fill")
    monkeypatch.setattr(inpainting.assets, "path", lambda name: base)  # whose text it reads
    again = prepared(inpainting.FillTask(tmp_path, start=tmp_path / "fill"))
    restored = again.models()
    for name, value in model.transformer.state_dict().items():
        assert torch.equal(restored.transformer.state_dict()[name], value.half().float()), name
    rates = [
        [group["lr"] for one in task.optimisers(restored) for group in one.param_groups] for task in (first, again)
    ]
    assert rates[1] == [rate / 2 for rate in rates[0]]


@pytest.mark.usefixtures("small")
def test_controlnet_learns_alone_and_saves(tmp_path: Path, base: Path) -> None:
    task = prepared(inpainting.ControlNetTask(tmp_path, start=base))
    model, _ = one_step(task)
    assert all(value.grad is None for value in task.transformer.parameters())
    assert model.controlnet.controlnet_x_embedder.in_features == 36
    task.save(model, tmp_path / "out")
    assert load_inpainting_controlnet(tmp_path / "out").controlnet_x_embedder.in_features == 36


@pytest.mark.usefixtures("small")
def test_a_style_lora_learns_alone_and_joins_its_base(tmp_path: Path, base: Path) -> None:
    task = prepared(style_lora.StyleLoraTask(tmp_path, start=base, style="shaded"))
    graphs = task.wings["scenes"].graphs
    assert {getattr(graphs[row], "style", None) for row in task.of_style} == {"shaded"}
    model, loss = one_step(task)
    assert torch.isfinite(loss)
    learning = {name for name, value in model.named_parameters() if value.grad is not None}
    assert all(".attn." in name and ".lora_" in name for name in learning)
    assert len(learning) == 2 * (8 * 2 + 3 * 2)  # two matrices in each linear layer of two blocks of each kind
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    task.save(model, tmp_path / "out")
    with open_backbone(str(base), device="cpu").adapters(None, [Lora(tmp_path / "out")]):
        pass  # nothing of it is left out
    pipe = FluxPipeline.from_pretrained(base)
    pipe.load_lora_weights(tmp_path / "out", adapter_name="default")
    again, learned = get_peft_model_state_dict(pipe.transformer), get_peft_model_state_dict(model)
    assert set(again) == set(learned)
    assert all(torch.allclose(again[name], value, atol=1e-3) for name, value in learned.items())
    assert pipe.transformer.transformer_blocks[0].attn.to_q.scaling == {"default": 1.0}
    with pytest.raises(CapriccioError, match="no scene of the style 'cubist'"):
        prepared(style_lora.StyleLoraTask(tmp_path, start=base, style="cubist")).batch(np.random.default_rng(0))


@pytest.mark.usefixtures("small")
def test_the_union_starts_neutral_learns_alone_and_saves(tmp_path: Path, base: Path) -> None:
    task = prepared(control.UnionTask(tmp_path, start=base))
    for value in task.transformer.parameters():  # as if it had learned: its output is no longer zero
        value.add_(torch.randn_like(value) * 0.05)
    batches = [task.batch(np.random.default_rng(seed)) for seed in range(48)]
    assert {int(mode) for batch in batches for mode in batch["mode"].unique()} == set(range(len(control.CONTROLS)))
    assert all(len(batch["mode"].unique()) == 1 for batch in batches)
    assert batches[0]["control"].shape == (2, 3, 128, 128)
    assert all(-1 <= batch["control"].min() < batch["control"].max() <= 1 for batch in batches)
    model, _ = one_step(task)
    assert all(value.grad is None for value in task.transformer.parameters())
    learning = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    assert learning  # the zeroed outputs learn first
    assert {name.split(".")[1] for name in learning} == {"controlnet_blocks", "controlnet_single_blocks"}
    task.save(model, tmp_path / "out")
    saved = FluxControlNetModel.from_pretrained(tmp_path / "out")  # plain diffusers, without us
    assert (saved.config.num_layers, saved.config.num_single_layers, saved.config.num_mode) == (1, 1, 5)
    pipe = FluxPipeline.from_pretrained(base, transformer=task.transformer)
    studio = Studio(FluxBackbone(pipe, controlnets={"union": saved}))
    assert studio.backbone.modes("union") == control.CONTROLS
    control_picture = Control(Image.new("RGB", (128, 128)), "union", mode="depth")
    room = {"width": 128, "height": 128, "num_inference_steps": 1, "max_sequence_length": 16}
    ours, plain = (studio.paint(Scene("a mug", given, **room)).images[0] for given in ([control_picture], []))
    assert np.array_equal(np.asarray(ours), np.asarray(plain))  # untrained, it adds nothing


@pytest.fixture(scope="module")
def sd_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained Stable Diffusion pipeline folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sd")
    sd.pipeline(sd.new_unet(sd.Size((32, 64), 1)), small_vae(), small_clip()).save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("small")
def test_sd_learns_and_saves(tmp_path: Path, sd_base: Path) -> None:
    task = prepared(sd.SDTask(tmp_path, content="objects", start=sd_base))  # solids have no map to learn
    model, loss = one_step(task)
    assert torch.isfinite(loss)
    learning = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    assert {"unet.conv_out.weight", "head.1.weight"} <= learning
    assert all(value.grad is None for value in task.clip.parameters())
    task.save(model, tmp_path / "out")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "out")  # plain diffusers, without us
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a mug", height=32, width=64, num_inference_steps=1, output_type="np").images
    assert picture.shape == (1, 32, 64, 3)
    assert np.isfinite(picture).all()


@pytest.mark.usefixtures("small")
def test_a_teacher_moves_what_shows_a_person_and_nothing_else(tmp_path: Path, base: Path, sd_base: Path) -> None:
    task = prepared(flux.FluxTask(tmp_path, start=base, teacher=sd_base))
    noisy = torch.randn(3, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.3, 0.7, 0.95])
    parts = torch.zeros(3, 64, flux.CELLS, dtype=torch.long)
    parts[:, 5], parts[:, 6], parts[:, 7, : flux.CELLS // 2] = body_part("torso"), UNKNOWN, body_part("hair")
    parts[:, 8] = 1  # a thing
    batch = {"clip_ids": task.sentences.clip_ids(["a red mug", "", "a cat in the snow"]), "parts": parts}
    velocity = torch.zeros(3, 64, 32)
    wanted = task.wanted(velocity, noisy, sigma, batch)
    moved = wanted.abs().amax(-1) > 0
    assert moved[:2].nonzero()[:, 1].tolist() == [5, 7, 5, 7]  # backdrop, things and what nobody knows stay
    assert not moved[2].any()  # at that level the teacher is not asked
    believed = flux.pack(task.school.velocity(noisy, sigma, batch["clip_ids"]))
    assert torch.allclose(wanted[:2, 5], teacher.TRUST * believed[:2, 5])
    assert torch.allclose(wanted[:2, 7], teacher.TRUST / 2 * believed[:2, 7])
    panels, window = torch.zeros(3, 128, 32), torch.zeros(3, 48, 32)
    assert task.wanted(panels, noisy, sigma, batch) is panels  # it teaches whole scenes alone
    assert task.wanted(window, noisy, sigma, batch) is window
    nobody = batch | {"parts": parts.clamp(max=1)}
    assert task.wanted(velocity, noisy, sigma, nobody) is velocity  # which costs no forward
    assert prepared(flux.FluxTask(tmp_path, start=base)).wanted(velocity, noisy, sigma, batch) is velocity
    task.start = None  # a FLUX from nothing asks of things, too
    moved = task.wanted(velocity, noisy, sigma, batch).abs().amax(-1) > 0
    assert moved[0].nonzero().flatten().tolist() == [5, 7, 8]


@pytest.mark.usefixtures("small")
def test_a_taught_flux_learns(tmp_path: Path, base: Path, sd_base: Path) -> None:
    task = prepared(flux.FluxTask(tmp_path, start=base, teacher=sd_base))
    model, loss = one_step(task)
    assert torch.isfinite(loss)
    assert model.transformer.proj_out.weight.grad.abs().sum() > 0
    assert not any(value.requires_grad for value in task.school.unet.parameters())


def test_a_teacher_that_knows_its_own_noise_tells_the_velocity(sd_base: Path) -> None:
    school = teacher.Teacher.open(sd_base)
    clean, noise = torch.randn(2, 2, 8, 16, 16, generator=torch.Generator().manual_seed(1)).unbind()
    sigma = torch.tensor([0.2, 0.8])
    noisy, velocity = flow_matching_pair(clean, noise, sigma)
    seen: list[Tensor] = []

    def knows(sample: Tensor, times: Tensor, **_: Any) -> tuple[Tensor]:
        seen.append(times)
        return (noise,)

    school.unet.forward = knows
    assert torch.allclose(school.velocity(noisy, sigma, torch.ones(2, 5, dtype=torch.long)), velocity, atol=1e-4)
    assert 0 < seen[0][0] < seen[0][1] < 1000


def test_a_folder_that_cannot_teach_is_told(tmp_path: Path, base: Path, sd_base: Path) -> None:
    for folder in (tmp_path, base):
        with pytest.raises(CapriccioError, match="is no folder of a Stable Diffusion"):
            teacher.Teacher.open(folder)
    shutil.copytree(sd_base, tmp_path / "sd")
    place = tmp_path / "sd" / "scheduler" / "scheduler_config.json"
    place.write_text(place.read_text().replace('"epsilon"', '"v_prediction"'))
    with pytest.raises(CapriccioError, match="tells v_prediction; it must tell epsilon"):
        teacher.Teacher.open(tmp_path / "sd")


def test_the_map_counts_things_more_than_their_backdrop_and_the_unknown_not_at_all() -> None:
    logits = torch.zeros(1, 1, 3, painting.PARTS + painting.INKS)
    logits[..., 0, 1] = 3.0  # the first cell is read as part 1, the others as anything
    parts, inks = torch.tensor([[[1, 0, 0]]]), torch.zeros(1, 1, 3, dtype=torch.long)
    each = functional.cross_entropy(logits[0, 0, :, : painting.PARTS], parts[0, 0], reduction="none")
    by_hand = (painting.SHOWN * each[0] + each[1] + each[2]) / (painting.SHOWN + 2) + np.log(painting.INKS)
    assert float(painting.map_loss(logits, parts, inks)) == pytest.approx(float(by_hand), rel=1e-5)
    parts[..., 1] = inks[..., 1] = UNKNOWN
    by_hand = (painting.SHOWN * each[0] + each[2]) / (painting.SHOWN + 1) + np.log(painting.INKS)
    assert float(painting.map_loss(logits, parts, inks)) == pytest.approx(float(by_hand), rel=1e-5)
    nothing = torch.full_like(parts, UNKNOWN)
    assert float(painting.map_loss(logits, nothing, nothing)) == 0.0


def test_what_a_thing_looks_like_counts_more_than_its_backdrop() -> None:
    wanted = torch.zeros(1, 2, 3)
    parts = torch.tensor([[[1, 2], [0, painting.UNKNOWN]]])  # a token of a thing, and one that shows none
    on_thing, beside = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[0.0], [1.0]]])
    ones, inks = torch.ones(1, 2, 3), torch.zeros_like(parts)
    weigh = [float(painting.thing_error(ones * where, wanted, parts, inks)) for where in (on_thing, beside)]
    assert weigh[0] == pytest.approx(painting.DRAWN * weigh[1])
    assert sum(weigh) == pytest.approx(1.0)  # an error that is the same everywhere is just that


def test_a_token_with_a_mouth_counts_more_than_one_of_cloth() -> None:
    parts = torch.tensor([[[body_part("mouth"), body_part("face")], [body_part("torso"), body_part("torso")]]])
    assert painting.face_share(parts).tolist() == [[0.5, 0.0]]
    mouth, cloth = painting.thing_weights(parts, torch.zeros_like(parts))[0].tolist()
    assert mouth / cloth == pytest.approx((painting.DRAWN + 0.5 * painting.FACED) / painting.DRAWN)


def test_a_token_of_two_inks_counts_more_than_one_of_its_own() -> None:
    wanted, parts = torch.zeros(1, 2, 3), torch.zeros(1, 2, 4, dtype=torch.long)
    inks = torch.tensor([[[3, 3, 5, 3], [5, 5, 5, 5]]])  # one cell in four is another's
    assert painting.detail_share(inks).tolist() == [[0.25, 0.0]]
    errors = torch.eye(2)[:, None, :, None].expand(2, 1, 2, 3)  # all of it in the first token, or in the second
    mixed, plain = (float(painting.thing_error(error, wanted, parts, inks)) for error in errors)
    assert mixed == pytest.approx((1.0 + painting.DETAILED / 4) * plain)
    assert mixed + plain == pytest.approx(1.0)


def test_painters_meet_several_things_as_often_as_it_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, subjects) for subjects in (1, 1, 1, 1, 2, 3)]
    task = sd.SDTask(tmp_path)
    pictures = gallery.Pictures(*(np.zeros(6) for _ in range(3)), graphs=scenes, shards=[], subjects=[])
    rows = np.concatenate([task.choose(pictures, 100, rng) for _ in range(40)])
    assert pictures.crowded[rows].mean() == pytest.approx(task.crowded, abs=0.05)
    assert set(rows) == set(range(6))
    alone = gallery.Pictures(*(np.zeros(4) for _ in range(3)), graphs=scenes[:4], shards=[], subjects=[])
    assert {row for _ in range(20) for row in task.choose(alone, 10, rng)} == set(range(4))


def test_flux_meets_patterns_as_often_as_it_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    drawn = [sample_scene(rng, subjects, style=style) for subjects in (1, 2) for style in ("shaded", "neon") * 20]
    task = flux.FluxTask(tmp_path)
    pictures = gallery.Pictures(*(np.zeros(80) for _ in range(3)), graphs=drawn, shards=[], subjects=[])
    patterned = [
        graph.style == "shaded" and any(thing.identity.pattern != "plain" for thing in graph.things) for graph in drawn
    ]
    assert (pictures.patterned > 0).tolist() == patterned
    rows = [task.choose(pictures, 8, rng) for _ in range(400)]
    assert np.mean([pictures.patterned[batch].all() for batch in rows]) == pytest.approx(task.patterned, abs=0.06)
    times, single = np.bincount(np.concatenate(rows), minlength=80), ~pictures.crowded
    rates = [times[single & (pictures.patterned == gallery.PATTERN_WORTH[name])].mean() for name in PATTERNS[1:]]
    assert rates[2] / rates[0] == pytest.approx(3, rel=0.25)
    assert rates[1] / rates[0] == pytest.approx(3, rel=0.25)
    none = gallery.Pictures(*(np.zeros(40) for _ in range(3)), graphs=drawn[1::2], shards=[], subjects=[])
    assert len(set(task.choose(none, 2000, rng))) == 40  # where nothing has a pattern, everything is a lesson
    sheet = sample_panels(rng, style="shaded")
    paired = gallery.Pictures(*(np.zeros(1) for _ in range(3)), graphs=[sheet], shards=[], subjects=[])
    assert paired.patterned.tolist() == [gallery.PATTERN_WORTH[sheet.scenes[0].things[0].identity.pattern]]
    others = [sample_people(rng, style="neon"), sample_view(rng)]
    whole = gallery.Pictures(*(np.zeros(2) for _ in range(3)), graphs=others, shards=[], subjects=[])
    assert whole.patterned.all()  # who has people or solids to learn meets them as often


def test_stable_diffusion_meets_people_as_often_as_it_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    alone = [sample_people(rng, style="shaded", view=view) for view in VIEWS]
    others = [sample_people(rng, 2, style="shaded"), sample_people(rng, style="neon")]
    people = [*alone, sample_people_panels(rng, style="shaded", view="half"), *others]
    things = [sample_scene(rng, subjects, style="shaded") for subjects in (1, 2, 3) for _ in range(5)]
    pictures = gallery.Pictures(*(np.zeros(21) for _ in range(3)), graphs=people + things, shards=[], subjects=[])
    worth = [gallery.WHOLE_FIGURE_WORTH, 1.0, 1.0, 1.0, *[gallery.OTHER_PEOPLE_WORTH] * 2]
    assert pictures.peopled.tolist() == worth + [0.0] * 15
    task = sd.SDTask(tmp_path)
    rows = [task.choose(pictures, 8, rng) for _ in range(400)]
    lessons = [batch for batch in rows if pictures.peopled[batch].all()]
    assert len(lessons) / 400 == pytest.approx(task.peopled, abs=0.08)
    assert not any(pictures.peopled[batch].any() for batch in rows if not pictures.peopled[batch].all())
    shown = np.bincount(np.concatenate(lessons), minlength=6) / sum(len(batch) for batch in lessons)
    assert shown == pytest.approx(np.array(worth) / sum(worth), abs=0.05)
    for alike in (things, people):  # where there is nothing to choose between, all are shown
        some = gallery.Pictures(*(np.zeros(len(alike)) for _ in range(3)), graphs=alike, shards=[], subjects=[])
        assert {row for _ in range(80) for row in task.choose(some, 20, rng)} == set(range(len(alike)))


def test_flux_sees_people_through_less_noise_than_things_and_panels_through_more() -> None:
    levels, count = flux.FluxTask.levels, 2000
    things = torch.zeros(count, flux.SCENE, flux.CELLS, dtype=torch.long)
    people = things.clone()
    people[count // 2 :, 9, 3] = body_part("mouth")

    def middles(parts: Tensor, levels: flux.Levels = levels, width: int = 16) -> list[float]:
        batch = {"latents": torch.zeros(count, 1, 16, width), "parts": parts}
        drawn = levels.draw(batch, torch.Generator().manual_seed(0))
        assert drawn.shape == (count,)
        assert drawn.min() > 0
        assert drawn.max() < 1
        return [float(half.logit().median()) for half in drawn.chunk(2)]

    assert middles(people) == pytest.approx([levels.scenes, levels.people], abs=0.1)
    assert middles(things[:, :9]) == pytest.approx([levels.scenes] * 2, abs=0.1)  # what is cut out is a scene too
    assert middles(people.repeat(1, 2, 1), width=32) == pytest.approx([levels.panels] * 2, abs=0.1)
    assert middles(people, flux.Levels(0.5, 1.0)) == pytest.approx([0.5] * 2, abs=0.1)  # who names none has none
    assert levels.people < levels.scenes < levels.panels


def test_what_is_cut_out_is_where_its_region_would_be() -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, subjects) for subjects in (1, 2, 3, 4) for _ in range(3)]
    found = cuttings.Cuttings.of([*scenes, sample_view(rng)])
    assert sum(map(len, found.windows.values())) == 3 * (2 + 3 + 4)  # who is alone already is not cut out
    for window, things in found.windows.items():
        assert 0 <= window.left < window.right <= 8
        assert 0 <= window.top < window.bottom <= 8
        for row, thing in things:
            one = scenes[row].things[thing]
            assert window.left <= 8 * one.x <= window.right
            assert window.top <= 8 * one.y <= window.bottom
            assert cuttings.only(scenes[row], thing).things == (one,)


def test_some_sentences_tell_of_one_of_several_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    one, three, solid = sample_scene(rng, 1), sample_scene(rng, 3), sample_view(rng)
    task = sd.SDTask(tmp_path)
    told = [task.told_of(three, rng) for _ in range(2000)]
    partly = [graph for graph in told if graph is not three]
    assert len(partly) / 2000 == pytest.approx(painting.PARTLY, abs=0.03)
    assert {graph.things for graph in partly} == {(thing,) for thing in three.things}
    monkeypatch.setattr(sd.SDTask, "partly", 1.0)
    assert task.told_of(one, rng) is one
    assert task.told_of(solid, rng) is solid
    assert inpainting.FillTask(tmp_path).told_of(three, rng) is three


def test_early_steps_are_shown_as_often_as_asked() -> None:
    alphas = torch.linspace(1, 0.01, 1000)
    drawn = {
        early: noised(torch.zeros(4000, 1, 1, 1), alphas, torch.Generator().manual_seed(0), early)[2]
        for early in (0.0, 0.3, 1.0)
    }
    for early, times in drawn.items():
        assert times.min() >= (750 if early == 1 else 0)
        assert times.max() < 1000
        assert float((times >= 750).float().mean()) == pytest.approx(early + (1 - early) * 0.25, abs=0.02)
    beyond = drawn[1.0]
    assert float((beyond >= 875).float().mean()) == pytest.approx(0.5, abs=0.03)  # spread evenly


def test_some_sentences_tell_one_trait(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mug = Identity("mug", "red", "blue", "plain", (0.0,) * 6, 20.0, 0.0)
    scene = SceneGraph((Thing(mug, 0.5, 0.6, 0.6),), Backdrop("snow"))
    told = [text for _ in range(2000) if (text := sd.SDTask(tmp_path).sentences.say(scene, rng))]
    assert all("mug" in text or "cup" in text for text in told)
    full = np.mean(["blue" in text for text in told])
    assert full == pytest.approx(0.85 * (1 - painting.TRAITS), abs=0.04)  # the others are brief by themselves
    sparse = painting.Sentences(0.0, traits=1.0)
    for scene in (sample_scene(rng, 2), sample_scene(rng, 1, style="pencil"), sample_view(rng), sample_panels(rng)):
        assert not painting.has_traits(scene)
        assert sparse.say(scene, np.random.default_rng(1)) == painting.Sentences(0.0).say(
            scene, np.random.default_rng(1)
        )


@pytest.mark.parametrize("kind", [flux.FluxTask, sd.SDTask])
def test_painters_learn_from_cuttings(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, subjects) for subjects in (1, 2, 3, 4) for _ in range(3)]
    drawing = draw(scenes)
    maps = [gallery.cells(labels) for labels in (drawing.parts, drawing.inks)]
    latents = np.arange(12 * 8 * 16 * 16, dtype=np.float32).reshape(12, 8, 16, 16)
    task = kind(tmp_path)
    task.wings = {"scenes": gallery.Pictures(latents, *maps, graphs=scenes, shards=[], subjects=[])}
    task.clip = small_clip()
    monkeypatch.setattr(kind, "cut", 1.0)
    batch = task.batch(rng)
    _, top, left = (int(value) for value in batch["corner"])
    height, width = batch["latents"].shape[2:]
    side = kind.token // gallery.CELL
    assert batch["parts"].shape[1:] == (4 * height * 4 * width // (2 * side) ** 2, side * side)
    row = int(batch["latents"][0, 0, 0, 0]) // (8 * 16 * 16)
    cut = latents[row, 0, 2 * top : 2 * top + height, 2 * left : 2 * left + width]
    assert np.array_equal(batch["latents"][0, 0].numpy(), cut)
    loss, readings = task.loss(task.models(), batch, torch.Generator().manual_seed(0))
    assert loss.isfinite()
    assert set(readings) >= {"cuttings", "map"}


@pytest.mark.usefixtures("small")
def test_sd_inpainting_starts_as_its_base_and_saves(tmp_path: Path, sd_base: Path) -> None:
    task = prepared(sd.SDInpaintTask(tmp_path, start=sd_base))
    model, _ = one_step(task)
    assert model.unet.conv_in.weight.shape[1] == 8 + 1 + 8
    assert not model.unet.conv_in.weight[:, 8:].any()
    task.save(model, tmp_path / "out")
    assert UNet2DConditionModel.from_pretrained(tmp_path / "out", subfolder="unet").config.in_channels == 17
    # Plain diffusers knows inpainting with 4 latents only; here it paints.
    studio = Studio.open(sd_base, inpainting=tmp_path / "out", device="cpu")
    picture, mask = Image.new("RGB", (32, 32), "red"), Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    scene = Scene("a mug", Edit(picture, mask=mask), width=32, height=32, num_inference_steps=1)
    painting = studio.paint(scene)
    assert painting.plan.engine == "fill"
    assert np.array_equal(np.asarray(painting.images[0])[:, 16:], np.asarray(picture)[:, 16:])


@pytest.fixture
def inpaint_base(tmp_path: Path, sd_base: Path) -> Path:
    """A small untrained inpainting folder of Stable Diffusion."""
    task = prepared(sd.SDInpaintTask(tmp_path, start=sd_base))
    task.save(task.models(), tmp_path / "inpaint")
    return tmp_path / "inpaint"


@pytest.mark.usefixtures("small")
def test_lar_gen_learns_in_two_stages_and_paints(
    tmp_path: Path, sd_base: Path, inpaint_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in (lar_gen.AssignTask, lar_gen.RefineTask):
        monkeypatch.setattr(stage, "base", inpaint_base)
    monkeypatch.setattr(lar_gen.RefineTask, "assign", tmp_path / "assign")
    monkeypatch.setattr(lar_gen.RefineTask, "text_model", sd_base)

    first = prepared(lar_gen.AssignTask(tmp_path, content="objects"))
    model, _ = one_step(first)
    learning = {name for name, value in model.named_parameters() if value.grad is not None}
    assert learning == {name for name, value in model.named_parameters() if value.requires_grad}
    assert {name.split(".")[1] for name in learning} == {"resampler", "to_k", "to_v"}
    assert all(name.startswith("module.") for name in learning)
    first.save(model, tmp_path / "assign")

    second = prepared(lar_gen.RefineTask(tmp_path, content="objects"))
    model, _ = one_step(second)
    learning = {name for name, value in model.named_parameters() if value.grad is not None}
    assert learning == {name for name, value in model.named_parameters() if value.requires_grad}
    assert all(name.startswith("module.detail.") or ".attn2." in name for name in learning)
    assert all(name.startswith("module.") for name in learning)
    second.save(model, tmp_path / "refine")
    assert (tmp_path / "refine/refine.safetensors").is_file()

    studio = Studio.open(sd_base, inpainting=inpaint_base, device="cpu")
    eye = Path(assets.path("miniature/clip"))
    studio.backbone.modules["lar-gen"] = LarGen.load(
        tmp_path / "refine", studio.backbone.fill, studio.backbone.base, Eye.load(eye)
    )
    picture, mask = Image.new("RGB", (32, 32), "red"), Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    subject = Subject(picture, name="mug", remove_background=False)
    scene = Scene("a {mug}", [subject, Edit(picture, mask=mask)], width=32, height=32, num_inference_steps=1)
    painting = studio.paint(scene)
    assert painting.plan.method.name == "lar-gen"
    assert np.array_equal(np.asarray(painting.images[0])[:, 16:], np.asarray(picture)[:, 16:])


@pytest.mark.usefixtures("small")
def test_paint_by_example_begins_as_the_inpainter_and_paints_from_its_folder(
    tmp_path: Path, sd_base: Path, inpaint_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paint_by_example.PaintByExampleTask, "base", inpaint_base)
    task = prepared(paint_by_example.PaintByExampleTask(tmp_path, content="objects"))

    # Its channels are those of the inpainting model in another order: away from the rim, the first layer sees the same.
    inpainter = UNet2DConditionModel.from_pretrained(inpaint_base, subfolder="unet")
    noisy, mask, known = (torch.randn(1, channels, 4, 4) for channels in (8, 1, 8))
    with torch.no_grad():
        before = inpainter.conv_in(torch.cat([noisy, mask, known], dim=1))
        after = paint_by_example.reordered(inpainter).conv_in(torch.cat([noisy, known, 1 - mask], dim=1))
    assert torch.allclose(before[..., 1:-1, 1:-1], after[..., 1:-1, 1:-1], atol=1e-5)

    model, _ = one_step(task)
    learning = {name for name, value in model.named_parameters() if value.grad is not None}
    assert learning == {name for name, value in model.named_parameters() if value.requires_grad}
    # CLIP stays; all else learns.
    assert {name for name, _ in model.named_parameters()} - learning == {
        name for name, _ in model.named_parameters() if name.startswith("image_encoder.model.")
    }
    task.save(model, tmp_path / "example")
    assert not (tmp_path / "example/vae").exists()

    studio = Studio.open(sd_base, inpainting=inpaint_base, device="cpu")
    paint = VARIANTS["paint-by-example"](studio, Settings(steps=1, paint_by_example=tmp_path / "example"))
    source, mask = Image.new("RGB", (32, 32), "red"), Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    guest = Guest("mug", "mug", Image.new("RGBA", (32, 32), "blue"), source)
    painted = paint(Sample(0, Place("place", source, mask), guest, Wish("plain", "a {}")), 0)
    changed = (np.asarray(painted) != np.asarray(source)).any(-1)
    assert changed[:, :16].any()
    assert not changed[:, 16:].any()


def test_a_subject_alone_fills_a_square() -> None:
    pixels, mask = torch.zeros(3, 40, 60), torch.zeros(40, 60, dtype=torch.bool)
    mask[10:20, 30:50] = True
    found = alone(pixels, mask)
    assert found.shape == (3, 128, 128)
    assert (found[:, 64, 64] == 0).all()
    assert (found[:, 5, 64] == 1).all()


def test_a_box_around_something_holds_it() -> None:
    there = np.zeros((40, 60), bool)
    there[10:20, 30:50] = True
    for seed in range(20):
        box = masks.box_around(np.random.default_rng(seed), there).bool().numpy()
        assert (box & there).sum() == there.sum() < box.sum() <= there.size
        large = masks.box_around(np.random.default_rng(seed), there, cell=4).bool().numpy()
        assert large.shape == (160, 240)
        assert large[40:80, 120:200].all()
    assert masks.box_around(np.random.default_rng(0), np.ones((8, 8), bool)).all()


def test_half_of_the_holes_are_boxes_around_one_thing_and_none_is_too_large() -> None:
    parts = np.zeros((32, 32), np.uint8)
    assert masks.thing_mask(np.random.default_rng(0), parts, 4) is None
    parts[4:12, 2:8], parts[20:30, 16:30] = 3, 9
    for seed in range(20):
        hidden = masks.thing_mask(np.random.default_rng(seed), parts, 4)
        assert hidden is not None
        whole = hidden[16:48, 8:32].all(), hidden[80:120, 64:120].all()
        assert sum(map(bool, whole)) == 1
    assert masks.thing_mask(np.random.default_rng(0), np.ones((32, 32), np.uint8), 4) is None


def test_what_is_hidden_is_a_thing_or_somebody_or_a_head_or_a_garment() -> None:
    parts = np.array([[0, 1, 2, 3], [2 * 16, 2 * 16 + 1, UNKNOWN, 0]], np.uint8)
    shown = masks.things_shown(parts)
    assert [there.nonzero()[1].tolist() for there in shown] == [[1, 2], [3], [0]]
    scene = sample_people(np.random.default_rng(0))
    drawn = draw([scene]).parts[0].numpy()
    worn = {garment.kind for garment in scene.people[0].outfit}
    somebody, head, *garments = masks.things_shown(drawn)
    assert len(garments) == len(worn) > 1
    assert head.any()
    assert not (head & np.logical_or.reduce(garments)).any()
    assert (somebody >= np.logical_or.reduce([head, *garments])).all()
    product = masks.things_shown(draw([flat(scene.people[0].outfit[0])]).parts[0].numpy())
    assert len(product) == 2
    assert (product[0] == product[1]).all()


def test_the_miniature_sd_has_heads_of_32_and_few_weights() -> None:
    with torch.device("meta"):
        unet = sd.new_unet(sd.SIZE)
    assert {m.inner_dim // m.heads for m in unet.modules() if isinstance(m, Attention)} == {32}
    assert 4e6 < sum(value.numel() for value in unet.parameters()) < 8e6


def test_the_shift_of_the_vae_moves_into_its_convolutions() -> None:
    shifted, pixels = small_vae(), torch.rand(1, 3, 32, 32) * 2 - 1
    plain = vae.plain_vae(shifted)
    latents = gallery.encode(shifted, pixels)
    moved = plain.encode(pixels).latent_dist.mean * plain.config.scaling_factor
    assert torch.allclose(moved, latents, atol=1e-5)
    theirs = shifted.decode(latents / shifted.config.scaling_factor + shifted.config.shift_factor).sample
    assert torch.allclose(plain.decode(latents / plain.config.scaling_factor).sample, theirs, atol=1e-4)


def test_a_tuned_vae_is_handed_on_to_the_pipelines_that_are_there(tmp_path: Path) -> None:
    tuned, pixels = small_vae(), torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        for place, form in (("flux", small_vae()), ("sd", vae.plain_vae(small_vae()))):
            for weights in form.parameters():
                weights.mul_(1.1)
            form.save_pretrained(tmp_path / place / "vae")
    (tmp_path / "flux/vae/README.md").write_text("# A card\n")
    vae.hand_on(tuned, tmp_path)
    wanted = tuned.encode(pixels).latent_dist.mean
    for place, shift in (("flux", 0.0), ("sd", tuned.config.shift_factor)):
        found = AutoencoderKL.from_pretrained(tmp_path / place / "vae", torch_dtype=torch.float32)
        assert torch.allclose(found.encode(pixels).latent_dist.mean, wanted - shift, atol=0.02)
    assert {path.name for path in (tmp_path / "flux/vae").iterdir()} == {
        "README.md",
        "config.json",
        SAFETENSORS_WEIGHTS_NAME,
    }
    (tmp_path / "elsewhere").mkdir()
    vae.hand_on(tuned, tmp_path / "elsewhere")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_gallery_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "SHARD", 2)
    monkeypatch.setattr(gallery, "WINGS", WINGS)
    autoencoder = small_vae()
    gallery.fill_gallery(tmp_path / "one", autoencoder, "cpu")
    gallery.fill_gallery(tmp_path / "two", autoencoder, "cpu", rank=1, processes=2)
    gallery.fill_gallery(tmp_path / "two", autoencoder, "cpu")
    one, two = (gallery.open_wing(tmp_path / name, WINGS["cpu"][1]) for name in ("one", "two"))
    assert np.array_equal(one.latents, two.latents)
    assert one.graphs == two.graphs
    assert one.pixels(np.array([3, 0])).shape == (2, 3, 128, 256)


def test_packing_is_diffusers_packing() -> None:
    latents = torch.randn(2, 8, 4, 6)
    assert torch.equal(flux.pack(latents), FluxPipeline._pack_latents(latents, 2, 8, 4, 6))
    assert torch.equal(flux.grid_ids(2, 3), FluxPipeline._prepare_latent_image_ids(1, 2, 3, "cpu", torch.float32))


def test_cells_follow_their_tokens() -> None:
    labels = torch.arange(8 * 8).view(1, 8, 8)
    assert painting.gather_cells(labels, 16)[0, 1, :5].tolist() == [4, 5, 6, 7, 12]


def test_vae_task_standardises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae, "POOL", {"cpu": vae.CHUNK})
    task = vae.VAETask(schedule=Schedule(minutes=1))
    model = task.models()
    loss, _ = task.loss(model, task.batch(np.random.default_rng(0)), torch.Generator().manual_seed(0))
    loss.backward()
    pictures = vae.draw_mixture(np.random.default_rng(1), 8)
    vae.standardise(model.vae, pictures)
    latents = gallery.encode(model.vae, pictures)
    assert abs(float(latents.mean())) < 1e-4
    assert abs(float(latents.std()) - 1) < 1e-3


def test_the_card_of_a_vae_measures_that_vae_by_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.vae, "__defaults__", (8, None))  # eight scenes tell them apart
    committed = {row.name: row.value for row in targets.vae()}
    task = vae.VAETask()
    untrained = {row.name: row.value for row in task.measure(task.models())}
    assert list(untrained) == ["vae_psnr", "vae_psnr_people"] == list(committed)
    assert all(value > untrained[name] + 10 for name, value in committed.items())


def test_a_vae_is_tuned_on_people_more_than_the_world_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def remember(rng: np.random.Generator, content: str | None = None) -> SceneGraph:
        asked.append(content)
        return sample_scene(rng)

    monkeypatch.setattr(vae, "sample_picture", remember)
    for task, people in ((vae.VAETask, 0.0), (vae.TuneTask, 0.5)):
        asked.clear()
        drawn = vae.draw_mixture(np.random.default_rng(0), 64, task.diet, task.people)
        assert drawn.shape == (64, 3, 128, 128)
        assert len(asked) / 64 == pytest.approx(1 - task.diet, abs=0.15)
        assert asked.count("people") / len(asked) == pytest.approx(people, abs=0.15)


def test_a_vae_is_tuned_near_its_latents() -> None:
    task = vae.TuneTask()
    model, twin = task.models(), task.models()
    task.__dict__["pool"] = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    batch = task.batch(np.random.default_rng(0))
    loss, told = task.loss(model, batch, torch.Generator().manual_seed(0))
    assert told["moved"] == 0
    loss.backward()
    for optimiser in task.optimisers(model):
        optimiser.step()
    states, before = model.state_dict(), twin.state_dict()
    assert {name.split(".")[1] for name in states if (states[name] != before[name]).any()} == {"encoder", "decoder"}
    moved = float(task.loss(model, batch, torch.Generator().manual_seed(0))[1]["moved"].detach())
    ways = [gallery.encode(one.vae, batch["pixels"]) for one in (model, twin)]
    assert 0 < moved == pytest.approx(float((ways[0] - ways[1]).detach().square().mean().sqrt()), rel=1e-4)


def test_a_folder_of_weights_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "flux"
    folder.mkdir()
    (folder / "old-shard").touch()
    with pytest.raises(RuntimeError):
        miniature.replace_folder(folder, lambda scratch: (_ for _ in ()).throw(RuntimeError))
    assert [path.name for path in folder.iterdir()] == ["old-shard"]
    miniature.replace_folder(folder, lambda scratch: (scratch / "new-shard").touch())
    assert [path.name for path in tmp_path.iterdir()] == ["flux"]
    assert [path.name for path in folder.iterdir()] == ["new-shard"]


def test_orders_are_checked() -> None:
    with pytest.raises(CapriccioError, match="did you mean 'flux'"):
        miniature.Order("fluxx")
    with pytest.raises(CapriccioError, match="budget"):
        miniature.Order("vae", budget="tpu")
    with pytest.raises(CapriccioError, match="--start"):
        miniature.make_task(miniature.Order("vae", start=Path("anywhere")))
    order = miniature.Order("vae", minutes=2.0)
    assert miniature.Order.read(order.written()) == order


def test_every_model_has_a_sheet_and_its_card_shows_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(sheets.SHEETS) == set(miniature.FAMILY)
    monkeypatch.setattr(miniature, "weights_folder", lambda name: tmp_path)
    monkeypatch.setitem(sheets.SHEETS, "reader", lambda: Image.new("RGB", (8, 8)))
    (tmp_path / "README.md").write_text("# A card\n")
    for _ in range(2):
        miniature.illustrate("reader")
    assert (tmp_path / "README.md").read_text().count("(sheet.jpg)") == 1
    assert Image.open(tmp_path / "sheet.jpg").size == (8, 8)
    with pytest.raises(CapriccioError, match="did you mean 'reader'"):
        sheets.sheet("raeder")


def test_a_hole_is_a_box_round_all_that_is_hidden() -> None:
    mask = torch.zeros(128, 128, dtype=torch.bool)
    mask[40:60, 2:30] = True
    (box,) = holes.boxes(mask[None])
    hidden = np.asarray(box) > 0
    assert hidden[mask.numpy()].all()
    assert hidden.sum() == 28 * (30 + 4)
