"""Contact sheets of the world, for people who want to see what the models see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from capriccio.pictures import grid
from capriccio.world.cameras import orbit
from capriccio.world.casting import (
    flat,
    sample_garment,
    sample_people,
    sample_people_panels,
    sample_tryon,
    wearing,
)
from capriccio.world.changes import CHANGES
from capriccio.world.controls import poses, segment_colours
from capriccio.world.diet import draw_diet
from capriccio.world.draw import draw, draw_panels
from capriccio.world.edits import draw_edits, sample_edit
from capriccio.world.graph import (
    ACCESSORIES,
    BACKDROPS,
    COLOURS,
    FEET,
    KINDS,
    STYLES,
    Backdrop,
    Garment,
    SceneGraph,
    Thing,
    sample_backdrop,
    sample_identity,
    sample_panels,
    sample_scene,
)
from capriccio.world.inks import NAMES, palette
from capriccio.world.interleaved import Interleaved, draw_interleaved, sample_interleaved
from capriccio.world.people import GARMENTS, slot_of
from capriccio.world.solids import FRONTED, SOLIDS, sample_solid
from capriccio.world.tryon import tryon as truth_of_tryon
from capriccio.world.views import PAPER, Sights, View, draw_views, views_of


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


def people(rng: np.random.Generator) -> Image.Image:
    """Busts, half figures, whole figures, groups, and people in every style."""
    views = [view for view in ("bust", "bust", "half", "whole", "whole") for _ in range(8)]
    scenes = [sample_people(rng, style="shaded", view=view) for view in views]
    scenes += [sample_people(rng, 2 + at % 2, style="shaded") for at in range(4)]
    scenes += [sample_people(rng, style="shaded", things=1) for _ in range(4)]
    scenes += [sample_people(rng, style=style, view="bust" if at % 2 else "whole") for at, style in enumerate(STYLES)]
    return sheet(draw(scenes).pixels, 8)


def persons(rng: np.random.Generator) -> Image.Image:
    """Five individuals, each met eight times: in other places, poses, moods and clothes."""
    rows = [sample_people_panels(rng, 1, 8, style="shaded").scenes for _ in range(5)]
    return sheet(draw([scene for row in rows for scene in row]).pixels, 8)


def garments(rng: np.random.Generator) -> Image.Image:
    """Every garment laid flat and worn, three times."""
    rows = []
    for _ in range(3):
        chosen = [sample_garment(rng, kind=kind) for kind in GARMENTS]
        models = [sample_tryon(rng, slot=slot_of(garment.kind))[0] for garment in chosen]
        rows += [flat(garment) for garment in chosen]
        rows += [_worn(model, garment) for model, garment in zip(models, chosen, strict=True)]
    return sheet(draw(rows).pixels, len(GARMENTS))


def _worn(scene: SceneGraph, garment: Garment) -> SceneGraph:
    return replace(scene, people=(wearing(scene.people[0], garment),))


def tryon(rng: np.random.Generator) -> Image.Image:
    """What try-on is told, row by row: garment, person, agnostic picture, mask, warped garment, body, parts, pose."""
    asked = [sample_tryon(rng, slot=slot) for slot in ("upper", "upper", "dress", "lower", "hat", "shoes")]
    known = truth_of_tryon([scene for scene, _ in asked], [garment for _, garment in asked])
    classes = segment_colours()
    worn = [_worn(scene, garment) for scene, garment in asked]
    pictures = (
        known.garment,
        known.person,
        known.agnostic,
        known.mask.expand(-1, 3, -1, -1) * 2 - 1,
        known.warped(),
        classes[known.body].permute(0, 3, 1, 2) * 2 - 1,
        classes[known.parts].permute(0, 3, 1, 2) * 2 - 1,
        poses(worn) * 2 - 1,
    )
    return sheet(torch.stack(pictures, 1).flatten(0, 1), len(pictures))


def solids(rng: np.random.Generator) -> Image.Image:
    """Four of every plain solid, every other one from four sides, and below what is true of some.

    That is: the picture, normals, depth and parts.
    """
    seen = [view for at, kind in enumerate(SOLIDS) for view in _four(rng, kind, 2 * at / len(SOLIDS) - 1)]
    placed = [views_of(sample_solid(rng, kind=kind), orbit(1, turned, 16.0), sample_backdrop(rng, place))[0]
              for kind, place, turned in _PLACED]  # fmt: skip
    truth = draw_views(placed)
    cells = torch.stack([truth.pixels, *_maps(truth)], 1).flatten(0, 1)
    return sheet(torch.cat([draw_views(seen).pixels, cells]), 8)


def edits(rng: np.random.Generator) -> Image.Image:
    """Edits of every sort: before, after, and what changed."""
    drawn = [sample_edit(rng, CHANGES[at % len(CHANGES)]) for at in range(33)]
    pairs = draw_edits(drawn)
    kept = pairs.after.pixels.where(pairs.mask, pairs.after.pixels * 0.15 + 0.80)
    strips = torch.stack([pairs.before.pixels, pairs.after.pixels, kept], 1)
    return grid([sheet(strip, 3) for strip in strips], 3, [one.instruction for one in drawn], gap=12, text_size=14)


def interleaved(rng: np.random.Generator) -> Image.Image:
    """Sentences with pictures in them, each followed by what it asks for."""
    told = [sample_interleaved(rng, 1 + at % 2, 1 + (at % 6 == 4), white=0.6) for at in range(20)]
    drawn = draw_interleaved(told)
    lines = [
        _line(one, drawn.references.pixels[drawn.owner == row], drawn.targets.pixels[row])
        for row, one in enumerate(told)
    ]
    return grid(lines, 2, gap=16)


_PLACED = (("car", "beach", 40.0), ("robot", "night", 20.0), ("boat", "sunset", 300.0), ("house", "snow", 35.0))
_LINE = 520  # pixels that a sentence may take before it goes on below
_PARTS = ("white", "teal", "orange", "black", "yellow")


def _four(rng: np.random.Generator, kind: str, hue: float) -> list[View]:
    """Four individuals of a kind without a front, or four sides of one with a front, on paper of a hue."""
    paper, rig = Backdrop(PAPER, (0.0, 0.2, 0.1, hue)), orbit(4, 30.0, 16.0)
    if kind in FRONTED:
        return [*views_of(sample_solid(rng, kind=kind), rig, paper)]
    return [views_of(sample_solid(rng, kind=kind), rig, paper)[at] for at in range(4)]


def _maps(truth: Sights) -> tuple[Tensor, ...]:
    """Normals, depth and parts as pictures in [-1, 1], white where nothing is."""
    far = truth.depth.amax((1, 2), keepdim=True)
    depth = 1 - (far - truth.depth)[:, None].expand(-1, 3, -1, -1) * 1.4
    colours = palette()[[NAMES.index(name) for name in _PARTS]]
    maps = (truth.normals, depth.clamp(-1, 1), colours[truth.parts].permute(0, 3, 1, 2) * 2 - 1)
    return tuple(one.masked_fill(~truth.mask[:, None], 1.0) for one in maps)


def _line(one: Interleaved, references: Tensor, target: Tensor) -> Image.Image:
    """A sentence with its pictures in it, and the scene it asks for at its end."""
    font, small, thumb = ImageFont.load_default(17), iter(references), 60
    placed, left, top = [], 0, 0
    for piece in one.pieces:
        for word in piece.split() if isinstance(piece, str) else [next(small)]:
            wide = int(font.getlength(word)) if isinstance(word, str) else thumb
            left, top = (0, top + thumb + 6) if left + wide > _LINE else (left, top)
            placed.append((left, top, word))
            left += wide + 7
    line = Image.new("RGB", (_LINE + 150, 128), "white")
    brush, above = ImageDraw.Draw(line), (128 - top - thumb) // 2
    for left, top, word in placed:
        if isinstance(word, str):
            brush.text((left, above + top + thumb // 2), word, "#333333", font, anchor="lm")
        else:
            line.paste(sheet(word[None], 1).resize((thumb, thumb)), (left, above + top))
            brush.rectangle((left, above + top, left + thumb - 1, above + top + thumb - 1), outline="#cccccc")
    line.paste(sheet(target[None], 1), (_LINE + 22, 0))
    return line


SHEETS = (
    kinds, backdrops, styles, accessories, scenes, panels, diet,
    people, persons, garments, tryon, solids, edits, interleaved,
)  # fmt: skip


def write_sheets(folder: Path, seed: int = 0) -> list[Path]:
    """Write every contact sheet as ``world-<name>.jpg`` and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for maker in SHEETS:
        paths.append(folder / f"world-{maker.__name__}.jpg")
        maker(np.random.default_rng(seed)).save(paths[-1], quality=88, subsampling=0)
    return paths
