"""The compiler: from a program over named groups to exact fused calls, without a forward pass.

Queries that see the same keys with the same weights form one group, and a group is one unmasked fused call:

* see, hide: the group's visible keys are gathered;
* bias: every query of a group shares it, so it is a key-only additive mask, which stays fused; for kernels that
  take no mask, ``SDPA(Q, K, diag(w) V) / SDPA(Q, K, w)``;
* weigh: rows of V are scaled, ``SDPA(Q, K, diag(w) V)``;
* tap: ``SDPA(Q, K, indicator(columns))``.

A dense mask is the last resort, taken where many small groups would cost more, and the form says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from capriccio.attention.forms import Call, Form, Index, Look, Reading, take
from capriccio.attention.program import (
    AttentionEdit,
    AttentionProgram,
    Bias,
    Hide,
    LayerInfo,
    See,
    Tap,
    TokenLayout,
    Weigh,
)
from capriccio.errors import CapriccioError, nearest

# Cost of attention per (query, key) pair relative to one long unmasked call, and of making a call at all (in pairs).
# Measured on 2 CPU cores, 4 heads x 64, fp32: kernels work in blocks of queries and waste part of a short one.
_SHORT, _VERY_SHORT, _DENSE, _OVERHEAD = 1.15, 1.6, 1.3, 4_000

Active = tuple[int, ...]
"""Indices into the program of the edits at work in one layer, step and row."""


@dataclass(frozen=True, eq=False)
class Group:
    """Queries that see the same keys with the same weights.

    Attributes:
        queries: Positions (n,), ascending.
        visible: Keys they see, booleans (S,).
        bias: Renormalised weights (S,), 1 where unseen.
        weigh: Weights after the softmax (S,), 1 where unseen.
    """

    queries: np.ndarray
    visible: np.ndarray
    bias: np.ndarray
    weigh: np.ndarray

    @property
    def key(self) -> bytes:
        """What its queries share; equal for groups that can be one."""
        return self.visible.tobytes() + self.bias.tobytes() + self.weigh.tobytes()

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


def group_queries(edits: Sequence[AttentionEdit], layout: TokenLayout) -> list[Group]:
    """Partition the S queries by what they see and how they weigh it.

    Works on signatures (which edits name a query), so that nothing of size S x S is ever made.

    Args:
        edits: All of them active; taps are not looked at.
        layout: Of the S tokens.
    """
    edits = [edit for edit in edits if not isinstance(edit, Tap)]
    named = np.stack([layout.tokens(edit.queries) for edit in edits], axis=1) if edits else np.ones((layout.length, 1))
    signatures, members = np.unique(named, axis=0, return_inverse=True)
    members = members.reshape(-1)
    groups: dict[bytes, Group] = {}
    for number, signature in enumerate(signatures):
        own = [edit for edit, is_named in zip(edits, signature, strict=False) if is_named]
        group = Group(np.flatnonzero(members == number), *_vectors(own, layout))
        if group.key in groups:
            group = _united([groups[group.key], group])
        groups[group.key] = group
    return sorted(groups.values(), key=lambda group: group.queries[0])


def _vectors(edits: Sequence[AttentionEdit], layout: TokenLayout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    keys = [(edit, layout.tokens(edit.keys)) for edit in edits]
    lists = [mask for edit, mask in keys if isinstance(edit, See)]
    visible = np.logical_or.reduce(lists) if lists else np.ones(layout.length, bool)
    for mask in (mask for edit, mask in keys if isinstance(edit, Hide)):
        visible = visible & ~mask
    bias, weigh = np.ones(layout.length), np.ones(layout.length)
    for edit, mask in keys:
        if isinstance(edit, Bias | Weigh):
            (bias if isinstance(edit, Bias) else weigh)[mask & visible] *= edit.weight
    if visible.any() and np.ptp(bias[visible]) == 0:
        bias[:] = 1  # the same factor on all that is seen is renormalised away
    return visible, bias, weigh


def _united(groups: Sequence[Group]) -> Group:
    first = groups[0]
    return Group(_members(groups), first.visible, first.bias, first.weigh)


def choose_form(edits: Sequence[AttentionEdit], layout: TokenLayout, masks: bool = True) -> Form | None:
    """Return the cheapest exact form of the edits, or ``None`` where the stock call is that form.

    Args:
        edits: All of them active in the layer, step and row.
        layout: Of the S tokens.
        masks: Whether the attention kernel takes masks.
    """
    clusters = _clusters(group_queries(edits, layout), masks)
    calls = tuple(_call(groups, layout.length, masks) for groups in clusters)
    taps = [edit for edit in edits if isinstance(edit, Tap)]
    if len(calls) == 1 and not taps and _is_stock(calls[0]):
        return None
    readings = tuple(_reading(tap, clusters, calls, layout) for tap in taps)
    return Form(layout.length, calls, readings, _describe(clusters, calls, readings, layout.length))


def _clusters(groups: list[Group], masks: bool) -> list[list[Group]]:
    """Put groups of equal post-softmax weights under one dense mask where that is the cheaper way."""
    if not masks:
        return [[group] for group in groups]
    together: dict[bytes, list[Group]] = {}
    alone = [[group] for group in groups if not group.pairs]
    for group in (group for group in groups if group.pairs):
        # A weight counts only on the keys that a query sees, so where all are 1 any groups can share a call.
        together.setdefault(group.weigh.tobytes(), []).append(group)
    for cluster in together.values():
        pairs = sum(len(group.queries) for group in cluster) * len(cluster[0].visible)
        dense = len(cluster) > 1 and _DENSE * pairs < sum(group.cost for group in cluster)
        alone += [cluster] if dense else [[group] for group in cluster]
    return sorted(alone, key=lambda cluster: cluster[0].queries[0])


def _call(groups: list[Group], length: int, masks: bool) -> Call:
    if len(groups) > 1:
        return _dense_call(groups, length)
    (group,) = groups
    queries, keys = _index(group.queries, length), _index(np.flatnonzero(group.visible), length)
    if not group.pairs:
        return Call(Look(queries, None, nothing=True))
    bias = _unless_one(group.bias[group.visible])
    mask = bias.log()[None, None, None] if masks and bias is not None else None
    ratio = None if masks else bias
    return Call(Look(queries, keys, mask, ratio), _unless_one(group.weigh[group.visible]))


def _dense_call(groups: list[Group], length: int) -> Call:
    queries = np.concatenate([group.queries for group in groups])
    rows = [np.broadcast_to(group.visible, (len(group.queries), length)) for group in groups]
    mask = torch.from_numpy(np.concatenate(rows))
    if any((group.bias != 1).any() for group in groups):
        bias = np.concatenate([np.broadcast_to(np.log(g.bias), (len(g.queries), length)) for g in groups])
        mask = torch.from_numpy(bias).float().masked_fill(~mask, -torch.inf)
    order = np.argsort(queries)
    mask = mask[torch.from_numpy(order)][None, None]
    return Call(Look(_index(queries[order], length), None, mask), _unless_one(groups[0].weigh))


def _reading(tap: Tap, clusters: list[list[Group]], calls: Sequence[Call], layout: TokenLayout) -> Reading:
    queries, columns = layout.tokens(tap.queries), np.flatnonzero(layout.tokens(tap.columns))
    count = int(queries.sum())
    indicator = _indicator(columns, layout.length, tap.each)
    place = np.cumsum(queries) - 1
    parts = []
    for groups, call in zip(clusters, calls, strict=True):
        own = _members(groups)
        tapped = own[queries[own]]
        if not call.look.nothing and len(tapped) and len(columns):
            look = replace(call.look, queries=_index(tapped, layout.length), mask=_rows(call.look.mask, queries[own]))
            parts.append((look, _index(place[tapped], count), take(indicator, call.look.keys, dim=0)))
    return Reading(tap.name, (count, len(columns)) if tap.each else (count,), tuple(parts))


def _indicator(columns: np.ndarray, length: int, each: bool) -> Tensor:
    indicator = torch.zeros(length, len(columns) if each else 1)
    indicator[torch.from_numpy(columns), torch.arange(len(columns)) if each else 0] = 1
    return indicator


def _rows(mask: Tensor | None, chosen: np.ndarray) -> Tensor | None:
    return mask if mask is None or mask.shape[2] == 1 else mask[:, :, torch.from_numpy(chosen)]


def _members(groups: Sequence[Group]) -> np.ndarray:
    return np.sort(np.concatenate([group.queries for group in groups]))


def _index(positions: np.ndarray, length: int) -> Index | None:
    """Return ascending positions in their cheapest shape: ``None`` for all of them, a slice, a tensor."""
    if len(positions) == length:
        return None
    if len(positions) and positions[-1] - positions[0] == len(positions) - 1:
        return slice(int(positions[0]), int(positions[-1]) + 1)
    return torch.from_numpy(np.ascontiguousarray(positions))


def _unless_one(weights: np.ndarray) -> Tensor | None:
    return None if (weights == 1).all() else torch.from_numpy(weights).float()


def _is_stock(call: Call) -> bool:
    look = call.look
    return all(part is None for part in (look.queries, look.keys, look.mask, look.ratio, call.weights)) and (
        not look.nothing
    )


def _describe(clusters: list[list[Group]], calls: Sequence[Call], readings: Sequence[Reading], length: int) -> str:
    looks = [call.look for call in calls]
    fused = sum(not look.nothing for look in looks)
    notes = [f"{fused} fused call{'s' * (fused != 1)} over " + " + ".join(str(_size(c)) for c in clusters) + " queries"]
    notes += ["keys gathered"] * any(look.keys is not None for look in looks)
    notes += ["values scaled"] * any(call.weights is not None for call in calls)
    notes += ["key-only mask"] * any(look.mask is not None and look.mask.shape[2] == 1 for look in looks)
    notes += ["quotient of two calls, as the kernel takes no mask"] * any(look.ratio is not None for look in looks)
    if many := [len(cluster) for cluster in clusters if len(cluster) > 1]:
        notes.append(f"dense mask, because {sum(many)} small query groups would cost more one by one")
    notes += [f"{sum(look.nothing for look in looks)} group sees nothing"] * any(look.nothing for look in looks)
    notes += [f"{len(readings)} tap{'s' * (len(readings) > 1)}"] * bool(readings)
    return ", ".join(notes) + f", {_pairs(calls, length) / length**2:.2f} x the work of plain attention"


def _size(cluster: list[Group]) -> int:
    return sum(len(group.queries) for group in cluster)


def _count(index: Index | None, length: int) -> int:
    if index is None:
        return length
    return index.stop - index.start if isinstance(index, slice) else len(index)


def _look_pairs(look: Look, length: int) -> int:
    pairs = 0 if look.nothing else _count(look.queries, length) * _count(look.keys, length)
    return pairs * (1 if look.ratio is None else 2)


def _pairs(calls: Iterable[Call], length: int) -> int:
    return sum(_look_pairs(call.look, length) for call in calls)


@dataclass(frozen=True, eq=False)
class Reach:
    """Where one edit works, resolved: positions of layers, steps as indices, roles of rows (``None`` is all)."""

    layers: frozenset[int]
    steps: range
    rows: tuple[str, ...] | None

    def covers(self, layer: int, step: int, role: str | None) -> bool:
        """Whether the edit works there."""
        return layer in self.layers and step in self.steps and (self.rows is None or role in self.rows)


@dataclass(frozen=True, eq=False)
class CompiledProgram:
    """A program made ready for one model, token layout and number of steps; printable, and free of any weights.

    Attributes:
        program: As it was written.
        layout: Tokens and groups.
        layers: Of the model, in order.
        num_steps: Of the run.
        reaches: One for each edit of the program; ``None`` for a neutral edit.
        forms: For each set of edits that meet somewhere, the form to run (``None``: the stock call).
    """

    program: AttentionProgram
    layout: TokenLayout
    layers: tuple[LayerInfo, ...]
    num_steps: int
    reaches: tuple[Reach | None, ...]
    forms: dict[Active, Form | None]

    def active(self, layer: int, step: int, role: str | None) -> Active:
        """Return which edits work in the layer at this position, at this step, in rows of this role."""
        return _active(self.reaches, layer, step, role)

    def form(self, layer: int, step: int, role: str | None = None) -> Form | None:
        """Return the form that runs there; ``None`` is the stock call."""
        return self.forms[self.active(layer, step, role)]

    @cached_property
    def edited(self) -> tuple[int, ...]:
        """Positions of the layers that ever run anything but the stock call."""
        meetings = _meetings(self.reaches, len(self.layers), self.num_steps)
        return tuple(sorted({layer for layer, active in meetings if self.forms[active] is not None}))

    @property
    def empty(self) -> bool:
        """Whether the program changes nothing anywhere."""
        return not self.edited

    @property
    def constant(self) -> bool:
        """Whether every edit works in all steps and all rows, so that neither has to be told."""
        return all(r is None or (r.rows is None and r.steps == range(self.num_steps)) for r in self.reaches)

    @property
    def uses_masks(self) -> bool:
        """Whether any form needs a kernel that takes masks."""
        calls = [call for form in self.forms.values() if form for call in form.calls]
        return any(call.look.mask is not None for call in calls)

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the taps."""
        return tuple(edit.name for edit in self.program if isinstance(edit, Tap))

    def flops(self, num_heads: int, head_dim: int, step: int = 0, role: str | None = None) -> tuple[int, ...]:
        """Count the attention FLOPs of one batch row, one number for each layer (projections not included)."""
        per_pair = 4 * num_heads * head_dim  # a multiplication and an addition, for the logits and for the product
        return tuple(per_pair * self._work(self.form(layer, step, role), head_dim) for layer in range(len(self.layers)))

    def _work(self, form: Form | None, head_dim: int) -> int:
        if form is None:
            return self.layout.length**2
        taps = [(look, columns.shape[1]) for reading in form.readings for look, _, columns in reading.parts]
        tapped = sum(_look_pairs(look, self.layout.length) * -(-width // head_dim) for look, width in taps)
        return _pairs(form.calls, self.layout.length) + tapped

    def lines(self) -> list[str]:
        """Say for each edit its layers, step window as indices, rows and compiled form."""
        return [self._line(index) for index in range(len(self.program))]

    def _line(self, index: int) -> str:
        edit, reach = self.program.edits[index], self.reaches[index]
        if reach is None:
            return f"{edit.action} | neutral, the stock call"
        texts = {form.text if form else "the stock call" for active, form in self.forms.items() if index in active}
        steps = f"steps [{reach.steps.start}, {reach.steps.stop}) of {self.num_steps}"
        where = [edit.action, _layer_words([self.layers[i] for i in sorted(reach.layers)]), steps, edit.scope.rows_text]
        return " | ".join([*where, "; or ".join(sorted(texts)) or "never at work"])

    def __str__(self) -> str:
        return "\n".join(
            [f"attention program on {self.layout}:", *(f"  {line}" for line in self.lines() or ["no edits"])]
        )


def compile_program(
    program: AttentionProgram,
    layout: TokenLayout,
    *,
    layers: Sequence[LayerInfo],
    num_steps: int,
    masks: bool = True,
) -> CompiledProgram:
    """Compile a program for a model's layers, a token layout and a number of steps.

    Args:
        program: What should happen.
        layout: The joint sequence, in the backbone's order.
        layers: Attention layers of the model, see `capriccio.attention.layers_of`.
        num_steps: Denoising steps of the run, at least 1.
        masks: Whether the attention kernel takes masks (flash and sage kernels do not).

    Raises:
        CapriccioError: If a group is unknown or there is no step.
    """
    if num_steps < 1:
        raise CapriccioError(f"an attention program received {num_steps} steps, but a run has at least 1; give more.")
    reaches = tuple(_reach(edit, layers, num_steps) for edit in program)
    for edit in program:
        layout.tokens(edit.queries), layout.tokens(edit.keys)
    actives = {active for _, active in _meetings(reaches, len(layers), num_steps)}
    forms = {active: choose_form([program.edits[i] for i in active], layout, masks) for active in actives}
    return CompiledProgram(program, layout, tuple(layers), num_steps, reaches, forms)


def _reach(edit: AttentionEdit, layers: Sequence[LayerInfo], num_steps: int) -> Reach | None:
    kinds = {layer.kind for layer in layers}
    for kind in edit.scope.layers.kinds or ():
        if kind not in kinds:
            raise CapriccioError(f"an edit works in {kind!r} layers, but the model has none; {nearest(kind, kinds)}")
    if edit.neutral:
        return None
    chosen = frozenset(i for i, layer in enumerate(layers) if layer in edit.scope.layers)
    return Reach(chosen, edit.scope.steps.window(num_steps), edit.scope.rows)


def _active(reaches: Sequence[Reach | None], layer: int, step: int, role: str | None) -> Active:
    return tuple(i for i, reach in enumerate(reaches) if reach is not None and reach.covers(layer, step, role))


def _meetings(reaches: Sequence[Reach | None], num_layers: int, num_steps: int) -> set[tuple[int, Active]]:
    """Return every (layer, active edits) that can occur: a role that no edit names counts as ``None``."""
    live = [reach for reach in reaches if reach is not None]
    steps = {0, *(bound for reach in live for bound in (reach.steps.start, reach.steps.stop) if bound < num_steps)}
    roles = {None, *(role for reach in live for role in reach.rows or ())}
    return {(k, _active(reaches, k, step, role)) for k in range(num_layers) for step in steps for role in roles}


def _layer_words(layers: Sequence[LayerInfo]) -> str:
    by_kind: dict[str, list[int]] = {}
    for layer in layers:
        by_kind.setdefault(layer.kind, []).append(layer.index)
    return ", ".join(f"{kind} {_ranges(indices)}" for kind, indices in by_kind.items()) or "no layers"


def _ranges(indices: list[int]) -> str:
    steps = set(np.diff(indices).tolist())
    if len(steps) == 1 and len(indices) > 1:
        (step,) = steps
        return f"{indices[0]}-{indices[-1]}" + (f" every {step}" if step > 1 else "")
    return ",".join(map(str, indices))
