"""The compiler: from a program over named groups to one form for each layer, step and role, without a forward pass.

Edits meet where their scopes overlap and the layer holds their groups; every set of edits that meets somewhere gets its
form from `choose_form`, once for all layers that see the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from capriccio.attention.choose import Size, choose_form, look_pairs, pairs_of
from capriccio.attention.forms import Form
from capriccio.attention.layout import Attended, Layout, Sides, TokenLayout
from capriccio.attention.program import AttentionEdit, AttentionProgram, Bank, Features, LayerInfo, Names, Tap, Twin
from capriccio.errors import CapriccioError, nearest

Active = tuple[int, ...]
"""Indices into the program of the edits at work in one layer, step and row."""


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
        attended: For each layer, what it attends with and to, the twins included.
        places: For each layer, the first layer that sees what it sees.
        forms: For each set of edits that meet at a place, the form to run (``None``: the stock call).
        masks: Whether the attention kernel takes masks.
        banks: For each layer, the banks that it may look at and their numbers of tokens.
    """

    program: AttentionProgram
    layout: Layout
    layers: tuple[LayerInfo, ...]
    num_steps: int
    reaches: tuple[Reach | None, ...]
    attended: tuple[Attended, ...]
    places: tuple[int, ...]
    forms: dict[tuple[int, Active], Form | None]
    masks: bool = True
    banks: tuple[Mapping[str, int], ...] = ()

    def defining(self, groups: Mapping[str, Any]) -> CompiledProgram:
        """Return the program with the tokens of late groups told.

        Raises:
            CapriccioError: If a group was not announced as late.
        """
        layout, steps = self.layout.defining(groups), self.num_steps
        return compile_program(self.program, layout, layers=self.layers, num_steps=steps, masks=self.masks)

    def active(self, layer: int, step: int, role: str | None) -> Active:
        """Return which edits work in the layer at this position, at this step, in rows of this role."""
        return _active(self._awake, layer, step, role)

    @cached_property
    def _awake(self) -> tuple[Reach | None, ...]:
        """Where each edit works by now: nowhere while it waits for a late group."""
        return _awake(self.program, self.reaches, self.layout)

    def form(self, layer: int, step: int, role: str | None = None) -> Form | None:
        """Return the form that runs there; ``None`` is the stock call."""
        return self.forms[self.places[layer], self.active(layer, step, role)]

    def size(self, layer: int) -> Size:
        """Return the numbers of queries and keys of the layer at this position."""
        attended = self.attended[layer]
        return attended.queries.given, attended.keys.given

    @cached_property
    def edited(self) -> tuple[int, ...]:
        """Positions of the layers that ever run anything but the stock call, or may once late groups are told."""
        meetings = _meetings(self._awake, len(self.layers), self.num_steps)
        now = {k for k, active in meetings if self.forms[self.places[k], active] is not None}
        waiting = [reach for reach in self.reaches if reach is not None and reach not in self._awake]
        return tuple(sorted(now.union(*(reach.layers for reach in waiting))))

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

    @property
    def bank_names(self) -> tuple[str, ...]:
        """Names of the banks."""
        return tuple(dict.fromkeys(edit.name for edit in self.program if isinstance(edit, Bank)))

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the states that are remembered."""
        return tuple(edit.name for edit in self.program if isinstance(edit, Features))

    def flops(
        self, num_heads: int | Sequence[int], head_dim: int | Sequence[int], step: int = 0, role: str | None = None
    ) -> tuple[int, ...]:
        """Count the attention FLOPs of one batch row, one number for each layer (projections not included).

        Args:
            num_heads: Of all layers, or of each.
            head_dim: Width of a head, of all layers or of each.
            step: Of the run.
            role: Of the row.
        """
        count = len(self.layers)
        heads, widths = ((x,) * count if isinstance(x, int) else x for x in (num_heads, head_dim))
        # a multiplication and an addition, for the logits and for the product
        return tuple(
            4 * heads[k] * widths[k] * self._work(k, self.form(k, step, role), widths[k]) for k in range(count)
        )

    def _work(self, layer: int, form: Form | None, head_dim: int) -> int:
        size = self.size(layer)
        if form is None:
            return size[0] * size[1]
        size = size[0], size[1] + form.brought
        taps = [(look, columns.shape[1]) for reading in form.readings for look, _, columns in reading.parts]
        tapped = sum(look_pairs(look, size) * -(-width // head_dim) for look, width in taps)
        return pairs_of(form.calls, size) + tapped + sum(one.pairs for one in form.beside)

    def lines(self) -> list[str]:
        """Say for each edit its layers, step window as indices, rows and compiled form."""
        return [*map(str, self.program.twins), *(self._line(index) for index in range(len(self.program)))]

    def _line(self, index: int) -> str:
        edit, reach = self.program.edits[index], self.reaches[index]
        if reach is None:
            return f"{edit.action} | neutral, the stock call"
        if reach not in self._awake:
            return f"{edit.action} | {edit.scope} | waits for a group that is told later"
        own = [form for (_, active), form in self.forms.items() if index in active]
        texts = {form.text if form else "the stock call" for form in own}
        steps = f"steps [{reach.steps.start}, {reach.steps.stop}) of {self.num_steps}"
        where = [edit.action, _layer_words([self.layers[i] for i in sorted(reach.layers)]), steps, edit.scope.rows_text]
        return " | ".join([*where, "; or ".join(sorted(texts)) or "never at work"])

    def __str__(self) -> str:
        return "\n".join(
            [f"attention program on {self.layout}:", *(f"  {line}" for line in self.lines() or ["no edits"])]
        )


def compile_program(
    program: AttentionProgram,
    layout: Layout,
    *,
    layers: Sequence[LayerInfo],
    num_steps: int,
    masks: bool = True,
) -> CompiledProgram:
    """Compile a program for a model's layers, a token layout and a number of steps.

    Args:
        program: What should happen.
        layout: The joint sequence in the backbone's order, or the shapes and words of a U-Net.
        layers: Attention layers of the model, see `capriccio.attention.layers_of`.
        num_steps: Denoising steps of the run, at least 1.
        masks: Whether the attention kernel takes masks (flash and sage kernels do not).

    Raises:
        CapriccioError: If a group is unknown, there is no step, or a tap cannot be averaged over its layers.
    """
    if num_steps < 1:
        raise CapriccioError(f"an attention program received {num_steps} steps, but a run has at least 1; give more.")
    attended = _attended(program.twins, layout, layers)
    names = {twin.name for twin in program.twins}
    for named in (names for edit in program for names in (edit.queries, edit.keys)):
        layout.check(tuple(name for name in _names(named) if name not in names))
    banks = tuple(_banks(program, layout, layer) for layer in layers)
    alike = list(zip(map(id, attended), banks, strict=True))
    places = tuple(alike.index(one) for one in alike)
    reaches = tuple(_reach(edit, layers, attended, banks, num_steps) for edit in program)
    finest = _finest(program, reaches, attended)
    awake = _awake(program, reaches, layout)
    meetings = {(places[k], active) for k, active in _meetings(awake, len(layers), num_steps)}
    forms = {
        (place, active): choose_form([program.edits[i] for i in active], attended[place], masks, finest, banks[place])
        for place, active in meetings
    }
    return CompiledProgram(program, layout, tuple(layers), num_steps, reaches, attended, places, forms, masks, banks)


def _banks(program: AttentionProgram, layout: Layout, layer: LayerInfo) -> dict[str, int]:
    """Return the banks that a layer may look at, and how many tokens they have there."""
    named = [edit.name for edit in program if isinstance(edit, Bank) and layer in edit.scope.layers]
    return {name: layout.bank(name, layer) for name in named}


def _attended(twins: Sequence[Twin], layout: Layout, layers: Sequence[LayerInfo]) -> tuple[Attended, ...]:
    """Return what each layer attends with and to; the very same object for layers that see the same."""
    for name in {name for twin in twins for name in _names(twin.of)}:
        layout.check(name)
    found: dict[tuple[int, tuple[Twin, ...]], Attended] = {}
    result = []
    for layer in layers:
        one = layout.at(layer)
        apart = tuple(twin for twin in twins if twin.own is not None and layer in twin.own)
        if twins and (id(one), apart) not in found:
            found[id(one), apart] = _with_twins(one, twins, apart)
        result.append(found[id(one), apart] if twins else one)
    return tuple(result)


def _with_twins(one: Attended, twins: Sequence[Twin], apart: Sequence[Twin]) -> Attended:
    here = tuple(twin for twin in twins if one.queries.tokens(twin.of).any())
    queries = one.queries.with_twins(here, apart)
    return queries if isinstance(one, TokenLayout) else Sides(queries, _without(one.keys, here))


def _without(keys: TokenLayout, twins: Sequence[Twin]) -> TokenLayout:
    """Return keys that know the twins of the queries by name, and hold none of them."""
    return replace(keys, elsewhere=keys.elsewhere | {twin.name for twin in twins})


def _awake(program: AttentionProgram, reaches: Sequence[Reach | None], layout: Layout) -> tuple[Reach | None, ...]:
    return tuple(
        None if layout.late & {*_names(edit.queries), *_names(edit.keys)} else reach
        for edit, reach in zip(program, reaches, strict=False)
    )


def _names(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _reach(
    edit: AttentionEdit,
    layers: Sequence[LayerInfo],
    attended: Sequence[Attended],
    banks: Sequence[Mapping[str, int]],
    num_steps: int,
) -> Reach | None:
    kinds = {layer.kind for layer in layers}
    for kind in edit.scope.layers.kinds or ():
        if kind not in kinds:
            raise CapriccioError(f"an edit works in {kind!r} layers, but the model has none; {nearest(kind, kinds)}")
    if edit.neutral:
        return None
    chosen = frozenset(
        i
        for i, (layer, sides) in enumerate(zip(layers, attended, strict=True))
        if layer in edit.scope.layers
        and sides.queries.holds(edit.queries)
        and (sides.keys.holds(edit.keys) or any(name in banks[i] for name in _names(edit.keys)))
    )
    return Reach(chosen, edit.scope.steps.window(num_steps), edit.scope.rows)


def _finest(
    program: AttentionProgram, reaches: Sequence[Reach | None], attended: Sequence[Attended]
) -> dict[str, TokenLayout]:
    """Return for each tap the queries of the finest layer that it reaches."""
    found = {}
    for tap, reach in zip(program, reaches, strict=True):
        if isinstance(tap, Tap) and reach is not None and reach.layers:
            read = [attended[k] for k in sorted(reach.layers)]
            if tap.each and len({int(one.keys.tokens(tap.columns).sum()) for one in read}) > 1:
                raise CapriccioError(
                    f"the tap {tap.name!r} reads every column by itself in layers that have different numbers of them; "
                    "scope it to layers of one kind and level, or read their sum with each=False."
                )
            found[tap.name] = min((one.queries for one in read), key=lambda queries: queries.level)
    return found


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
