"""Are things where they were asked for? Scenes of the world painted with regions and without, read place by place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from capriccio.evaluation import bleeding
from capriccio.evaluation.metrics import to_pixels
from capriccio.evaluation.statistics import Interval, mean_interval, paired_gain
from capriccio.evaluation.targets import scenes
from capriccio.perception.reader import read
from capriccio.scene import Companion, Region, Scene
from capriccio.studio import Studio
from capriccio.world.captions import backdrop_phrase, caption, regional_captions
from capriccio.world.graph import SceneGraph, Thing

Box = tuple[float, float, float, float]
Told = Callable[[int], object]
BATCH = 8
ROOM = 1.3
"""Sides of the window that a thing is read from, in its own: with more of them, more of its neighbours is cut off."""


def boxes_of(graph: SceneGraph) -> list[Box]:
    """Return a box for each thing, in fractions of the picture: around it, and half way to its neighbours at most."""
    return [_box(thing, [other for other in graph.things if other is not thing]) for thing in graph.things]


def _box(thing: Thing, others: Sequence[Thing]) -> Box:
    reach = 0.66 * thing.size
    left, top, right, bottom = thing.x - reach, thing.y - reach, thing.x + reach, thing.y + reach
    for other in others:
        if abs(other.x - thing.x) >= abs(other.y - thing.y):
            middle = (other.x + thing.x) / 2
            left, right = (max(left, middle), right) if other.x < thing.x else (left, min(right, middle))
        else:
            middle = (other.y + thing.y) / 2
            top, bottom = (max(top, middle), bottom) if other.y < thing.y else (top, min(bottom, middle))
    return max(left, 0.0), max(top, 0.0), min(right, 1.0), min(bottom, 1.0)


def view(picture: Tensor, thing: Thing, box: Box) -> Tensor:
    """Return the place of a thing as a picture of one thing of usual size, (3, 128, 128).

    A window of `ROOM` times its size is enlarged; what lies outside its box, its neighbours', is not seen: there is the
    median colour of the rim of what is seen.

    Args:
        picture: (3, 128, 128) in [-1, 1].
        thing: Where it was asked for.
        box: Its region.
    """
    side = picture.shape[-1]
    span = round(ROOM * thing.size * side)
    left, top = round(thing.x * side - span / 2), round(thing.y * side - span / 2)
    x0, y0, x1, y1 = (round(edge * side) for edge in box)
    x0, y0, x1, y1 = max(x0, left), max(y0, top), min(x1, left + span), min(y1, top + span)
    own = picture[:, y0:y1, x0:x1]
    rim = torch.cat([own[:, 0], own[:, -1], own[:, :, 0], own[:, :, -1]], dim=1)
    window = rim.median(dim=1).values[:, None, None].repeat(1, span, span)
    window[:, y0 - top : y1 - top, x0 - left : x1 - left] = own
    return F.interpolate(window[None], (128, 128), mode="bilinear")[0]


def read_places(graphs: Sequence[SceneGraph], pixels: Tensor) -> list[list[tuple[str, str]]]:
    """Return kind and main colour that are read at the place of each thing of each scene.

    Args:
        graphs: What was asked for.
        pixels: (B, 3, 128, 128) in [-1, 1].
    """
    views = [
        view(picture, thing, box)
        for graph, picture in zip(graphs, pixels, strict=True)
        for thing, box in zip(graph.things, boxes_of(graph), strict=True)
    ]
    reading = read(torch.stack(views))
    seen = iter(zip(reading.kind, reading.main, strict=True))
    return [[next(seen) for _ in graph.things] for graph in graphs]


def right_places(graph: SceneGraph, seen: Sequence[tuple[str, str]]) -> float:
    """Return the share of things whose kind and main colour are read at their place."""
    wanted = [(thing.identity.kind, thing.identity.main) for thing in graph.things]
    return float(np.mean([one == other for one, other in zip(wanted, seen, strict=True)]))


def bled(graph: SceneGraph, seen: Sequence[tuple[str, str]]) -> float:
    """Return the share of places at which a kind or a main colour is read that belongs to another place alone."""
    wanted = [(thing.identity.kind, thing.identity.main) for thing in graph.things]
    looks = [dict(zip(("kind", "colour"), names, strict=True)) for names in wanted]
    read_there = [dict(zip(("kind", "colour"), names, strict=True)) for names in seen]
    found = [
        any(bleeding.bled(there, own, other) for other in looks if other is not own)
        for there, own in zip(read_there, looks, strict=True)
    ]
    return float(np.mean(found))


def scene_of(graph: SceneGraph, number: int, regional: bool, options: dict[str, Any], placed: bool = True) -> Scene:
    """Return the request for a picture of a scene graph: its caption, and a region for each thing or none.

    A caption says where things are; not ``placed``, the sentence only names them, and where they are the regions say.
    """
    rng = np.random.default_rng([5, number])
    text = caption(graph, rng, "full")
    place, phrases = backdrop_phrase(graph.backdrop.kind, None), regional_captions(graph, rng)
    if not placed:
        text = f"{' and '.join(phrases)} {place}"
    prompts = [f"{phrase} {place}" for phrase in phrases]
    given = {"background": text} | options
    boxes = boxes_of(graph)
    parts = [Region(prompt, box=box, options=given) for prompt, box in zip(prompts, boxes, strict=True)]
    return Scene(text, parts if regional else [], width=128, height=128, seed=number)


def paint_graphs(
    studio: Studio,
    graphs: Sequence[SceneGraph],
    regional: bool,
    options: dict[str, Any] | None = None,
    told: Told = lambda pictures: None,
    beside: Sequence[Companion] = (),
    placed: bool = True,
    **settings: Any,
) -> list[Image.Image]:
    """Paint scene graphs with a region for each thing, or from their captions alone; seeds are their numbers.

    Args:
        studio: Of the miniature.
        graphs: What to paint.
        regional: Whether every thing has a region.
        options: Of the regions.
        told: Is told how many pictures were finished.
        beside: One companion for each graph, such as a LoRA or a control; none if empty.
        placed: Whether the sentences say where things are.
        settings: Of the scenes.
    """
    asked = [scene_of(graph, n, regional, options or {}, placed).but(**settings) for n, graph in enumerate(graphs)]
    if beside:
        asked = [one.but(conditions=[*one.conditions, more]) for one, more in zip(asked, beside, strict=True)]
    painted: list[Image.Image] = []
    for start in range(0, len(asked), BATCH):
        painted += [painting.images[0] for painting in studio.paint_all(asked[start : start + BATCH])]
        told(len(painted) - start)
    return painted


def compare(
    graphs: Sequence[SceneGraph], with_regions: Sequence[Image.Image], without: Sequence[Image.Image]
) -> dict[str, Interval]:
    """Return how often things are right at their place, with regions and without, and how often places bleed.

    Returns:
        ``right``, ``right_without``, ``right_gain``, ``bled``, ``bled_without``, ``bled_gain``; gains are paired over
        the scenes.
    """
    places = [read_places(graphs, to_pixels(list(pictures))) for pictures in (with_regions, without)]
    scores: dict[str, Interval] = {}
    for name, score in (("right", right_places), ("bled", bled)):
        ours, theirs = ([score(g, s) for g, s in zip(graphs, seen, strict=True)] for seen in places)
        scores |= {name: mean_interval(ours), f"{name}_without": mean_interval(theirs)}
        scores[f"{name}_gain"] = paired_gain(ours, theirs)
    return scores


def held_out(count: int, subjects: int, seed: int = 7) -> list[SceneGraph]:
    """Scenes of that many things of the test split, the same for the same seed."""
    return scenes(count, subjects, seed=seed)
