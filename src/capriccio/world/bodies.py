"""The body under the clothes: a trunk, limbs and a head that bend with the skeleton and remember how they were cut.

Every point of a body has an *origin*: where the same point lies on the mannequin, whose arms are spread and whose limbs
are straight. Garments are cut and printed on the mannequin, so the worn and the flat view carry the very same print.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from capriccio.world.people import FACES, SKINS, Person, Pose, Sitter
from capriccio.world.shapes import Number, join, length, turn
from capriccio.world.skeleton import HEAD, SHOULDERS, WAIST, Point, breadth, joints

Coordinates = tuple[Tensor, Tensor]

MANNEQUIN = Sitter(
    Person("woman", next(iter(SKINS)), FACES[0], "bald", "black", "black", "straight", None, None, (0.0,) * 10),
    0.5,
    0.5,
    1.0,
    Pose("standing", (0.72, 0.72), (0.72, 0.72), (0.10, 0.10), (0.10, 0.10)),
)
"""On whom garments are cut."""
CUT = joints(MANNEQUIN)
"""Joints of the mannequin."""

_SOFT = 0.05  # half heights over which the two halves of a limb run into each other


class Bone:
    """Coordinates along and across a straight bone."""

    def __init__(self, x: Tensor, y: Tensor, start: Coordinates, end: Coordinates, cut: tuple[Point, Point]) -> None:
        dx, dy = end[0] - start[0], end[1] - start[1]
        self.length = (dx * dx + dy * dy).sqrt()
        dx, dy = dx / self.length, dy / self.length
        u, v = x - start[0], y - start[1]
        self.along = u * dx + v * dy
        self.across = u * dy - v * dx
        self.cut = cut

    def tapered(self, start: Number, end: Number) -> Tensor:
        """Distance to a limb round the bone whose radius runs from ``start`` to ``end``."""
        near = torch.minimum(self.along.clamp_min(0), self.length)
        return length(self.along - near, self.across) - near * ((end - start) / self.length) - start

    def origin(self) -> Coordinates:
        """Where these points lie on the mannequin."""
        (ax, ay), (bx, by) = self.cut
        span = ((bx - ax) ** 2 + (by - ay) ** 2) ** 0.5
        dx, dy = (bx - ax) / span, (by - ay) / span
        along = self.along * (span / self.length)
        return along * dx + self.across * dy + ax, along * dy - self.across * dx + ay


@dataclass(frozen=True)
class Limb:
    """An arm or a leg: two bones."""

    upper: Bone
    lower: Bone

    def skin(self, top: float, bend: float, end: float) -> Tensor:
        """Distance to the limb with the given radii at its three joints."""
        return join(self.upper.tapered(top, bend), self.lower.tapered(bend, end), _SOFT)

    def sleeve(self, top: Number, bend: Number, end: Number, reach: Tensor) -> Tensor:
        """Distance to cloth round the limb as far as ``reach``: 1 is the elbow or knee, 2 the wrist or ankle."""
        short = reach < 1
        upper = self.upper.tapered(top, bend)
        first = torch.maximum(upper, self.upper.along - torch.where(short, reach * self.upper.length, 9.0))
        second = torch.maximum(self.lower.tapered(bend, end), self.lower.along - (reach - 1) * self.lower.length)
        return join(first, second + 9.0 * short, _SOFT)

    def beyond(self, reach: Tensor, width: Number) -> Tensor:
        """Negative in the last ``width`` half heights before ``reach``."""
        upper = reach * self.upper.length - self.upper.along
        lower = (reach - 1) * self.lower.length - self.lower.along
        return torch.where(reach < 1, upper, lower) - width

    @cached_property
    def origin(self) -> Coordinates:
        """Where these points lie on the mannequin; the two halves run into each other at the bend."""
        share = (0.5 + (self.upper.tapered(0.1, 0.1) - self.lower.tapered(0.1, 0.1)) / (4 * _SOFT)).clamp_(0, 1)
        (ux, uy), (lx, ly) = self.upper.origin(), self.lower.origin()
        return ux.lerp_(lx, share), uy.lerp_(ly, share)


class Body:
    """``n`` bodies at points (n, h, w) given in the frames of their figures."""

    def __init__(self, x: Tensor, y: Tensor, sitters: Sequence[Sitter]) -> None:
        self.x, self.y, self.sitters = x, y, sitters
        self.known = [joints(sitter) for sitter in sitters]

    def joint(self, name: str) -> Coordinates:
        """Where a joint is, twice (n, 1, 1)."""
        places = self.numbers([points[name] for points in self.known])
        return places[..., 0], places[..., 1]

    def numbers(self, values: object) -> Tensor:
        """One number or point for each body, (n, 1, 1) or (n, 1, 1, 2)."""
        return torch.tensor(values, dtype=self.x.dtype, device=self.x.device)[:, None, None]

    @cached_property
    def trunk(self) -> Coordinates:
        """The points in the frame of the trunk of the mannequin."""
        hips = self.joint("hips")
        u, v = turn(self.x, self.y, self.numbers([sitter.pose.lean for sitter in self.sitters]), *hips)
        wide = self.numbers([SHOULDERS / breadth(sitter.person) for sitter in self.sitters])
        return u * wide, v + WAIST

    @cached_property
    def head(self) -> Coordinates:
        """The points in the frame of the head, in half heights of the head."""
        tilt = self.numbers([sitter.pose.lean + sitter.pose.tilt for sitter in self.sitters])
        u, v = turn(self.x, self.y, tilt, *self.joint("head"))
        return u / HEAD, v / HEAD

    @cached_property
    def arms(self) -> dict[str, Limb]:
        """The right and the left arm."""
        return {side: self._limb(side, ("shoulder", "elbow", "wrist")) for side in ("right", "left")}

    @cached_property
    def legs(self) -> dict[str, Limb]:
        """The right and the left leg."""
        return {side: self._limb(side, ("hip", "knee", "ankle")) for side in ("right", "left")}

    def _limb(self, side: str, names: tuple[str, str, str]) -> Limb:
        first, second, third = (f"{side} {name}" for name in names)
        bones = ((first, second), (second, third))
        upper, lower = (Bone(self.x, self.y, self.joint(a), self.joint(b), (CUT[a], CUT[b])) for a, b in bones)
        return Limb(upper, lower)
