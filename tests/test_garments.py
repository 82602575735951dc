"""Garments: one print for the worn and the flat view, masks that tell nothing, truth that warps."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import grid_sample

from capriccio.errors import CapriccioError
from capriccio.world.captions import caption, panel_caption, sample_panel_caption
from capriccio.world.casting import (
    flat,
    put_on,
    sample_garment,
    sample_outfit,
    sample_people,
    sample_tryon,
    sample_tryon_panels,
    wearing,
)
from capriccio.world.draw import draw, draw_panels
from capriccio.world.graph import COLOURS, PATTERNS, Garment, SceneGraph, from_dict, split_of, to_dict
from capriccio.world.inks import INKS
from capriccio.world.people import GARMENTS, MOTIFS, SLOTS, checked_outfit, garment_at, slot_of
from capriccio.world.person_words import garment_phrase, model_caption
from capriccio.world.skeleton import keypoints
from capriccio.world.tryon import TryOn, agnostic_mask, garment_swap, pose_maps, tryon, undressed
from capriccio.world.vocabulary import WORDS
from capriccio.world.windows import body_part, garment_part

KNOWN = set(WORDS)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def generators() -> st.SearchStrategy[np.random.Generator]:
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


def garment(kind: str = "sweater", **changes: object) -> Garment:
    return replace(Garment(kind, "red", "blue", "striped", (0.0,) * 6, 26.0, 0.3), **changes)


def model(seed: int = 3) -> SceneGraph:
    return sample_people(rng(seed), style="shaded", view="whole", accessories=False)


@pytest.fixture(scope="module")
def asked() -> list[tuple[SceneGraph, Garment]]:
    source = rng(2)
    return [sample_tryon(source, slot=slot) for slot in SLOTS]


@pytest.fixture(scope="module")
def known(asked: list[tuple[SceneGraph, Garment]]) -> TryOn:
    return tryon([scene for scene, _ in asked], [one for _, one in asked])


# Graphs


@pytest.mark.parametrize("split", ["train", "test"])
def test_garments_belong_to_their_split(split: str) -> None:
    source = rng()
    for _ in range(100):
        one = sample_garment(source, split)
        assert split_of(one.kind, one.main, one.accent, one.pattern) == split
        assert one.main != one.accent
        assert one.motif is None or (one.pattern == "plain" and slot_of(one.kind) in ("upper", "dress"))


def test_outfits_cover_people_once() -> None:
    source = rng()
    for _ in range(40):
        slots = [slot_of(one.kind) for one in checked_outfit(sample_outfit(source))]
        assert ("dress" in slots) != ("upper" in slots and "lower" in slots)
        assert "shoes" in slots


def test_putting_on_takes_off_what_was_there() -> None:
    outfit = (garment("dress"), garment("boots"))
    assert put_on(outfit, garment("vest")) == (garment("boots"), garment("vest"))
    assert put_on((garment("shirt"), garment("skirt")), garment("dress")) == (garment("dress"),)
    assert put_on(outfit, garment("shoes")) == (garment("dress"), garment("shoes"))


def test_flat_garments_survive_json() -> None:
    scene = flat(garment(pattern="plain", motif="star"))
    assert from_dict(json.loads(json.dumps(to_dict(scene)))) == scene


@pytest.mark.parametrize(
    "ask",
    [
        lambda: sample_garment(rng(), kind="sock"),
        lambda: sample_garment(rng(), slot="nose"),
        lambda: slot_of("mug"),
        lambda: garment_at(model().people[0], "nose"),
        lambda: checked_outfit((garment("dress"), garment("skirt"))),
        lambda: tryon([model()], []),
        lambda: tryon([flat(garment())], [garment()]),
        lambda: garment_swap(undressed(model().people[0]), model().people[0], "upper"),
    ],
)
def test_what_cannot_be_worn_is_refused(ask: object) -> None:
    with pytest.raises(CapriccioError):
        ask()  # type: ignore[operator]


# Pictures


def test_every_garment_shows_main_accent_and_both_colours() -> None:
    drawing = draw([flat(garment(kind)) for kind in GARMENTS])
    red, blue = 1 + INKS.index("red"), 1 + INKS.index("blue")
    for row, kind in enumerate(GARMENTS):
        seen = drawing.parts[row]
        assert set(seen.unique().tolist()) == {0, garment_part(kind), garment_part(kind) + 1}
        area = int((seen > 0).sum())
        assert 900 < area < 9000, kind
        assert (drawing.inks[row] == red).sum() > 0.15 * area, kind
        assert (drawing.inks[row] == blue).sum() > 0.15 * area, kind


def test_flat_garments_lie_on_plain_white() -> None:
    drawing = draw([flat(garment("hat"))])
    assert (drawing.pixels[0, :, :10] > 0.95).all()
    assert (drawing.pixels[0, :, -10:] > 0.95).all()


@pytest.mark.parametrize("kind", GARMENTS)
def test_every_garment_is_worn_in_its_colours(kind: str) -> None:
    scene = model()
    drawing = draw([replace(scene, people=(wearing(scene.people[0], garment(kind)),))])
    main = drawing.parts[0] == garment_part(kind)
    assert main.sum() > 60
    assert ((drawing.inks[0][main] == 1 + INKS.index("red")) | (drawing.inks[0][main] == 1 + INKS.index("blue"))).all()


@pytest.mark.parametrize("motif", MOTIFS)
def test_motifs_show_in_the_accent_colour(motif: str) -> None:
    plain, printed = (garment("shirt", pattern="plain", motif=one) for one in (None, motif))
    drawing = draw([flat(plain), flat(printed)])
    blue = drawing.inks == 1 + INKS.index("blue")
    assert (blue[1].sum() - blue[0].sum()) > 150


@pytest.mark.parametrize("index", range(6))
def test_every_shape_number_changes_some_garments(index: int) -> None:
    changed = 0
    for kind in ("sweater", "dress", "shorts", "skirt", "hat", "boots"):
        shapes = [tuple(value if at == index else 0.0 for at in range(6)) for value in (-0.9, 0.9)]
        first, second = draw([flat(garment(kind, shape=shape)) for shape in shapes]).pixels
        changed += int(((first - second).abs().amax(0) > 0.1).sum() > 20)
    assert changed >= 2


def test_a_garment_keeps_its_place_in_the_part_map_of_old() -> None:
    assert min(map(garment_part, GARMENTS)) > max(body_part(name) for name in ("face", "left foot"))


# Try-on


def test_the_worn_garment_carries_the_print_of_the_flat_one(
    asked: list[tuple[SceneGraph, Garment]], known: TryOn
) -> None:
    """Follow every worn pixel to the flat picture: nine in ten find their very ink there, the rest lie on edges."""
    product = draw([flat(one) for _, one in asked]).inks[:, None].float()
    found = grid_sample(product, known.origin, mode="nearest", align_corners=False, padding_mode="border")[:, 0]
    dressed = draw(
        [replace(scene, people=(wearing(scene.people[0], one),)) for scene, one in asked],
    ).inks
    for row, (_, one) in enumerate(asked):
        worn = known.worn[row, 0].bool()
        assert worn.sum() > 50
        assert (found[row][worn] == dressed[row][worn]).float().mean() > 0.88, one.kind


def test_another_garment_would_not_agree(asked: list[tuple[SceneGraph, Garment]], known: TryOn) -> None:
    """The test above can fail: a turned flat picture finds the ink of fewer pixels."""
    (scene, one), row = asked[0], 0
    turned = draw([flat(replace(one, pattern="checkered", motif=None, angle=0.7))]).inks[:, None].float()
    plain = draw([replace(scene, people=(wearing(scene.people[0], replace(one, pattern="plain", motif=None)),))])
    found = grid_sample(turned, known.origin[:1], mode="nearest", align_corners=False, padding_mode="border")[0, 0]
    worn = known.worn[row, 0].bool()
    assert (found[worn] == plain.inks[0][worn]).float().mean() < 0.8


def test_masks_agree_with_the_part_map(asked: list[tuple[SceneGraph, Garment]], known: TryOn) -> None:
    for row, (_, one) in enumerate(asked):
        part = garment_part(one.kind)
        shown = (known.parts[row] == part) | (known.parts[row] == part + 1)
        assert torch.equal(shown, known.worn[row, 0].bool())


def test_the_agnostic_picture_hides_the_garment_and_keeps_the_rest(known: TryOn) -> None:
    hidden = known.mask.bool()
    assert hidden[known.worn.bool()].all()
    assert (known.agnostic[hidden.expand_as(known.agnostic)] == 0).all()
    assert torch.equal(known.agnostic * ~hidden, known.person * ~hidden)
    for row in range(4):
        eyes = known.parts[row] == body_part("eyes")
        assert not hidden[row, 0][eyes].any()


@pytest.mark.parametrize("slot", SLOTS)
def test_the_agnostic_mask_tells_no_garment_from_another(slot: str) -> None:
    source = rng(7)
    scene = model(5)
    garments = [sample_garment(source, slot=slot) for _ in range(4)]
    truth = tryon([scene] * len(garments), garments)
    envelope = agnostic_mask(scene.people[0], slot)
    assert not (truth.worn[:, 0].bool() & ~envelope).any()
    assert all(torch.equal(truth.mask[0], mask) for mask in truth.mask[1:])


def test_the_body_map_does_not_know_what_is_worn() -> None:
    scene = model()
    first, second = (tryon([scene], [garment(kind)]).body for kind in ("vest", "hoodie"))
    assert torch.equal(first, second)
    assert {0, 1, 9, 10} < set(first.unique().tolist())


def test_warped_garments_look_like_worn_ones(known: TryOn) -> None:
    worn = known.worn.bool().expand_as(known.person)
    assert (known.warped() - known.person)[worn].abs().mean() < 0.25
    assert (known.warped()[~worn] == 1).all()


def test_pose_maps_peak_at_the_key_points() -> None:
    scene = model()
    points, inside = keypoints(scene.people[0])
    maps = pose_maps(points[None], inside[None], 64, sigma=0.05)[0]
    assert maps.shape == (18, 64, 64)
    for point, one in zip(points, maps, strict=True):
        row, column = divmod(int(one.argmax()), 64)
        assert (torch.tensor([column + 0.5, row + 0.5]) / 64 - point).abs().max() < 0.5 / 64 + 1e-6
    assert pose_maps(points[None], torch.zeros(1, 18, dtype=torch.bool), 8).sum() == 0


def test_swapping_exchanges_garments_and_nothing_else() -> None:
    first, second = model(1).people[0], model(2).people[0]
    slot = "shoes"
    one, other = garment_swap(first, second, slot)
    assert garment_at(one, slot) == garment_at(second, slot)
    assert garment_at(other, slot) == garment_at(first, slot)
    assert (one.person, one.pose) == (first.person, first.pose)


def test_tryon_panels_show_the_flat_garment_and_who_wears_it() -> None:
    panels = sample_tryon_panels(rng(4), slot="upper")
    (thing,), (sitter,) = panels.scenes[0].things, panels.scenes[1].people
    assert thing.identity in sitter.outfit
    assert draw_panels(panels).pixels.shape == (1, 3, 128, 256)


# Words


def test_garment_phrases_by_hand() -> None:
    one = garment(pattern="plain", motif="star")
    assert garment_phrase(one, rng()) == "a red sweater with a blue star"
    assert garment_phrase(one, rng(), "brief") == "a red sweater"
    assert garment_phrase(one, rng(), "kind") == "a sweater"
    assert garment_phrase(garment(), rng(), "full", "pencil") == "a striped sweater"
    phrases = {garment_phrase(garment(), rng(seed)) for seed in range(40)}
    assert "a striped red sweater" in phrases
    assert {phrase.split()[0] for phrase in phrases} == {"a"}
    assert "red boots" in {garment_phrase(garment("boots"), rng(seed), "brief") for seed in range(9)}


@given(generators())
@settings(max_examples=50, deadline=None)
def test_captions_of_garments_use_known_words(source: np.random.Generator) -> None:
    one = sample_garment(source)
    for text in (
        caption(flat(one), source),
        model_caption(one, source),
        sample_panel_caption(sample_tryon_panels(source), source),
    ):
        assert set(re.findall(r"[a-z-]+", text)) <= KNOWN, text
        assert not re.search(r"\ba [aeio]|\ban [^aeio]|  ", text)


def test_tryon_captions_name_the_garment_once_and_then_refer_to_it() -> None:
    panels = sample_tryon_panels(rng(1), slot="dress")
    text = panel_caption(panels, rng(3))
    assert text.count("dress") == 2
    assert any(word in text for word in ("the same dress", "this dress", "exactly the same dress"))


def test_every_name_has_its_words() -> None:
    for kind in GARMENTS:
        for pattern in PATTERNS:
            for colour in COLOURS:
                phrase = garment_phrase(garment(kind, pattern=pattern, main=colour), rng())
                assert set(re.findall(r"[a-z-]+", phrase)) <= KNOWN
