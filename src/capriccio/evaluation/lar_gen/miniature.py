"""The benchmark's twin in the procedural world: scenes, subjects and sentences no model was trained on.

A scene's own thing stands in the hole, as the objects do that COCO draws boxes around. So something of a subject's
size can stand there, and the world knows what was behind.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from capriccio.evaluation.cases import held_out_scene, to_pictures
from capriccio.evaluation.lar_gen.samples import Guest, Place, Protocol, Wish, box_mask, cut_out
from capriccio.world.draw import draw
from capriccio.world.graph import ACCESSORIES, COLOURS, KINDS, SceneGraph, to_dict
from capriccio.world.words import article

LIVING = ("cat", "bird", "fish", "tree", "mushroom")
RIM = 4
"""Pixels that the hole reaches beyond the thing in it."""

_RULE = (
    f"held-out combinations of kind, colours and pattern; shaded scenes of one thing, and the hole is its box with "
    f"{RIM} pixels around; subjects of five living kinds and five others, alone by the world's own mask; each sentence "
    "asks for one of five accessories in a colour"
)


def miniature(seed: int = 0, places: int = 20, prompts: int = 10) -> Protocol:
    """Draw the miniature twin: 20 places x 10 guests x 10 wishes, all from a seed.

    Args:
        seed: Fixes everything.
        places: How many scenes.
        prompts: How many sentences.
    """
    rng = np.random.default_rng([6, seed])
    scenes = [held_out_scene(rng) for _ in range(places)]
    others = rng.permutation([kind for kind in KINDS if kind not in LIVING])[: len(LIVING)]
    portraits = [held_out_scene(rng, str(kind)) for kind in (*LIVING, *others)]
    return Protocol("the miniature's world", _places(scenes), _guests(portraits), _wishes(rng, prompts), _RULE, seed)


def _places(scenes: list[SceneGraph]) -> list[Place]:
    drawing = draw(scenes)
    return [
        Place(f"s{number:02}", picture, _hole(there), {"graph": to_dict(scene)}, scene.backdrop.kind)
        for number, (scene, picture, there) in enumerate(
            zip(scenes, to_pictures(drawing.pixels), drawing.subjects[:, 0], strict=True)
        )
    ]


def _guests(portraits: list[SceneGraph]) -> list[Guest]:
    drawing = draw(portraits)
    found = []
    for scene, picture, there in zip(portraits, to_pictures(drawing.pixels), drawing.subjects[:, 0], strict=True):
        who = scene.things[0].identity
        looks = {"kind": who.kind, "main": who.main, "pattern": who.pattern}
        found.append(Guest(who.kind, who.kind, cut_out(picture, _mask(there)), picture, {"graph": to_dict(scene)}, looks))
    return found


def _wishes(rng: np.random.Generator, count: int) -> list[Wish]:
    """Accessories in turn, each time in another colour: what a text can ask for and a subject's picture cannot."""
    colours = {worn: [str(colour) for colour in rng.permutation(list(COLOURS))] for worn in ACCESSORIES}
    wishes = []
    for number in range(count):
        worn = ACCESSORIES[number % len(ACCESSORIES)]
        phrase = f"{colours[worn][number // len(ACCESSORIES) % len(COLOURS)]} {worn}"
        told = phrase if worn == "sunglasses" else f"{article(phrase)} {phrase}"
        wishes.append(Wish(f"p{number}", f"a {{}} wearing {told}", {"accessory": worn}))
    return wishes


def _mask(there: Tensor) -> Image.Image:
    return Image.fromarray(there.numpy().astype(np.uint8) * 255)


def _hole(there: Tensor) -> Image.Image:
    mask = _mask(there)
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    box = (max(left - RIM, 0), max(top - RIM, 0), min(right + RIM, mask.width), min(bottom + RIM, mask.height))
    return box_mask(mask.size, box)
