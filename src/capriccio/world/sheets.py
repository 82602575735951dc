"""Contact sheets of the world, for people who want to see what the models see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from capriccio.world.diet import draw_diet
from capriccio.world.draw import draw, draw_panels
from capriccio.world.graph import (
    ACCESSORIES,
    BACKDROPS,
    COLOURS,
    FEET,
    KINDS,
    STYLES,
    SceneGraph,
    Thing,
    sample_backdrop,
    sample_identity,
    sample_panels,
    sample_scene,
)


def sheet(pixels: Tensor, columns: int) -> Image.Image:
    """Arrange pictures (B, 3, H, W) in [-1, 1] in rows of ``columns``."""
    count, _, height, width = pixels.shape
    rows = -(-count // columns)
    canvas = torch.ones(3, rows * height, columns * width)
    for index, picture in enumerate(pixels.cpu()):
        row, column = divmod(index, columns)
        canvas[:, row * height : (row + 1) * height, column * width : (column + 1) * width] = picture
    return Image.fromarray(((canvas + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def portrait(
    rng: np.random.Generator,
    kind: str,
    backdrop: str,
    style: str = "shaded",
    accessory: str | None = None,
    colour: str | None = None,
) -> SceneGraph:
    """One thing of a kind, large and in the middle, before a backdrop."""
    size = 0.66
    thing = Thing(sample_identity(rng, kind=kind), 0.5, 0.93 - FEET[kind] * size / 2, size, accessory, colour)
    return SceneGraph((thing,), sample_backdrop(rng, backdrop), style)


def kinds(rng: np.random.Generator) -> Image.Image:
    """Every kind, six individuals each."""
    scenes = [portrait(rng, kind, BACKDROPS[(row + 3 * at) % 10]) for row in range(6) for at, kind in enumerate(KINDS)]
    return sheet(draw(scenes).pixels, len(KINDS))


def backdrops(rng: np.random.Generator) -> Image.Image:
    """Every backdrop, four variations each."""
    scenes = [SceneGraph((), sample_backdrop(rng, kind)) for _ in range(4) for kind in BACKDROPS]
    return sheet(draw(scenes).pixels, len(BACKDROPS))


def styles(rng: np.random.Generator) -> Image.Image:
    """Six scenes in every style."""
    scenes = [sample_scene(rng, 1 + row % 2, style="shaded") for row in range(6)]
    restyled = [SceneGraph(scene.things, scene.backdrop, style) for scene in scenes for style in STYLES]
    return sheet(draw(restyled).pixels, len(STYLES))


def accessories(rng: np.random.Generator) -> Image.Image:
    """Every accessory on every kind."""
    names = list(COLOURS)
    scenes = [
        portrait(rng, kind, BACKDROPS[at % 10], accessory=worn, colour=names[(at + row) % 10])
        for row, worn in enumerate(ACCESSORIES)
        for at, kind in enumerate(KINDS)
    ]
    return sheet(draw(scenes).pixels, len(KINDS))


def scenes(rng: np.random.Generator) -> Image.Image:
    """Random scenes of one to four subjects."""
    return sheet(draw([sample_scene(rng, 1 + at % 4) for at in range(40)]).pixels, 8)


def panels(rng: np.random.Generator) -> Image.Image:
    """Random pairs of panels."""
    return sheet(draw_panels([sample_panels(rng) for _ in range(16)]).pixels, 4)


def diet(rng: np.random.Generator) -> Image.Image:
    """What the VAE eats beside scenes."""
    return sheet(draw_diet(rng, 40, 128), 8)


SHEETS = (kinds, backdrops, styles, accessories, scenes, panels, diet)


def write_sheets(folder: Path, seed: int = 0) -> list[Path]:
    """Write every contact sheet as ``world-<name>.png`` and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for maker in SHEETS:
        paths.append(folder / f"world-{maker.__name__}.png")
        maker(np.random.default_rng(seed)).save(paths[-1])
    return paths
