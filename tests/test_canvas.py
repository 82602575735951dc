"""Panels, sizes, token grids, masks, and the rule that holds latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from capriccio import canvas
from capriccio.canvas import Box, Canvas, side_by_side, window
from capriccio.errors import CapriccioError
from capriccio.pictures import fit, fitted_box

TOKENS = st.sampled_from([4, 8, 16])


def test_two_panels_are_interleaved_in_memory() -> None:
    both = side_by_side(("left", "right"), 32, 16, 16)
    left = both.tokens(both.mask(both.panel("left")))
    assert both.grid == (1, 4)
    assert left.tolist() == [True, True, False, False]
    taller = side_by_side(("left", "right"), 32, 32, 16)
    assert taller.tokens(taller.mask(taller.panel("left"))).tolist() == 2 * [True, True, False, False]


@given(TOKENS, st.integers(1, 9), st.integers(1, 9))
def test_panels_partition_the_tokens(token: int, columns: int, rows: int) -> None:
    both = side_by_side(("left", "right"), token * columns, token * rows, token)
    left, right = (both.tokens(both.mask(both.panel(name))) for name in ("left", "right"))
    assert np.array_equal(left, ~right)
    assert left.sum() == rows * columns == both.num_tokens // 2


@pytest.mark.parametrize(("width", "height"), [(100, 96), (96, 100), (0, 16), (15, 16)])
def test_a_size_that_tokens_cannot_hold_names_the_nearest(width: int, height: int) -> None:
    with pytest.raises(CapriccioError, match="nearest sizes"):
        canvas.check_size(width, height, 16)


def test_nearest_sizes_are_right() -> None:
    with pytest.raises(CapriccioError, match="96 x 96 and 112 x 96"):
        Canvas(100, 96, 16)


def test_an_unknown_panel_names_the_nearest() -> None:
    with pytest.raises(CapriccioError, match="did you mean 'left'"):
        side_by_side(("left", "right"), 16, 16, 16).panel("lefft")


def test_a_token_belongs_to_a_mask_that_covers_more_than_half() -> None:
    mask = np.zeros((16, 32), bool)
    mask[:, :9] = True
    assert Canvas(32, 16, 16).tokens(mask).tolist() == [True, False]


def test_a_small_mask_keeps_its_best_covered_token() -> None:
    mask = np.zeros((16, 32), bool)
    mask[2:4, 20:22] = True
    assert Canvas(32, 16, 16).tokens(mask).tolist() == [False, True]
    assert not Canvas(32, 16, 16).tokens(np.zeros((16, 32), bool)).any()


def test_the_inner_box_lies_in_the_middle() -> None:
    assert Box(784, 0, 784, 784).inner(768, 768).corners == (792, 8, 1560, 776)


@given(st.integers(0, 6), st.integers(0, 4))
def test_what_a_neighbour_spoils_repeats_the_next_pixels_and_nothing_else_does(spoiled: int, margin: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    both = side_by_side(("left", "right"), 32, 32, 16)
    panel = both.panel("right")
    inner = panel.inner(32 - 2 * margin, 32 - 2 * margin)
    found = np.asarray(canvas.cut_out(Image.fromarray(pixels), inner, panel, spoiled))
    left, top, right, bottom = inner.corners
    plain, beyond = pixels[top:bottom, left:right], max(0, spoiled - margin)
    assert np.array_equal(found[:, beyond:], plain[:, beyond:])
    assert (found[:, :beyond] == plain[:, beyond : beyond + 1]).all()
    alone = np.asarray(canvas.cut_out(Image.fromarray(pixels), Box(0, 0, 64, 32), Box(0, 0, 64, 32), spoiled))
    assert np.array_equal(alone, pixels)  # the canvas's own border spoils nothing


def test_it_prints_its_tokens_and_panels() -> None:
    assert str(side_by_side(("left", "right"), 32, 16, 16)) == (
        "64 x 16 px, 4 x 1 = 4 tokens; left 32 x 16 at (0, 0); right 32 x 16 at (32, 0)"
    )


@given(st.integers(10, 4000), st.integers(10, 4000), TOKENS)
def test_size_like_keeps_the_shape_in_whole_tokens(width: int, height: int, token: int) -> None:
    found = canvas.size_like(width, height, 512 * 512, token)
    canvas.check_size(*found, token)
    if 0.2 < width / height < 5:
        assert abs(found[0] / found[1] - width / height) < 0.15 * width / height
        assert abs(found[0] * found[1] / 512**2 - 1) < 0.15


def test_pictures_are_laid_on_their_panels() -> None:
    both = side_by_side(("left", "right"), 16, 16, 16)
    laid = canvas.lay(both, {"left": Image.new("RGB", (16, 16), "red")})
    assert laid.getpixel((3, 3)) == (255, 0, 0)
    assert laid.getpixel((20, 3)) == (0, 0, 0)


def test_the_subject_stands_on_white() -> None:
    mask = Image.new("L", (4, 1))
    mask.putpixel((1, 0), 255)
    found = canvas.on_colour(Image.new("RGB", (4, 1), "red"), mask)
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (255, 0, 0)]


def test_transparency_becomes_white() -> None:
    assert canvas.opaque(Image.new("RGBA", (2, 2), (9, 9, 9, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert canvas.opaque(Image.new("RGB", (2, 2), "red")).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("how", ["pad", "crop", "stretch"])
def test_pasting_back_changes_the_mask_alone(how: str, picture: Image.Image, spot: Image.Image) -> None:
    size = (32, 32)
    fitted, _ = fit(picture, *size, how)
    painted = Image.new("RGB", size, "lime")
    result = np.asarray(canvas.paste_back(painted, picture, spot, fitted_box(picture.size, size, how)))
    inside = np.asarray(spot) > 0
    assert fitted.size == size
    assert (result[inside] == (0, 255, 0)).all()
    assert np.array_equal(result[~inside], np.asarray(picture)[~inside])


def test_what_was_cropped_away_is_not_pasted(picture: Image.Image) -> None:
    size = (16, 32)
    everything = Image.new("L", picture.size, 255)
    box = fitted_box(picture.size, size, "crop")
    result = np.asarray(canvas.paste_back(Image.new("RGB", size, "lime"), picture, everything, box))
    assert np.array_equal(result[:, 0], np.asarray(picture)[:, 0])
    assert (result[:, 32] == (0, 255, 0)).all()


def test_pixels_span_minus_one_to_one() -> None:
    pixels = canvas.to_pixels(Image.fromarray(np.array([[[0, 127, 255]]], np.uint8)))
    assert pixels.shape == (1, 3, 1, 1)
    assert pixels.flatten().tolist() == pytest.approx([-1, -0.0039, 1], abs=1e-3)


def test_a_latent_cell_is_touched_by_any_pixel() -> None:
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 1, 2] = 1
    assert canvas.latent_cells(mask, 2).flatten().tolist() == [0, 1, 0, 0]


def test_held_latents_lie_on_the_path_from_noise_to_picture() -> None:
    known, noise, latents = torch.tensor([1.0, 1.0]), torch.tensor([5.0, 5.0]), torch.tensor([7.0, 7.0])
    keep = torch.tensor([1.0, 0.0])
    assert canvas.hold(latents, known, noise, keep, torch.tensor(0.25)).tolist() == [2.0, 7.0]
    assert canvas.hold(latents, known, noise, keep, torch.tensor(0.0)).tolist() == [1.0, 7.0]


# --- windows ---


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_window_holds_its_mask_and_stays_in_the_picture(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(4, 60)), data.draw(st.integers(4, 60))
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    zoom, shape = data.draw(st.floats(1, 4)), data.draw(st.sampled_from([(1, 1), (2, 1), (3, 4)]))
    least = data.draw(st.integers(0, 80))
    box = window(mask, zoom, shape, least)
    x0, y0, x1, y1 = box.corners
    assert 0 <= x0 <= left < right <= x1 <= width
    assert 0 <= y0 <= top < bottom <= y1 <= height
    assert box.width >= min(width, round(zoom * (right - left)), round(max(least, 0)) or width)
    assert mask[y0:y1, x0:x1].sum() == mask.sum()
    if not mask.all():
        assert not mask[y0:y1, x0:x1].all()
    if box.width < width and box.height < height:
        # its own ratio, to the rounding of a side and the rim of what is small
        longer = max(box.width / shape[0], box.height / shape[1])
        assert min(box.width / shape[0], box.height / shape[1]) >= longer - 3


def test_a_window_in_the_middle() -> None:
    mask = np.zeros((100, 200), bool)
    mask[40:60, 90:110] = True
    assert window(mask, 2, (1, 1)) == Box(80, 30, 40, 40)
    assert window(mask, 1, (1, 1), least=64) == Box(68, 18, 64, 64)
    assert window(mask, 2, (2, 1)) == Box(60, 30, 80, 40)
    mask[:] = False
    mask[0:20, 180:200] = True
    assert window(mask, 2, (1, 1)) == Box(160, 0, 40, 40)
