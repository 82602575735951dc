"""The draft: a plan in the making, and what a method is.

A *method* is a function from a draft to a draft: it lays out the canvas, adds preparations, an attention program, a
finish. What is common to all methods is settled afterwards, by `capriccio.plan`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, get_origin, get_type_hints

import numpy as np
from PIL import Image
from torch import Tensor, nn

from capriccio.attention import AttentionProgram, LayerInfo, Steps, Tokens
from capriccio.backbones.base import Backbone
from capriccio.canvas import Box, Canvas, Mask, opaque, paste_back, size_like, softened
from capriccio.errors import CapriccioError, nearest
from capriccio.pictures import fit, fitted_box, open_mask, open_picture
from capriccio.scene import Condition, Edit, Scene

CANVAS, PAINT, KNOWN, START = "canvas", "paint", "known", "start"
"""Outputs of preparations that the run itself reads: the whole canvas, its mask (paint where true), the known part, and
the latents that a run of less than full strength starts from."""


@dataclass(frozen=True)
class Preparation:
    """Something done once before sampling.

    Attributes:
        name: Of its output.
        kind: What the output is, in words.
        says: What is done.
        run: Takes the outputs of ``needs``, in order.
        needs: Names of earlier outputs.
    """

    name: str
    kind: str
    says: str
    run: Callable[..., Any]
    needs: tuple[str, ...] = ()


class Source(Protocol):
    """Something that tells what a bank holds for one picture."""

    def at(self, time: Tensor, step: int, role: str) -> Tokens:
        """Return that at a timestep, which is the given step of the run, in the branch of a role: one row.

        The very same object for two roles, or for several pictures, lets their rows share it.
        """


@dataclass(frozen=True)
class Supply:
    """Where a bank of the attention program takes its tokens from.

    Attributes:
        bank: Its name.
        size: Number of tokens, or the height and width in pixels of the picture that it shows.
        output: Name of the preparation whose output, a `Source`, tells what it holds.
        flops: Of telling so once a step.
    """

    bank: str
    size: int | tuple[int, int]
    output: str
    flops: int = 0


@dataclass(frozen=True)
class Finish:
    """Something done to a painted canvas: takes the picture and all outputs of the preparations."""

    says: str
    run: Callable[[Image.Image, Mapping[str, Any]], Image.Image]


@dataclass(frozen=True)
class Collage:
    """A rule of the latents: passages are not read beside the prompt, each denoises a picture of its own instead.

    After each step every one of these pictures is resized to its cell, and the prompt's own is mixed with the cells.

    Attributes:
        cells: Where each passage goes, in pixels.
        ratio: Weight of the prompt's own latents, 0 to 1.
    """

    cells: tuple[Box, ...]
    ratio: float


@dataclass(frozen=True)
class Settings:
    """The numbers of a run, as `Scene` names them."""

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    true_cfg_scale: float
    max_sequence_length: int
    scheduler: str | None


@dataclass(frozen=True)
class Draft:
    """A plan in the making; methods replace what they decide.

    Attributes:
        scene: What is asked for.
        backbone: Where it is painted.
        settings: The numbers that hold, the scene's own included.
        prompt: The whole prompt.
        canvas: What is painted at once; the picture itself if ``None``.
        picture: Where on the canvas the picture lies that is asked for; all of it if ``None``.
        engine: How the known part of the canvas is kept, if there is one.
        control_scale: Strength of an inpainting ControlNet.
        held: Whether known latents are held on their path as well, beside what the engine shows of them.
        strength: How far the canvas is changed: 1 paints it from noise, less starts from the canvas, noised.
        groups: Named groups of image tokens, by the region of the canvas that they cover.
        regions: For each region that has a name, what its groups are called after ``image:`` and ``text:``; a LoRA can
            be limited to it.
        program: Edits of attention.
        supplies: What the banks of the program hold.
        passages: Texts that the positive branch reads beside the prompt, by name.
        reading: Steps in which it reads them.
        collage: How passages are put together as pictures of their own, instead of being read beside the prompt.
        trim: Whether passages are read without most of their padding (an approximation: models learned with it).
        preparations: In order.
        finish: In order.
        notes: Sentences that the person should read.
    """

    scene: Scene
    backbone: Backbone
    settings: Settings
    prompt: str
    canvas: Canvas | None = None
    picture: Box | None = None
    engine: str | None = None
    control_scale: float = 1.0
    held: bool = False
    strength: float = 1.0
    groups: Mapping[str, Mask] = field(default_factory=dict)
    regions: Mapping[str, str] = field(default_factory=dict)
    program: AttentionProgram = field(default_factory=AttentionProgram)
    supplies: tuple[Supply, ...] = ()
    passages: Mapping[str, str] = field(default_factory=dict)
    reading: Steps = field(default_factory=Steps)
    collage: Collage | None = None
    trim: bool = False
    preparations: tuple[Preparation, ...] = ()
    finish: tuple[Finish, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        """Attention layers of the denoiser that will paint."""
        fills = self.engine is None and not self.backbone.can_start_from_text
        return self.backbone.layers("fill" if fills else self.engine)

    def adopt(self, **numbers: Any) -> Draft:
        """Take a paper's settings, unless the backbone's belong to it or the scene has its own."""
        if self.backbone.defaults.own:
            return self
        said = {name for name in numbers if getattr(self.scene, name) is not None}
        if self.backbone.defaults.plain_guidance and self.scene.guidance_scale is not None:
            said.add("true_cfg_scale")  # which such a scene calls guidance_scale
        mine = {name: value for name, value in numbers.items() if name not in said}
        return replace(self, settings=replace(self.settings, **mine))

    def guided(self, guidance_scale: float, true_cfg_scale: float) -> Draft:
        """Take a paper's guidance; FLUX Fill keeps what it was trained for, 30 embedded and no second branch.

        Numbers of embedded guidance are FLUX's: a backbone without it keeps its own.
        """
        if self.backbone.defaults.plain_guidance:
            return self
        embedded, true = (30.0, 1.0) if self.engine == "fill" else (guidance_scale, true_cfg_scale)
        return self.adopt(guidance_scale=embedded, true_cfg_scale=true)

    def add(self, *preparations: Preparation) -> Draft:
        """Add preparations."""
        return replace(self, preparations=self.preparations + preparations)

    def say(self, *notes: str) -> Draft:
        """Add sentences."""
        return replace(self, notes=self.notes + notes)

    def inpaint(self, engine: str | None, control_scale: float | None = None, hold: bool | None = None) -> Draft:
        """Choose how the known part is kept.

        Args:
            engine: Its name, or ``None`` for the best at hand.
            control_scale: Strength of the inpainting ControlNet; 0.95, as its authors recommend, if ``None``.
            hold: Whether known latents are held on their path as well; they are not, if ``None``.

        Raises:
            CapriccioError: If the backbone does not have the engine, or the engine no such strength, or does nothing
                but hold.
        """
        at_hand = self.backbone.engines
        engine = at_hand[0] if engine is None else engine
        if engine not in at_hand:
            raise CapriccioError(
                f"engine {engine!r} is not at hand on {self.backbone.name!r}, which has {', '.join(at_hand)}; open it "
                "with inpainting= a folder of an inpainting model (a ControlNet in the alimama layout, FLUX Fill, a "
                "Stable Diffusion or SDXL inpainting model)."
            )
        if hold and engine == "hold":
            raise CapriccioError(
                "hold=True has no effect with the engine 'hold', which does nothing else; leave it out."
            )
        held = bool(hold)
        if engine != "controlnet":
            if control_scale is not None:
                raise CapriccioError(f"control_scale has no effect with the engine {engine!r}; leave it out.")
            return replace(self, engine=engine, held=held)
        scale = 0.95 if control_scale is None else control_scale
        if scale < 0:
            raise CapriccioError(f"control_scale received {scale:g}; give 0 (off) to 1.")
        return replace(self, engine=engine, control_scale=scale, held=held)


def paint_into(draft: Draft, edit: Edit) -> Draft:
    """Lay a picture on a canvas of its own shape, paint its mask, and put the result back into the picture.

    Raises:
        CapriccioError: If the mask does not fit the picture, or nothing is left of it.
    """
    picture = opaque(open_picture(edit.image))
    mask = Image.new("L", picture.size, 255)
    if edit.mask is not None:
        mask = open_mask(edit.mask, picture.size, "mask of the edit")
    draft = _sized(draft, picture.size)
    size = draft.settings.width, draft.settings.height
    fitted, sentence = fit(picture, *size, edit.fit)
    paint = np.asarray(fit(mask, *size, edit.fit)[0]) > 127
    if not paint.any():
        raise CapriccioError("Nothing of the edit's mask is left after cropping; use fit='pad' or a larger mask.")
    box, seam = fitted_box(picture.size, size, edit.fit), softened(mask, edit.feather)
    return replace(
        draft.add(
            Preparation(CANVAS, "picture", sentence, lambda: fitted),
            Preparation(PAINT, "mask", f"the mask of the edit, {paint.mean():.0%} of the canvas", lambda: paint),
        ),
        canvas=Canvas(*size, draft.backbone.token),
        strength=edit.strength,
        groups={"image:edit": paint, "image:known": ~paint},
        finish=(Finish("put it into the picture given", lambda found, _: paste_back(found, picture, seam, box)),),
    )


def _sized(draft: Draft, picture: tuple[int, int]) -> Draft:
    """Take the picture's shape where the scene gives no size and the backbone can paint any."""
    defaults, scene, settings = draft.backbone.defaults, draft.scene, draft.settings
    if defaults.own or scene.width is not None or scene.height is not None:
        return draft
    width, height = size_like(*picture, defaults.width * defaults.height, draft.backbone.token)
    return replace(draft, settings=replace(settings, width=width, height=height))


@dataclass(frozen=True)
class Method:
    """One row of the table of methods: a paper, or plain painting.

    Attributes:
        name: As ``by=`` names it.
        title: Of the paper.
        paper: Its address, or nothing.
        what: It does, in one line.
        takes: Each set of kinds of condition that it can paint from.
        several: Of those kinds, the ones that a scene may have more than one of.
        options: A dataclass of its own settings, with defaults.
        plan: Adds the method to a draft, given the conditions and the settings.
        neutral: The setting at which it changes nothing.
        load: Loads what it adds to a model from a folder or file, for a backbone; ``None`` where it adds nothing.
    """

    name: str
    title: str
    paper: str
    what: str
    takes: tuple[frozenset[str], ...]
    options: type
    plan: Callable[[Draft, Sequence[Any], Any], Draft]
    neutral: str = ""
    several: frozenset[str] = frozenset()
    load: Callable[[Path, Backbone], nn.Module] | None = None

    def works_on(self, backbone: Backbone) -> bool:
        """Whether what it adds to a model is loaded there."""
        return self.load is None or self.name in backbone.modules

    def paints(self, kinds: Sequence[str]) -> bool:
        """Whether it paints from conditions of these kinds."""
        once = all(kinds.count(kind) == 1 or kind in self.several for kind in kinds)
        return once and frozenset(kinds) in self.takes

    @property
    def settings(self) -> dict[str, Any]:
        """Its own settings and their defaults; ``None`` is the best for the backbone."""
        return as_data(self.options())


def choose_method(conditions: Sequence[Condition], table: Mapping[str, Method], backbone: Backbone) -> Method | None:
    """Return the method that paints these conditions: the one they name, else the first that takes them here.

    Raises:
        CapriccioError: If a name is unknown, or no method takes them together.
    """
    if not conditions:
        return None
    kinds = sorted(condition.kind for condition in conditions)
    asked = list(dict.fromkeys(condition.by for condition in conditions if condition.by is not None))
    for name in asked:
        if name not in table:
            raise CapriccioError(f"by={name!r} names no method; {nearest(name, table)}")
    if len(asked) > 1:
        raise CapriccioError(
            f"The conditions ask for {' and '.join(asked)}, but each lays out the whole canvas; name one of them."
        )
    able = [table[asked[0]]] if asked else [method for method in table.values() if method.works_on(backbone)]
    for method in able:
        if method.paints(kinds):
            return method
    choices = "; ".join(f"{m.name} takes {' or '.join(' + '.join(sorted(t)) for t in m.takes)}" for m in able)
    raise CapriccioError(f"Nothing here paints {' + '.join(kinds)} together: {choices}; leave something out.")


def read_options(method: Method, conditions: Sequence[Condition]) -> Any:
    """Return the settings of a method that the conditions give, checked.

    Raises:
        CapriccioError: If a name is unknown, a value is of the wrong type, or two conditions disagree.
    """
    given: dict[str, Any] = {}
    hints = get_type_hints(method.options)
    for name, value in (item for condition in conditions for item in condition.options.items()):
        if name not in hints:
            hint = nearest(name, hints) if hints else "it has none"
            raise CapriccioError(f"{method.name} has no option {name!r}; {hint}")
        if name in given and given[name] != value:
            raise CapriccioError(f"option {name!r} was given as {given[name]!r} and as {value!r}; give it once.")
        given[name] = _as_type(f"option {name!r} of {method.name}", value, hints[name])
    return method.options(**given)


def as_data(thing: Any) -> dict[str, Any]:
    """Return the fields of a dataclass; nothing of ``None``."""
    return {} if thing is None else {f.name: getattr(thing, f.name) for f in fields(thing)}


def _as_type(what: str, value: Any, hint: Any) -> Any:
    """Return a value that JSON holds as the type of an option."""
    if type(None) in get_args(hint):
        kinds = [option for option in get_args(hint) if option is not type(None)]
        return None if value is None else _as_type(what, value, kinds[0])
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise CapriccioError(f"{what} received {value!r}; {nearest(str(value), map(str, get_args(hint)))}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise CapriccioError(f"{what} received {value!r}, but expects {_TYPES[hint]}; give one.")
    return value


_TYPES = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
