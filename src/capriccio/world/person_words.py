"""People and garments in words: noun phrases and what follows them, in the spirit of the captions of objects.

Full phrases name hair, skin, eyes and clothes; brief ones hair and one garment; ``"kind"`` ones nothing that tells one
individual from another. What comes and goes (pose, mood, accessories) is always said, as it is of objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from capriccio.world.graph import Garment
from capriccio.world.people import Person, Sitter, slot_of
from capriccio.world.words import (
    ADJECTIVES,
    COLOURLESS,
    MARKS,
    Detail,
    Honest,
    colour_word,
    honest,
    listed,
    pick,
    with_article,
    with_articles,
)

PORTRAITS = ("a portrait of {}", "a closeup of {}", "a photo of the face of {}", "{}", "{}")
"""Forms for somebody who is shown as a bust."""
PRODUCTS = ("a product photo of {}", "a product picture of {}", "a photo of {}", "{}", "{}")
"""Forms for a garment that is laid flat."""

_PLURAL = frozenset({"pants", "shorts", "shoes", "boots"})
_GARMENTS: Mapping[str, tuple[str, ...]] = {
    "shirt": ("shirt", "shirt", "tee"),
    "pants": ("pants", "pants", "trousers"),
    "shoes": ("shoes", "shoes", "sneakers"),
}
_TRIMMINGS: Mapping[str, tuple[str, ...]] = {
    "shirt": ("a {} collar",),
    "sweater": ("a {} collar", "{} edges"),
    "hoodie": ("a {} collar", "{} edges"),
    "jacket": ("a {} collar", "{} edges"),
    "vest": ("a {} collar", "{} edges"),
    "pants": ("a {} belt", "{} edges"),
    "shorts": ("a {} belt", "{} edges"),
    "skirt": ("a {} belt", "a {} border"),
    "dress": ("a {} belt", "a {} border"),
    "hat": ("a {} band", "a {} ribbon"),
    "cap": ("a {} rim",),
    "shoes": ("a {} bottom",),
    "boots": ("a {} bottom",),
}
_PEOPLE: Mapping[str, tuple[str, ...]] = {
    "woman": ("woman", "woman", "woman", "person"),
    "man": ("man", "man", "man", "person"),
}
_HAIR: Mapping[str, tuple[str, ...]] = {
    "short": ("short {} hair",),
    "curly": ("curly {} hair",),
    "straight": ("straight {} hair",),
    "long": ("long {} hair",),
    "tied": ("{} hair tied up", "tied {} hair"),
}
_FACES: Mapping[str, tuple[str, ...]] = {"heart": ("a heart shaped face",)}
_BEARDS: Mapping[str, tuple[str, ...]] = {"mustache": ("a mustache", "a moustache"), "beard": ("a beard",)}
_MOODS: Mapping[str, tuple[str, ...]] = {
    "smiling": ("smiling", "happy"),
    "serious": ("serious", "calm"),
    "sad": ("sad",),
    "surprised": ("surprised",),
}
_POSES: Mapping[str, tuple[str, ...]] = {
    "standing": ("standing",),
    "waving": ("waving", "waving with one hand"),
    "raised": ("with raised arms", "with both arms up"),
    "open": ("with open arms", "with arms stretched out"),
    "hip": ("with one hand on the hip",),
    "walking": ("walking",),
    "running": ("running",),
    "jumping": ("jumping",),
}
CLOSE, HALF = 1.6, 1.1
"""Heights of a figure from which the picture shows a bust, or a half figure."""


def garment_noun(garment: Garment, rng: np.random.Generator) -> str:
    """A garment in one word."""
    return pick(rng, _GARMENTS.get(garment.kind, (garment.kind,)))


def garment_phrase(garment: Garment, rng: np.random.Generator, detail: Detail = "full", style: str = "shaded") -> str:
    """Say a garment: ``"a striped red sweater"``, ``"a pair of blue shoes"``.

    Args:
        garment: What is said.
        rng: Chooses among synonyms and forms.
        detail: ``"full"``, ``"brief"`` (its main colour) or ``"kind"``.
        style: One of ``STYLES``: where no colour can be seen, none is named.
    """
    phrase = garment_words(garment, garment_noun(garment, rng), rng, honest(detail, style))
    if garment.kind in _PLURAL:
        return f"a pair of {phrase}" if rng.random() < 0.3 else phrase
    return with_article(phrase)


def garment_words(garment: Garment, noun: str, rng: np.random.Generator, detail: Honest) -> str:
    """A garment in words, without article."""
    main, accent = colour_word(garment.main, rng), colour_word(garment.accent, rng)
    adjective = pick(rng, ADJECTIVES.get(garment.pattern, ("",)))
    if detail == "kind":
        return noun
    if detail == "brief":
        return f"{main} {noun}"
    if detail == "pattern":
        return f"{adjective} {noun}".strip()
    if garment.motif:
        return f"{main} {noun} with {with_article(f'{accent} {garment.motif}')}"
    if not adjective:
        trimming = pick(rng, _TRIMMINGS[garment.kind]).format(accent)
        return pick(rng, (f"{main} {noun} with {with_articles(trimming)}", f"plain {main} {noun}"))
    marks = f"{main} {noun} with {accent} {pick(rng, MARKS[garment.pattern])}"
    both = f"{main} and {accent} {adjective} {noun}"
    return pick(rng, (f"{adjective} {main} {noun}", marks, both, f"{adjective} {noun} in {main} and {accent}"))


def sitter_phrase(
    sitter: Sitter, rng: np.random.Generator, detail: Detail = "full", style: str = "shaded", alone: bool = False
) -> str:
    """Say somebody: who they are, their mood and pose, what they wear.

    Args:
        sitter: Who is said.
        rng: Chooses among synonyms and forms.
        detail: ``"full"``, ``"brief"`` or ``"kind"``.
        style: One of ``STYLES``.
        alone: Whether there is nobody else, so that more can be said.
    """
    noun = person_noun(sitter.person, rng)
    known = person_words(sitter, noun, rng, honest(detail, style), 4 if alone else 1)
    mood = pick(rng, _MOODS[sitter.expression])
    if sitter.expression != "smiling" or rng.random() < 0.5:
        known = f"{mood} {known}"
    the = detail == "kind" and rng.random() < 0.5
    article = f"the {known}" if the else with_article(known)
    return f"{article}{doing(sitter, rng, detail, style, alone)}"


def person_noun(person: Person, rng: np.random.Generator) -> str:
    """Somebody in one word."""
    return pick(rng, _PEOPLE[person.kind])


def person_words(sitter: Sitter, noun: str, rng: np.random.Generator, detail: Honest, most: int) -> str:
    """Somebody in words, without article: hair first, then up to ``most`` other traits that the picture shows."""
    person = sitter.person
    if detail == "kind":
        return noun
    bald = person.hair == "bald"
    adjective = "bald " if bald else ""
    if detail == "pattern":
        hair = [] if bald else [pick(rng, _HAIR[person.hair]).replace("{} ", "")]
        told = [*hair, *([pick(rng, _BEARDS[person.beard])] if person.beard else [])]
    else:
        hair = [] if bald else [pick(rng, _HAIR[person.hair]).format(person.hair_colour)]
        told = [*hair, *(_traits(sitter, rng, most) if detail == "full" else [])]
    if person.beard and rng.random() < 0.3 and detail == "brief":
        adjective += "bearded " if person.beard == "beard" else ""
    return f"{adjective}{noun} with {listed(told)}" if told else f"{adjective}{noun}"


def _traits(sitter: Sitter, rng: np.random.Generator, most: int) -> list[str]:
    """What a picture shows of a face beside its hair, in random order; beard and glasses come first."""
    person = sitter.person
    bold = [*([pick(rng, _BEARDS[person.beard])] if person.beard else [])]
    if person.glasses:
        bold.append(pick(rng, ("glasses", f"{person.glasses} glasses")))
    fine = [f"{person.skin} skin"]
    if sitter.size > HALF:
        face = pick(rng, _FACES.get(person.face, (f"{with_article(person.face)} face",)))
        fine += [f"{person.eyes} eyes", face, f"{person.brows} {pick(rng, ('eyebrows', 'brows'))}"]
    rest = [fine[index] for index in rng.permutation(len(fine))]
    return [*bold, *rest][:most]


def trait_phrase(sitter: Sitter, rng: np.random.Generator) -> str:
    """Say one thing about somebody who is shown in colours: ``"a woman with dark skin"``, ``"a man in a red dress"``.

    Skin, hair, the rest of the face and clothes are said equally often, though there are more words of clothes.
    """
    person = sitter.person
    skin = f"{person.skin} skin"
    hair = () if person.hair == "bald" else (pick(rng, _HAIR[person.hair]).format(person.hair_colour),)
    face = tuple(trait for trait in _traits(sitter, rng, 9) if trait != skin)
    worn = tuple(f"in {phrase}" for phrase in _worn(replace(sitter, accessory=None), rng, "full", "shaded", 4))
    seen = [tuple(f"with {trait}" for trait in traits) for traits in ((skin,), hair, face)]
    groups = [phrases for phrases in (*seen, worn) if phrases]
    told = groups[int(rng.integers(len(groups)))]
    return f"{with_article(person_noun(person, rng))} {pick(rng, told)}"


def doing(
    sitter: Sitter, rng: np.random.Generator, detail: Detail = "full", style: str = "shaded", alone: bool = True
) -> str:
    """What somebody does and wears, ready to follow a noun: ``" waving, wearing a red dress"``."""
    close = sitter.size > CLOSE
    said = sitter.pose.name not in ("standing", "hip") or rng.random() < 0.3
    pose = f" {pick(rng, _POSES[sitter.pose.name])}" if said and not close else ""
    worn = _worn(sitter, rng, detail, style, 1 if close or not alone else 4)
    if not worn:
        return pose
    verb = "wearing" if sitter.accessory or rng.random() < 0.6 else "in"
    return f"{pose}{',' if pose else ''} {verb} {listed(worn)}"


def _worn(sitter: Sitter, rng: np.random.Generator, detail: Detail, style: str, most: int) -> list[str]:
    """Garments that the picture shows, the largest first, and the accessory."""
    order = ("dress", "upper", "hat", "lower", "shoes")
    shown = order[: 3 if sitter.size > HALF else 5]
    garments = sorted(
        (one for one in sitter.outfit if slot_of(one.kind) in shown), key=lambda one: order.index(slot_of(one.kind))
    )
    told = {"full": most, "brief": 1, "kind": 0}[detail]
    phrases = [
        garment_phrase(garment, rng, "full" if at < 2 and detail == "full" else "brief", style)
        for at, garment in enumerate(garments[:told])
    ]
    if sitter.accessory:
        bare = style in COLOURLESS or detail == "kind"
        phrase = sitter.accessory if bare else f"{colour_word(sitter.accessory_colour or '', rng)} {sitter.accessory}"
        phrases.append(phrase if sitter.accessory == "sunglasses" else with_article(phrase))
    return phrases


def model_caption(garment: Garment, rng: np.random.Generator, detail: Detail = "full") -> str:
    """What try-on methods say of the picture that is painted: ``"a photo of a model wearing a striped red sweater"``.

    The words are those of the templates of LaDI-VTON and IDM-VTON; the sentences vary.
    """
    forms = ("a photo of a model wearing {}", "a model is wearing {}", "a photo of a person in {}", "a person wears {}")
    return pick(rng, forms).format(garment_phrase(garment, rng, detail))
