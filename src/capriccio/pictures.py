"""Pictures as people have them: opened, fitted, masked, laid out in sheets, and saved with their recipe.

Every opened picture is eight-bit RGB, or RGBA when something in it is transparent. A recipe travels in a text
chunk of a PNG file; one that comes from elsewhere is untrusted: bounded in size, checked, never followed to a file.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import struct
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from itertools import accumulate
from math import ceil
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from capriccio.errors import CapriccioError

Source: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray
Fit = Literal["pad", "crop", "stretch"]

# No format here runs a program (as PostScript would) or reaches for another file.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 80_000_000
"""A picture with more pixels than this is refused before it is decoded."""

MAX_BYTES = 512 * 2**20
"""A file with more bytes than this is refused before it is read."""

EMBED_LIMIT = 4 * 2**20
"""Bytes: a picture file up to this size travels inside a recipe, a larger one by its hash."""

RECIPE_LIMIT = 8_000_000
"""Characters of a whole recipe; libpng skips text chunks above this size."""

RECIPE_VERSION = 1
_CHUNK = "capriccio"


@dataclass(frozen=True)
class Picture:
    """A picture that a scene refers to: a file, or the bytes of one.

    A picture with neither was too large for the recipe it came from, which recorded only its hash.

    Attributes:
        name: What to call it in a sentence, such as ``"mug.png"``.
        path: Absolute path of the file.
        data: The bytes of an encoded picture, where it is not a file.
        sha256: Hexadecimal hash of ``data``, or of the missing bytes.
    """

    name: str = field(compare=False)
    path: Path | None = None
    data: bytes | None = field(default=None, repr=False, compare=False)
    sha256: str | None = None

    @classmethod
    def of(cls, source: Source | Picture) -> Picture:
        """Return the picture at a path, or one that keeps the pixels of an image or an array."""
        if isinstance(source, Picture):
            return source
        if isinstance(source, str | os.PathLike):
            path = Path(os.path.abspath(os.path.expanduser(source)))
            return cls(path.name, path=path)
        data = png_bytes(open_picture(source), compress_level=1)
        return cls("the picture given", data=data, sha256=sha256(data))

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Picture:
        """Return the picture that `record` wrote, after checking its size and hash.

        Raises:
            CapriccioError: If the record is malformed, too large, or was changed.
        """
        name, digest = record.get("name"), record.get("sha256")
        if not isinstance(name, str) or not isinstance(digest, str) or not {*record} <= {"name", "sha256", "data"}:
            raise CapriccioError(
                "An embedded picture has the keys 'name', 'sha256' and 'data', but received "
                f"{', '.join(map(repr, record)) or 'nothing'}; give the path of a picture instead."
            )
        data = _decode(record["data"], name) if "data" in record else None
        if data is not None and sha256(data) != digest:
            raise CapriccioError(f"The embedded picture {name!r} was changed: its hash is not the one beside it.")
        return cls(name, data=data, sha256=digest)

    def read(self) -> bytes:
        """Return the encoded bytes of the picture."""
        if self.data is not None:
            return self.data
        if self.path is None:
            raise CapriccioError(
                f"The picture {self.name!r} was too large for the recipe, which holds only its hash; "
                "give the file again, as in --subject FILE:name."
            )
        return _read(self.path)

    def record(self, limit: int = EMBED_LIMIT) -> dict[str, str]:
        """Return name, hash and, when the bytes are at most ``limit``, the bytes in base64."""
        if self.path is None and self.data is None:
            return {"name": self.name, "sha256": self.sha256 or ""}
        data = self.read()
        record = {"name": self.name, "sha256": sha256(data)}
        return record | ({"data": base64.b64encode(data).decode("ascii")} if len(data) <= limit else {})

    def open(self) -> Image.Image:
        """Return the pixels; see `open_picture`."""
        return open_picture(self)


def sha256(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def _decode(text: Any, name: str) -> bytes:
    if not isinstance(text, str) or len(text) > ceil(EMBED_LIMIT / 3) * 4:
        raise CapriccioError(
            f"The embedded picture {name!r} must be base64 text of at most {EMBED_LIMIT // 2**20} MiB; "
            "give the path of a picture instead."
        )
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise CapriccioError(f"The embedded picture {name!r} is not valid base64; give its path instead.") from None


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is not a file" if path.exists() else "does not exist"
            raise CapriccioError(f"The picture {str(path)!r} {what}; give the path of a picture.")
        if path.stat().st_size > MAX_BYTES:
            raise CapriccioError(f"{str(path)!r} is larger than {MAX_BYTES // 2**20} MiB; make it smaller first.")
        return path.read_bytes()
    except OSError as error:
        raise CapriccioError(f"{str(path)!r} cannot be read ({error.strerror}); check its permissions.") from None


# --- opening -----------------------------------------------------------------------------------------------------


def open_picture(source: Source | Picture) -> Image.Image:
    """Return a picture upright, in eight bits, as RGB, or as RGBA when something in it is transparent.

    EXIF rotation is applied; palettes, CMYK, grey and 16-bit pictures are converted.

    Args:
        source: A path, a `Picture`, a PIL image, or an array: (H, W) or (H, W, 1 | 3 | 4), in 0..255 (uint8),
            0..65535 (uint16), 0..1 (float), or truth values.

    Raises:
        CapriccioError: If it is missing, unreadable, truncated, animated or larger than `MAX_PIXELS`.
    """
    if isinstance(source, np.ndarray):
        return _upright(_from_array(source))
    if isinstance(source, Image.Image):
        return _decoded(lambda: source, "the picture given")
    if not isinstance(source, Picture | str | os.PathLike):
        raise CapriccioError(
            f"A picture was given as {type(source).__name__}; give a path, a PIL image or a numpy array."
        )
    picture = Picture.of(source)
    name = str(picture.path or picture.name)
    data = picture.read()
    return _decoded(lambda: _one_frame(_small_enough(Image.open(BytesIO(data), formats=FORMATS)), name), name)


def _decoded(load: Callable[[], Image.Image], name: str) -> Image.Image:
    # Pillow reads pixels late: whatever is wrong with a file may show only while it is turned upright.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return _upright(load())
    except Image.DecompressionBombError:
        raise CapriccioError(
            f"The picture {name!r} has more than {MAX_PIXELS // 10**6} million pixels; make it smaller first."
        ) from None
    except CapriccioError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error) as error:
        reason = "is not one" if isinstance(error, UnidentifiedImageError) else "is damaged or cut short"
        formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise CapriccioError(f"{name!r} was given as a picture but {reason}; give a whole {formats} file.") from None


def _small_enough(image: Image.Image) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    return image


def _one_frame(image: Image.Image, name: str) -> Image.Image:
    # An MPO file is a JPEG photograph with a smaller copy or a stereo twin behind it: its first frame is the picture.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise CapriccioError(f"The picture {name!r} has {frames} frames; save the one you want as its own picture.")
    return image


def _from_array(array: np.ndarray) -> Image.Image:
    pixels = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] not in (3, 4)) or not pixels.size:
        raise CapriccioError(
            f"A picture was given as an array of shape {array.shape}; give (height, width) or (height, width, 3 or 4)."
        )
    return Image.fromarray(_bytes_of(pixels))


def _bytes_of(pixels: np.ndarray) -> np.ndarray:
    """Return pixel values of any usual type as uint8 in 0..255."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        return np.round(pixels / 257).astype(np.uint8)
    if pixels.dtype == bool or (pixels.dtype.kind == "f" and _inside(pixels, 1)):
        return np.round(pixels.astype(np.float64) * 255).astype(np.uint8)
    raise CapriccioError(
        f"A picture was given as an array of {pixels.dtype} that is not in a usual range; "
        "give uint8 in 0 to 255, uint16 in 0 to 65535, or float in 0 to 1."
    )


def _inside(pixels: np.ndarray, top: float) -> bool:
    return bool(np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= top)


def _upright(image: Image.Image) -> Image.Image:
    image = _eight_bits(ImageOps.exif_transpose(image))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    opaque = image.getchannel("A").getextrema()[0] == 255
    return image.convert("RGB") if opaque else image


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image)
    # A picture of 8 or 16 bits may arrive in wider numbers: its values tell.
    if pixels.dtype.kind == "f" and _inside(pixels, 255) and pixels.max() > 1:
        pixels = pixels / 255
    elif pixels.dtype.kind != "f" and _inside(pixels, 65535):
        pixels = pixels.astype(np.uint16 if image.mode != "I" or pixels.max() > 255 else np.uint8)
    return Image.fromarray(_bytes_of(pixels))


# --- masks -------------------------------------------------------------------------------------------------------


def open_mask(
    source: Source | Picture, size: tuple[int, int], what: str = "mask", *, all_white: bool = False
) -> Image.Image:
    """Return a mask, white (255) where it holds and black (0) elsewhere, mode ``"L"``.

    Where the picture has transparency, what is painted counts; otherwise, what is light.

    Args:
        source: The mask, as for `open_picture`.
        size: Width and height of the picture that it belongs to.
        what: What to call it in a sentence.
        all_white: Whether it may hold everywhere.

    Raises:
        CapriccioError: If its size differs, or it holds nowhere, or everywhere without leave.
    """
    image = open_picture(source)
    if image.size != size:
        raise CapriccioError(
            f"The {what} is {image.width} x {image.height} pixels, but its picture is {size[0]} x {size[1]}; "
            "give a mask of the same size."
        )
    grey = image.getchannel("A") if image.mode == "RGBA" else image.convert("L")
    mask = grey.point(lambda value: 255 if value >= 128 else 0)
    dark, light = mask.getextrema()
    if dark == light and not (light and all_white):
        state = "all white" if light else "all black, so it marks nothing"
        raise CapriccioError(f"The {what} is {state}; paint white what it should mark and black what it should not.")
    return mask


# --- fitting -----------------------------------------------------------------------------------------------------


_AROUND: dict[str, int | tuple[int, ...] | str] = {"L": 0, "RGB": "white", "RGBA": (255, 255, 255, 0)}


def fit(image: Image.Image, width: int, height: int, how: Fit = "pad") -> tuple[Image.Image, str]:
    """Return a picture in another size, and a sentence that says what happened to it.

    Args:
        image: An opened picture, or a mask (mode ``"L"``), which stays black and white.
        width: Pixels of the result.
        height: Pixels of the result.
        how: ``"pad"`` keeps the whole picture and adds white (or transparency, or the black of a mask) around
            it, ``"crop"`` keeps its middle, ``"stretch"`` gives up its aspect ratio.
    """
    box = fitted_box(image.size, (width, height), how)
    inner = (box[2] - box[0], box[3] - box[1])
    resample = Image.Resampling.NEAREST if image.mode == "L" else Image.Resampling.LANCZOS
    resized = image if image.size == inner else image.resize(inner, resample)
    if inner == (width, height):
        return resized, _resized(image.size, inner, how)
    result = Image.new(image.mode, (width, height), _AROUND[image.mode])
    result.paste(resized, box[:2])
    verb = "padded" if how == "pad" else "cropped"
    return result, f"The picture ({_by(image.size)}) is resized to {_by(inner)} and {verb} to {_by((width, height))}."


def fitted_box(size: tuple[int, int], target: tuple[int, int], how: Fit) -> tuple[int, int, int, int]:
    """Return where a picture lies on its target: left, top, right, bottom in pixels; outside of it when cropped."""
    if how == "stretch":
        return (0, 0, *target)
    pick = min if how == "pad" else max
    scale = pick(target[0] / size[0], target[1] / size[1])
    width, height = (max(1, round(side * scale)) for side in size)
    left, top = (target[0] - width) // 2, (target[1] - height) // 2
    return (left, top, left + width, top + height)


def _resized(size: tuple[int, int], target: tuple[int, int], how: Fit) -> str:
    if size == target:
        return f"The picture is {_by(size)}, as needed."
    kept = abs(size[0] * target[1] - size[1] * target[0]) <= max(*size, *target)
    verb = "resized" if how != "stretch" or kept else "stretched, its aspect ratio given up,"
    return f"The picture ({_by(size)}) is {verb} to {_by(target)}."


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


# --- saving ------------------------------------------------------------------------------------------------------


def png_bytes(image: Image.Image, recipe: dict[str, Any] | None = None, compress_level: int = 6) -> bytes:
    """Return a picture as a PNG file, with the recipe in a text chunk."""
    info = PngInfo()
    if recipe is not None:
        # Plain ASCII in an uncompressed chunk: nothing to inflate for whoever reads it.
        info.add_text(_CHUNK, json.dumps({"schema_version": RECIPE_VERSION} | recipe))
    stream = BytesIO()
    image.save(stream, "PNG", pnginfo=info, compress_level=compress_level)
    return stream.getvalue()


def save_png(image: Image.Image, path: str | os.PathLike[str], recipe: dict[str, Any] | None = None) -> Path:
    """Save a picture as PNG, whole or not at all.

    Args:
        image: What to save.
        path: Where; folders are made as needed.
        recipe: What painted it, with a ``"scene"``; anything JSON holds. ``None`` leaves it out.

    Raises:
        CapriccioError: If the name does not end in ``.png``, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise CapriccioError(f"Pictures are saved as PNG, but received {path.name!r}; end the name in .png.")
    return write_whole(path, png_bytes(image, recipe))


def write_whole(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write a file so that an interruption leaves the old one, or none, and never half of it."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        raise CapriccioError(
            f"{str(path)!r} cannot be written ({error.strerror}); choose another place with -o."
        ) from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return path


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the recipe that a PNG file carries; it is a stranger's until proved otherwise.

    Returns:
        A mapping with ``"schema_version"`` and a mapping ``"scene"``; nothing deeper has been checked.

    Raises:
        CapriccioError: If there is none, or it is too large, malformed, or of another version.
    """
    text = _recipe_text(Path(path))
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError):
        recipe = None
    if not isinstance(recipe, dict) or not isinstance(recipe.get("scene"), dict):
        raise CapriccioError(f"The recipe in {str(path)!r} is damaged; paint from a scene file instead.")
    if recipe.get("schema_version") != RECIPE_VERSION:
        raise CapriccioError(
            f"The recipe in {str(path)!r} has schema version {recipe.get('schema_version')!r}, "
            f"and this capriccio reads version {RECIPE_VERSION}; use the release that painted it."
        )
    return recipe


def _recipe_text(path: Path) -> str:
    try:
        image = Image.open(BytesIO(_read(path)), formats=("PNG",))
        text = image.info.get(_CHUNK)
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError):
        raise CapriccioError(f"{str(path)!r} is not a whole PNG file; give a picture that capriccio saved.") from None
    if not isinstance(text, str):
        raise CapriccioError(
            f"The picture {str(path)!r} carries no recipe; give one that capriccio saved without --no-recipe."
        )
    if len(text) > RECIPE_LIMIT:
        raise CapriccioError(f"The recipe in {str(path)!r} is larger than {RECIPE_LIMIT:,} characters; it is refused.")
    return text


# --- sheets ------------------------------------------------------------------------------------------------------


def grid(
    images: Sequence[Image.Image], columns: int, labels: Sequence[str] | None = None, gap: int = 8, text_size: int = 12
) -> Image.Image:
    """Return a contact sheet on white: pictures row by row, each with its label below, rows as high as their labels.

    Args:
        images: At least one; each is centred in a cell as large as the largest.
        columns: Pictures in a row.
        labels: One line for each picture, or nothing; a line too long for its cell is wrapped.
        gap: Pixels between cells and around them.
        text_size: Height of the letters in pixels.
    """
    if not images or columns < 1 or (labels is not None and len(labels) != len(images)):
        raise CapriccioError(
            f"A sheet received {len(images)} pictures, {columns} columns and {len(labels or ())} labels; "
            "give at least one picture and column, and one label each."
        )
    font = ImageFont.load_default(text_size)
    width, height = (max(image.size[axis] for image in images) for axis in (0, 1))
    texts = [wrapped(label, font, width) for label in labels or [""] * len(images)]
    line = ceil(text_size * 1.3)
    said = [max(map(len, texts[start : start + columns])) for start in range(0, len(texts), columns)]
    tops = list(accumulate((height + gap + line * lines for lines in said), initial=gap))
    sheet = Image.new("RGB", (gap + columns * (width + gap), tops[-1]), "white")
    brush = ImageDraw.Draw(sheet)
    for index, (image, text) in enumerate(zip(images, texts, strict=True)):
        left, top = gap + index % columns * (width + gap), tops[index // columns]
        place = (left + (width - image.width) // 2, top + (height - image.height) // 2)
        sheet.paste(image, place, image if image.mode == "RGBA" else None)
        for row, words in enumerate(text):
            brush.text((left + width // 2, top + height + row * line + 2), words, "#333333", font, anchor="ma")
    return sheet


def wrapped(text: str, font: Any, width: int) -> list[str]:
    """Return a text in lines of at most ``width`` pixels; a word that is longer is cut."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        # Some languages part no words.
        while font.getlength(word) > width and len(word) > 1:
            fits = max(1, sum(font.getlength(word[:end]) <= width for end in range(1, len(word))))
            lines.append(word[:fits])
            word = word[fits:]
        lines.append(word)
    return lines
