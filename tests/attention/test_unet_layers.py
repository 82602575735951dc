"""Programs on U-Nets: shapes that every layer rasterises, text seen from the picture, and nothing left behind."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import scaled_dot_product_attention

from capriccio.attention import (
    AttentionEdit,
    AttentionProgram,
    Bias,
    Features,
    Hide,
    KeyScale,
    LayerInfo,
    Layers,
    PictureLayout,
    Scope,
    See,
    Steps,
    Tap,
    TokenLayout,
    Weigh,
    attach,
    choose_form,
    compile_program,
    layers_of,
    literal,
)
from capriccio.attention.processors import UNetProcessor
from capriccio.canvas import rasterise
from capriccio.errors import CapriccioError

TEXT, HEIGHT, WIDTH, CELL = 7, 12, 20, 2
SHAPES = {f"image:{name}": np.zeros((HEIGHT, WIDTH), bool) for name in ("left", "right", "all")}
SHAPES["image:left"][:, :7] = True
SHAPES["image:right"][:, 9:] = True
SHAPES["image:all"][:] = True
LAYOUT = PictureLayout(
    TokenLayout(TEXT, {"text": np.ones(TEXT, bool), "text:mug": np.arange(TEXT) == 2}), SHAPES, (HEIGHT, WIDTH), CELL
)
WORD = AttentionProgram((Weigh("image:left", "text:mug", 3.0), Weigh("image:right", "image:left", 2.0)))
POSITIVE = Scope(rows=("positive",))


def build() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return tiny.unet("sd15").requires_grad_(False)


@pytest.fixture
def model() -> UNet2DConditionModel:
    return build()


def forward(model: Any, batch: int = 1, **settings: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, 4, HEIGHT // CELL, WIDTH // CELL, generator=generator)
    text = torch.randn(batch, TEXT, 32, generator=generator)
    with torch.no_grad():
        return model(latents, torch.tensor(500), encoder_hidden_states=text, return_dict=False, **settings)[0]


def compiled_for(model: Any, program: AttentionProgram = WORD, num_steps: int = 4, **settings: Any) -> Any:
    return compile_program(program, LAYOUT, layers=layers_of(model), num_steps=num_steps, **settings)


class Literal:
    """The stock processor of a U-Net with the literal formula for its attention; keeps what the taps read."""

    def __init__(
        self, edits: tuple[AttentionEdit, ...], layer: LayerInfo, taps: dict[str, list[tuple[int, Tensor]]]
    ) -> None:
        attended = LAYOUT.at(layer)
        own = [e for e in edits if attended.queries.holds(e.queries) and attended.keys.holds(e.keys)]
        self.edits, self.attended, self.taps = [e for e in own if layer in e.scope.layers], attended, taps
        self.level = layer.level

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        flat = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in flat)
        out, taps = literal(query, key, value, self.edits, self.attended)
        for name, reading in taps.items():
            self.taps.setdefault(name, []).append((self.level, reading))
        return attn.to_out[0](out.flatten(2))


def literal_forward(model: Any, program: AttentionProgram, batch: int = 1) -> tuple[Tensor, dict[str, Any]]:
    found, taps = dict(model.attn_processors), {}
    names = {layer.name: layer for layer in layers_of(model)}
    processors = {f"{n}.processor": Literal(program.edits, names[n], taps) for n in names}
    model.set_attn_processor({name: processors[name] for name in found})
    try:
        return forward(model, batch), taps
    finally:
        model.set_attn_processor(found)


# --- where the tokens are ---


def test_layers_know_their_resolution(model: UNet2DConditionModel) -> None:
    layers = layers_of(model)
    assert [(layer.kind, layer.index) for layer in layers[:4]] == [("self", 0), ("cross", 0), ("self", 1), ("cross", 1)]
    levels = {layer.name.split(".transformer_blocks")[0]: layer.level for layer in layers}
    assert levels["down_blocks.0.attentions.0"] == 0
    assert levels["down_blocks.1.attentions.0"] == levels["mid_block.attentions.0"] == 1
    assert levels["up_blocks.0.attentions.1"] == 1
    assert levels["up_blocks.1.attentions.0"] == 0


@pytest.mark.parametrize("size", [(12, 20), (10, 14), (6, 22)])
def test_grids_are_those_of_the_forward(model: UNet2DConditionModel, size: tuple[int, int]) -> None:
    """Sides that do not halve evenly included."""
    layout = PictureLayout(TokenLayout(TEXT), {"image": np.ones(size, bool)}, size, CELL)
    seen: dict[str, int] = {}
    for layer in layers_of(model):
        module = model.get_submodule(layer.name)
        module.register_forward_pre_hook(lambda m, args, name=layer.name: seen.update({name: args[0].shape[1]}))
    with torch.no_grad():
        model(torch.randn(1, 4, size[0] // CELL, size[1] // CELL), 1, encoder_hidden_states=torch.randn(1, TEXT, 32))
    assert seen == {layer.name: layout.at(layer).queries.length for layer in layers_of(model)}


def test_shapes_are_rasterised_by_more_than_half() -> None:
    shape = np.zeros((6, 10), bool)
    shape[:, :5] = True
    assert rasterise(shape, 2).reshape(3, 5)[0].tolist() == [True, True, False, False, False]
    assert rasterise(shape, 4).reshape(2, 3)[0].tolist() == [True, False, False]
    assert rasterise(shape, 8).reshape(1, 2)[0].tolist() == [True, False]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 9), st.integers(0, 99))
def test_every_shape_has_a_cell_and_only_what_it_touches(height: int, width: int, cell: int, seed: int) -> None:
    shape = np.random.default_rng(seed).random((height, width)) < 0.1
    cells = rasterise(shape, cell)
    rows, columns = -(-height // cell), -(-width // cell)
    assert cells.shape == (rows * columns,)
    assert cells.any() == shape.any()
    for index in np.flatnonzero(cells):
        row, column = divmod(index, columns)
        assert shape[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell].any()


def test_groups_live_where_their_tokens_are() -> None:
    cross, own = (LAYOUT.at(LayerInfo("", kind, 0, 1)) for kind in ("cross", "self"))
    assert (cross.queries.length, cross.keys.length) == (3 * 5, TEXT)
    assert own.queries is own.keys is cross.queries
    assert LAYOUT.at(LayerInfo("other", "cross", 5, 1)) is cross
    assert cross.keys.holds("text:mug")
    assert not cross.keys.holds("image")
    assert own.keys.tokens(("image", "text")).sum() == own.keys.tokens("image").sum()
    assert "7 text tokens, text 7, text:mug 1, 10 x 6 image tokens and coarser, image:left 35%" in str(LAYOUT)
    assert LAYOUT.length == 7 + 60


def test_mistakes_in_layouts_are_sentences(model: UNet2DConditionModel) -> None:
    with pytest.raises(CapriccioError, match="did you mean 'text:mug'"):
        compiled_for(model, AttentionProgram((Weigh("image:left", "text:mgu", 2.0),)))
    with pytest.raises(CapriccioError, match=r"expects booleans of shape \(4, 4\)"):
        PictureLayout(TokenLayout(2), {"image": np.ones((4, 5), bool)}, (4, 4), 2)
    with pytest.raises(CapriccioError, match="did you mean 'cross'"):
        compiled_for(model, AttentionProgram((Weigh("image", "text", 2.0, Scope(Layers("cros"))),)))
    tap = Tap("t", "image:left", "image:right", each=True)
    with pytest.raises(CapriccioError, match="scope it to layers of one kind and level"):
        compiled_for(model, AttentionProgram((tap,)))


# --- the compiler on two sequences ---

names = st.sampled_from(["image:left", "image:right", ("image:left", "image:right"), "image"])
keys = names | st.sampled_from(["text", "text:mug", ("text:mug", "image:left")])
weights = st.sampled_from([0.25, 1.0, 1.3, 4.0])
scopes = st.builds(
    Scope,
    st.builds(
        Layers,
        st.none() | st.sampled_from(["self", "cross"]),
        st.integers(0, 2),
        st.none() | st.integers(1, 5),
        st.integers(1, 2),
        st.none() | st.sampled_from([0, 1, (0, 1)]),
    ),
    st.builds(Steps, st.sampled_from([0.0, 0.5, 1]), st.sampled_from([0.5, 1.0])),
    st.none() | st.sampled_from([("positive",), ("negative",)]),
)
edits = (
    st.builds(See, names, keys, scopes)
    | st.builds(Hide, names, keys, scopes)
    | st.builds(Bias, names, keys, weights, scopes)
    | st.builds(Weigh, names, keys, weights, scopes)
    | st.builds(KeyScale, names, keys, weights, scopes)
)
LAYERS = layers_of(build())


def core(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


@st.composite
def layouts(draw: Any) -> PictureLayout:
    height, width, seed = draw(st.integers(1, 17)), draw(st.integers(1, 17)), draw(st.integers(0, 999))
    rng = np.random.default_rng(seed)
    shapes = {name: rng.random((height, width)) < rng.random() for name in SHAPES}
    return PictureLayout(LAYOUT.text, shapes, (height, width), draw(st.integers(1, 3)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(edits, max_size=5),
    layouts(),
    st.sampled_from(["positive", "negative", "other"]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.booleans(),
)
def test_every_layer_runs_exactly_its_edits(
    edits: list[Any], layout: PictureLayout, role: str, dtype: torch.dtype, masks: bool
) -> None:
    compiled = compile_program(AttentionProgram(tuple(edits)), layout, layers=LAYERS, num_steps=4, masks=masks)
    for (position, layer), step in itertools.product(enumerate(LAYERS[:6]), (0, 3)):
        attended = layout.at(layer)
        own = [
            e
            for e in edits
            if layer in e.scope.layers
            and step in e.scope.steps.window(4)
            and role in (e.scope.rows or (role,))
            and attended.queries.holds(e.queries)
            and attended.keys.holds(e.keys)
        ]
        generator = torch.Generator().manual_seed(step)
        query = torch.randn(2, attended.queries.length, 2, 8, generator=generator).to(dtype)
        key, value = (torch.randn(2, attended.keys.length, 2, 8, generator=generator).to(dtype) for _ in range(2))
        expected = literal(query.float(), key.float(), value.float(), own, attended)[0]
        form = compiled.form(position, step, role)
        result = form.run(query, key, value, core) if form else core(query, key, value, None)
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype] * expected.abs().max().clamp_min(1e-6)
        assert result.dtype == dtype
        assert (result.float() - expected).abs().max() <= tolerance


def test_scaled_keys_are_one_call_over_scaled_rows() -> None:
    attended = LAYOUT.at(LayerInfo("", "cross", 0, 0))
    form = choose_form([KeyScale("image", "text:mug", 2.0)], attended)
    assert len(form.calls) == 1
    assert "keys scaled" in form.text
    assert KeyScale("image", "text", 1.0).neutral
    with pytest.raises(CapriccioError, match="finite"):
        KeyScale("image", "text", float("inf"))
    assert "scale logits image -> text by 2" in str(AttentionProgram((KeyScale("image", "text", 2.0),)))


def test_flops_follow_every_layer() -> None:
    heads, widths = (2,) * len(LAYERS), tuple(8 << layer.level for layer in LAYERS)
    program = AttentionProgram((See("image:left", "text:mug", Scope(Layers("cross", stop=1))),))
    compiled = compile_program(program, LAYOUT, layers=LAYERS, num_steps=1, masks=False)
    counted = compiled.flops(heads, widths)
    image, seen = LAYOUT.image(0).length, int(LAYOUT.image(0).tokens("image:left").sum())
    assert counted[0] == 4 * 2 * 8 * image**2
    assert counted[1] == 4 * 2 * 8 * ((image - seen) * TEXT + seen)
    assert counted[3] == 4 * 2 * 16 * 15 * TEXT


# --- on the model ---


@pytest.mark.parametrize("batch", [1, 2])
def test_neutral_programs_attach_nothing_and_are_bit_equal(model: UNet2DConditionModel, batch: int) -> None:
    stock, found = forward(model, batch), list(model.attn_processors.values())
    for program in (AttentionProgram(), AttentionProgram((Weigh("image", "text", 1.0), KeyScale("image", "text", 1)))):
        with attach(model, compiled_for(model, program)):
            assert all(a is b for a, b in zip(found, model.attn_processors.values(), strict=True))
            assert torch.equal(forward(model, batch), stock)


def test_outside_its_scope_an_attached_program_is_bit_equal(model: UNet2DConditionModel) -> None:
    stock, found, keys = forward(model, 2), list(model.attn_processors.values()), set(model.state_dict())
    program = AttentionProgram((Weigh("image:left", "text:mug", 3.0, Scope(steps=Steps(0, 2), rows="positive")),))
    with attach(model, compiled_for(model, program)) as attachment:
        assert set(model.state_dict()) == keys
        for step, roles in ((0, ("negative", "negative")), (2, ("negative", "positive"))):
            attachment.set(step=step, roles=roles)
            assert torch.equal(forward(model, 2), stock)
        attachment.set(step=1, roles=("negative", "positive"))
        edited = forward(model, 2)
        assert torch.allclose(edited[0], stock[0], atol=1e-5)
        assert not torch.allclose(edited[1], stock[1], atol=1e-4)
    assert all(a is b for a, b in zip(found, model.attn_processors.values(), strict=True))
    assert torch.equal(forward(model, 2), stock)


@pytest.mark.parametrize(
    "edits",
    [
        WORD.edits,
        (Hide("image:left", "image:right"), Bias("image", "text:mug", 4.0)),
        (See("image:right", ("text", "image:right")), KeyScale("image:left", "text:mug", 3.0)),
        (Weigh("image:left", "text", 2.0, Scope(Layers("cross", levels=1))), Hide("image:left", "text:mug")),
        (Hide("image:left", ("text", "image")),),
    ],
)
@pytest.mark.parametrize("masks", [True, False])
def test_the_model_computes_the_literal_formula(model: UNet2DConditionModel, edits: Any, masks: bool) -> None:
    program = AttentionProgram(edits)
    expected, _ = literal_forward(model, program, 2)
    assert not torch.allclose(expected, forward(model, 2), atol=1e-4)
    with attach(model, compiled_for(model, program, masks=masks)):
        assert torch.allclose(forward(model, 2), expected, atol=2e-5)


def test_edits_reach_the_layers_that_hold_their_groups(model: UNet2DConditionModel) -> None:
    compiled = compiled_for(model, AttentionProgram((Weigh("image:left", "text:mug", 3.0),)))
    assert {compiled.layers[k].kind for k in compiled.edited} == {"cross"}
    assert "cross 0-6" in compiled.lines()[0]
    nowhere = compiled_for(model, AttentionProgram((Weigh("text", "image", 3.0),)))
    assert nowhere.empty
    assert "never at work" in nowhere.lines()[0]


def test_taps_of_several_resolutions_meet_at_the_finest(model: UNet2DConditionModel) -> None:
    _, plain = literal_forward(model, AttentionProgram((Tap("all", "image:all", "text:mug"),)), 2)
    fine, coarse = LAYOUT.image(0), LAYOUT.image(1)
    spread = torch.from_numpy(coarse.seen_from(fine))
    expected = torch.stack([read[:, spread] if level else read for level, read in plain["all"]]).mean(0)
    tap = Tap("mug", "image:left", "text:mug")
    with attach(model, compiled_for(model, AttentionProgram((tap,)))) as attachment:
        assert torch.allclose(forward(model, 2), forward(build(), 2), atol=1e-5)
        read = attachment.taps["mug"]
    wanted = torch.from_numpy(fine.tokens("image:left"))
    assert read.shape == (2, int(wanted.sum()))
    assert torch.allclose(read, expected[:, wanted], atol=1e-6)
    assert {level for level, _ in plain["all"]} == {0, 1}


def test_a_group_may_be_told_by_a_tap(model: UNet2DConditionModel) -> None:
    late = PictureLayout(LAYOUT.text, {"image": SHAPES["image:all"]}, LAYOUT.size, CELL, frozenset({"image:found"}))
    weigh, tap = Weigh("image:found", "text:mug", 3.0), Tap("mug", "image", "text:mug")
    compiled = compile_program(AttentionProgram((weigh, tap)), late, layers=layers_of(model), num_steps=2)
    assert "waits for a group that is told later" in compiled.lines()[0]
    with attach(model, compiled) as attachment:
        assert torch.allclose(forward(model), forward(build()), atol=1e-5)
        read = attachment.taps["mug"][0]
        found = late.shape_of((read > read.median()).numpy())
        attachment.define({"image:found": found})
        edited = forward(model)
        with pytest.raises(CapriccioError, match="not announced"):
            attachment.define({"image:other": found})
    told = PictureLayout(LAYOUT.text, {"image:found": found}, LAYOUT.size, CELL)
    with attach(model, compile_program(AttentionProgram((weigh,)), told, layers=layers_of(model), num_steps=2)):
        assert torch.allclose(forward(model), edited, atol=1e-5)
    assert not torch.allclose(edited, forward(model), atol=1e-4)


def test_late_groups_of_a_joint_sequence_rest_until_they_are_told() -> None:
    layout = TokenLayout(6, {"a": np.arange(6) < 3}, late=frozenset({"b"}))
    layers = (LayerInfo("", "double", 0),)
    compiled = compile_program(AttentionProgram((See("a", "b"),)), layout, layers=layers, num_steps=1)
    assert compiled.form(0, 0) is None
    assert compiled.edited == (0,)
    assert compiled.defining({"b": np.arange(6) > 3}).form(0, 0) is not None
    with pytest.raises(CapriccioError, match="did you mean 'bb'"):
        TokenLayout(2, late=frozenset({"bb"})).tokens("b")


def test_states_are_remembered_as_the_layer_is_given_them(model: UNet2DConditionModel) -> None:
    program = AttentionProgram((Features("left", "image:left", Scope(Layers("self"), rows="positive")),))
    given: dict[str, Tensor] = {}
    for layer in layers_of(model):
        if layer.kind == "self":
            module = model.get_submodule(layer.name)
            module.register_forward_pre_hook(lambda m, args, name=layer.name: given.update({name: args[0]}))
    stock = forward(model, 2)
    with attach(model, compiled_for(model, program)) as attachment:
        for step in range(2):
            attachment.set(step=step, roles=("negative", "positive"))
            assert torch.allclose(forward(model, 2), stock, atol=1e-5)
        found = attachment.features["left"]
        assert set(found) == set(given)
        for layer in layers_of(model):
            if layer.kind == "self":
                left = torch.from_numpy(LAYOUT.image(layer.level).tokens("image:left"))
                assert torch.allclose(found[layer.name], given[layer.name][1:, left], atol=1e-5)
        attachment.clear_taps()
        assert attachment.features == {"left": {}}
    assert "states remembered" in compiled_for(model, program).lines()[0]


def test_taps_carry_gradients(model: UNet2DConditionModel) -> None:
    latents = torch.randn(1, 4, HEIGHT // CELL, WIDTH // CELL, requires_grad=True)
    with attach(model, compiled_for(model, AttentionProgram((Tap("t", "image:left", "text:mug"),)))) as attachment:
        model(latents, 500, encoder_hidden_states=torch.randn(1, TEXT, 32))
        attachment.taps["t"].sum().backward()
    assert latents.grad.abs().max() > 0


def test_fused_projections_are_honoured(model: UNet2DConditionModel) -> None:
    with attach(model, compiled_for(model)):
        separate = forward(model)
    model.fuse_qkv_projections()
    with attach(model, compiled_for(model)):
        assert torch.allclose(forward(model), separate, atol=1e-5)


def test_loras_stay_as_they_are(model: UNet2DConditionModel) -> None:
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    with_lora = forward(model)
    with attach(model, compiled_for(model)):
        edited = forward(model)
        model.disable_lora()
        assert not torch.allclose(forward(model), edited, atol=1e-4)
        model.enable_lora()
        assert torch.equal(forward(model), edited)
    assert torch.equal(forward(model), with_lora)


def pictured(count: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    return {"added_cond_kwargs": {"image_embeds": [torch.randn(1, count, 32, generator=generator)]}}


@pytest.mark.parametrize("masked", [False, True])
def test_ip_adapters_keep_working(model: UNet2DConditionModel, masked: bool) -> None:
    plain = forward(model)
    model._load_ip_adapter_weights([tiny.ip_adapter(model)], low_cpu_mem_usage=False)
    for name, processor in model.attn_processors.items():
        if "attn2" in name:
            processor.scale = [0.7]
    given = pictured(2 if masked else 1)
    if masked:
        areas = torch.zeros(1, 2, HEIGHT, WIDTH)
        areas[:, 0, :, :10], areas[:, 1, :, 10:] = 1, 1
        given["cross_attention_kwargs"] = {"ip_adapter_masks": [areas]}
    stock, keys = forward(model, **given), set(model.state_dict())
    assert not torch.allclose(stock, plain, atol=1e-4)
    found = list(model.attn_processors.values())
    with attach(model, compiled_for(model, AttentionProgram((Weigh("image:left", "text:mug", 3, POSITIVE),)))) as told:
        assert set(model.state_dict()) == keys
        told.set(step=0, roles=("negative",))
        assert torch.equal(forward(model, **given), stock)
    nearly = AttentionProgram((Weigh("image:left", "text:mug", 1 + 1e-9),))
    with attach(model, compiled_for(model, nearly)):
        assert torch.allclose(forward(model, **given), stock, atol=1e-5)
        for name, processor in model.attn_processors.items():
            if "attn2" in name:
                assert processor.scale == [0.7]
                processor.scale = [0.0]
        silent = forward(model, **given)
        assert not torch.allclose(silent, stock, atol=1e-4)
    assert torch.allclose(silent, plain, atol=1e-5)
    assert all(a is b for a, b in zip(found, model.attn_processors.values(), strict=True))


def test_a_program_that_was_dropped_is_told(model: UNet2DConditionModel) -> None:
    cross = AttentionProgram((Weigh("image:left", "text:mug", 2.0, POSITIVE),))
    attachment = attach(model, compiled_for(model, cross))
    model._load_ip_adapter_weights([tiny.ip_adapter(model)], low_cpu_mem_usage=False)
    with pytest.raises(CapriccioError, match="detach it first"):
        attachment.set(step=0, roles=("positive",))
    with pytest.warns(UserWarning, match="left as it is"):
        attachment.detach()
    own = AttentionProgram((Weigh("image:left", "image:right", 2.0),))
    with attach(build(), compiled_for(model, own)), pytest.raises(CapriccioError, match="detach it first"):
        UNetProcessor()


def test_what_cannot_work_together_is_refused_by_name(model: UNet2DConditionModel) -> None:
    with attach(model, compiled_for(model)):
        with pytest.raises(CapriccioError, match="add the two with"):
            attach(model, compiled_for(model))
        with pytest.raises(CapriccioError, match="attention_mask"):
            forward(model, encoder_attention_mask=torch.ones(1, TEXT, dtype=torch.bool))
    model.set_attention_slice(1)
    with pytest.raises(CapriccioError, match="disable_attention_slicing"):
        attach(model, compiled_for(model))
    model.set_attn_processor(AttnProcessor2_0())
    with attach(model, compiled_for(model)), pytest.raises(CapriccioError, match="the forward has 24 tokens"):
        model(torch.randn(1, 4, 4, 6), 1, encoder_hidden_states=torch.randn(1, TEXT, 32))


def test_compiling_breaks_no_graph(model: UNet2DConditionModel) -> None:
    program = AttentionProgram((Weigh("image:left", ("text:mug", "image:right"), 3.0, Scope(steps=Steps(1, 4))),))
    block = model.down_blocks[0].attentions[0].transformer_blocks[0]
    states, text = torch.randn(2, LAYOUT.image(0).length, 16), torch.randn(2, TEXT, 32)
    with attach(model, compiled_for(model, program)) as attachment, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._dynamo.reset()
        counter = CompileCounter()
        compiled = torch.compile(block, backend=counter, fullgraph=True)
        for step in range(3):
            attachment.set(step=step, roles=("negative", "positive"))
            expected = block(states, encoder_hidden_states=text)
            assert torch.allclose(compiled(states, encoder_hidden_states=text), expected, atol=1e-5)
    assert counter.frame_count == 2  # one without the edit, one with it
