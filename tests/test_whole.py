"""The whole world behind one door: what can be drawn, described, written down and read again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from capriccio.errors import CapriccioError
from capriccio.world import whole
from capriccio.world.draw import NUM_INKS, NUM_PARTS, draw
from capriccio.world.graph import Panels, SceneGraph
from capriccio.world.people import GARMENTS
from capriccio.world.views import View, draw_views
from capriccio.world.whole import depict, describe, from_dict, sample_picture, sample_sheet, to_dict


@pytest.fixture(scope="module")
def pictures() -> list[whole.Picture]:
    rng = np.random.default_rng(4)
    return [sample_picture(rng, content=content) for content in ("solids", *whole.CONTENTS, "objects")]


def test_every_content_is_what_it_says(pictures: list[whole.Picture]) -> None:
    _, thing, person, garment, view, _ = pictures
    assert isinstance(view, View)
    assert isinstance(thing, SceneGraph)
    assert thing.things
    assert isinstance(person, SceneGraph)
    assert person.people
    assert isinstance(garment, SceneGraph)
    assert garment.things[0].identity.kind in GARMENTS


def test_pictures_of_any_content_are_drawn_in_their_order(pictures: list[whole.Picture]) -> None:
    drawing = depict(pictures)
    for row, picture in enumerate(pictures):
        if isinstance(picture, View):
            assert torch.equal(drawing.pixels[row], draw_views([picture]).pixels[0])
            assert (drawing.parts[row] == whole.UNKNOWN).all()
            assert (drawing.inks[row] == whole.UNKNOWN).all()
        else:
            assert torch.allclose(drawing.pixels[row], draw([picture]).pixels[0], atol=1e-5)
        assert drawing.subjects[row].any()
    assert max(NUM_PARTS, NUM_INKS) < whole.UNKNOWN < 256  # maps are kept as bytes


def test_what_a_picture_shows_survives_json(pictures: list[whole.Picture]) -> None:
    sheet = sample_sheet(np.random.default_rng(1))
    for picture in (*pictures, sheet):
        assert from_dict(json.loads(json.dumps(to_dict(picture)))) == picture
    with pytest.raises(CapriccioError, match="no view"):
        from_dict({"solid": {}})


def test_every_picture_has_a_sentence(pictures: list[whole.Picture]) -> None:
    rng = np.random.default_rng(0)
    for picture in (*pictures, *(sample_sheet(rng, content=content) for content in whole.SHEETS)):
        assert len(describe(picture, rng).split()) > 2
        assert len(describe(picture, rng, "full")) > 10


def test_sheets_show_one_subject_or_a_garment_and_who_wears_it() -> None:
    rng = np.random.default_rng(2)
    objects, people, garments = (sample_sheet(rng, content=content) for content in whole.SHEETS)
    assert len({scene.things[0].identity for scene in objects.scenes}) == 1
    assert len({scene.people[0].person for scene in people.scenes}) == 1
    assert garments.scenes[0].things[0].identity in garments.scenes[1].people[0].outfit
    grid = sample_sheet(rng, 2, 2, content="garments")
    assert isinstance(grid, Panels)
    assert (grid.rows, grid.columns) == (2, 2)
    assert depict([objects, people, garments]).pixels.shape == (3, 3, 128, 256)


@pytest.mark.parametrize("shares", [whole.SHARES, whole.SHEET_SHARES, whole.SUBJECTS, whole.GROUP_SHARES])
def test_shares_are_whole(shares: tuple[float, ...]) -> None:
    assert sum(shares) == pytest.approx(1.0)


def test_the_same_seed_draws_the_same_picture_and_splits_do_not_meet() -> None:
    one, again = (sample_picture(np.random.default_rng(9)) for _ in range(2))
    assert one == again
    assert sample_picture(np.random.default_rng(9), "test") != one
