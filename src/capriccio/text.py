"""Texts: templates that are filled, and where words stand in a text and in its tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capriccio.errors import CapriccioError, nearest

_SLOT = re.compile(r"\{([^{}]*)\}")


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
    chosen = np.zeros(length, bool)
    places = tokenizer(text, truncation=True, max_length=length, return_offsets_mapping=True)["offset_mapping"]
    for start, stop in spans(text, phrase):
        for index, (first, last) in enumerate(places):
            chosen[index] |= first < stop and last > start
    return chosen
