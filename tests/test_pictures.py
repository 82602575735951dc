"""Pictures as people have them: what is opened, what is refused and how, and what a saved file carries."""

from __future__ import annotations

import json
import os
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from capriccio import pictures
from capriccio.errors import CapriccioError
from capriccio.pictures import Picture, fit, fitted_box, grid, open_mask, open_picture, read_recipe, save_png

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]], [[9, 90, 200], [0, 0, 0]]], np.uint8)
RECIPE = {"scene": {"prompt": "a mug"}}


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


# --- opening ---


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.ppm", "a.webp"])
def test_lossless_formats_open_to_their_pixels(tmp_path: Path, name: str) -> None:
    options = {"lossless": True} if name.endswith("webp") else {}
    path = saved(Image.fromarray(COLOURS), tmp_path / name, **options)
    assert (np.asarray(open_picture(path)) == COLOURS).all()


@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_a_camera_held_sideways_is_heeded(tmp_path: Path, orientation: int, turned: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(Image.fromarray(COLOURS), tmp_path / "a.png", exif=exif)
    assert (np.asarray(open_picture(path)) == np.rot90(COLOURS, turned)).all()


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = saved(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), tmp_path / "a.tiff")
    assert open_picture(path).getpixel((0, 0)) == (255, 0, 0)


def test_a_palette_keeps_colours_and_transparency(tmp_path: Path) -> None:
    palette = Image.fromarray(COLOURS).quantize(8)
    plain = open_picture(saved(palette, tmp_path / "a.png"))
    clear = open_picture(saved(palette, tmp_path / "b.png", transparency=palette.getpixel((0, 0))))
    assert (np.asarray(plain) == COLOURS).all()
    assert clear.mode == "RGBA"
    assert clear.getpixel((0, 0))[3] == 0


@pytest.mark.parametrize("values", [[0, 257, 65535], [0, 12, 255]])
def test_grey_in_sixteen_bits_is_scaled_by_its_range(tmp_path: Path, values: list[int]) -> None:
    path = saved(Image.fromarray(np.array([values], np.uint16)), tmp_path / "a.png")
    assert np.asarray(open_picture(path))[0, :, 0].tolist() == [round(value / 257) for value in values]


def test_wide_integers_and_floats_are_scaled_by_their_values() -> None:
    as_integers = open_picture(Image.fromarray(np.array([[0, 7, 255]], np.int32)))
    as_floats = open_picture(Image.fromarray(np.array([[0, 7, 255]], np.float32)))
    assert np.asarray(as_integers)[0, :, 0].tolist() == np.asarray(as_floats)[0, :, 0].tolist() == [0, 7, 255]


@pytest.mark.parametrize(
    "array", [COLOURS, COLOURS.astype(np.uint16) * 257, COLOURS / 255, (COLOURS / 255).astype(np.float32)]
)
def test_arrays_of_any_usual_type_are_the_same_picture(array: np.ndarray) -> None:
    assert (np.asarray(open_picture(array)) == COLOURS).all()


def test_grey_and_truth_arrays_are_pictures() -> None:
    assert open_picture(np.eye(3, dtype=bool)).getpixel((0, 0)) == (255, 255, 255)
    assert open_picture(np.zeros((3, 5, 1), np.uint8)).size == (5, 3)


def test_alpha_is_kept_where_it_says_something() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    assert open_picture(image).mode == "RGB"
    image.putpixel((0, 0), (0, 0, 0, 0))
    assert open_picture(image).mode == "RGBA"


def test_a_photograph_with_a_twin_behind_it_opens_as_its_first_frame(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    path = saved(red, tmp_path / "a.mpo", format="MPO", save_all=True, append_images=[blue])
    assert open_picture(path).getpixel((3, 3))[0] > 200


def broken_files() -> dict[str, tuple[bytes, str]]:
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), "PNG")
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    return {
        "empty": (b"", "is not one"),
        "text": (b"not a picture", "is not one"),
        "cut short": (whole[: len(whole) // 2], "damaged or cut short"),
        "cut jpeg": (encoded(Image.new("RGB", (64, 64)), "JPEG")[:400], "damaged or cut short|is not one"),
        "animated": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "has 2 frames"),
        "bomb": (bomb(40_000, 40_000), "80 million pixels"),
        "giant bomb": (bomb(2**31 - 1, 2**31 - 1), "80 million pixels"),
        "program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "is not one"),
    }


def bomb(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return head + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", broken_files())
def test_what_is_no_picture_gets_one_sentence(tmp_path: Path, name: str) -> None:
    data, words = broken_files()[name]
    path = tmp_path / "given.png"
    path.write_bytes(data)
    with pytest.raises(CapriccioError, match=words) as caught:
        open_picture(path)
    assert "given.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_gets_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, words in [("missing.png", "does not exist"), (".", "is a folder"), ("pipe", "is not a file")]:
        with pytest.raises(CapriccioError, match=words):
            open_picture(tmp_path / name)


@pytest.mark.parametrize(
    "given",
    [np.zeros((3, 3), np.int64), np.full((3, 3), 2.0), np.zeros((3, 3, 7), np.uint8), np.zeros((0, 3)), 7, None],
)
def test_what_cannot_be_a_picture_is_refused(given: Any) -> None:
    with pytest.raises(CapriccioError, match="give"):
        open_picture(given)


# --- masks ---


def test_a_mask_is_what_is_light_or_else_what_is_painted() -> None:
    light = np.zeros((2, 3), np.uint8)
    light[0, 1] = 200
    painted = np.zeros((2, 3, 4), np.uint8)
    painted[0, 1, 3] = 255
    for source in (light, painted):
        assert (np.asarray(open_mask(source, (3, 2))) == np.where(light, 255, 0)).all()


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((2, 2), bool), "2 x 2 pixels, but its picture is 3 x 2"),
        (np.zeros((2, 3), bool), "all black"),
        (np.ones((2, 3), bool), "all white"),
    ],
)
def test_a_mask_that_cannot_be_meant_gets_a_sentence(mask: np.ndarray, words: str) -> None:
    with pytest.raises(CapriccioError, match=words):
        open_mask(mask, (3, 2))


# --- fitting ---

sides = st.integers(1, 600)


@given(sides, sides, sides, sides, st.sampled_from(["pad", "crop", "stretch"]))
def test_a_fitted_picture_keeps_what_it_promises(w: int, h: int, width: int, height: int, how: Any) -> None:
    left, top, right, bottom = fitted_box((w, h), (width, height), how)
    across, down = right - left, bottom - top
    if how == "stretch":
        assert (left, top, across, down) == (0, 0, width, height)
        return
    assert abs(left + right - width) <= 1  # centred
    assert abs(top + bottom - height) <= 1
    inside = across <= width and down <= height
    assert inside if how == "pad" else (across >= width and down >= height)
    assert across == width or down == height
    scale = (across / w, down / h)
    assert abs(scale[0] - scale[1]) <= 1 / min(w, h)  # aspect ratio, to the rounding of a side


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("pad", "The picture (8 x 4) is resized to 16 x 8 and padded to 16 x 16."),
        ("crop", "The picture (8 x 4) is resized to 32 x 16 and cropped to 16 x 16."),
        ("stretch", "The picture (8 x 4) is stretched, its aspect ratio given up, to 16 x 16."),
    ],
)
def test_fitting_says_what_it_did(how: Any, words: str) -> None:
    fitted, said = fit(Image.new("RGB", (8, 4), "red"), 16, 16, how)
    assert (fitted.size, said) == ((16, 16), words)
    assert fitted.getpixel((8, 8)) == (255, 0, 0)
    assert fitted.getpixel((8, 0)) == ((255, 255, 255) if how == "pad" else (255, 0, 0))


def test_what_fits_already_is_untouched() -> None:
    image = Image.fromarray(COLOURS)
    fitted, said = fit(image, *image.size, "pad")
    assert (np.asarray(fitted) == COLOURS).all()
    assert said == "The picture is 2 x 3, as needed."


def test_masks_stay_black_and_white_and_clear_pictures_stay_clear() -> None:
    mask, _ = fit(Image.fromarray(np.eye(5, dtype=np.uint8) * 255), 12, 20, "pad")
    clear, _ = fit(Image.new("RGBA", (4, 2), (255, 0, 0, 255)), 8, 8, "pad")
    assert set(np.unique(np.asarray(mask))) == {0, 255}
    assert mask.getpixel((0, 0)) == 0
    assert clear.getpixel((0, 0))[3] == 0


# --- pictures of a scene ---


def test_a_picture_in_memory_survives_its_record() -> None:
    picture = Picture.of(COLOURS)
    again = Picture.from_record(json.loads(json.dumps(picture.record())))
    assert again == picture
    assert hash(again) == hash(picture)
    assert (np.asarray(again.open()) == COLOURS).all()


def test_a_large_picture_is_recorded_by_its_hash(tmp_path: Path) -> None:
    path = saved(Image.fromarray(COLOURS), tmp_path / "a.png")
    record = Picture.of(path).record(limit=10)
    assert record == {"name": "a.png", "sha256": pictures.sha256(path.read_bytes())}
    with pytest.raises(CapriccioError, match="only its hash; give the file again"):
        Picture.from_record(record).open()
    assert Picture.from_record(record).record() == record


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": "AAAA"}, "was changed"),
        ({"data": "%%%"}, "not valid base64"),
        ({"data": 3}, "base64 text"),
        ({"data": "A" * (pictures.EMBED_LIMIT * 2)}, "at most 4 MiB"),
        ({"path": "/etc/passwd"}, "has the keys"),
        ({"name": None}, "has the keys"),
    ],
)
def test_a_record_is_not_trusted(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CapriccioError, match=words):
        Picture.from_record(Picture.of(COLOURS).record() | change)


# --- saving ---


def test_a_saved_picture_carries_its_recipe(tmp_path: Path) -> None:
    path = save_png(Image.fromarray(COLOURS), tmp_path / "new" / "a.png", RECIPE | {"model": "miniature"})
    assert (np.asarray(Image.open(path)) == COLOURS).all()
    assert read_recipe(path) == {"schema_version": 1, "model": "miniature", **RECIPE}
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


def test_without_a_recipe_nothing_is_told(tmp_path: Path) -> None:
    path = save_png(Image.fromarray(COLOURS), tmp_path / "a.png")
    assert Image.open(path).info == {}
    with pytest.raises(CapriccioError, match="carries no recipe"):
        read_recipe(path)


def test_an_interruption_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_png(Image.fromarray(COLOURS), tmp_path / "a.png")
    before = path.read_bytes()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_png(Image.new("RGB", (9, 9)), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_place_that_cannot_be_written_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CapriccioError, match="cannot be written"):
        save_png(Image.fromarray(COLOURS), tmp_path / "file" / "a.png")
    with pytest.raises(CapriccioError, match=r"end the name in \.png"):
        save_png(Image.fromarray(COLOURS), tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "damaged"),
        ("[" * 100_000, "damaged"),
        ("[]", "damaged"),
        ('{"schema_version": 1, "scene": 3}', "damaged"),
        ('{"scene": {}}', "schema version None"),
        ('{"schema_version": 2, "scene": {}}', "reads version 1"),
        ('{"scene": "' + "a" * pictures.RECIPE_LIMIT + '"}', "larger than 8,000,000"),
    ],
    ids=["cut", "deep", "list", "no scene", "no version", "later version", "large"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_the_recipe_of_a_stranger_is_checked(tmp_path: Path, text: str, words: str, packed: bool) -> None:
    info = PngInfo()
    info.add_text("capriccio", text, zip=packed)
    path = saved(Image.new("RGB", (4, 4)), tmp_path / "a.png", pnginfo=info)
    # Pillow itself refuses to inflate more than a million characters.
    with pytest.raises(CapriccioError, match=f"{words}|not a whole PNG" if packed else words):
        read_recipe(path)


def test_what_is_no_png_has_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(CapriccioError, match="not a whole PNG"):
        read_recipe(tmp_path / "a.png")


# --- sheets ---


def test_a_sheet_holds_every_picture_in_its_cell() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    sheet = grid([Image.new("RGB", (20, 10), colour) for colour in colours], columns=2, gap=4)
    assert sheet.size == (2 * 24 + 4, 2 * 14 + 4)
    assert [sheet.getpixel(place) for place in [(4, 4), (28, 4), (4, 18)]] == colours
    assert sheet.getpixel((28, 18)) == (255, 255, 255)


def test_labels_stand_below_and_wrap() -> None:
    image = Image.new("RGB", (60, 20), "white")
    plain, labelled = grid([image], 1), grid([image], 1, ["a teapot on the beach at sunset"])
    assert labelled.height >= plain.height + 2 * 12
    below = np.asarray(labelled)[plain.height :]
    assert below.min() < 128
    assert (np.asarray(labelled)[: plain.height - 8] == 255).all()


def test_a_row_without_labels_leaves_no_room_for_them() -> None:
    image = Image.new("RGB", (60, 20), "red")
    bare, labelled = (grid([image] * count, 1, labels) for count, labels in ((1, ["a teapot"]), (2, ["", "a teapot"])))
    assert labelled.height - bare.height == 20 + 8
    assert labelled.getpixel((8, 8 + 20 + 8)) == (255, 0, 0)


@pytest.mark.parametrize(("count", "columns", "labels"), [(0, 1, None), (1, 0, None), (2, 1, ["one"])])
def test_a_sheet_of_nothing_is_refused(count: int, columns: int, labels: list[str] | None) -> None:
    with pytest.raises(CapriccioError, match="at least one picture"):
        grid([Image.new("RGB", (4, 4))] * count, columns, labels)
