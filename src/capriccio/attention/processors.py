"""Attention programs on diffusers models: install, run, restore.

One thin processor class for each interface family of diffusers; what they share runs on `Form`. A layer's state is a
slot of its own, so that nothing travels through keyword arguments, and a layer without an edit at work calls the
processor it found, which makes it the stock layer to the last bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import (
    FluxAttention,
    FluxAttnProcessor,
    FluxIPAdapterAttnProcessor,
)
from torch import Tensor, nn

from capriccio.attention.compile import CompiledProgram
from capriccio.attention.forms import Core, Form, Index, put, take
from capriccio.attention.program import LayerInfo
from capriccio.attention.taps import Recorder
from capriccio.errors import CapriccioError

# Backends of diffusers that honour a mask over queries and keys; the others raise, or reduce it to a key mask.
MASK_BACKENDS = {"native", "_native_cudnn", "_native_efficient", "_native_math", "_native_npu", "flex", "xformers"}


@dataclass(frozen=True, eq=False)
class Part:
    """Batch rows that run the same form.

    Attributes:
        rows: Their positions; ``None`` is the whole batch.
        names: For the taps, one for each row; ``None`` counts them.
        form: What they run; ``None`` is the stock call.
    """

    rows: Index | None
    names: tuple[Hashable, ...] | None
    form: Form | None


class Slot:
    """The state of one layer: what its rows run in the coming forward.

    Attributes:
        told: Whether the coming forward is known, from `Attachment.set` or because all forwards are alike.
        parts: Parts of the batch; empty for the stock layer.
        length: Tokens the forms were compiled for.
        num_rows: Batch rows expected, or ``None`` for any number.
        recorders: Of the taps, by name.
        device: Where the parts are.
        move: Brings the parts to another device.
    """

    def __init__(
        self, length: int, recorders: dict[str, Recorder], device: torch.device, move: Callable[[torch.device], None]
    ) -> None:
        self.told = False
        self.parts: tuple[Part, ...] = ()
        self.length = length
        self.num_rows: int | None = None
        self.recorders = recorders
        self.device = device
        self.move = move

    def expect(self, num_rows: int) -> None:
        """Refuse a forward whose rows nobody has named."""
        if not self.told:
            raise CapriccioError(
                "the attention program has edits for certain steps or rows, but no step was given; call "
                "attachment.set(step=..., roles=...) before each forward."
            )
        if self.num_rows not in (None, num_rows):
            raise CapriccioError(
                f"the forward has {num_rows} batch rows, but attachment.set received {self.num_rows} roles; give one "
                "role for each row."
            )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, core: Core) -> Tensor:
        """Return the edited attention (B, S, H, D) and record the taps."""
        if query.shape[1] != self.length:
            raise CapriccioError(
                f"the forward has {query.shape[1]} tokens, but the attention program was compiled for {self.length}; "
                "compile it with the token layout of this canvas and prompt length."
            )
        if query.device != self.device:
            self.move(query.device)
        if len(self.parts) == 1 and self.parts[0].rows is None:
            return self._run(self.parts[0], query, key, value, core)
        out = torch.empty_like(query)
        for part in self.parts:
            q, k, v = (take(x, part.rows, dim=0) for x in (query, key, value))
            put(out, part.rows, self._run(part, q, k, v, core), dim=0)
        return out

    def _run(self, part: Part, query: Tensor, key: Tensor, value: Tensor, core: Core) -> Tensor:
        if part.form is None:
            return core(query, key, value, None)
        for reading in part.form.readings:
            names = range(query.shape[0]) if part.names is None else part.names
            self.recorders[reading.name].add(names, reading.read(query, key, core))
        return part.form.run(query, key, value, core)


class FluxProcessor(nn.Module):
    """Runs an attention program in the double and single blocks of FLUX-like transformers.

    Stands in for the processor it found, ``inner``, whose backend, parallel configuration, IP-Adapter weights and
    scales stay its own: they keep their names in the state dict, and changes made meanwhile survive the restore.

    Args:
        inner: The processor found.
        slot: State of this layer.
    """

    inner: FluxAttnProcessor | FluxIPAdapterAttnProcessor
    to_k_ip: nn.ModuleList
    to_v_ip: nn.ModuleList

    def __init__(self, inner: FluxAttnProcessor | FluxIPAdapterAttnProcessor | None = None, slot: Slot | None = None):
        super().__init__()
        if inner is None or slot is None:
            # diffusers makes new processors with no arguments when an IP-Adapter comes or goes.
            raise CapriccioError(
                "an IP-Adapter was loaded or unloaded while an attention program is attached, but that would drop the "
                "program; detach it first and attach it again afterwards."
            )
        # Kept out of the module tree, so that the children below keep the names they have in the stock state dict.
        object.__setattr__(self, "inner", inner)
        self.slot = slot
        for name, child in inner.named_children() if isinstance(inner, nn.Module) else ():
            self.add_module(name, child)

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        ip_hidden_states: Any = None,
        ip_adapter_masks: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Attend; names and order of the arguments, and the results, are those of diffusers' processors."""
        self.slot.expect(hidden_states.shape[0])
        has_ip = isinstance(self.inner, FluxIPAdapterAttnProcessor)
        if not self.slot.parts:
            extra = (ip_hidden_states, ip_adapter_masks) if has_ip else ()
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb, *extra)
        if attention_mask is not None:
            raise CapriccioError(
                "the forward received an attention_mask while an attention program is attached, but the two would "
                "have to be one; say it with See and Hide edits instead."
            )
        query, key, value = image = _image_stream(attn, hidden_states)
        num_text = 0
        if encoder_hidden_states is not None:
            num_text = encoder_hidden_states.shape[1]
            text = _text_stream(attn, encoder_hidden_states)
            query, key, value = (torch.cat(pair, dim=1) for pair in zip(text, image, strict=True))
        if image_rotary_emb is not None:
            query, key = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (query, key))
        joint = self.slot.attend(query, key, value, self._core).flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return joint
        text_out = attn.to_add_out(joint[:, :num_text].contiguous())
        image_out = attn.to_out[1](attn.to_out[0](joint[:, num_text:].contiguous()))
        if not has_ip:
            return image_out, text_out
        return image_out, text_out, self._ip_adapters(attn, image[0], ip_hidden_states)

    def _core(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return dispatch_attention_fn(
            query, key, value, attn_mask=mask, backend=self._attention_backend, parallel_config=self._parallel_config
        )

    def _ip_adapters(self, attn: FluxAttention, query: Tensor, tokens: Sequence[Tensor]) -> Tensor:
        """Attend from the image queries, before rotation, to the tokens of each IP-Adapter; sum their outputs."""
        total = torch.zeros_like(query.flatten(2, 3))
        for states, scale, to_k, to_v in zip(tokens, self.inner.scale, self.to_k_ip, self.to_v_ip, strict=False):
            key, value = (linear(states).unflatten(-1, (-1, attn.head_dim)) for linear in (to_k, to_v))
            key, value = (x.reshape(query.shape[0], -1, *x.shape[-2:]) for x in (key, value))
            total = total + scale * self._core(query, key, value, None).flatten(2, 3).to(query.dtype)
        return total

    @property
    def _attention_backend(self) -> Any:
        return self.inner._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.inner._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return self.inner._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self.inner._parallel_config = config

    @property
    def scale(self) -> list[float]:
        """Scales of the IP-Adapters."""
        return self.inner.scale

    @scale.setter
    def scale(self, scale: list[float]) -> None:
        self.inner.scale = scale


def _image_stream(attn: FluxAttention, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if attn.fused_projections:
        flat = attn.to_qkv(states).chunk(3, dim=-1)
    else:
        flat = attn.to_q(states), attn.to_k(states), attn.to_v(states)
    query, key, value = (x.unflatten(-1, (-1, attn.head_dim)) for x in flat)
    return attn.norm_q(query), attn.norm_k(key), value


def _text_stream(attn: FluxAttention, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if attn.fused_projections:
        flat = attn.to_added_qkv(states).chunk(3, dim=-1)
    else:
        flat = attn.add_q_proj(states), attn.add_k_proj(states), attn.add_v_proj(states)
    query, key, value = (x.unflatten(-1, (-1, attn.head_dim)) for x in flat)
    return attn.norm_added_q(query), attn.norm_added_k(key), value


@dataclass(frozen=True)
class Family:
    """One interface family of diffusers.

    Attributes:
        processor: Our class for it.
        stock: The processors that it can stand in for.
        kind: The kind of layer that an attention module is.
    """

    processor: type
    stock: tuple[type, ...]
    kind: Callable[[nn.Module], str]


FAMILIES: dict[type, Family] = {
    FluxAttention: Family(
        FluxProcessor,
        (FluxAttnProcessor, FluxIPAdapterAttnProcessor),
        lambda attn: "single" if attn.added_kv_proj_dim is None else "double",
    ),
}
"""Attention module class -> its family; a family is added as one line and one processor class."""


def layers_of(model: nn.Module) -> tuple[LayerInfo, ...]:
    """List the attention layers of a diffusers model, in the order of its modules.

    Raises:
        CapriccioError: If the model has none of a family known here.
    """
    counts: dict[str, int] = {}
    layers = []
    for name, module in _attentions(model).items():
        kind = FAMILIES[type(module)].kind(module)
        layers.append(LayerInfo(name, kind, counts.get(kind, 0)))
        counts[kind] = counts.get(kind, 0) + 1
    if not layers:
        known = ", ".join(family.__name__ for family in FAMILIES)
        raise CapriccioError(
            f"{type(model).__name__} has no attention layers that an attention program can edit; expected {known}."
        )
    return tuple(layers)


def _attentions(model: nn.Module) -> dict[str, Any]:
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps
    modules = {name.replace("._orig_mod", ""): module for name, module in model.named_modules()}
    return {name: module for name, module in modules.items() if type(module) in FAMILIES}


class Attachment:
    """An attention program at work on a model, until `detach` or the end of the ``with`` block.

    Args:
        model: A diffusers transformer.
        compiled: The program, compiled for ``layers_of(model)``.
    """

    def __init__(self, model: nn.Module, compiled: CompiledProgram) -> None:
        self.compiled = compiled
        self._device = _device_of(model)
        self._recorders = {name: Recorder() for name in compiled.taps}
        self._forms: dict[int, Form] = {}
        self._parts: dict[Hashable, tuple[Part, ...]] = {}
        self._slots: dict[int, Slot] = {}
        self._found: list[tuple[Any, Any, Any]] = []
        modules = _attentions(model)
        _check(model, modules, compiled)
        for position in compiled.edited:
            self._install(position, modules[compiled.layers[position].name])
        if compiled.constant:
            self._set(0, None)

    def _install(self, position: int, module: Any) -> None:
        slot = Slot(self.compiled.layout.length, self._recorders, self._device, self._move)
        found = module.processor
        ours = FAMILIES[type(module)].processor(found, slot)
        module.set_processor(ours)
        self._slots[position] = slot
        self._found.append((module, ours, found))

    def set(self, *, step: int, roles: Sequence[str]) -> None:
        """Say what the coming forward is.

        Args:
            step: Index of the denoising step, from 0.
            roles: The role of each batch row, such as ``("negative", "positive")``.

        Raises:
            CapriccioError: If the step is outside the run.
        """
        if not 0 <= step < self.compiled.num_steps:
            raise CapriccioError(
                f"attachment.set received step {step}, but the program was compiled for steps 0 to "
                f"{self.compiled.num_steps - 1}; compile it for the number of steps of this run."
            )
        self._set(step, tuple(roles))

    def _move(self, device: torch.device) -> None:
        # Offloading leaves the weights elsewhere than where they work, so the first forward may tell better.
        self._device = device
        self._forms.clear()
        self._parts.clear()
        self._set(*self._now)

    def _set(self, step: int, roles: tuple[str, ...] | None) -> None:
        self._now = step, roles
        for position, slot in self._slots.items():
            actives = tuple(self.compiled.active(position, step, role) for role in roles or (None,))
            if (actives, roles) not in self._parts:
                self._parts[actives, roles] = self._divide(actives, roles)
            slot.told = True
            slot.parts = self._parts[actives, roles]
            slot.num_rows = None if roles is None else len(roles)
            slot.device = self._device

    def _divide(self, actives: tuple[tuple[int, ...], ...], roles: tuple[str, ...] | None) -> tuple[Part, ...]:
        """Divide the batch into rows of equal form; nothing at all where every row runs the stock call."""
        if all(self.compiled.forms[active] is None for active in actives):
            return ()
        names = None if roles is None else tuple((role, roles[:i].count(role)) for i, role in enumerate(roles))
        parts = []
        for active in dict.fromkeys(actives):
            rows = [i for i, other in enumerate(actives) if other == active]
            whole = len(rows) == len(actives)
            own = None if names is None else tuple(names[i] for i in rows)
            parts.append(Part(None if whole else self._rows(rows), own, self._form(active)))
        return tuple(parts)

    def _rows(self, rows: list[int]) -> Index:
        contiguous = rows[-1] - rows[0] == len(rows) - 1
        return slice(rows[0], rows[-1] + 1) if contiguous else torch.tensor(rows, device=self._device)

    def _form(self, active: tuple[int, ...]) -> Form | None:
        form = self.compiled.forms[active]
        if form is not None and id(form) not in self._forms:
            self._forms[id(form)] = form.to(self._device)
        return form and self._forms[id(form)]

    @property
    def taps(self) -> dict[str, Tensor]:
        """Readings so far by name: (rows, queries) or (rows, queries, columns), rows as they first came."""
        return {name: recorder.mean() for name, recorder in self._recorders.items() if recorder.totals}

    def clear_taps(self) -> None:
        """Forget the readings so far."""
        for recorder in self._recorders.values():
            recorder.clear()

    def detach(self) -> None:
        """Put back the very processor objects that were found; a second time does nothing."""
        for module, ours, found in self._found:
            if module.processor is ours:
                module.set_processor(found)
            else:
                warnings.warn(
                    "an attention processor was replaced while an attention program was attached; it is left as it is",
                    stacklevel=2,
                )
        self._found.clear()
        self._slots.clear()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()


def attach(model: nn.Module, compiled: CompiledProgram) -> Attachment:
    """Install a compiled program on a diffusers model; nothing is touched where it changes nothing.

    Use it as ``with attach(model, compiled) as attachment:``, and call `Attachment.set` before each forward (a
    program for all steps and rows works without).

    Raises:
        CapriccioError: If the program was compiled for another model, or cannot work together with what is set up
            there: another attachment, unknown processors, context parallelism, kernels without masks, caches.
    """
    return Attachment(model, compiled)


def _device_of(model: nn.Module) -> torch.device:
    hook = getattr(model, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return torch.device(device) if device is not None else next(model.parameters()).device


def _check(model: nn.Module, modules: dict[str, Any], compiled: CompiledProgram) -> None:
    if [layer.name for layer in compiled.layers] != list(modules):
        raise CapriccioError(
            f"the attention program was compiled for {len(compiled.layers)} layers that are not the {len(modules)} of "
            f"this {type(model).__name__}; compile it with layers=layers_of(model)."
        )
    model = getattr(model, "_orig_mod", model)
    if compiled.taps and getattr(model, "is_cache_enabled", False):
        raise CapriccioError(
            "taps received a model with a step cache, which skips the layers they read; call disable_cache() first."
        )
    if compiled.taps and getattr(model, "gradient_checkpointing", False):
        raise CapriccioError(
            "taps received a model with gradient checkpointing, which runs the layers they read twice; call "
            "disable_gradient_checkpointing() first."
        )
    for position in compiled.edited:
        name = compiled.layers[position].name
        _check_processor(name, modules[name], compiled)


def _check_processor(name: str, module: Any, compiled: CompiledProgram) -> None:
    processor = module.processor
    family = FAMILIES[type(module)]
    if type(processor) is family.processor:
        raise CapriccioError(
            "the model already carries an attention program in the same layers; add the two with + and attach the sum, "
            "or detach the first."
        )
    if type(processor) not in family.stock:
        slicing = (
            "call disable_attention_slicing()" if "Sliced" in type(processor).__name__ else "restore the stock one"
        )
        raise CapriccioError(
            f"the layer {name} has a {type(processor).__name__}, which an attention program cannot stand in for; "
            f"{slicing} first."
        )
    if getattr(processor._parallel_config, "context_parallel_config", None) is not None:
        raise CapriccioError(
            "attention programs received a model with context parallelism (Ring or Ulysses), where no device holds the "
            "whole sequence in its order; run it without enable_parallelism()."
        )
    backend = _backend_name(processor)
    if compiled.uses_masks and backend not in MASK_BACKENDS:
        raise CapriccioError(
            f"the attention program uses masks, but the attention backend {backend!r} takes none; compile it with "
            "masks=False or call set_attention_backend('native')."
        )


def _backend_name(processor: Any) -> str:
    backend = processor._attention_backend
    if backend is None:
        backend, _ = attention_dispatch._AttentionBackendRegistry.get_active_backend()
    return str(getattr(backend, "value", backend))
