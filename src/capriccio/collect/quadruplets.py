"""Quadruplets: what a picture teaches about putting a subject into a scene.

The data engine of LAR-Gen (Pan and others, *Locate, Assign, Refine*, section 5): tag a picture, drop what is no thing,
find a box for each tag, outline what is in it, drop what is too large or too small, and describe the crop. A caption of
the whole picture often leaves the subject out; a regional one cannot.

What differs: thresholds, which the paper does not give, are ours; boxes that show the same thing under two tags are
told apart from two things by their overlap; and the subject is cut out on white at once, as the published code does
when it reads the data (tight box, padded to a square of 1.02 times its longer side).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from capriccio.errors import CapriccioError
from capriccio.perception.looking import BoxSegmenter, Captioner, Localiser, Tagger
from capriccio.perception.segment import Mask, Sighting, on_white
from capriccio.world.graph import BACKDROPS, STUDIO

PLACES = frozenset((*BACKDROPS, STUDIO))
"""Tags of the miniature's world that are no things: its backdrops."""

NON_ENTITIES = frozenset({
    # the paper's own examples
    "sky", "nature", "skin",
    # more of their kinds: places, weather and light, materials and surfaces, parts of bodies, abstractions
    "background", "beach", "city", "cityscape", "coast", "countryside", "desert", "field", "floor", "forest", "garden",
    "grass", "ground", "horizon", "indoors", "land", "landscape", "meadow", "mountains", "ocean", "outdoors", "park",
    "pavement", "river", "road", "room", "sand", "scenery", "sea", "seascape", "soil", "street", "wall", "water",
    "waterfront", "cloud", "clouds", "darkness", "dawn", "dusk", "fog", "light", "mist", "night", "rain", "reflection",
    "shadow", "snow", "sunlight", "sunrise", "sunset", "weather", "brick", "bricks", "fabric", "fur", "leather",
    "metal", "plastic", "stone", "texture", "wood", "arm", "ear", "eye", "face", "finger", "foot", "hair", "hand",
    "leg", "lip", "mouth", "nose", "art", "beauty", "black", "blue", "brown", "color", "colour", "design", "fun",
    "gray", "green", "grey", "happiness", "pattern", "photo", "photograph", "picture", "pink", "purple", "red",
    "style", "white", "yellow",
})  # fmt: skip
"""Tags of photographs that are no things to put somewhere else."""

_ROUND = 1.02
"""Side of a subject's picture over its longer side (the published code's)."""


@dataclass(frozen=True)
class Stages:
    """Who looks at a picture; one object may be several of them."""

    tagger: Tagger
    localiser: Localiser
    segmenter: BoxSegmenter
    captioner: Captioner
    non_entities: frozenset[str] = NON_ENTITIES


@dataclass(frozen=True)
class Limits:
    """Which finds are kept.

    Attributes:
        least_score: Of a box, 0 to 1.
        overlap: Intersection over union from which two boxes show one thing; the better scored is kept.
        least_share: Of the picture that a mask covers; the paper drops what is too small, with no number.
        most_share: Likewise, what is too large.
    """

    least_score: float = 0.3
    overlap: float = 0.7
    least_share: float = 0.01
    most_share: float = 0.6

    def __post_init__(self) -> None:
        for name in ("least_score", "overlap", "least_share", "most_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise CapriccioError(f"{name} received {getattr(self, name):g}; give a share between 0 and 1.")
        if self.least_share >= self.most_share:
            raise CapriccioError(
                f"least_share received {self.least_share:g} and most_share {self.most_share:g}, which nothing can "
                "meet; give a smaller and a larger share."
            )


@dataclass(frozen=True)
class Quadruplet:
    """A picture, where something in it is, that thing on white, and what it is called.

    Attributes:
        source: RGB.
        mask: Of the same size, mode ``"L"``: 255 where the thing is, else 0.
        subject: A square RGB picture of the thing on white.
        text: The regional caption.
        tag: The word under which it was found.
        sighting: The box, in pixels of the source, and its score.
    """

    source: Image.Image
    mask: Image.Image
    subject: Image.Image
    text: str
    tag: str
    sighting: Sighting


@dataclass(frozen=True)
class Found:
    """The quadruplets of one picture, and how many finds were dropped for which reason (``REASONS``)."""

    quadruplets: tuple[Quadruplet, ...]
    dropped: dict[str, int]


REASONS = ("no thing", "unsure", "same thing twice", "no outline", "too small", "too large", "no words")


def quadruplets(image: Image.Image, stages: Stages, limits: Limits | None = None) -> Found:
    """Return the quadruplets of one picture.

    Args:
        image: RGB.
        stages: Who tags, finds, outlines and describes.
        limits: Which finds are kept.
    """
    limits = limits or Limits()
    dropped: Counter[str] = Counter()
    tags = stages.tagger.tags(image)
    things = [tag for tag in tags if is_entity(tag, stages.non_entities)]
    dropped["no thing"] = len(tags) - len(things)
    finds = [(tag, sighting) for tag in things for sighting in stages.localiser.boxes(image, tag)]
    sure = [(tag, sighting) for tag, sighting in finds if sighting.score >= limits.least_score]
    dropped["unsure"] = len(finds) - len(sure)
    kept = distinct(sure, limits.overlap)
    dropped["same thing twice"] = len(sure) - len(kept)
    made = []
    for tag, sighting in kept:
        mask = stages.segmenter.inside(image, sighting.box)
        reason = misfit(mask, limits)
        text = "" if reason else stages.captioner.caption(image, sighting.box)
        if reason or not text:
            dropped[reason or "no words"] += 1
            continue
        white = Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0)))
        made.append(Quadruplet(image, white, subject_picture(image, mask), text, tag, sighting))
    return Found(tuple(made), {reason: dropped[reason] for reason in REASONS if dropped[reason]})


def is_entity(tag: str, non_entities: Iterable[str]) -> bool:
    """Return whether a tag names a thing: what it is, its last word, is not among those that are none."""
    words = tag.lower().split()
    return bool(words) and words[-1] not in non_entities and tag.lower() not in non_entities


def distinct(finds: Sequence[tuple[str, Sighting]], overlap: float) -> list[tuple[str, Sighting]]:
    """Return the finds of which none shows the same thing as a better one, from the top left on.

    Args:
        finds: Tags and sightings; of equal scores the first is the better.
        overlap: Intersection over union from which two boxes show one thing.
    """
    kept: list[tuple[str, Sighting]] = []
    for tag, sighting in sorted(finds, key=lambda find: -find[1].score):
        if all(intersection_over_union(sighting.box, other.box) < overlap for _, other in kept):
            kept.append((tag, sighting))
    return sorted(kept, key=lambda find: (find[1].box[1], find[1].box[0], find[0]))


def intersection_over_union(one: Sequence[float], other: Sequence[float]) -> float:
    """Return how much of two boxes (left, top, right, bottom) is common to both, 0 to 1."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    common = max(across, 0.0) * max(down, 0.0)
    both = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - common
    return common / both if both > 0 else 0.0


def misfit(mask: Mask, limits: Limits) -> str | None:
    """Return why a mask is of no use, or nothing."""
    share = float(mask.mean())
    if not share:
        return "no outline"
    if share < limits.least_share:
        return "too small"
    return "too large" if share > limits.most_share else None


def subject_picture(image: Image.Image, mask: Mask) -> Image.Image:
    """Return what a mask marks, in the middle of a white square 1.02 times its longer side."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    cut = on_white(image, mask).crop(box)
    side = max(round(max(cut.size) * _ROUND), max(cut.size))
    square = Image.new("RGB", (side, side), "white")
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    return square
