"""The studio: opening, planning, painting, progress, cancelling, saving, painting again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image

import capriccio
from capriccio import Cancelled, CapriccioError, Scene, Studio, Subject, pictures
from capriccio.backbones.flux import FluxBackbone
from capriccio.sampling import Progress
from capriccio.studio import Painting

SMALL: dict[str, Any] = {"width": 48, "height": 32, "num_inference_steps": 3, "max_sequence_length": 24}


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio(tiny.flux())


def same(one: Painting, other: Painting) -> bool:
    pairs = zip(one.images, other.images, strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def test_a_folder_is_opened_and_painted_with(flux_folder: Path, controlnet_folder: Path) -> None:
    studio = Studio.open(flux_folder, device="cpu", inpainting=controlnet_folder)
    assert studio.backbone.engines == ("controlnet", "hold")
    assert studio.paint(Scene("a mug", **SMALL)).images[0].size == (48, 32)


def test_it_is_the_front_door() -> None:
    assert capriccio.Studio is Studio


def test_a_painting_knows_what_it_is(studio: Studio) -> None:
    scene = Scene("a mug", seeds=(5, 6), **SMALL)
    painting = studio.paint(scene)
    assert painting.scene is scene
    assert painting.plan.scene is scene
    assert len(painting.images) == len(painting.canvases) == 2
    assert painting.readings["seconds"] > 0
    assert set(painting.weights) >= {"transformer", "vae", "text_encoder", "text_encoder_2"}


def test_scenes_painted_together_come_back_in_order(studio: Studio) -> None:
    scenes = [Scene(p, seed=s, **SMALL | {"width": w}) for p, s, w in [("a", 1, 48), ("b", 2, 32), ("c", 3, 48)]]
    together = studio.paint_all(scenes)
    assert [painting.scene for painting in together] == scenes
    for painting, scene in zip(together, scenes, strict=True):
        one, other = (np.asarray(p.images[0], int) for p in (painting, studio.paint(scene)))
        assert np.abs(one - other).max() <= 1


def test_nothing_is_painted_from_nothing(studio: Studio) -> None:
    assert studio.paint_all([]) == []


def test_progress_and_preview(studio: Studio) -> None:
    told: list[Progress] = []
    scenes = [Scene("a mug", **SMALL), Scene("a mug", **SMALL | {"width": 32})]
    studio.paint_all(scenes, told.append)
    assert [progress.step for progress in told] == [1, 2, 3, 4, 5, 6]
    assert {progress.total for progress in told} == {6}
    assert told[0].preview().size == (48, 32)
    # The last estimate is the picture.
    assert np.array_equal(np.asarray(told[2].preview()), np.asarray(studio.paint(scenes[0]).images[0]))


def test_looking_changes_nothing(studio: Studio) -> None:
    scene = Scene("a mug", **SMALL)
    assert same(studio.paint(scene), studio.paint(scene, lambda progress: progress.preview() is not None))


def test_cancelling_leaves_everything_clean(studio: Studio, subject_picture: Image.Image) -> None:
    scene = Scene("a {mug}", Subject(subject_picture, name="mug"), **SMALL)
    before, first = list(studio.backbone.base.attn_processors.values()), studio.paint(scene)
    with pytest.raises(Cancelled):
        studio.paint(scene, lambda progress: progress.step < 2)

    def stop(progress: Progress) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        studio.paint(scene, stop)
    after = list(studio.backbone.base.attn_processors.values())
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert same(first, studio.paint(scene))


def test_a_picture_carries_its_recipe(studio: Studio, tmp_path: Path, subject_picture: Image.Image) -> None:
    scene = Scene("a {mug}", Subject(subject_picture, name="mug"), seed=7, **SMALL)
    painting = studio.paint(scene)
    (place,) = painting.save(tmp_path / "mug.png")
    recipe = pictures.read_recipe(place)
    assert recipe["versions"]["capriccio"] == capriccio.__version__
    assert recipe["weights"] == dict(painting.weights)
    assert any("diptych" in line for line in recipe["plan"])
    assert same(studio.paint(Scene.load(place)), painting)


def test_each_picture_of_several_is_painted_again_by_itself(studio: Studio, tmp_path: Path) -> None:
    painting = studio.paint(Scene("a mug", seeds=(5, 6), **SMALL))
    places = painting.save(tmp_path / "mug.png")
    assert [place.name for place in places] == ["mug-5.png", "mug-6.png"]
    again = studio.paint(Scene.load(places[1]))
    assert np.abs(np.asarray(again.images[0], int) - np.asarray(painting.images[1], int)).max() <= 1


def test_equal_seeds_are_saved_apart(studio: Studio, tmp_path: Path) -> None:
    places = studio.paint(Scene("a mug", seeds=(5, 5), **SMALL)).save(tmp_path / "mug.png")
    assert len(set(places)) == 2


def test_a_recipe_can_be_left_out(studio: Studio, tmp_path: Path) -> None:
    (place,) = studio.paint(Scene("a mug", **SMALL)).save(tmp_path / "mug.png", recipe=False)
    with pytest.raises(CapriccioError, match="carries no recipe"):
        pictures.read_recipe(place)


def test_too_little_memory_is_a_sentence(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capriccio.studio._free_memory", lambda: 1000)
    with pytest.raises(CapriccioError, match="too little memory"):
        studio.paint(Scene("a mug", **SMALL))


def test_running_out_of_memory_is_a_sentence(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **settings: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(studio.backbone, "predict", full)
    with pytest.raises(CapriccioError, match="--memory offload"):
        studio.paint(Scene("a mug", **SMALL))


def test_a_backbone_of_ones_own_is_taken() -> None:
    backbone = FluxBackbone(tiny.flux(), name="mine")
    assert Studio(backbone).plan(Scene("a mug", **SMALL)).backbone == "mine"


@pytest.mark.needs_miniature
def test_the_miniature_paints() -> None:
    painting = Studio.open("miniature").paint(Scene("a red mug in the snow", num_inference_steps=4))
    assert painting.images[0].size == (128, 128)
    assert np.asarray(painting.images[0]).std() > 5
