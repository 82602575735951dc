"""Every scene in examples/ can be planned where it belongs: at FLUX.1's size, or on the miniature."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny
from diffusers import FluxPipeline

from capriccio.backbones.flux import FluxBackbone
from capriccio.methods import METHODS
from capriccio.pictures import Picture
from capriccio.plan import Plan, make_plan
from capriccio.scene import Control, Region, Scene
from capriccio.studio import Studio
from capriccio.world.vocabulary import WORDS

EXAMPLES = Path(__file__).parents[1] / "examples"
RECIPES = EXAMPLES / "training"  # of trainings, no scenes: see test_lar_gen_training.py
FILES = (path for path in EXAMPLES.rglob("*") if path.suffix in (".yaml", ".yml", ".json"))
SCENES = sorted(path for path in FILES if RECIPES not in path.parents)
LARGE = [path for path in SCENES if path.parent == EXAMPLES / "regional"]
SMALL = [path for path in SCENES if path not in LARGE]
MINIATURE = [path for path in SMALL if path.parent == EXAMPLES / "regional" / "miniature"]


def name_of(path: Path) -> str:
    return str(path.relative_to(EXAMPLES).with_suffix(""))


@pytest.fixture(scope="module")
def flux() -> FluxBackbone:
    """A FLUX with random weights whose tokens are those of FLUX.1: 16 x 16 pixels, guidance embedded; and a union."""
    pipe = FluxPipeline(**tiny.components() | {"vae": tiny.vae(levels=4)})
    return FluxBackbone(pipe, controlnets={"union": tiny.control_flux(7)})


@pytest.fixture(scope="module")
def miniature() -> Studio:
    return Studio.open("miniature")


@pytest.mark.parametrize("path", SCENES, ids=name_of)
def test_its_pictures_are_there(path: Path) -> None:
    for condition in Scene.load(path).conditions:
        for picture in (value for _, value in condition if isinstance(value, Picture)):
            assert picture.open().width > 0


def test_there_is_one_of_every_published_layout() -> None:
    published = [
        "cocktail",
        "control-depth",
        "control-pose",
        "dog-and-cat",
        "lora-sketch",
        "lora-vector",
        "ship",
        "torch",
    ]
    assert [path.stem for path in MINIATURE] == published
    assert [path.stem for path in LARGE] == published


@pytest.mark.parametrize("path", LARGE, ids=name_of)
def test_large_ones_are_planned_at_their_size(flux: FluxBackbone, path: Path) -> None:
    plan = make_plan(Scene.load(path), flux, METHODS)
    assert plan.canvas.num_tokens == plan.settings.width * plan.settings.height // 256
    assert (plan.settings.num_inference_steps, plan.guidance_scale) == (24, 3.5)
    assert [phase.steps for phase in plan.phases] == [range(10), range(10, 24)]
    assert plan.notes == ()
    check_groups(plan)


@pytest.mark.needs_miniature
@pytest.mark.parametrize("path", SMALL, ids=name_of)
def test_small_ones_are_planned_on_the_miniature(miniature: Studio, path: Path) -> None:
    scene = Scene.load(path)
    if any(isinstance(one, Control) for one in scene.conditions) and not miniature.backbone.controlnets:
        pytest.skip("the miniature's ControlNet has no weights yet: capriccio train miniature controlnet-union")
    check_groups(miniature.plan(scene))


@pytest.mark.parametrize("path", MINIATURE, ids=name_of)
def test_the_miniature_knows_every_word(path: Path) -> None:
    scene = Scene.load(path)
    told = [scene.prompt, *(region.prompt for region in scene.conditions if isinstance(region, Region))]
    told += [scene.conditions[0].options.get("background", "")]
    assert set(re.findall(r"[\w-]+", " ".join(told))) <= set(WORDS)


def check_groups(plan: Plan) -> None:
    """Each region has tokens, and together they are the whole picture."""
    regions = [cells for name, cells in plan.layout.groups.items() if name.startswith("image:region")]
    if regions:
        assert all(cells.any() for cells in regions)
        assert (sum(regions) > 0).sum() == plan.canvas.num_tokens
