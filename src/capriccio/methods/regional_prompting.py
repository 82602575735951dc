"""Regional Prompting: a prompt of its own for every place of the picture, with no training.

Chen, Xu, Zheng, Dai, Tai, Yu and others: *Training-free Regional Prompting for Diffusion Transformers*, arXiv
2411.02395. For the first steps the texts of R regions stand beside the prompt, and in every chosen layer

    text r sees text r and image r;  image r sees text r and image r;  image of no region sees image of no region
    image <- (1 - base_ratio) (image as its regions show it) + base_ratio (image as the whole prompt shows it)

then the prompt paints alone. In FLUX's single blocks the second term is a stream of the image of its own (a twin), as
in the authors' code; both streams share every projection in the double blocks, where they are equal. Pooled text is
the prompt's. A place of no region is given to ``background``.

Settings: ``mask_inject_steps`` 10 of 24, every block (``double_`` and ``single_inject_blocks_interval`` 1),
``base_ratio`` 0.2, embedded guidance 3.5. These are the authors' demos (5 to 10 steps, 0.1 to 0.3); the defaults of
their pipeline mask one block. Or one ``strength`` s for each region, 0 to 1:

    inject steps = 5/6 s of all;  base ratio = 0.4 (1 - s);  every block if s >= 0.5, else every second single block

so that 0.5 is the demos' setting, 1 leaves nothing to the prompt, and 0 is plain painting. On U-Nets

    inject steps = s of all;  base ratio = 1 - s / 2

for there the regions need the prompt beside them: at 1 it is the default, RPG's half of each.

On U-Nets, where text is in cross-attention, only that is divided: a place sees the text of its regions and, mixed in,
the prompt; the picture sees itself whole, so it stays one, and every step is regional by default (ours: with
self-attention divided as well, which is nearer to the paper's, things came out wrong more often than without regions).
Text does not look back at the picture, for it cannot. Guidance's other branches are never masked.

Differences from the authors' code, all of them deliberate:
* overlapping regions see each other's text and image, as the paper says, and are no part of the background (there,
  overlaps join it);
* nothing is kept between calls (there, the first mask of a process stays);
* batches of pictures work; a region that vanishes on the token grid is an error, not silence;
* after the last injected step nothing of the regions is computed any more;
* regions are groups of fused calls instead of one dense mask over all tokens;
* ``trim_text`` reads regional texts without most of their padding: an approximation, off by default.

    Scene("a street at night", [Region("a red car", box=(0, 0.5, 0.5, 1)), Region("a lamp", box=(0.6, 0, 0.9, 1))])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from capriccio.attention import AttentionProgram, Layers, Mix, Scope, See, Steps, Twin
from capriccio.canvas import Canvas, Mask
from capriccio.draft import Draft, Method
from capriccio.errors import CapriccioError
from capriccio.phases import POSITIVE
from capriccio.scene import Region

BASE = "base"
PUBLISHED = (10 / 24, 0.2)
ON_UNETS = (1.0, 0.5)
"""Share of regional steps and base ratio; on U-Nets those of RPG's released code, whose form it is."""
TEXT_ALONE = Layers(("cross",))
"""The layers of a U-Net that look at text."""
BACKGROUND = "background"


@dataclass(frozen=True)
class Options:
    """Settings of Regional Prompting; ``None`` is the authors' demos', or follows a region's ``strength``.

    Attributes:
        mask_inject_steps: How many of the first steps are regional, on U-Nets all by default; 0 is neutral.
        double_inject_blocks_interval: Every how many double blocks of FLUX regions are apart; 1 is strongest.
        single_inject_blocks_interval: The same for single blocks.
        base_ratio: Weight of the whole prompt inside the regions, 0 to 1, on U-Nets 0.5 by default; 1 is neutral.
        background: Prompt of every place outside the regions; ``""`` gives them no text at all.
        trim_text: Read regional texts with padding to 16 tokens only; an approximation.
    """

    mask_inject_steps: int | None = None
    double_inject_blocks_interval: int | None = None
    single_inject_blocks_interval: int | None = None
    base_ratio: float | None = None
    background: str = "a photo"
    trim_text: bool = False

    def __post_init__(self) -> None:
        if self.mask_inject_steps is not None and self.mask_inject_steps < 0:
            raise CapriccioError(f"mask_inject_steps received {self.mask_inject_steps}; give 0 (off) or more steps.")
        if self.base_ratio is not None and not 0 <= self.base_ratio <= 1:
            raise CapriccioError(f"base_ratio received {self.base_ratio:g}; give 0 (regions alone) to 1 (off).")
        for name in ("double_inject_blocks_interval", "single_inject_blocks_interval"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CapriccioError(f"{name} received {value}; give 1 (every block) or more.")


@dataclass(frozen=True)
class Place:
    """A region on the canvas.

    Attributes:
        name: Of its groups: ``text:region/<name>``, ``image:region/<name>``.
        prompt: What is painted there.
        mask: (height, width).
        injected: Share of the steps that are regional.
        ratio: Weight of the whole prompt meanwhile.
    """

    name: str
    prompt: str
    mask: Mask
    injected: float
    ratio: float

    @property
    def tokens(self) -> str:
        """What its groups are called after ``text:`` and ``image:``."""
        return f"region/{self.name}"

    @property
    def text(self) -> str:
        """The group of its text."""
        return f"text:{self.tokens}"

    @property
    def image(self) -> str:
        """The group of its image tokens."""
        return f"image:{self.tokens}"


def plan(draft: Draft, conditions: Sequence[Region], options: Options) -> Draft:
    """Add the whole method to a draft: texts, groups, attention."""
    draft = draft.adopt(num_inference_steps=24)
    if draft.backbone.can_start_from_text:  # a model that only fills was taught a guidance of its own
        draft = draft.adopt(guidance_scale=3.5)
    _check(draft, conditions, options)
    places = _places(draft, conditions, options)
    named = {region.name: place.tokens for region, place in zip(conditions, places, strict=True) if region.name}
    groups = {"image": np.ones_like(places[0].mask)} | {place.image: place.mask for place in places}
    draft = replace(draft, groups=groups, regions=named)
    injected = max(place.injected for place in places)
    if injected == 0 or (all(place.ratio == 1 for place in places) and draft.engine is None):
        return draft.say("The regions have no strength here: the prompt paints alone.")
    covered = np.logical_or.reduce([place.mask for place in places])
    if not covered.all() and options.background:
        ratio = max(place.ratio for place in places if place.injected == injected)
        places += (Place(BACKGROUND, options.background, ~covered, injected, ratio),)
        covered = np.ones_like(covered)
    groups |= {place.image: place.mask for place in places}
    groups |= {"image:nowhere": ~covered} if not covered.all() else {}
    reading = Steps(0.0, float(injected))
    program = attention(places, _intervals(draft, conditions, options), reading, nowhere=not covered.all())
    passages = {place.text.removeprefix("text:"): place.prompt for place in places}
    return replace(draft, groups=groups, program=program, passages=passages, reading=reading, trim=options.trim_text)


def attention(
    places: Sequence[Place], intervals: tuple[int, int] | None, reading: Steps, nowhere: bool = False
) -> AttentionProgram:
    """Return who sees whom, and how much of the whole prompt is mixed in.

    Args:
        places: The regions, the background among them.
        intervals: Every how many double and single blocks regions are apart; ``None`` on U-Nets: in cross-attention.
        reading: The regional steps.
        nowhere: Whether there are tokens of no region, ``image:nowhere``.
    """

    everywhere = TEXT_ALONE if intervals is None else Layers()

    def scope(layers: Layers = everywhere, steps: Steps = reading) -> Scope:
        return Scope(layers, steps, (POSITIVE,))

    edits: list[See | Mix] = []
    for layers in _apart(intervals):
        edits += [See((place.text, place.image), (place.text, place.image), scope(layers)) for place in places]
        edits += [See("image:nowhere", "image:nowhere", scope(layers))] * nowhere
    together = ("text:region", "image")
    edits += [See(together, together, scope(layers)) for layers in _together(intervals)]
    mixes = [Mix(place.image, BASE, place.ratio, scope()) for place in places]
    if len({place.ratio for place in places}) == 1:
        mixes = [Mix("image", BASE, places[0].ratio, scope())]
    elif nowhere:
        mixes.append(Mix("image:nowhere", BASE, max(place.ratio for place in places), scope()))
    # A region of less strength ends sooner: from then on its place is the whole prompt's.
    ended = [Mix(p.image, BASE, 1.0, scope(steps=Steps(p.injected, reading.stop))) for p in places]
    ended = [mix for mix, place in zip(ended, places, strict=True) if place.injected < reading.stop]
    own = None if intervals is None else Layers(("single",))
    # Where nothing of the prompt is mixed in, nobody looks at its text.
    mixes = [mix for mix in (*mixes, *ended) if mix.ratio]
    twins = (Twin(BASE, "image", own),) if mixes else ()
    prompts = ("text:base", *(twin.name for twin in twins))
    return AttentionProgram((See(prompts, prompts, scope()), *edits, *mixes), twins)


def _apart(intervals: tuple[int, int] | None) -> Iterator[Layers]:
    """The layers in which regions are apart."""
    if intervals is None:
        yield TEXT_ALONE
    elif intervals == (1, 1):
        yield Layers()
    else:
        yield from (Layers((kind,), every=every) for kind, every in zip(("double", "single"), intervals, strict=True))


def _together(intervals: tuple[int, int] | None) -> Iterator[Layers]:
    """The layers in between, where every region sees all texts and the whole image."""
    for kind, every in zip(("double", "single"), intervals or (), strict=False):
        if every > 1:
            yield Layers((kind,), every=every, others=True)


def _check(draft: Draft, conditions: Sequence[Region], options: Options) -> None:
    joint = _is_joint(draft)
    for region in conditions:
        if region.feather:
            raise CapriccioError(
                f"The region {region.prompt!r} has feather={region.feather}, but only the place of a subject has a "
                "soft border; leave it out, or name a subject in its prompt."
            )
    for name in ("mask_inject_steps", "base_ratio", "double_inject_blocks_interval", "single_inject_blocks_interval"):
        value = getattr(options, name)
        if value is None:
            continue
        if any(region.strength is not None for region in conditions):
            raise CapriccioError(f"Both {name}={value!r} and a strength of a region were given; keep one of them.")
        if "interval" in name and not joint:
            raise CapriccioError(f"{name}={value} counts blocks of FLUX, which {draft.backbone.name!r} has not.")
    defaults = draft.backbone.defaults
    if options.trim_text and defaults.shortest_text == defaults.longest_text:
        raise CapriccioError(
            f"trim_text has no effect here: {draft.backbone.name!r} always reads {defaults.shortest_text} text tokens; "
            "leave it out."
        )
    steps = draft.settings.num_inference_steps
    if options.mask_inject_steps is not None and options.mask_inject_steps > steps:
        raise CapriccioError(f"mask_inject_steps={options.mask_inject_steps} of {steps} steps; give at most {steps}.")


def _is_joint(draft: Draft) -> bool:
    return any(layer.kind == "double" for layer in draft.layers)


def _intervals(draft: Draft, conditions: Sequence[Region], options: Options) -> tuple[int, int] | None:
    if not _is_joint(draft):
        return None
    given = [region.strength for region in conditions if region.strength is not None]
    single = 2 if given and max(given) < 0.5 else 1
    return options.double_inject_blocks_interval or 1, options.single_inject_blocks_interval or single


def _places(draft: Draft, conditions: Sequence[Region], options: Options) -> tuple[Place, ...]:
    settings = draft.settings
    canvas = Canvas(settings.width, settings.height, draft.backbone.token)
    if len(conditions) > canvas.num_tokens:
        raise CapriccioError(
            f"{len(conditions)} regions were given, but the picture has {canvas.num_tokens} tokens; give fewer regions."
        )
    places = []
    for number, region in enumerate(conditions, 1):
        injected, ratio = _control(region.strength, settings.num_inference_steps, options, _is_joint(draft))
        mask = _mask(region, canvas, snapped=_is_joint(draft))
        if not mask.any():
            raise CapriccioError(
                f"The region {region.prompt!r} is empty on the grid of {draft.backbone.token} x "
                f"{draft.backbone.token} pixels that this model attends with; make it larger."
            )
        places.append(Place(str(number), region.words, mask, injected, ratio))
    return tuple(places)


def _control(strength: float | None, steps: int, options: Options, joint: bool) -> tuple[float, float]:
    """Return the share of regional steps and the base ratio: of a strength, or the usual ones where none is asked."""
    if strength is None:
        injected, ratio = PUBLISHED if joint else ON_UNETS
        own = injected if options.mask_inject_steps is None else options.mask_inject_steps / steps
        return round(steps * own) / steps, ratio if options.base_ratio is None else options.base_ratio
    injected, ratio = (strength * 5 / 6, 0.4 * (1 - strength)) if joint else (strength, 1 - strength / 2)
    return round(steps * injected) / steps, round(ratio, 6)


def _mask(region: Region, canvas: Canvas, snapped: bool) -> Mask:
    """Return where a region is; ``snapped`` to whole tokens by the pixel in the middle of each, as the authors do."""
    mask = region.cover(canvas.width, canvas.height)
    if not snapped:
        return mask
    token = canvas.token
    middle = mask[token // 2 :: token, token // 2 :: token]
    return middle.repeat(token, 0).repeat(token, 1)


METHOD = Method(
    name="regional-prompting",
    title="Training-free Regional Prompting for Diffusion Transformers (Chen et al., 2024)",
    paper="https://arxiv.org/abs/2411.02395",
    what="a prompt of its own for every place of the picture; on U-Nets its cross-attention form",
    takes=(frozenset({"region"}),),
    several=frozenset({"region"}),
    options=Options,
    plan=plan,
    neutral="mask_inject_steps=0, base_ratio=1 or strength=0",
)
