"""What a layer runs in the coming forward, and the processor that stands in for the one it found there."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from capriccio.attention.choose import Size
from capriccio.attention.forms import Core, Form, Held, Index, put, take
from capriccio.attention.taps import Recorder
from capriccio.errors import CapriccioError


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


@dataclass(frozen=True, eq=False)
class Tokens:
    """What a bank holds in the coming forwards.

    Attributes:
        states: (rows, T, C), the same in every layer or by name of layer; one row is for all rows of the batch.
        to_k: Makes keys of them, by name of layer; the layer's own projection if ``None``.
        to_v: Makes values of them, in the same way.
    """

    states: Tensor | Mapping[str, Tensor]
    to_k: Mapping[str, nn.Module] | None = None
    to_v: Mapping[str, nn.Module] | None = None

    @staticmethod
    def stack(several: Sequence[Tokens]) -> Tokens:
        """Put what banks of one kind hold for several rows below each other; what all share stays one row."""
        first = several[0]
        if all(one is first for one in several):
            return first
        if isinstance(first.states, Tensor):
            whole = [one.states for one in several if isinstance(one.states, Tensor)]
            return replace(first, states=torch.cat(whole))
        named = [one.states for one in several if isinstance(one.states, Mapping)]
        return replace(first, states={name: torch.cat([states[name] for states in named]) for name in named[0]})

    def at(self, layer: str) -> tuple[Tensor, nn.Module | None, nn.Module | None]:
        """Return states, and what makes keys and values of them, in a layer."""
        states = self.states if isinstance(self.states, Tensor) else self.states[layer]
        to_k, to_v = (None if made is None else made[layer] for made in (self.to_k, self.to_v))
        return states, to_k, to_v


class Slot:
    """The state of one layer: what its rows run in the coming forward.

    Attributes:
        told: Whether the coming forward is known, from `Attachment.set` or because all forwards are alike.
        parts: Parts of the batch; empty for the stock layer.
        size: Numbers of queries and keys that the forms were compiled for.
        num_rows: Batch rows expected, or ``None`` for any number.
        recorders: Of the taps, by name.
        features: States remembered in this layer, by name.
        device: Where the parts are.
        move: Brings the parts to another device.
        layer: Its name.
        banks: What banks hold, by name.
    """

    def __init__(
        self,
        size: Size,
        recorders: dict[str, Recorder],
        device: torch.device,
        move: Callable[[torch.device], None],
        layer: str = "",
        banks: Mapping[str, Tokens] = MappingProxyType({}),
    ) -> None:
        self.told = False
        self.parts: tuple[Part, ...] = ()
        self.size = size
        self.num_rows: int | None = None
        self.recorders = recorders
        self.features: dict[str, Recorder] = {}
        self.device = device
        self.move = move
        self.layer = layer
        self.banks = banks

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

    def remember(self, *states: Tensor) -> None:
        """Record the states that the coming attention is projected from, where a form asks for them.

        Args:
            states: Those of all queries, (B, N, C), in pieces along the tokens; joined only when asked for.
        """
        for part in self.parts:
            for name, queries in () if part.form is None else part.form.features:
                own = take(take(torch.cat(states, dim=1), part.rows, dim=0), queries)
                names = range(len(own)) if part.names is None else part.names
                self.features.setdefault(name, Recorder()).add(names, own)

    def bring(self, project: Callable[[Tensor, nn.Module | None, nn.Module | None], tuple[Tensor, Tensor]]) -> Held:
        """Return keys and values (rows, T, H, D) of the banks that are looked at in the coming forward.

        Args:
            project: Makes them of states, and of projections where the bank has its own.

        Raises:
            CapriccioError: If nobody has told what a bank holds.
        """
        named = {name for part in self.parts if part.form is not None for name in part.form.banks}
        if missing := sorted(named - set(self.banks)):
            raise CapriccioError(
                f"the attention program looks at the bank {missing[0]!r}, but nobody has told what it holds; call "
                "attachment.give(name, tokens) before the forward."
            )
        return {name: project(*self.banks[name].at(self.layer)) for name in sorted(named)}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, core: Core, held: Held = MappingProxyType({})
    ) -> Tensor:
        """Return the edited attention (B, N, H, D) and record the taps; ``held`` is what `bring` returned."""
        for found, expected in zip((query.shape[1], key.shape[1]), self.size, strict=True):
            if found != expected:
                raise CapriccioError(
                    f"the forward has {found} tokens, but the attention program was compiled for {expected}; "
                    "compile it with the token layout of this canvas and prompt length."
                )
        if query.device != self.device:
            self.move(query.device)
        if len(self.parts) == 1 and self.parts[0].rows is None:
            return self._run(self.parts[0], query, key, value, core, held)
        out = torch.empty_like(query)
        for part in self.parts:
            q, k, v = (take(x, part.rows, dim=0) for x in (query, key, value))
            put(out, part.rows, self._run(part, q, k, v, core, held), dim=0)
        return out

    def _run(self, part: Part, query: Tensor, key: Tensor, value: Tensor, core: Core, held: Held) -> Tensor:
        if part.form is None:
            return core(query, key, value, None)
        held = {name: self._rows(name, held[name], part, len(query)) for name in part.form.banks}
        if part.form.joined:
            key, value = (
                torch.cat([own, *(held[name][side] for name in part.form.joined)], dim=1)
                for side, own in enumerate((key, value))
            )
        for reading in part.form.readings:
            names = range(query.shape[0]) if part.names is None else part.names
            self.recorders[reading.name].add(names, reading.read(query, key, core))
        return part.form.run(query, key, value, core, held)

    def _rows(self, name: str, pair: tuple[Tensor, Tensor], part: Part, count: int) -> tuple[Tensor, Tensor]:
        """Return key and value of a bank for the rows of a part."""
        if len(pair[0]) == 1:
            return pair[0].expand(count, -1, -1, -1), pair[1].expand(count, -1, -1, -1)
        key, value = (take(x, part.rows, dim=0) for x in pair)
        if len(key) != count:
            raise CapriccioError(
                f"the bank {name!r} holds {len(pair[0])} rows, but the forward has another number; give one row for "
                "all, or one for each."
            )
        return key, value


class StandIn(nn.Module):
    """A processor that runs an attention program in the place of the one it found, ``inner``.

    Weights and scales of an IP-Adapter stay ``inner``'s own: they keep their names in the state dict, and changes made
    meanwhile survive the restore.

    Args:
        inner: The processor found.
        slot: State of this layer.
    """

    inner: Any
    to_k_ip: nn.ModuleList
    to_v_ip: nn.ModuleList

    def __init__(self, inner: Any = None, slot: Slot | None = None) -> None:
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

    @property
    def scale(self) -> list[float]:
        """Scales of the IP-Adapters."""
        return self.inner.scale

    @scale.setter
    def scale(self, scale: list[float]) -> None:
        self.inner.scale = scale


def refuse_mask(attention_mask: Tensor | None) -> None:
    """Refuse a mask that would have to be one with the program's."""
    if attention_mask is not None:
        raise CapriccioError(
            "the forward received an attention_mask while an attention program is attached, but the two would "
            "have to be one; say it with See and Hide edits instead."
        )
