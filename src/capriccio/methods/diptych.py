"""Diptych Prompting: a subject, or a style, from one picture, with no training.

Shin, Choi, Kim, Yoon: *Large-Scale Text-to-Image Model with Inpainting is a Zero-Shot Subject-Driven Image Generator*,
CVPR 2025, arXiv 2411.15466. A large text-to-image model knows how to paint two panels of the same thing. So the
reference goes on the left panel, alone on white, and the right panel is inpainted under a prompt that asks for the same
subject in a new scene. In every attention layer, step and guidance branch of the transformer (not of the ControlNet),
right-panel queries give left-panel keys more weight, after the softmax and without renormalising:

    A'[q, k] = lambda A[q, k]    for q in the right panel, k in the left;    A'[q, k] = A[q, k] elsewhere
    guided   = v(empty) + 3.5 (v(prompt) - v(empty))

with lambda = 1.3 (``attention_weight``; 1 changes nothing), 30 steps, ControlNet at 0.95, embedded guidance 3.5, panels
of 768 + 2 x 8 pixels of which 8 are cropped at every side.

Applications: a `Style` instead of a `Subject` keeps the reference whole and asks for the same style; an `Edit` beside
the `Subject` puts an existing picture on the right panel and paints its mask alone, whose tokens are then the queries.

Differences from the authors' code, all of them deliberate:
* the reference keeps its aspect ratio (``fit``) instead of being stretched without a word;
* the VAE encodes its mean instead of drawing from the global random state, so that a seed is a seed;
* a subject that nobody detects is an error with a remedy instead of a crash; your own mask or transparency is used;
* panels are made of whole tokens whatever the size, by cropping a little more;
* lambda scales rows of values in a fused call: no S x S matrix of 2.7 GB a layer;
* engines beside the ControlNet: FLUX Fill (embedded guidance 30, no second branch, as it was trained) and, without any
  inpainting model, holding the reference's latents;
* of several pictures of the subject, the one that shows it largest is used, and the plan says so;
* a backbone with numbers of its own (the miniature) keeps them: steps, guidance, panel size, and no margin; there the
  pixels that the reference's panel spoils repeat the next ones.

Ours, and an experiment: ``diptych-joint`` paints several subjects, each in a region of its own, on one canvas. The
paper paints them one after the other, and so do we unless this is asked for by name. The references have a panel each
(``arrangement="row"``) or share the left one (``"stack"``); the tokens of a place see their own reference with the
weight lambda, and neither they nor the references see another's (``apart``):

    A'[q, k] = lambda A[q, k]    for q in place i, k in reference i;    k in reference j is hidden from place i

    Scene("the {mug} in the snow", [Subject("mug.png", name="mug")])
    Scene("a cat in {ink}", [Style("ink.png", name="ink")])
    Scene("the {mug} on a table", [Subject("mug.png", name="mug"), Edit("table.png", mask="spot.png")])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import Literal

import numpy as np

from capriccio import text
from capriccio.attention import AttentionProgram, Hide, Weigh
from capriccio.canvas import Box, Canvas, Mask, cut_out, lay, side_by_side
from capriccio.draft import CANVAS, PAINT, Draft, Finish, Method, Preparation
from capriccio.errors import CapriccioError
from capriccio.references import paint_beside, reference_panel
from capriccio.scene import Edit, Region, Style, Subject, references
from capriccio.turns import places_of

SUBJECT_TEMPLATE = (
    "A diptych with two side-by-side images of same {subject}. On the left, a photo of {subject}. "
    "On the right, replicate this {subject} exactly but as {prompt}"
)
STYLE_TEMPLATE = (
    "A diptych with two side-by-side images of same style. On the left, a picture in {subject}. "
    "On the right, replicate this style exactly but as {prompt}"
)
PANEL = 768


@dataclass(frozen=True)
class Options:
    """Settings of Diptych Prompting.

    Attributes:
        attention_weight: The paper's lambda: weight of the reference in the eyes of what is painted; 1 is neutral,
            the paper studies 1 to 1.5.
        engine: How the reference panel is kept; the best at hand if ``None``.
        control_scale: Strength of the inpainting ControlNet; the paper studies 0.5 to 0.95.
        pixel_offset: Pixels cropped at every side of the painted panel, at least; the backbone's if ``None``.
        template: The prompt, with ``{subject}`` and ``{prompt}``; the paper's if ``None``.
    """

    attention_weight: float = 1.3
    engine: Literal["controlnet", "fill", "hold"] | None = None
    control_scale: float | None = None
    pixel_offset: int | None = None
    template: str | None = None

    def __post_init__(self) -> None:
        if self.attention_weight < 0:
            raise CapriccioError(f"attention_weight received {self.attention_weight:g}; give 1 (off) to about 1.5.")
        if self.pixel_offset is not None and self.pixel_offset < 0:
            raise CapriccioError(f"pixel_offset received {self.pixel_offset}; give 0 or more pixels.")
        if self.template is not None and "prompt" not in text.slots(self.template):
            raise CapriccioError(f"The template {self.template!r} has no place for {{prompt}}; add it.")


@dataclass(frozen=True)
class JointOptions(Options):
    """Settings of the joint canvas, which is ours.

    Attributes:
        attention_weight: As above, of each reference in the eyes of its place.
        engine: As above.
        control_scale: As above.
        pixel_offset: As above.
        template: As above; ``{subject}`` is all subjects, with "and" between them.
        arrangement: ``"row"``, a whole panel for each reference, or ``"stack"``, below each other on one panel.
        apart: Whether a place, and every reference, is blind to the references of the others.
    """

    arrangement: Literal["row", "stack"] = "row"
    apart: bool = True


def plan(draft: Draft, conditions: Sequence[Subject | Style | Edit], options: Options) -> Draft:
    """Add the whole method to a draft: numbers, canvas, preparations, prompt, attention, finish."""
    edit = next((condition for condition in conditions if isinstance(condition, Edit)), None)
    (reference,) = (condition for condition in conditions if not isinstance(condition, Edit))
    draft = _numbers(draft.inpaint(options.engine, options.control_scale))
    if edit is None:
        canvas, painted = _panels(draft, options), "image:right"
        draft = reference_panel(draft, canvas.panel("left"), reference)
        draft = replace(_target(draft, canvas, {"left": reference.name}, "right"), canvas=canvas)
    else:
        if options.pixel_offset is not None:
            raise CapriccioError(
                "pixel_offset has no effect on an edit, whose panel is the picture itself; leave it out."
            )
        draft, painted = paint_beside(draft, reference, edit, "diptych"), "image:edit"
    program = AttentionProgram((Weigh(queries=painted, keys="image:left", weight=options.attention_weight),))
    draft = replace(draft, prompt=_prompt(draft, reference, options), program=program)
    return draft.say(*filter(None, [draft.backbone.defaults.caution]))


def _numbers(draft: Draft) -> Draft:
    """Take the paper's numbers."""
    side = min(PANEL, draft.backbone.defaults.width)
    return draft.guided(3.5, 3.5).adopt(num_inference_steps=30, width=side, height=side)


def _panels(draft: Draft, options: Options) -> Canvas:
    """Two panels of the picture's size and a margin that is cropped again, in whole tokens."""
    token, settings = draft.backbone.token, draft.settings
    Canvas(settings.width, settings.height, token)  # checks the size
    margin = draft.backbone.defaults.panel_margin if options.pixel_offset is None else options.pixel_offset
    width, height = (token * ceil((side + 2 * margin) / token) for side in (settings.width, settings.height))
    return side_by_side(("left", "right"), width, height, token)


def _target(draft: Draft, canvas: Canvas, shown: Mapping[str, str], panel: str) -> Draft:
    """Paint a whole panel beside those that show a reference each, and crop it."""
    box = canvas.panel(panel)
    paint, inner = canvas.mask(box), box.inner(draft.settings.width, draft.settings.height)
    draft = draft.add(
        Preparation(
            CANVAS,
            "picture",
            "; ".join([*(f"{place}: {name}.panel" for place, name in shown.items()), f"{panel}: empty"]),
            lambda *pictures: lay(canvas, dict(zip(shown, pictures, strict=True))),
            tuple(f"{name}.panel" for name in shown.values()),
        ),
        Preparation(PAINT, "mask", f"the {panel} panel", lambda: paint),
    )
    spoiled = draft.backbone.defaults.panel_spoiled
    beside = f"; {spoiled} pixels beside another panel repeat the next ones" if spoiled else ""
    crop = Finish(f"crop {inner}{beside}", lambda painted, _: cut_out(painted, inner, box, spoiled))
    groups = {f"image:{place}": canvas.mask(canvas.panel(place)) for place in (*shown, panel)}
    return replace(draft, groups=groups, picture=inner, finish=(crop,))


def _prompt(draft: Draft, reference: Subject | Style, options: Options) -> str:
    if isinstance(reference, Subject):
        template, name = SUBJECT_TEMPLATE, reference.description or reference.name
    else:
        template, name = STYLE_TEMPLATE, "this style" if reference.name == "style" else reference.name
    return text.fill(options.template or template, {"subject": name, "prompt": draft.scene.words})


# --- several subjects on one canvas: ours --------------------------------------------------------------------------


def plan_joint(draft: Draft, conditions: Sequence[Subject | Region], options: JointOptions) -> Draft:
    """Add a canvas with the references of all subjects, and each subject's place on the picture beside them."""
    subjects = {one.name: one for one in conditions if isinstance(one, Subject)}
    regions = [one for one in conditions if isinstance(one, Region)]
    _check_joint(regions, list(subjects))
    places = places_of(list(subjects), regions)
    draft = _numbers(draft.inpaint(options.engine, options.control_scale))
    canvas = _joint_canvas(draft, options, len(places))
    shown = {f"reference/{number}": name for number, name in enumerate(places, 1)}
    for panel, name in shown.items():
        draft = reference_panel(draft, canvas.panel(panel), subjects[name])
    draft = _target(draft, canvas, shown, "picture")
    inner = draft.picture or canvas.panel("picture")
    groups = {**draft.groups, **_joint_places(canvas, inner, places)}
    program = joint_attention(len(places), options.attention_weight, options.apart)
    names = " and ".join(subjects[name].description or name for name in places)
    prompt = text.fill(options.template or SUBJECT_TEMPLATE, {"subject": names, "prompt": draft.scene.words})
    draft = replace(draft, canvas=canvas, prompt=prompt, groups=groups, program=program)
    return draft.say(
        "An experiment: all subjects are painted on one canvas. The scene's prompt says what is painted; those of "
        "regions say whose place it is.",
        *filter(None, [draft.backbone.defaults.caution]),
    )


def joint_attention(count: int, attention_weight: float, apart: bool) -> AttentionProgram:
    """Return which place sees which reference, of so many: its own with more weight, and no other if ``apart``."""
    numbers = range(1, count + 1)
    own = [Weigh(f"image:place/{i}", f"image:reference/{i}", attention_weight) for i in numbers]
    others = [(i, j) for i in numbers for j in numbers if i != j and apart]
    blind = [Hide((f"image:place/{i}", f"image:reference/{i}"), f"image:reference/{j}") for i, j in others]
    return AttentionProgram((*own, *blind))


def _check_joint(regions: Sequence[Region], subjects: Sequence[str]) -> None:
    for region in regions:
        named = [name for name in references(region.prompt) if name in subjects]
        unheard = "strength" if region.strength is not None else "feather" if region.feather else ""
        if not named:
            raise CapriccioError(
                f"The region {region.prompt!r} names no subject, but diptych-joint paints the places of subjects "
                "alone; name one in braces, or leave out by= to paint one after the other."
            )
        if unheard:
            raise CapriccioError(
                f"{unheard} of the region {region.prompt!r} has no effect with diptych-joint, which paints all places "
                "at once; leave it out."
            )


def _joint_canvas(draft: Draft, options: JointOptions, count: int) -> Canvas:
    """The references, and the picture to the right of them: on panels of equal size, or sharing one."""
    names = tuple(f"reference/{number}" for number in range(1, count + 1))
    pair = _panels(draft, options)
    left, right = (box for _, box in pair.panels)
    if options.arrangement == "row":
        return side_by_side((*names, "picture"), right.width, right.height, pair.token)
    rows = right.height // pair.token
    edges = [pair.token * (rows * number // count) for number in range(count + 1)]
    if rows < count:
        raise CapriccioError(
            f"{count} references do not fit on a panel of {rows} rows of tokens; give a larger picture, or "
            "arrangement='row'."
        )
    stacked = [Box(0, top, left.width, bottom - top) for top, bottom in pairwise(edges)]
    return replace(pair, panels=(*zip(names, stacked, strict=True), ("picture", right)))


def _joint_places(canvas: Canvas, inner: Box, places: Mapping[str, Region]) -> dict[str, Mask]:
    """Return the group of each place on the canvas; of places that overlap, the later one lies on top."""
    found: dict[str, Mask] = {}
    taken = np.zeros((inner.height, inner.width), bool)
    for number, (name, region) in reversed([*enumerate(places.items(), 1)]):
        free = region.cover(inner.width, inner.height) & ~taken
        if not free.any():
            raise CapriccioError(
                f"Later places cover all of that of {name!r}, {region.prompt!r}; move them apart, or change their "
                "order."
            )
        taken |= free
        left, top, right, bottom = inner.corners
        found[f"image:place/{number}"] = np.zeros((canvas.height, canvas.width), bool)
        found[f"image:place/{number}"][top:bottom, left:right] = free
    return found


METHOD = Method(
    name="diptych",
    title="Diptych Prompting (Shin et al., CVPR 2025)",
    paper="https://arxiv.org/abs/2411.15466",
    what="a subject or a style from one picture, zero-shot; subject-driven editing of an existing picture",
    takes=(frozenset({"subject"}), frozenset({"style"}), frozenset({"subject", "edit"})),
    options=Options,
    plan=plan,
    neutral="attention_weight=1",
)
JOINT = Method(
    name="diptych-joint",
    title="Diptych Prompting, several subjects on one canvas (ours, an experiment)",
    paper="",
    what="subjects in regions, each from its own picture, at once instead of one after the other",
    takes=(frozenset({"subject", "region"}),),
    options=JointOptions,
    plan=plan_joint,
    neutral="attention_weight=1, apart=false",
    several=frozenset({"subject", "region"}),
)
