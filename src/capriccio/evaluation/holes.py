"""Does an inpainter paint what it is told into a hole, and leave alone what it is not? Read from its pictures.

>>> from capriccio.evaluation.holes import new_top
>>> (row,) = new_top(Studio.open("miniature"), engine="fill")
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from capriccio.evaluation.metrics import to_pictures, to_pixels
from capriccio.evaluation.targets import (
    Told,
    captions_of,
    paint_in_batches,
    people_right,
    people_scenes,
    person_caption,
    rate,
    scenes,
    subjects_right,
)
from capriccio.scene import Edit, Scene
from capriccio.studio import Studio
from capriccio.training.trainer import Row
from capriccio.world.casting import wearing
from capriccio.world.draw import draw
from capriccio.world.graph import COLOURS, Garment, SceneGraph
from capriccio.world.people import Sitter, top_of
from capriccio.world.windows import garment_part

MARGIN = 4
"""Pixels that a hole is wider at each side than what it hides."""


@dataclass(frozen=True)
class Holes:
    """Held-out pictures with a hole each, and what is wanted there.

    Attributes:
        wanted: What each picture shows when it is done.
        texts: A sentence on each.
        pixels: What there was, (B, 3, H, W) in [-1, 1].
        masks: What is to be hidden, (B, H, W) boolean; the hole is a box round it.
    """

    wanted: list[SceneGraph]
    texts: list[str]
    pixels: Tensor
    masks: Tensor


def around_subjects(count: int) -> Holes:
    """Scenes of one subject, which is hidden; sentences tell of another one in its place."""
    given = scenes(count, seed=8)
    wanted = [replace(new, backdrop=old.backdrop) for new, old in zip(scenes(count, seed=10), given, strict=True)]
    drawing = draw(given)
    return Holes(wanted, captions_of(wanted), drawing.pixels, drawing.subjects.any(1))


def around_tops(count: int) -> Holes:
    """Scenes of one person, whose top is hidden; sentences tell of the same person in a top of another colour."""
    given = people_scenes(count, seed=8)
    wanted = [_recoloured(graph, np.random.default_rng([8, number])) for number, graph in enumerate(given)]
    drawing = draw(given)
    masks = [_worn_on_top(graph, parts) for graph, parts in zip(given, drawing.parts, strict=True)]
    texts = [person_caption(graph, number) for number, graph in enumerate(wanted)]
    return Holes(wanted, texts, drawing.pixels, torch.stack(masks))


def new_subject(
    studio: Studio, count: int = 64, told: Told = lambda pictures: None, model: str = "fill", engine: str = "fill"
) -> list[Row]:
    """Kind and main colour of a new subject right, painted into the hole of another.

    Args:
        studio: Of a model that keeps what it is not to paint.
        count: How many pictures.
        told: Is told how many pictures were finished.
        model: What the row is named after.
        engine: How known parts are kept, one of plain inpainting's.
    """
    holes = around_subjects(count)
    pixels = to_pixels(repaint(studio, holes, engine, told))
    return [Row(f"{model}_new_subject", rate(subjects_right(holes.wanted, pixels)), 0.85, 0.98)]


def new_top(
    studio: Studio, count: int = 48, told: Told = lambda pictures: None, model: str = "fill", engine: str = "fill"
) -> list[Row]:
    """The new colour of a top right, and the person who wears it still of the kind and hair that are given.

    The arguments are those of ``new_subject``.
    """
    holes = around_tops(count)
    pixels = to_pixels(repaint(studio, holes, engine, told))
    return [Row(f"{model}_new_top", rate(people_right(holes.wanted, pixels)), 0.85, 0.98)]


def rows(studio: Studio, model: str, engine: str) -> list[Row]:
    """Both rows of an inpainter."""
    return [row for part in (new_subject, new_top) for row in part(studio, model=model, engine=engine)]


def repaint(studio: Studio, holes: Holes, engine: str, told: Told = lambda pictures: None) -> list[Image.Image]:
    """Paint what is in the holes anew; seeds are the pictures' numbers."""
    asked = [
        Scene(
            text,
            [Edit(picture, hole, by="inpainting", options={"engine": engine})],
            width=picture.width,
            height=picture.height,
            seed=number,
        )
        for number, (text, picture, hole) in enumerate(
            zip(holes.texts, to_pictures(holes.pixels), boxes(holes.masks), strict=True)
        )
    ]
    return paint_in_batches(studio, asked, told)


def boxes(masks: Tensor) -> list[Image.Image]:
    """``box_round`` each of these masks (B, H, W)."""
    return [box_round(mask) for mask in masks]


def box_round(mask: Tensor) -> Image.Image:
    """The box round a mask (H, W), ``MARGIN`` wider at each side, as a picture that is white inside."""
    shown = Image.fromarray(mask.numpy().astype(np.uint8) * 255)
    left, top, right, bottom = shown.getbbox() or (0, 0, *shown.size)
    box = Image.new("L", shown.size)
    box.paste(255, (left - MARGIN, top - MARGIN, right + MARGIN, bottom + MARGIN))
    return box


def _recoloured(graph: SceneGraph, rng: np.random.Generator) -> SceneGraph:
    """The same person in a top whose main colour is another one."""
    top = _top(graph.people[0])
    colours = [name for name in COLOURS if name not in (top.main, top.accent)]
    return replace(graph, people=(wearing(graph.people[0], replace(top, main=str(rng.choice(colours)))),))


def _worn_on_top(graph: SceneGraph, parts: Tensor) -> Tensor:
    """Where a part map (H, W) shows the top of the one person."""
    part = garment_part(_top(graph.people[0]).kind)
    return (parts == part) | (parts == part + 1)


def _top(sitter: Sitter) -> Garment:
    top = top_of(sitter)
    assert top is not None  # everybody of the world wears one
    return top
