"""Painting a plan: the predictor, and the one denoising loop.

The loop is scheduler x predictor. The predictor is one guided prediction at (x_t, t): it runs the branches of the
guidance equation, tells the attention program which step and which branch it is, and combines. Whoever needs a
prediction without the loop (training, distillation) takes the predictor alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from capriccio.attention import Attachment, CompiledProgram, Tokens
from capriccio.backbones import schedules
from capriccio.backbones.base import Backbone, Hint, Inputs, Known, Residuals, Text
from capriccio.backbones.limits import Limits
from capriccio.canvas import collage, hold
from capriccio.draft import KNOWN, START, Source
from capriccio.errors import Cancelled
from capriccio.guidance import Chain
from capriccio.phases import POSITIVE, Pass
from capriccio.plan import Plan, prepare


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: Steps that are done.
        total: Steps of the run, over all its batches.
        preview: Decodes the present estimate of the first picture; costs one pass of the VAE's decoder.
    """

    step: int
    total: int
    preview: Callable[[], Image.Image]


Callback = Callable[[Progress], bool | None]
"""Told after each step; returning ``False``, or raising `capriccio.Cancelled`, ends the run."""


@dataclass(frozen=True)
class Painted:
    """One picture of a run: finished, and the whole canvas that it was cut from."""

    image: Image.Image
    canvas: Image.Image


@dataclass(frozen=True)
class Forward:
    """One forward of the denoiser in some of the steps.

    Attributes:
        steps: In which it is made.
        roles: The branches that it predicts.
        text: What they read, of as many rows as the latents for each role.
        attachment: The attention program at work meanwhile.
    """

    steps: range
    roles: tuple[str, ...]
    text: Text
    attachment: Attachment


class Predictor:
    """One guided prediction at (x_t, t).

    Args:
        backbone: Whose denoiser predicts.
        guidance: How predictions are combined.
        forwards: In every step, those that predict each role once.
        inputs: What every forward shares.
        limits: Of LoRAs that work in regions alone.
        sources: For each bank of the attention programs, what tells what it holds for each row of latents.
    """

    def __init__(
        self,
        backbone: Backbone,
        guidance: Chain,
        forwards: Sequence[Forward],
        inputs: Inputs,
        limits: Limits | None = None,
        sources: Mapping[str, Sequence[Source]] = MappingProxyType({}),
    ) -> None:
        self.backbone, self.guidance, self.forwards = backbone, guidance, tuple(forwards)
        self.limits, self.sources = limits or Limits(), sources
        self.inputs = {len(one.roles): _for_each(inputs, len(one.roles)) for one in forwards}

    def __call__(self, latents: Tensor, time: Tensor, step: int) -> Tensor:
        """Return the guided prediction, shaped as the latents, at one timestep, which is the given step of the run."""
        predictions: dict[str, Tensor] = {}
        residuals: Residuals | None = None
        for one in (one for one in self.forwards if step in one.steps):
            self._put_to_work(one.attachment)
            self.limits.tell(one.attachment.compiled)
            self._fill_banks(one, time, step)
            one.attachment.set(step=step, roles=[role for role in one.roles for _ in range(len(latents))])
            rows = torch.cat([latents] * len(one.roles)) if len(one.roles) > 1 else latents
            inputs = self.inputs[len(one.roles)]
            if residuals is None:
                # As in diffusers: ControlNets run once a step, with the first forward, and steer all of them alike.
                residuals = self.backbone.steer(rows, time, one.text, step, inputs, _positive(one, len(latents)))
            found = self.backbone.predict(rows, time, one.text, one.roles[0], inputs, residuals)
            predictions |= zip(one.roles, found.chunk(len(one.roles)), strict=True)
        return self.guidance.combine(predictions)

    def _fill_banks(self, one: Forward, time: Tensor, step: int) -> None:
        for name in one.attachment.compiled.bank_names:
            told = [source.at(time, step, role) for role in one.roles for source in self.sources[name]]
            one.attachment.give(name, Tokens.stack(told))

    def _put_to_work(self, attachment: Attachment) -> None:
        for other in {one.attachment for one in self.forwards} - {attachment}:
            other.detach()
        attachment.work()


def _positive(forward: Forward, pictures: int) -> slice:
    """Return which rows of a forward are the positive branch; none where it is not there."""
    first = forward.roles.index(POSITIVE) * pictures if POSITIVE in forward.roles else 0
    return slice(first, first + pictures * (POSITIVE in forward.roles))


def _for_each(inputs: Inputs, branches: int) -> Inputs:
    """Return inputs of as many rows for each of several branches."""
    if branches == 1:
        return inputs
    known = None if inputs.known is None else Known.stack([inputs.known] * branches)
    hints = tuple((steering, Hint.stack([hint] * branches)) for steering, hint in inputs.controls)
    return replace(inputs, known=known, controls=hints)


@torch.no_grad()
def denoise(
    predictor: Callable[[Tensor, Tensor, int], Tensor],
    scheduler: Any,
    noise: Tensor,
    known: Known | None = None,
    told: Callable[[int, Tensor], None] = lambda step, estimate: None,
    *,
    clean: Tensor | None = None,
    start: int = 0,
    generators: list[torch.Generator] | None = None,
    rule: Callable[[Tensor], Tensor] = lambda latents: latents,
) -> Tensor:
    """The denoising loop: from noise to clean latents.

    Args:
        predictor: Returns the prediction at (x_t, t, index of the step, from 0).
        scheduler: With its timesteps set.
        noise: Of variance 1, shaped as the latents.
        known: Latents to hold on their path, if any.
        told: Called after each step with the number of steps done and the present estimate of the clean latents.
        clean: Latents of a picture to start from, noised; from noise alone if ``None``.
        start: Index of the first timestep.
        generators: Of schedulers that draw noise between steps, one for each row.
        rule: What becomes of the latents after each step.
    """
    if start:
        schedules.begin_at(scheduler, start)
    latents = schedules.first(scheduler, noise) if clean is None else schedules.noised(scheduler, clean, noise, start)
    for index, time in enumerate(scheduler.timesteps[start:], start):
        prediction = predictor(schedules.seen(scheduler, latents, time), time, index - start)
        estimate = schedules.estimate(scheduler, prediction, latents, index)
        latents = schedules.step(scheduler, prediction, time, latents, generators)
        if known is not None and known.latents is not None and known.keep is not None:
            signal, sigma = schedules.levels(scheduler, index + 1, latents)
            latents = hold(latents, known.latents, noise, known.keep, sigma, signal)
        latents = rule(latents)
        told(index - start + 1, estimate)
    return latents


def count_steps(plans: Sequence[Plan], backbone: Backbone) -> int:
    """Return how many steps `paint` takes for these plans, over all its batches."""
    pictures = sum(len(plan.scene.all_seeds()) for plan in plans)
    return ceil(pictures / backbone.defaults.rows) * plans[0].num_steps


def paint(plans: Sequence[Plan], backbone: Backbone, callback: Callback | None = None) -> list[list[Painted]]:
    """Paint plans whose pictures can share forwards.

    Args:
        plans: Of equal `batch_key`; of a plan in turns, the first turn.
        backbone: The one they were made for.
        callback: Told after each step.

    Returns:
        For each plan, one picture for each of its seeds.
    """
    rows = [(index, seed) for index, plan in enumerate(plans) for seed in plan.scene.all_seeds()]
    results: list[list[Painted]] = [[] for _ in plans]
    size = backbone.defaults.rows
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    first = plans[0]
    with backbone.adapters(first.engine, first.loras, first.regions) as limits:
        try:
            outputs = [prepare(plan) for plan in plans]
            with _attached(backbone.denoiser(first.engine), first.programs) as attachments:
                for number, batch in enumerate(batches):
                    report = _report(callback, backbone, plans, number)
                    latents = _run(plans, outputs, backbone, batch, attachments, report, limits)
                    for (index, _), canvas in zip(batch, backbone.decode(latents, *first.canvas.grid), strict=True):
                        results[index].append(_finished(plans[index], outputs[index], canvas))
        finally:
            backbone.free()
    return results


def paint_latents(plan: Plan, backbone: Backbone) -> Tensor:
    """Paint the first pictures of a plan, as many as go together, and return their clean latents undecoded."""
    batch = [(0, seed) for seed in plan.scene.all_seeds()][: backbone.defaults.rows]
    with backbone.adapters(plan.engine, plan.loras, plan.regions) as limits:
        try:
            outputs = [prepare(plan)]
            with _attached(backbone.denoiser(plan.engine), plan.programs) as attachments:
                return _run([plan], outputs, backbone, batch, attachments, lambda step, estimate: None, limits)
        finally:
            backbone.free()


@contextmanager
def _attached(
    denoiser: nn.Module, programs: Sequence[CompiledProgram]
) -> Iterator[Mapping[CompiledProgram, Attachment]]:
    """Lend an attachment of each program, the first of them at work."""
    attachments = {program: Attachment(denoiser, program, now=False) for program in programs}
    try:
        attachments[programs[0]].work()
        yield attachments
    finally:
        for attachment in attachments.values():
            attachment.detach()


def _run(
    plans: Sequence[Plan],
    outputs: Sequence[Mapping[str, Any]],
    backbone: Backbone,
    batch: Sequence[tuple[int, int]],
    attachments: Mapping[CompiledProgram, Attachment],
    told: Callable[[int, Tensor], None],
    limits: Limits,
) -> Tensor:
    plan, own = plans[0], [outputs[index] for index, _ in batch]
    known = None if plan.engine is None else Known.stack([output[KNOWN] for output in own])
    forwards = [
        Forward(phase.steps, one.roles, _read(plan, one, own), attachments[one.compiled])
        for phase in plan.phases
        for one in phase.passes
    ]
    voices = len(plan.voices)
    hints = tuple((one, Hint.stack([output[one.hint] for output in own for _ in plan.voices])) for one in plan.controls)
    inputs = Inputs(plan.canvas.grid, plan.engine, known, plan.guidance_scale, plan.control_scale, hints)
    generators = [torch.Generator().manual_seed(seed) for _, seed in batch]
    noise = torch.cat([backbone.noise(generator, *plan.canvas.grid) for generator in generators])
    noise = noise.repeat_interleave(voices, 0) if voices > 1 else noise
    clean = torch.cat([output[START] for output in own]) if plan.strength < 1 else None
    scheduler = backbone.schedule(plan.settings.scheduler, plan.settings.num_inference_steps, plan.canvas.num_tokens)
    sources = {one.bank: [output[one.output] for output in own for _ in plan.voices] for one in plan.supplies}
    predictor = Predictor(backbone, plan.guidance, forwards, inputs, limits, sources)
    painted = denoise(
        predictor,
        scheduler,
        noise,
        known,
        told,
        clean=clean,
        start=plan.start,
        generators=_each(generators, voices),
        rule=_rule(plan, backbone),
    )
    return painted[::voices] if voices > 1 else painted


def _each(generators: list[torch.Generator], voices: int) -> list[torch.Generator]:
    """Return a generator for each row: the rows of a picture draw alike, each from a copy of its generator."""
    return [generator.clone_state() for generator in generators for _ in range(voices)] if voices > 1 else generators


def _rule(plan: Plan, backbone: Backbone) -> Callable[[Tensor], Tensor]:
    """Return what becomes of the latents after each step: one collage in all rows of a picture."""
    found, grid, size = plan.collage, plan.canvas.grid, (plan.canvas.width, plan.canvas.height)
    if found is None:
        return lambda latents: latents

    def put_together(latents: Tensor) -> Tensor:
        pictures = backbone.as_grid(latents, grid).split(len(plan.voices))
        merged = torch.cat([collage(rows, found.cells, found.ratio, size) for rows in pictures])
        return backbone.from_grid(merged.repeat_interleave(len(plan.voices), 0))

    return put_together


def _read(plan: Plan, one: Pass, outputs: Sequence[Mapping[str, Any]]) -> Text:
    """Return what the rows of a forward read, those of a role together, those of a picture's voices together."""
    rows = []
    for role in one.roles:
        texts = [one.texts[role]] * len(plan.voices)
        if plan.collage and role == POSITIVE:
            texts = [(voice,) for voice in plan.voices]
        rows += [Text.join([output[name] for name in names]) for output in outputs for names in texts]
    return Text.stack(rows)


def _finished(plan: Plan, outputs: Mapping[str, Any], canvas: Image.Image) -> Painted:
    image = canvas
    for finish in plan.finish:
        image = finish.run(image, outputs)
    return Painted(image, canvas)


def _report(
    callback: Callback | None, backbone: Backbone, plans: Sequence[Plan], batch: int
) -> Callable[[int, Tensor], None]:
    """Tell the callback about the steps of one batch among several."""
    grid, before = plans[0].canvas.grid, batch * plans[0].num_steps
    total = count_steps(plans, backbone)

    def told(step: int, estimate: Tensor) -> None:
        progress = Progress(before + step, total, lambda: backbone.decode(estimate[:1], *grid)[0])
        if callback is not None and callback(progress) is False:
            raise Cancelled("The painting was cancelled.")

    return told
