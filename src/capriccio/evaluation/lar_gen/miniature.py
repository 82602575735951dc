"""The benchmark's twin in the procedural world: scenes, subjects and sentences no model was trained on.

A scene's own thing stands in the hole, as the objects do that COCO draws boxes around. So something of a subject's
size can stand there, and the world knows what was behind.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image
from torch import Tensor

from capriccio.errors import CapriccioError
from capriccio.evaluation.cases import held_out_scene
from capriccio.evaluation.holes import MARGIN, box_round
from capriccio.evaluation.lar_gen.samples import Guest, Place, Protocol, Sample, Wish, box_of, cut_out
from capriccio.evaluation.lar_gen.tables import Reasons
from capriccio.evaluation.metrics import to_pictures
from capriccio.world.draw import draw
from capriccio.world.graph import ACCESSORIES, COLOURS, KINDS, SceneGraph, Thing, foot_of, from_dict, standing, to_dict
from capriccio.world.words import article

LIVING = ("cat", "bird", "fish", "tree", "mushroom")
REASONS: Reasons = {
    ("clip_i", "paint-by-example", "assign-refine"): (
        "here LAR-Gen leaves the inpainting model as it is and adds 3 M parameters to it, while every weight of "
        "Paint by Example was taught to paint what it is shown; the paper's LAR-Gen teaches the whole model too"
    ),
    ("clip_t", "paint-by-example", "subject-only"): (
        "neither reads the sentence, which names the subject's kind, and Paint by Example paints that kind more "
        "often: with the subject alone, LAR-Gen's colours come here and its shape does not"
    ),
    ("clip_t", "assign-refine", "inpainting"): (
        "the miniature's inpainting, which has only the sentence, paints another kind of thing in some holes and has "
        "the harder seams; who is shown the subject, and holds what is known, errs less"
    ),
}
"""Why the weights in the package do not stand as the paper's do; shown where they do not."""
_ROOM = 0.85  # of the hole, for what is worn stands out

_RULE = (
    f"held-out combinations of kind, colours and pattern; shaded scenes of one thing, and the hole is its box with "
    f"{MARGIN} pixels around; subjects of five living kinds and five others, alone by the world's own mask; each "
    "sentence asks for an accessory in a colour, or for another colour of its own"
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
        Place(f"s{number:02}", picture, box_round(there), {"graph": to_dict(scene)}, scene.backdrop.kind)
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
        found.append(
            Guest(who.kind, who.kind, cut_out(picture, _mask(there)), picture, {"graph": to_dict(scene)}, looks)
        )
    return found


def _wishes(rng: np.random.Generator, count: int) -> list[Wish]:
    """In turn something to wear, in a colour, and another colour of its own: what only the text can ask for."""
    names = list(COLOURS)
    worn, colours, coats = (rng.permutation(options).tolist() for options in (ACCESSORIES, names, names))
    return [
        _coat(number, coats[number // 2 % len(coats)])
        if number % 2
        else _accessory(number, worn[number // 2 % len(worn)], colours[number // 2 % len(colours)])
        for number in range(count)
    ]


def _accessory(number: int, worn: str, colour: str) -> Wish:
    phrase = f"{colour} {worn}"
    told = phrase if worn == "sunglasses" else f"{article(phrase)} {phrase}"
    return Wish(f"p{number}", f"a {{}} wearing {told}", {"accessory": worn})


def _coat(number: int, colour: str) -> Wish:
    return Wish(f"p{number}", f"{article(colour)} {colour} {{}}", {"main": colour})


def drawn(sample: Sample, seed: int = 0) -> Image.Image:
    """Let the world itself put the subject into the hole, as the sentence asks: what a perfect painter could paint.

    Raises:
        CapriccioError: If the sample is not of the world.
    """
    if not (sample.guest.looks and sample.place.backdrop):
        raise CapriccioError("Only the world can draw its own things; leave out 'drawn' for photographs.")
    place, guest = (from_dict(origin["graph"]) for origin in (sample.place.origin, sample.guest.origin))
    assert isinstance(place, SceneGraph)
    assert isinstance(guest, SceneGraph)
    left, top, right, bottom = box_of(sample.place.mask)
    side, alone = sample.place.source.width, sample.guest.picture.getchannel("A").getbbox()
    assert alone is not None
    scale = min((right - left) / (alone[2] - alone[0]), (bottom - top) / (alone[3] - alone[1]))
    size = _ROOM * scale * guest.things[0].size
    thing = replace(_as_wished(guest.things[0], sample.wish), x=(left + right) / 2 / side, size=size)
    scene = replace(place, things=(standing(thing, foot_of(place.things[0])),))
    (picture,) = to_pictures(draw([scene], size=side).pixels)
    return Image.composite(picture, sample.place.source, sample.place.mask)


def _mask(there: Tensor) -> Image.Image:
    return Image.fromarray(there.numpy().astype(np.uint8) * 255)


def _as_wished(thing: Thing, wish: Wish) -> Thing:
    if "main" in wish.looks:
        main, own = wish.looks["main"], thing.identity
        accent = own.main if own.accent == main else own.accent
        return replace(thing, identity=replace(own, main=main, accent=accent))
    *_, colour, worn = wish.words.split()
    return replace(thing, accessory=worn, accessory_colour=colour)
