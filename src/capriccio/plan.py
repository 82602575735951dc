"""The plan: what a scene becomes on a backbone, made with no forward pass of the denoiser.

A method makes a draft of its own (`capriccio.draft`). What is common to all methods is settled here: sizes, text,
guidance, weights, cost, and every conflict. The table of methods is handed in; a plan knows none of them.
`capriccio.phases` says what is read when, `capriccio.turns` what is painted after what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import ceil
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from capriccio import controls, text
from capriccio.attention import CompiledProgram, Layout
from capriccio.backbones.base import Backbone, Known, Steering
from capriccio.canvas import Canvas, Mask, opaque, window
from capriccio.draft import (
    CANVAS,
    KNOWN,
    PAINT,
    START,
    Collage,
    Draft,
    Finish,
    Method,
    Preparation,
    Settings,
    Supply,
    as_data,
    choose_method,
    read_options,
)
from capriccio.errors import CapriccioError, nearest
from capriccio.guidance import Branch, Chain, classifier_free
from capriccio.phases import POSITIVE, Phase, Prompt, Reader, named_groups
from capriccio.pictures import Picture, open_mask, open_picture
from capriccio.scene import Companion, Condition, Control, Edit, Lora, Scene
from capriccio.turns import Turn, settled, turns

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What a run costs, counted rather than measured.

    Attributes:
        text_tokens: In one row.
        image_tokens: In one row.
        forwards: Of the denoiser, for one picture.
        flops: Of all forwards, for one picture.
        weights: Bytes of all weights.
        working: Bytes of one block's activations, about, for the rows painted together.
    """

    text_tokens: int
    image_tokens: int
    forwards: int
    flops: int
    weights: int
    working: int

    def __str__(self) -> str:
        return (
            f"{self.forwards} forwards of {self.text_tokens} + {self.image_tokens} tokens, {_si(self.flops)}FLOP a "
            f"picture; weights {_si(self.weights)}B, activations of a block about {_si(self.working)}B"
        )


@dataclass(frozen=True, eq=False)
class Plan:
    """What will happen; print it, or take `as_dict`.

    Of the steps of the schedule, the run takes ``num_steps`` from the one at index ``start`` on. A picture is one row
    of a forward for each of its ``voices``, the encoded texts that paint it in the positive branch: the prompt alone,
    unless a ``collage`` puts several together.
    ``regions`` holds, for those that LoRAs are limited to, what their token groups are called after ``image:`` and
    ``text:``.

    A scene in turns has the plan of its first turn, and ``later`` those of the others, each made on a blank picture in
    the place of the one before; ``says`` is what a turn paints.
    """

    scene: Scene
    backbone: str
    method: Method | None
    options: Any
    settings: Settings
    prompt: str
    canvas: Canvas
    engine: str | None
    control_scale: float
    held: bool
    strength: float
    start: int
    num_steps: int
    guidance_scale: float | None
    together: bool
    branches: tuple[Branch, ...]
    passages: Mapping[str, str]
    guidance: Chain
    phases: tuple[Phase, ...]
    collage: Collage | None
    voices: tuple[str, ...]
    controls: tuple[Steering, ...]
    loras: tuple[Lora, ...]
    regions: Mapping[str, str]
    supplies: tuple[Supply, ...]
    preparations: tuple[Preparation, ...]
    finish: tuple[Finish, ...]
    rows: int
    cost: Cost
    notes: tuple[str, ...]
    says: str = ""
    later: tuple[Plan, ...] = ()

    @property
    def turns(self) -> tuple[Plan, ...]:
        """The plans of all turns in order; this one alone where there is one."""
        return (self, *self.later)

    @property
    def total(self) -> Cost:
        """The cost of all turns: forwards and FLOPs of a picture in sum, tokens and bytes of the largest turn."""
        costs = [plan.cost for plan in self.turns]
        summed = {name: sum(getattr(cost, name) for cost in costs) for name in ("forwards", "flops")}
        largest = {name: max(getattr(cost, name) for cost in costs) for name in (f.name for f in fields(Cost))}
        return Cost(**largest | summed)

    @property
    def compiled(self) -> CompiledProgram:
        """The attention program of the positive branch in the first phase."""
        return next(one for one in self.phases[0].passes if POSITIVE in one.roles).compiled

    @property
    def programs(self) -> tuple[CompiledProgram, ...]:
        """All attention programs of the run, each once."""
        return tuple(dict.fromkeys(one.compiled for phase in self.phases for one in phase.passes))

    @property
    def layout(self) -> Layout:
        """The named groups of the positive branch in the first phase, and where their tokens are."""
        return self.compiled.layout

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """Equal for plans whose pictures can share one forward."""
        passes = [(phase.steps, one) for phase in self.phases for one in phase.passes]
        attention = tuple(
            (steps, one.roles, one.lengths, one.compiled.program, named_groups(one.compiled)) for steps, one in passes
        )
        numbers = (self.control_scale, self.held, self.strength, self.guidance_scale)
        weights = (self.loras, tuple(self.regions.items()))
        collage = (self.collage, len(self.voices), self.supplies)
        own = (self.canvas.grid, self.engine, *numbers, self.guidance, self.controls, *weights, *collage)
        steps = (self.settings.num_inference_steps, self.settings.max_sequence_length, self.settings.scheduler)
        return (*own, *steps, attention, *(plan.batch_key for plan in self.later))

    def sections(self) -> dict[str, list[str]]:
        """Return the plan in words, by heading."""
        return {
            "method": [_method_words(self.method, self.options)],
            "prepare": [f"{p.name} ({p.kind}): {p.says}" for p in self.preparations],
            "canvas": [
                str(self.canvas),
                _engine_words(self.engine, self.control_scale, self.strength, self.held),
                *([_collage_words(self.collage)] if self.collage else []),
            ],
            "tokens": [str(self.layout)],
            "phases": self._phase_words(),
            "attention": list(dict.fromkeys(line for program in self.programs for line in program.lines()))
            or ["no edits: the stock calls"],
            "controls": [controls.words(one) for one in self.controls] or ["no control picture"],
            "branches": [f"{branch.role}: {branch.prompt!r}" for branch in self.branches],
            "guidance": [self._guidance_words()],
            "steps": [self._step_words()],
            "weights": [_lora_words(lora, self.regions) for lora in self.loras] or ["no LoRA"],
            "finish": ["decode", *(finish.says for finish in self.finish)],
            "pictures": [f"{self._seed_words()}, {self.rows} together"],
            "cost": [str(self.cost)],
            "notes": list(self.notes),
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as data that JSON can hold; where there are turns, it is the first and holds the others."""
        numbers = {f.name: getattr(self.settings, f.name) for f in fields(self.settings)}
        return {
            "backbone": self.backbone,
            "method": self.method and self.method.name,
            "options": as_data(self.options),
            "engine": self.engine,
            "settings": numbers | {"guidance_scale": self.guidance_scale},
            "coefficients": self.guidance.coefficients,
            "seeds": list(self.scene.all_seeds()),
            "cost": as_data(self.cost),
            "sections": self.sections(),
        } | self._turns_as_dict()

    def __str__(self) -> str:
        lines = [f"plan for {self.scene.prompt!r} on {self.backbone}"]
        for number, plan in enumerate(self.turns, 1):
            lines += [f" turn {number} of {len(self.turns)}: {plan.says}"] if self.later else []
            for heading, entries in plan.sections().items():
                for index, entry in enumerate(entries):
                    lines.append(f"  {heading if index == 0 else '':<11}{entry}")
        return "\n".join(lines + ([f" total: {self._total_words()}"] if self.later else []))

    def _turns_as_dict(self) -> dict[str, Any]:
        if not self.later:
            return {}
        later = [{"says": plan.says} | plan.as_dict() for plan in self.later]
        return {"says": self.says, "later": later, "total": as_data(self.total)}

    def _total_words(self) -> str:
        total = self.total
        return (
            f"{total.forwards} forwards in {len(self.turns)} turns, {_si(total.flops)}FLOP a picture; weights "
            f"{_si(total.weights)}B, activations of a block at most about {_si(total.working)}B"
        )

    def _phase_words(self) -> list[str]:
        if len(self.phases) == 1 and len(self.programs) == 1:
            return ["one: the same tokens in all steps"]
        return [
            f"steps [{phase.steps.start}, {phase.steps.stop}): "
            + "; ".join(
                f"{' and '.join(one.roles)}: {sum(one.lengths)} text tokens"
                + f" of {len(one.lengths)} texts" * (len(one.lengths) > 1)
                for one in phase.passes
            )
            for phase in self.phases
        ]

    def _guidance_words(self) -> str:
        embedded = "" if self.guidance_scale is None else f"; embedded guidance {self.guidance_scale:g} in each"
        shared = "; the branches share a forward" if self.together and len(self.branches) > 1 else ""
        return f"{self.guidance}{embedded}{shared}"

    def _step_words(self) -> str:
        said = f"{self.settings.num_inference_steps}, {self.settings.scheduler or 'the scheduler of the model'}"
        if self.start:
            said += f"; the first {self.start} are left out, for strength is {self.strength:g}"
        own = self.num_steps + self.start
        return said + ("" if own == self.settings.num_inference_steps else f"; {own} evaluations of the denoiser")

    def _seed_words(self) -> str:
        seeds = self.scene.all_seeds()
        shown = ", ".join(map(str, seeds[:8])) + (", ..." if len(seeds) > 8 else "")
        return f"{len(seeds)} picture{'s' * (len(seeds) > 1)}, seed{'s' * (len(seeds) > 1)} {shown}"


def make_plan(scene: Scene, backbone: Backbone, methods: Mapping[str, Method]) -> Plan:
    """Turn a scene into a plan; every turn of it, so that all mistakes are found before anything is painted.

    Args:
        scene: What is asked for.
        backbone: Where it is painted.
        methods: The table of methods by name, the best first.

    Raises:
        CapriccioError: If something cannot be done, or would have no effect.
    """
    scene = settled(scene)
    first, *others = turns(scene)
    if not others:
        asked = first.scene(None)
        plan = _plan_one(asked, backbone, methods)
        return plan if asked is scene else replace(plan, scene=scene)
    plans: list[Plan] = []
    for number, turn in enumerate((first, *others), 1):
        try:
            asked = turn.scene(Image.new("RGB", _size(plans[0])) if plans else None)
            plans.append(replace(_plan_one(asked, backbone, methods), says=turn.says))
        except CapriccioError as error:
            raise CapriccioError(f"In turn {number} of {1 + len(others)}, {turn.says}: {error}") from None
    return replace(plans[0], scene=scene, later=tuple(plans[1:]))


def _size(plan: Plan) -> tuple[int, int]:
    """Width and height of what a plan paints: an edit gives back a picture of the size that it was given."""
    edited = next((one for one in plan.scene.conditions if isinstance(one, Edit)), None)
    return (plan.settings.width, plan.settings.height) if edited is None else open_picture(edited.image).size


def plan_turn(turn: Turn, before: Image.Image, seed: int, backbone: Backbone, methods: Mapping[str, Method]) -> Plan:
    """Return the plan of a later turn of one picture: with its seed, on what the turn before painted."""
    return _plan_one(turn.scene(before).single(seed), backbone, methods)


def _plan_one(scene: Scene, backbone: Backbone, methods: Mapping[str, Method]) -> Plan:
    """Turn a scene of one turn into a plan."""
    conditions = [condition for condition in scene.conditions if not isinstance(condition, Companion)]
    method = choose_method(conditions, methods, backbone)
    draft, options = Draft(scene, backbone, _settings(scene, backbone), scene.words), None
    if method is not None:
        options = read_options(method, conditions)
        windows = [_zoomed(condition, draft.settings) for condition in conditions]
        draft = method.plan(draft, [condition for condition, _ in windows], options)
        draft = replace(draft, finish=draft.finish + tuple(back for _, back in windows if back is not None))
    return _settle(draft, method, options)


def _zoomed(condition: Condition, settings: Settings) -> tuple[Condition, Finish | None]:
    """Return an edit that zooms as one of its window alone, and how that comes back into the picture."""
    if not isinstance(condition, Edit) or condition.zoom is None or condition.mask is None:
        return condition, None
    picture = opaque(open_picture(condition.image))
    mask = open_mask(condition.mask, picture.size, "mask of the edit")
    size = settings.width, settings.height
    box = window(np.asarray(mask) > 127, condition.zoom, size, condition.zoom_least)

    def back(painted: Image.Image, _: Mapping[str, Any]) -> Image.Image:
        whole = picture.copy()
        whole.paste(painted, box.corners)
        return whole

    parts = {"image": picture.crop(box.corners), "mask": mask.crop(box.corners)}
    own = condition.model_copy(
        update={name: Picture.of(part) for name, part in parts.items()} | {"zoom": None, "zoom_least": 0}
    )
    return own, Finish(f"put the window, {box}, back into the picture of {picture.width} x {picture.height}", back)


def prepare(plan: Plan) -> dict[str, Any]:
    """Run the preparations of a plan and return their outputs by name."""
    outputs: dict[str, Any] = {}
    for step in plan.preparations:
        outputs[step.name] = step.run(*(outputs[name] for name in step.needs))
    return outputs


def _settings(scene: Scene, backbone: Backbone) -> Settings:
    names = [f.name for f in fields(Settings)]
    asked = {name: getattr(scene, name) for name in names}
    own = {name: getattr(backbone.defaults, name) for name in names}
    if backbone.defaults.plain_guidance and asked["true_cfg_scale"] is None:
        # Diffusers' pipelines of such a family call it guidance_scale, and take any number up to 1 for none.
        asked["true_cfg_scale"] = None if scene.guidance_scale is None else max(scene.guidance_scale, 1.0)
    return Settings(**{name: own[name] if asked[name] is None else asked[name] for name in names})


def _settle(draft: Draft, method: Method | None, options: Any) -> Plan:
    draft = _from_nothing(draft)
    _check_settings(draft)
    guidance, negative, notes = _guidance(draft)
    said = {POSITIVE: draft.prompt, "negative": negative}
    draft = _with_room(draft, [said[role] for role in guidance.roles])
    length = draft.settings.max_sequence_length
    prompts = {role: Prompt.of(role, said[role], length) for role in guidance.roles}
    passages = tuple(_passage(draft, name, prompt) for name, prompt in draft.passages.items())
    draft = replace(draft, prompt=prompts[POSITIVE].words)
    draft = draft.say(*_lost(draft, (*prompts.values(), *passages)))
    draft = draft.say(*notes, *_lora_notes(draft.scene), *draft.backbone.remarks)
    draft = _encoding(draft, prompts, passages)
    start, num_steps = _steps(draft)
    draft, steerings = _controls(draft, num_steps)
    canvas, backbone = _canvas(draft), draft.backbone
    phases = Reader(
        backbone=backbone,
        engine=draft.engine,
        canvas=canvas,
        regions=draft.groups or {"image": np.ones((canvas.height, canvas.width), bool)},
        names=draft.scene.mentioned,
        forwards=guidance.forwards(backbone.together),
        prompts=prompts,
        passages=() if draft.collage else passages,
        reading=draft.reading,
        program=draft.program,
        banks={supply.bank: supply.size for supply in draft.supplies},
        num_steps=num_steps,
    ).phases()
    rows = min(len(draft.scene.all_seeds()), backbone.defaults.rows)
    embeds = backbone.embeds_guidance(draft.engine)
    return Plan(
        scene=draft.scene,
        backbone=backbone.name,
        method=method,
        options=options,
        settings=draft.settings,
        prompt=draft.prompt,
        canvas=canvas,
        engine=draft.engine,
        control_scale=draft.control_scale,
        held=draft.held,
        strength=draft.strength,
        start=start,
        num_steps=num_steps,
        guidance_scale=draft.settings.guidance_scale if embeds else None,
        together=backbone.together,
        branches=tuple(Branch(role, prompts[role].words) for role in guidance.roles),
        passages={passage.name: passage.words for passage in passages},
        guidance=guidance,
        phases=phases,
        collage=draft.collage,
        voices=(prompts[POSITIVE].output, *(passage.output for passage in passages if draft.collage)),
        controls=steerings,
        loras=_loras(draft.scene),
        regions=_regions(draft),
        supplies=draft.supplies,
        preparations=draft.preparations,
        finish=draft.finish,
        rows=rows,
        cost=_cost(draft, phases, steerings, rows, voices=1 + len(passages) if draft.collage else 1),
        notes=draft.notes,
    )


def _passage(draft: Draft, name: str, prompt: str) -> Prompt:
    """Return a passage, as long as a prompt, or trimmed to what it needs in steps of 16."""
    length, backbone = draft.settings.max_sequence_length, draft.backbone
    passage = Prompt.of(name, prompt, length)
    if not draft.trim or backbone.defaults.shortest_text == length:
        return passage
    return replace(passage, length=min(length, 16 * ceil(backbone.word_count(passage.words) / 16)))


def _steps(draft: Draft) -> tuple[int, int]:
    """Return the index of the first evaluation of the denoiser, and how many there are."""
    backbone, steps = draft.backbone, draft.settings.num_inference_steps
    scheduler = backbone.schedule(draft.settings.scheduler, steps, _canvas(draft).num_tokens)
    start = backbone.skipped(steps, draft.strength) * scheduler.order if draft.strength < 1 else 0
    left = len(scheduler.timesteps) - start
    if left < 1:
        raise CapriccioError(
            f"strength={draft.strength:g} of {steps} steps leaves none of them; give more strength or more steps."
        )
    return start, left


def _canvas(draft: Draft) -> Canvas:
    settings = draft.settings
    return draft.canvas or Canvas(settings.width, settings.height, draft.backbone.token)


def _from_nothing(draft: Draft) -> Draft:
    """Paint from text with a backbone that only fills: everything is masked."""
    if draft.engine is not None or draft.backbone.can_start_from_text:
        return draft
    canvas = _canvas(draft)
    size, shape = (canvas.width, canvas.height), (canvas.height, canvas.width)
    blank = Preparation(CANVAS, "picture", "an empty canvas", lambda: Image.new("RGB", size))
    paint = Preparation(PAINT, "mask", "all of it", lambda: np.ones(shape, bool))
    note = "This model only fills; the prompt alone is painted by filling an empty canvas."
    return draft.inpaint("fill").add(blank, paint).say(note)


def _check_settings(draft: Draft) -> None:
    scene, backbone, settings = draft.scene, draft.backbone, draft.settings
    plain = backbone.defaults.plain_guidance
    both = {scale for scale in (scene.guidance_scale, scene.true_cfg_scale) if scale is not None}
    if plain and len(both) > 1:
        raise CapriccioError(
            f"guidance_scale and true_cfg_scale are one and the same on {backbone.name!r}, but two numbers were given "
            f"({', '.join(f'{scale:g}' for scale in sorted(both))}); keep one."
        )
    if scene.guidance_scale is not None and not plain and not backbone.embeds_guidance(draft.engine):
        raise CapriccioError(
            f"guidance_scale={scene.guidance_scale:g} was given, but {backbone.name!r} has no embedded guidance; "
            f"use true_cfg_scale, here {backbone.defaults.true_cfg_scale:g} by default."
        )
    if scene.scheduler is not None and scene.scheduler not in backbone.schedulers:
        hint = nearest(scene.scheduler, backbone.schedulers)
        raise CapriccioError(f"scheduler {scene.scheduler!r} is unknown here; {hint}")
    longest = backbone.defaults.longest_text
    if settings.max_sequence_length > longest:
        raise CapriccioError(
            f"max_sequence_length={settings.max_sequence_length} was given, but {backbone.name!r} reads at most "
            f"{longest} text tokens; give that or fewer."
        )
    shortest = backbone.defaults.shortest_text
    if settings.max_sequence_length < shortest:
        raise CapriccioError(
            f"max_sequence_length={settings.max_sequence_length} was given, but {backbone.name!r} always reads "
            f"{shortest} text tokens; leave it out."
        )
    if scene.clip_skip is not None and scene.clip_skip > backbone.clip_layers:
        has = f"has {backbone.clip_layers} to leave out" if backbone.clip_layers else "has no use for that"
        raise CapriccioError(f"clip_skip={scene.clip_skip} was given, but {backbone.name!r} {has}; give less or none.")
    if draft.canvas is None:
        _canvas(draft)


def _guidance(draft: Draft) -> tuple[Chain, str, list[str]]:
    """Return the guidance equation, the negative prompt, and what should be said about them."""
    scale, negative = draft.settings.true_cfg_scale, draft.scene.negative_prompt
    chain = classifier_free(scale)
    if "negative" not in chain.roles and negative is not None:
        return chain, negative, ["negative_prompt has no effect, because true_cfg_scale is 1; 3 to 5 is usual."]
    if "negative" in chain.roles and negative is None and draft.scene.true_cfg_scale is not None:
        note = f"No negative_prompt was given: true_cfg_scale {scale:g} steers away from the empty prompt."
        return chain, "", [note]
    return chain, negative or "", []


def _encoding(draft: Draft, prompts: Mapping[str, Prompt], passages: Sequence[Prompt]) -> Draft:
    """Add the encoding of the texts and of the known part of the canvas."""
    backbone, engine = draft.backbone, draft.engine
    for prompt in (*prompts.values(), *passages):
        # As in diffusers, layers are left out for the prompt alone.
        skip = None if prompt.name == "negative" else draft.scene.clip_skip
        nothing = prompt.name == "negative" and draft.scene.negative_prompt is None
        run = _bound(backbone.encode_text, None if nothing else prompt.words, prompt.length, skip)
        what = "the prompt" if prompt.name in prompts else f"{prompt.words!r}"
        said = f"encode {what}" if skip is None else f"encode {what}, the last {skip} CLIP layers left out"
        draft = draft.add(Preparation(prompt.output, f"{prompt.length} text tokens", said, run))
    if draft.strength < 1:
        begin = Preparation(START, "latents", "encode the picture to start from", backbone.clean, (CANVAS,))
        draft = draft.add(begin)
    if engine is None:
        return draft

    def encode(canvas: Image.Image, paint: Mask) -> Known:
        known = backbone.known(engine, canvas, paint)
        if not draft.held:
            return known
        path = backbone.known("hold", canvas, paint)
        return replace(known, latents=path.latents, keep=path.keep)

    says = f"encode what the engine {engine!r} keeps{', and what is held' if draft.held else ''}"
    return draft.add(Preparation(KNOWN, "latents", says, encode, (CANVAS, PAINT)))


def _bound(function: Callable[..., T], *arguments: Any) -> Callable[[], T]:
    return lambda: function(*arguments)


def _with_room(draft: Draft, prompts: Sequence[str]) -> Draft:
    """Read as many text tokens as the prompts and passages need."""
    texts = (*prompts, *draft.passages.values())
    need = max(draft.backbone.word_count(text.unweighted(prompt)[0]) for prompt in texts)
    if draft.scene.max_sequence_length is not None or need <= draft.settings.max_sequence_length:
        return draft
    # In steps of 16, so that pictures of similar prompts can still be painted together.
    room = min(draft.backbone.defaults.longest_text, 16 * ceil(need / 16))
    return replace(draft, settings=replace(draft.settings, max_sequence_length=room))


def _lost(draft: Draft, prompts: Sequence[Prompt]) -> list[str]:
    """Say what is lost of texts that are too long."""
    longest = draft.backbone.defaults.longest_text
    needs = [(prompt, draft.backbone.word_count(prompt.words)) for prompt in prompts]
    return [
        f"The {prompt.name} prompt has {need} text tokens and only {prompt.length} are read: its end is lost; "
        + ("shorten it." if prompt.length == longest else f"set max_sequence_length to {min(longest, need)}.")
        for prompt, need in needs
        if need > prompt.length
    ]


def _loras(scene: Scene) -> tuple[Lora, ...]:
    # A weight of 0 leaves a LoRA out, so that it is the model without it to the last bit.
    return tuple(lora for lora in scene.conditions if isinstance(lora, Lora) and lora.weight != 0)


def _regions(draft: Draft) -> dict[str, str]:
    """Return the regions that LoRAs are limited to, and what their groups are called."""
    for lora in (lora for lora in _loras(draft.scene) if lora.region is not None):
        if lora.region not in draft.regions:
            raise CapriccioError(
                f"The LoRA {lora.path!r} is limited to the region {lora.region!r}, but the method that paints it gives "
                "regions no tokens of their own; leave out its region, or choose another method."
            )
    asked = {lora.region for lora in _loras(draft.scene)}
    return {name: groups for name, groups in draft.regions.items() if name in asked}


def _lora_notes(scene: Scene) -> list[str]:
    left_out = [lora.path for lora in scene.conditions if isinstance(lora, Lora) and lora.weight == 0]
    return [f"The LoRA {path!r} has weight 0 and is left out." for path in left_out]


def _controls(draft: Draft, num_steps: int) -> tuple[Draft, tuple[Steering, ...]]:
    """Add the encoding of control pictures, and return the ControlNets that see them."""
    given = [condition for condition in draft.scene.conditions if isinstance(condition, Control)]
    steerings: list[Steering] = []
    for number, control in enumerate(given, 1):
        if control.controlnet_conditioning_scale == 0:
            # It would run for nothing.
            draft = draft.say(f"Control {number} has controlnet_conditioning_scale 0 and is left out.")
            continue
        name = f"control:{number}"
        guide = controls.guide(control, name, draft.backbone, _canvas(draft), draft.picture, num_steps)
        run = _bound(draft.backbone.hint, guide.steering.net, guide.picture, guide.place)
        draft = draft.add(Preparation(name, f"hint of {guide.steering.net}", guide.says, run))
        steerings.append(guide.steering)
    return draft, tuple(steerings)


def _cost(draft: Draft, phases: Sequence[Phase], steerings: Sequence[Steering], rows: int, voices: int) -> Cost:
    backbone, engine, image = draft.backbone, draft.engine, _canvas(draft).num_tokens
    heads, width = backbone.heads(engine)
    passes = [(phase.steps, one) for phase in phases for one in phase.passes]
    flops = 0
    for steps, one in passes:
        linear = backbone.flops(engine, sum(one.lengths), image, base=one.lengths[0], twin=one.twins)
        attention = sum(sum(one.compiled.flops(heads, width, step, role)) for step in steps for role in one.roles)
        flops += voices * (len(steps) * len(one.roles) * linear + attention)
    first = phases[0].passes[0]  # whose prompt ControlNets read, in every step
    at_work = Counter(tuple(one for one in steerings if step in one.steps) for step in range(phases[-1].steps.stop))
    for some, times in at_work.items():
        flops += voices * times * backbone.control_flops(some, len(first.roles), first.lengths[0], image)
    flops += sum(len(phase.steps) for phase in phases) * sum(supply.flops for supply in draft.supplies)
    # Queries, keys, values, outputs, the two streams and the four-fold inner layer: twelve widths a token, four bytes.
    states = int(np.max(np.multiply(heads, width)))
    longest = max(len(one.roles) * (one.compiled.layout.length + one.twins) for _, one in passes)
    text = max(sum(one.lengths) for _, one in passes)
    forwards = voices * sum(len(steps) * len(one.roles) for steps, one in passes)
    return Cost(text, image, forwards, flops, backbone.memory, 12 * 4 * rows * voices * longest * states)


def _method_words(method: Method | None, options: Any) -> str:
    if method is None:
        return "none: text to image"
    settings = ", ".join(f"{name}={value!r}" for name, value in as_data(options).items() if value is not None)
    return f"{method.name}: {method.title}" + (f", {method.paper}" if method.paper else "") + f" ({settings})"


def _engine_words(engine: str | None, control_scale: float, strength: float, held: bool) -> str:
    held_too = "; known latents are held on their path as well" if held else ""
    start = "" if strength == 1 else f"; painting starts from the picture, noised, at strength {strength:g}"
    return (
        {
            None: "all of it is painted" if start else "nothing is known; all of it is painted",
            "controlnet": f"engine controlnet: the inpainting ControlNet at {control_scale:g} shows the known part",
            "fill": "engine fill: the model reads the known part as input channels",
            "hold": "engine hold: known latents are held on their path from the noise of the run, without training",
        }[engine]
        + held_too
        + start
    )


def _collage_words(collage: Collage) -> str:
    cells = "; ".join(map(str, collage.cells))
    return (
        f"collage: after each step {len(collage.cells)} pictures are resized into their cells ({cells}) and mixed with "
        f"{collage.ratio:g} of the prompt's own"
    )


def _lora_words(lora: Lora, regions: Mapping[str, str]) -> str:
    # Without its folder: plans travel inside pictures.
    said = f"LoRA {lora.name or Path(lora.path).name} x {lora.weight:g}"
    if lora.region is None:
        return said
    group = regions[lora.region]
    return f"{said}, in the region {lora.region!r} alone: image:{group}, and text:{group} while it is read"


def _si(number: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(number) < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} E"
