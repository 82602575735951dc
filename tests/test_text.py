"""Templates, and where words stand."""

from __future__ import annotations

import pytest
import tiny

from capriccio import text
from capriccio.errors import CapriccioError


def test_a_template_is_filled() -> None:
    assert text.fill("a {kind} in the { place }", {"kind": "mug", "place": "snow"}) == "a mug in the snow"


def test_slots_are_listed_in_order() -> None:
    assert text.slots("{b} and {a}, {b}") == ("b", "a", "b")


def test_values_are_put_in_once_even_if_they_look_like_slots() -> None:
    assert text.fill("{a} {b}", {"a": "{b}", "b": "x"}) == "{b} x"


def test_an_unknown_slot_names_the_nearest() -> None:
    with pytest.raises(CapriccioError, match="did you mean 'subject'"):
        text.fill("same {subjet}", {"subject": "mug"})


@pytest.mark.parametrize(
    ("phrase", "places"), [("mug", [(2, 5), (11, 14)]), ("red mug", [(7, 14)]), ("mugs", []), ("", []), ("MUG.", [])]
)
def test_phrases_are_found_as_whole_words(phrase: str, places: list[tuple[int, int]]) -> None:
    assert text.spans("a mug, red mug and smug", phrase) == places


def test_tokens_of_a_phrase_are_its_letters() -> None:
    chosen = text.tokens_of(tiny.t5_tokenizer(), "a red mug", "mug", 16)
    # One token a character, and one for the mark of each word's beginning.
    pieces = tiny.t5_tokenizer().convert_ids_to_tokens(tiny.t5_tokenizer()("a red mug").input_ids)
    assert "".join(piece for piece, is_chosen in zip(pieces, chosen, strict=False) if is_chosen).strip("▁") == "mug"
    assert chosen.shape == (16,)


def test_tokens_beyond_the_end_are_not_there() -> None:
    assert not text.tokens_of(tiny.t5_tokenizer(), "a very long red mug", "mug", 8).any()
