"""The grammar: what can be said, how it prints, and what is refused with a sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from capriccio.attention import (
    AttentionProgram,
    Bias,
    Hide,
    LayerInfo,
    Layers,
    Scope,
    See,
    Steps,
    Tap,
    TokenLayout,
    Weigh,
)
from capriccio.errors import CapriccioError


@pytest.fixture
def layout() -> TokenLayout:
    tokens = torch.arange(10)
    return TokenLayout(10, {"text": tokens < 4, "image:left": tokens % 2 == 0, "image:right": np.arange(10) == 9})


def test_windows_are_half_open_and_accept_fractions_and_indices():
    assert Steps().window(7) == range(7)
    assert Steps(0.0, 0.5).window(10) == range(5)
    assert Steps(0.3, 0.7).window(10) == range(3, 7)
    assert Steps(2, 4).window(10) == range(2, 4)
    assert Steps(0.5, 40).window(10) == range(5, 10)
    assert list(Steps(0.5, 0.5).window(10)) == []


def test_complementary_windows_share_no_step_and_lose_none():
    for n in range(1, 60):
        for cut in np.linspace(0, 1, 23):
            first, second = Steps(0.0, float(cut)).window(n), Steps(float(cut), 1.0).window(n)
            assert [*first, *second] == list(range(n))


@pytest.mark.parametrize("bounds", [(-0.1, 1.0), (0.0, 1.5), (-1, 3)])
def test_impossible_windows_are_refused(bounds):
    with pytest.raises(CapriccioError, match="fraction"):
        Steps(*bounds)


def test_layers_are_counted_within_their_kind():
    layers = Layers("single", start=1, stop=6, every=2)
    chosen = [i for i in range(10) if LayerInfo("", "single", i) in layers]
    assert chosen == [1, 3, 5]
    assert LayerInfo("", "double", 1) not in layers
    assert LayerInfo("", "double", 1) in Layers()


@pytest.mark.parametrize("wrong", [{"start": -1}, {"every": 0}])
def test_impossible_layers_are_refused(wrong):
    with pytest.raises(CapriccioError, match="Layers"):
        Layers(**wrong)


def test_programs_compose_and_print():
    scope = Scope(Layers(("double",), start=2, every=3), Steps(0.0, 0.5), "positive")
    first = AttentionProgram([Weigh("image:right", "image:left", 1.3, scope)])
    both = first + AttentionProgram((See(("a", "b"), "c"), Hide("a", "b"), Bias("a", "b", 2), Tap("t", "a", "b")))
    assert len(both) == 5
    assert next(iter(both)) is first.edits[0]
    text = str(both)
    assert "weigh image:right -> image:left by 1.3 | double layers [2, end), every 3 | steps [0.0, 0.5)" in text
    assert "rows positive" in text
    assert "see a + b -> c | all layers | all steps | all rows" in text
    assert "hide a -> b" in text
    assert "bias a -> b by 2" in text
    assert "tap 't' a -> b" in text
    assert str(AttentionProgram()) == "attention program: no edits"
    with pytest.raises(TypeError):
        first + 3


def test_programs_are_values():
    assert AttentionProgram((See("a", "b"),)) == AttentionProgram((See("a", "b"),))
    with pytest.raises(AttributeError):
        AttentionProgram().edits = ()


def test_weights_that_mean_nothing_are_refused():
    with pytest.raises(CapriccioError, match="use Hide"):
        Bias("a", "b", 0.0)
    with pytest.raises(CapriccioError, match="finite"):
        Weigh("a", "b", float("nan"))
    assert Weigh("a", "b", 1.0).neutral
    assert Bias("a", "b", 1).neutral
    assert not Weigh("a", "b", 0.0).neutral


def test_two_taps_of_one_name_are_refused():
    with pytest.raises(CapriccioError, match="several taps named 't'"):
        AttentionProgram((Tap("t", "a", "b"), Tap("t", "b", "c")))


def test_groups_unite_and_a_stem_names_all_below_it(layout):
    assert layout.tokens("text").sum() == 4
    assert layout.tokens(("text", "image:right")).sum() == 5
    assert (layout.tokens("image") == layout.tokens(("image:left", "image:right"))).all()
    assert layout.tokens(()).sum() == 0
    assert str(layout) == "10 tokens, text 4, image:left 5, image:right 1"


def test_unknown_groups_get_the_nearest_name(layout):
    with pytest.raises(CapriccioError, match="did you mean 'image:left'"):
        layout.tokens("image:lefft")
    with pytest.raises(CapriccioError, match="no groups"):
        TokenLayout(3).tokens("text")


@pytest.mark.parametrize("mask", [[1, 0, 1], [True, False], torch.ones(3)])
def test_groups_must_be_booleans_of_the_right_length(mask):
    with pytest.raises(CapriccioError, match="expects booleans"):
        TokenLayout(3, {"text": mask})
