"""Words, tokens and sentences of the world."""

from __future__ import annotations

import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capriccio.world.captions import (
    NOUNS,
    backdrop_phrase,
    caption,
    panel_caption,
    regional_captions,
    sample_caption,
    sample_panel_caption,
    trait_caption,
)
from capriccio.world.casting import flat, sample_garment, sample_people
from capriccio.world.graph import (
    BACKDROPS,
    COLOURS,
    KINDS,
    PATTERNS,
    STUDIO,
    STYLES,
    Backdrop,
    Identity,
    SceneGraph,
    Thing,
    sample_panels,
    sample_scene,
)
from capriccio.world.tokenizers import clip_tokenizer, t5_tokenizer
from capriccio.world.vocabulary import SPARE, WORDS

TEMPLATE = (
    "A diptych with two side-by-side images of same {0}. On the left, a photo of {0}. "
    "On the right, replicate this {0} exactly but as {1}"
)
KNOWN = set(WORDS)
PLACES = {backdrop_phrase(kind, np.random.default_rng(n)) for kind in (*BACKDROPS, STUDIO) for n in range(40)}
ASCII = [chr(code) for code in range(33, 127) if not chr(code).isupper()]

clip, t5 = clip_tokenizer(), t5_tokenizer()


def unknown(text: str) -> set[str]:
    return {word for word in re.findall(r"[a-z-]+", text) if word not in KNOWN}


def generators() -> st.SearchStrategy[np.random.Generator]:
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


def mug(**changes: object) -> SceneGraph:
    identity = Identity("mug", "orange", "teal", "plain", (0.0,) * 6, 20.0, 0.0)
    return SceneGraph((Thing(identity, 0.5, 0.6, 0.6, **changes),), Backdrop("snow"))


def test_the_vocabulary_never_changes() -> None:
    """Trained embedding tables are indexed by this order: a changed list needs new weights for every text encoder."""
    assert len(WORDS) == len(KNOWN)
    assert sha256(" ".join((*WORDS, *SPARE)).encode()).hexdigest()[:16] == "646d8a2a7892ef75"
    rows = sorted({**clip.get_vocab()}.items(), key=lambda item: item[1])
    assert sha256(" ".join(word for word, _ in rows).encode()).hexdigest()[:16] == "a15987bdc0f62049"


def test_the_whole_world_has_words() -> None:
    assert {*KINDS, *COLOURS, *PATTERNS, *BACKDROPS, *STYLES} <= KNOWN
    assert not unknown(TEMPLATE.lower().format("mug", "robot"))


def test_a_known_word_is_one_token() -> None:
    words = [word for word in WORDS if word.isalpha()]
    for word, row in zip(words, clip(words).input_ids, strict=True):
        assert row == [clip.bos_token_id, clip.convert_tokens_to_ids(word + "</w>"), clip.eos_token_id]
    for word, row in zip(WORDS, t5(list(WORDS)).input_ids, strict=True):
        assert row == [t5.convert_tokens_to_ids("▁" + word), t5.eos_token_id]


def test_marks_are_where_the_public_models_have_them() -> None:
    assert (t5.pad_token_id, t5.eos_token_id, t5.unk_token_id) == (0, 1, 2)
    assert clip.model_max_length == 77
    assert clip.pad_token_id == clip.eos_token_id != clip.bos_token_id


@given(st.lists(st.text(st.sampled_from(ASCII), min_size=1, max_size=8), min_size=1, max_size=6).map(" ".join))
@settings(max_examples=50, deadline=None)
def test_lower_case_ascii_is_lossless(text: str) -> None:
    ids = t5(text).input_ids
    assert t5.unk_token_id not in ids
    assert t5.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text
    pieces = clip.convert_ids_to_tokens(clip(text, truncation=False).input_ids[1:-1])
    assert "".join(pieces).replace("</w>", "") == text.replace(" ", "")


@pytest.mark.parametrize("tokenizer", [clip, t5], ids=["clip", "t5"])
def test_saved_tokenizers_speak_the_same(tokenizer: object, tmp_path: Path) -> None:
    text = TEMPLATE.format("mug", "a Xylophone (no. 42) by <new7>")
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert len(again) == len(tokenizer)
    assert again(text).input_ids == tokenizer(text).input_ids == tokenizer(text.lower()).input_ids
    assert again.convert_tokens_to_ids(list(SPARE)) == list(range(len(tokenizer) - len(SPARE), len(tokenizer)))


def test_the_diptych_template_is_about_as_long_as_with_the_public_tokenizers() -> None:
    text = TEMPLATE.format("mug", "a mug in the snow")
    assert 30 <= len(t5(text).input_ids) <= 50
    assert 30 <= len(clip(text).input_ids) <= 55


@given(generators(), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_captions_use_known_words_and_fit(rng: np.random.Generator, subjects: int) -> None:
    text = sample_caption(sample_scene(rng, subjects), rng)
    assert not unknown(text)
    assert text.isascii()
    assert text == text.lower()
    assert len(clip(text).input_ids) <= 77
    assert not re.search(r"\ba [aeio]|\ban [^aeio]|  ", text)


@given(generators(), st.sampled_from([(1, 2), (2, 2), (1, 3), (2, 3)]))
@settings(max_examples=60, deadline=None)
def test_panel_captions_use_known_words_and_name_every_place(rng: np.random.Generator, form: tuple[int, int]) -> None:
    text = sample_panel_caption(sample_panels(rng, *form), rng)
    assert not unknown(text)
    assert len(t5(text).input_ids) <= 128
    assert not re.search(r"\ba [aeio]|\ban [^aeio]|  ", text)


@given(generators())
@settings(max_examples=60, deadline=None)
def test_kind_captions_never_give_the_identity_away(rng: np.random.Generator) -> None:
    scene = sample_scene(rng, accessories=False)
    panels = sample_panels(rng)
    shown = scene.things[0].identity
    words = set(caption(scene, rng, "kind").replace(backdrop_phrase("meadow", rng), "").split())
    assert not words & (set(COLOURS) - {"green", "blue", "white"} | set(PATTERNS) - {"plain"})
    bare = panel_caption(panels, rng, "kind")
    assert f"{panels.scenes[0].things[0].identity.main} {panels.scenes[0].things[0].identity.kind}" not in bare
    assert shown.pattern == "plain" or shown.pattern not in words


def test_full_captions_name_both_colours_and_what_is_worn() -> None:
    for seed in range(20):
        text = caption(mug(accessory="hat", accessory_colour="red"), np.random.default_rng(seed))
        assert "orange" in text
        assert "teal" in text or "turquoise" in text
        assert "wearing a red hat" in text


def test_two_subjects_get_their_sides() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert re.search(r"on the left|to the (left|right) of", caption(sample_scene(rng, 2), rng))


@given(generators(), st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_where_places_are_left_open_all_are_named_in_any_order(rng: np.random.Generator, subjects: int) -> None:
    scene = sample_scene(rng, subjects, accessories=False, style="shaded")
    text = caption(scene, rng, "brief", placed=False)
    assert not re.search(r"\b(left|right|middle|bottom|next|beside)\b", text)
    words = [{one.identity.kind, *NOUNS.get(one.identity.kind, ())} for one in scene.things]
    assert all(set(re.findall(r"[a-z-]+", text)) & names for names in words)


def test_some_captions_to_learn_from_leave_places_open() -> None:
    rng = np.random.default_rng(0)
    texts = [sample_caption(sample_scene(rng, 3), rng) for _ in range(200)]
    opened = [text for text in texts if "in the middle" not in text]
    assert 10 <= len(opened) <= 45


@given(generators())
@settings(max_examples=60, deadline=None)
def test_a_trait_is_said_alone(rng: np.random.Generator) -> None:
    for scene in (sample_people(rng, style="shaded"), flat(sample_garment(rng)), sample_scene(rng, style="shaded")):
        text = trait_caption(scene, rng)
        assert not unknown(text)
        place = text.removesuffix(next((p for p in PLACES if text.endswith(p)), ""))
        assert "," not in place
        assert sum(place.split().count(word) for word in ("with", "in", "wearing")) <= 2  # a dress with dots


def test_the_traits_of_somebody_are_said_equally_often() -> None:
    rng = np.random.default_rng(0)
    texts = [trait_caption(sample_people(rng, style="shaded", accessories=False), rng) for _ in range(1200)]
    rates = {word: np.mean([word in text.split() for text in texts]) for word in ("skin", "hair")}
    assert all(0.2 < rate < 0.34 for rate in rates.values()), rates


def test_of_things_with_a_pattern_most_traits_are_the_pattern() -> None:
    rng = np.random.default_rng(0)
    striped = replace(
        mug(), things=(replace(mug().things[0], identity=replace(mug().things[0].identity, pattern="striped")),)
    )
    texts = [trait_caption(striped, rng) for _ in range(600)]
    assert {tuple(w for w in ("striped", "orange", "teal") if w in t.split()) for t in texts} == {
        ("striped",),
        ("orange",),
    }
    assert np.mean(["striped" in text for text in texts]) == pytest.approx(0.6, abs=0.07)
    assert {"orange" in trait_caption(mug(), rng) for _ in range(50)} == {True}


def test_no_panel_caption_is_the_diptych_template() -> None:
    rng = np.random.default_rng(0)
    start, middle = "a diptych with two side-by-side images of same", "replicate this"
    texts = [sample_panel_caption(sample_panels(rng), rng) for _ in range(300)]
    assert not [text for text in texts if text.startswith(start) or middle in text]
    spoken = set(re.findall(r"[a-z-]+", " ".join(texts)))
    assert set(re.findall(r"[a-z-]+", start + " on the left a photo of right replicate this exactly but as")) <= spoken


def test_regions_are_said_one_by_one() -> None:
    rng = np.random.default_rng(0)
    scene = sample_scene(rng, 3, accessories=False, style="shaded")
    phrases = regional_captions(scene, rng, "brief")
    assert [phrase.split()[-1] for phrase in phrases] == [phrase.split()[2] for phrase in phrases]
    assert len(phrases) == 3


def test_a_seed_is_a_caption() -> None:
    scene = sample_scene(np.random.default_rng(1))
    assert sample_caption(scene, np.random.default_rng(2)) == sample_caption(scene, np.random.default_rng(2))
    assert backdrop_phrase("snow", None) == "in the snow"
