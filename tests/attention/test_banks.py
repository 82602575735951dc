"""Banks: more keys and values, in the same softmax or in one of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from hypothesis import given, settings
from hypothesis import strategies as st
from test_compile import core, edit, layouts, maskless, names, random_qkv, relative
from torch import Tensor, nn

from capriccio.attention import (
    AttentionProgram,
    Bank,
    Bias,
    Features,
    Hide,
    LayerInfo,
    Layers,
    PictureLayout,
    Scope,
    See,
    Steps,
    Tap,
    TokenLayout,
    Tokens,
    Twin,
    Weigh,
    attach,
    choose_form,
    compile_program,
    layers_of,
    literal,
)
from capriccio.attention.layout import Attended, with_banks
from capriccio.errors import CapriccioError

SIDE, TEXT = 8, 5
SELF = Scope(Layers("self"))
CROSS = Scope(Layers("cross"))


def compare(edits: list[Any], layout: Attended, held: dict[str, tuple[Tensor, Tensor]], masks: bool = True) -> Any:
    """Compare the compiled form with the literal formula."""
    banks = {name: pair[0].shape[1] for name, pair in held.items()}
    joined = dict.fromkeys(edit.name for edit in edits if isinstance(edit, Bank) and edit.joint)
    query, _, _ = random_qkv(layout.queries.given)
    _, key, value = random_qkv(layout.keys.given)
    whole = with_banks(layout, {name: banks[name] for name in joined})
    expected, taps = literal(query, key, value, edits, whole, held)
    form = choose_form(edits, layout, masks, banks=banks)
    call = core if masks else maskless
    if form is None:
        assert relative(call(query, key, value, None), expected) <= 1e-5
        return None
    k, v = (torch.cat([x, *(held[name][i] for name in form.joined)], dim=1) for i, x in enumerate((key, value)))
    assert relative(form.run(query, k, v, call, held), expected) <= 1e-5
    for reading in form.readings:
        assert ((reading.read(query, k, call) - taps[reading.name]).abs() <= 1e-5).all()
    return form


def tokens_of(count: int, seed: int) -> tuple[Tensor, Tensor]:
    _, key, value = random_qkv(count, seed=seed)
    return key, value


edits_of_banks = (
    st.builds(Bank, st.sampled_from("rs"), names, st.just("joint"))
    | st.builds(Bank, st.sampled_from("rs"), names, st.just("own"), st.sampled_from([0.3, 1.0, -2.0]))
    | st.builds(Weigh, names, st.sampled_from(["r", "s", ("r", "a")]), st.sampled_from([0.0, 0.5, 3.0]))
    | st.builds(Bias, names, st.sampled_from(["r", "s"]), st.sampled_from([0.5, 3.0]))
    | st.builds(Hide, names, st.sampled_from(["r", ("s", "b")]))
    | st.builds(See, names, st.sampled_from(["r", ("s", "b")]))
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_compiled_equals_literal_with_banks(data: Any) -> None:
    layout = data.draw(layouts())
    held = {"r": tokens_of(3, 1), "s": tokens_of(7, 2)}
    edits = data.draw(st.lists(edit, max_size=3)) + data.draw(st.lists(edits_of_banks, min_size=1, max_size=4))
    joined = {one.name for one in edits if isinstance(one, Bank) and one.joint}
    edits = [one for one in edits if isinstance(one, Bank) or not ({*one.keys} & {"r", "s"} - joined)]
    if data.draw(st.booleans()):
        edits.append(Tap("t", "a", sorted(joined)[0] if joined else "b"))
    compare(edits, layout, held, data.draw(st.booleans()))


def test_a_bank_of_all_keys_again_changes_nothing() -> None:
    layout = TokenLayout(6, {"all": np.ones(6, bool)})
    query, key, value = random_qkv(6)
    form = choose_form([Bank("again", "all")], layout, banks={"again": 6})
    twice = [torch.cat([x, x], dim=1) for x in (key, value)]
    assert relative(form.run(query, *twice, core), core(query, key, value, None)) <= 1e-6


def test_a_joint_bank_dilutes_and_one_of_its_own_adds() -> None:
    layout = TokenLayout(6, {"all": np.ones(6, bool)})
    held = {"r": tokens_of(4, 3)}
    query, key, value = random_qkv(6)
    plain = core(query, key, value, None)
    own = choose_form([Bank("r", "all", "own", 0.3)], layout, banks={"r": 4})
    assert own.text.endswith("r in a call of its own, 1.00 x the work of plain attention") or "r in a call" in own.text
    found = core(query, *held["r"], None)
    torch.testing.assert_close(own.run(query, key, value, core, held), plain + 0.3 * found)


# --- on a U-Net ---


def build() -> Any:
    torch.manual_seed(0)
    return tiny.unet("sd15").requires_grad_(False)


@pytest.fixture
def model() -> Any:
    return build()


def layout_of(**banks: Any) -> PictureLayout:
    size = (SIDE * 2, SIDE * 2)
    left = np.zeros(size, bool)
    left[:, : size[1] // 2] = True
    shapes = {"image": np.ones(size, bool), "left": left}
    return PictureLayout(TokenLayout(TEXT, {"text": np.ones(TEXT, bool)}), shapes, size, 2, banks=banks)


def given_to(batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, 4, SIDE, SIDE, generator=generator)
    return latents, torch.tensor(500), torch.randn(batch, TEXT, 32, generator=generator)


def forward(model: Any, batch: int = 1) -> Tensor:
    latents, time, text = given_to(batch)
    return model(latents, time, encoder_hidden_states=text, return_dict=False)[0]


def compiled_for(model: Any, *edits: Any, num_steps: int = 4, **banks: Any) -> Any:
    return compile_program(AttentionProgram(edits), layout_of(**banks), layers=layers_of(model), num_steps=num_steps)


def widths(model: Any, kind: str) -> dict[str, int]:
    return {one.name: model.get_submodule(one.name).inner_dim for one in layers_of(model) if one.kind == kind}


def test_a_bank_of_a_model_s_own_states_changes_nothing(model: Any) -> None:
    """Reference features as keys and values of the same layers: the picture itself tells nothing new."""
    read = compiled_for(model, Features("mine", "image", SELF))
    with attach(model, read) as reader:
        plain = forward(model)
        states = reader.features["mine"]
    compiled = compiled_for(model, Bank("mine", "image", scope=SELF), mine=(SIDE * 2, SIDE * 2))
    with attach(model, compiled) as attachment:
        attachment.give("mine", Tokens(states))
        torch.testing.assert_close(forward(model), plain, rtol=1e-4, atol=1e-5)
        attachment.give("mine", Tokens({name: 2 * x for name, x in states.items()}))
        assert (forward(model) - plain).abs().max() > 1e-3


def test_an_own_bank_is_an_ip_adapter(model: Any) -> None:
    torch.manual_seed(1)
    cross = widths(model, "cross")
    to_k, to_v = ({name: nn.Linear(32, width, bias=False) for name, width in cross.items()} for _ in "kv")
    tokens = torch.randn(1, 3, 32)
    compiled = compiled_for(model, Bank("seen", "image", "own", 0.6, CROSS), seen=3)
    with torch.no_grad(), attach(model, compiled) as attachment:
        attachment.give("seen", Tokens(tokens, to_k, to_v))
        ours = forward(model)
    plain = dict(model.attn_processors)
    processors = dict(plain)
    for name, width in cross.items():
        stock = IPAdapterAttnProcessor2_0(width, 32, num_tokens=(3,), scale=[0.6])
        stock.to_k_ip[0], stock.to_v_ip[0] = to_k[name], to_v[name]
        processors[f"{name}.processor"] = stock
    model.set_attn_processor(processors)
    latents, time, text = given_to()
    with torch.no_grad():
        theirs = model(latents, time, encoder_hidden_states=(text, [tokens[:, None]]), return_dict=False)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("softmax", ["joint", "own"])
def test_rows_and_steps_outside_its_scope_are_stock(model: Any, softmax: Any) -> None:
    scope = Scope(Layers("self"), Steps(1, 3), ("positive",))
    compiled = compiled_for(model, Bank("r", "image", softmax, scope=scope), r=4)
    states = {name: torch.randn(1, 4, width) for name, width in widths(model, "self").items()}
    plain = forward(model, 2)
    with attach(model, compiled) as attachment:
        attachment.give("r", Tokens(states))
        attachment.set(step=0, roles=("negative", "positive"))
        assert torch.equal(forward(model, 2), plain)
        attachment.set(step=1, roles=("negative", "positive"))
        found = forward(model, 2)
    torch.testing.assert_close(found[0], plain[0], rtol=1e-4, atol=1e-5)
    assert (found[1] - plain[1]).abs().max() > 1e-3
    assert torch.equal(forward(model, 2), plain)


def test_one_row_for_all_is_that_row_for_each(model: Any) -> None:
    compiled = compiled_for(model, Bank("r", "left", scope=SELF), r=4)
    states = {name: torch.randn(1, 4, width) for name, width in widths(model, "self").items()}
    with attach(model, compiled) as attachment:
        attachment.give("r", Tokens(states))
        shared = forward(model, 3)
        attachment.give("r", Tokens({name: x.expand(3, -1, -1) for name, x in states.items()}))
        torch.testing.assert_close(forward(model, 3), shared)
        attachment.give("r", Tokens({name: x.expand(2, -1, -1) for name, x in states.items()}))
        with pytest.raises(CapriccioError, match="one row for all, or one for each"):
            forward(model, 3)


def test_a_bank_s_tokens_are_a_group_like_any_other(model: Any) -> None:
    """Hidden again, it is as if it were not there; weighed by nothing, it still takes its share of the softmax."""
    states = {name: torch.randn(1, 4, width) for name, width in widths(model, "self").items()}
    bank = Bank("r", "image", scope=SELF)

    def painted(*edits: Any) -> Tensor:
        with attach(model, compiled_for(model, *edits, r=4)) as attachment:
            attachment.give("r", Tokens(states))
            return forward(model)

    plain = forward(model)
    torch.testing.assert_close(painted(bank, Hide("image", "r")), plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(painted(bank, Bias("image", "r", 1e-30)), plain, rtol=1e-4, atol=1e-5)
    assert (painted(bank, Weigh("image", "r", 0.0)) - plain).abs().max() > 1e-3


def test_gradients_reach_the_bank_and_its_projections(model: Any) -> None:
    cross = widths(model, "cross")
    to_k, to_v = (nn.ModuleDict({n.replace(".", "_"): nn.Linear(32, w) for n, w in cross.items()}) for _ in "kv")
    kept = [{name: made[name.replace(".", "_")] for name in cross} for made in (to_k, to_v)]
    tokens = torch.randn(1, 3, 32, requires_grad=True)
    states = {n: torch.randn(1, 4, w, requires_grad=True) for n, w in widths(model, "self").items()}
    edits = Bank("seen", "left", "own", 0.6, CROSS), Bank("r", "image", scope=SELF)
    with attach(model, compiled_for(model, *edits, seen=3, r=4)) as attachment:
        attachment.give("seen", Tokens(tokens, *kept))
        attachment.give("r", Tokens(states))
        forward(model).square().mean().backward()
    learned = [tokens, *states.values(), *to_k.parameters(), *to_v.parameters()]
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in learned if x.dim() > 1)


def test_a_bank_shows_its_picture_at_the_resolution_of_each_layer() -> None:
    layout = layout_of(mug=(16, 32), words=7)
    sizes = [layout.bank("mug", LayerInfo("", "self", 0, level)) for level in (0, 1, 2)]
    assert sizes == [8 * 16, 4 * 8, 2 * 4]
    assert layout.bank("words", LayerInfo("", "cross", 0, 2)) == 7


def test_its_work_is_counted(model: Any) -> None:
    plain, joint, own = (
        compiled_for(model, *edits, r=(16, 16)).flops(2, 8)
        for edits in ((), (Bank("r", "image", scope=SELF),), (Bank("r", "image", "own", scope=SELF),))
    )
    layers = layers_of(model)
    for layer, before, *after in zip(layers, plain, joint, own, strict=True):
        assert after == [2 * before if layer.kind == "self" else before] * 2


def test_mistakes_are_sentences(model: Any) -> None:
    with pytest.raises(CapriccioError, match="did you mean 'mug'"):
        compiled_for(model, Bank("mgu", "image", scope=SELF), mug=3)
    with pytest.raises(CapriccioError, match="this layout has none"):
        compiled_for(model, Bank("mug", "image", "own", scope=SELF))
    with pytest.raises(CapriccioError, match="Weigh and Bias say how much"):
        Bank("mug", "image", "joint", 0.5)
    with pytest.raises(CapriccioError, match="give 'joint' or 'own'"):
        Bank("mug", "image", "shared")  # type: ignore[arg-type]
    compiled = compiled_for(model, Bank("mug", "image", scope=SELF), mug=3)
    with attach(model, compiled) as attachment:
        with pytest.raises(CapriccioError, match="nobody has told what it holds"):
            forward(model)
        with pytest.raises(CapriccioError, match="did you mean 'mug'"):
            attachment.give("mgu", Tokens(torch.zeros(1, 3, 32)))
    assert "bank image -> mug, in the same softmax" in str(compiled)


def test_a_bank_beside_twins() -> None:
    layout = TokenLayout(6, {"a": np.arange(6) < 3, "image": np.ones(6, bool)})
    twin = Twin("t", "image")
    held = {"r": tokens_of(4, 3)}
    for softmax in ("joint", "own"):
        edits = [See("t", ("t", "a")), See("image", "image"), Bank("r", ("a", "t"), softmax)]
        compare(edits, layout.with_twins([twin]), held)


def test_flux_refuses_banks() -> None:
    transformer = tiny.transformer()
    groups = {"image": np.arange(9) > 4}
    program = AttentionProgram((Bank("mug", "image"),))
    compiled = compile_program(
        program, TokenLayout(9, groups, banks={"mug": 3}), layers=layers_of(transformer), num_steps=2
    )
    with pytest.raises(CapriccioError, match="load an IP-Adapter of diffusers"):
        attach(transformer, compiled)
