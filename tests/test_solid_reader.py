"""The reader of solids and its recipe: what it learns from, what it names, and that the trained one reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capriccio import assets
from capriccio.errors import CapriccioError
from capriccio.modules.reader import MAP, bounds
from capriccio.modules.solid_reader import SIGHT, SolidReader
from capriccio.perception.solid_reader import load_solid_reader, read_solids, same_solid
from capriccio.recipes import solid_reader as recipe
from capriccio.recipes.pools import QUARTERS
from capriccio.recipes.reader import IGNORED
from capriccio.recipes.solid_reader import SolidReaderTask, draw_family, draw_view, shown, truth
from capriccio.training.trainer import fit
from capriccio.world.graph import split_of
from capriccio.world.solids import FRONTED
from capriccio.world.views import View, draw_views, sample_views

seeds = st.integers(0, 10_000)


def _split(view: View) -> str:
    solid = view.solid
    return split_of(solid.kind, solid.main, solid.accent, solid.pattern)


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> SolidReaderTask:
    """The recipe on sixteen pictures."""
    monkeypatch.setattr(SolidReaderTask, "drawn", {"cpu": 16})
    monkeypatch.setattr(SolidReaderTask, "families", {"cpu": 2})
    return SolidReaderTask()


@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from(["train", "test"]), st.sampled_from([0.0, 1.0]))
def test_a_family_is_two_solids_of_a_kind_in_the_same_views(seed: int, split: str, twins: float) -> None:
    first, second, rival, again = draw_family(np.random.default_rng(seed), split, twins)
    assert first.solid == second.solid != rival.solid == again.solid
    assert replace(rival, solid=first.solid) == first
    assert replace(again, solid=first.solid) == second
    assert rival.solid.kind == first.solid.kind
    words = [(one.solid.main, one.solid.accent, one.solid.pattern) for one in (first, rival)]
    assert not twins or words[0] == words[1]
    assert {_split(one) for one in (first, rival)} == {split}


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_the_truth_is_the_views_and_leaves_out_sides_that_look_alike(seed: int) -> None:
    view = draw_view(np.random.default_rng(seed))
    told = {name: SIGHT.classes[name][int(value)] for name, value in truth([view]).items() if int(value) != IGNORED}
    assert (told["kind"], told["main"], told["accent"]) == (view.solid.kind, view.solid.main, view.solid.accent)
    assert (told["pattern"], told["backdrop"]) == (view.solid.pattern, view.backdrop.kind)
    assert told.get("view") == (view.word if view.solid.kind in FRONTED else None)


def test_one_view_in_eight_is_from_above() -> None:
    rng = np.random.default_rng(0)
    above = sum(draw_view(rng).word == "overhead" for _ in range(400))
    assert 30 <= above <= 75


def test_a_pool_keeps_pictures_and_where_solids_are() -> None:
    views = [draw_view(np.random.default_rng(seed)) for seed in range(3)]
    kept, sights = shown(views), draw_views(views)
    assert np.abs(kept["pixels"] / 127.5 - 1 - sights.pixels.numpy()).max() < 1 / 127
    assert kept["cells"].shape == (3, 1, MAP, MAP)
    cells = torch.from_numpy(kept["cells"])[:, 0] / QUARTERS
    assert (bounds(cells > 0.5) - bounds(sights.mask)).abs().max() < 1.5 / MAP


def test_the_loss_reaches_every_weight(task: SolidReaderTask) -> None:
    model = task.models()
    loss, readings = task.loss(model, task.batch(np.random.default_rng(0)), torch.Generator())
    loss.backward()
    assert loss.isfinite()
    assert set(SIGHT.classes) < set(readings)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_a_trained_reader_is_saved_small_and_loads(
    task: SolidReaderTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task.schedule = replace(task.schedule, steps=2)
    model = fit(task, tmp_path / "run")
    monkeypatch.setattr("capriccio.recipes.reader.impostor_threshold", lambda *_: 0.25)
    task.save(model, tmp_path / "solid-reader")
    monkeypatch.setattr(assets, "path", lambda name: tmp_path / Path(name).name)
    monkeypatch.setattr(assets, "available", lambda name: True)
    load_solid_reader.cache_clear()
    pixels = draw_views([draw_view(np.random.default_rng(0))]).pixels
    assert (read_solids(pixels).identity - model(pixels)["identity"]).abs().max() < 0.01
    assert json.loads((tmp_path / "solid-reader/config.json").read_text()) == {"identity_threshold": 0.25}
    assert (tmp_path / "solid-reader/model.safetensors").stat().st_size < 2**20
    load_solid_reader.cache_clear()


def test_the_measures_are_rates_of_every_name(task: SolidReaderTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "MEASURED", 32)
    monkeypatch.setattr(recipe, "same_member_rate", lambda *_: 1.0)
    rows = task.measure(task.models().eval())
    names = [*SIGHT.classes, "from_above", "same_solid"]
    assert [row.name for row in rows] == [f"solid_reader_{name}" for name in names]
    assert all(0 <= row.value <= 1 for row in rows)


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(CapriccioError, match="give at least one picture"):
        read_solids(torch.zeros(3, 128, 128), SolidReader())


def test_without_weights_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "available", lambda name: False)
    load_solid_reader.cache_clear()
    with pytest.raises(CapriccioError, match="capriccio train miniature"):
        read_solids(torch.zeros(1, 3, 128, 128))


def test_the_trained_reader_goes_round_a_robot() -> None:
    views = sample_views(np.random.default_rng(4), 4, "test", "robot")
    turned = [replace(view, azimuth=90.0 * number) for number, view in enumerate(views)]
    pixels = draw_views(turned).pixels
    reading = read_solids(pixels)
    assert reading.kind == ["robot"] * 4
    assert reading.view == ["front", "side", "back", "side"]
    assert same_solid(pixels, pixels).all()
