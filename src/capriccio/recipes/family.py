"""A family of models as a graph: what must be trained before what, what of it is there, and what is left to do.

Nothing here reads a disk or trains: a plan is a function of what is asked for and of the traces of earlier trainings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from graphlib import TopologicalSorter
from typing import Any

Origin = Mapping[str, Any]
"""What a training begins from: its settings by their names, and a hash of the weights of each model it needs."""


@dataclass(frozen=True)
class Member:
    """One model of a family.

    Attributes:
        task: Its recipe, as ``"module.Class"``.
        needs: The models it learns from, which stay as they are.
        base: The model whose weights it goes on from, unless others are given.
        lands_in: The model whose folder its weights join, where it has none of its own.
    """

    task: str
    needs: tuple[str, ...] = ()
    base: str = ""
    lands_in: str = ""

    def before(self, started: bool = False) -> tuple[str, ...]:
        """What must be trained before; ``started`` from other weights, its base need not."""
        return self.needs if started or not self.base else (*self.needs, self.base)


def in_order(family: Mapping[str, Member]) -> tuple[str, ...]:
    """Return the names of a family, each behind all that it needs.

    Raises:
        graphlib.CycleError: If models need each other in a circle.
    """
    return tuple(TopologicalSorter({name: member.before() for name, member in family.items()}).static_order())


@dataclass(frozen=True)
class Trace:
    """What an earlier training left.

    Attributes:
        learned: How long its checkpoint has learned, in the unit of what is wanted.
        origin: What it began from; ``None`` where that was not recorded.
        saved: Whether it ended, and its weights are those that are in use.
    """

    learned: float
    origin: Origin | None = None
    saved: bool = False


@dataclass(frozen=True)
class Wanted:
    """A model that is asked for: for how long (minutes, or steps), from what origin, and the trace that is there."""

    name: str
    needs: tuple[str, ...]
    length: float
    origin: Origin
    trace: Trace | None = None


class State(StrEnum):
    """How a model stands."""

    done = "done"
    resumes = "resumes"
    stale = "stale"
    to_do = "to do"


@dataclass(frozen=True)
class Step:
    """One row of a plan.

    Attributes:
        share: How much of its length a model has learned, 0 to 1.
        reason: Why what is there of it is stale.
    """

    name: str
    needs: tuple[str, ...]
    length: float
    state: State
    share: float = 0.0
    reason: str = ""

    def __str__(self) -> str:
        extra = {State.resumes: f" at {100 * self.share:.0f} %", State.stale: f": {self.reason}"}
        return self.state + extra.get(self.state, "")


def judge(wanted: Wanted, changing: Sequence[str] = ()) -> Step:
    """Return how a model stands.

    A checkpoint is worth going on with as long as it began from what is asked for now. Time is no part of that: more
    minutes let it learn longer, fewer may find it done.

    Args:
        wanted: The model.
        changing: Those of its needs that are still to be trained.
    """
    trace = wanted.trace
    if trace is None:
        return Step(wanted.name, wanted.needs, wanted.length, State.to_do)
    share = min(1.0, trace.learned / wanted.length)
    reasons = differences(trace.origin, wanted.origin, wanted.needs)
    if changing:
        reasons = [f"{' and '.join(changing)} must be trained first"]
    state = State.stale if reasons else State.done if share == 1.0 and trace.saved else State.resumes
    return Step(wanted.name, wanted.needs, wanted.length, state, share, ", ".join(reasons))


def differences(then: Origin | None, now: Origin, needs: Sequence[str]) -> list[str]:
    """Return in words where two origins differ; nothing if they do not, or if the earlier one is unknown."""
    changed = [] if then is None else [(name, then.get(name)) for name in now if now[name] != then.get(name)]
    return [f"{name} has changed" if name in needs else f"its {name} was {old}" for name, old in changed]


def plan_family(wanted: Sequence[Wanted]) -> list[Step]:
    """Return a row for each model, each behind all that it needs: whatever follows a model to be trained is stale.

    Args:
        wanted: The models in an order in which they can be trained; what is not among them stays as it is.
    """
    steps: dict[str, Step] = {}
    for one in wanted:
        changing = [need for need in one.needs if need in steps and steps[need].state is not State.done]
        steps[one.name] = judge(one, changing)
    return list(steps.values())
