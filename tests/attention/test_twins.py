"""Twins and mixes: a second view of the image, and the base stream of Regional Prompting as its authors compute it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_compile import check, edit, layouts
from test_processors import HEIGHT, TEXT, WIDTH, build, inputs

from capriccio.attention import (
    AttentionProgram,
    LayerInfo,
    Layers,
    Mix,
    Scope,
    See,
    Sides,
    TokenLayout,
    Twin,
    Weigh,
    attach,
    compile_program,
    layers_of,
)
from capriccio.errors import CapriccioError
from capriccio.evaluation.published import regional_flux, regional_mask

TWIN = Twin("twin", "image", own=Layers("single"))
LENGTHS = [3, 5, 4]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_compiled_equals_literal_with_twins(data):
    layout = data.draw(layouts())
    group = data.draw(st.sampled_from([name for name, mask in layout.groups.items() if mask.any()] or [None]))
    if group is None:
        return
    apart = data.draw(st.booleans())
    twin = Twin("t", group)
    layout = layout.with_twins([twin], [twin] if apart else [])
    edits = data.draw(st.lists(edit, max_size=4))
    edits += data.draw(st.lists(st.builds(See, st.sampled_from(["t", group, ("t", "a")]), st.sampled_from("abcdt"))))
    edits += [Mix(group, "t", data.draw(st.sampled_from([0.0, 0.3, 1.0])))]
    check(edits, layout, masks=data.draw(st.booleans()), seed=data.draw(st.integers(0, 9)))


def regions(masks: torch.Tensor, lengths=LENGTHS):
    """Layout and program of Regional Prompting with base ratio .3 and the mask in every second block."""
    text = TEXT + sum(lengths)
    total = text + HEIGHT * WIDTH
    groups = {"text:base": np.arange(total) < TEXT, "image": np.arange(total) >= text}
    start = TEXT
    for number, (length, mask) in enumerate(zip(lengths, masks, strict=True)):
        groups[f"text:region/{number}"] = (np.arange(total) >= start) & (np.arange(total) < start + length)
        groups[f"image:region/{number}"] = np.concatenate([np.zeros(text, bool), mask.numpy()])
        start += length
    groups["image:nowhere"] = np.concatenate([np.zeros(text, bool), ~masks.any(0).numpy()])
    return TokenLayout(total, groups)


def program(count: int, ratio: float, interval: int, twin: Twin = TWIN) -> AttentionProgram:
    masked = Scope(Layers(every=interval))
    edits = [See(("text:base", "twin"), ("text:base", "twin"))]
    for number in range(count):
        own = (f"text:region/{number}", f"image:region/{number}")
        edits.append(See(own, own, masked))
    edits.append(See("image:nowhere", "image:nowhere", masked))
    if interval > 1:
        others = Scope(Layers(every=interval, others=True))
        edits.append(See(("text:region", "image"), ("text:region", "image"), others))
    return AttentionProgram((*edits, Mix("image", "twin", ratio)), (twin,))


@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("overlap", [False, True])
def test_the_base_stream_is_the_published_one(interval, overlap):
    model, given_inputs = build(), inputs(batch=2)
    torch.nn.init.normal_(model.proj_out.weight)
    columns = torch.arange(WIDTH).repeat(HEIGHT)
    masks = torch.stack([columns < 3, (columns >= 3 - overlap) & (columns < 6), (columns == 6)])
    generator = torch.Generator().manual_seed(1)
    texts = torch.randn(2, sum(LENGTHS), 32, generator=generator)
    expected = regional_flux(model, given_inputs, texts, regional_mask(LENGTHS, masks), 0.3, (interval, interval))
    compiled = compile_program(program(3, 0.3, interval), regions(masks), layers=layers_of(model), num_steps=1)
    joined = torch.cat([given_inputs["encoder_hidden_states"], texts], 1)
    extended = {**given_inputs, "encoder_hidden_states": joined, "txt_ids": torch.zeros(joined.shape[1], 3)}
    stock = model(**given_inputs, return_dict=False)[0]
    with attach(model, compiled):
        found = model(**extended, return_dict=False)[0]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (found - stock).abs().max() > 1e-2 * expected.abs().max()
    assert torch.equal(model(**given_inputs, return_dict=False)[0], stock)  # gone without a trace


def test_a_detached_program_works_again():
    model, given_inputs = build(), inputs()
    masks = torch.ones(1, HEIGHT * WIDTH, dtype=torch.bool)
    compiled = compile_program(program(1, 0.5, 1), regions(masks, [TEXT]), layers=layers_of(model), num_steps=1)
    joined = given_inputs["encoder_hidden_states"].repeat(1, 2, 1)
    extended = {**given_inputs, "encoder_hidden_states": joined, "txt_ids": torch.zeros(2 * TEXT, 3)}
    attachment = attach(model, compiled)
    first = model(**extended, return_dict=False)[0]
    attachment.detach()
    stock = model(**given_inputs, return_dict=False)[0]
    attachment.work()
    assert torch.equal(model(**extended, return_dict=False)[0], first)
    attachment.detach()
    # one region that covers everything under the base prompt is the model without any
    assert (first - stock).abs().max() <= 1e-5 * stock.abs().max()


def test_a_twin_in_cross_attention_mixes_two_texts():
    """On a U-Net the twin never is a stream: two looks at the text, one output."""
    image = TokenLayout(6, {"image": np.ones(6, bool), "image:a": np.arange(6) < 3}, frozenset({"text"}), (2, 3))
    text = TokenLayout(4, {"text:base": np.arange(4) < 2, "text:a": np.arange(4) >= 2}, frozenset({"image"}))
    sides = Sides(image.with_twins([Twin("twin", "image")]), text)
    edits = [See("image", "text:base"), See("image:a", "text:a"), See("twin", "text:base"), Mix("image:a", "twin", 0.4)]
    check(edits, sides)


def test_taps_read_a_twin_and_its_original_apart():
    layout = TokenLayout(5, {"a": np.arange(5) < 2, "b": np.arange(5) >= 2}).with_twins([Twin("t", "b")])
    assert (layout.length, layout.given) == (8, 5)
    check([See("t", "a"), Mix("b", "t", 0.5), Weigh("b", "a", 2.0)], layout)


def test_a_mix_needs_a_twin_of_every_token():
    layout = TokenLayout(4, {"a": np.arange(4) < 2, "b": np.arange(4) >= 2})
    layers = (LayerInfo("one", "single", 0),)
    edits = AttentionProgram((Mix(("a", "b"), "t", 0.5),), (Twin("t", "a"),))
    with pytest.raises(CapriccioError, match="not all of those tokens have such a twin"):
        compile_program(edits, layout, layers=layers, num_steps=1)
    with pytest.raises(CapriccioError, match=r"ratio 1\.5"):
        Mix("a", "t", 1.5)
    with pytest.raises(CapriccioError, match="two different twins"):
        AttentionProgram((), (Twin("t", "a"), Twin("t", "b")))


def test_only_the_whole_image_has_a_stream_of_its_own():
    model = build()
    masks = torch.ones(1, HEIGHT * WIDTH, dtype=torch.bool)
    masks[0, -1] = False
    twin = Twin("twin", "text:base", own=Layers("single"))
    edits = AttentionProgram((See("text:base", "text"), Mix("text:base", "twin", 0.5)), (twin,))
    compiled = compile_program(edits, regions(masks, [TEXT]), layers=layers_of(model), num_steps=1)
    with pytest.raises(CapriccioError, match="one such twin, of all image tokens"):
        attach(model, compiled)
    assert not any("Program" in type(layer).__name__ for layer in model.attn_processors.values())
