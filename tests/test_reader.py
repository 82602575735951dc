"""The reader and its recipe: what learns, from what, and what is saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from capriccio import assets
from capriccio.errors import CapriccioError
from capriccio.modules.reader import CLASSES, CLOSE, MAP, Reader, bounds, close_up
from capriccio.perception.reader import identity_threshold, load_reader, read, same_individual
from capriccio.recipes.reader import (
    IGNORED,
    ReaderTask,
    centres,
    draw_family,
    identity_loss,
    look,
    maps,
    overlap_loss,
    soften,
    truth,
    with_identity,
    zooms,
)
from capriccio.world.draw import draw
from capriccio.world.graph import STUDIO, Backdrop, sample_scene


@pytest.fixture(scope="module")
def reader() -> Reader:
    torch.manual_seed(0)
    return Reader(widths=(8, 16, 24)).eval()


@pytest.fixture(scope="module")
def scenes() -> list:
    rng = np.random.default_rng(3)
    return [sample_scene(rng, style="shaded") for _ in range(6)]


def test_the_reader_names_everything_and_looks_through_its_mask(reader: Reader) -> None:
    said = reader(torch.rand(2, 3, 128, 128) * 2 - 1)
    assert {name: said[name].shape for name in CLASSES} == {name: (2, len(names)) for name, names in CLASSES.items()}
    assert said["mask"].shape == (2, MAP, MAP)
    assert said["inks"].shape == (2, 10, MAP, MAP)
    assert said["box"].shape == (2, 4)
    assert torch.allclose(said["identity"].norm(dim=1), torch.ones(2))


def test_reading_is_in_names_of_the_world_at_any_size(reader: Reader) -> None:
    reading = read(torch.rand(3, 3, 96, 160) * 2 - 1, reader)
    assert all(getattr(reading, name)[0] in names for name, names in CLASSES.items())
    assert len(reading.kind) == len(reading.confidence["kind"]) == 3
    assert reading.mask.shape == (3, MAP, MAP)


@pytest.mark.parametrize("shape", [(3, 128, 128), (0, 3, 128, 128), (1, 4, 128, 128)])
def test_what_is_no_picture_is_refused(reader: Reader, shape: tuple[int, ...]) -> None:
    with pytest.raises(CapriccioError, match="give at least one picture"):
        read(torch.zeros(shape), reader)


def test_a_family_is_two_individuals_in_the_same_two_scenes() -> None:
    for seed in range(8):
        first, second, rival, again = draw_family(np.random.default_rng(seed))
        assert first.things[0].identity == second.things[0].identity != rival.things[0].identity
        assert rival.things[0].identity == again.things[0].identity
        assert with_identity(first, rival.things[0].identity) == rival
        assert first.things[0].identity.kind == rival.things[0].identity.kind


def test_the_truth_leaves_out_what_cannot_be_seen(scenes: list) -> None:
    pencil = replace(scenes[0], style="pencil", backdrop=Backdrop(STUDIO))
    answers = truth([scenes[0], pencil])
    identity = scenes[0].things[0].identity
    assert CLASSES["main"][answers["main"][0]] == identity.main
    assert answers["main"][1] == answers["accent"][1] == answers["backdrop"][1] == IGNORED
    assert CLASSES["kind"][answers["kind"][1]] == identity.kind


def test_maps_and_boxes_are_those_of_the_drawing(scenes: list) -> None:
    drawing = draw(scenes)
    cells = maps(drawing)
    assert cells.shape == (6, 1 + 10, MAP, MAP)
    assert (cells[:, 1:].sum(1) - cells[:, 0]).abs().mean() < 0.02
    left, top, right, bottom = bounds(cells[:, 0] > 0.5)[0]
    rows, columns = (torch.where(drawing.subjects[0].any(0).any(dim))[0] / 128 for dim in (1, 0))
    for found, true in ((left, columns[0]), (right, columns[-1]), (top, rows[0]), (bottom, rows[-1])):
        assert abs(found - true) < 1.5 / MAP


def test_a_close_up_is_the_subject_at_one_size(scenes: list) -> None:
    masks = draw(scenes).subjects.any(1)
    cut = close_up(masks[:, None].float().expand(-1, 3, -1, -1), bounds(masks))[:, 0] > 0.5
    longer = torch.stack([cut.any(1).sum(1), cut.any(2).sum(1)]).amax(0)
    assert ((longer - CLOSE / 1.1).abs() <= 2).all()


def test_without_a_subject_the_reader_looks_at_everything() -> None:
    assert torch.equal(bounds(torch.zeros(1, 8, 8).bool()), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))


def test_a_zoom_carries_the_subject_and_its_cells_together(scenes: list) -> None:
    drawing = draw(scenes)
    affine = zooms(centres(scenes), np.random.default_rng(0))
    masks = drawing.subjects.any(1)[:, None].float()
    fine = torch.nn.functional.avg_pool2d(look(masks, affine), 4)
    assert (fine - look(maps(drawing)[:, :1], affine)).abs().mean() < 0.02
    assert fine.sum() > 0.5 * masks.sum() / 16


def test_softened_pictures_are_near_the_originals(scenes: list) -> None:
    pixels = draw(scenes).pixels
    softened = soften(pixels, np.random.default_rng(0))
    assert 0.001 < (softened - pixels).abs().mean() < 0.15
    assert softened.abs().max() <= 1


def test_the_overlap_of_masks_costs_nothing_if_whole_and_one_if_none() -> None:
    shares = torch.zeros(1, 2, 8, 8)
    shares[:, :, :4] = 1
    right, wrong = 60 * (shares - 0.5), 60 * (0.5 - shares)
    assert overlap_loss(right, shares) < 1e-6
    assert overlap_loss(wrong, shares) > 1 - 1e-6
    assert torch.isclose(overlap_loss(torch.cat([right, wrong]), shares.repeat(2, 1, 1, 1)), torch.tensor(0.5))


def test_a_small_mask_counts_as_much_as_a_large_one_and_what_is_not_shown_nothing() -> None:
    shares = torch.zeros(1, 3, 16, 16)
    shares[:, 0, :12], shares[:, 1, 0, 0] = 1, 1
    logits = 60 * (shares - 0.5)
    missed = [logits.index_fill(1, torch.tensor([look]), -30.0) for look in range(3)]
    small, large = overlap_loss(missed[1], shares), overlap_loss(missed[0], shares)
    assert torch.isclose(small, large)
    assert torch.isclose(large, torch.tensor(0.5))
    assert overlap_loss(logits.index_fill(1, torch.tensor([2]), 30.0), shares) < 1e-6
    assert overlap_loss(logits, torch.zeros_like(shares)) == 0


def test_the_identity_loss_prefers_views_together_and_rivals_apart() -> None:
    members = torch.tensor([0, 0, 1, 1, 2])
    vectors = torch.nn.functional.normalize(torch.eye(3)[members] + 0.1 * torch.randn(5, 3), dim=1)
    assert identity_loss(vectors, members) < identity_loss(vectors[[0, 2, 1, 3, 4]], members)


def test_the_readers_loss_reaches_every_weight() -> None:
    task = ReaderTask()
    model = task.models()
    batch = task.batch(np.random.default_rng(0))
    again = task.batch(np.random.default_rng(0))
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    loss, _ = task.loss(model, batch, torch.Generator())
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_a_saved_reader_reads_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenes: list) -> None:
    model = ReaderTask().models().eval()
    monkeypatch.setattr("capriccio.recipes.reader.impostor_threshold", lambda *_: 0.5)
    monkeypatch.setattr(assets, "path", lambda name: tmp_path / name)
    ReaderTask().save(model, tmp_path / "reader")
    assert json.loads((tmp_path / "reader/config.json").read_text()) == {"identity_threshold": 0.5}
    load_reader.cache_clear()
    pixels = draw(scenes[:2]).pixels
    near = read(pixels, load_reader("reader")).identity - model(pixels)["identity"]
    assert near.abs().max() < 0.01
    assert identity_threshold("reader") == 0.5


def test_the_trained_reader_knows_individuals() -> None:
    if not assets.available("miniature/reader/model.safetensors"):
        pytest.skip("the trained reader is not in this copy")
    load_reader.cache_clear()
    rng = np.random.default_rng(0)
    families = [draw_family(rng, "test", "shaded") for _ in range(24)]
    first, second, rival = (draw([family[index] for family in families]).pixels for index in (0, 1, 3))
    assert same_individual(first, second).float().mean() > 0.8 > same_individual(first, rival).float().mean() + 0.5
    shown = read(first)
    kinds = [family[0].things[0].identity.kind for family in families]
    assert np.mean([kind == true for kind, true in zip(shown.kind, kinds, strict=True)]) > 0.9
