"""What a layer runs in the coming forward, and the processor that stands in for the one it found there."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from capriccio.attention.choose import Size
from capriccio.attention.forms import Core, Form, Index, put, take
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
    """

    def __init__(
        self, size: Size, recorders: dict[str, Recorder], device: torch.device, move: Callable[[torch.device], None]
    ) -> None:
        self.told = False
        self.parts: tuple[Part, ...] = ()
        self.size = size
        self.num_rows: int | None = None
        self.recorders = recorders
        self.features: dict[str, Recorder] = {}
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

    def attend(self, query: Tensor, key: Tensor, value: Tensor, core: Core) -> Tensor:
        """Return the edited attention (B, N, H, D) and record the taps."""
        for found, expected in zip((query.shape[1], key.shape[1]), self.size, strict=True):
            if found != expected:
                raise CapriccioError(
                    f"the forward has {found} tokens, but the attention program was compiled for {expected}; "
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
