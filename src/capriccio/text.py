"""Texts: templates that are filled, and where words stand in a text and in its tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capriccio.errors import CapriccioError, nearest

_SLOT = re.compile(r"\{([^{}]*)\}")
_WEIGHT = re.compile(r"\(([^()]+)\)(\d+(?:\.\d+)?)(?!\w)")


def slots(template: str) -> tuple[str, ...]:
    """Return the names in braces, in order: ``slots("the {mug} on {place}") == ("mug", "place")``."""
    return tuple(match.strip() for match in _SLOT.findall(template))


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put values for the names in braces.

    Raises:
        CapriccioError: If the template names something that has no value.
    """
    for name in slots(template):
        if name not in values:
            hint = nearest(name, values)
            raise CapriccioError(f"The template {template!r} names {{{name}}}, which has no value; {hint}")
    return _SLOT.sub(lambda match: values[match[1].strip()], template)


def spans(text: str, phrase: str) -> list[tuple[int, int]]:
    """Return where a phrase stands in a text as whole words, as (start, stop) in characters, case left aside."""
    if not phrase.strip():
        return []
    pattern = rf"(?<!\w){re.escape(phrase.strip())}(?!\w)"
    return [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)]


def tokens_of(tokenizer: Any, text: str, phrase: str, length: int) -> NDArray[np.bool_]:
    """Return which of ``length`` tokens of a text belong to a phrase; none of them where it does not occur.

    Args:
        tokenizer: A fast tokenizer of transformers.
        text: As it is given to the text encoder.
        phrase: One word or several.
        length: Tokens after padding or truncation.
    """
    return tokens_at(tokenizer, text, spans(text, phrase), length)


def tokens_at(tokenizer: Any, text: str, places: Iterable[tuple[int, int]], length: int) -> NDArray[np.bool_]:
    """Return which of ``length`` tokens of a text hold any of the characters [start, stop) of the given places."""
    chosen = np.zeros(length, bool)
    offsets = tokenizer(text, truncation=True, max_length=length, return_offsets_mapping=True)["offset_mapping"]
    for start, stop in places:
        for index, (first, last) in enumerate(offsets):
            chosen[index] |= first < stop and last > start
    return chosen


@dataclass(frozen=True)
class Weighted:
    """A part of a prompt that is to be heeded more (above 1) or less.

    Attributes:
        phrase: The words.
        span: First character in the plain prompt, and the one after the last.
        weight: At least 0; 1 changes nothing.
    """

    phrase: str
    span: tuple[int, int]
    weight: float


def unweighted(prompt: str) -> tuple[str, tuple[Weighted, ...]]:
    """Take the weights out of a prompt: ``"a (red mug)1.3"`` is ``"a red mug"``, with 1.3 on the last two words.

    Parentheses with no number right behind them are words like any other.
    """
    plain, found, done = "", [], 0
    for match in _WEIGHT.finditer(prompt):
        plain += prompt[done : match.start()]
        found.append(Weighted(match[1], (len(plain), len(plain) + len(match[1])), float(match[2])))
        plain, done = plain + match[1], match.end()
    return plain + prompt[done:], tuple(found)
