"""Programs on diffusers models: stock to the last bit without an edit, exact with one, and gone without a trace."""

from __future__ import annotations

import itertools
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig, FluxTransformer2DModel
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, FluxIPAdapterAttnProcessor
from peft import LoraConfig
from torch._dynamo.testing import CompileCounter

from capriccio.attention import (
    AttentionProgram,
    Bias,
    Features,
    Hide,
    Layers,
    Scope,
    See,
    Steps,
    Tap,
    TokenLayout,
    Weigh,
    attach,
    compile_program,
    layers_of,
    literal,
)
from capriccio.attention import processors as processors_module
from capriccio.errors import CapriccioError

TEXT, HEIGHT, WIDTH = 6, 4, 8
COLUMNS = np.tile(np.arange(WIDTH), HEIGHT)
SIDES = {"left": COLUMNS < WIDTH // 2, "right": COLUMNS >= WIDTH // 2}
NO_TEXT = np.zeros(TEXT, bool)
LAYOUT = TokenLayout(
    TEXT + HEIGHT * WIDTH,
    {"text": np.arange(TEXT + HEIGHT * WIDTH) < TEXT}
    | {f"image:{name}": np.concatenate([NO_TEXT, side]) for name, side in SIDES.items()},
)
DIPTYCH = AttentionProgram((Weigh("image:right", "image:left", 1.3),))
POSITIVE = Scope(rows=("positive",))


def build() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=8, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), **sizes
    )
    return model.eval().requires_grad_(False)


@pytest.fixture
def model() -> FluxTransformer2DModel:
    return build()


def inputs(batch: int = 1, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return {
        "hidden_states": torch.randn(batch, HEIGHT * WIDTH, 8, generator=generator),
        "encoder_hidden_states": torch.randn(batch, TEXT, 32, generator=generator),
        "pooled_projections": torch.randn(batch, 32, generator=generator),
        "timestep": torch.full((batch,), 0.5),
        "img_ids": torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float(),
        "txt_ids": torch.zeros(TEXT, 3),
    }


def forward(model, batch: int = 1, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(batch), return_dict=False, **kwargs)[0]


def compiled_for(model, program=DIPTYCH, num_steps: int = 4, **kwargs):
    return compile_program(program, LAYOUT, layers=layers_of(model), num_steps=num_steps, **kwargs)


def literal_forward(model, edits, monkeypatch, batch: int = 1, layers=lambda number: True) -> torch.Tensor:
    """Run the stock model with the literal formula as the attention kernel of the chosen layers."""
    home = "diffusers.models.transformers.transformer_flux.dispatch_attention_fn"
    stock, count = dispatch_attention_fn, itertools.count()

    def kernel(query, key, value, **kwargs):
        chosen = edits if layers(next(count)) else ()
        return literal(query, key, value, chosen, LAYOUT)[0] if chosen else stock(query, key, value, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(home, kernel)
        return forward(model, batch)


def give_ip_adapter(model) -> dict:
    torch.manual_seed(1)
    for block in model.transformer_blocks:
        block.attn.set_processor(FluxIPAdapterAttnProcessor(32, 32, num_tokens=(4,), scale=0.7).requires_grad_(False))
    states = torch.randn(1, 1, 4, 32)
    return {"joint_attention_kwargs": {"ip_hidden_states": [states]}}


def test_layers_are_listed_by_kind(model):
    assert [(layer.kind, layer.index) for layer in layers_of(model)] == [
        ("double", 0),
        ("double", 1),
        ("single", 0),
        ("single", 1),
    ]
    assert layers_of(model)[2].name == "single_transformer_blocks.0.attn"
    with pytest.raises(CapriccioError, match="Linear has no attention layers"):
        layers_of(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("program", [AttentionProgram(), AttentionProgram((Weigh("image:right", "image:left", 1.0),))])
def test_neutral_programs_attach_nothing_and_are_bit_equal(model, program, batch):
    stock, found = forward(model, batch), list(model.attn_processors.values())
    with attach(model, compiled_for(model, program)) as attachment:
        attachment.set(step=0, roles=("positive",) * batch)
        assert all(a is b for a, b in zip(found, model.attn_processors.values(), strict=True))
        assert torch.equal(forward(model, batch), stock)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_outside_its_scope_an_attached_program_is_bit_equal(model, batch):
    stock = forward(model, batch)
    program = AttentionProgram((Weigh("image:right", "image:left", 1.3, Scope(steps=Steps(0, 2), rows=("positive",))),))
    with attach(model, compiled_for(model, program)) as attachment:
        attachment.set(step=0, roles=("negative",) * batch)
        assert torch.equal(forward(model, batch), stock)
        attachment.set(step=2, roles=("positive",) * batch)
        assert torch.equal(forward(model, batch), stock)
        attachment.set(step=1, roles=("positive",) * batch)
        assert not torch.equal(forward(model, batch), stock)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(
    "edits",
    [
        DIPTYCH.edits,
        (Hide("text", "image:left"), Bias("image", "text", 3.0)),
        (See("image:right", "image:right"), Weigh("text", "image", 0.5)),
        (Hide("image:right", ("text", "image")),),
    ],
)
def test_the_model_computes_the_literal_formula(model, monkeypatch, edits, batch):
    expected = literal_forward(model, edits, monkeypatch, batch)
    assert not torch.allclose(expected, forward(model, batch), atol=1e-4)
    for masks in (True, False):
        with attach(model, compiled_for(model, AttentionProgram(edits), masks=masks)):
            assert torch.allclose(forward(model, batch), expected, atol=2e-5)


@pytest.mark.parametrize("kind", ["double", "single"])
def test_layer_scopes_reach_their_blocks_alone(model, monkeypatch, kind):
    layers = Layers((kind,), start=1)
    program = AttentionProgram((Weigh("image:right", "image:left", 4.0, Scope(layers)),))
    chosen = {"double": 1, "single": 3}[kind]
    with attach(model, compiled_for(model, program)):
        ours = [type(p) is processors_module.FluxProcessor for p in model.attn_processors.values()]
        assert [i for i, is_ours in enumerate(ours) if is_ours] == [chosen]
        result = forward(model)
    assert torch.allclose(result, literal_forward(model, program.edits, monkeypatch, layers=chosen.__eq__), atol=2e-5)


def test_rows_are_addressed_by_role(model):
    program = AttentionProgram((Weigh("image:right", "image:left", 3.0, POSITIVE),))
    stock = forward(model, 3)
    with attach(model, compiled_for(model)) as attachment:
        pass
    with attach(model, compiled_for(model, AttentionProgram((Weigh("image:right", "image:left", 3.0),)))):
        edited = forward(model, 3)
    with attach(model, compiled_for(model, program)) as attachment:
        for roles in itertools.product(("positive", "negative"), repeat=3):
            attachment.set(step=0, roles=roles)
            result = forward(model, 3)
            for row, role in enumerate(roles):
                assert torch.allclose(result[row], (edited if role == "positive" else stock)[row], atol=2e-5)


def test_a_batch_of_two_equals_two_singles(model):
    with attach(model, compiled_for(model)):
        pair = forward(model, 2)
        halves = [{k: v[i : i + 1] if v.shape[0] == 2 else v for k, v in inputs(2).items()} for i in range(2)]
        with torch.no_grad():
            singles = torch.cat([model(**half, return_dict=False)[0] for half in halves])
    assert torch.allclose(pair, singles, atol=1e-5)


def test_detaching_in_any_order_restores_the_same_objects(model):
    programs = [
        AttentionProgram((Weigh("image:right", "image:left", 2.0, Scope(Layers(kind))),))
        for kind in ("double", "single")
    ]
    stock, found = forward(model), list(model.attn_processors.values())
    for order in ([0, 1], [1, 0]):
        attachments = [attach(model, compiled_for(model, program)) for program in programs]
        assert not torch.equal(forward(model), stock)
        for index in order:
            attachments[index].detach()
            attachments[index].detach()
        assert all(a is b for a, b in zip(found, model.attn_processors.values(), strict=True))
        assert torch.equal(forward(model), stock)


def test_an_error_inside_still_restores(model):
    found, keys = list(model.attn_processors.values()), set(model.state_dict())
    with pytest.raises(ZeroDivisionError), attach(model, compiled_for(model)):
        raise ZeroDivisionError
    assert all(a is b for a, b in zip(found, model.attn_processors.values(), strict=True))
    assert set(model.state_dict()) == keys


def test_two_programs_on_the_same_layers_are_refused_and_their_sum_is_not(model):
    compiled = compiled_for(model)
    with attach(model, compiled), pytest.raises(CapriccioError, match="add the two with"):
        attach(model, compiled)
    with attach(model, compiled_for(model, DIPTYCH + DIPTYCH)):
        twice = forward(model)
    with attach(model, compiled_for(model, AttentionProgram((Weigh("image:right", "image:left", 1.69),)))):
        assert torch.allclose(forward(model), twice, atol=1e-5)


def test_a_processor_replaced_meanwhile_is_left_alone(model):
    attachment = attach(model, compiled_for(model))
    other = FluxAttnProcessor()
    model.transformer_blocks[0].attn.set_processor(other)
    with pytest.warns(UserWarning, match="left as it is"):
        attachment.detach()
    assert model.transformer_blocks[0].attn.processor is other
    assert type(model.transformer_blocks[1].attn.processor) is FluxAttnProcessor


def test_fused_projections_are_honoured(model):
    with attach(model, compiled_for(model)):
        separate = forward(model)
        model.fuse_qkv_projections()
        fused = forward(model)
    assert torch.allclose(separate, fused, atol=1e-5)


def test_ip_adapters_keep_working_under_their_own_names(model):
    kwargs = give_ip_adapter(model)
    stock, keys = forward(model, **kwargs), set(model.state_dict())
    found = list(model.attn_processors.values())
    outside = AttentionProgram((Weigh("image:right", "image:left", 2.0, POSITIVE),))
    with attach(model, compiled_for(model, outside)) as attachment:
        assert set(model.state_dict()) == keys
        attachment.set(step=0, roles=("negative",))
        assert torch.equal(forward(model, **kwargs), stock)
    one_double = AttentionProgram((Weigh("image:right", "image:left", 1 + 1e-9, Scope(Layers("double"))),))
    with attach(model, compiled_for(model, one_double)):
        assert torch.allclose(forward(model, **kwargs), stock, atol=1e-5)
        for processor in list(model.attn_processors.values())[:2]:
            assert processor.scale == [0.7]
            processor.scale = [0.0]
        assert not torch.allclose(forward(model, **kwargs), stock, atol=1e-4)
    assert all(a is b for a, b in zip(found, model.attn_processors.values(), strict=True))
    assert found[0].scale == [0.0]


def test_ip_adapters_cannot_come_while_a_program_is_attached(model):
    with attach(model, compiled_for(model)), pytest.raises(CapriccioError, match="detach it first"):
        type(model.single_transformer_blocks[0].attn.processor)()


def test_loras_stay_as_they_are(model):
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    with attach(model, compiled_for(model)):
        edited = forward(model)
        model.disable_lora()
        assert not torch.allclose(forward(model), edited, atol=1e-4)
        model.enable_lora()
        assert torch.equal(forward(model), edited)


def test_taps_average_heads_layers_and_steps_and_keep_roles_apart(model):
    tap = Tap("right sees left", "image:right", "image:left")
    program = AttentionProgram(
        (tap, Tap("words", "image", "text", Scope(Layers("single"), rows=("positive",)), each=True))
    )
    stock = forward(model, 2)
    with attach(model, compiled_for(model, program)) as attachment:
        for step in range(2):
            attachment.set(step=step, roles=("positive", "negative"))
            assert torch.allclose(forward(model, 2), stock, atol=1e-5)
        taps = attachment.taps
        assert taps["right sees left"].shape == (2, 16)
        assert taps["words"].shape == (1, 32, TEXT)
        assert taps["right sees left"].min() > 0
        assert taps["words"].sum(-1).max() < 1
        together = taps["right sees left"]
        attachment.clear_taps()
        assert attachment.taps == {}
        for row, role in enumerate(("positive", "negative")):
            attachment.set(step=0, roles=(role,))
            one = {k: v[row : row + 1] if v.shape[0] == 2 else v for k, v in inputs(2).items()}
            with torch.no_grad():
                model(**one)
        assert torch.allclose(attachment.taps["right sees left"], together, atol=1e-6)


def test_states_are_remembered_in_the_order_of_the_joint_sequence(model):
    attn, given = model.transformer_blocks[0].attn, {}
    attn.register_forward_pre_hook(lambda module, args, named: given.update(named), with_kwargs=True)
    program = AttentionProgram((Features("some", ("text", "image:right"), Scope(Layers("double", stop=1))),))
    with attach(model, compiled_for(model, program)) as attachment:
        forward(model, 2)
        (found,) = attachment.features["some"].values()
    states = torch.cat([given["encoder_hidden_states"], given["hidden_states"]], dim=1)
    assert torch.equal(found, states[:, torch.from_numpy(LAYOUT.tokens(("text", "image:right")))])


def test_taps_work_without_set_and_carry_gradients(model):
    program = AttentionProgram((Tap("t", "image:right", "image:left"),))
    own = inputs(2)
    own["hidden_states"].requires_grad_(True)
    with attach(model, compiled_for(model, program)) as attachment:
        model(**own)
        attachment.taps["t"].sum().backward()
    assert attachment.taps["t"].shape == (2, 16)
    assert own["hidden_states"].grad.abs().max() > 0


def test_forwards_that_nobody_described_are_refused(model):
    program = AttentionProgram((Weigh("image:right", "image:left", 1.3, POSITIVE),))
    with attach(model, compiled_for(model, program)) as attachment:
        with pytest.raises(CapriccioError, match=r"call attachment\.set"):
            forward(model)
        attachment.set(step=0, roles=("positive",))
        with pytest.raises(CapriccioError, match="2 batch rows"):
            forward(model, 2)
        with pytest.raises(CapriccioError, match="steps 0 to 3"):
            attachment.set(step=4, roles=("positive",))


def test_another_number_of_tokens_is_refused(model):
    layout = TokenLayout(9, {"a": np.arange(9) < 4})
    program = AttentionProgram((Weigh("a", "a", 2.0),))
    compiled = compile_program(program, layout, layers=layers_of(model), num_steps=1)
    with attach(model, compiled), pytest.raises(CapriccioError, match="38 tokens"):
        forward(model)


def test_an_attention_mask_beside_a_program_is_refused(model):
    mask = torch.ones(1, 1, 38, 38, dtype=torch.bool)
    with attach(model, compiled_for(model)), pytest.raises(CapriccioError, match="attention_mask"):
        forward(model, joint_attention_kwargs={"attention_mask": mask})


class SlicedAttnProcessor(FluxAttnProcessor):
    pass


def test_what_cannot_work_together_is_refused_by_name(model):
    compiled, attn = compiled_for(model), model.transformer_blocks[0].attn
    other = FluxTransformer2DModel(
        num_layers=1, num_single_layers=0, num_attention_heads=1, axes_dims_rope=(32, 48, 48)
    )
    with pytest.raises(CapriccioError, match="layers_of"):
        attach(other, compiled)
    stock = attn.processor
    attn.set_processor(SlicedAttnProcessor())
    with pytest.raises(CapriccioError, match="disable_attention_slicing"):
        attach(model, compiled)
    attn.set_processor(stock)
    stock._parallel_config = SimpleNamespace(context_parallel_config=SimpleNamespace(ring_degree=2))
    with pytest.raises(CapriccioError, match="context parallelism"):
        attach(model, compiled)


def test_kernels_without_masks_are_refused_where_a_mask_is_needed(model):
    bias = AttentionProgram((Bias("image:right", "image:left", 1.3),))
    for processor in model.attn_processors.values():
        processor._attention_backend = AttentionBackendName.SAGE
    with pytest.raises(CapriccioError, match="'sage' takes none; compile it with masks=False"):
        attach(model, compiled_for(model, bias))
    attach(model, compiled_for(model, bias, masks=False)).detach()
    attach(model, compiled_for(model)).detach()


def test_taps_are_refused_where_layers_are_skipped_or_run_twice(model):
    compiled = compiled_for(model, AttentionProgram((Tap("t", "image:right", "image:left"),)))
    model.enable_gradient_checkpointing()
    with pytest.raises(CapriccioError, match="gradient checkpointing"):
        attach(model, compiled)
    model.disable_gradient_checkpointing()
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(CapriccioError, match="disable_cache"):
        attach(model, compiled)


def test_the_backend_chosen_while_attached_is_used_and_stays(model):
    with attach(model, compiled_for(model)):
        edited = forward(model)
        processor = model.transformer_blocks[0].attn.processor
        processor._attention_backend = AttentionBackendName._NATIVE_MATH
        assert torch.allclose(forward(model), edited, atol=1e-5)
        processor._parallel_config = None
    assert model.transformer_blocks[0].attn.processor._attention_backend is AttentionBackendName._NATIVE_MATH


def test_the_device_of_the_forward_is_followed(model):
    program = AttentionProgram((Weigh("image:right", "image:left", 2.0, POSITIVE),))
    with attach(model, compiled_for(model, program)) as attachment:
        attachment.set(step=0, roles=("positive", "negative", "positive"))
        slot = model.transformer_blocks[0].attn.processor.slot
        meta = torch.empty(3, LAYOUT.length, 2, 16, device="meta")
        out = slot.attend(meta, meta, meta, lambda q, k, v, mask: q)
        assert out.device.type == "meta"
        assert slot.parts[0].rows.device.type == "meta"
    model._hf_hook = SimpleNamespace(execution_device="meta")
    with attach(model, compiled_for(model)):
        assert model.transformer_blocks[0].attn.processor.slot.device.type == "meta"
        forward(model)


def test_compiling_breaks_no_graph(model):
    program = AttentionProgram((Weigh("image:right", "image:left", 1.3, Scope(steps=Steps(1, 4))),))
    with attach(model, compiled_for(model, program)) as attachment, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._dynamo.reset()
        counter = CompileCounter()
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        for step in range(4):
            attachment.set(step=step, roles=("positive", "negative"))
            assert torch.allclose(forward(compiled, 2), forward(model, 2), atol=1e-5)
    assert counter.frame_count == 2  # one without the edit, one with it


def test_programs_attach_to_compiled_models(model):
    compiled = torch.compile(model, backend="eager")
    assert layers_of(compiled) == layers_of(model)
    with attach(compiled, compiled_for(compiled)):
        assert type(model.transformer_blocks[0].attn.processor) is processors_module.FluxProcessor
    model.compile_repeated_blocks(backend="eager")
    assert layers_of(model) == layers_of(build())
