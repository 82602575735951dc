"""Interleaved captions: sentences in which pictures stand where words would, as KOSMOS-G reads them.

"the {mug} in the snow" is a list of words and picture references. A reference shows one individual, one place or one
style by example; what the pictures tell, the words keep to themselves, so that only who looks at them can paint.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, count

import numpy as np
import torch
from torch import Tensor

from capriccio.errors import CapriccioError
from capriccio.world.captions import backdrop_phrase, noun_of, worn_phrase
from capriccio.world.draw import Drawing, draw
from capriccio.world.graph import (
    BACKDROPS,
    STUDIO,
    Backdrop,
    Identity,
    SceneGraph,
    foot_of,
    sample_backdrop,
    sample_scene,
    standing,
)
from capriccio.world.words import with_articles

ROLES = ("subject", "place", "style")
"""What a reference picture can stand for."""

_NOUN_SHARE, _PLACE_SHARE, _STYLE_SHARE = 0.5, 0.2, 0.5
_PICTURES = {
    "flat": "a flat illustration of {}", "pencil": "a pencil sketch of {}", "pixel": "pixel art of {}",
    "watercolour": "a watercolour of {}", "neon": "a neon sign of {}", "blueprint": "a blueprint of {}",
    "mosaic": "a mosaic of {}",
}  # fmt: skip
_SHADED = ("{}", "{}", "a photo of {}")
_PAIRED = ("{} on the left and {} on the right", "{} next to {}", "{} and {}", "{} to the left of {}")
_PLACED = ("{} in this place: {}", "{} in {}", "{} at the place of {}")
_STYLED = ("{} in the style of {}", "{} drawn like {}", "{}, the same style as {}")


@dataclass(frozen=True)
class Reference:
    """A picture that stands in a sentence."""

    name: str
    """Unique in its sentence; what ``{name}`` in a prompt refers to."""
    scene: SceneGraph
    """What the picture shows."""
    role: str = "subject"
    """One of ``ROLES``: which part of what it shows is meant."""
    thing: int = 0
    """Place in the target scene of the subject it shows."""


@dataclass(frozen=True)
class Interleaved:
    """A sentence with pictures in it, and the scene that it asks for."""

    pieces: tuple[str | Reference, ...]
    """Words and pictures in the order of the sentence; words come with the spaces round them."""
    target: SceneGraph

    @property
    def references(self) -> tuple[Reference, ...]:
        """The pictures in the order of the sentence."""
        return tuple(piece for piece in self.pieces if isinstance(piece, Reference))

    @property
    def prompt(self) -> str:
        """The sentence as a scene of this library has it: ``"the {mug} in the snow"``."""
        return self.spelt("{{{}}}")

    def spelt(self, form: str) -> str:
        """The sentence with every picture spelt in a form, such as ``"<i>"``; ``{}`` is filled with its name."""
        return "".join(piece if isinstance(piece, str) else form.format(piece.name) for piece in self.pieces)


@dataclass(frozen=True)
class Illustrated:
    """Pictures of interleaved captions."""

    targets: Drawing
    """Of the B scenes that are asked for."""
    references: Drawing
    """Of all pictures in all sentences, one after the other."""
    owner: Tensor
    """(R,) int64: to which sentence each reference picture belongs."""


def sample_interleaved(
    rng: np.random.Generator, subjects: int = 1, pictures: int = 1, split: str = "train", white: float = 0.5
) -> Interleaved:
    """Draw a scene of one or two subjects and a sentence that asks for it by pictures.

    Half of the subjects keep their noun beside the picture; KOSMOS-G drops it as often (Pan et al. 2024). The place is
    given by a picture one time in five, a style other than shaded one time in two.

    Args:
        rng: Source of every choice.
        subjects: 1 or 2.
        pictures: How many pictures show each subject, each in a scene of its own, as PhotoMaker stacks them.
        split: ``"train"`` or ``"test"``.
        white: Share of subject pictures on white; the others are taken in another place.

    Raises:
        CapriccioError: If the split is unknown, or the numbers are not 1 or 2 subjects and at least 1 picture.
    """
    if subjects not in (1, 2) or pictures < 1:
        raise CapriccioError(
            f"Received {subjects} subjects in {pictures} pictures each: ask for 1 or 2 subjects, in 1 picture or more."
        )
    target = sample_scene(rng, subjects, split)
    shown: list[Reference] = []
    order = sorted(range(subjects), key=lambda at: target.things[at].x)
    told = [_subject(target, at, pictures, white, shown, rng) for at in order]
    text = told[0] if subjects == 1 else _pick(rng, _PAIRED).format(*told)
    text = _restyled(target, _placed(target, text, shown, rng), shown, rng)
    return Interleaved(_pieces(with_articles(text), shown), target)


def reference_scene(
    identity: Identity, rng: np.random.Generator, avoid: str | None = None, white: float = 0.5
) -> SceneGraph:
    """Draw a picture to know an individual by: alone, shaded, with nothing on, on white or in a place.

    Args:
        identity: Who is shown.
        rng: Source of every choice.
        avoid: A backdrop that is not taken.
        white: Probability of plain white.
    """
    scene = sample_scene(rng, 1, style="shaded", accessories=False)
    stand_in = scene.things[0]
    thing = standing(replace(stand_in, identity=identity), foot_of(stand_in))
    place = sample_backdrop(rng, _pick(rng, [kind for kind in BACKDROPS if kind != avoid]))
    return SceneGraph((thing,), Backdrop(STUDIO) if rng.random() < white else place)


def draw_interleaved(
    captions: Sequence[Interleaved], size: int = 128, device: torch.device | str = "cpu"
) -> Illustrated:
    """Draw what sentences ask for and the pictures in them, with all their truth.

    Args:
        captions: B interleaved captions.
        size: Side of the pictures in pixels.
        device: Where to draw.

    Raises:
        CapriccioError: If there is nothing to draw or the size is less than 8.
    """
    targets = [one.target for one in captions]
    references = [(row, shown.scene) for row, one in enumerate(captions) for shown in one.references]
    drawing = draw([*targets, *(scene for _, scene in references)], size, device)
    owner = torch.tensor([row for row, _ in references], device=device)
    return Illustrated(drawing.rows(slice(len(targets))), drawing.rows(slice(len(targets), None)), owner)


def _subject(
    target: SceneGraph, at: int, pictures: int, white: float, shown: list[Reference], rng: np.random.Generator
) -> str:
    """Say one subject by its pictures, which are added to those shown: ``"the mug {mug} wearing a red hat"``."""
    thing = target.things[at]
    new: list[Reference] = []
    for _ in range(pictures):
        scene = reference_scene(thing.identity, rng, target.backdrop.kind, white)
        new.append(Reference(_name(thing.identity.kind, [*shown, *new]), scene, "subject", at))
    shown += new
    noun = f"{noun_of(thing.identity.kind, rng)} " if rng.random() < _NOUN_SHARE else ""
    marks = " ".join(f"{{{one.name}}}" for one in new)
    return f"the {noun}{marks}{worn_phrase(thing, rng, 'full', target.style)}"


def _placed(target: SceneGraph, text: str, shown: list[Reference], rng: np.random.Generator) -> str:
    """Say the place too, by word or by picture."""
    if rng.random() >= _PLACE_SHARE:
        return f"{text} {backdrop_phrase(target.backdrop.kind, rng)}"
    shown.append(Reference(_name("place", shown), SceneGraph((), target.backdrop), "place"))
    return _pick(rng, _PLACED).format(text, f"{{{shown[-1].name}}}")


def _restyled(target: SceneGraph, text: str, shown: list[Reference], rng: np.random.Generator) -> str:
    """Say the style too, by word or by a picture of something else."""
    if target.style == "shaded":
        return _pick(rng, _SHADED).format(text)
    if rng.random() >= _STYLE_SHARE:
        return _PICTURES[target.style].format(text)
    shown.append(Reference(_name("style", shown), sample_scene(rng, 1, style=target.style), "style"))
    return _pick(rng, _STYLED).format(text, f"{{{shown[-1].name}}}")


def _name(wanted: str, shown: Sequence[Reference]) -> str:
    """``mug``, ``mug2``, ``mug3``: a name that no picture has yet."""
    taken = {one.name for one in shown}
    return next(name for name in chain([wanted], (f"{wanted}{number}" for number in count(2))) if name not in taken)


def _pieces(prompt: str, shown: Sequence[Reference]) -> tuple[str | Reference, ...]:
    """The prompt cut at its names, each replaced by its picture."""
    pictures = {one.name: one for one in shown}
    cut = re.split(r"\{(\w+)\}", prompt)
    return tuple(pictures[piece] if at % 2 else piece for at, piece in enumerate(cut) if piece)


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]
