"""Edits and interleaved captions: one thing changes and nothing else; pictures tell what the words leave out."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capriccio.errors import CapriccioError
from capriccio.scene import Scene, Subject
from capriccio.world.changes import CHANGES, refer
from capriccio.world.draw import draw
from capriccio.world.edits import Edit, draw_edits, region, sample_edit
from capriccio.world.graph import (
    COLOURS,
    PATTERNS,
    STUDIO,
    STYLES,
    Backdrop,
    SceneGraph,
    Thing,
    foot_of,
    sample_identity,
    split_of,
)
from capriccio.world.interleaved import Interleaved, draw_interleaved, reference_scene, sample_interleaved
from capriccio.world.tokenizers import clip_tokenizer
from capriccio.world.vocabulary import WORDS

TOKENS = clip_tokenizer()
SEEDS = st.integers(0, 2**32 - 1)
FIELDS = {
    "recolour": {"identity"}, "pattern": {"identity"}, "dress": {"accessory", "accessory_colour"},
    "undress": {"accessory", "accessory_colour"}, "replace": {"identity", "y"}, "move": {"x"}, "resize": {"size", "y"},
}  # fmt: skip


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def well_said(text: str) -> bool:
    known = not set(re.findall(r"[a-z0-9-]+", text)) - {*WORDS}
    return known and text == text.lower() and not re.search(r"\ba [aeio]|\ban [^aeio]|  |^ | $", text)


def differences(one: object, other: object) -> set[str]:
    return {field.name for field in fields(one) if getattr(one, field.name) != getattr(other, field.name)}  # type: ignore[arg-type]


def edits_of(changes: tuple[str, ...], style: str | None = None, count: int = 1) -> list[Edit]:
    source = rng(11)
    found: list[Edit] = []
    for change in changes:
        kept: list[Edit] = []
        while len(kept) < count:
            edit = sample_edit(source, change)
            if style in (None, edit.before.style):
                kept.append(edit)
        found += kept
    return found


# Edits


@given(SEEDS, st.sampled_from(CHANGES), st.sampled_from(["train", "test"]))
@settings(max_examples=120, deadline=None)
def test_an_edit_changes_one_thing_and_says_so(seed: int, change: str, split: str) -> None:
    edit = sample_edit(rng(seed), change, split)
    assert all(map(well_said, (edit.instruction, *edit.captions)))
    assert len(TOKENS(edit.instruction).input_ids) <= 40
    assert all(len(TOKENS(text).input_ids) <= 77 for text in edit.captions)
    for scene in (edit.before, edit.after):
        for one in (thing.identity for thing in scene.things):
            assert split_of(one.kind, one.main, one.accent, one.pattern) == split
            assert one.main != one.accent
    if change in ("backdrop", "style"):
        assert differences(edit.before, edit.after) == {change}
        assert edit.things is None
        return
    assert differences(edit.before, edit.after) == {"things"}
    assert edit.things is not None
    before, after = ([one for row, one in enumerate(scene.things) if row not in rows]
                     for scene, rows in zip((edit.before, edit.after), edit.things, strict=True))  # fmt: skip
    assert before == after
    if change in FIELDS:
        one, other = edit.before.things[edit.things[0][0]], edit.after.things[edit.things[1][0]]
        assert differences(one, other) <= FIELDS[change]
        assert one.identity == other.identity or len(differences(one.identity, other.identity)) == 1


def test_things_stay_on_the_ground() -> None:
    for edit in edits_of(("replace", "resize"), count=6):
        assert edit.things is not None
        one, other = edit.before.things[edit.things[0][0]], edit.after.things[edit.things[1][0]]
        assert foot_of(one) == pytest.approx(foot_of(other), abs=1e-4)


@pytest.mark.parametrize("change", CHANGES)
def test_there_are_several_ways_to_ask(change: str) -> None:
    starts = {sample_edit(rng(seed), change).instruction.split()[0] for seed in range(40)}
    assert len(starts) >= 3


def test_any_change_comes_about() -> None:
    source = rng()
    assert {sample_edit(source).change for _ in range(150)} == {*CHANGES}


def test_a_seed_is_an_edit() -> None:
    assert sample_edit(rng(5)) == sample_edit(rng(5)) != sample_edit(rng(6))


def test_the_new_is_named_in_the_instruction_and_in_the_caption_after() -> None:
    for edit in edits_of(("dress",), "shaded", 8):
        assert edit.things is not None
        worn = edit.after.things[edit.things[1][0]].accessory
        assert worn is not None
        assert worn in edit.instruction
        assert edit.captions[0].count(worn) + 1 == edit.captions[1].count(worn)


def test_captions_are_told_alike() -> None:
    shares = []
    for edit in edits_of(CHANGES, count=5):
        one, other = (set(text.split()) for text in edit.captions)
        shares.append(len(one & other) / len(one | other))
    assert np.mean(shares) > 0.7


def test_pictures_are_equal_outside_the_mask_and_differ_inside() -> None:
    """Shaded pictures bit for bit as drawn; styles carry a change by running sums, which round elsewhere."""
    for style, tolerance in (("shaded", 0.0), (None, 1e-4)):
        edits = edits_of(CHANGES, style, 2)
        pairs = draw_edits(edits)
        drawn = draw([scene for edit in edits for scene in (edit.before, edit.after)]).pixels
        outside = ~pairs.mask.expand(-1, 3, -1, -1)
        assert torch.equal(pairs.before.pixels, drawn[::2])
        assert torch.equal(pairs.before.pixels[outside], pairs.after.pixels[outside])
        leaked = (drawn[::2] - drawn[1::2]).abs()[outside].max()
        assert leaked <= tolerance
        assert (pairs.mask.flatten(1).sum(1) > 12).all()
        assert ((pairs.before.pixels - pairs.after.pixels).abs().amax(1, keepdim=True) > 0)[pairs.mask].all()


@pytest.mark.parametrize("style", STYLES[1:])
def test_changes_stay_near_their_thing_in_every_style(style: str) -> None:
    edits = [replace(edit, before=replace(edit.before, style=style), after=replace(edit.after, style=style))
             for edit in edits_of(("recolour", "dress", "move", "remove"), "shaded")]  # fmt: skip
    drawn = draw([scene for edit in edits for scene in (edit.before, edit.after)]).pixels
    outside = ~torch.stack([region(edit) for edit in edits]).expand(-1, 3, -1, -1)
    assert outside.float().mean() > 0.15
    assert (drawn[::2] - drawn[1::2]).abs()[outside].max() < 1e-4


def test_the_truth_goes_with_the_pictures() -> None:
    (edit,) = edits_of(("remove",), "shaded")
    pairs = draw_edits([edit])
    assert edit.things is not None
    gone = pairs.before.subjects[0, edit.things[0][0]]
    assert pairs.mask[0, 0][gone].float().mean() > 0.95
    assert not pairs.after.subjects[0, 1].any()


def test_things_are_named_so_that_no_other_could_be_meant() -> None:
    mug, cat = (sample_identity(rng(1), kind=kind) for kind in ("mug", "cat"))
    left, right = (Thing(replace(mug, main=colour), x, 0.6, 0.4) for colour, x in (("red", 0.3), ("blue", 0.7)))
    assert refer(SceneGraph((left, Thing(cat, 0.7, 0.6, 0.4)), Backdrop("snow")), 0, rng(3)) in ("the mug", "the cup")
    assert re.fullmatch("the red (mug|cup)", refer(SceneGraph((left, right), Backdrop("snow")), 0, rng()))
    for scene in (SceneGraph((left, right), Backdrop("snow"), "pencil"),
                  SceneGraph((left, replace(left, x=0.7)), Backdrop("snow"))):  # fmt: skip
        assert re.fullmatch("the (mug|cup) on the right", refer(scene, 1, rng()))


@pytest.mark.parametrize(
    ("ask", "word"),
    [
        (lambda: sample_edit(rng(), "recolor"), "recolour"),
        (lambda: sample_edit(rng(), split="dev"), "dev"),
        (lambda: draw_edits([]), "at least one"),
        (lambda: sample_interleaved(rng(), 3), "1 or 2 subjects"),
        (lambda: sample_interleaved(rng(), pictures=0), "1 picture or more"),
        (lambda: sample_interleaved(rng(), split="dev"), "dev"),
        (lambda: draw_interleaved([]), "at least one"),
    ],
)
def test_bad_input_gets_a_sentence(ask: object, word: str) -> None:
    with pytest.raises(CapriccioError, match=word):
        ask()  # type: ignore[operator]


# Interleaved captions


@given(SEEDS, st.integers(1, 2), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_pictures_stand_in_the_sentence_and_show_who_is_meant(seed: int, subjects: int, pictures: int) -> None:
    one = sample_interleaved(rng(seed), subjects, pictures)
    assert well_said(one.spelt("mug"))
    names = [shown.name for shown in one.references]
    assert len({*names}) == len(names)
    assert re.findall(r"\{(\w+)\}", one.prompt) == names
    assert one.spelt("<i>").count("<i>") == len(names)
    subject = [shown for shown in one.references if shown.role == "subject"]
    assert len(subject) == subjects * pictures
    assert {shown.thing for shown in subject} == {*range(subjects)}
    for shown in subject:
        assert [thing.identity for thing in shown.scene.things] == [one.target.things[shown.thing].identity]
        assert shown.scene.backdrop.kind != one.target.backdrop.kind
        assert shown.scene.things[0].accessory is None


def test_words_keep_to_themselves_what_pictures_tell() -> None:
    source = rng(2)
    for _ in range(150):
        one = sample_interleaved(source, 2)
        bare = replace(one.target, things=tuple(replace(thing, accessory=None) for thing in one.target.things))
        if bare != one.target:
            continue
        words = set(one.spelt("").split())
        assert not words & ({*COLOURS} - {"green", "blue", "white"} | {*PATTERNS} - {"plain"})
        for shown in one.references:
            if shown.role == "place":
                assert (shown.scene.things, shown.scene.backdrop) == ((), one.target.backdrop)
            if shown.role == "style":
                assert shown.scene.style == one.target.style
                assert one.target.style not in words


def test_half_of_the_references_stand_on_white() -> None:
    source, one = rng(), sample_identity(rng(), kind="cat")
    kinds = [reference_scene(one, source, "snow").backdrop.kind for _ in range(300)]
    assert 0.4 < np.mean([kind == STUDIO for kind in kinds]) < 0.6
    assert "snow" not in kinds
    assert {reference_scene(one, source, white=1.0).backdrop.kind for _ in range(20)} == {STUDIO}


def test_drawings_belong_to_their_sentences() -> None:
    source = rng(4)
    told = [sample_interleaved(source, 2, 2), sample_interleaved(source, 1, 3)]
    drawn = draw_interleaved(told, 64)
    assert drawn.targets.pixels.shape == (2, 3, 64, 64)
    assert torch.bincount(drawn.owner).tolist() == [len(one.references) for one in told]
    assert drawn.references.pixels.shape[0] == len(drawn.owner)
    assert torch.equal(drawn.references.parts[0].unique(), draw([told[0].references[0].scene], 64).parts.unique())


def test_prompts_are_those_of_scenes() -> None:
    one: Interleaved = sample_interleaved(rng(8), 2)
    conditions = [Subject(f"{shown.name}.png", name=shown.name) for shown in one.references]
    assert Scene(one.prompt, conditions).prompt == one.prompt
