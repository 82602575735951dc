"""The changes an edit can make to a scene, each with all the ways to ask for it.

Every change keeps the rest of its scene as it is, and every wording names its subject so that no other could be meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from capriccio.world.captions import COLOURLESS, backdrop_phrase, identity_phrase, noun_of, part_phrase
from capriccio.world.graph import (
    ACCESSORIES,
    BACKDROPS,
    COLOURS,
    KINDS,
    PATTERNS,
    STYLES,
    Identity,
    SceneGraph,
    Thing,
    foot_of,
    sample_backdrop,
    split_of,
    standing,
)
from capriccio.world.words import colour_word, with_articles

_MARKS = {"striped": "stripes", "dotted": "dots", "checkered": "checks"}
_PLACES = {
    "beach": "a beach", "snow": "snow", "meadow": "a meadow", "desert": "a desert", "night": "a night sky",
    "sea": "the sea", "bricks": "a brick wall", "table": "a wooden table", "sunset": "a sunset",
    "mountains": "mountains",
}  # fmt: skip
_PICTURES = {
    "shaded": "a photo", "flat": "a flat illustration", "pencil": "a pencil sketch", "pixel": "pixel art",
    "watercolour": "a watercolour painting", "neon": "a neon sign", "blueprint": "a blueprint", "mosaic": "a mosaic",
}  # fmt: skip

_RECOLOURED = (
    "make {it} {new}", "paint {it} {new}", "turn {it} {new}", "change the colour of {it} to {new}",
    "recolour {it} in {new}", "let {it} be {new}",
)  # fmt: skip
_PART_RECOLOURED = ("give {it} {new}", "let {it} have {new}", "change {it} to have {new}")
_PATTERNED = ("make {it} {adjective}", "give {it} {marks}", "add {marks} to {it}", "let {it} be {adjective}")
_REPATTERNED = (
    "change the {old} of {it} to {marks}",
    "replace the {old} of {it} with {marks}",
    "make {it} {adjective}",
)
_UNPATTERNED = ("make {it} plain", "remove the {old} from {it}", "take the {old} off {it}", "let {it} be plain")
_DRESSED = (
    "add {worn} to {it}", "put {worn} on {it}", "give {it} {worn}", "let {it} wear {worn}", "make {it} wear {worn}",
)  # fmt: skip
_UNDRESSED = (
    "remove the {worn} from {it}", "take the {worn} off {it}", "let {it} be without the {worn}",
    "take away the {worn} of {it}",
)  # fmt: skip
_REPLACED = (
    "turn {it} into {new}", "replace {it} with {new}", "swap {it} for {new}", "change {it} into {new}",
    "make {it} {new}", "{new} instead of {it}",
)  # fmt: skip
_MOVED_PLACE = (
    "put {it} {where}", "place {it} {where}", "show {it} {where}", "let {it} be {where}",
    "change the background to {place}", "replace the background with {place}", "turn the background into {place}",
)  # fmt: skip
_RESTYLED = (
    "turn it into {picture}", "make it {picture}", "draw it as {picture}", "change the style to {picture}",
    "show it as {picture}", "turn the picture into {picture}",
)  # fmt: skip
_MOVED = (
    "move {it} to the {side}", "put {it} more to the {side}", "let {it} stand more to the {side}",
    "place {it} more to the {side}",
)  # fmt: skip
_RESIZED = ("make {it} {bigger}", "let {it} be {bigger}", "turn {it} into a {bigger} one", "draw {it} {bigger}")
_ADDED = (
    "add {new} on the {side}", "put {new} on the {side}", "draw {new} on the {side}",
    "place {new} to the {side} of {it}", "add {new} to the {side} of {it}", "add {new} next to {it}",
    "put {new} beside {it}",
)  # fmt: skip
_REMOVED = ("remove {it}", "take {it} away", "take away {it}", "delete {it}", "show the picture without {it}")


@dataclass(frozen=True)
class Made:
    """What a change makes of a scene."""

    before: SceneGraph
    after: SceneGraph
    things: tuple[tuple[int, ...], tuple[int, ...]] | None
    """Which things of the scene before and of the scene after it concerns; ``None`` for the whole picture."""
    wordings: Sequence[str]
    """All the ways to ask for it."""


@dataclass(frozen=True)
class Asked:
    """A scene to be changed at one of its things."""

    rng: np.random.Generator
    scene: SceneGraph
    at: int
    split: str

    @property
    def thing(self) -> Thing:
        """The thing to be changed."""
        return self.scene.things[self.at]

    def pick(self, options: Sequence[str]) -> str:
        """One of the options."""
        return options[int(self.rng.integers(len(options)))]

    def allowed(self, options: Iterable[Identity]) -> list[Identity]:
        """Those that are another identity, of two colours, of the same split."""
        return [
            one
            for one in options
            if one != self.thing.identity
            and one.main != one.accent
            and split_of(one.kind, one.main, one.accent, one.pattern) == self.split
        ]

    def changed(self, thing: Thing, wordings: Sequence[str]) -> Made:
        """That thing instead, and all else as it was."""
        things = tuple(thing if row == self.at else one for row, one in enumerate(self.scene.things))
        return Made(self.scene, replace(self.scene, things=things), ((self.at,), (self.at,)), wordings)

    def without(self) -> SceneGraph:
        """The scene without the thing."""
        return replace(self.scene, things=tuple(one for row, one in enumerate(self.scene.things) if row != self.at))

    def told(self, forms: Sequence[str], **words: str) -> tuple[str, ...]:
        """The forms filled in, with articles put right."""
        it = refer(self.scene, self.at, self.rng)
        return tuple(with_articles(form.format(it=it, **words)) for form in forms)


def refer(scene: SceneGraph, at: int, rng: np.random.Generator) -> str:
    """Name a thing so that no other of its scene could be meant: by its kind, else its colour, else its side."""
    thing = scene.things[at]
    rivals = [other.identity for row, other in enumerate(scene.things) if row != at]
    noun = noun_of(thing.identity.kind, rng)
    alike = [one for one in rivals if one.kind == thing.identity.kind]
    if not alike:
        return f"the {noun}"
    if scene.style not in COLOURLESS and all(one.main != thing.identity.main for one in alike):
        return f"the {colour_word(thing.identity.main, rng)} {noun}"
    leftmost = all(thing.x <= other.x for other in scene.things)
    return f"the {noun} on the {'left' if leftmost else 'right'}"


def _recolour(a: Asked) -> Made | None:
    one, of_main = a.thing.identity, bool(a.rng.random() < 0.5)
    options = a.allowed(replace(one, main=name) if of_main else replace(one, accent=name) for name in COLOURS)
    if a.scene.style in COLOURLESS or not options:
        return None
    new = options[int(a.rng.integers(len(options)))]
    word = colour_word(new.main if of_main else new.accent, a.rng)
    if of_main:
        wordings = a.told(_RECOLOURED, new=word)
    elif one.pattern == "plain":
        wordings = a.told(_PART_RECOLOURED, new=part_phrase(one.kind, word, a.rng))
    else:
        wordings = a.told(_PART_RECOLOURED, new=f"{word} {_MARKS[one.pattern]}")
    return a.changed(replace(a.thing, identity=new), wordings)


def _pattern(a: Asked) -> Made | None:
    one, options = a.thing.identity, a.allowed(replace(a.thing.identity, pattern=name) for name in PATTERNS)
    if not options:
        return None
    new, old = options[int(a.rng.integers(len(options)))], _MARKS.get(one.pattern, "")
    if new.pattern == "plain":
        return a.changed(replace(a.thing, identity=new), a.told(_UNPATTERNED, old=old))
    marks = _MARKS[new.pattern]
    if not old and a.scene.style not in COLOURLESS:
        marks = f"{colour_word(one.accent, a.rng)} {marks}"
    wordings = a.told(_REPATTERNED if old else _PATTERNED, old=old, marks=marks, adjective=new.pattern)
    return a.changed(replace(a.thing, identity=new), wordings)


def _dress(a: Asked) -> Made | None:
    if a.thing.accessory is not None:
        return None
    worn = a.pick(ACCESSORIES)
    colour = a.pick([name for name in COLOURS if name != a.thing.identity.main])
    phrase = worn if a.scene.style in COLOURLESS else f"{colour_word(colour, a.rng)} {worn}"
    wordings = a.told(_DRESSED, worn=phrase if worn == "sunglasses" else f"a {phrase}")
    return a.changed(replace(a.thing, accessory=worn, accessory_colour=colour), wordings)


def _undress(a: Asked) -> Made | None:
    if a.thing.accessory is None:
        return None
    return a.changed(_bare(a.thing), a.told(_UNDRESSED, worn=a.thing.accessory))


def _replace(a: Asked) -> Made | None:
    thing = a.thing
    options = a.allowed(replace(thing.identity, kind=kind) for kind in KINDS)
    if not options:
        return None
    new = options[int(a.rng.integers(len(options)))]
    wordings = a.told(_REPLACED, new=f"a {noun_of(new.kind, a.rng)}")
    return a.changed(standing(replace(thing, identity=new), foot_of(thing)), wordings)


def _backdrop(a: Asked) -> Made:
    new = a.pick([kind for kind in BACKDROPS if kind != a.scene.backdrop.kind])
    it = refer(a.scene, a.at, a.rng) if len(a.scene.things) == 1 else "them"
    words = {"it": it, "where": backdrop_phrase(new, a.rng), "place": _PLACES[new]}
    wordings = [form.format(**words) for form in _MOVED_PLACE]
    return Made(a.scene, replace(a.scene, backdrop=sample_backdrop(a.rng, new)), None, wordings)


def _style(a: Asked) -> Made:
    new = a.pick([style for style in STYLES if style != a.scene.style])
    wordings = [form.format(picture=_PICTURES[new]) for form in _RESTYLED]
    return Made(a.scene, replace(a.scene, style=new), None, wordings)


def _move(a: Asked) -> Made | None:
    thing, margin = a.thing, 0.02 + a.thing.size / 2
    x = round(float(a.rng.uniform(margin, 1 - margin)), 4)
    if abs(x - thing.x) < 0.16:
        return None
    return a.changed(replace(thing, x=x), a.told(_MOVED, side="left" if x < thing.x else "right"))


def _resize(a: Asked) -> Made | None:
    thing, size = a.thing, round(float(a.rng.uniform(0.38, 0.78)), 4)
    margin = 0.02 + size / 2
    if not margin <= thing.x <= 1 - margin or max(size / thing.size, thing.size / size) < 1.25:
        return None
    word = a.pick(("bigger", "larger")) if size > thing.size else "smaller"
    return a.changed(standing(replace(thing, size=size), foot_of(thing)), a.told(_RESIZED, bigger=word))


def _add(a: Asked) -> Made:
    whole, before = a.changed(_bare(a.thing), ()).after, a.without()
    words = {
        "new": identity_phrase(a.thing.identity, a.rng, "full", a.scene.style),
        "side": "left" if a.thing.x < before.things[0].x else "right",
        "it": refer(before, 0, a.rng),
    }
    return Made(before, whole, ((), (a.at,)), [form.format(**words) for form in _ADDED])


def _remove(a: Asked) -> Made:
    return Made(a.scene, a.without(), ((a.at,), ()), a.told(_REMOVED))


def _bare(thing: Thing) -> Thing:
    return replace(thing, accessory=None, accessory_colour=None)


MAKERS: Mapping[str, tuple[tuple[int, ...], Callable[[Asked], Made | None]]] = {
    "recolour": ((1, 2), _recolour),
    "pattern": ((1, 2), _pattern),
    "dress": ((1, 2), _dress),
    "undress": ((1, 2), _undress),
    "replace": ((1, 2), _replace),
    "backdrop": ((1, 2), _backdrop),
    "style": ((1, 2), _style),
    "move": ((1,), _move),
    "resize": ((1,), _resize),
    "add": ((2,), _add),
    "remove": ((2,), _remove),
}
"""For each change, with how many subjects its scenes have and what makes it; ``None`` where a scene does not suit."""

CHANGES = tuple(MAKERS)
"""Everything that an edit can change."""
