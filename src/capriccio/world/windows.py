"""Things of one kind, drawn together, each in a window round itself: form, paint, light and shadow.

The light needs no geometry but the distances: where a part curves, near its edge, its surface leans along the gradient
of its distance, so soft light, a glint and a soft shadow follow from what the outline already says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from capriccio.world.garments import build_flat
from capriccio.world.graph import FEET, KINDS, Identity, Thing
from capriccio.world.inks import NAMES, cover, palette, pattern
from capriccio.world.kinds import Figure, Part, Role, build, worn
from capriccio.world.people import BODY_PARTS, GARMENTS

ACCESSORY_PART = 1 + 2 * len(KINDS)
NUM_PARTS = 1 + ACCESSORY_PART + len(BODY_PARTS) + 2 * len(GARMENTS)
"""Classes of the part map: background, body and accent of each kind, accessory; people; garments like kinds."""

_LIGHT = (-0.46, -0.64)  # towards the light, on the picture plane
_GLINT = (-0.34, -0.48)  # the lean at which a surface mirrors the light
_HALO = 7.0  # pixels of soft darkness round a thing
_ABOVE, _BELOW = 0.42, 0.06  # what windows hold above and below an object in half sides: accessories, shadow
_MARGIN = 8  # pixels round that, so that the halo ends inside


@dataclass(frozen=True)
class Windows:
    """``n`` things of one kind in windows of ``h`` by ``w`` pixels."""

    left: list[int]
    top: list[int]
    colour: Tensor
    """(n, 3, h, w) lit, in [0, 1]."""
    flat: Tensor
    """(n, 3, h, w) unlit, in [0, 1]."""
    cover: Tensor
    """(n, 1, h, w) in [0, 1]."""
    shade: Tensor
    """(n, 1, h, w) in [0, 1]: what the things leave of the light behind them."""
    parts: Tensor
    """(n, h, w) float: classes of the part map, meant only where the cover is more than half."""
    inks: Tensor
    """(n, h, w) float: 1 + index of the colour, likewise."""
    relief: Tensor
    """(n, h, w) in [0, 1]: how far the surface bulges towards the viewer."""


@dataclass(frozen=True)
class Frame:
    """Where the windows are, and the coordinates of their pixels in the frame of each object."""

    left: list[int]
    top: list[int]
    x: Tensor
    y: Tensor
    half: Tensor
    """(n, 1, 1) half of the longer side in pixels."""
    sign: Tensor
    """(n, 1, 1): -1 where the object is flipped."""


class _Paint:
    """A picture of the things that grows part by part, from back to front."""

    def __init__(self, frame: Frame, print_: Tensor) -> None:
        self.frame, self.print = frame, print_
        self.nearest = torch.full_like(print_, 1e3)
        self.lean_x, self.lean_y = torch.zeros_like(print_), torch.zeros_like(print_)
        self.shares: dict[Role, Tensor] = {}

    def over(self, part: Part) -> None:
        """Paint one part over the earlier ones."""
        pixels = part.distance * self.frame.half
        covered = cover(pixels)
        torch.minimum(self.nearest, pixels, out=self.nearest)
        if not isinstance(part.relief, float) or part.relief > 0:
            curve = (pixels / (part.relief * self.frame.half)).add_(1).clamp_(0, 1).mul_(0.5)
            along_x, along_y = differences(pixels)
            self.lean_x.lerp_(along_x.mul_(curve), covered)
            self.lean_y.lerp_(along_y.mul_(curve), covered)
        if part.role is not Role.MAIN and part.role not in self.shares:
            self.shares[part.role] = torch.zeros_like(covered)
        for role, share in self.shares.items():
            share.lerp_(share.new_ones(()) if role is part.role else share.new_zeros(()), covered)

    def main(self) -> Tensor:
        """Share of the patterned parts, (n, h, w)."""
        return 1 - torch.stack([*self.shares.values()]).sum(0)

    def flat(self, colours: Tensor) -> Tensor:
        """Colours without light, (n, 3, h, w), for ``colours`` (n, roles, 3)."""
        main, accent = self.main(), self.print
        shares = torch.stack([main * (1 - accent), main * accent, *self.shares.values()], 1)
        mixed = colours[:, [Role.MAIN, Role.ACCENT, *self.shares]].transpose(1, 2) @ shares.flatten(2)
        return mixed.unflatten(2, accent.shape[1:])

    def cover(self) -> Tensor:
        """Coverage (n, h, w) in [0, 1] of the things."""
        return cover(self.nearest)

    def parts(self, kind: str) -> Tensor:
        """Classes of the part map inside the things, (n, h, w) float."""
        main = garment_part(kind) if kind in GARMENTS else 1 + 2 * KINDS.index(kind)
        classes = torch.full_like(self.print, float(main))
        for role, name in ((Role.ACCENT, main + 1.0), (Role.WORN, float(ACCESSORY_PART))):
            if role in self.shares:
                classes.lerp_(classes.new_tensor(name), _exceeds(self.shares[role], 0.5))
        return classes

    def inks(self, names: Tensor) -> Tensor:
        """Colour numbers of the strongest paint, (n, h, w) float, for the numbers ``names`` (n, roles)."""
        columns = names[:, :, None, None]
        result = torch.lerp(columns[:, Role.MAIN], columns[:, Role.ACCENT], _exceeds(self.print, 0.5))
        best = self.main()
        for role, share in self.shares.items():
            result.lerp_(columns[:, role], _exceeds(share, best))
            best = torch.maximum(best, share)
        return result

    def lit(self, flat: Tensor) -> Tensor:
        """Colours in the light, (n, 3, h, w)."""
        return light(flat, self.lean_x, self.lean_y, self.frame.y)

    def relief(self) -> Tensor:
        """Height of the surface in [0, 1], (n, h, w): 1 where it faces the viewer."""
        return (1 - self.lean_x.square() - self.lean_y.square()).clamp_(0, 1).sqrt_()

    def shade(self, foot: float | None, grounded: Tensor) -> Tensor:
        """What is left of the light behind the things: a contact shadow and a soft halo, (n, h, w)."""
        dark = halo(self.nearest)
        if foot is not None:
            dark = torch.maximum(dark, contact(self.frame.x * self.frame.sign, self.frame.y, foot))
        return 1 - dark * grounded


def light(flat: Tensor, lean_x: Tensor, lean_y: Tensor, y: Tensor) -> Tensor:
    """Soft light from the upper left, a bounce from below, a glint.

    Args:
        flat: Colours without light, (n, 3, h, w).
        lean_x: How far the surface leans to the right, (n, h, w).
        lean_y: How far it leans downwards.
        y: Ordinates in the frame of each thing.
    """
    facing = lean_x * _LIGHT[0] + lean_y * _LIGHT[1]
    bright = 1.0 + 0.42 * facing - 0.07 * y
    bounce = (-facing - 0.62).clamp_min_(0)
    spread = (lean_x - _GLINT[0]).square_().add_((lean_y - _GLINT[1]).square_())
    glint = (1 - spread * 7.0).clamp_(0, 1).square_().mul_(0.42)
    # A little of every colour is white, so that black things show their form too.
    picture = (flat * bright[:, None]).add_((facing + bounce).mul_(0.05)[:, None])
    return picture.lerp_(picture.new_ones(()), glint[:, None]).clamp_(0, 1)


def halo(nearest: Tensor) -> Tensor:
    """Soft darkness round things, in [0, 1], from the distance to the nearest part in pixels."""
    return (1 - nearest / _HALO).clamp_(0, 1).square_().mul_(0.26)


def contact(x: Tensor, y: Tensor, foot: float) -> Tensor:
    """Shadow where things meet the ground, in [0, 1]."""
    along, across = (x - 0.06) / 0.82, (y - foot - 0.01) / 0.15
    return (1 - along.square() - across.square()).clamp_(0, 1).mul_(0.52)


def extent(thing: Thing, size: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom, in pixels, of all that a thing and its shadow may change in a shaded picture."""
    half, x, y = thing.size * size / 2, thing.x * size, thing.y * size
    # Handles and arms reach a little farther than the longer side, and throw their halo from there.
    margin = _MARGIN + 0.2 * half

    def inside(place: float) -> int:
        return min(max(round(place), 0), size)

    return (
        inside(x - half - margin),
        inside(y - half * (1 + _ABOVE) - margin),
        inside(x + half + margin),
        inside(y + half * (1 + _BELOW) + margin),
    )


def draw_kind(
    kind: str, things: Sequence[Thing], grounded: Sequence[bool], size: int, device: torch.device | str
) -> Windows:
    """Draw things of one kind.

    Args:
        kind: Their kind.
        things: The n things.
        grounded: Whether each throws a shadow on what is behind it.
        size: Side of the picture in pixels.
        device: Where to draw.
    """
    frame = _frame(things, size, device)
    figure = built(kind, frame.x, frame.y, [thing.identity for thing in things])
    print_ = pattern(frame.x * frame.half, frame.y * frame.half, [one.identity for one in things], 2 * frame.half)
    paint = _Paint(frame, print_)
    for part in (*figure.parts, *_accessories(figure, things)):
        paint.over(part)
    names = [_ink_names(thing) for thing in things]
    flat = paint.flat(palette(device)[torch.tensor(names, device=device)])
    # Garments are laid flat: no foot touches the ground, and a breath of shadow shows white ones on plain white.
    laid = kind in GARMENTS
    dark = [0.5 if laid else float(one) for one in grounded]
    shade = paint.shade(None if laid else FEET[kind], _column(dark, device)[:, None, None])
    return Windows(
        frame.left,
        frame.top,
        paint.lit(flat),
        flat,
        paint.cover()[:, None],
        shade[:, None],
        paint.parts(kind),
        paint.inks(_column(names, device) + 1),
        paint.relief(),
    )


def body_part(name: str) -> int:
    """Class of one of ``BODY_PARTS`` in the part map."""
    return ACCESSORY_PART + 1 + BODY_PARTS.index(name)


def garment_part(kind: str) -> int:
    """Class of the main part of a garment in the part map; that of its accent is the next."""
    return ACCESSORY_PART + 1 + len(BODY_PARTS) + 2 * GARMENTS.index(kind)


def built(kind: str, x: Tensor, y: Tensor, identities: Sequence[Identity]) -> Figure:
    """Build the parts of objects of one kind, or of garments that are laid flat."""
    if kind in GARMENTS:
        return build_flat(kind, x, y, identities)
    return build(kind, x, y, _column([one.shape for one in identities], x.device))


def _ink_names(thing: Thing) -> list[int]:
    """Colour indices by role; details are black, or white on black things."""
    one = thing.identity
    detail = "white" if one.main == "black" else "black"
    return [NAMES.index(name) for name in (one.main, one.accent, detail, "white", thing.accessory_colour or "black")]


def _exceeds(one: Tensor, other: Tensor | float) -> Tensor:
    """1 where ``one`` is greater, else 0; on the CPU far faster than comparing and converting."""
    return (one - other).mul_(1e9).clamp_(0, 1)


def _accessories(figure: Figure, things: Sequence[Thing]) -> Iterator[Part]:
    for name in dict.fromkeys(thing.accessory for thing in things if thing.accessory):
        rows = torch.tensor(
            [row for row, thing in enumerate(things) if thing.accessory == name], device=figure.x.device
        )
        distance = torch.full_like(figure.x, 1e2)
        distance[rows] = worn(figure, name, rows)
        yield Part(distance, Role.WORN, 0.16)


def differences(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Differences across two pixels along both axes; zero on the border, where things never are."""
    along_x, along_y = torch.zeros_like(pixels), torch.zeros_like(pixels)
    torch.sub(pixels[:, :, 2:], pixels[:, :, :-2], out=along_x[:, :, 1:-1])
    torch.sub(pixels[:, 2:], pixels[:, :-2], out=along_y[:, 1:-1])
    return along_x, along_y


def _frame(things: Sequence[Thing], size: int, device: torch.device | str) -> Frame:
    halves = [thing.size * size / 2 for thing in things]
    wide = min(size, ceil(max(halves) * 2) + 2 * _MARGIN)
    tall = min(size, ceil(max(halves) * (2 + _ABOVE + _BELOW)) + 2 * _MARGIN)
    left = [_start(one.x * size - wide / 2, wide, size) for one in things]
    top = [
        _start(one.y * size - half * (1 + _ABOVE) - _MARGIN, tall, size)
        for one, half in zip(things, halves, strict=True)
    ]
    half, sign = (
        _column(values, device)[:, None, None] for values in (halves, [1 - 2 * one.flipped for one in things])
    )
    corners = _column(
        [[one.x * size - x, one.y * size - y] for one, x, y in zip(things, left, top, strict=True)], device
    )
    centre_x, centre_y = corners[:, 0, None, None], corners[:, 1, None, None]
    x = (torch.arange(wide, device=device)[None, None, :] + 0.5 - centre_x) / half * sign
    y = (torch.arange(tall, device=device)[None, :, None] + 0.5 - centre_y) / half
    shape = (len(things), tall, wide)
    return Frame(left, top, x.expand(shape).contiguous(), y.expand(shape).contiguous(), half, sign)


def _start(wanted: float, length: int, size: int) -> int:
    return max(0, min(size - length, round(wanted)))


def _column(values: object, device: torch.device | str) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
