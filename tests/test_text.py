"""Templates, and where words stand."""

from __future__ import annotations

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

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


def test_weights_are_taken_out_of_a_prompt() -> None:
    plain, (mug, snow) = text.unweighted("a (red mug)1.3 in (the) deep (snow)0.5, f(x)")
    assert plain == "a red mug in (the) deep snow, f(x)"
    assert (mug.phrase, mug.weight, plain[slice(*mug.span)]) == ("red mug", 1.3, "red mug")
    assert (snow.weight, plain[slice(*snow.span)]) == (0.5, "snow")
    assert text.unweighted("nothing (here)") == ("nothing (here)", ())


@given(st.lists(st.tuples(st.text("ab ", min_size=1), st.none() | st.floats(0, 9).map(lambda x: round(x, 2)))))
def test_spans_of_weighted_words_hold_their_words(parts: list[tuple[str, float | None]]) -> None:
    prompt = ";".join(words if weight is None else f"({words}){weight}" for words, weight in parts)
    plain, found = text.unweighted(prompt)
    assert plain == ";".join(words for words, _ in parts)
    assert [(plain[slice(*one.span)], one.weight) for one in found] == [(w, x) for w, x in parts if x is not None]
