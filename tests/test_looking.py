"""Looking: the world's eye on its own pictures, and published classes on tiny checkpoints in the published layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_perception import save_dino, save_sam

from capriccio.collect import Limits, Settings, cast
from capriccio.collect.sources import stages, work
from capriccio.errors import CapriccioError
from capriccio.perception.looking import Florence, Llava, captioner, cropped
from capriccio.perception.world_eye import WorldEye, look
from capriccio.world.draw import draw
from capriccio.world.graph import sample_scene

SIDE = 32


@pytest.fixture(scope="module")
def pair() -> tuple[Image.Image, Any, np.ndarray]:
    """A picture of two things, its graph and their masks."""
    graph = sample_scene(np.random.default_rng(13), subjects=2, split="test", style="shaded", accessories=False)
    drawing = draw([graph])
    pixels = ((drawing.pixels[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels).resize((256, 256)), graph, drawing.subjects[0].numpy()


def test_the_worlds_eye_tells_two_things_apart(pair: tuple[Image.Image, Any, np.ndarray]) -> None:
    image, graph, masks = pair
    eye = WorldEye()
    kinds = {thing.identity.kind for thing in graph.things}
    assert set(eye.tags(image)) == kinds | {graph.backdrop.kind}
    for thing, mask in zip(graph.things, masks, strict=True):
        (sighting,) = eye.boxes(image, thing.identity.kind)
        found = eye.inside(image, sighting.box)[::2, ::2]
        assert (found & mask).sum() / (found | mask).sum() > 0.7
        assert thing.identity.main in eye.caption(image, sighting.box)
    assert look(image).style == "shaded"


def test_the_worlds_eye_sees_nothing_where_nothing_is(pair: tuple[Image.Image, Any, np.ndarray]) -> None:
    eye = WorldEye()
    assert eye.boxes(pair[0], "unicorn") == []
    assert not eye.inside(pair[0], (0, 0, 1, 1)).any()
    assert eye.caption(pair[0], (0, 0, 1, 1)) == ""


def test_a_crop_is_inside_its_picture_and_never_empty() -> None:
    image = Image.new("RGB", (50, 40))
    assert cropped(image, (-4, 10.6, 70, 30.2)).size == (50, 20)
    assert cropped(image, (20, 20, 20, 20)).size == (1, 1)
    assert cropped(image, (49.7, 39.9, 55, 55)).size == (1, 1)


# --- published classes ---


def byte_vocabulary(first: list[str]) -> dict[str, int]:
    from tokenizers import pre_tokenizers

    return {word: number for number, word in enumerate([*first, *sorted(pre_tokenizers.ByteLevel.alphabet())])}


@pytest.fixture(scope="module")
def florence(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import (
        BartConfig,
        BartTokenizer,
        CLIPImageProcessor,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
        Florence2VisionConfig,
    )

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("florence")
    vocabulary = byte_vocabulary(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer = BartTokenizer(vocab=vocabulary, merges=[], extra_special_tokens={"image_token": "<image>"})
    tokenizer.add_tokens([f"<loc_{number}>" for number in range(1000)])
    vision = Florence2VisionConfig(
        depths=(1, 1, 1, 1),
        embed_dim=(8, 8, 16, 16),
        num_heads=(1, 1, 2, 2),
        num_groups=(1, 1, 2, 2),
        window_size=2,
        projection_dim=16,
    )
    text = BartConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=1100,
    )
    token = tokenizer.image_token_id
    config = Florence2Config(vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_id=token)
    model = Florence2ForConditionalGeneration(config).eval()
    images = CLIPImageProcessor(size={"height": SIDE, "width": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    images.image_seq_length = model.get_image_features(torch.zeros(1, 3, SIDE, SIDE)).pooler_output.shape[-2]
    tasks: dict[str, dict[str, Any]] = {"pure_text": {}, "description_with_bboxes": {}}
    Florence2Processor(images, tokenizer, post_processor_config=tasks).save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llava")
    vocabulary = byte_vocabulary(["<unk>", "<s>", "</s>", "<image>"])
    letters = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    letters.pre_tokenizer, letters.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters, **named, extra_special_tokens={"image_token": "<image>"}
    )
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    LlavaProcessor(
        images, tokenizer, patch_size=16, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ).save_pretrained(folder)
    narrow = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    vision = CLIPVisionConfig(num_hidden_layers=2, image_size=SIDE, patch_size=16, projection_dim=16, **narrow)
    text = LlamaConfig(vocab_size=len(vocabulary), num_hidden_layers=1, num_key_value_heads=2, **narrow)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=vocabulary["<image>"])
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


def test_florence_names_and_describes(florence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capriccio.perception.looking._WORDS", 2)
    seen = captioner(florence)
    assert isinstance(seen, Florence)
    image = Image.new("RGB", (50, 40), "red")
    assert all(tag == tag.strip().lower() for tag in seen.tags(image))
    assert isinstance(seen.caption(image, (10, 10, 40, 30)), str)


def test_names_of_florence_come_once_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Florence, "_answer", lambda *_: {"labels": ["Mug", " car", "mug", ""], "bboxes": []})
    assert Florence().tags(Image.new("RGB", (8, 8))) == ["car", "mug"]


def test_llava_describes(llava: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capriccio.perception.looking._WORDS", 3)
    seen = captioner(llava)
    assert isinstance(seen, Llava)
    assert isinstance(seen.caption(Image.new("RGB", (50, 40), "red"), (10, 10, 40, 30)), str)


def test_models_that_are_not_there_or_do_something_else_get_a_sentence(tmp_path: Path) -> None:
    from transformers import BertConfig

    with pytest.raises(CapriccioError, match="could not be loaded; connect to download it, or give its folder"):
        captioner(str(tmp_path))
    with pytest.raises(CapriccioError, match="could not be loaded; connect to download it, or give its folder"):
        Florence(str(tmp_path)).tags(Image.new("RGB", (8, 8)))
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(CapriccioError, match="is a 'bert', which describes no pictures here"):
        captioner(str(tmp_path))


def test_the_stages_of_transformers_work_together(
    florence: str, llava: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capriccio.perception.looking._WORDS", 3)
    monkeypatch.setattr(Florence, "tags", lambda *_: ["mug", "blue sky"])  # untrained, it names nothing
    detector, filler = (save(tmp_path_factory.mktemp("part")) for save in (save_dino, save_sam))
    who = cast("transformers", tagger=florence, localiser=str(detector), segmenter=str(filler), captioner=llava)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(tmp_path / "one.png")
    limits = Limits(least_score=0, least_share=0, most_share=1)
    unit = work(tmp_path, Settings(who, limits), "cpu", "one.png")
    assert unit.refused is None
    assert unit.dropped["no thing"] == 1
    assert len(unit.records) + sum(unit.dropped.values()) > 1
    assert stages(who) is stages(who)
