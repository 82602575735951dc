"""The world: graphs that keep their word, pictures that keep to their graphs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from capriccio.errors import CapriccioError
from capriccio.world import controls, oracle, sheets
from capriccio.world.diet import draw_diet
from capriccio.world.draw import NUM_INKS, NUM_PARTS, Drawing, draw, draw_panels
from capriccio.world.graph import (
    ACCESSORIES,
    BACKDROPS,
    COLOURS,
    KINDS,
    PATTERNS,
    STUDIO,
    STYLES,
    Backdrop,
    SceneGraph,
    Thing,
    from_dict,
    sample_backdrop,
    sample_identity,
    sample_panels,
    sample_scene,
    size_word,
    split_of,
    to_dict,
)
from capriccio.world.windows import ACCESSORY_PART


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def single(kind: str = "mug", style: str = "shaded", backdrop: str = "meadow", **identity: Any) -> SceneGraph:
    one = replace(sample_identity(rng(1), kind=kind), **identity)
    return SceneGraph((Thing(one, 0.5, 0.55, 0.64),), Backdrop(backdrop, (0.0, 0.0, 0.0, 0.0)), style)


@pytest.fixture(scope="module")
def kinds() -> Drawing:
    return draw([single(kind, main="red", accent="blue", pattern="striped") for kind in KINDS])


# Graphs


def test_words_are_as_many_as_promised() -> None:
    assert (len(KINDS), len(COLOURS), len(PATTERNS), len(BACKDROPS), len(STYLES)) == (16, 10, 4, 10, 8)


@pytest.mark.parametrize("split", ["train", "test"])
def test_identities_belong_to_their_split_and_have_two_colours(split: str) -> None:
    source = rng()
    for _ in range(200):
        one = sample_identity(source, split)
        assert split_of(one.kind, one.main, one.accent, one.pattern) == split
        assert one.main != one.accent
        assert one.pitch >= 10
        assert len(one.shape) == 6
        assert max(map(abs, one.shape)) <= 1


def test_about_one_combination_in_eight_is_held_out() -> None:
    held = [split_of(k, a, b, p) == "test" for k in KINDS for a in COLOURS for b in COLOURS for p in PATTERNS if a != b]
    assert 0.11 < np.mean(held) < 0.14


@pytest.mark.parametrize("subjects", [1, 2, 3, 4])
def test_scenes_hold_their_subjects_inside_the_picture(subjects: int) -> None:
    source = rng(subjects)
    for _ in range(50):
        scene = sample_scene(source, subjects)
        assert len(scene.things) == subjects
        assert all(one.x - one.size / 2 * 0.9 > 0 and one.x + one.size / 2 * 0.9 < 1 for one in scene.things)
        assert all(one.accessory_colour != one.identity.main for one in scene.things if one.accessory)


def test_no_accessories_when_asked() -> None:
    source = rng()
    assert not any(sample_scene(source, accessories=False).things[0].accessory for _ in range(40))


def test_same_seed_same_scene_and_other_seed_another() -> None:
    assert sample_scene(rng(5), 3) == sample_scene(rng(5), 3) != sample_scene(rng(6), 3)


def test_shaded_is_three_in_four() -> None:
    source = rng()
    shaded = np.mean([sample_scene(source).style == "shaded" for _ in range(600)])
    assert 0.68 < shaded < 0.82


def test_panels_keep_the_individual_and_change_the_place() -> None:
    panels = sample_panels(rng(), 2, 2)
    assert len({scene.things[0].identity for scene in panels.scenes}) == 1
    assert len({scene.backdrop.kind for scene in panels.scenes}) == 4
    assert len({scene.style for scene in panels.scenes}) == 1
    assert oracle.same_individual(panels.scenes[0].things[0], panels.scenes[3].things[0])


@pytest.mark.parametrize("graph", [sample_scene(rng(2), 3), sample_panels(rng(3), 1, 2)])
def test_graphs_survive_json(graph: SceneGraph) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(graph)))) == graph


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda data: data.update(style="cubist"), "cubist"),
        (lambda data: data["backdrop"].update(kind="beech"), "beach"),
        (lambda data: data["things"][0]["identity"].update(main="crimson"), "crimson"),
        (lambda data: data["things"][0].update(wings=2), "wings"),
        (lambda data: data.pop("things"), "things"),
    ],
)
def test_spoilt_graphs_are_refused_in_one_sentence(spoil: object, word: str) -> None:
    data = to_dict(single())
    spoil(data)  # type: ignore[operator]
    with pytest.raises(CapriccioError, match=word):
        from_dict(data)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: sample_identity(rng(), kind="mugg"),
        lambda: sample_identity(rng(), split="validation"),
        lambda: sample_scene(rng(), 5),
        lambda: sample_scene(rng(), style="oil"),
        lambda: sample_panels(rng(), 4, 4),
        lambda: draw([]),
        lambda: draw_panels([sample_panels(rng(), 1, 2), sample_panels(rng(), 2, 1)]),
    ],
)
def test_what_the_world_lacks_is_refused(ask: object) -> None:
    with pytest.raises(CapriccioError):
        ask()  # type: ignore[operator]


def test_size_words_grow() -> None:
    assert [size_word(size) for size in (0.48, 0.58, 0.69)] == ["small", "medium", "large"]


# Drawings


def test_shapes_types_and_ranges() -> None:
    scenes = [sample_scene(rng(seed), 1 + seed % 4) for seed in range(8)]
    drawing = draw(scenes)
    assert drawing.pixels.shape == (8, 3, 128, 128)
    assert drawing.pixels.min() >= -1
    assert drawing.pixels.max() <= 1
    assert drawing.subjects.shape == (8, 4, 128, 128)
    assert drawing.subjects.dtype == torch.bool
    assert int(drawing.parts.max()) < NUM_PARTS
    assert int(drawing.inks.max()) < NUM_INKS
    assert drawing.parts.dtype == drawing.inks.dtype == torch.int64
    assert drawing.depth.min() >= 0
    assert drawing.depth.max() <= 1


def test_a_scene_looks_the_same_alone_and_in_company() -> None:
    scenes = [sample_scene(rng(seed), 1 + seed % 3, style="shaded") for seed in range(12)]
    together = draw(scenes).pixels
    alone = torch.cat([draw([scene]).pixels for scene in scenes])
    assert (together - alone).abs().max() < 2 / 255


def test_masks_parts_and_inks_agree(kinds: Drawing) -> None:
    thing = kinds.subjects.any(1)
    assert torch.equal(thing, kinds.parts > 0)
    assert torch.equal(thing, kinds.inks > 0)


def test_every_kind_shows_body_accent_and_both_colours(kinds: Drawing) -> None:
    red, blue = 1 + list(COLOURS).index("red"), 1 + list(COLOURS).index("blue")
    for row in range(len(KINDS)):
        area = int((kinds.parts[row] > 0).sum())
        assert 1100 < area < 6000
        assert set(kinds.parts[row].unique().tolist()) == {0, 1 + 2 * row, 2 + 2 * row}
        assert (kinds.inks[row] == red).sum() > 0.1 * area
        assert (kinds.inks[row] == blue).sum() > 0.1 * area


def test_inks_tell_what_the_pixels_show(kinds: Drawing) -> None:
    names = list(COLOURS)
    for colour in ("red", "blue"):
        where = kinds.inks == 1 + names.index(colour)
        mean = (kinds.pixels.permute(0, 2, 3, 1)[where].mean(0) + 1) / 2
        assert (mean - torch.tensor(COLOURS[colour])).abs().max() < 0.15


@pytest.mark.parametrize("index", range(6))
def test_every_shape_number_changes_most_kinds(index: int) -> None:
    changed = 0
    for kind in KINDS:
        scene = single(kind)
        one = scene.things[0].identity
        pictures = []
        for value in (-0.9, 0.9):
            shape = tuple(value if at == index else number for at, number in enumerate(one.shape))
            thing = replace(scene.things[0], identity=replace(one, shape=shape))
            pictures.append(replace(scene, things=(thing,)))
        drawing = draw(pictures)
        changed += int(((drawing.pixels[0] - drawing.pixels[1]).abs().amax(0) > 0.1).sum() > 20)
    assert changed >= 14


def test_patterns_mix_the_two_colours_as_they_should() -> None:
    scenes = [single("ball", main="white", accent="green", pattern=pattern) for pattern in PATTERNS]
    drawing = draw(scenes)
    green = 1 + list(COLOURS).index("green")
    body = drawing.parts == 1 + 2 * KINDS.index("ball")
    share = [float((drawing.inks[row][body[row]] == green).float().mean()) for row in range(4)]
    assert share[0] == 0
    assert 0.35 < share[1] < 0.65
    assert 0.12 < share[2] < 0.45
    assert 0.35 < share[3] < 0.65


def test_flipping_mirrors_the_thing() -> None:
    scene = single("teapot", backdrop=STUDIO)
    flipped = replace(scene, things=(replace(scene.things[0], flipped=True),))
    plain, mirrored = draw([scene, flipped]).subjects[:, 0]
    assert torch.equal(plain.flip(-1), mirrored)
    assert not torch.equal(plain, mirrored)


@pytest.mark.parametrize("accessory", ACCESSORIES)
def test_accessories_show_on_every_kind(accessory: str) -> None:
    scenes = [single(kind) for kind in KINDS]
    worn = [
        replace(one, things=(replace(one.things[0], accessory=accessory, accessory_colour="teal"),)) for one in scenes
    ]
    drawing = draw(worn)
    assert ((drawing.parts == ACCESSORY_PART).sum((1, 2)) > 80).all()
    assert not (draw(scenes).parts == ACCESSORY_PART).any()


def test_nearer_things_hide_farther_ones() -> None:
    far, near = single("ball").things[0], replace(single("gift").things[0], x=0.6)
    drawing = draw([SceneGraph((far, near), Backdrop("snow"), "shaded")])
    behind, front = drawing.subjects[0]
    assert not (behind & front).any()
    whole = draw([SceneGraph((near,), Backdrop("snow"), "shaded")]).subjects[0, 0]
    assert torch.equal(front, whole)
    assert drawing.depth[0][front].min() > drawing.depth[0][behind].max()


def test_backdrops_differ_from_each_other_more_than_from_themselves() -> None:
    source = rng()
    variations = [[SceneGraph((), sample_backdrop(source, kind)) for kind in BACKDROPS] for _ in range(3)]
    pictures = torch.stack([draw(row).pixels for row in variations]).flatten(2)
    mean = pictures.mean(0)
    own = (pictures - mean).square().mean(-1).max(0).values
    between = torch.cdist(mean, mean).square() / mean.shape[1] + torch.eye(10) * 1e3
    assert (between.min(1).values > own).all()


def test_pictures_are_smooth_enough_for_a_factor_eight_vae() -> None:
    source = rng()
    pixels = draw([sample_scene(source, style="shaded") for _ in range(16)]).pixels
    coarse = torch.nn.functional.interpolate(pixels, scale_factor=0.5, mode="area")
    again = torch.nn.functional.interpolate(coarse, scale_factor=2, mode="bicubic")
    assert -10 * torch.log10((pixels - again).square().mean() / 4) > 31


@pytest.mark.parametrize("style", STYLES[1:])
def test_styles_change_the_picture_and_keep_the_truth(style: str) -> None:
    plain, styled = draw([single("cat")]), draw([single("cat", style)])
    assert (plain.pixels - styled.pixels).abs().mean() > 0.04
    assert torch.equal(plain.parts, styled.parts)


def test_panels_are_their_scenes_side_by_side() -> None:
    panels = sample_panels(rng(4), 2, 2)
    drawing = draw_panels(panels)
    parts = draw(panels.scenes)
    assert drawing.pixels.shape == (1, 3, 256, 256)
    assert torch.equal(drawing.pixels[0, :, :128, 128:], parts.pixels[1])
    assert torch.equal(drawing.parts[0, 128:, :128], parts.parts[2])
    assert torch.equal(drawing.subjects[0, :, 128:, 128:], parts.subjects[3])


def test_diet_is_deterministic_varied_and_in_range() -> None:
    first, again, other = (draw_diet(rng(seed), 12, 64) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (12, 3, 64, 64)
    assert -1 <= first.min() < -0.8
    assert 0.8 < first.max() <= 1
    assert torch.isfinite(first).all()


# Controls and truth


def test_edges_lie_on_the_outline() -> None:
    drawing = draw([single("ball", pattern="plain", backdrop=STUDIO)])
    lines = controls.edges(drawing)[0, 0]
    mask = drawing.subjects[0, 0]
    assert lines.shape == (128, 128)
    assert lines[mask].mean() < 0.5
    assert lines[~mask].mean() < 0.1
    outline = mask & ~(torch.nn.functional.max_pool2d(-mask[None, None].float(), 3, 1, 1)[0, 0] < -0.5)
    assert lines[outline].min() > 0.5


def test_segmentation_gives_each_class_its_own_colour() -> None:
    colours = controls.segment_colours()
    distances = torch.cdist(colours, colours) + torch.eye(NUM_PARTS) * 9
    assert distances.min() > 0.02
    drawing = draw([single("house")])
    assert len(controls.segmentation(drawing)[0].flatten(1).unique(dim=1).T) == len(drawing.parts.unique())


def test_depth_puts_things_before_the_ground() -> None:
    drawing = draw([single("tree")])
    near, mask = controls.depth(drawing)[0, 0], drawing.subjects[0, 0]
    assert near[mask].min() > near[~mask].max()


def test_keypoints_follow_the_thing_and_its_mirror_image() -> None:
    scene = single("bird")
    mirrored = replace(scene, things=(replace(scene.things[0], flipped=True),))
    plain, other = controls.keypoints([scene, mirrored])
    assert plain.shape == (1, len(controls.KEYPOINTS), 2)
    assert torch.allclose(plain[..., 0], 1 - other[..., 0], atol=1e-5)
    mask = draw([scene]).subjects[0, 0]
    x, y = (plain[0, controls.KEYPOINTS.index("eyes")] * 128).long().tolist()
    assert mask[y, x]


def test_oracle_reads_the_scene_exactly() -> None:
    scene = sample_scene(rng(8), 2)
    (truth,) = oracle.read([scene])
    assert [one.identity for one in truth.things] == [one.identity for one in scene.things]
    assert (truth.backdrop, truth.style) == (scene.backdrop.kind, scene.style)
    for one, thing in zip(truth.things, scene.things, strict=True):
        left, top, right, bottom = one.box or (0.0,) * 4
        assert left < thing.x < right
        assert top < thing.y < bottom
        assert right - left < thing.size * 1.1


def test_hidden_things_have_no_box() -> None:
    back, front = single("bird").things[0], single("ball").things[0]
    scene = SceneGraph((replace(back, size=0.2), replace(front, size=0.9)), Backdrop("snow"))
    (truth,) = oracle.read([scene])
    assert truth.things[0].box is None
    assert truth.things[0].visible == 0


def test_relations_are_spatial_words() -> None:
    one = single().things[0]
    assert oracle.relation(one, replace(one, x=0.8)) == "left of"
    assert oracle.relation(replace(one, x=0.8), one) == "right of"
    assert oracle.relation(one, replace(one, y=0.9)) == "above"
    assert oracle.relation(replace(one, y=0.9), one) == "below"


def test_contact_sheets_are_written(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "SHEETS", (sheets.backdrops,))
    (path,) = sheets.write_sheets(tmp_path)  # type: ignore[arg-type]
    assert path.name == "world-backdrops.jpg"
    assert path.stat().st_size > 10_000
