"""The overlay: exact on the token grid, drawn without any model; and pages as scenes and pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from capriccio import perception
from capriccio.backbones.flux import FluxBackbone
from capriccio.backbones.unet import UNetBackbone
from capriccio.draft import CANVAS, PAINT
from capriccio.errors import CapriccioError
from capriccio.methods import METHODS
from capriccio.overlay import (
    SMALLEST,
    Drawing,
    Patch,
    _middle,
    _outlines,
    _striped,
    draw,
    image_groups,
    overlay,
    page_overlay,
    sketch,
)
from capriccio.perception.pages import Page, page_regions, page_scene
from capriccio.pictures import wrapped
from capriccio.plan import Plan, make_plan
from capriccio.scene import Edit, Region, Scene, Style, Subject

SMALL: dict[str, Any] = {"width": 48, "height": 32, "num_inference_steps": 4}
PLACES = (Region("a mug", box=(0, 0, 24, 32)), Region("a cat", box=(0.25, 0.5, 0.75, 1)))
PAGE = Page(prompt="a", base="a cat above a mug and a hat", ratio="1;2,1,3", regions=("a cat", "a mug", "a hat"))


@pytest.fixture(scope="module")
def flux() -> FluxBackbone:
    return FluxBackbone(tiny.flux())


@pytest.fixture(scope="module", params=["flux", "sd15", "sdxl"])
def backbone(request: pytest.FixtureRequest) -> Any:
    return FluxBackbone(tiny.flux()) if request.param == "flux" else UNetBackbone(tiny.stable_diffusion(request.param))


def plan_of(backbone: Any, *conditions: Any, prompt: str = "a street", **settings: Any) -> Plan:
    return make_plan(Scene(prompt, conditions, **SMALL | settings), backbone, METHODS)


# --- where things are ---


def test_groups_are_the_cells_of_the_finest_layers(backbone: Any) -> None:
    plan = plan_of(backbone, *PLACES)
    cell, groups = image_groups(plan)
    assert cell == backbone.token
    assert {cells.shape for cells in groups.values()} == {(32 // cell, 48 // cell)}
    assert set(groups) == {"image", "image:region/1", "image:region/2", "image:region/background"}
    first = np.zeros((32 // cell, 48 // cell), bool)
    first[:, : 24 // cell] = True
    assert (groups["image:region/1"] == first).all()
    covered = groups["image:region/1"] | groups["image:region/2"]
    assert (groups["image:region/background"] == ~covered).all()


def test_words_are_no_place_on_the_picture(flux: FluxBackbone, subject_picture: Image.Image) -> None:
    plan = plan_of(flux, Subject(subject_picture, name="mug"), prompt="a (red)1.2 {mug}")
    assert {"text:mug"} < set(plan.layout.groups)
    assert set(image_groups(plan)[1]) == {"image:left", "image:right"}


@pytest.mark.parametrize("conditions", [(), PLACES], ids=["plain", "regions"])
def test_every_plan_can_be_drawn(backbone: Any, conditions: tuple[Region, ...]) -> None:
    plan = plan_of(backbone, *conditions)
    drawn = overlay(plan)
    assert drawn.width >= SMALLEST
    assert np.array_equal(np.asarray(drawn), np.asarray(overlay(plan)))


def test_colours_keep_to_their_cells() -> None:
    left = np.zeros((3, 5), bool)
    left[1:, :2] = True
    drawing = Drawing(40, 24, 8, "two parts", "", [Patch("region/1", left, ""), Patch("region/2", ~left, "")])
    pixels = np.asarray(draw(drawing))
    # The picture begins behind the margin, 20 times enlarged; corners of cells carry neither outlines nor names.
    margin, side = 18, 160
    corners = pixels[margin + 30 :: side, margin + 30 :: side][:3, :5].astype(int)
    assert (corners[left] == corners[1, 0]).all()
    assert (corners[~left] == corners[0, 0]).all()
    assert (corners[1, 0] != corners[0, 0]).any()


def test_where_shapes_overlap_they_take_turns() -> None:
    rng = np.random.default_rng(0)
    shapes = [rng.random((20, 20)) < 0.6 for _ in range(3)]
    shared = _striped(shapes, np.add.outer(np.arange(20), np.arange(20)) // 3)
    assert (np.sum(shared, axis=0) == np.logical_or.reduce(shapes)).all()
    assert all((part <= shape).all() for part, shape in zip(shared, shapes, strict=True))


def test_outlines_of_the_same_place_lie_inside_each_other() -> None:
    shape = np.zeros((40, 40), bool)
    shape[5:35, 5:35] = True
    first, second = _outlines([shape, shape], 3)
    assert first[5:8, 5:35].all()
    assert second.any()
    assert not (first & second).any()


def test_a_name_stands_inside_its_shape() -> None:
    shape = np.zeros((40, 60), bool)
    shape[:, :10] = shape[30:] = True
    x, y = _middle(shape)
    assert shape[int(y), int(x)]


@pytest.mark.parametrize("text", ["one two three " * 9, "without" * 60, "", "ein  Wort"])
def test_text_stays_in_its_width(text: str) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(18)
    lines = wrapped(text, font, 200)
    assert all(font.getlength(line) <= 200 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_nothing_cannot_be_drawn() -> None:
    with pytest.raises(CapriccioError, match="no part to draw"):
        draw(Drawing(8, 8, 1, "nothing", "", []))


# --- without a look of any model ---


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was asked")

    monkeypatch.setattr(torch.nn.Module, "__call__", refuse)
    monkeypatch.setattr(perception, "segment", refuse)


def conditions_of(kind: str, subject: Image.Image, picture: Image.Image, spot: Image.Image) -> list[Any]:
    plain = Subject(subject.convert("RGB"), name="mug")
    return {
        "subject": [plain],
        "several": [Subject([subject, picture], name="mug")],
        "style": [Style(picture)],
        "place": [plain, Edit(picture, spot)],
        "inpainting": [Edit(picture, spot)],
        "variation": [Edit(picture, strength=0.5)],
    }[kind]


@pytest.mark.parametrize("kind", ["subject", "several", "style", "place", "inpainting", "variation"])
@pytest.mark.usefixtures("blind")
def test_no_model_is_asked(
    flux: FluxBackbone, subject_picture: Image.Image, picture: Image.Image, spot: Image.Image, kind: str
) -> None:
    conditions = conditions_of(kind, subject_picture, picture, spot)
    plan = make_plan(Scene("a thing", conditions, width=64, height=48, num_inference_steps=4), flux, METHODS)
    known = sketch(plan)
    assert known[CANVAS].size == (plan.canvas.width, plan.canvas.height)
    assert (PAINT in known) is (PAINT in {step.name for step in plan.preparations})
    assert overlay(plan).width >= SMALLEST


# --- pages ---


def test_a_page_becomes_a_region_for_each_cell() -> None:
    regions = page_regions(PAGE, strength=0.7)
    assert [region.prompt for region in regions] == ["a cat", "a mug", "a hat"]
    assert regions[0].box == (0, 0, 1, 1 / 3)
    assert regions[1].box == (0, 1 / 3, 0.25, 1)
    assert {region.strength for region in regions} == {0.7}


def test_a_page_becomes_a_scene_that_covers_the_picture(flux: FluxBackbone, tmp_path: Any) -> None:
    scene = page_scene(PAGE, seed=4)
    assert (scene.prompt, scene.seed) == (PAGE.base, 4)
    assert Scene.load(scene.save(tmp_path / "page.yaml")) == scene
    groups = image_groups(plan_of(flux, *scene.conditions))[1]
    regions = [cells for name, cells in groups.items() if "/" in name]
    assert (np.sum(regions, axis=0) == 1).all()


def test_what_a_page_names_must_be_given(subject_picture: Image.Image) -> None:
    page = Page(prompt="a", base="a {mug}", ratio="1", regions=("a mug",))
    with pytest.raises(CapriccioError, match=r"refers to \{mug\}"):
        page_scene(page)
    assert len(page_scene(page, conditions=[Subject(subject_picture, name="mug")]).conditions) == 2


def test_a_page_can_be_drawn() -> None:
    assert page_overlay(PAGE, 96, 64).width >= SMALLEST
