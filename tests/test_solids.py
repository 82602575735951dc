"""Solids and their cameras: known geometry, exact truth, gradients that mean what they say."""

from __future__ import annotations

import re
from dataclasses import replace
from math import asin, pi, radians, tan

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import max_pool2d

from capriccio.errors import CapriccioError
from capriccio.world.cameras import (
    Cameras,
    cam_to_world,
    cameras,
    embedding,
    orbit,
    project,
    rays,
    sample_rig,
    view_word,
)
from capriccio.world.graph import COLOURS, Backdrop, Identity, split_of
from capriccio.world.inks import palette
from capriccio.world.kinds import Role
from capriccio.world.render import Model, model_of, render
from capriccio.world.solids import FRONTED, SOLIDS, build, sample_solid
from capriccio.world.tokenizers import clip_tokenizer
from capriccio.world.views import (
    View,
    cameras_of,
    draw_views,
    sample_view,
    sample_views,
    view_caption,
    views_of,
)
from capriccio.world.vocabulary import WORDS
from capriccio.world.volumes import block, drum, hoop, norm, prism, rod, sphere, spike

SIZE = 48


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def solid(kind: str, pattern: str = "plain", shape: tuple[float, ...] = (0.0,) * 6) -> Identity:
    return Identity(kind, "red", "blue", pattern, shape, 25.0, 0.3)


def seen(kind: str, azimuth: object = 30.0, elevation: float = 15.0, **identity: object) -> tuple[View, ...]:
    return views_of(solid(kind, **identity), cameras(azimuth, elevation))


# Cameras


@given(st.floats(-720, 720), st.floats(-90, 90), st.floats(0.5, 9), st.floats(5, 120))
@settings(max_examples=60, deadline=None)
def test_cameras_are_rotations_that_look_at_the_origin(turned: float, raised: float, far: float, fov: float) -> None:
    c = cameras(turned, raised, far, fov)
    (matrix,) = cam_to_world(c)
    turn, place = matrix[:3, :3], matrix[:3, 3]
    torch.testing.assert_close(turn.T @ turn, torch.eye(3), atol=1e-5, rtol=0)
    assert torch.linalg.det(turn) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(place - far * turn[:, 2], torch.zeros(3), atol=1e-5, rtol=0)
    at, depth = project(c, torch.zeros(1, 3))
    torch.testing.assert_close(at, torch.full((1, 1, 2), 0.5), atol=1e-4, rtol=0)
    assert float(depth) == pytest.approx(far, rel=1e-5)


@given(st.floats(0, 360), st.floats(-89, 89), st.floats(10, 90), st.integers(0, 7), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_a_point_on_a_ray_is_seen_at_its_pixel(turned: float, raised: float, fov: float, row: int, column: int) -> None:
    c = cameras(turned, raised, 3.0, fov)
    origin, towards = rays(c, 8)
    assert towards[0, row, column].norm() == pytest.approx(1, abs=1e-5)
    at, _ = project(c, (origin[:, None] + 2.0 * towards[:, row, column, None].transpose(0, 1)).reshape(1, 1, 3))
    torch.testing.assert_close(at[0, 0] * 8, torch.tensor([column + 0.5, row + 0.5]), atol=2e-3, rtol=0)


def test_conventions_are_those_that_are_stated() -> None:
    front, side, top = cam_to_world(cameras([0.0, 90.0, 0.0], [0.0, 0.0, 90.0], 2.0))
    torch.testing.assert_close(front[:3, 3], torch.tensor([2.0, 0.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(side[:3, 3], torch.tensor([0.0, 2.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(top[:3, 3], torch.tensor([0.0, 0.0, 2.0]), atol=1e-6, rtol=0)
    # Seen from the front, +y is on the right and +z above.
    at, _ = project(cameras(0.0, 0.0, 2.0, 60.0), torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.5]]))
    assert at[0, 0, 0] > 0.6
    assert at[0, 1, 1] < 0.4


def test_the_embedding_is_mvdreams() -> None:
    near, far = cameras(40.0, 20.0, 1.5), cameras(40.0, 20.0, 4.0, 20.0)
    torch.testing.assert_close(embedding(near), embedding(far))
    rows = embedding(near).reshape(4, 4)
    assert rows[:3, 3].norm() == pytest.approx(1, abs=1e-6)
    assert rows[3].tolist() == [0, 0, 0, 1]


def test_a_rig_is_four_views_of_one_height_a_quarter_turn_apart() -> None:
    source = rng()
    for _ in range(50):
        rig = sample_rig(source)
        assert torch.allclose((rig.azimuth[1:] - rig.azimuth[:-1]) % 360, torch.tensor(90.0), atol=1e-3)
        assert len({*rig.elevation.tolist()}) == len({*rig.fov.tolist()}) == len({*rig.distance.tolist()}) == 1
        assert 0 <= rig.elevation[0] <= 30
        assert 15 <= rig.fov[0] <= 60
        assert 1.1 <= rig.distance[0] * tan(radians(rig.fov[0]) / 2) <= 1.2501


@pytest.mark.parametrize(
    ("azimuth", "elevation", "word"),
    [
        (0, 15, "front"), (359, 0, "front"), (-44, 0, "front"), (46, 0, "side"), (270, 30, "side"),
        (180, 0, "back"), (-136, 0, "back"), (500, 0, "back"), (10, 61, "overhead"), (180, 90, "overhead"),
    ],
)  # fmt: skip
def test_view_words(azimuth: float, elevation: float, word: str) -> None:
    assert view_word(azimuth, elevation) == word


# Volumes


@pytest.mark.parametrize(
    "field",
    [
        lambda x, y, z: sphere(x, y, z, (0.1, 0.0, 0.0), 0.4),
        lambda x, y, z: block(x, y, z, (0.0, 0.1, 0.0), (0.3, 0.4, 0.5)),
        lambda x, y, z: drum(norm(x, y), z, 0.4, 0.5),
        lambda x, y, z: spike(norm(x, y), z, 0.4, 0.8),
        lambda x, y, z: hoop(norm(y, z), x, 0.5, 0.2),
        lambda x, y, z: rod(x, y, z, (0.0, 0.0, -0.4), (0.2, 0.1, 0.5), 0.2),
        lambda x, y, z: prism(spike(y.abs(), z, 0.4, 0.5), x, 0.3),
    ],
)
def test_distances_never_overstep(field: object) -> None:
    a, b = torch.rand(2, 4000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    change = (field(*a.unbind(1)) - field(*b.unbind(1))).abs()  # type: ignore[operator]
    assert (change <= (a - b).norm(dim=1) * 1.0001 + 1e-5).all()


@pytest.mark.parametrize("kind", SOLIDS)
def test_what_is_seen_is_what_a_patient_search_finds(kind: str) -> None:
    """Depth and mask against four hundred small steps along some rays: no part is stepped over or through."""
    views = [view for seed in (0, 1) for view in sample_views(rng(seed), 2, kind=kind)]
    c, drawn, some = cameras_of(views), draw_views(views, 128), (slice(None), slice(4, None, 9), slice(4, None, 9))
    origin, towards = rays(c, 128)
    towards, mask, depth = towards[some], drawn.mask[some], drawn.depth[some]
    along = (c.distance[:, None] + torch.linspace(-1.15, 1.15, 400))[:, None, None]
    points = origin[:, None, None, None] + along[..., None] * towards[:, :, :, None]
    shape = torch.tensor([view.solid.shape for view in views])
    inside = build(kind, points.reshape(-1, 3), shape.repeat_interleave(points[0].numel() // 3, 0)).distance() < 0
    inside = inside.reshape(points.shape[:-1])
    assert (inside.any(-1) != mask).float().mean() < 0.01
    first = along.expand(inside.shape).gather(-1, inside.float().argmax(-1, keepdim=True))[..., 0]
    true = -first * (towards @ cam_to_world(c)[:, None, :3, 2:3])[..., 0]
    # Of a pixel at a silhouette there is no one depth.
    inner = (max_pool2d(-drawn.mask[:, None].float(), 5, 1, 2)[:, 0] == -1)[some] & inside.any(-1)
    assert ((depth - true).abs()[inner] < 0.01).float().mean() > 0.985


# Pictures and their truth


def test_a_ball_is_as_large_as_geometry_says() -> None:
    """Radius 0.7 from 3 units: a disc of tan(asin(0.7 / 3)) / tan(20 degrees) of half the picture."""
    ball = replace(solid("ball"), shape=(1 / 3, 1 / 3, 0.0, 0.0, 0.0, 0.0))
    layers = render(model_of([ball]), cameras(0.0, 0.0, 3.0, 40.0), 128)
    radius = tan(asin(0.7 / 3)) / tan(radians(20)) * 64
    assert float(layers.cover.sum()) == pytest.approx(pi * radius**2, rel=0.005)
    assert float(layers.depth[0, 64, 64]) == pytest.approx(2.3, abs=2e-3)
    torch.testing.assert_close(layers.normals[0, :, 64, 64], torch.tensor([1.0, 0.0, 0.0]), atol=0.03, rtol=0)


@pytest.mark.parametrize("kind", SOLIDS)
def test_truth_agrees_with_itself(kind: str) -> None:
    drawn = draw_views(seen(kind, [20.0, 200.0]), 96)
    mask = drawn.mask
    assert mask.float().mean() > 0.08
    assert not mask[:, 0].any()
    assert not mask[:, :, -1].any()
    assert torch.equal(mask, drawn.parts > 0)
    assert torch.equal(mask, drawn.depth > 0)
    lengths = drawn.normals.norm(dim=1)
    assert torch.allclose(lengths, mask.float(), atol=1e-3)
    # Outside silhouettes, what is seen faces the camera.
    inner = max_pool2d(-mask[:, None].float(), 3, 1, 1)[:, 0] == -1
    _, towards = rays(cameras([20.0, 200.0]), 96)
    facing = -torch.einsum("bchw,bhwc->bhw", drawn.normals, towards)
    assert (facing[inner] > -0.1).float().mean() > 0.97


@pytest.mark.parametrize("kind", ["car", "mug", "bird"])
def test_surfaces_seen_from_one_side_fit_the_silhouettes_of_the_others(kind: str) -> None:
    views = seen(kind, [0.0, 90.0, 180.0, 270.0])
    drawn, c = draw_views(views, 96), cameras_of(views)
    origin, towards = rays(c, 96)
    along = drawn.depth[0] / -(towards[0] @ drawn.matrices[0, :3, 2])
    points = (origin[0] + along[..., None] * towards[0])[drawn.mask[0]]
    at, depth = project(c, points)
    near = max_pool2d(drawn.mask[:, None].float(), 3, 1, 1)[:, 0] > 0
    nearest = -max_pool2d(-drawn.depth.masked_fill(~drawn.mask, 9.0)[:, None], 3, 1, 1)[:, 0]
    for view in range(4):
        column, row = (at[view] * 96).long().unbind(1)
        assert near[view, row, column].float().mean() > 0.995
        # Nothing stands before the surface that the other camera sees.
        free = drawn.mask[view, row, column]
        assert (depth[view] > nearest[view, row, column] - 0.05)[free].float().mean() > 0.98


@pytest.mark.parametrize("kind", FRONTED)
def test_fronts_differ_from_backs(kind: str) -> None:
    front, back = draw_views(seen(kind, [20.0, 200.0], 5.0), SIZE).parts
    classes = [torch.bincount(side.flatten(), minlength=5).float() for side in (front, back)]
    assert (classes[0] - classes[1]).abs().sum() > 12


def test_eyes_are_only_in_front() -> None:
    for kind in ("robot", "fish", "bird"):
        front, back = draw_views(seen(kind, [0.0, 180.0], 0.0), SIZE).parts
        eyes = 1 + Role.DETAIL
        assert (front[SIZE // 8 :] == eyes).sum() > 2 * (back == eyes).sum()


def test_round_things_look_alike_from_all_sides() -> None:
    front, *others = draw_views(seen("cylinder", [0.0, 77.0, 180.0, 300.0]), SIZE).pixels
    assert all((other - front).abs().max() < 0.02 for other in others)


def test_colours_are_those_of_the_identity() -> None:
    layers = render(model_of([solid("capsule")]), cameras(0.0), SIZE)
    middle, top = layers.colour[0, :, SIZE // 2, SIZE // 2], layers.colour[0, :, SIZE // 4 + 2, SIZE // 2]
    names = list(COLOURS)
    assert names[int((palette() - middle).norm(dim=1).argmin())] == "red"
    assert names[int((palette() - top).norm(dim=1).argmin())] == "blue"


@pytest.mark.parametrize("pattern", ["striped", "dotted", "checkered"])
@pytest.mark.parametrize("kind", ["cube", "ball", "ring"])
def test_patterns_bring_in_the_accent(kind: str, pattern: str) -> None:
    plain, marked = (draw_views(seen(kind, pattern=one), SIZE) for one in ("plain", pattern))
    assert torch.equal(plain.mask, marked.mask)
    assert torch.equal(plain.parts, marked.parts)
    main = plain.parts == 1
    changed = ((plain.pixels - marked.pixels).abs().amax(1) > 0.3)[main].float().mean()
    assert 0.12 < changed < 0.75


def test_backdrops_are_behind_and_shadows_on_them() -> None:
    bare, placed = (draw_views([replace(seen("cube")[0], backdrop=Backdrop(kind))], SIZE) for kind in ("paper", "snow"))
    inner = max_pool2d(-bare.mask[:, None].float(), 5, 1, 2)[:, 0] == -1
    assert torch.equal(bare.pixels.permute(0, 2, 3, 1)[inner], placed.pixels.permute(0, 2, 3, 1)[inner])
    layers = render(model_of([solid("cube")]), cameras(30.0), SIZE)
    assert layers.shade.min() < 0.75
    assert (layers.shade[0, 0, : SIZE // 4] == 1).all()


def test_a_batch_is_its_singles_and_a_seed_its_picture() -> None:
    views = [*sample_views(rng(3), 2, kind="car"), *sample_views(rng(4), 2), sample_view(rng(5))]
    together = draw_views(views, 32)
    for row, view in enumerate(views):
        alone = draw_views([view], 32)
        torch.testing.assert_close(alone.pixels[0], together.pixels[row], atol=1e-4, rtol=0)
        assert torch.equal(alone.parts[0], together.parts[row])
    assert views[0] == sample_views(rng(3), 2, kind="car")[0]


# Gradients


def model_with(kind: str, shape: Tensor, colours: Tensor) -> Model:
    return replace(model_of([solid(kind, "checkered")]), shape=shape, colours=colours)


@pytest.mark.parametrize("kind", SOLIDS)
def test_gradients_reach_every_number_and_are_finite(kind: str) -> None:
    model = model_of([solid(kind, "dotted", (0.3, -0.2, 0.1, 0.5, -0.4, 0.2))])
    leaves = [one.clone().requires_grad_() for one in (model.shape, model.colours, model.period, model.angle)]
    c = cameras(35.0, 15.0)
    numbers = [one.clone().requires_grad_() for one in (c.azimuth, c.elevation, c.distance, c.fov)]
    layers = render(replace(model, shape=leaves[0], colours=leaves[1], period=leaves[2], angle=leaves[3]),
                    Cameras(*numbers), 32)  # fmt: skip
    weights = torch.rand(layers.colour.shape, generator=torch.Generator().manual_seed(1))
    loss = (layers.over(weights) * weights).sum() + layers.depth.sum() + layers.normals.sum()
    gradients = torch.autograd.grad(loss, [*leaves, *numbers])
    assert all(torch.isfinite(one).all() for one in gradients)
    assert all((one != 0).any() for one in gradients)


@pytest.mark.parametrize(("kind", "index"), [("ball", 0), ("cube", 2), ("cone", 1), ("mug", 0), ("rocket", 0)])
def test_the_area_grows_with_the_shape_as_its_gradient_says(kind: str, index: int) -> None:
    def area(value: Tensor) -> Tensor:
        shape = torch.zeros(1, 6).index_copy(1, torch.tensor([index]), value[None, None])
        return render(model_with(kind, shape, torch.rand(1, 4, 3)), cameras(30.0), 96).cover.sum()

    at = torch.tensor(0.1, requires_grad=True)
    (slope,) = torch.autograd.grad(area(at), at)
    with torch.no_grad():
        measured = (area(at + 0.2) - area(at - 0.2)) / 0.4
    assert float(slope) == pytest.approx(float(measured), rel=0.08)


def test_the_depth_follows_the_camera_as_its_gradient_says() -> None:
    far = torch.tensor([3.0], requires_grad=True)
    c = cameras(0.0, 0.0, 3.0)
    layers = render(model_of([solid("ball")]), Cameras(c.azimuth, c.elevation, far, c.fov), 32)
    (slope,) = torch.autograd.grad(layers.depth[0, 16, 16], far)
    assert float(slope) == pytest.approx(1.0, abs=0.02)


def test_a_pose_is_found_again_by_descent() -> None:
    model, c = model_of([solid("car")]), cameras(40.0, 15.0)
    with torch.no_grad():
        wanted = render(model, c, 32)
    turned = torch.tensor([62.0], requires_grad=True)
    optimiser = torch.optim.Adam([turned], lr=3.0)
    for _ in range(25):
        layers = render(model, Cameras(turned, c.elevation, c.distance, c.fov), 32)
        loss = (layers.cover - wanted.cover).square().sum() + (layers.colour - wanted.colour).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert turned.item() == pytest.approx(40.0, abs=4.0)


# Words and choices


def test_solids_have_words_and_the_right_split() -> None:
    assert {*SOLIDS} <= {*WORDS}
    source = rng()
    for split in ("train", "test"):
        for _ in range(40):
            one = sample_solid(source, split)
            assert split_of(one.kind, one.main, one.accent, one.pattern) == split


@given(st.integers(0, 2**32 - 1), st.sampled_from(["full", "brief", "kind"]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_view_captions_use_known_words(seed: int, detail: str, word: bool) -> None:
    source = rng(seed)
    view = sample_view(source)
    text = view_caption(view, source, detail, word)  # type: ignore[arg-type]
    assert not set(re.findall(r"[a-z0-9-]+", text)) - {*WORDS}
    assert text.isascii()
    assert text == text.lower()
    assert len(TOKENS(text).input_ids) <= 77
    assert not re.search(r"\ba [aeio]|\ban [^aeio]|  |,,| ,", text)
    assert word == bool(re.search(rf"\b{view.word} view|seen from the", text))


TOKENS = clip_tokenizer()


def test_photographers_prefer_fronts() -> None:
    source = rng()
    assert all(sample_view(source, front=1.0).word in ("front", "overhead") for _ in range(40))
    assert len({sample_view(source).word for _ in range(40)}) >= 3


@pytest.mark.parametrize(
    ("ask", "word"),
    [
        (lambda: sample_views(rng(), kind="cubes"), "cube"),
        (lambda: sample_views(rng(), split="dev"), "dev"),
        (lambda: sample_views(rng(), backdrop="beech"), "beach"),
        (lambda: cameras(0.0, 0.0, -1.0), "positive"),
        (lambda: cameras(0.0, 0.0, 2.0, 180.0), "180"),
        (lambda: draw_views([]), "at least one"),
        (lambda: model_of([solid("cube"), solid("ball")]), "2 kinds"),
    ],
)
def test_bad_input_gets_a_sentence(ask: object, word: str) -> None:
    with pytest.raises(CapriccioError, match=word):
        ask()  # type: ignore[operator]


def test_orbits_go_all_the_way_round() -> None:
    assert orbit(3, 10.0).azimuth.tolist() == [10.0, 130.0, 250.0]
