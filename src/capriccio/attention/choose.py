"""Which form a layer runs: from the edits at work to exact fused calls.

Queries that see the same keys with the same weights form one group, and a group is one unmasked fused call:

* see, hide: the group's visible keys are gathered;
* key scale: rows of K are scaled, ``SDPA(Q, diag(s) K, V)``;
* bias: every query of a group shares it, so it is a key-only additive mask, which stays fused; for kernels that
  take no mask, ``SDPA(Q, K, diag(w) V) / SDPA(Q, K, w)``;
* weigh: rows of V are scaled, ``SDPA(Q, K, diag(w) V)``;
* tap: ``SDPA(Q, K, indicator(columns))``;
* mix: the twin's queries are a group of their own, and two outputs become one;
* small groups of equal size, such as regions of one shape, become the rows of one batched call.

A dense mask is the last resort, taken where many small groups would cost more, and the form says so.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from capriccio.attention.forms import Beside, Call, Form, Index, Look, Mixing, Reading
from capriccio.attention.layout import Attended, TokenLayout, with_banks
from capriccio.attention.program import (
    AttentionEdit,
    Bank,
    Bias,
    Features,
    Hide,
    KeyScale,
    Mix,
    See,
    Tap,
    Weigh,
)

# Cost of attention per (query, key) pair relative to one long unmasked call, and of making a call at all (in pairs).
# Measured on 2 CPU cores, 4 heads x 64, fp32: kernels work in blocks of queries and waste part of a short one.
_SHORT, _VERY_SHORT, _DENSE, _OVERHEAD = 1.15, 1.6, 1.3, 4_000
_FILLS = 768  # queries of a call that gains nothing from being batched with others

Size = tuple[int, int]
"""Numbers of queries N and of keys M."""


@dataclass(frozen=True, eq=False)
class Group:
    """Queries that see the same keys with the same weights.

    Attributes:
        queries: Positions (n,), ascending.
        visible: Keys they see, booleans (M,).
        bias: Renormalised weights (M,), 1 where unseen.
        scale: Factors of the logits (M,), 1 where unseen.
        weigh: Weights after the softmax (M,), 1 where unseen.
    """

    queries: np.ndarray
    visible: np.ndarray
    bias: np.ndarray
    scale: np.ndarray
    weigh: np.ndarray

    @property
    def key(self) -> bytes:
        """What its queries share; equal for groups that can be one."""
        return self.visible.tobytes() + self.bias.tobytes() + self.carried

    @property
    def carried(self) -> bytes:
        """What rows of K and V carry for it; equal for groups that can be under one mask."""
        return self.scale.tobytes() + self.weigh.tobytes()

    @property
    def pairs(self) -> int:
        """Number of (query, key) pairs attended."""
        return len(self.queries) * int(self.visible.sum())

    @property
    def cost(self) -> float:
        """Estimated cost of its fused call, in (query, key) pairs of plain attention."""
        if not self.pairs:
            return 0
        n = len(self.queries)
        return _OVERHEAD + self.pairs * (1 if n >= 768 else _SHORT if n >= 192 else _VERY_SHORT)


def group_queries(edits: Sequence[AttentionEdit], layout: Attended) -> list[Group]:
    """Partition the N queries by what they see and how they weigh it.

    Works on signatures (which edits name a query), so that nothing of size N x M is ever made.

    Args:
        edits: All of them active; taps and features are not looked at, and mixes only for the twins that they need.
        layout: Of the N queries and the M keys.
    """
    asking = layout.queries
    needed = ~asking.views
    for mix in (edit for edit in edits if isinstance(edit, Mix)):
        needed |= asking.tokens(mix.source)
    edits = [edit for edit in edits if not isinstance(edit, Tap | Features | Mix) and not _beside(edit)]
    named = np.stack([asking.tokens(edit.queries) for edit in edits], axis=1) if edits else np.ones((asking.length, 1))
    signatures, members = np.unique(named[needed], axis=0, return_inverse=True)
    members = _spread(members.reshape(-1), needed)
    groups: dict[bytes, Group] = {}
    for number, signature in enumerate(signatures):
        own = [edit for edit, is_named in zip(edits, signature, strict=False) if is_named]
        group = Group(np.flatnonzero(members == number), *_vectors(own, layout.keys))
        if group.key in groups:
            group = _united([groups[group.key], group])
        groups[group.key] = group
    return sorted(groups.values(), key=lambda group: group.queries[0])


def _beside(edit: AttentionEdit) -> bool:
    """Whether an edit leaves the layer's own softmax alone, and adds what it finds in another."""
    return isinstance(edit, Bank) and not edit.joint


def _spread(members: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """Return for each query the group that it is a member of, -1 for those that nobody needs."""
    spread = np.full(len(needed), -1)
    spread[needed] = members
    return spread


def _vectors(edits: Sequence[AttentionEdit], keyed: TokenLayout) -> tuple[np.ndarray, ...]:
    keys = [(edit, keyed.tokens(edit.keys)) for edit in edits]
    lists = [mask for edit, mask in keys if isinstance(edit, See)]
    visible = np.logical_or.reduce(lists) if lists else ~keyed.apart
    for mask in (mask for edit, mask in keys if isinstance(edit, Bank)):
        visible = visible | mask
    for mask in (mask for edit, mask in keys if isinstance(edit, Hide)):
        visible = visible & ~mask
    bias, scale, weigh = (np.ones(keyed.length) for _ in range(3))
    for edit, mask in keys:
        if isinstance(edit, KeyScale):
            scale[mask & visible] *= edit.scale
        elif isinstance(edit, Bias | Weigh):
            (bias if isinstance(edit, Bias) else weigh)[mask & visible] *= edit.weight
    if visible.any() and np.ptp(bias[visible]) == 0:
        bias[:] = 1  # the same factor on all that is seen is renormalised away
    return visible, bias, scale, weigh


def _united(groups: Sequence[Group]) -> Group:
    first = groups[0]
    return replace(first, queries=_members(groups))


def choose_form(
    edits: Sequence[AttentionEdit],
    layout: Attended,
    masks: bool = True,
    finest: Mapping[str, TokenLayout] = MappingProxyType({}),
    banks: Mapping[str, int] = MappingProxyType({}),
) -> Form | None:
    """Return the cheapest exact form of the edits, or ``None`` where the stock call is that form.

    Args:
        edits: All of them active in the layer, step and row.
        layout: Of the N queries and the M keys.
        masks: Whether the attention kernel takes masks.
        finest: For taps that read several resolutions, the queries of the finest one; else those of ``layout``.
        banks: Numbers of tokens, by name.
    """
    joined = {edit.name: banks[edit.name] for edit in edits if isinstance(edit, Bank) and edit.joint}
    layout = with_banks(layout, joined)
    clusters = _clusters(group_queries(edits, layout), masks)
    asking, size = layout.queries, (layout.queries.given, layout.keys.given)
    calls = tuple(_call(groups, layout, masks) for groups in clusters)
    mixes = tuple(_mixing(edit, asking) for edit in edits if isinstance(edit, Mix))
    taps = [edit for edit in edits if isinstance(edit, Tap)]
    named = [(edit.name, asking.tokens(edit.queries)) for edit in edits if isinstance(edit, Features)]
    features = tuple((name, _places(np.flatnonzero(tokens), asking)) for name, tokens in named)
    beside = tuple(_beside_call(edit, asking, banks) for edit in edits if isinstance(edit, Bank) and not edit.joint)
    if len(calls) == 1 and not (taps or features or mixes or joined or beside) and _is_stock(calls[0]):
        return None
    fine = {tap.name: finest.get(tap.name, asking) for tap in taps}
    readings = tuple(_reading(tap, clusters, calls, layout, fine[tap.name]) for tap in taps)
    outs = [_index(_members(groups), asking.length) for groups in clusters]
    calls, outs = _batched(calls, outs, size, asking.length)
    text = _describe(clusters, calls, readings, size) + ", states remembered" * bool(features)
    text += "".join(f", {name} joined to the keys" for name in joined)
    text += "".join(f", {one.bank} in a call of its own" for one in beside)
    text += ", the twin mixed in" * bool(mixes)
    keep = None if asking.places is None else _index(asking.home, asking.length)
    form = Form(asking.length, calls, readings, features, text, tuple(outs), mixes, keep)
    return replace(form, joined=tuple(joined), brought=sum(joined.values()), beside=beside)


def _beside_call(bank: Bank, asking: TokenLayout, banks: Mapping[str, int]) -> Beside:
    tokens = np.flatnonzero(asking.tokens(bank.queries))
    place = _index(tokens, asking.length)
    return Beside(bank.name, _places(tokens, asking), place, bank.scale, len(tokens) * banks[bank.name])


def _batched(
    calls: Sequence[Call], outs: Sequence[Index | None], size: Size, length: int
) -> tuple[tuple[Call, ...], list[Index | None]]:
    """Put calls of equal size, none of which fills the cores by itself, into one."""
    alike: dict[Hashable, list[int]] = {}
    for number, call in enumerate(calls):
        look, shape = call.look, (_count(call.look.queries, size[0]), _count(call.look.keys, size[1]))
        fits = shape[0] < _FILLS and look.mask is None and look.ratio is None and not look.nothing
        alike.setdefault((*shape, call.weights is None, look.scales is None) if fits else number, []).append(number)
    batched, places = [], []
    for numbers in alike.values():
        own = [calls[number] for number in numbers]
        batched.append(own[0] if len(own) == 1 else _one_call(own, size))
        places.append(
            outs[numbers[0]] if len(own) == 1 else _index(_joined([outs[k] for k in numbers], length), length)
        )
    return tuple(batched), places


def _one_call(calls: Sequence[Call], size: Size) -> Call:
    looks = [call.look for call in calls]
    queries = _index(_joined([look.queries for look in looks], size[0]), size[0])
    keys = _index(_joined([look.keys for look in looks], size[1]), size[1])
    scales = [look.scales for look in looks if look.scales is not None]
    weights = [call.weights for call in calls if call.weights is not None]
    look = Look(queries, keys, scales=torch.cat(scales) if scales else None, groups=len(calls))
    return Call(look, torch.cat(weights) if weights else None)


def _joined(indices: Sequence[Index | None], length: int) -> np.ndarray:
    """Return positions as one array, in the order given."""
    whole = np.arange(length)
    return np.concatenate([whole if index is None else whole[index] for index in indices])


def _mixing(mix: Mix, asking: TokenLayout) -> Mixing:
    into, source = (_index(tokens, asking.length) for tokens in asking.twin_tokens(mix.into, mix.source))
    return Mixing(into, source, mix.ratio)


def _clusters(groups: list[Group], masks: bool) -> list[list[Group]]:
    """Put groups of equal post-softmax weights under one dense mask where that is the cheaper way."""
    if not masks:
        return [[group] for group in groups]
    together: dict[bytes, list[Group]] = {}
    alone = [[group] for group in groups if not group.pairs]
    for group in (group for group in groups if group.pairs):
        # A weight counts only on the keys that a query sees, so where all are 1 any groups can share a call.
        together.setdefault(group.carried, []).append(group)
    for cluster in together.values():
        pairs = sum(len(group.queries) for group in cluster) * len(cluster[0].visible)
        dense = len(cluster) > 1 and _DENSE * pairs < sum(group.cost for group in cluster)
        alone += [cluster] if dense else [[group] for group in cluster]
    return sorted(alone, key=lambda cluster: cluster[0].queries[0])


def _call(groups: list[Group], layout: Attended, masks: bool) -> Call:
    if len(groups) > 1:
        return _dense_call(groups, layout)
    (group,) = groups
    queries = _places(group.queries, layout.queries)
    if not group.pairs:
        return Call(Look(queries, None, nothing=True))
    keys = _places(_seen(groups), layout.keys)
    bias, scales, weights = (_unless_one(x[group.visible]) for x in (group.bias, group.scale, group.weigh))
    mask = bias.log()[None, None, None] if masks and bias is not None else None
    return Call(Look(queries, keys, mask, None if masks else bias, scales), weights)


def _dense_call(groups: list[Group], layout: Attended) -> Call:
    queries, seen = np.concatenate([group.queries for group in groups]), _seen(groups)
    rows = [np.broadcast_to(group.visible[seen], (len(group.queries), len(seen))) for group in groups]
    mask = torch.from_numpy(np.concatenate(rows))
    if any((group.bias != 1).any() for group in groups):
        bias = np.concatenate([np.broadcast_to(np.log(g.bias[seen]), (len(g.queries), len(seen))) for g in groups])
        mask = torch.from_numpy(bias).float().masked_fill(~mask, -torch.inf)
    order = np.argsort(queries)
    mask = mask[torch.from_numpy(order)][None, None]
    places, keys = _places(queries[order], layout.queries), _places(seen, layout.keys)
    look = Look(places, keys, mask, scales=_unless_one(groups[0].scale[seen]))
    return Call(look, _unless_one(groups[0].weigh[seen]))


def _seen(groups: Sequence[Group]) -> np.ndarray:
    """Return the keys that any of the groups sees."""
    return np.flatnonzero(np.logical_or.reduce([group.visible for group in groups]))


def _reading(
    tap: Tap, clusters: list[list[Group]], calls: Sequence[Call], layout: Attended, fine: TokenLayout
) -> Reading:
    queries, spread = _read_here(tap, layout.queries, fine)
    columns = np.flatnonzero(layout.keys.tokens(tap.columns))
    count = int(queries.sum())
    indicator = _indicator(columns, layout.keys.length, tap.each)
    place = np.cumsum(queries) - 1
    parts = []
    for groups, call in zip(clusters, calls, strict=True):
        own = _members(groups)
        tapped = own[queries[own]]
        if not call.look.nothing and len(tapped) and len(columns):
            asking = _places(tapped, layout.queries)
            look = replace(call.look, queries=asking, mask=_rows(call.look.mask, queries[own]))
            parts.append((look, _index(place[tapped], count), indicator[torch.from_numpy(_seen(groups))]))
    told = count if spread is None else len(spread)
    return Reading(tap.name, (told, len(columns)) if tap.each else (told,), tuple(parts), count, spread)


def _read_here(tap: Tap, here: TokenLayout, fine: TokenLayout) -> tuple[np.ndarray, Tensor | None]:
    """Return which queries (N,) are read here, and for each of the tap's queries at its finest, which of those."""
    if fine is here:
        return here.tokens(tap.queries), None
    cells, spread = np.unique(here.seen_from(fine)[fine.tokens(tap.queries)], return_inverse=True)
    chosen = np.zeros(here.length, bool)
    chosen[cells] = True
    return chosen, torch.from_numpy(spread.reshape(-1))


def _indicator(columns: np.ndarray, length: int, each: bool) -> Tensor:
    indicator = torch.zeros(length, len(columns) if each else 1)
    indicator[torch.from_numpy(columns), torch.arange(len(columns)) if each else 0] = 1
    return indicator


def _rows(mask: Tensor | None, chosen: np.ndarray) -> Tensor | None:
    return mask if mask is None or mask.shape[2] == 1 else mask[:, :, torch.from_numpy(chosen)]


def _members(groups: Sequence[Group]) -> np.ndarray:
    return np.sort(np.concatenate([group.queries for group in groups]))


def _places(tokens: np.ndarray, layout: TokenLayout) -> Index | None:
    """Return where tokens are among those that the layer is given."""
    return _index(tokens if layout.places is None else layout.places[tokens], layout.given)


def _index(positions: np.ndarray, length: int) -> Index | None:
    """Return positions in their cheapest shape: ``None`` for all of them in order, a slice, a tensor."""
    if len(positions) and (np.diff(positions) == 1).all():
        whole = len(positions) == length
        return None if whole else slice(int(positions[0]), int(positions[-1]) + 1)
    return torch.from_numpy(np.ascontiguousarray(positions))


def _unless_one(weights: np.ndarray) -> Tensor | None:
    return None if (weights == 1).all() else torch.from_numpy(weights).float()


def _is_stock(call: Call) -> bool:
    look = call.look
    parts = (look.queries, look.keys, look.mask, look.ratio, look.scales, call.weights)
    return all(part is None for part in parts) and not look.nothing


def _describe(clusters: list[list[Group]], calls: Sequence[Call], readings: Sequence[Reading], size: Size) -> str:
    looks = [call.look for call in calls]
    fused = sum(not look.nothing for look in looks)
    notes = [f"{fused} fused call{'s' * (fused != 1)} over " + " + ".join(str(_size(c)) for c in clusters) + " queries"]
    notes += [f"{sum(look.groups for look in looks if look.groups > 1)} groups of equal size in batches"] * any(
        look.groups > 1 for look in looks
    )
    notes += ["keys gathered"] * any(look.keys is not None for look in looks)
    notes += ["keys scaled"] * any(look.scales is not None for look in looks)
    notes += ["values scaled"] * any(call.weights is not None for call in calls)
    notes += ["key-only mask"] * any(look.mask is not None and look.mask.shape[2] == 1 for look in looks)
    notes += ["quotient of two calls, as the kernel takes no mask"] * any(look.ratio is not None for look in looks)
    if many := [len(cluster) for cluster in clusters if len(cluster) > 1]:
        notes.append(f"dense mask, because {sum(many)} small query groups would cost more one by one")
    notes += [f"{sum(look.nothing for look in looks)} group sees nothing"] * any(look.nothing for look in looks)
    notes += [f"{len(readings)} tap{'s' * (len(readings) > 1)}"] * bool(readings)
    return ", ".join(notes) + f", {pairs_of(calls, size) / (size[0] * size[1]):.2f} x the work of plain attention"


def _size(cluster: list[Group]) -> int:
    return sum(len(group.queries) for group in cluster)


def _count(index: Index | None, length: int) -> int:
    if index is None:
        return length
    return index.stop - index.start if isinstance(index, slice) else len(index)


def look_pairs(look: Look, size: Size) -> int:
    pairs = 0 if look.nothing else _count(look.queries, size[0]) * _count(look.keys, size[1])
    return pairs * (1 if look.ratio is None else 2) // look.groups


def pairs_of(calls: Iterable[Call], size: Size) -> int:
    return sum(look_pairs(call.look, size) for call in calls)
