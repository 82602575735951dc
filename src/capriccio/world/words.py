"""What all captions share: synonyms of colours and patterns, articles, and the choice among forms."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

Detail = Literal["full", "brief", "kind"]
Honest = Literal["full", "brief", "kind", "pattern"]
"""A detail, or ``"pattern"`` where no colour can be seen."""

COLOURLESS = frozenset({"pencil", "blueprint"})
"""Styles in which no colour of a subject can be seen, so that no caption names one."""

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "teal": ("teal", "teal", "teal", "turquoise"),
    "purple": ("purple", "purple", "purple", "violet"),
}
ADJECTIVES: Mapping[str, tuple[str, ...]] = {
    "striped": ("striped",),
    "dotted": ("dotted", "dotted", "spotted", "polka dot"),
    "checkered": ("checkered", "checkered", "checked"),
}
MARKS: Mapping[str, tuple[str, ...]] = {
    "striped": ("stripes",),
    "dotted": ("dots", "spots"),
    "checkered": ("checks", "squares"),
}


def sample_detail(rng: np.random.Generator, shares: tuple[float, float, float] = (0.85, 0.08, 0.07)) -> Detail:
    """Draw how much a caption tells; ``shares`` are those of full, brief and bare ones."""
    details: tuple[Detail, ...] = ("full", "brief", "kind")
    return details[int(rng.choice(3, p=shares))]


def honest(detail: Detail, style: str) -> Honest:
    """What may be said of a subject in a style: no colours where there are none."""
    if style not in COLOURLESS:
        return detail
    return "pattern" if detail == "full" else "kind"


def colour_word(name: str, rng: np.random.Generator) -> str:
    """A colour in one of its words."""
    return pick(rng, SYNONYMS.get(name, (name,)))


def article(phrase: str) -> str:
    """``"a"`` or ``"an"``, whichever goes before a phrase."""
    return "an" if phrase[0] in "aeio" else "a"


def with_article(phrase: str) -> str:
    """A phrase with its article."""
    return f"{article(phrase)} {phrase}"


def with_articles(text: str) -> str:
    """Turn every ``a orange`` into ``an orange``."""
    return re.sub(r"\ba (?=[aeio])", "an ", text)


def listed(phrases: Sequence[str]) -> str:
    """``"one"``, ``"one and two"``, ``"one, two and three"``."""
    return " and ".join(part for part in (", ".join(phrases[:-1]), phrases[-1]) if part)


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of the options."""
    return options[int(rng.integers(len(options)))]
