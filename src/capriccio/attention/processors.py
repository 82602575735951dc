"""Attention programs on diffusers models: install, run, restore.

One thin processor class for each interface family of diffusers; what they share runs on `Form`. A layer's state is a
slot of its own, so that nothing travels through keyword arguments, and a layer without an edit at work calls the
processor it found, which makes it the stock layer to the last bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
)
from diffusers.models.transformers.transformer_flux import (
    FluxAttention,
    FluxAttnProcessor,
    FluxIPAdapterAttnProcessor,
)
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from capriccio.attention.compile import Active, CompiledProgram
from capriccio.attention.flux import FluxProcessor, grow
from capriccio.attention.forms import Form, Index
from capriccio.attention.program import LayerInfo
from capriccio.attention.slots import Part, Slot, Tokens
from capriccio.attention.taps import Recorder
from capriccio.attention.unet import UNetProcessor
from capriccio.errors import CapriccioError, nearest

# Backends of diffusers that honour a mask over queries and keys; the others raise, or reduce it to a key mask.
MASK_BACKENDS = {"native", "_native_cudnn", "_native_efficient", "_native_math", "_native_npu", "flex", "xformers"}


@dataclass(frozen=True)
class Family:
    """One interface family of diffusers.

    Attributes:
        processor: Our class for it.
        stock: The processors that it can stand in for.
        kind: The kind of layer that an attention module is, or ``None`` if it is of another family after all.
        grow: Gives the image a twin with a stream of its own from a layer on, where the family can have one: that kind
            of layer, and what does so in a model from an index on.
        banks: Whether its layers can look at banks.
    """

    processor: type
    stock: tuple[type, ...]
    kind: Callable[[nn.Module], str | None]
    grow: tuple[str, Callable[[nn.Module, int], list[RemovableHandle]]] | None = None
    banks: bool = False


FAMILIES: dict[type, Family] = {
    FluxAttention: Family(
        FluxProcessor,
        (FluxAttnProcessor, FluxIPAdapterAttnProcessor),
        lambda attn: "single" if attn.added_kv_proj_dim is None else "double",
        ("single", grow),
    ),
    Attention: Family(
        UNetProcessor,
        (AttnProcessor2_0, FusedAttnProcessor2_0, IPAdapterAttnProcessor2_0),
        lambda attn: None if attn.added_kv_proj_dim is not None else "cross" if attn.is_cross_attention else "self",
        banks=True,
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
        kind = str(FAMILIES[type(module)].kind(module))
        layers.append(LayerInfo(name, kind, counts.get(kind, 0), level_of(model, name)))
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
    return {name: m for name, m in modules.items() if type(m) in FAMILIES and FAMILIES[type(m)].kind(m) is not None}


def level_of(model: nn.Module, name: str) -> int:
    """Return how often the sides of the picture were halved before a module of a U-Net; 0 in other models."""
    model = getattr(model, "_orig_mod", model)
    coarsest = len(getattr(model, "down_blocks", ())) - 1
    block, _, rest = name.partition(".")
    if block == "mid_block":
        return max(coarsest, 0)
    if block not in ("down_blocks", "up_blocks"):
        return 0
    index = int(rest.partition(".")[0])
    return index if block == "down_blocks" else coarsest - index


class Attachment:
    """An attention program at work on a model, until `detach` or the end of the ``with`` block.

    What was detached can be attached again by `work`; what it has read stays.

    Args:
        model: A diffusers transformer or U-Net.
        compiled: The program, compiled for ``layers_of(model)``.
        now: Whether it is at work from the start.
    """

    def __init__(self, model: nn.Module, compiled: CompiledProgram, now: bool = True) -> None:
        self.compiled = compiled
        self._model = model
        self._device = _device_of(model)
        self._recorders = {name: Recorder() for name in compiled.taps}
        self._forms: dict[int, Form] = {}
        self._parts: dict[Hashable, tuple[Part, ...]] = {}
        self._now: tuple[int, tuple[str, ...] | None] | None = None
        self._found: list[tuple[Any, Any, Any]] = []
        self._handles: list[RemovableHandle] = []
        self._banks: dict[str, Tokens] = {}
        self._slots = {
            position: Slot(
                compiled.size(position),
                self._recorders,
                self._device,
                self._move,
                compiled.layers[position].name,
                self._banks,
            )
            for position in compiled.edited
        }
        if now:
            self.work()
        if compiled.constant:
            self._set(0, None)

    def work(self) -> None:
        """Put the program to work, if it is not.

        Raises:
            CapriccioError: If it cannot work together with what is set up on the model.
        """
        if self._found:
            return
        modules = _attentions(self._model)
        _check(self._model, modules, self.compiled)
        self._handles = _grown(self._model, modules, self.compiled)
        for position, slot in self._slots.items():
            module = modules[self.compiled.layers[position].name]
            found = module.processor
            ours = FAMILIES[type(module)].processor(found, slot)
            module.set_processor(ours)
            self._found.append((module, ours, found))

    def set(self, *, step: int, roles: Sequence[str]) -> None:
        """Say what the coming forward is.

        Args:
            step: Index of the denoising step, from 0.
            roles: The role of each batch row, such as ``("negative", "positive")``.

        Raises:
            CapriccioError: If the step is outside the run, or the program was dropped meanwhile.
        """
        if not 0 <= step < self.compiled.num_steps:
            raise CapriccioError(
                f"attachment.set received step {step}, but the program was compiled for steps 0 to "
                f"{self.compiled.num_steps - 1}; compile it for the number of steps of this run."
            )
        if any(module.processor is not ours for module, ours, _ in self._found):
            raise CapriccioError(
                "attention processors were replaced while an attention program is attached (an IP-Adapter, fused "
                "projections), which dropped the program; detach it first and attach it again afterwards."
            )
        self._set(step, tuple(roles))

    def _move(self, device: torch.device) -> None:
        # Offloading leaves the weights elsewhere than where they work, so the first forward may tell better.
        self._device = device
        self._forms.clear()
        self._parts.clear()
        if self._now is not None:
            self._set(*self._now)

    def _set(self, step: int, roles: tuple[str, ...] | None) -> None:
        self._now = step, roles
        for position, slot in self._slots.items():
            place = self.compiled.places[position]
            actives = tuple(self.compiled.active(position, step, role) for role in roles or (None,))
            if (place, actives, roles) not in self._parts:
                self._parts[place, actives, roles] = self._divide(place, actives, roles)
            slot.told = True
            slot.parts = self._parts[place, actives, roles]
            slot.num_rows = None if roles is None else len(roles)
            slot.device = self._device

    def _divide(self, place: int, actives: tuple[Active, ...], roles: tuple[str, ...] | None) -> tuple[Part, ...]:
        """Divide the batch into rows of equal form; nothing at all where every row runs the stock call."""
        if all(self.compiled.forms[place, active] is None for active in actives):
            return ()
        names = None if roles is None else tuple((role, roles[:i].count(role)) for i, role in enumerate(roles))
        parts = []
        for active in dict.fromkeys(actives):
            rows = [i for i, other in enumerate(actives) if other == active]
            whole = len(rows) == len(actives)
            own = None if names is None else tuple(names[i] for i in rows)
            parts.append(Part(None if whole else self._rows(rows), own, self._form(place, active)))
        return tuple(parts)

    def _rows(self, rows: list[int]) -> Index:
        contiguous = rows[-1] - rows[0] == len(rows) - 1
        return slice(rows[0], rows[-1] + 1) if contiguous else torch.tensor(rows, device=self._device)

    def _form(self, place: int, active: Active) -> Form | None:
        form = self.compiled.forms[place, active]
        if form is not None and id(form) not in self._forms:
            self._forms[id(form)] = form.to(self._device)
        return form and self._forms[id(form)]

    def give(self, name: str, tokens: Tokens) -> None:
        """Say what a bank holds from now on.

        Raises:
            CapriccioError: If the program has no bank of that name.
        """
        if name not in self.compiled.bank_names:
            known = self.compiled.bank_names
            hint = nearest(name, known) if known else "it has none"
            raise CapriccioError(f"the attention program looks at no bank {name!r}; {hint}")
        self._banks[name] = tokens

    def define(self, groups: Mapping[str, Any]) -> None:
        """Tell the tokens of groups that the layout announced as late: from now on their edits work.

        Args:
            groups: Name -> booleans, (S,) in a joint sequence, (height, width) in a `PictureLayout`.

        Raises:
            CapriccioError: If a group was not announced.
        """
        self.compiled = self.compiled.defining(groups)
        self._forms.clear()
        self._parts.clear()
        if self._now is not None:
            self._set(*self._now)

    @property
    def taps(self) -> dict[str, Tensor]:
        """Readings so far by name: (rows, queries) or (rows, queries, columns), rows as they first came."""
        return {name: recorder.mean() for name, recorder in self._recorders.items() if recorder.totals}

    @property
    def features(self) -> dict[str, dict[str, Tensor]]:
        """States remembered so far, by name and layer: (rows, tokens, channels), rows as they first came."""
        slots = {self.compiled.layers[position].name: slot for position, slot in self._slots.items()}
        return {
            name: {layer: slot.features[name].mean() for layer, slot in slots.items() if name in slot.features}
            for name in self.compiled.features
        }

    def clear_taps(self) -> None:
        """Forget the readings and the states so far."""
        for recorder in self._recorders.values():
            recorder.clear()
        for slot in self._slots.values():
            slot.features.clear()

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
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

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


def _grown(model: nn.Module, modules: dict[str, Any], compiled: CompiledProgram) -> list[RemovableHandle]:
    """Give the image a twin of its own in the layers where the program has one."""
    streams = [k for k, one in enumerate(compiled.attended) if one.queries.twins[one.queries.home].any()]
    if not streams:
        return []
    twins = [twin for twin in compiled.program.twins if twin.own is not None]
    family = FAMILIES[type(modules[compiled.layers[streams[0]].name])]
    first = compiled.layers[streams[0]]
    rest = [k for k, layer in enumerate(compiled.layers) if layer.kind == first.kind and layer.index >= first.index]
    tokens = compiled.layout.at(first).queries.tokens(twins[0].of)
    fits = family.grow is not None and family.grow[0] == first.kind and streams == rest and len(twins) == 1
    if not fits or tokens[np.argmax(tokens) :].sum() < len(tokens) - np.argmax(tokens):
        raise CapriccioError(
            f"the attention program gives {' and '.join(twin.name for twin in twins)} streams of their own, but "
            f"{type(model).__name__} can have one such twin, of all image tokens, and on FLUX alone, from one of its "
            "single blocks to the last; declare it so, or leave out `own`."
        )
    if getattr(getattr(model, "_orig_mod", model), "gradient_checkpointing", False):
        raise CapriccioError(
            "a twin with a stream of its own received a model with gradient checkpointing; call "
            "disable_gradient_checkpointing() first."
        )
    return family.grow[1](model, first.index) if family.grow else []


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
    reads = compiled.taps or compiled.features
    if reads and getattr(model, "is_cache_enabled", False):
        raise CapriccioError(
            "taps received a model with a step cache, which skips the layers they read; call disable_cache() first."
        )
    if reads and getattr(model, "gradient_checkpointing", False):
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
    if compiled.bank_names and not family.banks:
        raise CapriccioError(
            f"the attention program looks at the bank {compiled.bank_names[0]!r}, but {type(module).__name__} layers "
            "look at none here; on FLUX load an IP-Adapter of diffusers, or put the reference on a panel."
        )
    if type(processor) not in family.stock:
        slicing = (
            "call disable_attention_slicing()" if "Sliced" in type(processor).__name__ else "restore the stock one"
        )
        raise CapriccioError(
            f"the layer {name} has a {type(processor).__name__}, which an attention program cannot stand in for; "
            f"{slicing} first."
        )
    if getattr(getattr(processor, "_parallel_config", None), "context_parallel_config", None) is not None:
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
    if not hasattr(processor, "_attention_backend"):
        return "native"  # PyTorch's own call, whatever is set
    backend = processor._attention_backend
    if backend is None:
        backend, _ = attention_dispatch._AttentionBackendRegistry.get_active_backend()
    return str(getattr(backend, "value", backend))
