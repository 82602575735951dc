"""Sitters, drawn together: what lies behind the shoulders, the body in its clothes, and the head, each in windows.

Sitters of about one size and pose are drawn at once; every region of a body is drawn only where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from math import ceil, floor

import torch
from torch import Tensor

from capriccio.world.bodies import Body, Limb
from capriccio.world.coat import Cloth, Coat, Stroke, Window
from capriccio.world.faces import FACE, Feature, Head, brow, face, front, is_fine, long_hair, skull
from capriccio.world.garments import CUTTERS, SLOT, Cut, Layer
from capriccio.world.kinds import WORN_AT, Role
from capriccio.world.people import FOOT, Sitter, garment_at
from capriccio.world.shapes import capsule, circle, ellipse, join_inside
from capriccio.world.skeleton import HEAD, Point, joints
from capriccio.world.windows import ACCESSORY_PART, Frame, Windows, body_part, garment_part

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in the frame of a figure."""

EVERYWHERE: Window = (slice(None), slice(None))

_SHADOW: Box = (-0.52, FOOT, 0.60, FOOT + 0.17)
"""What the shadow under a figure fills."""

_TOGETHER = 6  # sitters: what fits into the cache of a core
_MARGIN = 8  # pixels round a window, so that the halo ends inside
_PLACES = {"head": (-0.86, 0.78), "eyes": (0.06, 0.78), "neck": (-0.20, 0.17)}
# Height and half width of where accessories are worn: in half heights of the head, or of the figure for the neck.


def draw_sitters(
    sitters: Sequence[Sitter], grounded: Sequence[bool], size: int, device: torch.device | str
) -> Iterator[tuple[int, Windows, int]]:
    """Draw sitters, each in one to three windows that are laid in the order in which they come.

    Args:
        sitters: The n sitters.
        grounded: Whether each throws a shadow on what is behind it.
        size: Side of the picture in pixels.
        device: Where to draw.

    Yields:
        Whose windows they are, the windows, and which of them.
    """
    order = sorted(range(len(sitters)), key=lambda row: _likeness(sitters[row], size))
    for _, group in groupby(order, key=lambda row: _likeness(sitters[row], size)[0]):
        alike = list(group)
        for start in range(0, len(alike), _TOGETHER):
            yield from _draw_some(alike[start : start + _TOGETHER], sitters, grounded, size, device)


def _likeness(sitter: Sitter, size: int) -> tuple[bool, float, str]:
    """Whether the face is fine (never drawn together with others), and what makes windows of one form."""
    return is_fine(sitter.size * size / 2 * HEAD), round(sitter.size, 1), sitter.pose.name


def _draw_some(
    rows: Sequence[int], sitters: Sequence[Sitter], grounded: Sequence[bool], size: int, device: torch.device | str
) -> Iterator[tuple[int, Windows, int]]:
    long = [row for row in rows if sitters[row].person.hair == "long"]
    for who, draw in ((long, _draw_behind), (rows, _draw_body), (rows, _draw_head)):
        if who:
            windows = draw([sitters[row] for row in who], [grounded[row] for row in who], size, device)
            yield from ((row, windows, at) for at, row in enumerate(who))


def _draw_behind(sitters: Sequence[Sitter], grounded: Sequence[bool], size: int, device: torch.device | str) -> Windows:
    stand = Stand(sitters, [_round(joints(one)["head"], (-1.3, -1.2, 1.3, 2.0)) for one in sitters], size, device)
    coat = Coat(stand.frame)
    for feature in long_hair(stand.head()):
        coat.over(_feature(feature, sitters), EVERYWHERE)
    return coat.windows(None, grounded)


def _draw_body(sitters: Sequence[Sitter], grounded: Sequence[bool], size: int, device: torch.device | str) -> Windows:
    boxes = [_joined(_SHADOW, *(box(one) for box in _BOXES.values())) for one in sitters]
    stand = Stand(sitters, boxes, size, device)
    coat = Coat(stand.frame)
    for stroke, window in body_strokes(stand):
        coat.over(stroke, window)
    return coat.windows(FOOT, grounded)


def _draw_head(sitters: Sequence[Sitter], grounded: Sequence[bool], size: int, device: torch.device | str) -> Windows:
    stand = Stand(sitters, [_round(joints(one)["head"], (-1.5, -1.75, 1.5, 1.2)) for one in sitters], size, device)
    coat = Coat(stand.frame)
    for stroke, window in head_strokes(stand):
        coat.over(stroke, window)
    return coat.windows(None, grounded)


class Stand:
    """Sitters in windows of one size round boxes that are given in the frames of their figures."""

    def __init__(self, sitters: Sequence[Sitter], boxes: Sequence[Box], size: int, device: torch.device | str) -> None:
        self.sitters, self.size = sitters, size
        self.halves = [sitter.size * size / 2 for sitter in sitters]
        spans = [self._pixels(row, box) for row, box in enumerate(boxes)]
        wide = min(size, max(min(right, size) - max(left, 0) for left, _, right, _ in spans))
        tall = min(size, max(min(bottom, size) - max(top, 0) for _, top, _, bottom in spans))
        left = [max(0, min(size - wide, span[0])) for span in spans]
        top = [max(0, min(size - tall, span[1])) for span in spans]
        half, x0, y0 = (
            torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
            for values in (
                self.halves,
                [sitter.x * size - start for sitter, start in zip(sitters, left, strict=True)],
                [sitter.y * size - start for sitter, start in zip(sitters, top, strict=True)],
            )
        )
        shape = (len(sitters), tall, wide)
        x = ((torch.arange(wide, device=device) + 0.5 - x0) / half).expand(shape)
        y = ((torch.arange(tall, device=device)[:, None] + 0.5 - y0) / half).expand(shape)
        self.frame = Frame(left, top, x, y, half, torch.ones_like(half))

    def body(self, window: Window) -> Body:
        """The bodies in one part of the windows."""
        where = (slice(None), *window)
        return Body(self.frame.x[where].contiguous(), self.frame.y[where].contiguous(), self.sitters)

    def head(self, window: Window = EVERYWHERE) -> Head:
        """The heads in one part of the windows."""
        return Head(*self.body(window).head, self.sitters, 1 / (self.frame.half * HEAD))

    def window(self, boxes: Sequence[Box]) -> Window | None:
        """The part of the windows that holds a box of each sitter; ``None`` if all are outside the picture."""
        tall, wide = self.frame.x.shape[1:]
        spans = [self._pixels(row, box) for row, box in enumerate(boxes)]
        shifts = list(zip(spans, self.frame.left, self.frame.top, strict=True))
        left, right = min(span[0] - x for span, x, _ in shifts), max(span[2] - x for span, x, _ in shifts)
        top, bottom = min(span[1] - y for span, _, y in shifts), max(span[3] - y for span, _, y in shifts)
        rows, columns = slice(max(top, 0), min(bottom, tall)), slice(max(left, 0), min(right, wide))
        # Slopes need two neighbours.
        return (rows, columns) if rows.stop - rows.start > 2 and columns.stop - columns.start > 2 else None

    def _pixels(self, row: int, box: Box) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a box in pixels of the picture, with room for the halo."""
        one, half = self.sitters[row], self.halves[row]
        x, y = one.x * self.size, one.y * self.size
        left, top, right, bottom = x + box[0] * half, y + box[1] * half, x + box[2] * half, y + box[3] * half
        return floor(left) - _MARGIN, floor(top) - _MARGIN, ceil(right) + _MARGIN, ceil(bottom) + _MARGIN


def body_strokes(stand: Stand) -> Iterator[tuple[Stroke, Window]]:
    """Bodies in their clothes, from back to front, each stroke with the part of the windows that it fills."""
    for region, strokes in (
        ("legs", _legs),
        ("trunk", _trunk),
        ("right arm", _right_arm),
        ("left arm", _left_arm),
    ):
        window = stand.window([_BOXES[region](sitter) for sitter in stand.sitters])
        if window is not None:
            yield from ((stroke, window) for stroke in strokes(stand.body(window)))


def head_strokes(stand: Stand) -> Iterator[tuple[Stroke, Window]]:
    """Heads, from back to front."""
    close = stand.window([_round(joints(one)["head"], FACE) for one in stand.sitters]) or EVERYWHERE
    whole, near = stand.head(), stand.head(close)
    for features, window in (
        (skull(whole), EVERYWHERE),
        (face(near), close),
        (front(whole), EVERYWHERE),
        (brow(near), close),
    ):
        yield from ((_feature(feature, stand.sitters), window) for feature in features)
    body = stand.body(EVERYWHERE)
    for stroke in (*_clothes(body, Layer.HEAD), *_accessories(body, "eyes"), *_accessories(body, "head")):
        yield stroke, EVERYWHERE


def _legs(body: Body) -> Iterator[Stroke]:
    for side, leg in body.legs.items():
        yield _skin(body, leg.skin(0.105, 0.095, 0.085), f"{side} leg")
        yield _skin(body, _foot(leg, -1.0 if side == "right" else 1.0), f"{side} foot")
    yield from _clothes(body, Layer.FEET)
    yield from _clothes(body, Layer.LEGS)


def _trunk(body: Body) -> Iterator[Stroke]:
    yield from _clothes(body, Layer.HOOD)
    x, y = body.trunk
    side = x.abs()
    trunk = join_inside(side - 0.25 + 0.05 * (y + 0.25), torch.maximum(-0.33 + 0.36 * side - y, y - 0.38), 0.1)
    yield _plain(body.sitters, trunk, 0.16, ["underwear"] * len(body.sitters), "torso")
    head = body.joint("head")
    yield _skin(body, capsule(body.x, body.y, *body.joint("neck"), head[0], head[1] + 0.1, 0.088), "neck")
    yield from _clothes(body, Layer.CHEST)
    yield from _accessories(body, "neck")


def _right_arm(body: Body) -> Iterator[Stroke]:
    yield from _arm(body, "right", Layer.RIGHT_ARM)


def _left_arm(body: Body) -> Iterator[Stroke]:
    yield from _arm(body, "left", Layer.LEFT_ARM)


def _arm(body: Body, side: str, layer: Layer) -> Iterator[Stroke]:
    arm = body.arms[side]
    yield _skin(body, arm.skin(0.09, 0.08, 0.072), f"{side} arm")
    yield from _clothes(body, layer)
    hand = circle(arm.lower.along - arm.lower.length, arm.lower.across, 0.04, 0.0, 0.09)
    yield _skin(body, hand, f"{side} hand")


def _clothes(body: Body, layer: Layer) -> Iterator[Stroke]:
    """What the sitters wear on a layer; dresses are cut with the uppers."""
    slot = SLOT[layer]
    garments = [
        garment_at(one, slot) or (garment_at(one, "dress") if slot == "upper" else None) for one in body.sitters
    ]
    if not any(garments):
        return
    for piece in CUTTERS[layer](body, Cut(garments, body.x)):
        main = piece.role is Role.MAIN
        inks = [(one.main if main else one.accent) if one else "white" for one in garments]
        parts = [garment_part(one.kind) + (not main) if one else 0 for one in garments]
        yield Stroke(piece.distance, piece.relief, inks, parts, Cloth(garments, piece.origin, printed=main))


def _accessories(body: Body, place: str) -> Iterator[Stroke]:
    for name, (where, shape) in WORN_AT.items():
        shown = [sitter.accessory == name for sitter in body.sitters]
        if where != place or not any(shown):
            continue
        (x, y), unit = (body.trunk, 1.0) if place == "neck" else (body.head, HEAD)
        height, wide = _PLACES[place]
        distance = shape(x, y - height, x.new_full((len(shown), 1, 1), wide)) * unit
        hidden = x.new_tensor([0.0 if one else 1e2 for one in shown])[:, None, None]
        inks = [sitter.accessory_colour or "black" for sitter in body.sitters]
        yield Stroke(distance + hidden, 0.16 * unit, inks, [ACCESSORY_PART] * len(shown))


def _feature(feature: Feature, sitters: Sequence[Sitter]) -> Stroke:
    inks = [_ink(sitter, feature.ink) for sitter in sitters]
    return _plain(sitters, feature.distance * HEAD, feature.relief * HEAD, inks, feature.part)


def _ink(sitter: Sitter, name: str) -> str:
    person = sitter.person
    return {
        "skin": f"{person.skin} skin",
        "hair": f"{person.hair_colour} hair",
        "eyes": f"{person.eyes} eyes",
        "lips": f"{person.kind}'s lips",
    }.get(name, name)


def _skin(body: Body, distance: Tensor, part: str) -> Stroke:
    return _plain(body.sitters, distance, 0.1, [_ink(sitter, "skin") for sitter in body.sitters], part)


def _plain(sitters: Sequence[Sitter], distance: Tensor, relief: float, inks: Sequence[str], part: str) -> Stroke:
    return Stroke(distance, relief, inks, [body_part(part)] * len(sitters))


def _foot(leg: Limb, sign: float) -> Tensor:
    bone = leg.lower
    return ellipse(bone.across, bone.along - bone.length, sign * 0.035, 0.01, 0.11, 0.072)


def _legs_box(sitter: Sitter) -> Box:
    points = joints(sitter)
    box = _around(points, ("right hip", "left hip", "right knee", "left knee", "right ankle", "left ankle"), 0.17)
    wide = 0.44 if any(garment.kind == "skirt" for garment in sitter.outfit) else 0.26
    middle = points["hips"][0]
    return _joined(box, (middle - wide, box[1], middle + wide, FOOT + 0.05))


def _trunk_box(sitter: Sitter) -> Box:
    points = joints(sitter)
    x, y = points["hips"]
    wide, low = (0.50, 0.50) if any(garment.kind == "dress" for garment in sitter.outfit) else (0.36, 0.16)
    return _joined((x - wide, points["head"][1], x + wide, y + low), _around(points, ("neck",), 0.3))


def _arm_box(side: str) -> Callable[[Sitter], Box]:
    names = (f"{side} shoulder", f"{side} elbow", f"{side} wrist")
    return lambda sitter: _around(joints(sitter), names, 0.14)


_BOXES: dict[str, Callable[[Sitter], Box]] = {
    "legs": _legs_box,
    "trunk": _trunk_box,
    "right arm": _arm_box("right"),
    "left arm": _arm_box("left"),
}
"""Boxes round the regions of a body, in the frame of the figure."""


def _around(points: Mapping[str, Point], names: Sequence[str], margin: float) -> Box:
    xs, ys = [points[name][0] for name in names], [points[name][1] for name in names]
    return min(xs) - margin, min(ys) - margin, max(xs) + margin, max(ys) + margin


def _joined(*boxes: Box) -> Box:
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _round(head: Point, box: Box) -> Box:
    """A box in half heights of the head, in the frame of the figure."""
    x, y = head
    return x + box[0] * HEAD, y + box[1] * HEAD, x + box[2] * HEAD, y + box[3] * HEAD
