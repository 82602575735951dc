"""The examination: what every way of painting must hold on every backbone that claims it, on tiny random weights.

`CLAIMS` says which engines each backbone has; `CASES` follows from it. What is not claimed is not skipped: asking for
it is examined too, and gets a sentence. A new method, option or pair without a row in the tables below fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import Tensor, nn

from capriccio.attention import AttentionProgram, compile_program
from capriccio.backbones import schedules
from capriccio.backbones.flux import FluxBackbone
from capriccio.backbones.unet import UNetBackbone
from capriccio.errors import CapriccioError
from capriccio.methods import METHODS
from capriccio.phases import Pass
from capriccio.plan import Plan, make_plan
from capriccio.sampling import paint
from capriccio.scene import Condition, Control, Edit, Layout, Region, Scene, Subject

ENGINES = ("controlnet", "fill", "hold")
CLAIMS = {
    "flux": ("controlnet", "fill", "hold"),
    "flux-fill": ("fill",),
    "sd15": ("fill", "hold"),
    "sd15-inpaint": ("fill",),
    "sd2": ("fill", "hold"),
    "sdxl": ("fill", "hold"),
}
"""The engines of each backbone, the best first. Text and image to image need none."""
SMALL: dict[str, Any] = {"width": 32, "height": 24, "num_inference_steps": 2}
CANVAS = ("diptych", "inpainting", "diptych-joint", "lar-gen-panel")
"""Methods that lay out a canvas with a known part, which an engine keeps; the others paint from text alone."""
ONLY = {"lar-gen": ("sd15", "sd2", "sdxl")}
"""Where a method needs more than a backbone: those that have what it adds."""
NEUTRAL: dict[str, dict[str, Any]] = {
    "diptych": {"attention_weight": 1.0},
    "regional-prompting": {"mask_inject_steps": 0},
    "rpg": {"base_ratio": 1.0},
    "diptych-joint": {"attention_weight": 1.0, "apart": False},
    "lar-gen": {"beta": 0.0, "refine": False},
    "lar-gen-panel": {"reference_weight": 1.0},
    "control": {"controlnet_conditioning_scale": 0.0},
}
"""The setting at which a method, or a control, changes nothing; those without have nothing but the canvas."""
OPTIONS: dict[str, dict[str, Any]] = {
    "diptych": {
        "attention_weight": 3.0,
        "engine": "hold",
        "control_scale": 0.5,
        "pixel_offset": 0,
        "template": "two pictures of {subject}: {prompt}",
    },
    "inpainting": {"engine": "hold", "control_scale": 0.5, "hold": True},
    "lar-gen": {"beta": 1.0, "refine": False, "engine": "hold", "hold": False},
    "lar-gen-panel": {
        "reference_weight": 3.0,
        "engine": "hold",
        "control_scale": 0.5,
        "template": "two pictures of {subject}: {prompt}",
    },
    "regional-prompting": {
        "mask_inject_steps": 0,  # one step of two is the default on FLUX, both on U-Nets
        "double_inject_blocks_interval": 2,
        "single_inject_blocks_interval": 2,
        "base_ratio": 0.9,
        "background": "a blue dog",
        "trim_text": True,
    },
    "rpg": {"mode": "latent", "base_ratio": 0.9},
    "diptych-joint": {
        "attention_weight": 3.0,
        "engine": "hold",
        "control_scale": 0.5,
        "pixel_offset": 0,
        "template": "two pictures of {subject}: {prompt}",
        "arrangement": "stack",
        "apart": False,
    },
}
"""A value of each option that is not its default."""
CONTROL: dict[str, Any] = {
    "net": "depth",
    "mode": "depth",
    "controlnet_conditioning_scale": 0.5,
    "control_guidance_start": 0.5,
    "control_guidance_end": 0.5,
    "guess_mode": True,
    "mask": "mask.png",
    "fit": "crop",
}
"""The same for the settings of a control, which goes with every method."""
REFUSED_CONTROL = {
    ("flux", "mode"): "knows one kind of picture only; leave it out",
    ("sd15", "mode"): "knows one kind of picture only; leave it out",
    ("flux", "guess_mode"): "have none; leave it out",
}
REFUSED = {
    ("sd15", "control_scale"): "control_scale has no effect with the engine",
    ("sd15", "double_inject_blocks_interval"): "counts blocks of FLUX",
    ("sd15", "single_inject_blocks_interval"): "counts blocks of FLUX",
    ("sd15", "trim_text"): "always reads 77 text tokens",
}
"""Where an option has no effect, and the words that say so."""
_ONE_CANVAS = "each lays out the whole canvas"
_TWO_PLACES = "An edit with regions is painted at their places, from noise, but came with a mask; leave it out"
PAIRS = {
    ("lar-gen", "diptych"): _ONE_CANVAS,
    ("lar-gen", "inpainting"): _ONE_CANVAS,
    ("lar-gen", "regional-prompting"): _TWO_PLACES,
    ("lar-gen", "rpg"): "No cell of the page shows the subject 'pot'",
    ("lar-gen", "diptych-joint"): _TWO_PLACES,
    ("lar-gen", "lar-gen-panel"): _ONE_CANVAS,
    ("diptych", "lar-gen-panel"): _ONE_CANVAS,
    ("lar-gen-panel", "inpainting"): _ONE_CANVAS,
    ("lar-gen-panel", "regional-prompting"): _TWO_PLACES,
    ("lar-gen-panel", "rpg"): "No cell of the page shows the subject 'jug'",
    ("lar-gen-panel", "diptych-joint"): _TWO_PLACES,
    ("diptych", "inpainting"): _ONE_CANVAS,
    ("diptych", "regional-prompting"): "none of them names the subject 'mug'",  # one after the other, where one does
    ("diptych", "rpg"): "No cell of the page shows the subject 'mug'",  # one after the other, where one does
    ("inpainting", "regional-prompting"): _TWO_PLACES,
    ("inpainting", "rpg"): _ONE_CANVAS,
    ("regional-prompting", "rpg"): _ONE_CANVAS,
    ("diptych", "diptych-joint"): "none of them names the subject 'mug'",
    ("inpainting", "diptych-joint"): _TWO_PLACES,
    ("regional-prompting", "diptych-joint"): "In turn 1 of 3, the regions: The conditions ask for",
    ("rpg", "diptych-joint"): "In turn 1 of 3, the layout: The conditions ask for",
}
"""For each two methods, the words that refuse them together; nothing where they run."""


@cache
def backbone_of(family: str) -> Any:
    if family == "flux":
        pipe = tiny.flux()
        fill = tiny.fill().transformer
        return FluxBackbone(pipe, controlnet=tiny.controlnet(pipe.transformer), fill=fill, controlnets=nets_of())
    if family == "flux-fill":
        return FluxBackbone(tiny.fill(), controlnets=nets_of())
    kind, _, inpaint = family.partition("-")
    fill = tiny.stable_diffusion(kind, inpaint=True, seed=1).unet if "fill" in CLAIMS[family] and not inpaint else None
    pipe = tiny.stable_diffusion(kind, inpaint=bool(inpaint))
    backbone = UNetBackbone(pipe, fill=fill, controlnets=nets_of(pipe.unet))
    if family in ONLY["lar-gen"]:
        backbone.modules["lar-gen"] = tiny.lar_gen(backbone)
    return backbone


def nets_of(unet: Any = None) -> dict[str, Any]:
    """Two ControlNets: of a U-Net, whose latents they read and nothing else of an inpainting model; else of FLUX."""
    seeds = {"edges": 5, "depth": 6}
    if unet is None:
        return {name: tiny.control_flux(seed=seed) for name, seed in seeds.items()}
    return {name: tiny.control_unet(unet, seed, in_channels=tiny.LATENTS) for name, seed in seeds.items()}


@dataclass(frozen=True)
class Case:
    """A way of painting on a backbone."""

    family: str
    way: str
    engine: str | None = None

    @property
    def backbone(self) -> Any:
        return backbone_of(self.family)

    def __str__(self) -> str:
        return "-".join(filter(None, (self.family, self.way, self.engine)))


CASES = [
    *(Case(family, way) for family in CLAIMS for way in ("text", "image", "control")),
    *(Case(family, way, engine) for family in CLAIMS for way in CANVAS for engine in CLAIMS[family]),
    *(
        Case(family, way)
        for family in CLAIMS
        for way in METHODS
        if way not in CANVAS and family in ONLY.get(way, CLAIMS)
    ),
]
EVERYTHING = [(family, way) for family in ("flux", "sd15") for way in METHODS if family in ONLY.get(way, CLAIMS)]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_family = pytest.mark.parametrize("family", CLAIMS)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 32 x 24 pictures: ``picture.png``, a ``mask.png`` of whole latent cells, a ``subject.png`` alone.

    In its folder ``other`` are the same in other colours.
    """
    folder = tmp_path_factory.mktemp("examination")
    rows, columns = np.mgrid[:24, :32]
    picture = np.stack([rows * 10, columns * 8, rows + columns], -1).astype(np.uint8)
    inside = ((rows - 12) ** 2 + (columns - 16) ** 2 < 81).astype(np.uint8) * 255
    mask = np.zeros((24, 32), np.uint8)
    mask[4:20, 8:20] = 255
    for place, colours in ((folder, picture), (folder / "other", 255 - picture)):
        place.mkdir(exist_ok=True)
        for name, shown in (("picture", colours), ("mask", mask), ("subject", np.dstack([colours[::-1], inside]))):
            Image.fromarray(shown).save(place / f"{name}.png")
    return folder


PAGE = {"prompt": "a red mug", "base": "a red mug", "ratio": "1,1", "regions": ["a hat", "a cat"]}


def conditions(way: str, files: Path, **options: Any) -> list[Condition]:
    picture = files / "picture.png"
    return {
        "text": list,
        "image": lambda: [Edit(picture, strength=0.6, options=options)],
        "inpainting": lambda: [Edit(picture, mask=files / "mask.png", options=options)],
        "diptych": lambda: [Subject(files / "subject.png", name="mug", options=options)],
        "lar-gen": lambda: [
            Subject(files / "subject.png", name="pot", by=way, options=options),
            Edit(picture, mask=files / "mask.png", by=way),
        ],
        "lar-gen-panel": lambda: [
            Subject(files / "subject.png", name="jug", by=way, options=options),
            Edit(picture, mask=files / "mask.png", by=way),
        ],
        "regional-prompting": lambda: [
            Region("a hat", box=(0, 0, 0.5, 0.5), options=options),
            Region("a cat", box=(0.5, 0, 1, 1), options=options),
        ],
        "rpg": lambda: [Layout(page=PAGE, options=options)],
        "diptych-joint": lambda: [
            Subject(files / "subject.png", name="cup", by=way, options=options),
            Subject(files / "subject.png", name="hat", by=way),
            Region("a {cup}", box=(0, 0, 0.5, 1), by=way),
            Region("a {hat}", box=(0.5, 0, 1, 1), by=way),
        ],
        "control": lambda: [Control(**{"image": picture, "net": "edges"} | options)],
    }[way]()


def scene_of(case: Case, files: Path, prompt: str = "a red mug", seed: int = 3, **options: Any) -> Scene:
    given = {} if case.engine is None else {"engine": case.engine}
    # Both schedulers draw noise between the steps, so that seeds and batches are examined there too.
    flux = isinstance(case.backbone, FluxBackbone)
    room = {"max_sequence_length": 24, "scheduler": "Euler stochastic"} if flux else {"scheduler": "Euler a"}
    small = {"width": 16, "height": 16}
    own = {"image": {"num_inference_steps": 4}, "diptych": small, "diptych-joint": small}.get(case.way, {})
    return Scene(prompt, conditions(case.way, files, **given | options), seed=seed, **SMALL | room | own)


def plan_of(backbone: Any, scene: Scene) -> Plan:
    return make_plan(scene, backbone, METHODS)


@dataclass(frozen=True)
class Painted:
    image: np.ndarray
    latents: Tensor


def painted(backbone: Any, *plans: Plan) -> list[Painted]:
    """What plans that share forwards become: pixels, and latents (1, ...) before they are decoded."""
    found: list[Tensor] = []
    decode, backbone.decode = backbone.decode, lambda latents, *grid: found.append(latents) or decode(latents, *grid)
    try:
        images = [np.asarray(one.image) for group in paint(plans, backbone) for one in group]
    finally:
        del backbone.decode
    return [Painted(image, latents[None]) for image, latents in zip(images, torch.cat(found), strict=True)]


@pytest.fixture(scope="session")
def one(files: Path) -> Callable[[Case], Painted]:
    """What each case paints, painted once."""
    return cache(lambda case: painted(case.backbone, plan_of(case.backbone, scene_of(case, files)))[0])


def pixels(backbone: Any, scene: Scene) -> np.ndarray:
    return painted(backbone, plan_of(backbone, scene))[0].image


# --- what is claimed, and what is not ---


def test_the_tables_are_whole() -> None:
    """A new method, option or pair needs a row."""
    assert {name: set(method.settings) for name, method in METHODS.items()} == {
        name: set(options) for name, options in OPTIONS.items()
    }
    assert set(PAIRS) == set(combinations(METHODS, 2))
    assert {name for name, method in METHODS.items() if method.neutral} == set(NEUTRAL) - {"control"}
    for name in set(NEUTRAL) - {"control"}:
        said = {key: str(value).lower() if value is False else f"{value:g}" for key, value in NEUTRAL[name].items()}
        assert METHODS[name].neutral.startswith(", ".join(f"{key}={value}" for key, value in said.items()))
    assert set(Control.model_fields) - {"kind", "by", "options", "image"} == set(CONTROL)


@every_family
@pytest.mark.parametrize("way", CANVAS)
def test_engines_are_those_claimed_and_no_others(family: str, way: str, files: Path) -> None:
    backbone = backbone_of(family)
    assert backbone.engines == CLAIMS[family]
    for engine in ENGINES:
        scene = scene_of(Case(family, way, engine), files)
        if engine in CLAIMS[family]:
            assert plan_of(backbone, scene).engine == engine
        else:
            with pytest.raises(CapriccioError, match=f"engine '{engine}' is not at hand .* open it with inpainting="):
                plan_of(backbone, scene)


# --- seeds, files, traces, gradients, batches ---


def traces(backbone: Any) -> tuple[Any, ...]:
    """Everything of a pipeline that a painting must give back: objects by identity, weights by their hash."""
    parts = [part for part in backbone.pipe.components.values() if isinstance(part, nn.Module)]
    learning = [(parameter.requires_grad, parameter.grad) for part in parts for parameter in part.parameters()]
    denoisers = [backbone.denoiser(engine) for engine in backbone.engines]
    processors = [id(processor) for denoiser in denoisers for processor in denoiser.attn_processors.values()]
    return processors, id(backbone.pipe.scheduler), dict(backbone.pipe.config), backbone.fingerprint(), learning


@every_case
def test_a_saved_scene_is_the_same_picture_and_leaves_no_trace(
    case: Case, one: Callable[[Case], Painted], files: Path, tmp_path: Path
) -> None:
    first, chance, before = one(case), torch.get_rng_state(), traces(case.backbone)
    yaml, json = (Scene.load(scene_of(case, files).save(tmp_path / f"scene.{kind}")) for kind in ("yaml", "json"))
    assert yaml == json
    (again,) = painted(case.backbone, plan_of(case.backbone, yaml))
    assert np.array_equal(again.image, first.image)
    assert torch.equal(torch.get_rng_state(), chance)
    assert traces(case.backbone) == before
    assert not again.latents.requires_grad  # nothing here learns


@every_case
def test_a_batch_of_two_equals_two_singles(case: Case, one: Callable[[Case], Painted], files: Path) -> None:
    scenes = scene_of(case, files), scene_of(case, files / "other", "a cat", 8)
    plans = [plan_of(case.backbone, scene) for scene in scenes]
    assert plans[0].batch_key == plans[1].batch_key
    singles = torch.cat([one(case).latents, painted(case.backbone, plans[1])[0].latents])
    both = torch.cat([found.latents for found in painted(case.backbone, *plans)])
    assert (both - singles).abs().max() < 1e-4 * singles.abs().max()
    assert not torch.allclose(singles[0], singles[1], atol=1e-2)


# --- the known part ---


@pytest.mark.parametrize("case", [case for case in CASES if case.way == "inpainting"], ids=str)
def test_the_mask_alone_is_painted_and_the_rest_is_heeded(
    case: Case, one: Callable[[Case], Painted], files: Path
) -> None:
    picture, inside = np.asarray(Image.open(files / "picture.png")), np.asarray(Image.open(files / "mask.png")) > 0
    image = one(case).image
    assert np.array_equal(image[~inside], picture[~inside])
    assert not np.array_equal(image[inside], picture[inside])
    assert not np.array_equal(image[inside], pixels(case.backbone, scene_of(case, files / "other"))[inside])
    canvas = plan_of(case.backbone, scene_of(case, files).but(width=None, height=None)).canvas
    assert canvas.width / canvas.height == pytest.approx(32 / 24, rel=0.1)  # the picture's shape, where none is given


# --- neutral = vanilla ---


@pytest.mark.parametrize("case", [case for case in CASES if case.way in NEUTRAL], ids=str)
def test_the_neutral_setting_is_the_canvas_without_the_edit(
    case: Case, one: Callable[[Case], Painted], files: Path
) -> None:
    neutral = plan_of(case.backbone, scene_of(case, files, **NEUTRAL[case.way]))
    guidance = {"true_cfg_scale": neutral.settings.true_cfg_scale}  # a paper may have its own
    nothing = plan_of(case.backbone, scene_of(case, files).but(conditions=(), **guidance))
    if case.way in (*CANVAS, "lar-gen"):
        nothing = without_edits(plan_of(case.backbone, scene_of(case, files)))
    (plain,), (vanilla,) = (painted(case.backbone, plan) for plan in (neutral, nothing))
    assert torch.equal(plain.latents, vanilla.latents)
    assert not torch.equal(plain.latents, one(case).latents)


def without_edits(plan: Plan) -> Plan:
    """The same canvas and texts, and the stock attention."""

    def stock(one: Pass) -> Pass:
        layers = one.compiled.layers
        nothing = compile_program(AttentionProgram(), one.compiled.layout, layers=layers, num_steps=plan.num_steps)
        return replace(one, compiled=nothing)

    return replace(plan, phases=tuple(replace(p, passes=tuple(map(stock, p.passes))) for p in plan.phases))


# --- options, mistakes, pairs ---


@every_family
@pytest.mark.parametrize("way", ONLY)
def test_a_method_that_lacks_what_it_adds_says_so(family: str, way: str, files: Path) -> None:
    if family not in ONLY[way]:
        with pytest.raises(CapriccioError, match=r"adds to a U-Net, but|is loaded into .* open it with modules="):
            plan_of(backbone_of(family), scene_of(Case(family, way), files))


@pytest.mark.parametrize(
    ("family", "way", "option"), [(*one, option) for one in EVERYTHING for option in OPTIONS[one[1]]]
)
def test_an_option_has_an_effect_or_is_refused(
    family: str, way: str, option: str, one: Callable[[Case], Painted], files: Path
) -> None:
    backbone = backbone_of(family)
    scene = scene_of(Case(family, way), files, **{option: OPTIONS[way][option]})
    if (family, option) in REFUSED:
        with pytest.raises(CapriccioError, match=REFUSED[family, option]):
            plan_of(backbone, scene)
    else:
        assert not torch.equal(painted(backbone, plan_of(backbone, scene))[0].latents, one(Case(family, way)).latents)


@pytest.mark.parametrize("family", ["flux", "sd15"])
@pytest.mark.parametrize("setting", CONTROL)
def test_a_setting_of_a_control_has_an_effect_or_is_refused(family: str, setting: str, files: Path) -> None:
    backbone, value = backbone_of(family), CONTROL[setting]
    tall = Image.open(files / "picture.png").rotate(90, expand=True)  # so that there is something to fit
    given = {"image": tall, setting: Image.open(files / value).rotate(90, expand=True) if setting == "mask" else value}
    if (family, setting) in REFUSED_CONTROL:
        with pytest.raises(CapriccioError, match=REFUSED_CONTROL[family, setting]):
            plan_of(backbone, scene_of(Case(family, "control"), files, **given))
        return
    scenes = [scene_of(Case(family, "control"), files, **own) for own in ({"image": tall}, given)]
    plain, other = (painted(backbone, plan_of(backbone, scene))[0].latents for scene in scenes)
    assert not torch.equal(plain, other)


@pytest.mark.parametrize(("family", "way"), [("flux", "image"), ("sd15", "image"), *EVERYTHING])
def test_a_control_goes_with_everything_and_can_be_neutral(
    family: str, way: str, one: Callable[[Case], Painted], files: Path
) -> None:
    backbone, scene = backbone_of(family), scene_of(Case(family, way), files)
    followed, neutral = (
        painted(backbone, plan_of(backbone, scene.having(*conditions("control", files, **own))))[0].latents
        for own in ({}, NEUTRAL["control"])
    )
    assert torch.equal(neutral, one(Case(family, way)).latents)
    assert not torch.equal(followed, neutral)


@every_family
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"net": "egdes"}, "has no ControlNet 'egdes'; did you mean 'edges'"),
        ({"net": None}, "names no ControlNet, and .* has 'edges', 'depth'; give net= one of them"),
        ({"control_guidance_start": 0.1, "control_guidance_end": 0.4}, "0.1 to 0.4 of 2 steps holds no whole step"),
        ({"controlnet_conditioning_scale": -1}, "received -1 for 'controlnet_conditioning_scale'"),
        ({"strenght": 1}, "A control has no setting 'strenght'"),
    ],
)
def test_a_bad_control_is_a_sentence_with_the_remedy(
    family: str, settings: dict[str, Any], says: str, files: Path
) -> None:
    with pytest.raises(CapriccioError, match=says):
        plan_of(backbone_of(family), scene_of(Case(family, "control"), files, **settings))


@pytest.mark.parametrize("way", METHODS)
def test_an_unknown_option_is_refused(way: str, files: Path) -> None:
    with pytest.raises(CapriccioError, match=r"no option 'strenght'; (did you mean|valid names are)"):
        plan_of(backbone_of("flux"), scene_of(Case("flux", way), files, strenght=1))


@pytest.mark.parametrize("way", CANVAS)
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engine": "paint"}, "received 'paint'; valid names are"),
        ({"control_scale": -1}, "control_scale received -1; give 0"),
        ({"control_scale": "much"}, "expects a number; give one"),
        ({"engine": "hold", "control_scale": 0.5}, "no effect with the engine 'hold'; leave it out"),
    ],
)
def test_a_mistake_is_a_sentence_with_the_remedy(way: str, options: dict[str, Any], says: str, files: Path) -> None:
    with pytest.raises(CapriccioError, match=says):
        plan_of(backbone_of("flux"), scene_of(Case("flux", way), files, **options))


@pytest.mark.parametrize("family", ["flux", "sd15"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_two_methods_run_together_or_say_why_not(family: str, pair: tuple[str, str], files: Path) -> None:
    both = [type(condition)(**dict(condition) | {"by": way}) for way in pair for condition in conditions(way, files)]
    scene = scene_of(Case(family, "text"), files).having(*both)
    if PAIRS[pair]:
        with pytest.raises(CapriccioError, match=PAIRS[pair]):
            plan_of(backbone_of(family), scene)
    else:
        assert np.isfinite(pixels(backbone_of(family), scene)).all()


@pytest.mark.parametrize(
    ("family", "way"), [*((family, way) for family in ("flux", "sd15") for way in ("text", "image")), *EVERYTHING]
)
def test_weighted_words_go_with_everything(family: str, way: str, files: Path) -> None:
    """A weight of 1 is neutral; templates of two panels are longer than the encoders of these tests read."""
    short = {"template": "{prompt}"} if "template" in OPTIONS.get(way, {}) else {}
    scenes = [scene_of(Case(family, way), files, f"a {red} mug", **short) for red in ("red", "(red)1.0", "(red)3")]
    if way == "rpg":  # a page has its own words, so the planner is asked
        scenes = [scene.but(conditions=[Layout()]) for scene in scenes]
    plain, neutral, heavy = (painted(backbone_of(family), plan_of(backbone_of(family), scene))[0] for scene in scenes)
    assert np.array_equal(neutral.image, plain.image)
    assert not torch.equal(heavy.latents, plain.latents)


# --- no edit = stock ---

FLUX_SETTINGS: list[dict[str, Any]] = [
    {},
    {"guidance_scale": 2.0},
    {"negative_prompt": "ugly", "true_cfg_scale": 3.0},
    {"negative_prompt": "ugly", "true_cfg_scale": 1.0},
    {"width": 32, "height": 64, "num_inference_steps": 5},
]
UNET_SETTINGS: list[dict[str, Any]] = [
    {},
    {"guidance_scale": 3.0, "negative_prompt": "ugly"},
    {"guidance_scale": 3.0, "negative_prompt": ""},
    {"guidance_scale": 0.0},
    {"width": 40, "height": 56, "num_inference_steps": 4},
]
STOCK = [("flux", settings) for settings in FLUX_SETTINGS] + [
    (family, settings) for family in ("sd15", "sd2", "sdxl") for settings in UNET_SETTINGS
]
IMAGE_PIPELINES = {
    "flux": "FluxImg2Img",
    "sd15": "StableDiffusionImg2Img",
    "sd2": "StableDiffusionImg2Img",
    "sdxl": "StableDiffusionXLImg2Img",
}
INPAINTING_PIPELINES = {
    ("flux", "fill"): "FluxFill",
    ("sd15", "fill"): "StableDiffusionInpaint",
    ("sd15", "hold"): "StableDiffusionInpaint",
    ("sd2", "fill"): "StableDiffusionInpaint",
    ("sd2", "hold"): "StableDiffusionInpaint",
    ("sdxl", "fill"): "StableDiffusionXLInpaint",
    ("sdxl", "hold"): "StableDiffusionXLInpaint",
}
"""Whose result is ours. For FLUX, diffusers has no pipeline of the alimama ControlNet, and holds another path."""


def stock(pipe: Any, seeds: Sequence[int], **settings: Any) -> list[np.ndarray]:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipe("a red mug", generator=generators, num_images_per_prompt=len(seeds), **settings).images
    return [np.asarray(image) for image in images]


def stock_pipeline(monkeypatch: pytest.MonkeyPatch, backbone: Any, name: str, **parts: Any) -> Any:
    """A pipeline of diffusers with our parts that encodes pictures as the mean of the posterior, without chance."""
    kind = getattr(diffusers, f"{name}Pipeline")
    home = __import__(kind.__module__, fromlist=["retrieve_latents"])
    monkeypatch.setattr(home, "retrieve_latents", lambda output, *given, **named: output.latent_dist.mode())
    found = {key: part for key, part in backbone.pipe.components.items() if part is not None} | parts
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    extra = {"add_watermarker": False} if "XL" in name else none if "Stable" in name else {}
    pipe = kind(**found | extra)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(("family", "settings"), STOCK)
def test_painting_from_text_is_diffusers_to_the_last_bit(family: str, settings: dict[str, Any]) -> None:
    backbone, seeds = backbone_of(family), (3, 8)
    room = {"max_sequence_length": 24} if family == "flux" else {}
    given = SMALL | room | settings
    plan = plan_of(backbone, Scene("a red mug", seeds=seeds, **given))
    first, second = found = painted(backbone, plan)
    for ours, theirs in zip(found, stock(backbone.pipe, seeds, **given), strict=True):
        assert np.array_equal(ours.image, theirs)
        assert ours.image.std() > 1
    assert not np.array_equal(first.image, second.image)


@pytest.mark.parametrize(
    ("family", "scheduler"),
    # diffusers' FLUX pipelines give sigmas, which other schedulers do not take.
    [
        *((family, None) for family in IMAGE_PIPELINES),
        *((family, "DPM++ 2M Karras") for family in ("sd15", "sd2", "sdxl")),
    ],
)
def test_image_to_image_is_diffusers_to_the_last_bit(
    monkeypatch: pytest.MonkeyPatch, family: str, scheduler: str | None, files: Path
) -> None:
    backbone = backbone_of(family)
    own = {} if scheduler is None else {"scheduler": schedules.make(scheduler, backbone.pipe.scheduler)}
    pipe = stock_pipeline(monkeypatch, backbone, IMAGE_PIPELINES[family], **own)
    given = {"num_inference_steps": 5, "guidance_scale": 3.0}
    room = {"max_sequence_length": 24, "width": 32, "height": 24} if family == "flux" else {}
    picture = Image.open(files / "picture.png")
    (theirs,) = stock(pipe, (3,), image=picture, strength=0.7, **given | room)
    scene = scene_of(Case(family, "text"), files).but(**given, scheduler=scheduler)
    plan = plan_of(backbone, scene.having(Edit(picture, strength=0.7)))
    assert (plan.start, plan.num_steps) == ((1, 4) if family == "flux" else (2, 3))  # 3.5 steps: each rounds its way
    assert "painting starts from the picture, noised, at strength 0.7" in str(plan)
    assert np.array_equal(painted(backbone, plan)[0].image, theirs)


@pytest.mark.parametrize("strength", [1.0, 0.7])
@pytest.mark.parametrize(("family", "engine"), INPAINTING_PIPELINES)
def test_inpainting_is_diffusers_to_the_last_bit(
    monkeypatch: pytest.MonkeyPatch, family: str, engine: str, strength: float, files: Path
) -> None:
    backbone, seeds = backbone_of(family), (3, 8)
    part = "transformer" if family == "flux" else "unet"
    pipe = stock_pipeline(
        monkeypatch, backbone, INPAINTING_PIPELINES[family, engine], **{part: backbone.denoiser(engine)}
    )
    picture, mask = Image.open(files / "picture.png"), Image.open(files / "mask.png")
    given = {"width": 32, "height": 24, "num_inference_steps": 4, "guidance_scale": 3.0}
    given |= {"max_sequence_length": 24} if family == "flux" else {"negative_prompt": "ugly"}
    theirs = stock(pipe, seeds, image=picture, mask_image=mask, strength=strength, **given)
    edit = Edit(picture, mask=mask, strength=strength, options={"engine": engine})
    plan = plan_of(backbone, Scene("a red mug", edit, seeds=seeds, **given))
    inside = (np.asarray(mask) > 0)[..., None]
    for ours, image in zip(painted(backbone, plan), theirs, strict=True):
        assert np.array_equal(ours.image, np.where(inside, image, np.asarray(picture)))
        assert not np.array_equal(ours.image, np.asarray(picture))
