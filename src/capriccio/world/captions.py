"""Sentences on scene graphs: synonyms, several lengths, spatial words, and panels told in many ways.

``"full"`` captions name colours, pattern, accessories and sometimes size and place; ``"brief"`` ones the kind and its
main colour; ``"kind"`` ones nothing that tells one individual from another. Whatever a person would miss is always
said: the backdrop, a style other than shaded, an accessory. All words are in the vocabulary, in lower case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from capriccio.errors import CapriccioError
from capriccio.world import person_words
from capriccio.world.graph import Garment, Identity, Panels, SceneGraph, Thing, size_word
from capriccio.world.people import Sitter
from capriccio.world.words import (
    ADJECTIVES,
    COLOURLESS,
    MARKS,
    Detail,
    Honest,
    article,
    colour_word,
    honest,
    pick,
    sample_detail,
    with_articles,
)

__all__ = [
    "COLOURLESS",
    "Detail",
    "backdrop_phrase",
    "caption",
    "identity_phrase",
    "noun_of",
    "panel_caption",
    "part_phrase",
    "regional_captions",
    "sample_caption",
    "sample_panel_caption",
    "trait_caption",
    "worn_phrase",
]

NOUNS: Mapping[str, tuple[str, ...]] = {
    "mug": ("mug", "mug", "mug", "cup"),
    "house": ("house", "house", "house", "cottage"),
    "mushroom": ("mushroom", "mushroom", "mushroom", "toadstool"),
    "boat": ("boat", "boat", "boat", "sailboat"),
    "gift": ("gift", "gift", "gift", "present"),
    "cat": ("cat", "cat", "cat", "kitten"),
    "rocket": ("rocket", "rocket", "rocket", "spaceship"),
    "ring": ("ring", "ring", "ring", "torus"),
}
"""The nouns of a kind, as often as each is said; any other kind goes by its name."""
_PARTS: Mapping[str, tuple[str, ...]] = {
    "mug": ("a {} handle", "a {} rim"),
    "teapot": ("a {} handle", "a {} spout", "a {} lid"),
    "house": ("a {} roof", "a {} door"),
    "tree": ("a {} trunk",),
    "mushroom": ("a {} stem",),
    "fish": ("{} fins", "a {} tail"),
    "boat": ("a {} sail",),
    "car": ("a {} roof", "{} wheels"),
    "star": ("{} tips",),
    "heart": ("a {} edge", "a {} border"),
    "ball": ("{} bands",),
    "gift": ("a {} ribbon",),
    "cat": ("{} ears", "a {} tail"),
    "bird": ("{} wings", "a {} beak"),
    "robot": ("a {} head", "{} arms"),
    "rocket": ("{} fins", "a {} nose"),
    "cube": ("{} edges",),
    "cone": ("a {} tip", "a {} top"),
    "cylinder": ("{} edges", "a {} top"),
    "ring": ("{} bands",),
    "capsule": ("{} tips",),
    "pyramid": ("a {} tip", "a {} top"),
}
_PLACES: Mapping[str, tuple[str, ...]] = {
    "beach": ("on the beach", "on a sandy beach", "on the sand by the sea"),
    "snow": ("in the snow", "in a snowy landscape", "on snowy ground"),
    "meadow": ("in a meadow", "in a green meadow", "on the green grass"),
    "desert": ("in the desert", "among desert dunes", "on a sand dune"),
    "night": ("at night", "under the night sky", "under a starry sky"),
    "sea": ("on the sea", "on the blue ocean", "on the water"),
    "bricks": ("in front of a brick wall", "before a wall of bricks", "against a brick wall"),
    "table": ("on a wooden table", "on the table", "on a table top"),
    "sunset": ("at sunset", "against the evening sky", "in front of the sunset"),
    "mountains": ("in the mountains", "in front of mountains", "with mountains in the background"),
    "studio": ("on a plain white background", "on a white background", "against plain white"),
}
_STYLED: Mapping[str, tuple[str, ...]] = {
    "flat": ("a flat illustration of {}", "a flat drawing of {}", "flat style: {}"),
    "pencil": ("a pencil sketch of {}", "a pencil drawing of {}", "pencil sketch style: {}"),
    "pixel": ("pixel art of {}", "a pixel art picture of {}", "pixel art style: {}"),
    "watercolour": ("a watercolour painting of {}", "a watercolour of {}", "watercolour style: {}"),
    "neon": ("a neon sign of {}", "a neon picture of {}", "neon style: {}"),
    "blueprint": ("a blueprint of {}", "a blueprint drawing of {}", "blueprint style: {}"),
    "mosaic": ("a mosaic of {}", "a tile mosaic of {}", "mosaic style: {}"),
}
_SHADED = ("{}", "{}", "{}", "a photo of {}", "a picture of {}", "an image of {}")
_SIZED: Mapping[str, tuple[str, ...]] = {
    "small": ("small", "little"),
    "medium": ("medium sized",),
    "large": ("large", "big"),
}

_DIPTYCHS = (
    "two side-by-side images of the same {noun}: {first} on the left, {second} on the right",
    "two side-by-side photos of one {subject}. on the left {first}, on the right {second}",
    "a diptych of the same {subject}, {first} on the left and {second} on the right",
    "a diptych with two images. the left shows a {subject} {first}. the right shows the same {noun} {second}",
    "on the left, a photo of a {subject} {first}. on the right, the same {noun} {second}",
    "on the left, a {subject} {first}. on the right, replicate the {noun} exactly but {second}",
    "a diptych: the {subject} {first} on the left, exactly the same {noun} as an image {second} on the right",
    "a {subject} shown twice side by side, left panel {first}, right panel {second}",
    "two panels show this {subject}. left, a photo {first}. right, this {noun} {second}",
    "a pair of pictures with the same {subject}, {first} and then {second}",
    "side by side, a {subject} {first} and an exact copy of this {noun} {second}",
    "a grid of two images of the same {subject}. left: {first}. right: {second}",
)
_GRIDS = (
    "a grid of {count} images of the same {subject}: {cells}",
    "{count} photos of one {subject} in a grid. {cells}",
    "the same {subject} in {count} panels, {cells}",
    "a set of {count} pictures with exactly the same {subject}: {cells}",
)
_TRYONS = (
    "two side-by-side images: {garment} {white} on the left, {who}, wearing the same {noun} {place}, on the right",
    "on the left, a product photo of {garment} {white}. on the right, {who}, wearing this {noun}, {place}",
    "a diptych. the left shows {garment} {white}. the right shows {who}, in exactly the same {noun}, {place}",
    "left, {garment}. right, {who} {place}, dressed in this {noun}",
    "a pair of pictures: {garment} {white}, and {who}, who wears the same {noun}, {place}",
)
_OPEN = 0.12  # of the captions to learn from name several subjects and leave open where they are
_TOLD_PATTERN = 0.6  # of the single traits of something with a pattern: of colours longer sentences have taught
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def caption(scene: SceneGraph, rng: np.random.Generator, detail: Detail = "full", placed: bool = True) -> str:
    """Say a scene in one sentence.

    Args:
        scene: What is seen.
        rng: Chooses among synonyms and forms.
        detail: ``"full"``, ``"brief"`` or ``"kind"``; with ``"full"``, several subjects get their sides.
        placed: Whether places of several subjects may be said; if not, they are named in any order.
    """
    shown = pick(rng, _STYLED.get(scene.style, _forms(scene))).format(_subjects(scene, rng, detail, placed))
    place = backdrop_phrase(scene.backdrop.kind, rng)
    return f"{place}, {shown}" if rng.random() < 0.15 else f"{shown} {place}"


def sample_caption(scene: SceneGraph, rng: np.random.Generator) -> str:
    """Draw a caption to learn from: 85 % full, 8 % brief, 7 % by kind alone; some leave open who stands where."""
    detail = sample_detail(rng)
    return caption(scene, rng, detail, placed=len(scene.cast) == 1 or rng.random() >= _OPEN)


def trait_caption(scene: SceneGraph, rng: np.random.Generator) -> str:
    """Say one trait of the one subject of a shaded scene, and sometimes where it is: ``"a dotted mug in the snow"``.

    Of a long sentence each word is a small part; of a short one a model that learns from it finds what the word does.
    """
    (one,) = scene.cast
    if isinstance(one, Sitter):
        shown = person_words.trait_phrase(one, rng)
    else:
        detail: Honest = "pattern" if one.identity.pattern != "plain" and rng.random() < _TOLD_PATTERN else "brief"
        if isinstance(one.identity, Garment):
            words = person_words.garment_words(one.identity, person_words.garment_noun(one.identity, rng), rng, detail)
        else:
            words = _identity(one.identity, noun_of(one.identity.kind, rng), rng, detail)
        shown = f"{article(words)} {words}"
    return f"{shown} {backdrop_phrase(scene.backdrop.kind, rng)}" if rng.random() < 0.5 else shown


def panel_caption(panels: Panels, rng: np.random.Generator, detail: Detail = "full") -> str:
    """Say a grid of panels in one or a few sentences: the shared subject once, every panel's place.

    The words are those of the templates of Diptych Prompting, Diffusion Self-Distillation and image grids; the
    sentences are not, so that a template is as new to the model as it was to FLUX.
    """
    if panels.scenes[-1].people and panels.scenes[0].things:
        return _tryon(panels, rng, detail)
    style, first = panels.scenes[0].style, panels.scenes[0].cast[0]
    if isinstance(first, Sitter):
        noun = person_words.person_noun(first.person, rng)
        told = {"subject": person_words.person_words(first, noun, rng, honest(detail, style), 2), "noun": noun}
    else:
        noun = noun_of(first.identity.kind, rng)
        told = {"subject": _identity(first.identity, noun, rng, honest(detail, style)), "noun": noun}
    wheres = [_where(scene, rng, detail) for scene in panels.scenes]
    if (panels.rows, panels.columns) == (1, 2):
        text = pick(rng, _DIPTYCHS).format(**told, first=wheres[0], second=wheres[1])
    else:
        cells = [f"{position} {where}" for position, where in zip(_positions(panels), wheres, strict=True)]
        text = pick(rng, _GRIDS).format(**told, count=_NUMBERS[len(cells)], cells=", ".join(cells))
    return _STYLED.get(style, ("{}",))[-1].format(with_articles(text))


def sample_panel_caption(panels: Panels, rng: np.random.Generator) -> str:
    """Draw a caption of panels to learn from: half of them give the kind alone, so that the identity must be copied."""
    return panel_caption(panels, rng, sample_detail(rng, (0.40, 0.10, 0.50)))


def regional_captions(scene: SceneGraph, rng: np.random.Generator, detail: Detail = "full") -> tuple[str, ...]:
    """Say each thing of a scene on its own, ``"a red mug with a blue handle"``, in the order of the scene."""
    return tuple(_subject(one, rng, detail, scene.style) for one in scene.cast)


def noun_of(kind: str, rng: np.random.Generator) -> str:
    """One of the nouns that a kind goes by."""
    return pick(rng, NOUNS.get(kind, (kind,)))


def identity_phrase(
    identity: Identity,
    rng: np.random.Generator,
    detail: Detail = "full",
    style: str = "shaded",
    noun: str | None = None,
) -> str:
    """Say an individual with its article, ``"a red mug with a blue handle"``, under its ``noun`` or any it goes by."""
    noun = noun or noun_of(identity.kind, rng)
    phrase = _identity(identity, noun, rng, honest(detail, style))
    return f"{article(phrase)} {phrase}"


def part_phrase(kind: str, colour: str, rng: np.random.Generator) -> str:
    """Say one of the accent parts of a kind in a colour, ``"an orange handle"``."""
    return with_articles(pick(rng, _PARTS[kind]).format(colour))


def backdrop_phrase(kind: str, rng: np.random.Generator | None) -> str:
    """Return where a backdrop puts its subject, ``"in the snow"``; the commonest phrase if ``rng`` is ``None``."""
    phrases = _PLACES[kind]
    return phrases[0] if rng is None else pick(rng, (phrases[0], *phrases))


def _forms(scene: SceneGraph) -> tuple[str, ...]:
    """How a shaded picture may be introduced."""
    if len(scene.cast) != 1:
        return _SHADED
    (one,) = scene.cast
    if isinstance(one, Sitter):
        return person_words.PORTRAITS if one.size > person_words.CLOSE else _SHADED
    return person_words.PRODUCTS if isinstance(one.identity, Garment) else _SHADED


def _subjects(scene: SceneGraph, rng: np.random.Generator, detail: Detail, placed: bool) -> str:
    cast = scene.cast
    if len(cast) == 1:
        phrase = _subject(cast[0], rng, detail, scene.style, alone=True)
        side = _side(cast[0].x)
        return f"{phrase} on the {side}" if side and detail == "full" and rng.random() < 0.3 else phrase
    if len(cast) == 2:
        cast = tuple(sorted(cast, key=lambda one: one.x))
    # Three people in full would not fit into the 77 tokens of CLIP.
    told: Detail = "brief" if len(cast) > 2 and scene.people and detail == "full" else detail
    phrases = [_subject(one, rng, told, scene.style) for one in cast]
    if not placed:
        return _names([phrases[index] for index in rng.permutation(len(cast))])
    return _pair(phrases[0], phrases[1], rng, detail) if len(cast) == 2 else _listing(phrases, cast)


def _names(phrases: Sequence[str]) -> str:
    """Several subjects, and not a word on where they are."""
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _subject(one: Thing | Sitter, rng: np.random.Generator, detail: Detail, style: str, alone: bool = False) -> str:
    """A noun phrase with its article, and what belongs to it."""
    if isinstance(one, Sitter):
        return person_words.sitter_phrase(one, rng, detail, style, alone)
    if isinstance(one.identity, Garment):
        return person_words.garment_phrase(one.identity, rng, detail, style)
    return _thing(one, rng, detail, style, alone)


def _pair(left: str, right: str, rng: np.random.Generator, detail: Detail) -> str:
    forms = (
        f"{left} on the left and {right} on the right",
        f"{left} on the left, {right} on the right",
        f"{left} to the left of {right}",
        f"{right} to the right of {left}",
        f"{left} next to {right}",
        f"{right} beside {left}",
    )
    return pick(rng, forms[:4] if detail == "full" else forms)


def _listing(phrases: Sequence[str], things: Sequence[Thing | Sitter]) -> str:
    """Three things from left to right, four by corner; the first ones of a scene stand farther up."""
    if len(things) == 3:
        order = np.argsort([thing.x for thing in things])
        first, second, third = (phrases[index] for index in order)
        return f"{first} on the left, {second} in the middle and {third} on the right"
    rows = ("top", "top", "bottom", "bottom")
    placed = [
        f"{phrase} at the {row} {'left' if thing.x < 0.5 else 'right'}"
        for phrase, row, thing in zip(phrases, rows, things, strict=True)
    ]
    return ", ".join(placed[:-1]) + f" and {placed[-1]}"


def _thing(thing: Thing, rng: np.random.Generator, detail: Detail, style: str, alone: bool = False) -> str:
    """A noun phrase with its article."""
    noun = noun_of(thing.identity.kind, rng)
    phrase = _identity(thing.identity, noun, rng, honest(detail, style))
    if alone and detail == "full" and rng.random() < 0.25:
        phrase = f"{pick(rng, _SIZED[size_word(thing.size)])} {phrase}"
    the = "the" if detail == "kind" and rng.random() < 0.5 else article(phrase)
    return f"{the} {phrase}{worn_phrase(thing, rng, detail, style)}"


def _identity(identity: Identity, noun: str, rng: np.random.Generator, detail: Honest) -> str:
    """An individual in words, without article: nothing but the noun, or its colours and pattern too."""
    main, accent = colour_word(identity.main, rng), colour_word(identity.accent, rng)
    adjective = pick(rng, ADJECTIVES.get(identity.pattern, ("",)))
    if detail == "kind":
        return noun
    if detail == "brief":
        return f"{main} {noun}"
    if detail == "pattern":
        return f"{adjective} {noun}".strip()
    if not adjective:
        part = part_phrase(identity.kind, accent, rng)
        return pick(rng, (f"{main} and {accent} {noun}", *[f"{main} {noun} with {part}"] * 2))
    marks = f"{main} {noun} with {accent} {pick(rng, MARKS[identity.pattern])}"
    return pick(rng, (marks, f"{main} and {accent} {adjective} {noun}", f"{adjective} {noun} in {main} and {accent}"))


def worn_phrase(thing: Thing, rng: np.random.Generator, detail: Detail, style: str) -> str:
    """``" wearing a red hat"``, or nothing."""
    if thing.accessory is None:
        return ""
    colour = colour_word(thing.accessory_colour or "", rng)
    named = style not in COLOURLESS and (detail == "full" or rng.random() < 0.5)
    phrase = f"{colour} {thing.accessory}" if named else thing.accessory
    return " wearing " + (phrase if thing.accessory == "sunglasses" else f"{article(phrase)} {phrase}")


def _where(scene: SceneGraph, rng: np.random.Generator, detail: Detail) -> str:
    """What is particular to one panel: what the subject wears, and the place."""
    (first, *_) = scene.cast
    told = person_words.doing(first, rng, detail, scene.style, alone=False) if isinstance(first, Sitter) else None
    worn = worn_phrase(first, rng, detail, scene.style) if isinstance(first, Thing) else told
    return f"{worn} {backdrop_phrase(scene.backdrop.kind, rng)}".strip()


def _tryon(panels: Panels, rng: np.random.Generator, detail: Detail) -> str:
    """A garment, and somebody who wears it."""
    (flat,), (sitter,) = panels.scenes[0].things, panels.scenes[-1].people
    garment = flat.identity
    if not isinstance(garment, Garment):
        raise CapriccioError(
            f"Received panels of a {garment.kind} and a person, which no caption tells: show a garment."
        )
    noun = person_words.garment_noun(garment, rng)
    who = person_words.sitter_phrase(replace(sitter, outfit=(), accessory=None), rng, "brief", alone=True)
    return pick(rng, _TRYONS).format(
        garment=person_words.garment_phrase(garment, rng, detail),
        noun=noun,
        white=backdrop_phrase(panels.scenes[0].backdrop.kind, rng),
        who=who,
        place=backdrop_phrase(panels.scenes[-1].backdrop.kind, rng),
    )


def _positions(panels: Panels) -> list[str]:
    rows, columns = _ranks(panels.rows, "top", "bottom"), _ranks(panels.columns, "left", "right")
    return [f"{row} {column}".strip() for row in rows for column in columns]


def _ranks(count: int, first: str, last: str) -> list[str]:
    return [""] if count == 1 else [first, *["middle"] * (count - 2), last]


def _side(x: float) -> str:
    return "left" if x < 0.38 else "right" if x > 0.62 else ""
