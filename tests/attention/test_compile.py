"""The compiler: every compiled form equals the literal formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from capriccio.attention import (
    AttentionProgram,
    Bias,
    Hide,
    KeyScale,
    LayerInfo,
    Layers,
    Scope,
    See,
    Steps,
    Tap,
    TokenLayout,
    Weigh,
    choose_form,
    compile_program,
    literal,
)
from capriccio.attention.choose import group_queries
from capriccio.errors import CapriccioError

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
LAYERS = (*(LayerInfo(f"d{i}", "double", i) for i in range(3)), *(LayerInfo(f"s{i}", "single", i) for i in range(4)))


def core(query, key, value, mask):
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def maskless(query, key, value, mask):
    assert mask is None, "a kernel that takes no mask was given one"
    return core(query, key, value, None)


def random_qkv(length, dtype=torch.float32, rows=2, heads=3, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, length, heads, width, generator=generator).to(dtype) for _ in range(3)]


def relative(result, expected):
    return float((result.float() - expected.float()).abs().max() / expected.float().abs().max().clamp_min(1e-6))


def check(edits, layout, dtype=torch.float32, masks=True, seed=0):
    """Compare the compiled form with the literal formula in float32, outputs and taps."""
    query, _, _ = random_qkv(layout.queries.given, dtype, seed=seed)
    _, key, value = random_qkv(layout.keys.given, dtype, seed=seed)
    expected, taps = literal(query.float(), key.float(), value.float(), edits, layout)
    form = choose_form(edits, layout, masks)
    call = core if masks else maskless
    result = form.run(query, key, value, call) if form else call(query, key, value, None)
    assert result.dtype == dtype
    assert result.shape == query.shape
    assert relative(result, expected) <= TOLERANCE[dtype]
    for reading in form.readings if form else ():
        read = reading.read(query, key, call)
        assert read.shape == taps[reading.name].shape
        assert (read.float() - taps[reading.name]).abs().max() <= TOLERANCE[dtype] if read.numel() else True
    return form


@st.composite
def layouts(draw):
    length = draw(st.integers(1, 40))
    masks = st.lists(st.booleans(), min_size=length, max_size=length).map(np.array)
    return TokenLayout(length, {name: draw(masks) for name in "abcd"})


names = st.sampled_from("abcd") | st.sampled_from([("a", "b"), ("c", "d"), ("a", "c", "d")])
weights = st.sampled_from([0.1, 0.7, 1.0, 1.3, 4.0])
edit = (
    st.builds(See, names, names)
    | st.builds(Hide, names, names)
    | st.builds(Bias, names, names, weights)
    | st.builds(KeyScale, names, names, weights | st.sampled_from([0.0, -1.0]))
    | st.builds(Weigh, names, names, weights | st.sampled_from([0.0, -1.0]))
)
tap = st.builds(Tap, st.just("t"), names, names, st.just(Scope()), st.booleans())
programs = st.tuples(st.lists(edit, max_size=6), st.lists(tap, max_size=1)).map(lambda two: two[0] + two[1])


@settings(max_examples=150, deadline=None)
@given(programs, layouts(), st.sampled_from([torch.float32, torch.bfloat16]), st.booleans(), st.integers(0, 99))
def test_compiled_equals_literal(edits, layout, dtype, masks, seed):
    check(edits, layout, dtype, masks, seed)


@settings(max_examples=100, deadline=None)
@given(programs, layouts())
def test_groups_partition_the_queries(edits, layout):
    groups = group_queries(edits, layout)
    assert np.sort(np.concatenate([group.queries for group in groups])).tolist() == list(range(layout.length))
    assert len({group.key for group in groups}) == len(groups)


rows = st.none() | st.sampled_from([("positive",), ("negative",), ("positive", "other")])
scopes = st.builds(
    Scope,
    st.builds(
        Layers, st.none() | st.just(("double",)), st.integers(0, 2), st.none() | st.integers(1, 4), st.integers(1, 2)
    ),
    st.builds(Steps, st.sampled_from([0.0, 0.3, 1, 2]), st.sampled_from([0.5, 1.0, 3])),
    rows,
)
scoped = st.builds(Weigh, names, names, weights, scopes) | st.builds(Hide, names, names, scopes)


@settings(max_examples=60, deadline=None)
@given(st.lists(scoped, max_size=4), layouts(), st.sampled_from(["positive", "negative", "other", "unnamed"]))
def test_every_layer_step_and_role_runs_exactly_the_edits_in_scope(edits, layout, role):
    compiled = compile_program(AttentionProgram(edits), layout, layers=LAYERS, num_steps=4)
    query, key, value = random_qkv(layout.length, rows=1)
    for position, layer in enumerate(LAYERS):
        for step in range(4):
            scope = [e.scope for e in edits]
            chosen = [layer in s.layers and step in s.steps.window(4) and role in (s.rows or (role,)) for s in scope]
            own = [e for e, is_chosen in zip(edits, chosen, strict=True) if is_chosen]
            form = compiled.form(position, step, role)
            result = form.run(query, key, value, core) if form else core(query, key, value, None)
            assert relative(result, literal(query, key, value, own, layout)[0]) <= 1e-5


def panels(height=4, width=8, text=5):
    """Two panels side by side: interleaved in memory, text first."""
    columns = np.tile(np.arange(width), height)
    pad = np.zeros(text, bool)
    left, right = (np.concatenate([pad, side]) for side in (columns < width // 2, columns >= width // 2))
    return TokenLayout(text + height * width, {"text": ~(left | right), "image:left": left, "image:right": right})


def test_diptych_is_two_unmasked_calls_with_scaled_values():
    form = check([Weigh("image:right", "image:left", 1.3)], panels())
    assert len(form.calls) == 2
    assert all(call.look.mask is None and call.look.keys is None for call in form.calls)
    assert form.text == "2 fused calls over 21 + 16 queries, values scaled, 1.00 x the work of plain attention"


def test_an_edit_moves_its_queries_alone():
    layout = panels()
    query, key, value = random_qkv(layout.length)
    plain = core(query, key, value, None)
    edited = choose_form([Weigh("image:right", "image:left", 1.3)], layout).run(query, key, value, core)
    right, left = (torch.from_numpy(layout.tokens(f"image:{side}")) for side in ("right", "left"))
    assert torch.allclose(plain[:, ~right], edited[:, ~right], atol=1e-6)
    attention = torch.einsum("bqhd,bkhd->bhqk", query, key).mul(8**-0.5).softmax(-1)
    change = 0.3 * torch.einsum("bhqk,bkhd->bqhd", attention[..., left], value[:, left])
    assert torch.allclose((edited - plain)[:, right], change[:, right], atol=1e-5)


def test_large_regions_are_one_unmasked_call_each():
    region = np.arange(3200) // 800
    groups = {f"region/{i}": region == i for i in range(4)}
    form = check([See(name, name) for name in groups], TokenLayout(3200, groups))
    assert len(form.calls) == 4
    assert "0.25 x the work" in form.text
    assert all(isinstance(call.look.keys, slice) and isinstance(call.look.queries, slice) for call in form.calls)


def test_small_regions_of_equal_size_are_one_batched_call():
    region = np.arange(1200) % 5  # interleaved: four of a size, and a fifth that sees one of them as well
    groups = {f"region/{i}": region == i for i in range(5)}
    edits = [*(See(name, name) for name in groups), See("region/4", "region/0"), Weigh("region/1", "region/1", 2.0)]
    form = check(edits, TokenLayout(1200, groups))
    assert sorted(call.look.groups for call in form.calls) == [1, 1, 3]
    assert "3 groups of equal size in batches" in form.text
    scaled = [KeyScale(f"region/{i}", f"region/{i}", 0.5 + i) for i in range(4)]
    weighed = [Weigh(f"region/{i}", f"region/{i}", 0.5 + i) for i in range(4)]
    form = check([*edits[:5], *scaled, *weighed], TokenLayout(1200, groups), masks=False)
    assert sorted(call.look.groups for call in form.calls) == [1, 4]


def test_many_small_groups_fall_back_to_a_dense_mask_and_say_so():
    layout = TokenLayout(40, {f"g{i}": np.arange(40) % 20 == i for i in range(20)})
    edits = [See(name, name) for name in layout.groups]
    form = check([*edits, Weigh("g1", "g1", 2.0), Tap("t", ("g1", "g2"), ("g1", "g3"))], layout)
    assert "dense mask, because 19 small query groups" in form.text
    assert form.calls[0].look.mask.dtype == torch.bool
    biased = check([*edits, Bias("g2", "g3", 3.0), See("g2", "g3"), Tap("t", "g2", "g3", each=True)], layout)
    assert biased.calls[0].look.mask.is_floating_point()
    assert "dense" not in check(edits, layout, masks=False).text


def test_bias_shared_by_all_queries_is_one_call_with_a_key_only_mask():
    form = check([Bias(("text", "image"), "image:left", 1.3)], panels())
    (call,) = form.calls
    assert call.look.mask.shape == (1, 1, 1, 37)
    assert call.look.queries is None
    quotient = check([Bias(("text", "image"), "image:left", 1.3)], panels(), masks=False)
    assert quotient.calls[0].look.mask is None
    assert "quotient of two calls" in quotient.text


def test_bias_on_all_that_is_seen_is_renormalised_away():
    assert choose_form([Bias("text", ("text", "image"), 3.0)], panels()) is None


def test_a_query_that_sees_nothing_gives_zero_and_reads_zero():
    layout = panels()
    form = check([Hide("image:right", ("text", "image")), Tap("t", "image", "text")], layout)
    right = torch.from_numpy(layout.tokens("image:right"))
    assert (form.run(*random_qkv(37), core)[:, right] == 0).all()
    assert "sees nothing" in form.text
    check([Hide(("text", "image"), ("text", "image"))], layout)


def test_taps_read_after_bias_and_before_weigh():
    layout = panels()
    tap = Tap("t", "image:right", "image:left")
    query, key, _ = random_qkv(layout.length)
    read = lambda *edits: choose_form([*edits, tap], layout).readings[0].read(query, key, core)  # noqa: E731
    plain, biased = read(), read(Bias("image:right", "image:left", 4.0))
    assert (biased > plain).all()
    assert (biased < 1).all()
    assert torch.equal(read(Weigh("image:right", "image:left", 4.0)), plain)


def test_taps_of_more_columns_than_the_head_is_wide():
    form = check([Tap("t", "image", "image", each=True)], panels())
    assert form.readings[0].shape == (32, 32)
    read = form.readings[0].read(*random_qkv(37)[:2], core)
    assert read.sum(-1).max() < 1


def test_taps_are_differentiable():
    query, key, _ = random_qkv(37)
    query.requires_grad_(True)
    form = choose_form([Tap("t", "image:right", "image:left"), Weigh("text", "text", 2)], panels())
    form.readings[0].read(query, key, core).sum().backward()
    assert query.grad.abs().max() > 0


def test_gradients_equal_the_literal_ones():
    layout, edits = panels(), [Weigh("image:right", "image:left", 1.3), Hide("text", "image:left")]
    query, key, value = [x.requires_grad_(True) for x in random_qkv(37)]
    ours = torch.autograd.grad(
        choose_form(edits, layout).run(query, key, value, core).square().sum(), (query, key, value)
    )
    theirs = torch.autograd.grad(literal(query, key, value, edits, layout)[0].square().sum(), (query, key, value))
    for a, b in zip(ours, theirs, strict=True):
        assert relative(a, b) <= 1e-5


def test_neutral_programs_compile_to_nothing():
    program = AttentionProgram((Weigh("image", "text", 1.0), Bias("image", "text", 1.0)))
    compiled = compile_program(program, panels(), layers=LAYERS, num_steps=4)
    assert compiled.empty
    assert compiled.constant
    assert all("neutral, the stock call" in line for line in compiled.lines())
    assert compile_program(AttentionProgram(), panels(), layers=LAYERS, num_steps=1).empty


def test_lines_say_layers_steps_rows_and_form():
    scope = Scope(Layers(("single",), every=2), Steps(0.0, 0.5), ("positive",))
    program = AttentionProgram(
        (
            Weigh("image:right", "image:left", 1.3),
            Hide("text", "image:left", scope),
            See("text", "text", Scope(steps=Steps(0.5, 0.5))),
            Hide("text", "image", Scope(Layers(("double",), 1, 2))),
            See("text", ("text", "image"), Scope(Layers(("single",), 3))),
        )
    )
    compiled = compile_program(program, panels(16, 32, 128), layers=LAYERS, num_steps=10)
    lines = compiled.lines()
    assert "double 0-2, single 0-3 | steps [0, 10) of 10 | all rows" in lines[0]
    assert "single 0-2 every 2 | steps [0, 5) of 10 | rows positive | 3 fused calls" in lines[1]
    assert "never at work" in lines[2]
    assert "| double 1 |" in lines[3]
    assert all(line in str(compiled) for line in lines)
    assert "640 tokens" in str(compiled)
    assert not compiled.constant
    assert len(compiled.edited) == 7
    assert "no edits" in str(compile_program(AttentionProgram(), panels(), layers=LAYERS, num_steps=1))


def test_flops_are_counted_per_layer():
    scope = Scope(Layers(("double",)))
    see = AttentionProgram((See("image:right", "image:right", scope), Tap("t", "image", "image", scope, each=True)))
    compiled = compile_program(see, panels(), layers=LAYERS, num_steps=1, masks=False)
    plain = 4 * 3 * 8 * 37 * 37
    edited = 4 * 3 * 8 * (21 * 37 + 16 * 16 + 4 * (16 * 37 + 16 * 16))
    assert compiled.flops(3, 8) == (edited,) * 3 + (plain,) * 4
    bias = AttentionProgram((Bias("text", "text", 2.0),))
    twice = compile_program(bias, panels(), layers=LAYERS, num_steps=1, masks=False)
    assert twice.flops(3, 8)[0] == 4 * 3 * 8 * 37 * (37 + 5)


def test_mistakes_are_sentences():
    with pytest.raises(CapriccioError, match="at least 1"):
        compile_program(AttentionProgram(), panels(), layers=LAYERS, num_steps=0)
    with pytest.raises(CapriccioError, match="did you mean 'image:left'"):
        compile_program(AttentionProgram((See("text", "image:lift"),)), panels(), layers=LAYERS, num_steps=1)
    scope = Scope(Layers("doubles"))
    with pytest.raises(CapriccioError, match="did you mean 'double'"):
        compile_program(AttentionProgram((See("text", "text", scope),)), panels(), layers=LAYERS, num_steps=1)
