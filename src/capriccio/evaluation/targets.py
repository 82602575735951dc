"""The miniature against its targets: each function measures committed weights on held-out scenes and returns rows.

Captions come from scenes whose combination of kind, colours and pattern was never trained on; what was painted is read
by the reader, whose own error on renders of the same scenes is measured too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count as attempts
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from capriccio.evaluation.metrics import copied, load_clip, load_vae, psnr, reconstruct, retrieval, to_pixels
from capriccio.perception.people_reader import read_people, same_person
from capriccio.perception.reader import read, same_individual
from capriccio.perception.solid_reader import read_solids, same_solid
from capriccio.scene import Lora, Scene
from capriccio.studio import Studio
from capriccio.training.trainer import Row
from capriccio.world.captions import caption, panel_caption
from capriccio.world.casting import VIEWS, sample_people, sample_people_panels
from capriccio.world.draw import draw, draw_panels
from capriccio.world.graph import SceneGraph, Thing, sample_panels, sample_scene
from capriccio.world.people import Sitter, top_of
from capriccio.world.solids import FRONTED
from capriccio.world.views import draw_views, sample_view

Told = Callable[[int], None]
_BATCH = 32


def scenes(count: int, subjects: int = 1, seed: int = 0) -> list[SceneGraph]:
    """Draw held-out shaded scenes without accessories, the same for the same numbers."""
    rng = np.random.default_rng([seed, subjects])
    return [sample_scene(rng, subjects, split="test", style="shaded", accessories=False) for _ in range(count)]


def people_scenes(count: int, seed: int = 0) -> list[SceneGraph]:
    """Draw held-out shaded scenes of one person without accessories: whole, half, bust, and so on."""
    rng = np.random.default_rng([seed, 7])
    views = islice(cycle(VIEWS), count)
    return [sample_people(rng, split="test", style="shaded", view=view, accessories=False) for view in views]


def vae(count: int = 256, model: AutoencoderKL | None = None) -> list[Row]:
    """Reconstruction of held-out scenes of one to four objects, and of one person; by default the miniature's."""
    objects = [graph for subjects in (1, 2, 3, 4) for graph in scenes(count // 4, subjects)]
    model, pixels = model or load_vae(), {"": draw(objects).pixels, "_people": draw(people_scenes(count // 2)).pixels}
    return [
        Row(f"vae_psnr{of}", float(psnr(reconstruct(model, shown), shown).mean()), 30.0, 36.0)
        for of, shown in pixels.items()
    ]


def clip(batches: int = 8) -> list[Row]:
    """Pictures that find their own caption among 64 distinct ones: scenes of one object, and of one person."""
    towers, rows = load_clip(), []
    for of, sample in (("", scenes), ("_people", people_scenes)):
        found = []
        for number in range(batches):
            graphs, texts = _distinct(sample(128, seed=number), 64)
            found.append(retrieval(towers.embed_images(draw(graphs).pixels), towers.embed_texts(texts)))
        rows.append(Row(f"clip_retrieval{of}", rate(torch.cat(found)), 0.90, 0.99))
    return rows


def reader(count: int = 512) -> list[Row]:
    """The reader on real renders: what it cannot read there, it cannot be trusted to read in paintings."""
    graphs = scenes(count)
    reading = read(draw(graphs).pixels)
    identities = [graph.things[0].identity for graph in graphs]
    pairs = {
        "kind": (reading.kind, [identity.kind for identity in identities]),
        "colour": (reading.main, [identity.main for identity in identities]),
        "pattern": (reading.pattern, [identity.pattern for identity in identities]),
        "backdrop": (reading.backdrop, [graph.backdrop.kind for graph in graphs]),
    }
    return [Row(f"reader_{name}", _agreement(*pair), 0.97, 0.995) for name, pair in pairs.items()]


def people_reader(count: int = 384, pairs: int = 192) -> list[Row]:
    """The reader of people on real renders: what paintings are judged by, and two scenes of one person."""
    graphs, rng = people_scenes(count), np.random.default_rng(4)
    names = _people_names(graphs, draw(graphs).pixels)
    sheets = [sample_people_panels(rng, 1, 2, split="test", style="shaded") for _ in range(pairs)]
    first, second = (draw([sheet.scenes[panel] for sheet in sheets]).pixels for panel in (0, 1))
    return [
        *(Row(f"people_reader_{name}", rate(right), 0.97, 0.995) for name, right in names.items()),
        Row("people_reader_same_person", rate(same_person(first, second)), 0.90, 0.97),
    ]


def solid_reader(count: int = 384, pairs: int = 192) -> list[Row]:
    """The reader of solids on real renders: what it is, its colour, its side if it has a front; two views of one."""
    rng = np.random.default_rng(4)
    views = [sample_view(rng, "test") for _ in range(count)]
    reading, solids = read_solids(draw_views(views).pixels), [view.solid for view in views]
    fronted = [row for row, solid in enumerate(solids) if solid.kind in FRONTED]
    again = [replace(sample_view(rng, "test"), solid=solid) for solid in solids[:pairs]]
    first, second = (draw_views(shown).pixels for shown in (views[:pairs], again))
    kinds, colours = [solid.kind for solid in solids], [solid.main for solid in solids]
    seen, sides = [reading.view[row] for row in fronted], [views[row].word for row in fronted]
    return [
        Row("solid_reader_kind", _agreement(reading.kind, kinds), 0.97, 0.995),
        Row("solid_reader_colour", _agreement(reading.main, colours), 0.97, 0.995),
        Row("solid_reader_view", _agreement(seen, sides), 0.90, 0.97),
        Row("solid_reader_same_solid", rate(same_solid(first, second)), 0.90, 0.97),
    ]


def one_subject(studio: Studio, count: int = 128, told: Told = lambda pictures: None, model: str = "flux") -> list[Row]:
    """Kind and main colour right, one subject, and its pattern; ``model`` is what the rows are named after."""
    graphs = scenes(count, seed=1)
    pixels = to_pixels(paint(studio, captions_of(graphs), told=told))
    patterns = [graph.things[0].identity.pattern for graph in graphs]
    return [
        Row(f"{model}_one_subject", rate(subjects_right(graphs, pixels)), 0.85, 0.98),
        Row(f"{model}_pattern", _agreement(read(pixels).pattern, patterns), 0.85, 0.98),
        Row("oracle_one_subject", rate(subjects_right(graphs, draw(graphs).pixels)), 0.97, 0.995),
    ]


def two_subjects(studio: Studio, count: int = 96, told: Told = lambda pictures: None, model: str = "flux") -> list[Row]:
    """Both kinds and main colours right, each on its own side; ``model`` is what the row is named after."""
    graphs = scenes(count, 2)
    pictures = paint(studio, captions_of(graphs), told=told)
    return [
        Row(f"{model}_two_subjects", rate(sides_right(graphs, to_pixels(pictures))), 0.60, 0.95),
        Row("oracle_two_subjects", rate(sides_right(graphs, draw(graphs).pixels)), 0.90, 0.97),
    ]


def people(studio: Studio, count: int = 96, told: Told = lambda pictures: None, model: str = "flux") -> list[Row]:
    """Person, hair colour and main colour of the top right, one person; ``model`` is what the row is named after."""
    graphs = people_scenes(count, seed=1)
    pictures = paint(studio, [person_caption(graph, number) for number, graph in enumerate(graphs)], told=told)
    return [
        Row(f"{model}_one_person", rate(people_right(graphs, to_pixels(pictures))), 0.85, 0.98),
        Row("oracle_one_person", rate(people_right(graphs, draw(graphs).pixels)), 0.97, 0.995),
    ]


def two_panels(studio: Studio, count: int = 64, told: Told = lambda pictures: None, model: str = "flux") -> list[Row]:
    """Two panels of one subject more alike than 95 % of the pairs of different subjects of its kind."""
    rng = np.random.default_rng(2)
    sheets = [sample_panels(rng, 1, 2, split="test", style="shaded") for _ in range(count)]
    texts = [panel_caption(sheet, np.random.default_rng([2, number]), "kind") for number, sheet in enumerate(sheets)]
    painted = to_pixels(paint(studio, texts, width=256, told=told), 256, 128)
    drawn = torch.cat([draw_panels(sheet).pixels for sheet in sheets])
    return [
        Row(f"{model}_panels_identity", rate(panels_alike(painted)), 0.70, 0.95),
        Row("oracle_panels_identity", rate(panels_alike(drawn)), 0.90, 0.97),
    ]


def copy_alarm(count: int = 128) -> list[Row]:
    """The alarm's two errors: silent on renders of the subject in another scene, loud on pastes through the VAE."""
    rng = np.random.default_rng(3)
    sheets = [sample_panels(rng, 1, 2, split="test", style="shaded") for _ in range(count)]
    reference, other = (draw([sheet.scenes[panel] for sheet in sheets]) for panel in (0, 1))
    masks, model = reference.subjects[:, 0], load_vae()
    pasted = torch.stack([_pasted(*one, rng) for one in zip(reference.pixels, masks, other.pixels, strict=True)])
    given, painted, pasted = (reconstruct(model, pixels) for pixels in (reference.pixels, other.pixels, pasted))
    silent, loud = ~copied(given, masks, painted), copied(given, masks, pasted)
    return [
        Row("copy_alarm_silent_on_renders", rate(silent), 0.95, 0.99),
        Row("copy_alarm_loud_on_pastes", rate(loud), 0.95, 0.99),
    ]


def style_read(studio: Studio, style: str, lora: Path, weight: float, count: int = 32) -> float:
    """Return which share of pictures, painted with a LoRA from sentences of no style, is read as of a style."""
    graphs = scenes(count, seed=6)
    asked = [
        Scene(text, Lora(lora, weight=weight), width=128, height=128, seed=number)
        for number, text in enumerate(captions_of(graphs))
    ]
    pictures = [painting.images[0] for painting in studio.paint_all(asked)]
    return _agreement(read(to_pixels(pictures)).style, [style] * count)


def paint(studio: Studio, texts: Sequence[str], *, width: int = 128, told: Told) -> list[Image.Image]:
    """Paint captions a batch at a time; seeds are the numbers of the captions."""
    asked = [Scene(text, width=width, height=128, seed=number) for number, text in enumerate(texts)]
    return paint_in_batches(studio, asked, told)


def paint_in_batches(studio: Studio, asked: Sequence[Scene], told: Told) -> list[Image.Image]:
    """Paint scenes a batch at a time, and tell how many were finished."""
    painted: list[Image.Image] = []
    for start in range(0, len(asked), _BATCH):
        painted += [painting.images[0] for painting in studio.paint_all(asked[start : start + _BATCH])]
        told(len(painted) - start)
    return painted


def captions_of(graphs: Sequence[SceneGraph]) -> list[str]:
    """The sentences on held-out scenes that the targets are painted from, the same for the same places in a list."""
    return [caption(graph, np.random.default_rng([1, number])) for number, graph in enumerate(graphs)]


def person_caption(graph: SceneGraph, number: int) -> str:
    """The first full caption that says whether it is a woman or a man, for some say a person only."""
    texts = (caption(graph, np.random.default_rng([1, number, attempt])) for attempt in attempts())
    return next(text for text in texts if graph.people[0].person.kind in text.split())


def subjects_right(graphs: Sequence[SceneGraph], pixels: Tensor) -> list[bool]:
    """Return whether kind and main colour of the one subject are read as they should be."""
    return _looks_right([graph.things[0] for graph in graphs], pixels)


def sides_right(graphs: Sequence[SceneGraph], pixels: Tensor) -> list[bool]:
    """Return whether both of two subjects are read as they should be, each from its own half of the picture."""
    sides = [sorted(graph.things, key=lambda thing: thing.x) for graph in graphs]
    halves = [_looks_right([pair[side] for pair in sides], half_view(pixels, side)) for side in (0, 1)]
    return [left and right for left, right in zip(*halves, strict=True)]


def people_right(graphs: Sequence[SceneGraph], pixels: Tensor) -> list[bool]:
    """Return whether woman or man, hair colour and main colour of the top of the one person are read as they should be.

    No hair has no colour that could be wrong.
    """
    kind, hair, top = (_people_names(graphs, pixels)[name] for name in ("kind", "hair_colour", "top_colour"))
    return [all(names) for names in zip(kind, hair, top, strict=True)]


def half_view(pixels: Tensor, side: int) -> Tensor:
    """Return the left (0) or right (1) half as a picture of one subject of usual size, as the reader knows it.

    Subjects of pairs are seven tenths of the size of single ones: a window of 91 pixels is enlarged to 128. It is as
    wide as the half, 64; beyond, its last columns go on.

    Args:
        pixels: (B, 3, 128, 128).
        side: 0 or 1.
    """
    half = pixels[..., 32:123, 64 * side : 64 * side + 64]
    return F.interpolate(F.pad(half, (13, 14, 0, 0), mode="replicate"), (128, 128), mode="bilinear")


def panels_alike(pixels: Tensor) -> Tensor:
    """Return whether left and right panel show one individual to the reader, (B, 3, 128, 256) -> (B,) boolean."""
    left, right = pixels.chunk(2, dim=-1)
    return same_individual(left, right)


def _pasted(reference: Tensor, mask: Tensor, picture: Tensor, rng: np.random.Generator) -> Tensor:
    """The picture with the reference's subject on it, moved by up to 12 pixels."""
    shift = tuple(int(rng.integers(-_room(where), _room(where.flip(0)) + 1)) for where in (mask.any(1), mask.any(0)))
    moved, there = (torch.roll(each, shift, dims=(-2, -1)) for each in (reference, mask))
    return torch.where(there, moved, picture)


def _room(occupied: Tensor) -> int:
    """How far the subject may go towards the first row, at most 12."""
    return min(12, int(occupied.int().argmax()))


def _looks_right(things: Sequence[Thing], pixels: Tensor) -> list[bool]:
    reading = read(pixels)
    seen = zip(reading.kind, reading.main, strict=True)
    return [(thing.identity.kind, thing.identity.main) == pair for thing, pair in zip(things, seen, strict=True)]


def _people_names(graphs: Sequence[SceneGraph], pixels: Tensor) -> dict[str, list[bool]]:
    """Whether each name of the one person is read as it should be, picture by picture."""
    reading, wanted = read_people(pixels), [_looks_of(graph.people[0]) for graph in graphs]
    return {
        name: [looks[name] in (None, seen) for looks, seen in zip(wanted, getattr(reading, name), strict=True)]
        for name in wanted[0]
    }


def _looks_of(sitter: Sitter) -> dict[str, str | None]:
    """What somebody must be read as; ``None`` where nothing could be wrong."""
    person, top = sitter.person, top_of(sitter)
    return {
        "kind": person.kind,
        "skin": person.skin,
        "hair_colour": None if person.hair == "bald" else person.hair_colour,
        "top_colour": top.main if top else None,
    }


def _distinct(graphs: Sequence[SceneGraph], count: int) -> tuple[list[SceneGraph], list[str]]:
    """The first scenes whose captions are all different."""
    found = {text: graph for graph, text in zip(graphs, captions_of(graphs), strict=True)}
    return list(found.values())[:count], list(found)[:count]


def _agreement(seen: Sequence[str], wanted: Sequence[str]) -> float:
    return rate([one == other for one, other in zip(seen, wanted, strict=True)])


def rate(right: Sequence[bool] | Tensor) -> float:
    """Return which share is true."""
    return float(torch.as_tensor(right).float().mean())
