"""The scene: what a person asks for, as frozen data that travels as YAML, JSON, or inside a picture.

    Scene("the {mug} in the snow", [Subject("mug.png", name="mug")], seed=7)

A prompt names its conditions in braces. A condition may name its method (``by="diptych"``) and the method's own
settings (``options``); what they mean is checked when a plan is made, for a scene knows no paper.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from capriccio.data import check_ending, read_mapping, write_mapping
from capriccio.errors import CapriccioError, nearest
from capriccio.pictures import EMBED_LIMIT, RECIPE_LIMIT, Fit, Picture, open_mask, read_recipe

SCENE_VERSION: Literal[1] = 1
MAX_SCENE_BYTES = 64 * 2**20
_FILE = ("a scene", "a 'prompt'", MAX_SCENE_BYTES, "give paths of pictures")
_REFERENCE = re.compile(r"\{([^{}]+)\}")
_FILE_KEYS = ("image", "mask", "path")

# --- pictures as fields ------------------------------------------------------------------------------------------


def _picture(value: Any) -> Picture:
    return Picture.from_record(dict(value)) if isinstance(value, Mapping) else Picture.of(value)


def _pictures(value: Any) -> Picture | tuple[Picture, ...]:
    if not isinstance(value, list | tuple):
        return _picture(value)
    if not value:
        raise CapriccioError("An empty list of pictures was given; give at least one.")
    return tuple(map(_picture, value)) if len(value) > 1 else _picture(value[0])


def _write_picture(picture: Picture) -> str | dict[str, str]:
    if picture.path is not None:
        return str(picture.path)
    record = picture.record()
    if picture.data is not None and "data" not in record:
        raise CapriccioError(
            f"A picture of {len(picture.data) // 2**20} MiB is too large to be written into a scene "
            f"(at most {EMBED_LIMIT // 2**20} MiB); save it as a file and give its path."
        )
    return record


_PICTURE_SCHEMA: dict[str, Any] = {
    "description": "The path of a picture, relative to the scene file, or an embedded picture.",
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "sha256": {"type": "string"},
                "data": {"type": "string", "contentEncoding": "base64"},
            },
            "required": ["name", "sha256"],
            "additionalProperties": False,
        },
    ],
}
_SEVERAL_SCHEMA = {"anyOf": [*_PICTURE_SCHEMA["anyOf"], {"type": "array", "items": _PICTURE_SCHEMA, "minItems": 1}]}

OnePicture = Annotated[Picture, PlainValidator(_picture), WithJsonSchema(_PICTURE_SCHEMA)]
Pictures = Annotated[Picture | tuple[Picture, ...], PlainValidator(_pictures), WithJsonSchema(_SEVERAL_SCHEMA)]

# --- conditions --------------------------------------------------------------------------------------------------


class Model(BaseModel):
    """Frozen, typed data whose mistakes are told in one sentence."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
    noun: ClassVar[str]

    def __init__(self, /, **data: Any) -> None:
        # `...` stands for a positional value that was not given.
        try:
            super().__init__(**{key: value for key, value in data.items() if value is not ...})
        except ValidationError as error:
            raise CapriccioError(_sentence(type(self), error)) from None

    def __hash__(self) -> int:
        # Options and pages are dictionaries: equal models hash alike without them.
        return hash((type(self), *(value for name, value in self if not isinstance(value, dict))))


class Condition(Model):
    """Something that a picture must heed.

    Attributes:
        kind: What it is, such as ``"subject"``.
        by: Name of the method to use; the best of the backbone when ``None``.
        options: Settings of that method.
    """

    kind: str
    by: str | None = None
    options: dict[str, Any] = {}

    def __init__(self, /, **settings: Any) -> None:
        # A type checker would else make one of these fields alone, which the kinds below could not call.
        super().__init__(**settings)

    @field_validator("options")
    @classmethod
    def _plain_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        # Through JSON and back: a scene equals itself after any file, and shares no list with the caller.
        try:
            return json.loads(json.dumps(options, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise CapriccioError(
                f"Options hold what JSON cannot ({error}); use numbers, text, lists and maps."
            ) from None


class Subject(Condition):
    """A thing to be painted again, known from one picture or several.

    Attributes:
        image: Picture of the subject, or several of the same subject.
        name: What it is called: in the prompt, and to a detector.
        mask: Where the subject is, white on black, instead of looking for it.
        remove_background: Whether to put the subject alone on white.
        fit: How a picture of another shape fills its panel.
        description: A longer description for methods that can use one.
    """

    noun = "a subject"
    kind: Literal["subject"] = "subject"
    image: Pictures
    name: str = Field(min_length=1)
    mask: OnePicture | None = None
    remove_background: bool = True
    fit: Fit = "pad"
    description: str | None = None

    def __init__(self, /, image: Any = ..., **settings: Any) -> None:
        super().__init__(image=image, **settings)

    @property
    def images(self) -> tuple[Picture, ...]:
        """All pictures of the subject."""
        return self.image if isinstance(self.image, tuple) else (self.image,)

    @model_validator(mode="after")
    def _one_mask_for_one_picture(self) -> Self:
        if self.mask is not None and len(self.images) > 1:
            raise CapriccioError(
                f"{len(self.images)} pictures of {self.name!r} came with one mask; give one picture, "
                "or pictures with transparency."
            )
        return self


class Style(Condition):
    """A picture whose style, not whose content, is to be painted.

    Attributes:
        image: The picture.
        name: What the style is called, in the prompt as well.
        fit: How a picture of another shape fills its panel.
    """

    noun = "a style"
    kind: Literal["style"] = "style"
    image: OnePicture
    name: str = Field("style", min_length=1)
    fit: Fit = "crop"

    def __init__(self, /, image: Any = ..., **settings: Any) -> None:
        super().__init__(image=image, **settings)


class Edit(Condition):
    """An existing picture that is painted anew, in part or as a whole: alone, from the prompt; with a subject, into it.

    Attributes:
        image: The picture.
        mask: Where to paint, white on black, of the same size; without one, where the scene's regions are, one after
            the other, or everywhere.
        strength: How much is changed: 1 paints from noise, less starts from the picture, noised (image to image).
        fit: How a picture of another shape fills the size that is painted.
        feather: Pixels inside the mask, from its border, over which what is painted passes into the picture.
        zoom: Paint only a window around the mask, so many times the size of what is masked, enlarged to the size that
            is painted; 1.3 is usual. The whole picture if ``None``.
        zoom_least: Pixels a side of that window at least.
    """

    noun = "an edit"
    kind: Literal["edit"] = "edit"
    image: OnePicture
    mask: OnePicture | None = None
    strength: float = Field(1.0, gt=0, le=1)
    fit: Fit = "pad"
    feather: int = Field(0, ge=0)
    zoom: Annotated[float, Field(ge=1)] | None = None
    zoom_least: int = Field(0, ge=0)

    def __init__(self, /, image: Any = ..., mask: Any = ..., **settings: Any) -> None:
        super().__init__(image=image, mask=mask, **settings)

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if self.mask is None and self.feather:
            raise CapriccioError(
                f"An edit came with feather={self.feather} and no mask whose border it could soften; leave it out (a "
                "region has a feather of its own)."
            )
        if self.zoom is None and self.zoom_least:
            raise CapriccioError(f"An edit came with zoom_least={self.zoom_least} and no zoom; give one, such as 1.3.")
        return self


Edge = Annotated[float, Field(ge=0)]


class Region(Condition):
    """What to paint at one place of the picture.

    Attributes:
        prompt: What to paint there; ``{name}`` stands for the condition of that name, and the region that names a
            subject is that subject's place; ``(words)1.3`` weighs words.
        box: Left, top, right, bottom: pixels, or fractions of the picture where none is above 1.
        mask: Instead of a box: where to paint it, white on black, of the size of the picture.
        strength: How much the place is held to its prompt, 0 (not at all) to 1; the method's own settings if ``None``.
        name: What it is called, in the prompt as well.
        feather: Pixels inside the place of a subject, from its border, over which it passes into what is around it.
    """

    noun = "a region"
    kind: Literal["region"] = "region"
    prompt: str
    box: tuple[Edge, Edge, Edge, Edge] | None = None
    mask: OnePicture | None = None
    strength: Annotated[float, Field(ge=0, le=1)] | None = None
    name: str | None = Field(None, min_length=1)
    feather: int = Field(0, ge=0)

    def __init__(self, /, prompt: Any = ..., box: Any = ..., **settings: Any) -> None:
        super().__init__(prompt=prompt, box=box, **settings)

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.box is None) == (self.mask is None):
            given = "neither a box nor a mask" if self.box is None else "both a box and a mask"
            raise CapriccioError(f"The region {self.prompt!r} came with {given}; give one of them.")
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            numbers = ", ".join(f"{edge:g}" for edge in self.box)
            raise CapriccioError(
                f"The region {self.prompt!r} has the box ({numbers}), which holds nothing; give left, top, right and "
                "bottom, as pixels or as fractions of the picture."
            )
        return self

    @property
    def words(self) -> str:
        """The prompt with the names filled in."""
        return filled(self.prompt)

    def cover(self, width: int, height: int) -> NDArray[np.bool_]:
        """Return where the region is in a picture of some size in pixels, as a mask (height, width).

        Raises:
            CapriccioError: If it reaches outside the picture, or its mask is of another size.
        """
        if self.mask is not None:
            return np.asarray(open_mask(self.mask, (width, height), f"mask of the region {self.prompt!r}")) > 127
        box, size = self.box or (0, 0, 0, 0), (width, height, width, height)
        left, top, right, bottom = (
            round(edge * side) if max(box) <= 1 else round(edge) for edge, side in zip(box, size, strict=True)
        )
        if right > width or bottom > height:
            raise CapriccioError(
                f"The region {self.prompt!r} reaches to ({right}, {bottom}), outside the picture of {width} x {height} "
                "pixels; give a box inside it, or fractions of it."
            )
        mask = np.zeros((height, width), bool)
        mask[top:bottom, left:right] = True
        return mask


class Layout(Condition):
    """Let a planner divide the picture into regions, each with a prompt of its own.

    Attributes:
        planner: ``"grammar"``, which reads plain sentences; the address of an OpenAI-compatible endpoint
            (``https://host/v1#model``), or a language model of transformers (a folder or repository).
        page: A page that was planned before, as ``capriccio.perception.pages.Page`` holds it; then nobody is asked.
    """

    noun = "a layout"
    kind: Literal["layout"] = "layout"
    planner: str = Field("grammar", min_length=1)
    page: dict[str, Any] | None = None

    def __init__(self, /, **settings: Any) -> None:
        super().__init__(**settings)  # for type checkers, as above

    @field_validator("page")
    @classmethod
    def _plain_page(cls, page: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if page is None else json.loads(json.dumps(page))


class Companion(Condition):
    """A condition that every method takes along: it has none of its own."""

    def __init__(self, /, **settings: Any) -> None:
        super().__init__(**settings)  # for type checkers, as above

    @model_validator(mode="after")
    def _needs_no_method(self) -> Self:
        if self.by is not None or self.options:
            raise CapriccioError(
                f"{_upper(self.noun)} names a method or options, but needs none, for it goes with every method; "
                "leave them out."
            )
        return self


UnionMode = Literal[
    "canny", "tile", "depth", "blur", "pose", "gray", "low quality", "scribble", "normal", "segment", "repaint"
]
UNION_MODES = get_args(UnionMode)
"""What the ControlNets of several kinds of picture call them; each family numbers those that it knows."""


class Control(Companion):
    """A picture that steers the layout through a ControlNet.

    Attributes:
        image: The control picture itself, such as edges, depth or key points: light on black, as the ControlNet knows.
        net: Name of the ControlNet among those that were opened; may be left out where there is one.
        mode: For a ControlNet of several kinds of picture (union), which of them this is: one of `UNION_MODES`, or the
            number that the ControlNet gives it.
        controlnet_conditioning_scale: Factor of what the ControlNet adds, as in diffusers; 0 leaves it out.
        control_guidance_start: Share of the steps before it is at work, as in diffusers.
        control_guidance_end: Share of the steps after which it is no longer.
        guess_mode: On Stable Diffusion and SDXL, as in diffusers: steer the prompt's branch of guidance alone, and the
            outer blocks ten times less than the inmost.
        mask: Where in the control picture it steers, white on black, of the same size; everywhere if ``None``.
        fit: How a picture of another shape fills the picture that is painted; beyond its edges it steers nothing.
    """

    noun = "a control"
    kind: Literal["control"] = "control"
    image: OnePicture
    net: str | None = Field(None, min_length=1)
    mode: Annotated[int, Field(ge=0)] | UnionMode | None = None
    controlnet_conditioning_scale: float = Field(1.0, ge=0)
    control_guidance_start: float = Field(0.0, ge=0, le=1)
    control_guidance_end: float = Field(1.0, ge=0, le=1)
    guess_mode: bool = False
    mask: OnePicture | None = None
    fit: Fit = "pad"

    def __init__(self, /, image: Any = ..., net: Any = ..., **settings: Any) -> None:
        super().__init__(image=image, net=net, **settings)

    @field_validator("mode", mode="before")
    @classmethod
    def _a_mode(cls, mode: Any) -> Any:
        if isinstance(mode, str) and mode not in UNION_MODES:
            raise CapriccioError(f"mode {mode!r} is unknown; {nearest(mode, UNION_MODES)}")
        if not isinstance(mode, int | str | None) or isinstance(mode, bool) or (isinstance(mode, int) and mode < 0):
            raise CapriccioError(f"A control received {mode!r} for 'mode'; give a name such as 'depth', or a number.")
        return mode

    @model_validator(mode="after")
    def _some_steps(self) -> Self:
        if self.control_guidance_start >= self.control_guidance_end:
            raise CapriccioError(
                f"A control starts at {self.control_guidance_start:g} and ends at {self.control_guidance_end:g} of the "
                "steps, which leaves none; give a control_guidance_start below control_guidance_end."
            )
        return self


class Lora(Companion):
    """A low-rank adapter of the weights.

    Attributes:
        path: A file, a folder, or a repository name.
        weight: Its strength; 0 leaves it out.
        name: What to call it; the stem of its path when ``None``.
        region: Name of the region of the scene that it is limited to; it works everywhere when ``None``.
    """

    noun = "a LoRA"
    kind: Literal["lora"] = "lora"
    path: str = Field(min_length=1)
    weight: float = 1.0
    name: str | None = None
    region: str | None = Field(None, min_length=1)

    def __init__(self, /, path: Any = ..., **settings: Any) -> None:
        super().__init__(path=os.fspath(path) if isinstance(path, os.PathLike) else path, **settings)


AnyCondition = Annotated[Subject | Style | Edit | Region | Layout | Control | Lora, Field(discriminator="kind")]
CONDITIONS: dict[str, type[Condition]] = {
    "subject": Subject,
    "style": Style,
    "edit": Edit,
    "region": Region,
    "layout": Layout,
    "control": Control,
    "lora": Lora,
}
"""Every kind of condition, by the name that a scene file gives it."""

# --- the scene ---------------------------------------------------------------------------------------------------

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1, le=10_000)]


class Scene(Model):
    """What a person asks for.

    Attributes:
        prompt: What to paint; ``{name}`` stands for the condition of that name, and ``(words)1.3`` weighs words.
        conditions: What to heed beside the prompt.
        negative_prompt: What to stay away from, with ``true_cfg_scale`` above 1.
        width: Pixels; the backbone's own size when ``None``.
        height: Pixels; the backbone's own size when ``None``.
        seed: Seed of the first picture; the next ones count on from it.
        seeds: One seed for each picture, instead of ``seed`` and ``num_images``.
        num_images: How many pictures to paint.
        num_inference_steps: Denoising steps.
        guidance_scale: As in diffusers: guidance that a distilled model was taught to read (FLUX), or classifier-free
            guidance (Stable Diffusion).
        true_cfg_scale: Classifier-free guidance with two predictions a step, whatever diffusers calls it.
        scheduler: Class name of a diffusers scheduler, or what most programs call it (``"DPM++ 2M Karras"``), instead
            of the backbone's.
        max_sequence_length: Text tokens.
        clip_skip: How many of the last layers of a CLIP text encoder to leave out, as in diffusers.
        schema_version: Version of this declaration.
    """

    noun = "a scene"
    prompt: str
    conditions: tuple[AnyCondition, ...] = ()
    negative_prompt: str | None = None
    width: Count | None = None
    height: Count | None = None
    seed: Seed = 0
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None
    num_images: Count = 1
    num_inference_steps: Count | None = None
    guidance_scale: Annotated[float, Field(ge=0)] | None = None
    true_cfg_scale: Annotated[float, Field(ge=0)] | None = None
    scheduler: str | None = None
    max_sequence_length: Count | None = None
    clip_skip: Count | None = None
    schema_version: Literal[1] = SCENE_VERSION

    def __init__(self, /, prompt: Any = ..., conditions: Any = (), **settings: Any) -> None:
        super().__init__(
            prompt=prompt, conditions=(conditions,) if isinstance(conditions, Condition) else conditions, **settings
        )

    @model_validator(mode="after")
    def _names_are_clear(self) -> Self:
        names = [name for condition in self.conditions if (name := name_of(condition)) is not None]
        for name in names:
            if names.count(name) > 1:
                raise CapriccioError(f"Two conditions are called {name!r}; give each a name of its own.")
        prompts = {"prompt": self.prompt} | {f"prompt of the region {r.prompt!r}": r.prompt for r in self._regions}
        for which, prompt in prompts.items():
            for name in references(prompt):
                if name not in names:
                    hint = nearest(name, names) if names else "the scene has no condition with a name"
                    raise CapriccioError(f"The {which} refers to {{{name}}}, but nothing has that name; {hint}")
        return self

    @model_validator(mode="after")
    def _loras_have_their_regions(self) -> Self:
        regions = [c.name for c in self.conditions if isinstance(c, Region) and c.name is not None]
        for lora in self.conditions:
            if isinstance(lora, Lora) and lora.region is not None and lora.region not in regions:
                hint = nearest(lora.region, regions) if regions else "no region of the scene has a name; give it one."
                raise CapriccioError(f"The LoRA {lora.path!r} is limited to the region {lora.region!r}; {hint}")
        return self

    @model_validator(mode="after")
    def _edits_have_places(self) -> Self:
        edits = [one for one in self.conditions if isinstance(one, Edit) and one.mask is None]
        for edit in edits if not self._regions else ():
            if edit.strength == 1:
                raise CapriccioError(
                    "An edit came with no mask and strength 1, which leaves nothing of the picture; give a mask where "
                    "to paint, regions, or a strength below 1 (0.6 is usual)."
                )
            if edit.zoom is not None:
                raise CapriccioError(
                    f"An edit came with zoom={edit.zoom:g} and no mask to zoom in on; give a mask, or leave it out."
                )
        return self

    @model_validator(mode="after")
    def _seeds_are_clear(self) -> Self:
        if self.seeds is not None and self.seed:
            raise CapriccioError(f"Both seed={self.seed} and seeds={list(self.seeds)} were given; keep one of them.")
        if self.seeds is not None and self.num_images not in (1, len(self.seeds)):
            raise CapriccioError(
                f"num_images={self.num_images} came with {len(self.seeds)} seeds; leave out num_images, "
                "for there is one picture a seed."
            )
        return self

    @property
    def words(self) -> str:
        """The prompt with the names filled in."""
        return filled(self.prompt)

    @property
    def mentioned(self) -> tuple[str, ...]:
        """Every name that the prompt or that of a region refers to, once."""
        prompts = (self.prompt, *(region.prompt for region in self._regions))
        return tuple(dict.fromkeys(name for prompt in prompts for name in references(prompt)))

    @property
    def _regions(self) -> tuple[Region, ...]:
        return tuple(condition for condition in self.conditions if isinstance(condition, Region))

    @property
    def mentions(self) -> tuple[tuple[str, int, int], ...]:
        """Where `words` names a condition: name, first character, character after the last."""
        # Each reference before this one lost two braces.
        starts = [(found[1], found.start() - 2 * i) for i, found in enumerate(_REFERENCE.finditer(self.prompt))]
        return tuple((name, start, start + len(name)) for name, start in starts)

    def all_seeds(self) -> tuple[int, ...]:
        """Return the seed of every picture."""
        return self.seeds or tuple(range(self.seed, self.seed + self.num_images))

    def single(self, seed: int) -> Scene:
        """Return the scene of one of the pictures."""
        return self.but(seed=seed, seeds=None, num_images=1)

    def but(self, **settings: Any) -> Scene:
        """Return the scene with some settings replaced, checked as a new one is."""
        return Scene(**{name: value for name, value in self if name in self.model_fields_set} | settings)

    def having(self, *conditions: Condition) -> Scene:
        """Return the scene with more conditions; one of the same kind and name takes the place of the old one."""
        return self.but(conditions=_merged(self.conditions, conditions))

    # --- files ---

    def as_dict(self, write: Callable[[Picture], Any] = _write_picture) -> dict[str, Any]:
        """Return the scene as JSON holds it, defaults left out.

        Args:
            write: How to write down a picture; by path, or embedded where it has none.
        """
        return {"schema_version": SCENE_VERSION} | _plain(self, write)

    def recipe(self) -> dict[str, Any]:
        """Return the scene as a picture carries it: pictures embedded while there is room, else by hash; no paths."""
        scene = self.as_dict(_embedder(RECIPE_LIMIT * 3 // 4))
        for condition in scene.get("conditions", ()):
            if condition["kind"] == "lora":
                condition["path"] = os.path.basename(condition["path"].rstrip("/"))
        return scene

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Save the scene as YAML or JSON, whole or not at all; paths are relative to its folder where they can be."""
        check_ending(path, "a scene")
        folder = Path(os.path.abspath(path)).parent
        return write_mapping(path, self.as_dict(lambda picture: _relative(picture, folder)), "a scene")

    @classmethod
    def load(cls, path: str | os.PathLike[str], conditions: Iterable[Condition] = ()) -> Scene:
        """Return the scene of a YAML or JSON file, or of a PNG picture that carries its recipe.

        A recipe is untrusted: of the files it names none is opened, only the pictures embedded in it are used.

        Args:
            path: The file; the relative paths in it start from its folder.
            conditions: Conditions to add, or to put in the place of those of the same kind and name.

        Raises:
            CapriccioError: If the file or what is in it cannot be used.
        """
        path = Path(path)
        is_recipe = path.suffix.lower() == ".png"
        data = read_recipe(path)["scene"] if is_recipe else read_mapping(path, *_FILE)
        data = _replaced(data, tuple(conditions))
        return cls.from_dict(_without_files(data, path) if is_recipe else _resolved(data, path), str(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "") -> Scene:
        """Return the scene that `as_dict` wrote."""
        try:
            return cls(**{str(name): value for name, value in data.items()})
        except CapriccioError as error:
            raise CapriccioError(f"In {where!r}: {error}" if where else str(error)) from None

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema of a scene file."""
        return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | cls.model_json_schema()


def references(prompt: str) -> list[str]:
    """Return the names in braces of a prompt, in order."""
    return _REFERENCE.findall(prompt)


def filled(prompt: str, but: Iterable[str] = ()) -> str:
    """Return a prompt with the names in braces filled in as words, but for some."""
    kept = set(but)
    return _REFERENCE.sub(lambda found: found[0] if found[1] in kept else found[1], prompt)


def name_of(condition: Condition) -> str | None:
    """Return what a prompt calls a condition, or ``None`` if it cannot."""
    if isinstance(condition, Lora):
        return condition.name or Path(condition.path).stem
    return getattr(condition, "name", None)


def _key(condition: Any) -> tuple[Any, Any]:
    """Return kind and name of a condition, or of the map that a file holds in its place."""
    if isinstance(condition, Condition):
        return condition.kind, name_of(condition)
    if not isinstance(condition, dict):
        return None, None
    name = condition.get("name") or {"style": "style", "lora": Path(str(condition.get("path"))).stem}.get(
        str(condition.get("kind"))
    )
    return str(condition.get("kind")), name if name is None else str(name)


def _merged(old: Iterable[Any], new: Sequence[Condition]) -> tuple[Any, ...]:
    # Regions without a name are as many as there are: none of them is the same as another.
    taken = {key for key in map(_key, new) if key != ("region", None)}
    return (*(condition for condition in old if _key(condition) not in taken), *new)


# --- mistakes ----------------------------------------------------------------------------------------------------


def _sentence(model: type[Model], error: ValidationError) -> str:
    """Return the first mistake that pydantic found, in words for a person."""
    first = error.errors(include_url=False)[0]
    place, kind, received = first["loc"], first["type"], first.get("input")
    number = f"condition {int(place[1]) + 1}" if place[:1] == ("conditions",) and len(place) > 1 else ""
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, CapriccioError):
        return f"In {number}: {cause}" if number else str(cause)
    if number and kind.startswith("union_tag"):
        given = received.get("kind") if isinstance(received, dict) else received
        return f"The kind of {number} is {given!r}; {nearest(str(given), CONDITIONS)}"
    name = str(place[-1]) if place else ""
    if kind == "extra_forbidden":
        return f"{_upper(model.noun)} has no setting {name!r}; {nearest(name, model.model_fields)}"
    if kind == "missing":
        return f"{_upper(model.noun)} needs {name!r}; give it."
    path = ".".join(map(str, place))
    return f"{_upper(model.noun)} received {_short(received)} for {path!r}; {_lower(first['msg'])}."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


# --- reading and writing -----------------------------------------------------------------------------------------


def _plain(value: Any, write: Callable[[Picture], Any]) -> Any:
    """Return a value as JSON holds it: models without their defaults, each picture as ``write`` puts it."""
    if isinstance(value, Picture):
        return write(value)
    if isinstance(value, Model):
        fields = type(value).model_fields
        chosen = {name: item for name, item in value if name == "kind" or item != fields[name].default}
        return _plain(chosen, write)
    if isinstance(value, dict):
        return {key: _plain(item, write) for key, item in value.items()}
    return [_plain(item, write) for item in value] if isinstance(value, list | tuple) else value


def _embedder(room: int) -> Callable[[Picture], dict[str, str]]:
    def write(picture: Picture) -> dict[str, str]:
        nonlocal room
        record = picture.record(min(EMBED_LIMIT, room * 3 // 4))
        room -= len(record.get("data", ""))
        return record

    return write


def _relative(picture: Picture, folder: Path) -> Any:
    if picture.path is not None and picture.path.is_relative_to(folder):
        return picture.path.relative_to(folder).as_posix()
    return _write_picture(picture)


def _replaced(data: dict[str, Any], given: Sequence[Condition]) -> dict[str, Any]:
    old = data.get("conditions") or []
    # What is not a list is left for the scene to refuse.
    return data | {"conditions": list(_merged(old, given))} if isinstance(old, list) else data


def _each_condition(data: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Return the data of a scene with each condition that is still a map changed."""
    old = data.get("conditions")
    if not isinstance(old, list):
        return data
    return data | {"conditions": [change(item) if isinstance(item, dict) else item for item in old]}


def _resolved(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the data of a scene file with every relative path starting from its folder."""
    folder = Path(os.path.abspath(path)).parent

    def place(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [place(key, item) for item in value]
        if not isinstance(value, str) or key not in _FILE_KEYS:
            return value
        inside = folder / os.path.expanduser(value)
        # A LoRA may be the name of a repository: then no such file is there.
        return str(inside) if key != "path" or inside.exists() else value

    return _each_condition(data, lambda item: {str(key): place(str(key), value) for key, value in item.items()})


def _without_files(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the scene of a recipe once it is sure that it names no file: a stranger must not choose what is read."""

    def check(condition: dict[str, Any]) -> dict[str, Any]:
        for key in _FILE_KEYS:
            value = condition.get(key)
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, str):
                    raise CapriccioError(
                        f"The recipe in {str(path)!r} names the file {_short(item)}, which a recipe may not open; "
                        f"give the file yourself with --{condition.get('kind', 'subject')}."
                    )
        planner = condition.get("planner", "grammar")
        if condition.get("kind") == "layout" and planner != "grammar" and not condition.get("page"):
            raise CapriccioError(
                f"The recipe in {str(path)!r} asks the planner {_short(planner)}, which a recipe may not choose; name "
                "the planner yourself."
            )
        return condition

    return _each_condition(data, check)
