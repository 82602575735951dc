"""What runs inside an attention layer: the exact fused forms, and the literal formula they are tested against.

All tensors are laid out (rows B, tokens, heads H, head width D), as diffusers' dispatcher takes them: N queries, and M
keys and values, which are the same S tokens where a sequence attends to itself. Nothing here knows a model family, and
only the literal formula knows an edit by name: a form is a handful of fused calls over subsets of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from capriccio.attention.layout import Attended
from capriccio.attention.program import AttentionEdit, Bank, Bias, Hide, KeyScale, Mix, See, Tap, Weigh

Core = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""A fused attention call: query (B, N, H, D), key and value (B, M, H, D), an optional mask that broadcasts to
(B, H, N, M)."""

Held = Mapping[str, tuple[Tensor, Tensor]]
"""Key and value (B, T, H, D) of banks, by name."""

Index = slice | Tensor
"""Positions along one axis: a slice where they are contiguous (no copy), a tensor of integers elsewhere."""

Moved = TypeVar("Moved", Tensor | None, Index | None)


def take(x: Tensor, index: Index | None, dim: int = 1) -> Tensor:
    """Return the given positions of an axis; ``None`` is all of them."""
    if index is None:
        return x
    if isinstance(index, slice):
        return x.narrow(dim, index.start, index.stop - index.start)
    return x.index_select(dim, index)


def put(out: Tensor, index: Index | None, x: Tensor, dim: int = 1) -> None:
    """Write ``x`` at the given positions of an axis of ``out``; ``None`` is all of them."""
    if index is None:
        out.copy_(x)
    elif isinstance(index, slice):
        out.narrow(dim, index.start, index.stop - index.start).copy_(x)
    else:
        out.index_copy_(dim, index, x)


@dataclass(frozen=True, eq=False)
class Look:
    """One softmax: which queries look at which keys.

    Attributes:
        queries: Positions of the n queries; ``None`` is every token.
        keys: Positions of the m keys; ``None`` is every token.
        mask: Added to the logits (float) or allowed (bool), of shape (1, 1, 1 or n, m).
        ratio: Renormalised weights (m,) for kernels that take no mask: a quotient of two unmasked calls.
        scales: Factors (m,) of the logits, carried by the rows of K; ``None`` is 1 everywhere.
        nothing: The queries see no key at all and give 0.
        groups: How many groups of equal size the queries and the keys fall into, one after the other; each group looks
            at its own keys, all in one call.
    """

    queries: Index | None
    keys: Index | None
    mask: Tensor | None = None
    ratio: Tensor | None = None
    scales: Tensor | None = None
    nothing: bool = False
    groups: int = 1

    def attend(self, query: Tensor, key: Tensor, value: Tensor, core: Core) -> Tensor:
        """Return the attention output (B, n, H, D).

        Args:
            query: Of all queries, (B, N, H, D).
            key: Of all keys, (B, M, H, D).
            value: Of this look's keys, (B, m, H, D).
            core: The fused call.
        """
        query = take(query, self.queries)
        if self.nothing:
            return torch.zeros_like(query)
        key = take(key, self.keys)
        if self.scales is not None:
            key = scaled(key, self.scales)
        if self.ratio is not None:
            mass = self.ratio.to(value.dtype)[None, :, None, None].expand_as(value)
            return core(query, key, scaled(value, self.ratio), None) / core(query, key, mass, None)
        mask = self.mask
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(query.dtype)
        if self.groups == 1:
            return core(query, key, value, mask)
        # groups become rows of the batch
        query, key, value = (x.unflatten(1, (self.groups, -1)).flatten(0, 1) for x in (query, key, value))
        return core(query, key, value, mask).unflatten(0, (-1, self.groups)).flatten(1, 2)

    def to(self, device: torch.device) -> Look:
        """Return the same look with its tensors on ``device``."""
        queries, keys = _moved(self.queries, device), _moved(self.keys, device)
        mask, ratio, scales = (_moved(x, device) for x in (self.mask, self.ratio, self.scales))
        return Look(queries, keys, mask, ratio, scales, self.nothing, self.groups)


@dataclass(frozen=True, eq=False)
class Call:
    """A look and the weights (m,) that its values carry after the softmax; ``None`` is 1 everywhere."""

    look: Look
    weights: Tensor | None = None

    def run(self, query: Tensor, key: Tensor, value: Tensor, core: Core) -> Tensor:
        """Return the output (B, n, H, D) of this call's queries: ``SDPA(Q, K, diag(w) V)``."""
        value = take(value, self.look.keys)
        if self.weights is not None:
            value = scaled(value, self.weights)
        return self.look.attend(query, key, value, core)

    def to(self, device: torch.device) -> Call:
        """Return the same call with its tensors on ``device``."""
        return Call(self.look.to(device), _moved(self.weights, device))


@dataclass(frozen=True, eq=False)
class Reading:
    """A tap in one layer: indicator values in place of V, so that the fused call returns attention weights.

    Attributes:
        name: Of the tap.
        shape: Of one reading: (queries,) or (queries, columns).
        parts: For each look, where its queries stand among those read here, and the indicator (m, columns).
        count: Queries read here.
        spread: For each of the tap's queries, which of those read here tells it; ``None`` where they are the same.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[tuple[Look, Index | None, Tensor], ...]
    count: int
    spread: Tensor | None = None

    def read(self, query: Tensor, key: Tensor, core: Core) -> Tensor:
        """Return the attention weights (B, *shape), mean over the heads."""
        columns = self.shape[1] if len(self.shape) > 1 else 1
        out = query.new_zeros(query.shape[0], self.count, columns)
        for look, places, indicator in self.parts:
            put(out, places, _read(look, indicator, query, key, core))
        return take(out, self.spread).reshape(query.shape[0], *self.shape)

    def to(self, device: torch.device) -> Reading:
        """Return the same reading with its tensors on ``device``."""
        parts = tuple((a.to(device), _moved(b, device), c.to(device)) for a, b, c in self.parts)
        return replace(self, parts=parts, spread=_moved(self.spread, device))


def _read(look: Look, indicator: Tensor, query: Tensor, key: Tensor, core: Core) -> Tensor:
    rows, _, heads, width = query.shape
    # The values must be as wide as the queries, or the call leaves the fused path.
    chunks = [pad(chunk, (0, width - chunk.shape[1])) for chunk in indicator.to(query.dtype).split(width, dim=1)]
    values = [chunk[None, :, None, :].expand(rows, -1, heads, -1) for chunk in chunks]
    weights = torch.cat([look.attend(query, key, value, core).mean(2) for value in values], dim=-1)
    return weights[..., : indicator.shape[1]]


@dataclass(frozen=True, eq=False)
class Mixing:
    """Outputs of some queries mixed with those of their twins: ``(1 - ratio) into + ratio source``."""

    into: Index | None
    source: Index | None
    ratio: float

    def run(self, out: Tensor) -> None:
        """Mix in place, in outputs (B, N, H, D); the twins' stay."""
        own, twin = take(out, self.into), take(out, self.source)
        put(out, self.into, twin if self.ratio == 1 else torch.lerp(own, twin, self.ratio))

    def to(self, device: torch.device) -> Mixing:
        """Return the same mixing with its tensors on ``device``."""
        return Mixing(_moved(self.into, device), _moved(self.source, device), self.ratio)


@dataclass(frozen=True, eq=False)
class Beside:
    """What some queries find in a bank by itself, added to their output: ``out + scale SDPA(Q, K', V')``.

    Attributes:
        bank: Its name.
        queries: Positions of the n queries; ``None`` is every token.
        place: The queries that the output is of.
        scale: Factor of what is found.
        pairs: Number of (query, key) pairs attended.
    """

    bank: str
    queries: Index | None
    place: Index | None
    scale: float
    pairs: int

    def add(self, out: Tensor, query: Tensor, held: Held, core: Core) -> Tensor:
        """Return outputs (B, N, H, D) with what was found; written in place where not all queries look."""
        key, value = held[self.bank]
        found = self.scale * core(take(query, self.queries), key, value, None).to(out.dtype)
        if self.place is None:
            return out + found
        put(out, self.place, take(out, self.place) + found)
        return out

    def to(self, device: torch.device) -> Beside:
        """Return the same with its tensors on ``device``."""
        return replace(self, queries=_moved(self.queries, device), place=_moved(self.place, device))


@dataclass(frozen=True, eq=False)
class Form:
    """One layer's edited attention: calls whose queries partition all queries, and the taps to read beside them.

    Twins that are not streams of their own are queries here and no rows of the tensors: calls read the rows of their
    originals, write to places of their own in the output, and the mixed rows are kept.

    Attributes:
        length: Number of queries N, such twins included.
        calls: At least one.
        readings: Of the taps.
        features: Names of states to remember, and of which queries.
        text: The form in words, with the reason where it is not an unmasked fused one.
        outs: For each call, the queries that its output is of.
        mixes: Of outputs, in order.
        keep: The queries that the layer is to give back; ``None`` is all of them.
        joined: Banks whose tokens stand behind the layer's own keys, in order.
        brought: How many tokens those are.
        beside: Banks that are looked at by themselves.
    """

    length: int
    calls: tuple[Call, ...]
    readings: tuple[Reading, ...] = ()
    features: tuple[tuple[str, Index | None], ...] = ()
    text: str = ""
    outs: tuple[Index | None, ...] = (None,)
    mixes: tuple[Mixing, ...] = ()
    keep: Index | None = None
    joined: tuple[str, ...] = ()
    brought: int = 0
    beside: tuple[Beside, ...] = ()

    @property
    def banks(self) -> frozenset[str]:
        """Names of the banks that it looks at."""
        return frozenset(self.joined).union(one.bank for one in self.beside)

    def run(self, query: Tensor, key: Tensor, value: Tensor, core: Core, held: Held = MappingProxyType({})) -> Tensor:
        """Return the attention output (B, N, H, D).

        Args:
            query: (B, N, H, D), of the tokens that the layer is given.
            key: (B, M, H, D), those of joined banks behind the layer's own.
            value: (B, M, H, D).
            core: The fused call.
            held: Keys and values of the banks that are looked at by themselves.
        """
        whole = all(one.place is None for one in self.beside)
        if len(self.calls) == 1 and self.outs[0] is None and not self.mixes and whole:
            out = self.calls[0].run(query, key, value, core)
            for one in self.beside:
                out = one.add(out, query, held, core)
            return out
        out = query.new_empty(query.shape[0], self.length, *query.shape[2:])
        for call, place in zip(self.calls, self.outs, strict=True):
            put(out, place, call.run(query, key, value, core))
        for one in self.beside:
            out = one.add(out, query, held, core)
        for mixing in self.mixes:
            mixing.run(out)
        return take(out, self.keep)

    def to(self, device: torch.device) -> Form:
        """Return the same form with its tensors on ``device``."""
        calls = tuple(call.to(device) for call in self.calls)
        readings = tuple(reading.to(device) for reading in self.readings)
        features = tuple((name, _moved(queries, device)) for name, queries in self.features)
        outs = tuple(_moved(out, device) for out in self.outs)
        mixes = tuple(mixing.to(device) for mixing in self.mixes)
        keep = _moved(self.keep, device)
        beside = tuple(one.to(device) for one in self.beside)
        same = replace(self, calls=calls, readings=readings, features=features, outs=outs)
        return replace(same, mixes=mixes, keep=keep, beside=beside)


def scaled(value: Tensor, weights: Tensor) -> Tensor:
    """Return the rows of ``value`` (B, m, H, D) times ``weights`` (m,), rounded once to the dtype of ``value``."""
    return (value * weights[None, :, None, None]).to(value.dtype)


def _moved(x: Moved, device: torch.device) -> Moved:
    return x.to(device) if isinstance(x, Tensor) else x


def literal(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    edits: Sequence[AttentionEdit],
    layout: Attended,
    held: Held = MappingProxyType({}),
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the plain formula: logits, softmax, taps, post-softmax weights, product, with every matrix in memory.

    The definition that compiled forms are tested against; the scopes of the edits are not looked at.

    Args:
        query: (B, N, H, D).
        key: (B, M, H, D).
        value: (B, M, H, D).
        edits: All of them active.
        layout: Of the N queries and the M keys, those of joined banks included (`with_banks`).
        held: Keys and values of the banks, by name.

    Returns:
        The output (B, N, H, D) and the readings of the taps by name.
    """
    joined = dict.fromkeys(edit.name for edit in edits if isinstance(edit, Bank) and edit.joint)
    key, value = (torch.cat([x, *(held[name][i] for name in joined)], dim=1) for i, x in enumerate((key, value)))
    visible, bias, weigh, scale = (matrix.to(query.device) for matrix in _matrices(edits, layout))
    query, key, value = (
        x if side.places is None else x[:, torch.from_numpy(side.places)]
        for x, side in ((query, layout.queries), (key, layout.keys), (value, layout.keys))
    )
    weights = literal_weights(query, key, visible, bias, scale)
    taps = {edit.name: _literal_tap(weights, edit, layout) for edit in edits if isinstance(edit, Tap)}
    out = torch.einsum("bhqk,bkhd->bqhd", weights * weigh.to(weights), value)
    for bank in (edit for edit in edits if isinstance(edit, Bank) and not edit.joint):
        own, (keys, values) = torch.from_numpy(layout.queries.tokens(bank.queries)), held[bank.name]
        logits = torch.einsum("bqhd,bkhd->bhqk", query, keys) * query.shape[-1] ** -0.5
        out = out + bank.scale * own[:, None, None] * torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), values)
    for mix in (edit for edit in edits if isinstance(edit, Mix)):
        into, twins = layout.queries.twin_tokens(mix.into, mix.source)
        out[:, into] = (1 - mix.ratio) * out[:, into] + mix.ratio * out[:, twins]
    return out[:, torch.from_numpy(layout.queries.home)], taps


def literal_matrices(edits: Sequence[AttentionEdit], layout: Attended) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is visible (bool), the renormalised and the post-softmax weights (float64), each (N, M)."""
    return _matrices(edits, layout)[:3]


def literal_weights(query: Tensor, key: Tensor, visible: Tensor, bias: Tensor, scale: Tensor | None = None) -> Tensor:
    """Return the attention weights (B, H, N, M): softmax of scaled logits + log bias over what is visible, else 0."""
    logits = torch.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    if scale is not None:
        logits = logits * scale.to(logits)
    return (logits + bias.log().to(logits)).masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0.0)


def _matrices(edits: Sequence[AttentionEdit], layout: Attended) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bias = _product([(edit, edit.weight) for edit in edits if isinstance(edit, Bias)], layout)
    weigh = _product([(edit, edit.weight) for edit in edits if isinstance(edit, Weigh)], layout)
    scale = _product([(edit, edit.scale) for edit in edits if isinstance(edit, KeyScale)], layout)
    return _visible(edits, layout), bias, weigh, scale


def _block(edit: AttentionEdit, layout: Attended) -> Tensor:
    queries, keys = layout.queries.tokens(edit.queries), layout.keys.tokens(edit.keys)
    return torch.from_numpy(queries)[:, None] & torch.from_numpy(keys)[None, :]


def _visible(edits: Sequence[AttentionEdit], layout: Attended) -> Tensor:
    seen = torch.zeros(layout.queries.length, layout.keys.length, dtype=torch.bool)
    listed = torch.zeros(layout.queries.length, 1, dtype=torch.bool)
    for see in (edit for edit in edits if isinstance(edit, See)):
        seen |= _block(see, layout)
        listed |= torch.from_numpy(layout.queries.tokens(see.queries))[:, None]
    visible = seen | (~listed & ~torch.from_numpy(layout.keys.apart))
    for bank in (edit for edit in edits if isinstance(edit, Bank) and edit.joint):
        visible |= _block(bank, layout)
    for hide in (edit for edit in edits if isinstance(edit, Hide)):
        visible &= ~_block(hide, layout)
    return visible


def _product(factors: Sequence[tuple[AttentionEdit, float]], layout: Attended) -> Tensor:
    product = torch.ones(layout.queries.length, layout.keys.length, dtype=torch.float64)
    for edit, factor in factors:
        product[_block(edit, layout)] *= factor
    return product


def _literal_tap(weights: Tensor, tap: Tap, layout: Attended) -> Tensor:
    queries = torch.from_numpy(layout.queries.tokens(tap.queries))
    columns = torch.from_numpy(layout.keys.tokens(tap.columns))
    read = weights.mean(1)[:, queries][:, :, columns]
    return read if tap.each else read.sum(-1)
