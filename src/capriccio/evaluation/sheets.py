"""Contact sheets: what each model of the miniature makes of held-out pictures and sentences, to look at.

>>> from capriccio.evaluation.sheets import sheet
>>> sheet("sd").save("sd.png")             # painted with the installed weights, in a minute or two
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from transformers import T5EncoderModel

from capriccio import assets
from capriccio.canvas import on_colour
from capriccio.errors import CapriccioError, nearest
from capriccio.evaluation.holes import around_subjects, around_tops, boxes, repaint
from capriccio.evaluation.lar_gen.miniature import miniature
from capriccio.evaluation.lar_gen.painters import VARIANTS, Settings
from capriccio.evaluation.metrics import load_clip, load_vae, psnr, reconstruct, to_pictures
from capriccio.perception.people_reader import read_people
from capriccio.perception.reader import read
from capriccio.perception.solid_reader import read_solids
from capriccio.pictures import fit, grid
from capriccio.scene import Control, Edit, Lora, Scene, Subject
from capriccio.studio import Studio
from capriccio.world.casting import sample_people
from capriccio.world.controls import CONTROLS, control_pictures
from capriccio.world.draw import Drawing
from capriccio.world.graph import SceneGraph, sample_scene
from capriccio.world.tokenizers import t5_tokenizer
from capriccio.world.views import sample_view
from capriccio.world.whole import Picture, depict, describe, sample_picture, sample_sheet
from capriccio.world.words import article

COLUMNS = 8
CONTENTS = ("objects", "objects", "people", "objects", "people", "objects", "garments", "solids")
"""What the pictures of a row show."""


def sheet(model: str) -> Image.Image:
    """Draw the contact sheet of a model from its installed weights.

    Args:
        model: One of ``SHEETS``.

    Raises:
        CapriccioError: If there is no such model, or its weights are not installed.
    """
    if model not in SHEETS:
        raise CapriccioError(f"There is no contact sheet of {model!r}: {nearest(model, SHEETS)}")
    return SHEETS[model]()


def held_out(rows: int, contents: Sequence[str] = CONTENTS, seed: int = 11) -> list[Picture]:
    """Draw held-out pictures for ``rows`` rows of a sheet, the same for the same numbers."""
    rng = np.random.default_rng(seed)
    return [sample_picture(rng, "test", content) for _ in range(rows) for content in contents]


def reconstructions(rows: int = 2) -> Image.Image:
    """Pictures, and under each what the VAE makes of it, with its PSNR in dB."""
    pixels = depict(held_out(rows)).pixels
    again = reconstruct(load_vae(), pixels)
    quality = [f"{value:.1f} dB" for value in psnr(again, pixels).tolist()]
    shown: list[Image.Image] = []
    labels: list[str] = []
    for start in range(0, len(pixels), COLUMNS):
        row = slice(start, start + COLUMNS)
        shown += [*to_pictures(pixels[row]), *to_pictures(again[row])]
        labels += [""] * COLUMNS + quality[row]
    return grid(shown, COLUMNS, labels)


def retrievals(rows: int = 2) -> Image.Image:
    """Pictures with the caption that CLIP finds nearest among those of the sheet; a wrong one is marked."""
    rng = np.random.default_rng(12)
    pictures = held_out(rows)
    pixels, texts = depict(pictures).pixels, [describe(picture, rng, "full") for picture in pictures]
    towers = load_clip()
    found = (towers.embed_images(pixels) @ towers.embed_texts(texts).T).argmax(1).tolist()
    labels = [texts[other] if other == own else f"[wrong] {texts[other]}" for own, other in enumerate(found)]
    return grid(to_pictures(pixels), COLUMNS, labels, text_size=10)


def readings(rows: int = 2) -> Image.Image:
    """Scenes of one object with what the reader reads in them."""
    rng = np.random.default_rng(13)
    pixels = depict([sample_scene(rng, split="test") for _ in range(rows * COLUMNS)]).pixels
    seen = read(pixels)
    labels = [
        f"{kind}, {main} and {accent}, {pattern}; {backdrop}, {style}; wears {accessory}"
        for kind, main, accent, pattern, backdrop, style, accessory in zip(
            seen.kind, seen.main, seen.accent, seen.pattern, seen.backdrop, seen.style, seen.accessory, strict=True
        )
    ]
    return grid(to_pictures(pixels), COLUMNS, labels, text_size=10)


def people_readings(rows: int = 2) -> Image.Image:
    """Scenes of one person with what the reader of people reads in them."""
    rng = np.random.default_rng(16)
    pixels = depict([sample_people(rng, split="test", style="shaded") for _ in range(rows * COLUMNS)]).pixels
    seen = read_people(pixels)
    labels = [_in_words({name: getattr(seen, name)[row] for name in seen.confidence}) for row in range(len(pixels))]
    return grid(to_pictures(pixels), COLUMNS, labels, text_size=10)


def solid_readings(rows: int = 2) -> Image.Image:
    """Views of one solid with what the reader of solids reads in them."""
    rng = np.random.default_rng(18)
    pixels = depict([sample_view(rng, "test") for _ in range(rows * COLUMNS)]).pixels
    seen = read_solids(pixels)
    labels = [
        f"{kind}, {main} and {accent}, {pattern}; {view}; {backdrop}"
        for kind, main, accent, pattern, view, backdrop in zip(
            seen.kind, seen.main, seen.accent, seen.pattern, seen.view, seen.backdrop, strict=True
        )
    ]
    return grid(to_pictures(pixels), COLUMNS, labels, text_size=10)


def _in_words(looks: Mapping[str, str]) -> str:
    """Who is seen and what is worn: without what nobody wears, or what the picture does not show."""
    hair = "bald" if looks["hair"] == "bald" else f"{looks['hair']} {looks['hair_colour']} hair"
    words = [f"{looks['expression']} {looks['kind']}", f"{looks['skin']} skin", hair]
    words += [f"{looks['glasses']} glasses"] * (looks["glasses"] != "none")
    words += [looks["beard"]] * (looks["beard"] != "none")
    clothes = [f"{looks['top_colour']} {looks['top_pattern']} {looks['top']}"]
    clothes += [f"{looks['lower_colour']} {looks['lower']}"] * (looks["view"] == "whole" and looks["lower"] != "none")
    return f"{', '.join(words)}, {looks['pose']}; {', '.join(clothes)}"


def looks_of_words() -> Image.Image:
    """Which words each word of a sentence looks at, by T5: a row of pictures for each layer, one for each head.

    Each line of a picture is a word, and the darker a square, the more that word looks at the one of its column.
    """
    rng = np.random.default_rng(18)
    folder = assets.path("miniature/t5")
    encoder = T5EncoderModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    text = describe(sample_scene(rng, 2, split="test", style="shaded"), rng, "full")
    ids = t5_tokenizer()(text, return_tensors="pt").input_ids
    with torch.no_grad():
        layers = encoder(ids, output_attentions=True).attentions
    words = t5_tokenizer().convert_ids_to_tokens(ids[0])
    shown, labels = [], []
    for depth, layer in enumerate(layers):
        for number, head in enumerate(layer[0]):
            shown.append(_squares(head, [word.strip("\u2581") for word in words]))
            labels.append(f"layer {depth + 1}, head {number + 1}")
    return grid(shown, len(layers[0][0]), labels)


def _squares(looks: Tensor, words: Sequence[str], side: int = 14) -> Image.Image:
    """A picture of looks (words, words) in [0, 1], with the words on its left."""
    margin, size = 84, side * len(words)
    darkness = Image.fromarray(((1 - looks.numpy()) * 255).round().astype(np.uint8))
    picture = Image.new("RGB", (margin + size, size), "white")
    picture.paste(darkness.resize((size, size), Image.Resampling.NEAREST), (margin, 0))
    brush, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    for row, word in enumerate(words):
        brush.text((margin - 4, side * row + side // 2), word, fill="black", font=font, anchor="rm")
    return picture


def paintings(name: str, rows: int = 3, panels: bool = True) -> Image.Image:
    """Held-out sentences painted by the miniature ``name``: scenes, and a row of panels with one subject twice.

    Args:
        name: Of the miniature.
        rows: Of scenes.
        panels: Whether there is a row of panels.
    """
    rng = np.random.default_rng(14)
    alone = [describe(picture, rng, "full") for picture in held_out(rows)]
    doubled = [content for content in CONTENTS if content in ("objects", "people")][: COLUMNS // 2 if panels else 0]
    pairs = [describe(sample_sheet(rng, split="test", content=content), rng) for content in doubled]
    asked = [Scene(text, seed=seed) for seed, text in enumerate(alone)]
    asked += [Scene(text, seed=seed, width=256, height=128) for seed, text in enumerate(pairs)]
    painted = [painting.images[0] for painting in Studio.open(name).paint_all(asked)]
    halves = [picture.crop((left, 0, left + 128, 128)) for picture in painted[len(alone) :] for left in (0, 128)]
    labels = [*alone, *(text for text in pairs for _ in range(2))]
    return grid(painted[: len(alone)] + halves, COLUMNS, labels, text_size=10)


def inpaintings(name: str, engine: str) -> Image.Image:
    """Pictures with holes round things, and round tops, and what an engine of the miniature ``name`` paints there."""
    studio = Studio.open(name)
    shown: list[Image.Image] = []
    labels: list[str] = []
    for holes in (around_subjects(COLUMNS), around_tops(COLUMNS)):
        pictures = zip(to_pictures(holes.pixels), boxes(holes.masks), strict=True)
        shown += [Image.composite(Image.new("RGB", picture.size, "#808080"), picture, box) for picture, box in pictures]
        shown += repaint(studio, holes, engine)
        labels += [""] * COLUMNS + holes.texts
    return grid(shown, COLUMNS, labels, text_size=10)


def weighted(name: str, weights: Sequence[float] = (0.0, 0.5, 1.0)) -> Image.Image:
    """Held-out sentences painted by the miniature with a LoRA of its own, a row for each weight."""
    rng = np.random.default_rng(17)
    texts = [describe(_alone(rng), rng, "full") for _ in range(COLUMNS)]
    lora = assets.path(f"miniature/{name}")
    asked = [Scene(text, Lora(lora, weight=weight), seed=seed) for weight in weights for seed, text in enumerate(texts)]
    painted = [painting.images[0] for painting in Studio.open("miniature").paint_all(asked)]
    return grid(painted, COLUMNS, [f"{weight:g}: {text}" for weight in weights for text in texts], text_size=10)


def steerings() -> Image.Image:
    """Control pictures of held-out scenes, and what the miniature paints from them and from their sentences."""
    rng = np.random.default_rng(17)
    scenes = [_alone(rng) for _ in range(COLUMNS)]
    wanted = [describe(scene, rng, "full") for scene in scenes]
    hints = {kind: to_pictures(2 * control_pictures(kind, scenes) - 1) for kind in CONTROLS}
    asked = [
        Scene(text, [Control(hint, "union", mode=kind)], seed=seed)
        for kind in CONTROLS
        for seed, (text, hint) in enumerate(zip(wanted, hints[kind], strict=True))
    ]
    painted = iter([painting.images[0] for painting in Studio.open("miniature").paint_all(asked)])
    shown: list[Image.Image] = []
    for row in hints.values():
        shown += [*row, *islice(painted, COLUMNS)]
    labels = [text for kind in CONTROLS for text in [kind] * COLUMNS + wanted]
    return grid(shown, COLUMNS, labels, text_size=10)


def _alone(rng: np.random.Generator) -> SceneGraph:
    return sample_scene(rng, split="test", style="shaded", accessories=False)


def customised(name: str, refine: bool) -> Image.Image:
    """Held-out subjects, the pictures they are to stand in, and what LAR-Gen of the miniature makes of both.

    Of a subject the sentence says no more than what kind of thing it is.
    """
    rng = np.random.default_rng(16)
    subjects, places = ([_alone(rng) for _ in range(COLUMNS)] for _ in range(2))
    given, there = depict(subjects), depict(places)
    pictures, masks, sources = to_pictures(given.pixels), _masks(given), to_pictures(there.pixels)
    kinds = [scene.things[0].identity.kind for scene in subjects]
    asked = [
        Scene(
            f"{article(kind)} {{{kind}}}",
            [
                Subject(picture, name=kind, mask=mask, by="lar-gen", options={"refine": refine}),
                Edit(source, box),
            ],
            seed=seed,
        )
        for seed, (kind, picture, mask, source, box) in enumerate(
            zip(kinds, pictures, masks, sources, boxes(there.subjects.any(1)), strict=True)
        )
    ]
    studio = Studio.open("miniature-sd", modules={"lar-gen": assets.path(f"miniature/{name}")})
    painted = [painting.images[0] for painting in studio.paint_all(asked)]
    alone = [on_colour(picture, mask) for picture, mask in zip(pictures, masks, strict=True)]
    return grid([*alone, *sources, *painted], COLUMNS)


def exemplified(name: str) -> Image.Image:
    """Held-out subjects, the pictures they are to stand in, and what Paint by Example makes of both."""
    samples = miniature().samples(COLUMNS)
    settings = Settings(paint_by_example=Path(assets.path(f"miniature/{name}")))
    paint = VARIANTS[name](Studio.open("miniature-sd"), settings)
    subjects, sources = [fit(each.subject, 128, 128)[0] for each in samples], [each.place.source for each in samples]
    return grid([*subjects, *sources, *(paint(each, each.number) for each in samples)], COLUMNS)


def _masks(drawing: Drawing) -> list[Image.Image]:
    """Where any subject is, white on black."""
    return [Image.fromarray((mask.any(0).numpy() * 255).astype(np.uint8)) for mask in drawing.subjects]


SHEETS: dict[str, Callable[[], Image.Image]] = {
    "vae": reconstructions,
    "vae-tune": reconstructions,
    "clip": retrievals,
    "t5": looks_of_words,
    "reader": readings,
    "people-reader": people_readings,
    "solid-reader": solid_readings,
    "flux": partial(paintings, "miniature"),
    "fill": partial(inpaintings, "miniature", "fill"),
    "controlnet-inpaint": partial(inpaintings, "miniature", "controlnet"),
    "style-lora": partial(weighted, "style-lora"),
    "controlnet-union": steerings,
    "sd": partial(paintings, "miniature-sd"),
    "sd-inpaint": partial(inpaintings, "miniature-sd", "fill"),
    "paint-by-example": partial(exemplified, "paint-by-example"),
    "lar-gen-assign": partial(customised, "lar-gen-assign", refine=False),
    "lar-gen": partial(customised, "lar-gen", refine=True),
}
"""How the sheet of each model is drawn."""
