"""Finding a subject: what was given first, then the world's own way, then Grounding DINO with SAM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from capriccio.errors import CapriccioError
from capriccio.perception import GroundedSegmenter, WorldSegmenter, largest_filled_contour, on_white, segment
from capriccio.perception.segment import _outline, minimal_cut
from capriccio.world.draw import draw
from capriccio.world.graph import sample_scene

ROWS, COLUMNS = np.mgrid[:48, :64]
DISC = (ROWS - 24) ** 2 + (COLUMNS - 30) ** 2 < 14**2
SKY = np.stack([ROWS * 2, 120 + ROWS, np.full_like(ROWS, 220)], -1).astype(np.uint8)
PICTURE = np.where(DISC[..., None], np.uint8([220, 40, 30]), SKY)


def overlap(found: np.ndarray, truth: np.ndarray) -> float:
    return (found & truth).sum() / (found | truth).sum()


def nowhere(image: Image.Image, name: str) -> np.ndarray:
    return np.zeros((image.height, image.width), bool)


def unasked(image: Image.Image, name: str) -> np.ndarray:
    raise AssertionError("looked for what was given")


# --- what was given ---


def test_a_mask_is_taken_as_it_is() -> None:
    speckled = DISC & (COLUMNS % 3 == 0)
    assert (segment(PICTURE, "disc", mask=speckled, segmenter=unasked) == speckled).all()


def test_transparency_is_taken_as_it_is() -> None:
    cut = np.dstack([PICTURE, np.where(DISC, 255, 0).astype(np.uint8)])
    assert (segment(cut, "disc", segmenter=unasked) == DISC).all()


def test_a_mask_of_the_wrong_size_gets_a_sentence() -> None:
    with pytest.raises(CapriccioError, match="mask of 'disc' is 10 x 10 pixels, but its picture is 64 x 48"):
        segment(PICTURE, "disc", mask=np.eye(10, dtype=bool))


def test_what_nobody_finds_gets_a_sentence_with_remedies() -> None:
    with pytest.raises(CapriccioError, match=r"No 'unicorn' was found.*give a mask.*another name.*remove_background"):
        segment(PICTURE, "unicorn", segmenter=nowhere)


# --- the largest filled contour ---


def test_the_largest_piece_stays_and_its_holes_close() -> None:
    ring = DISC & ~((ROWS - 24) ** 2 + (COLUMNS - 30) ** 2 < 8**2)
    assert (segment(PICTURE, "disc", segmenter=lambda *_: ring | (COLUMNS > 58)) == DISC).all()


def test_pieces_are_counted_with_their_holes() -> None:
    mask = np.zeros((20, 40), bool)
    mask[2:18, 2:18] = True
    mask[3:17, 3:17] = False  # a thin ring, large when filled
    mask[2:14, 25:36] = True
    found = largest_filled_contour(mask)
    assert found[2:18, 2:18].all()
    assert not found[:, 20:].any()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_the_result_is_one_piece_without_holes(seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((12, 15)) < share
    found = largest_filled_contour(mask)
    assert found.any() == mask.any()
    assert ndimage.label(found, np.ones((3, 3)))[1] <= 1
    assert (ndimage.binary_fill_holes(found) == found).all()
    assert (largest_filled_contour(found) == found).all()


def test_the_rest_becomes_white() -> None:
    alone = np.asarray(on_white(Image.fromarray(PICTURE), DISC))
    assert (alone[DISC] == PICTURE[DISC]).all()
    assert (alone[~DISC] == 255).all()


# --- the world ---


def test_the_cut_is_the_best_of_all_labellings() -> None:
    rng = np.random.default_rng(3)
    gain, colours = rng.normal(size=(3, 3)), rng.random((3, 3, 3))
    first, second, price = _outline(colours)

    def worth(kept: np.ndarray) -> float:
        flat = kept.ravel()
        return gain[kept].sum() - 0.4 * price[flat[first] != flat[second]].sum()

    every = [np.array(list(f"{number:09b}")).reshape(3, 3) == "1" for number in range(512)]
    assert worth(minimal_cut(gain, colours, 0.4)) == pytest.approx(max(map(worth, every)), abs=0.1)


def test_a_thing_before_a_smooth_sky_is_found_at_any_size() -> None:
    assert overlap(segment(PICTURE, "disc", backbone_is_miniature=True), DISC) > 0.93
    large = Image.fromarray(PICTURE).resize((640, 480), Image.Resampling.NEAREST)
    truth = np.asarray(Image.fromarray(DISC).resize((640, 480)))
    assert overlap(segment(large, "disc", backbone_is_miniature=True), truth) > 0.9


@pytest.mark.parametrize("empty", [SKY, SKY[:6], np.full((40, 40), 128, np.uint8)])
def test_an_empty_sky_holds_nothing(empty: np.ndarray) -> None:
    with pytest.raises(CapriccioError, match="No 'disc' was found"):
        segment(empty, "disc", backbone_is_miniature=True)


def test_subjects_of_the_world_are_found() -> None:
    rng = np.random.default_rng(11)
    drawing = draw([sample_scene(rng, 1, "test", style="shaded") for _ in range(8)])
    pixels = ((drawing.pixels.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
    truths = drawing.subjects[:, 0].numpy()
    overlaps = [overlap(segment(p, "it", backbone_is_miniature=True), t) for p, t in zip(pixels, truths, strict=True)]
    assert np.median(overlaps) > 0.9
    assert np.mean(overlaps) > 0.8


# --- photographs ---


@pytest.fixture(scope="module")
def grounded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Grounding DINO and SAM of the published classes, tiny and untrained."""
    return save_dino(tmp_path_factory.mktemp("dino")), save_sam(tmp_path_factory.mktemp("sam"))


def save_dino(folder: Path) -> Path:
    import torch
    from transformers import (
        BertConfig,
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "mug", "disc"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    size = {"shortest_edge": 64, "longest_edge": 96}
    GroundingDinoProcessor(GroundingDinoImageProcessor(size=size), tokenizer).save_pretrained(folder)
    narrow = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2, out_indices=[2, 3, 4]
        ),
        text_config=BertConfig(vocab_size=len(words), **narrow),
        num_queries=6,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_feature_levels=3,
        encoder_n_points=2,
        decoder_n_points=2,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    return folder


def save_sam(folder: Path) -> Path:
    import torch
    from transformers import (
        SamConfig,
        SamImageProcessor,
        SamMaskDecoderConfig,
        SamModel,
        SamProcessor,
        SamPromptEncoderConfig,
        SamVisionConfig,
    )

    torch.manual_seed(0)
    side = 64
    SamProcessor(
        SamImageProcessor(size={"longest_edge": side}, pad_size={"height": side, "width": side})
    ).save_pretrained(folder)
    vision = SamVisionConfig(
        hidden_size=16,
        output_channels=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=side,
        patch_size=16,
        global_attn_indexes=[0],
        window_size=2,
        mlp_dim=16,
        num_pos_feats=8,
    )
    prompts = SamPromptEncoderConfig(hidden_size=16, image_size=side, patch_size=16, mask_input_channels=4)
    decoder = SamMaskDecoderConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_dim=16, iou_head_hidden_dim=16
    )
    SamModel(
        SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    ).save_pretrained(folder)
    return folder


def test_published_classes_find_something_of_the_right_shape(grounded: tuple[Path, Path]) -> None:
    look = GroundedSegmenter(*map(str, grounded), threshold=0.0)
    image = Image.fromarray(PICTURE)
    box = look.box(image, "Mug.")
    assert box is not None
    assert len(box) == 4
    assert look.inside(image, [10.0, 10.0, 50.0, 40.0]).shape == DISC.shape
    assert look(image, "mug").dtype == bool


def test_of_several_boxes_the_best_is_taken(grounded: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    look = GroundedSegmenter(*map(str, grounded))
    found = {"boxes": torch.arange(12.0).reshape(3, 4), "scores": torch.tensor([0.4, 0.9, 0.5])}
    monkeypatch.setattr(look._detector[0], "post_process_grounded_object_detection", lambda *_, **__: [found])
    assert look.box(Image.fromarray(PICTURE), "mug") == [4, 5, 6, 7]


def test_no_detection_is_no_crash(grounded: tuple[Path, Path]) -> None:
    with pytest.raises(CapriccioError, match="No 'mug' was found"):
        segment(PICTURE, "mug", segmenter=GroundedSegmenter(*map(str, grounded), threshold=1.0))


def test_models_that_cannot_be_loaded_get_a_sentence(tmp_path: Path) -> None:
    missing: Any = GroundedSegmenter(detector=str(tmp_path))
    with pytest.raises(CapriccioError, match="could not be loaded; connect to download it, or give a mask"):
        missing(Image.fromarray(PICTURE), "mug")


def test_the_worlds_way_ignores_the_name() -> None:
    look = WorldSegmenter()
    assert (look(Image.fromarray(PICTURE), "disc") == look(Image.fromarray(PICTURE), "unicorn")).all()
