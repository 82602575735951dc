"""Sources: which pictures there are, and what becomes of one of them, whoever does it and wherever."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from capriccio.collect.quadruplets import NON_ENTITIES, PLACES, Limits, Stages, quadruplets
from capriccio.collect.shards import Record, record
from capriccio.errors import CapriccioError, nearest
from capriccio.pictures import Picture, open_picture, sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Files with other endings are passed over."""
LEAST_SIDE = 32
"""Pixels: in a smaller picture there is nothing to find."""


@dataclass(frozen=True)
class Cast:
    """Who plays which stage, by name, so that another process or machine can call the same models.

    Attributes:
        stages: ``"world"``, which reads pictures of the miniature's world, or ``"transformers"``.
        models: For each stage the repository or folder of its model, in the order of ``MODELS``; none for the world.
    """

    stages: str = "world"
    models: tuple[tuple[str, str], ...] = ()


MODELS = {
    "tagger": "florence-community/Florence-2-base-ft",
    "localiser": "IDEA-Research/grounding-dino-tiny",
    "segmenter": "facebook/sam-vit-base",
    "captioner": "florence-community/Florence-2-base-ft",
}
"""The stages that transformers play: a Florence-2, a Grounding DINO, a SAM, and a Florence-2 or a LLaVA."""


def cast(stages: str = "world", **models: str) -> Cast:
    """Return who looks.

    Args:
        stages: ``"world"`` or ``"transformers"``.
        models: For a stage of ``MODELS``, another repository or folder.

    Raises:
        CapriccioError: If there are no such stages, or the world was given a model.
    """
    if stages not in ("world", "transformers"):
        raise CapriccioError(f"There are no stages {stages!r}; {nearest(stages, ('world', 'transformers'))}")
    for stage in models:
        if stage not in MODELS:
            raise CapriccioError(f"There is no stage {stage!r}; {nearest(stage, MODELS)}")
        if stages == "world":
            raise CapriccioError(f"The {stage} {models[stage]!r} is for photographs; add --stages transformers.")
    return Cast() if stages == "world" else Cast(stages, tuple((MODELS | models).items()))


@dataclass(frozen=True)
class Settings:
    """All that decides what is made of a picture.

    Attributes:
        cast: Who looks.
        limits: Which finds are kept.
        longest: Pixels of a source's longer side at most; larger pictures are made smaller.
    """

    cast: Cast = field(default_factory=Cast)
    limits: Limits = field(default_factory=Limits)
    longest: int = 1024

    def __post_init__(self) -> None:
        if self.longest < LEAST_SIDE:
            raise CapriccioError(f"longest received {self.longest}; give {LEAST_SIDE} pixels or more.")


@dataclass(frozen=True)
class Unit:
    """What became of one source picture.

    Attributes:
        source: Its path in the folder, with ``/``.
        sha256: Of its file; empty if it could not be read.
        records: Its quadruplets, as bytes.
        dropped: How many finds were dropped, by reason.
        refused: Why the picture was put aside, or nothing.
    """

    source: str
    sha256: str = ""
    records: tuple[Record, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    refused: str | None = None


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder, sorted by path, and what was passed over."""

    root: Path
    pictures: tuple[str, ...]
    other_files: int
    linked_folders: tuple[str, ...]


def list_pictures(root: Path, leave_out: Path | None = None) -> Listing:
    """Return the pictures in a folder and the folders in it; links to folders are told, not followed.

    Args:
        root: The folder.
        leave_out: A folder in it that is not looked into.

    Raises:
        CapriccioError: If it is no folder, or holds no picture.
    """
    if not root.is_dir():
        raise CapriccioError(f"The source {str(root)!r} is not a folder; give a folder of pictures.")
    pictures, other, linked = [], 0, []
    for folder, folders, files in os.walk(root):
        paths = [Path(folder, name) for name in folders]
        linked += [path.relative_to(root).as_posix() for path in paths if path.is_symlink()]
        folders[:] = [path.name for path in paths if leave_out is None or path.resolve() != leave_out.resolve()]
        found = [Path(folder, name) for name in files if Path(name).suffix.lower() in ENDINGS]
        other += len(files) - len(found)
        pictures += [path.relative_to(root).as_posix() for path in found]
    if not pictures:
        raise CapriccioError(
            f"The source {str(root)!r} holds no pictures; give a folder of {', '.join(ENDINGS)} files."
        )
    return Listing(root, tuple(sorted(pictures)), other, tuple(sorted(linked)))


def work(root: Path, settings: Settings, device: str, source: str) -> Unit:
    """Make the quadruplets of one picture: a function of its bytes and the settings, in any process.

    Args:
        root: The folder of the pictures.
        settings: What decides.
        device: Where models run.
        source: The path of the picture in the folder.

    Raises:
        CapriccioError: If a model cannot be loaded. A bad picture is no error: its unit says why it is refused.
    """
    try:
        data = Picture.of(root / source).read()
    except CapriccioError as error:
        return Unit(source, refused=_short(error, root / source, source))
    digest = sha256(data)
    try:
        image = _opened(data, source)
    except CapriccioError as error:
        return Unit(source, digest, refused=str(error))
    image.thumbnail((settings.longest, settings.longest), Image.Resampling.LANCZOS)
    with _one_thread():
        found = quadruplets(image, stages(settings.cast, device), settings.limits)
    records = tuple(
        record(one.source, one.mask, one.subject, one.text, {
            "source": source,
            "sha256": digest,
            "tag": one.tag,
            "box": [round(edge, 2) for edge in one.sighting.box],
            "score": round(one.sighting.score, 4),
        })
        for one in found.quadruplets
    )  # fmt: skip
    return Unit(source, digest, records, found.dropped)


def _opened(data: bytes, name: str) -> Image.Image:
    """The picture as RGB, on white where it is transparent."""
    image = open_picture(Picture(name, data=data))
    if min(image.size) < LEAST_SIDE:
        raise CapriccioError(
            f"The picture {name!r} is {image.width} x {image.height} pixels; "
            f"give one of {LEAST_SIDE} x {LEAST_SIDE} or more."
        )
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _short(error: CapriccioError, path: Path, name: str) -> str:
    """The sentence with the name in the folder: where the folder lies must not change what is written."""
    return str(error).replace(str(Path(os.path.abspath(path))), name)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, whatever the machine: pictures are spread over processes instead."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def stages(cast: Cast, device: str = "cpu") -> Stages:
    """Return who looks, once for each process; models are loaded when first used."""
    if cast.stages == "world":
        from capriccio.perception.world_eye import WorldEye

        eye = WorldEye()
        return Stages(eye, eye, eye, eye, PLACES)
    from capriccio.perception.looking import Florence, captioner
    from capriccio.perception.segment import GroundedSegmenter

    models = dict(cast.models)
    # A box is kept or dropped by the limits, so that every one is counted.
    grounded = GroundedSegmenter(models["localiser"], models["segmenter"], threshold=0.05, device=device)
    tagger = Florence(models["tagger"], device=device)
    # One model is loaded once.
    words = tagger if models["captioner"] == models["tagger"] else captioner(models["captioner"], device)
    return Stages(tagger, grounded, grounded, words, NON_ENTITIES)
