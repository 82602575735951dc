"""The grammar of attention edits: which query tokens see which key tokens, and with what weight.

A program is a list of edits over *named token groups*, each with a scope (layers, steps, rows by role).
It says what should happen and nothing about how; `capriccio.attention.compile` finds the exact fast form.

When edits meet, their order is part of the meaning: see and hide, then key scale and bias, softmax, tap, weigh, banks
with a softmax of their own, and mix last. An edit works in the layers that hold tokens of both its queries and its
keys.

A *twin* is a second view of a token group under a name of its own: it looks through edits of its own, and `Mix` takes
from what it finds. Only who names a twin in a `See` sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, inf, isfinite
from typing import ClassVar, Literal

from capriccio.errors import CapriccioError

Names = str | tuple[str, ...]
"""One token group, or several taken together."""


def _several(names: Names | None) -> tuple[str, ...] | None:
    """Return names as a tuple; one may be given by itself."""
    return (names,) if isinstance(names, str) else names


@dataclass(frozen=True)
class LayerInfo:
    """One attention layer of a model.

    Attributes:
        name: Path of the attention module inside the model.
        kind: What the family calls it, such as ``"double"``, ``"single"``, ``"self"`` or ``"cross"``.
        index: Position among the layers of the same kind, from 0.
        level: How often the sides of the grid of image tokens were halved before it; 0 where all layers see the same.
    """

    name: str
    kind: str
    index: int
    level: int = 0


@dataclass(frozen=True)
class Layers:
    """Which layers an edit works in: every ``every``-th of each kind, from ``start`` up to but without ``stop``.

    Attributes:
        kinds: Kinds of layer, or ``None`` for all of them.
        start: First index, counted within the kind.
        stop: Index after the last, or ``None`` for the end.
        every: Interval, at least 1.
        others: The layers of those kinds that the numbers above do not choose, instead of those they do.
        levels: Resolutions, as halvings of the finest grid of image tokens (0 is the finest), or ``None`` for all.
    """

    kinds: tuple[str, ...] | None = None
    start: int = 0
    stop: int | None = None
    every: int = 1
    others: bool = False
    levels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", _several(self.kinds))
        object.__setattr__(self, "levels", (self.levels,) if isinstance(self.levels, int) else self.levels)
        if self.start < 0 or self.every < 1:
            raise CapriccioError(
                f"Layers received start={self.start} and every={self.every}, but start counts from 0 and every from 1; "
                "give layer indices within their kind."
            )

    def __contains__(self, layer: LayerInfo) -> bool:
        in_kind = self.kinds is None or layer.kind in self.kinds
        in_kind = in_kind and (self.levels is None or layer.level in self.levels)
        in_range = self.start <= layer.index < (inf if self.stop is None else self.stop)
        chosen = in_range and (layer.index - self.start) % self.every == 0
        return in_kind and chosen != self.others

    def __str__(self) -> str:
        kinds = "all layers" if self.kinds is None else " and ".join(self.kinds) + " layers"
        kinds += " but for" * self.others
        interval = "" if self.every == 1 else f", every {self.every}"
        interval += "" if self.levels is None else f", halved {' or '.join(map(str, self.levels))} times"
        if self.start == 0 and self.stop is None:
            return kinds + interval
        return f"{kinds} [{self.start}, {'end' if self.stop is None else self.stop}){interval}"


@dataclass(frozen=True)
class Steps:
    """Which denoising steps an edit works in: a half-open window.

    Attributes:
        start: First step: a fraction of the run (float, 0.0 to 1.0) or an index (int).
        stop: Step after the last, in the same two ways; the default is the end of the run.
    """

    start: float | int = 0.0
    stop: float | int = 1.0

    def __post_init__(self) -> None:
        for bound in (self.start, self.stop):
            if bound < 0 or (isinstance(bound, float) and bound > 1):
                raise CapriccioError(
                    f"a step window received the bound {bound!r}, but a fraction (float) lies between 0.0 and 1.0 "
                    "and an index (int) starts at 0; give one of the two."
                )

    def window(self, num_steps: int) -> range:
        """Return the steps of a run of ``num_steps`` that lie in the window."""
        return range(_step(self.start, num_steps), _step(self.stop, num_steps))

    def __str__(self) -> str:
        return "all steps" if (self.start, self.stop) == (0, 1.0) else f"steps [{self.start}, {self.stop})"


def _step(bound: float | int, num_steps: int) -> int:
    # The small slack keeps 0.3 of 10 steps at 3, whatever the last bit of the product says.
    return min(ceil(bound * num_steps - 1e-9) if isinstance(bound, float) else bound, num_steps)


@dataclass(frozen=True)
class Scope:
    """Where an edit works; everything by default.

    Attributes:
        layers: Which layers.
        steps: Which denoising steps.
        rows: Roles of the batch rows it works in, such as ``("positive",)``, or ``None`` for every row.
    """

    layers: Layers = Layers()
    steps: Steps = Steps()
    rows: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", _several(self.rows))

    @property
    def rows_text(self) -> str:
        """The rows in words."""
        return "all rows" if self.rows is None else "rows " + ", ".join(self.rows)

    def __str__(self) -> str:
        return f"{self.layers} | {self.steps} | {self.rows_text}"


@dataclass(frozen=True)
class See:
    """Allow-list: the queries see only the keys of the `See` edits that name them (their union)."""

    queries: Names
    keys: Names
    scope: Scope = Scope()

    neutral = False

    @property
    def action(self) -> str:
        """The edit in words, without its scope."""
        return f"see {_words(self.queries)} -> {_words(self.keys)}"


@dataclass(frozen=True)
class Hide:
    """The queries do not see the keys; taken away after every `See`. A query that sees nothing gives 0."""

    queries: Names
    keys: Names
    scope: Scope = Scope()

    neutral = False

    @property
    def action(self) -> str:
        """The edit in words, without its scope."""
        return f"hide {_words(self.queries)} -> {_words(self.keys)}"


@dataclass(frozen=True)
class Bias:
    """Attention weight times ``weight``, renormalised: ``log(weight)`` is added to the logits. 1 changes nothing.

    Attributes:
        weight: Above 0; to forbid the keys altogether use `Hide`.
    """

    queries: Names
    keys: Names
    weight: float
    scope: Scope = Scope()

    def __post_init__(self) -> None:
        if not (isfinite(self.weight) and self.weight > 0):
            raise CapriccioError(
                f"Bias received the weight {self.weight}, but its logarithm is added to the logits, so it must be a "
                "number above 0; use Hide to forbid keys or Weigh for a factor after the softmax."
            )

    @property
    def neutral(self) -> bool:
        """Whether the edit changes nothing."""
        return self.weight == 1

    @property
    def action(self) -> str:
        """The edit in words, without its scope."""
        return f"bias {_words(self.queries)} -> {_words(self.keys)} by {self.weight:g}"


@dataclass(frozen=True)
class Weigh:
    """Attention weight times ``weight`` after the softmax, not renormalised. 1 changes nothing.

    Attributes:
        weight: Any finite number; Diptych Prompting (arXiv 2411.15466) uses 1.3.
    """

    queries: Names
    keys: Names
    weight: float
    scope: Scope = Scope()

    def __post_init__(self) -> None:
        if not isfinite(self.weight):
            raise CapriccioError(f"Weigh received the weight {self.weight}, but expects a finite number; give one.")

    @property
    def neutral(self) -> bool:
        """Whether the edit changes nothing."""
        return self.weight == 1

    @property
    def action(self) -> str:
        """The edit in words, without its scope."""
        return f"weigh {_words(self.queries)} -> {_words(self.keys)} by {self.weight:g}"


@dataclass(frozen=True)
class KeyScale:
    """The queries' logits on the keys times ``scale``, before any `Bias` and the softmax. 1 changes nothing.

    Attributes:
        scale: Any finite number: above 1 sharpens, below 1 flattens, as an inverse temperature on these keys alone.
    """

    queries: Names
    keys: Names
    scale: float
    scope: Scope = Scope()

    def __post_init__(self) -> None:
        if not isfinite(self.scale):
            raise CapriccioError(f"KeyScale received the scale {self.scale}, but expects a finite number; give one.")

    @property
    def neutral(self) -> bool:
        """Whether the edit changes nothing."""
        return self.scale == 1

    @property
    def action(self) -> str:
        """The edit in words, without its scope."""
        return f"scale logits {_words(self.queries)} -> {_words(self.keys)} by {self.scale:g}"


@dataclass(frozen=True)
class Tap:
    """Read how much the queries look at the columns, after the softmax and before `Weigh`.

    Readings are the mean over heads, layers and steps of the scope, one per batch row and query. Rows of the same
    role are told apart by their order. The reading is differentiable. Where layers see the picture at several
    resolutions, the queries are those of the finest layer in the scope, and a coarser one tells each of them what the
    cell says that it lies in.

    Attributes:
        name: Key of the reading in the ``taps`` of an attachment.
        queries: Whose weights are read.
        columns: Which keys are looked at.
        each: Read every column by itself, ``(rows, queries, columns)``, instead of their sum, ``(rows, queries)``.
    """

    name: str
    queries: Names
    columns: Names
    scope: Scope = Scope()
    each: bool = False

    neutral = False

    @property
    def keys(self) -> Names:
        """The columns, under the name that other edits use."""
        return self.columns

    @property
    def action(self) -> str:
        """The edit in words, without its scope."""
        return f"tap {self.name!r} {_words(self.queries)} -> {_words(self.columns)}"


@dataclass(frozen=True)
class Features:
    """Remember the states of tokens as a layer is given them, before its projections: what a bank of another run reads.

    Each layer of the scope is remembered by itself; steps are averaged. Rows of the same role are told apart by their
    order. What is remembered keeps its gradient.

    Attributes:
        name: Key of the states in the ``features`` of an attachment.
        queries: Whose states; on U-Nets image tokens, at the resolution of each layer.
    """

    name: str
    queries: Names
    scope: Scope = Scope()

    neutral = False
    keys: ClassVar[Names] = ()

    @property
    def action(self) -> str:
        """The edit in words, without its scope."""
        return f"remember {self.name!r} of {_words(self.queries)}"


@dataclass(frozen=True)
class Mix:
    """Mix what a group finds with what its twin finds: ``out = (1 - ratio) out[into] + ratio out[source]``.

    The twin's own stream is not changed. 0 changes nothing.

    Attributes:
        into: Tokens whose attention output is mixed.
        source: The twin of a group that holds them all; every token takes from its own twin.
        ratio: 0 (nothing of the twin) to 1 (the twin alone).
    """

    into: Names
    source: str
    ratio: float
    scope: Scope = Scope()

    keys: ClassVar[Names] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise CapriccioError(
                f"Mix received the ratio {self.ratio}, but expects 0 (nothing of the twin) to 1 (the twin alone)."
            )

    @property
    def queries(self) -> Names:
        """The tokens and their twins."""
        return (*_tuple(self.into), self.source)

    @property
    def neutral(self) -> bool:
        """Whether the edit changes nothing."""
        return self.ratio == 0

    @property
    def action(self) -> str:
        """The edit in words, without its scope."""
        return f"mix {self.source} into {_words(self.into)} by {self.ratio:g}"


@dataclass(frozen=True)
class Twin:
    """A second view of a token group, under a name of its own.

    Until the layers where it goes its own way the twin *is* the group: the same states, queries, keys and values, seen
    through other edits. From the first of those layers on it is a stream of its own.

    Attributes:
        name: Of the twin, among the token groups.
        of: The group.
        own: Layers in which it is a stream of its own, to the end of the model; none if ``None``.
    """

    name: str
    of: Names
    own: Layers | None = None

    def __str__(self) -> str:
        apart = "" if self.own is None else f", a stream of its own in {self.own}"
        return f"twin {self.name} of {_words(self.of)}{apart}"


@dataclass(frozen=True)
class Bank:
    """More keys and values for the queries, from tokens that are not of the model's own sequences.

    What the tokens are is told while the model runs, see `Attachment.give`. With the softmax ``"joint"`` they stand
    beside the keys of the layer, as a token group of the bank's name that other edits may name too; nobody else sees
    them. With ``"own"`` the queries look at them by themselves, and find ``scale`` times that in addition:
    ``out + scale softmax(Q K'^T / sqrt(d)) V'`` (IP-Adapter, arXiv 2308.06721, Eq. 5).

    Attributes:
        name: Of the bank, among the token groups.
        queries: Who looks at it.
        softmax: ``"joint"`` or ``"own"``.
        scale: Any finite number; of a joint softmax 1, for there `Weigh` and `Bias` say how much the tokens count.
    """

    name: str
    queries: Names
    softmax: Literal["joint", "own"] = "joint"
    scale: float = 1.0
    scope: Scope = Scope()

    def __post_init__(self) -> None:
        if self.softmax not in ("joint", "own"):
            raise CapriccioError(f"Bank received the softmax {self.softmax!r}; give 'joint' or 'own'.")
        if not isfinite(self.scale) or (self.joint and self.scale != 1):
            raise CapriccioError(
                f"Bank received the scale {self.scale} with the softmax {self.softmax!r}, but expects a finite number, "
                "and 1 where the softmax is joint; there, Weigh and Bias say how much the tokens count."
            )

    @property
    def joint(self) -> bool:
        """Whether the tokens share the softmax of the layer."""
        return self.softmax == "joint"

    @property
    def keys(self) -> Names:
        """The tokens, where they are keys of the layer."""
        return (self.name,) if self.joint else ()

    @property
    def neutral(self) -> bool:
        """Whether the edit changes nothing."""
        return self.scale == 0

    @property
    def action(self) -> str:
        """The edit in words, without its scope."""
        how = "in the same softmax" if self.joint else f"in a softmax of its own x {self.scale:g}"
        return f"bank {_words(self.queries)} -> {self.name}, {how}"


AttentionEdit = See | Hide | Bias | KeyScale | Weigh | Tap | Features | Bank | Mix


@dataclass(frozen=True)
class AttentionProgram:
    """Edits that hold together, and the twins that they name; added with ``+`` and printed with ``str``."""

    edits: tuple[AttentionEdit, ...] = ()
    twins: tuple[Twin, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", tuple(self.edits))
        object.__setattr__(self, "twins", tuple(dict.fromkeys(self.twins)))
        if len({twin.name for twin in self.twins}) < len(self.twins):
            raise CapriccioError("the attention program has two different twins of one name; rename one of them.")
        taps = [edit.name for edit in self.edits if isinstance(edit, Tap | Features)]
        if twice := {name for name in taps if taps.count(name) > 1}:
            raise CapriccioError(
                f"the attention program has several taps named {sorted(twice)[0]!r}, but a reading needs a name of "
                "its own; rename one of them."
            )

    def __add__(self, other: AttentionProgram) -> AttentionProgram:
        if not isinstance(other, AttentionProgram):
            return NotImplemented
        return AttentionProgram(self.edits + other.edits, self.twins + other.twins)

    def __iter__(self) -> Iterator[AttentionEdit]:
        return iter(self.edits)

    def __len__(self) -> int:
        return len(self.edits)

    def __str__(self) -> str:
        if not self.edits:
            return "attention program: no edits"
        lines = [*map(str, self.twins), *(f"{edit.action} | {edit.scope}" for edit in self.edits)]
        return "\n".join(["attention program:", *(f"  {line}" for line in lines)])


def _tuple(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _words(names: Names) -> str:
    return " + ".join(_tuple(names))
