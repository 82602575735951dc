"""Phases: stretches of a run in which what the denoiser reads, and how it attends, stays the same.

A run is one phase, unless the positive branch reads *passages* beside its prompt for some of the steps (texts of
regions, say). Then every forward gets a token layout and an attention program of its own: with the passages while they
are read, without a trace of them before and after, and in other branches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from capriccio.attention import (
    AttentionProgram,
    CompiledProgram,
    Layout,
    Mix,
    Scope,
    See,
    Steps,
    Weigh,
    compile_program,
)
from capriccio.attention.program import AttentionEdit, Names
from capriccio.backbones.base import Backbone
from capriccio.canvas import Canvas, Mask
from capriccio.text import Weighted, unweighted

POSITIVE = "positive"
"""The branch that reads passages."""


@dataclass(frozen=True)
class Prompt:
    """A text as it is read.

    Attributes:
        name: A role, or that of a passage; the encoded text is ``text:<name>`` among the outputs of the preparations.
        words: Without the marks of weights.
        parts: Of the words, those that carry a weight.
        length: Text tokens, padding included.
    """

    name: str
    words: str
    parts: tuple[Weighted, ...]
    length: int

    @classmethod
    def of(cls, name: str, prompt: str, length: int) -> Prompt:
        """Return a prompt that a person wrote, its weights taken out."""
        return cls(name, *unweighted(prompt), length)

    @property
    def output(self) -> str:
        """Name of the encoded text."""
        return f"text:{self.name}"

    def named(self) -> dict[str, Weighted]:
        """Return the parts that carry a weight, by the name of their token group."""
        return {f"text:{self.name}/{number} ({part.phrase})": part for number, part in enumerate(self.parts, 1)}


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward of a step.

    Attributes:
        roles: The branches that it predicts, one row each.
        texts: For each role, the names of the encoded texts that it reads, one after the other.
        lengths: Tokens of each of them.
        compiled: The attention program.
    """

    roles: tuple[str, ...]
    texts: Mapping[str, tuple[str, ...]]
    lengths: tuple[int, ...]
    compiled: CompiledProgram

    @property
    def twins(self) -> int:
        """Number of tokens of twins that become streams of their own."""
        return max(int((one.queries.twins & ~one.queries.views).sum()) for one in self.compiled.attended)


@dataclass(frozen=True, eq=False)
class Phase:
    """Steps of constant token layout, and the forwards of each."""

    steps: range
    passes: tuple[Pass, ...]


@dataclass(frozen=True, eq=False)
class Reader:
    """What the phases of a run are made from.

    Attributes:
        backbone: Whose layers attend.
        engine: Its denoiser.
        canvas: Whose tokens are painted.
        regions: Named groups of image tokens, as masks (height, width).
        names: Conditions that prompts may mention; their words are token groups.
        forwards: The roles of each forward of a step.
        prompts: By role.
        passages: Read by the positive branch beside its prompt.
        reading: Steps in which it does.
        program: Edits of attention; those of passages work in these steps and in positive rows alone.
        banks: Of the program, and the number of tokens of each, or the size of the picture that it shows.
        num_steps: Of the run.
    """

    backbone: Backbone
    engine: str | None
    canvas: Canvas
    regions: Mapping[str, Mask]
    names: tuple[str, ...]
    forwards: tuple[tuple[str, ...], ...]
    prompts: Mapping[str, Prompt]
    passages: tuple[Prompt, ...]
    reading: Steps
    program: AttentionProgram
    banks: Mapping[str, int | tuple[int, int]]
    num_steps: int

    def phases(self) -> tuple[Phase, ...]:
        """Return the phases in order; their steps follow each other."""
        read = self.reading.window(self.num_steps) if self.passages else range(0)
        if not read:
            steps = range(self.num_steps)
            compiled = self._compile(self.program + self._weights(range(0)), self._layout(()))
            own = {role: (prompt.output,) for role, prompt in self.prompts.items()}
            passes = tuple(Pass(roles, _only(own, roles), (self._length,), compiled) for roles in self.forwards)
            return (Phase(steps, passes),)
        bounds = sorted({0, read.start, read.stop, self.num_steps})
        return tuple(
            Phase(range(*steps), tuple(self._pass(roles, range(*steps), read) for roles in self.forwards))
            for steps in pairwise(bounds)
        )

    @property
    def _length(self) -> int:
        return self.prompts[POSITIVE].length

    def _pass(self, roles: tuple[str, ...], steps: range, read: range) -> Pass:
        passages = self.passages if POSITIVE in roles and steps.start in read else ()
        program = self.program + self._weights(read)
        if others := tuple(role for role in roles if role != POSITIVE) if passages else ():
            # Rows of one forward are of one length: the others read their prompt in the place of each passage as well.
            program += AttentionProgram((See("image", "text:base", Scope(rows=others)),))
        edits = tuple(edit for edit in program if _meets(edit, steps, roles, self.num_steps))
        mixed = {edit.source for edit in edits if isinstance(edit, Mix)}
        program = AttentionProgram(edits, tuple(twin for twin in program.twins if twin.name in mixed))
        texts = {
            role: (
                self.prompts[role].output,
                *(p.output if role == POSITIVE else self.prompts[role].output for p in passages),
            )
            for role in roles
        }
        lengths = (self._length, *(passage.length for passage in passages))
        return Pass(roles, texts, lengths, self._compile(program, self._layout(passages)))

    def _compile(self, program: AttentionProgram, layout: Layout) -> CompiledProgram:
        layers = self.backbone.layers(self.engine)
        return compile_program(program, layout, layers=layers, num_steps=self.num_steps)

    def _weights(self, read: range) -> AttentionProgram:
        """Return an edit for each part of a text that carries a weight: so much counts what the picture sees of it."""
        edits = [
            Weigh("image", name, part.weight, Scope(rows=(role,)))
            for role, prompt in self.prompts.items()
            for name, part in prompt.named().items()
        ]
        if read:
            reading = Scope(rows=(POSITIVE,), steps=Steps(read.start, read.stop))
            twins = [twin.name for twin in self.program.twins]
            base = self.prompts[POSITIVE].named().items()
            edits += [Weigh(twin, name, part.weight, reading) for twin in twins for name, part in base]
            own = [item for passage in self.passages for item in passage.named().items()]
            edits += [Weigh("image", name, part.weight, reading) for name, part in own]
        return AttentionProgram(tuple(edits))

    def _layout(self, passages: Sequence[Prompt]) -> Layout:
        """Name the tokens: texts, the words of each condition, words that carry a weight, and image regions."""
        length = self._length + sum(passage.length for passage in passages)
        groups: dict[str, Mask] = {"text:base" if self.passages else "text": np.arange(length) < self._length}
        for name in self.names:
            said = [self.backbone.word_tokens(p.words, name, p.length) for p in (self.prompts[POSITIVE], *passages)]
            groups |= {f"text:{name}": np.concatenate(said)} if any(mask.any() for mask in said) else {}
        for prompt in self.prompts.values():
            groups |= self._parts(prompt, 0, length)
        start = self._length
        for passage in passages:
            place = np.arange(length)
            groups[passage.output] = (place >= start) & (place < start + passage.length)
            groups |= self._parts(passage, start, length)
            start += passage.length
        return self.backbone.layout(groups, length, self.canvas, self.regions, self.banks)

    def _parts(self, prompt: Prompt, start: int, length: int) -> dict[str, Mask]:
        after = length - start - prompt.length
        return {
            name: np.pad(self.backbone.span_tokens(prompt.words, part.span, prompt.length), (start, after))
            for name, part in prompt.named().items()
        }


def _only(texts: Mapping[str, tuple[str, ...]], roles: Iterable[str]) -> dict[str, tuple[str, ...]]:
    return {role: texts[role] for role in roles}


def _meets(edit: AttentionEdit, steps: range, roles: tuple[str, ...], num_steps: int) -> bool:
    """Whether an edit is at work in any of the steps and rows."""
    window = edit.scope.steps.window(num_steps)
    in_rows = edit.scope.rows is None or bool({*edit.scope.rows} & {*roles})
    return in_rows and max(window.start, steps.start) < min(window.stop, steps.stop)


def named_groups(compiled: CompiledProgram) -> tuple[tuple[str, bytes], ...]:
    """Return the image groups of a layout and those that its program names, as what two runs must have in common."""
    named: list[Names] = [twin.of for twin in compiled.program.twins]
    named += [names for edit in compiled.program for names in (edit.queries, edit.keys)]
    wanted = {"image", *(name for names in named for name in ((names,) if isinstance(names, str) else names))}
    found = compiled.layout.groups.items()
    return tuple((name, mask.tobytes()) for name, mask in found if any(_is_in(name, one) for one in wanted))


def _is_in(name: str, group: str) -> bool:
    return name == group or name.startswith((f"{group}:", f"{group}/"))
