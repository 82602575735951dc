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
* a backbone with numbers of its own (the miniature) keeps them: steps, guidance, panel size, margin.

    Scene("the {mug} in the snow", [Subject("mug.png", name="mug")])
    Scene("a cat in {ink}", [Style("ink.png", name="ink")])
    Scene("the {mug} on a table", [Subject("mug.png", name="mug"), Edit("table.png", mask="spot.png")])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

import numpy as np
from PIL import Image

from capriccio import perception, text
from capriccio.attention import AttentionProgram, Weigh
from capriccio.canvas import Box, Canvas, lay, on_colour, opaque, paste_back, side_by_side, size_like, softened
from capriccio.draft import CANVAS, PAINT, Draft, Finish, Method, Preparation
from capriccio.errors import CapriccioError
from capriccio.pictures import Fit, Picture, fit, fitted_box, open_mask, open_picture
from capriccio.scene import Edit, Style, Subject

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


def plan(draft: Draft, conditions: Sequence[Subject | Style | Edit], options: Options) -> Draft:
    """Add the whole method to a draft: numbers, canvas, preparations, prompt, attention, finish."""
    edit = next((condition for condition in conditions if isinstance(condition, Edit)), None)
    (reference,) = (condition for condition in conditions if not isinstance(condition, Edit))
    draft = _numbers(draft.inpaint(options.engine, options.control_scale))
    canvas = _panels(draft, options) if edit is None else _panels_for(draft, options, open_picture(edit.image).size)
    draft = _reference(draft, canvas.panel("left"), reference)
    draft = _target(draft, canvas, reference) if edit is None else _target_picture(draft, canvas, reference, edit)
    painted = "image:right" if edit is None else "image:edit"
    program = AttentionProgram((Weigh(queries=painted, keys="image:left", weight=options.attention_weight),))
    draft = replace(draft, canvas=canvas, prompt=_prompt(draft, reference, options), program=program)
    return draft.say(*filter(None, [draft.backbone.defaults.caution]))


def _numbers(draft: Draft) -> Draft:
    """Take the paper's numbers, or those that FLUX Fill was trained for."""
    guidance = (30.0, 1.0) if draft.engine == "fill" else (3.5, 3.5)
    side = min(PANEL, draft.backbone.defaults.width)
    if not draft.backbone.defaults.plain_guidance:  # the paper's numbers are FLUX's
        draft = draft.adopt(guidance_scale=guidance[0], true_cfg_scale=guidance[1])
    draft = draft.adopt(num_inference_steps=30)
    return draft.adopt(width=side, height=side)


def _panels(draft: Draft, options: Options) -> Canvas:
    """Two panels of the picture's size and a margin that is cropped again, in whole tokens."""
    token, settings = draft.backbone.token, draft.settings
    Canvas(settings.width, settings.height, token)  # checks the size
    margin = draft.backbone.defaults.panel_margin if options.pixel_offset is None else options.pixel_offset
    width, height = (token * ceil((side + 2 * margin) / token) for side in (settings.width, settings.height))
    return side_by_side(("left", "right"), width, height, token)


def _panels_for(draft: Draft, options: Options, picture: tuple[int, int]) -> Canvas:
    """Two panels of the shape of the picture that is edited."""
    if options.pixel_offset is not None:
        raise CapriccioError("pixel_offset has no effect on an edit, whose panel is the picture itself; leave it out.")
    token, defaults, scene, settings = draft.backbone.token, draft.backbone.defaults, draft.scene, draft.settings
    size = settings.width, settings.height
    if not (defaults.own or scene.width or scene.height):
        size = size_like(*picture, settings.width * settings.height, token)
    return side_by_side(("left", "right"), *size, token)


def _reference(draft: Draft, box: Box, reference: Subject | Style) -> Draft:
    """Prepare the left panel: fit the pictures, find the subject, put it on white."""
    name = reference.name
    alone = isinstance(reference, Subject) and reference.remove_background
    sources = reference.images if isinstance(reference, Subject) else (reference.image,)
    mask = reference.mask if isinstance(reference, Subject) else None
    fitted = [_fitted(source, mask if alone else None, name, box, reference.fit) for source in sources]
    sentences = " ".join(dict.fromkeys(sentence for _, sentence in fitted))
    pictures = [picture for picture, _ in fitted]
    draft = draft.add(Preparation(f"{name}.pictures", "pictures", sentences, lambda: pictures))
    if mask is not None and not alone:
        draft = draft.say(f"The mask of {name!r} has no effect, because remove_background is off.")
    if not alone and any(picture.mode == "RGBA" for picture in pictures):
        draft = draft.say(f"The picture of {name!r} is transparent in places; white is put there.")
    if alone or len(pictures) > 1:
        return draft.add(*_found(draft, name, pictures, alone))
    whole = Preparation(f"{name}.panel", "picture", "the picture as it is", _first, (f"{name}.pictures",))
    return draft.add(whole)


def _first(pictures: list[Image.Image]) -> Image.Image:
    return opaque(pictures[0])


def _fitted(source: Picture, mask: Picture | None, name: str, box: Box, how: Fit) -> tuple[Image.Image, str]:
    picture = open_picture(source)
    if mask is not None:
        given = open_mask(mask, picture.size, f"mask of {name!r}")
        picture = picture.convert("RGB")
        picture.putalpha(given)
    return fit(picture, box.width, box.height, how)


def _found(draft: Draft, name: str, pictures: list[Image.Image], alone: bool) -> tuple[Preparation, Preparation]:
    """Find the subject in each picture, and make the panel from the picture that shows it largest."""
    own = draft.backbone.defaults.own

    def masks(pictures: list[Image.Image]) -> list[Image.Image]:
        return [_mask(picture, name, own) for picture in pictures]

    def panel(pictures: list[Image.Image], masks: list[Image.Image]) -> Image.Image:
        picture, mask = max(zip(pictures, masks, strict=True), key=lambda pair: np.asarray(pair[1], np.int64).sum())
        return on_colour(picture, mask) if alone else opaque(picture)

    given = all(picture.mode == "RGBA" for picture in pictures)
    finds = "the mask or transparency given" if given else f"find the {name}, keep its largest part, holes filled"
    several = f", from the one of {len(pictures)} pictures that shows it largest" if len(pictures) > 1 else ""
    puts = (f"the {name} alone on white" if alone else "the picture as it is") + several
    return (
        Preparation(f"{name}.masks", "masks", finds, masks, (f"{name}.pictures",)),
        Preparation(f"{name}.panel", "picture", puts, panel, (f"{name}.pictures", f"{name}.masks")),
    )


def _mask(picture: Image.Image, name: str, is_miniature: bool) -> Image.Image:
    if picture.mode == "RGBA":
        return picture.getchannel("A")
    found = perception.segment(picture, name, backbone_is_miniature=is_miniature)
    return Image.fromarray(np.where(found, np.uint8(255), np.uint8(0)))


def _target(draft: Draft, canvas: Canvas, reference: Subject | Style) -> Draft:
    """Paint the whole right panel, and crop it."""
    right = canvas.panel("right")
    paint = canvas.mask(right)
    inner = right.inner(draft.settings.width, draft.settings.height)
    draft = draft.add(
        Preparation(
            CANVAS,
            "picture",
            f"left: {reference.name}.panel; right: empty",
            lambda panel: lay(canvas, {"left": panel}),
            (f"{reference.name}.panel",),
        ),
        Preparation(PAINT, "mask", "the right panel", lambda: paint),
    )
    crop = Finish(f"crop {inner}", lambda painted, _: painted.crop(inner.corners))
    groups = {"image:left": ~paint, "image:right": paint}
    return replace(draft, groups=groups, picture=inner, finish=(crop,))


def _target_picture(draft: Draft, canvas: Canvas, reference: Subject | Style, edit: Edit) -> Draft:
    """Put the picture to be edited on the right panel, paint its mask alone, and put the result back into it."""
    right = canvas.panel("right")
    if edit.mask is None or edit.strength != 1:
        raise CapriccioError("diptych paints a subject into the mask of an edit, from noise; give a mask, no strength.")
    picture = opaque(open_picture(edit.image))
    mask = open_mask(edit.mask, picture.size, "mask of the edit")
    size = right.width, right.height
    fitted, sentence = fit(picture, *size, edit.fit)
    paint = canvas.mask(right)
    paint[:, right.left :] = np.asarray(fit(mask, *size, edit.fit)[0]) > 127
    if not paint.any():
        raise CapriccioError("Nothing of the edit's mask is left after cropping; use fit='pad' or a larger mask.")
    box, seam = fitted_box(picture.size, size, edit.fit), softened(mask, edit.feather)

    def finish(painted: Image.Image, _: Any) -> Image.Image:
        return paste_back(painted.crop(right.corners), picture, seam, box)

    draft = draft.add(
        Preparation(
            CANVAS,
            "picture",
            f"left: {reference.name}.panel; right: the picture to edit. {sentence}",
            lambda panel: lay(canvas, {"left": panel, "right": fitted}),
            (f"{reference.name}.panel",),
        ),
        Preparation(PAINT, "mask", "the mask of the edit", lambda: paint),
    )
    groups = {"image:left": canvas.mask(canvas.panel("left")), "image:right": canvas.mask(right), "image:edit": paint}
    back = Finish("put the right panel back into the picture given", finish)
    return replace(draft, groups=groups, picture=right, finish=(back,))


def _prompt(draft: Draft, reference: Subject | Style, options: Options) -> str:
    if isinstance(reference, Subject):
        template, name = SUBJECT_TEMPLATE, reference.description or reference.name
    else:
        template, name = STYLE_TEMPLATE, "this style" if reference.name == "style" else reference.name
    return text.fill(options.template or template, {"subject": name, "prompt": draft.scene.words})


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
