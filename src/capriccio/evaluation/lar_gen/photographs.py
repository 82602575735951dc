"""The benchmark on people's own data: COCO's validation pictures with their boxes, DreamBooth's subjects and sentences.

    COCO        annotations/instances_val2017.json, val2017/000000000139.jpg, ...
    DreamBooth  prompts_and_classes.txt, backpack/00.jpg, cat/00.jpg, ... (also with ``dataset/`` above them)

The paper names numbers, not the rule by which pictures were chosen; ours stands in ``RULE`` and in every manifest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from capriccio.canvas import opaque
from capriccio.errors import CapriccioError, nearest
from capriccio.evaluation.lar_gen.samples import Guest, Place, Protocol, Wish, box_mask, cut_out
from capriccio.perception.segment import Segmenter, segment
from capriccio.pictures import FORMATS, open_picture

PLACES, GUESTS, WISHES = 20, 10, 10
SHARE = (0.05, 0.40)
"""Least and greatest share of the picture that a box may cover."""
SIDE = 64
"""Least pixels of a side of a box."""
ASPECT = 2.0
LIVING = frozenset({"cat", "dog"})
"""DreamBooth's classes of live subjects."""

RULE = (
    f"COCO: pictures in an order drawn by the seed, of each the largest box of one object (no crowd) that covers "
    f"{SHARE[0]:.0%} to {SHARE[1]:.0%} of it, has sides of {SIDE} pixels or more and is at most {ASPECT:g} times as "
    "long as wide, until there are enough; the mask is the box. DreamBooth: five live and five other subjects drawn by "
    "the seed, the first picture of each, its background removed; sentences: the first ten that its lists of live "
    "subjects and of objects share, without the rare token"
)

_ANNOTATIONS, _PICTURES = "annotations/instances_val2017.json", "val2017"
_WORDS = "prompts_and_classes.txt"
_CLASS = re.compile(r"^(\w+),([\w ]+)$", re.MULTILINE)
_PROMPT = re.compile(r"'([^']*\{1\}[^']*)'\.format")


@dataclass(frozen=True)
class Box:
    """One object of a COCO picture; left, top, right, bottom in pixels."""

    file: str
    corners: tuple[int, int, int, int]
    area: float


def photographs(coco: Path, dreambooth: Path, seed: int = 0, segmenter: Segmenter | None = None) -> Protocol:
    """Choose 20 places, 10 guests and 10 wishes from folders in their public layouts.

    Args:
        coco: Folder with ``annotations/instances_val2017.json`` and ``val2017/``.
        dreambooth: Folder with ``prompts_and_classes.txt`` and a folder for each subject.
        seed: Fixes the choice.
        segmenter: Who finds subjects before their background is removed; Grounding DINO with SAM by default.

    Raises:
        CapriccioError: If a file is missing, damaged, or holds too little.
    """
    words = _words(dreambooth)
    places, guests = coco_places(coco, seed), dreambooth_guests(words, seed, segmenter)
    return Protocol("COCO and DreamBooth", places, guests, dreambooth_wishes(words), RULE, seed)


# --- COCO --------------------------------------------------------------------------------------------------------


def coco_places(folder: Path, seed: int = 0, count: int = PLACES) -> list[Place]:
    """Return pictures with the box of an object as their hole, by the rule.

    Raises:
        CapriccioError: If the annotations or a chosen picture are missing or damaged, or too few boxes fit.
    """
    boxes = _boxes(folder / _ANNOTATIONS)
    ids = np.random.default_rng([7, seed]).permutation(sorted(boxes))
    if len(ids) < count:
        raise CapriccioError(
            f"Only {len(ids)} pictures in {str(folder / _ANNOTATIONS)!r} have a box of sensible size, but {count} are "
            "needed; give the whole annotations of COCO's validation set."
        )
    return [_place(folder, int(number), boxes[number]) for number in ids[:count]]


def _boxes(path: Path) -> Mapping[int, Box]:
    """The largest fitting box of each picture, by the picture's number."""
    data = _json(path)
    try:
        pictures = {one["id"]: (one["file_name"], one["width"], one["height"]) for one in data["images"]}
        found: dict[int, Box] = {}
        for one in data["annotations"]:
            file, *size = pictures[one["image_id"]]
            box = Box(file, _corners(one["bbox"]), float(one["bbox"][2] * one["bbox"][3]))
            known = found.get(one["image_id"])
            if not one["iscrowd"] and fits(box.corners, size[0], size[1]) and (known is None or known.area < box.area):
                found[one["image_id"]] = box
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CapriccioError(
            f"{str(path)!r} is not in COCO's layout ({type(error).__name__}: {error}); give instances_val2017.json as "
            "COCO publishes it."
        ) from None
    return found


def _corners(box: list[float]) -> tuple[int, int, int, int]:
    left, top, width, height = box
    return round(left), round(top), round(left + width), round(top + height)


def fits(corners: tuple[int, int, int, int], width: int, height: int) -> bool:
    """Return whether a box (left, top, right, bottom) of a picture of that size is of sensible size."""
    across, down = corners[2] - corners[0], corners[3] - corners[1]
    if min(across, down) < SIDE or max(across, down) > ASPECT * min(across, down):
        return False
    return SHARE[0] <= across * down / (width * height) <= SHARE[1]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CapriccioError(
            f"{str(path)!r} cannot be read ({error.strerror}); give --coco a folder with {_ANNOTATIONS} and "
            f"{_PICTURES}/."
        ) from None
    except ValueError:
        raise CapriccioError(f"{str(path)!r} is no valid JSON; download COCO's annotations again.") from None


def _place(folder: Path, number: int, box: Box) -> Place:
    source = opaque(open_picture(_existing(folder / _PICTURES / box.file, "--coco")))
    mask = box_mask(source.size, box.corners)
    return Place(f"coco{number:012}", source, mask, {"file": f"{_PICTURES}/{box.file}"})


def _existing(path: Path, option: str) -> Path:
    if not path.is_file():
        raise CapriccioError(f"The picture {str(path)!r} is not there; give {option} the whole folder as published.")
    return path


# --- DreamBooth --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Words:
    """What ``prompts_and_classes.txt`` says, and where: classes of subjects, sentences of objects and of live ones."""

    folder: Path
    classes: Mapping[str, str]
    objects: tuple[str, ...]
    live: tuple[str, ...]


def _words(folder: Path) -> Words:
    place = next((each for each in (folder, folder / "dataset") if (each / _WORDS).is_file()), None)
    if place is None:
        raise CapriccioError(
            f"{str(folder / _WORDS)!r} is not there; give --dreambooth the folder google/dreambooth has."
        )
    classes, _, prompts = (place / _WORDS).read_text("utf-8").partition("Prompts")
    objects, _, live = prompts.partition("Live Subject Prompts")
    named = {name: word for name, word in _CLASS.findall(classes) if name != "subject_name"}
    found = Words(place, named, *(tuple(_PROMPT.findall(part)) for part in (objects, live)))
    if not (found.classes and found.objects and found.live):
        raise CapriccioError(
            f"{str(place / _WORDS)!r} lacks classes or sentences; give the file as google/dreambooth publishes it."
        )
    return found


def dreambooth_wishes(words: Words, count: int = WISHES) -> list[Wish]:
    """Return the sentences that live subjects and objects share, without their rare token."""
    shared = [prompt for prompt in words.objects if prompt in words.live][:count]
    plain = [prompt.replace("{0} ", "").replace("{1}", "{}") for prompt in shared]
    return [Wish(f"p{number}", prompt) for number, prompt in enumerate(plain)]


def dreambooth_guests(
    words: Words, seed: int = 0, segmenter: Segmenter | None = None, count: int = GUESTS
) -> list[Guest]:
    """Return live subjects and others, as many of each, by the rule.

    Raises:
        CapriccioError: If there are too few, one has no picture, or nobody finds it in its picture.
    """
    rng = np.random.default_rng([8, seed])
    chosen: list[str] = []
    for alive, kind in ((True, "live subjects"), (False, "objects")):
        names = sorted(name for name, word in words.classes.items() if (word in LIVING) == alive)
        if len(names) < count // 2:
            raise CapriccioError(
                f"{str(words.folder / _WORDS)!r} names {len(names)} {kind}, but {count // 2} are needed; give the "
                "whole list as google/dreambooth publishes it."
            )
        chosen += [str(name) for name in rng.permutation(names)[: count // 2]]
    return [guest(words, name, segmenter) for name in chosen]


def guest(words: Words, name: str, segmenter: Segmenter | None = None) -> Guest:
    """Return one subject by its name, from the first of its pictures.

    Raises:
        CapriccioError: If it is unknown, has no picture, or nobody finds it in its picture.
    """
    if name not in words.classes:
        raise CapriccioError(f"DreamBooth has no subject {name!r}; {nearest(name, words.classes)}")
    endings = {f".{format.lower()}" for format in FORMATS} | {".jpg"}
    files = sorted(path for path in (words.folder / name).glob("*") if path.suffix.lower() in endings)
    if not files:
        raise CapriccioError(
            f"The subject {name!r} has no picture in {str(words.folder / name)!r}; give --dreambooth the whole folder "
            "as published."
        )
    picture, word = opaque(open_picture(files[0])), words.classes[name]
    there = segment(picture, word, segmenter=segmenter)
    mask = Image.fromarray(np.where(there, np.uint8(255), np.uint8(0)))
    return Guest(name, word, cut_out(picture, mask), picture, {"file": f"{name}/{files[0].name}"})
