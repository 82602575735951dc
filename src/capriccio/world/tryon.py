"""Everything that virtual try-on wants to know of a person and a garment, exact from the scene graph.

The conventions are those of VITON-HD as LaDI-VTON and IDM-VTON read it: masks are 1 where the picture is to be painted
anew, the agnostic picture is grey there (0 in [-1, 1]), key points are the 18 of OpenPose, and the body map
takes the place of DensePose. What no public data set has is the *origin*: for every visible pixel of the worn garment,
where the same point lies on the flat picture, so that a warp can be trained and judged without a single annotation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from capriccio.errors import CapriccioError
from capriccio.world.bodies import Body
from capriccio.world.casting import flat, wearing
from capriccio.world.coat import Stroke, Window
from capriccio.world.draw import draw
from capriccio.world.figures import Stand, body_strokes, head_strokes
from capriccio.world.garments import laid
from capriccio.world.graph import Garment, SceneGraph
from capriccio.world.people import BODY_PARTS, GARMENTS, SLOTS, Sitter, garment_at, slot_of
from capriccio.world.shapes import box, capsule, union
from capriccio.world.skeleton import HEAD, keypoints
from capriccio.world.windows import body_part, garment_part

_BODY = ("face", "eyes", "brows", "mouth", "glasses", "beard", "hair", "right hand", "left hand")
_ARMS = ("right arm", "left arm")
KEPT: dict[str, tuple[str, ...]] = {
    "upper": _BODY,
    "dress": _BODY,
    "lower": (*_BODY, *_ARMS, *SLOTS["upper"]),
    "shoes": (*_BODY, *_ARMS, *SLOTS["upper"], *SLOTS["lower"], *SLOTS["dress"]),
    "hat": (),
}
"""Parts and garments that lie in front of every garment of a slot, so that the agnostic picture keeps them.

What lies behind some garments only is hidden with all: its outline would tell how long the sleeve was.
"""


@dataclass(frozen=True)
class TryOn:
    """Persons, each wearing the garment of its row, and all that is known about it."""

    person: Tensor
    """(B, 3, H, W) in [-1, 1]: the person wears the garment."""
    agnostic: Tensor
    """(B, 3, H, W) the same, grey (0) where the garment might be."""
    mask: Tensor
    """(B, 1, H, W) in {0, 1}: 1 where the agnostic picture is grey; it tells no garment from another of its slot."""
    garment: Tensor
    """(B, 3, H, W) in [-1, 1]: the garment laid flat on plain white."""
    garment_mask: Tensor
    """(B, 1, H, W) in {0, 1}: the garment in that picture."""
    worn: Tensor
    """(B, 1, H, W) in {0, 1}: its visible pixels on the person."""
    origin: Tensor
    """(B, H, W, 2): of worn pixels, x and y on the flat picture in [-1, 1], a grid for ``grid_sample``; elsewhere 2."""
    parts: Tensor
    """(B, H, W) int64: the part map of the person."""
    body: Tensor
    """(B, H, W) int64: 0, or 1 + index of ``BODY_PARTS``, as if nothing were worn: in the place of DensePose."""
    keypoints: Tensor
    """(B, 18, 2): x and y as fractions of the picture, in the order of ``skeleton.KEYPOINTS``."""
    visible: Tensor
    """(B, 18) bool: whether a key point is in the picture."""

    def warped(self) -> Tensor:
        """The flat picture brought to where it is worn, (B, 3, H, W), else white: what a warping network learns."""
        moved = grid_sample(self.garment, self.origin, align_corners=False, padding_mode="border")
        return torch.where(self.worn.bool(), moved, 1.0)

    def pose_maps(self, sigma: float = 9 / 512) -> Tensor:
        """Gaussians round the key points, see ``pose_maps``."""
        return pose_maps(self.keypoints, self.visible, self.person.shape[-1], sigma)


@torch.no_grad()
def tryon(scenes: Sequence[SceneGraph], garments: Sequence[Garment], size: int = 128) -> TryOn:
    """Draw people in the garments that they try on.

    Args:
        scenes: B scenes of one person each. What was worn in the garment's place is taken off; give the person's own
            garment for paired data, another one for unpaired.
        garments: B garments.
        size: Side of the pictures in pixels.

    Raises:
        CapriccioError: If a scene has not exactly one person, or there are not as many garments as scenes.
    """
    if len(scenes) != len(garments) or any(len(scene.people) != 1 or scene.things for scene in scenes):
        raise CapriccioError(
            f"Received {len(scenes)} scenes and {len(garments)} garments: give as many garments as scenes, "
            "and scenes of one person and nothing else."
        )
    sitters = [wearing(scene.people[0], garment) for scene, garment in zip(scenes, garments, strict=True)]
    dressed = draw([replace(scene, people=(one,)) for scene, one in zip(scenes, sitters, strict=True)], size)
    bare = draw([replace(scene, people=(undressed(one),)) for scene, one in zip(scenes, sitters, strict=True)], size)
    product = draw([flat(garment) for garment in garments], size)
    slots = [slot_of(garment.kind) for garment in garments]
    traced = [_traced(one, garment, size) for one, garment in zip(sitters, garments, strict=True)]
    first = body_part(BODY_PARTS[0])
    mask = torch.stack([agnostic_mask(one, slot, size) for one, slot in zip(sitters, slots, strict=True)])
    kept = torch.stack([_kept(parts, slot) for parts, slot in zip(dressed.parts, slots, strict=True)])
    worn = torch.stack([one.worn for one in traced])
    mask = ((mask & ~kept) | worn)[:, None].float()
    points = [keypoints(one) for one in sitters]
    return TryOn(
        person=dressed.pixels,
        agnostic=dressed.pixels * (1 - mask),
        mask=mask,
        garment=product.pixels,
        garment_mask=product.subjects.any(1, keepdim=True).float(),
        worn=worn[:, None].float(),
        origin=torch.stack([one.origin for one in traced]),
        parts=dressed.parts,
        body=(bare.parts - first + 1).clamp_min(0),
        keypoints=torch.stack([place for place, _ in points]),
        visible=torch.stack([seen for _, seen in points]),
    )


def undressed(sitter: Sitter) -> Sitter:
    """The paper doll alone, in its underwear."""
    return replace(sitter, outfit=(), accessory=None)


def agnostic_mask(sitter: Sitter, slot: str, size: int = 128) -> Tensor:
    """Where any garment of a slot might be on somebody, (size, size) bool: from the skeleton alone.

    Nothing of what is worn enters, so that the mask cannot tell a sleeveless dress from a coat.
    """
    axis = (torch.arange(size) + 0.5) / size
    half = sitter.size / 2
    x, y = ((axis - sitter.x) / half)[None, None, :], ((axis - sitter.y) / half)[None, :, None]
    body = Body(x.expand(1, size, size), y.expand(1, size, size), [sitter])
    regions = {
        "upper": (_trunk, _arms),
        "lower": (_legs,),
        "dress": (_trunk, _arms, _legs),
        "hat": (_crown,),
        "shoes": (_feet,),
    }[slot]
    return union(*(region(body) for region in regions))[0] < 0


def pose_maps(points: Tensor, visible: Tensor, size: int, sigma: float = 9 / 512) -> Tensor:
    """Gaussian maps of key points, as LaDI-VTON takes them: exp(-d² / sigma²).

    Args:
        points: (B, K, 2), x and y as fractions of the picture.
        visible: (B, K) bool: the maps of other points are zero.
        size: Side of the maps in pixels.
        sigma: Width as a fraction of the picture; the paper's 9 px of 512.

    Returns:
        (B, K, size, size) in [0, 1].
    """
    axis = (torch.arange(size).to(points) + 0.5) / size
    across = (axis - points[..., :1]).square()[:, :, None, :]
    down = (axis - points[..., 1:]).square()[:, :, :, None]
    return torch.exp(-(across + down) / sigma**2) * visible[..., None, None]


def garment_swap(sitter: Sitter, other: Sitter, slot: str) -> tuple[Sitter, Sitter]:
    """Two people who have exchanged what they wear at a slot.

    Raises:
        CapriccioError: If one of them wears nothing there.
    """
    mine, yours = garment_at(sitter, slot), garment_at(other, slot)
    if mine is None or yours is None:
        raise CapriccioError(
            f"Received somebody who wears nothing at {slot!r}: choose a slot at which both wear something."
        )
    return wearing(sitter, yours), wearing(other, mine)


@dataclass
class _Trace:
    """Where the points of one garment come from, while strokes are laid over it."""

    garment: Garment
    worn: Tensor
    origin: Tensor

    def over(self, stroke: Stroke, window: Window) -> None:
        solid = stroke.distance[0] < 0
        if stroke.cloth is None or stroke.cloth.garments[0] != self.garment:
            self.worn[window].masked_fill_(solid, False)
            return
        x, y = laid(self.garment.kind, (stroke.cloth.origin[0][0], stroke.cloth.origin[1][0]))
        self.worn[window].masked_fill_(solid, True)
        (thing,) = flat(self.garment).things
        # The garment fills that share of its flat picture.
        place = torch.stack([x, y], -1) * thing.size
        self.origin[window] = torch.where(solid[..., None], place, self.origin[window])


def _traced(sitter: Sitter, garment: Garment, size: int) -> _Trace:
    """Follow every stroke of a sitter over the whole picture."""
    reach = [(-sitter.x * 2 / sitter.size, -sitter.y * 2 / sitter.size, 9.0, 9.0)]
    stand = Stand([sitter], reach, size, "cpu")
    trace = _Trace(garment, torch.zeros(size, size, dtype=torch.bool), torch.full((size, size, 2), 2.0))
    for stroke, window in (*body_strokes(stand), *head_strokes(stand)):
        trace.over(stroke, window)
    trace.origin[~trace.worn] = 2.0
    return trace


def _kept(parts: Tensor, slot: str) -> Tensor:
    """Which pixels show what stays as it is whatever is worn, (H, W) bool."""
    kinds = [garment_part(name) for name in KEPT[slot] if name in GARMENTS]
    names = [body_part(name) for name in KEPT[slot] if name not in GARMENTS]
    return torch.isin(parts, torch.tensor([*names, *kinds, *(kind + 1 for kind in kinds)]))


def _trunk(body: Body) -> Tensor:
    (nx, ny), (hx, hy) = body.known[0]["neck"], body.known[0]["hips"]
    return box(body.x, body.y, (nx + hx) / 2, (ny + hy) / 2 + 0.01, 0.37, (hy - ny) / 2 + 0.18, 0.1)


def _arms(body: Body) -> Tensor:
    return _limbs(body, ("shoulder", "elbow", "wrist"), 0.165)


def _legs(body: Body) -> Tensor:
    hx, hy = body.known[0]["hips"]
    return union(_limbs(body, ("hip", "knee", "ankle"), 0.185), box(body.x, body.y, hx, hy + 0.15, 0.49, 0.36, 0.1))


def _feet(body: Body) -> Tensor:
    feet = []
    for side in ("right", "left"):
        (kx, ky), (ax, ay) = body.known[0][f"{side} knee"], body.known[0][f"{side} ankle"]
        feet.append(capsule(body.x, body.y, (kx + ax) / 2, (ky + ay) / 2, ax, ay, 0.2))
    return union(*feet)


def _crown(body: Body) -> Tensor:
    # Down to the eyes, which stay.
    return HEAD * box(*body.head, 0.0, -1.02, 1.55, 0.84, 0.1)


def _limbs(body: Body, names: tuple[str, ...], radius: float) -> Tensor:
    bones = [
        capsule(body.x, body.y, *body.known[0][f"{side} {start}"], *body.known[0][f"{side} {end}"], radius)
        for side in ("right", "left")
        for start, end in pairwise(names)
    ]
    return union(*bones)
