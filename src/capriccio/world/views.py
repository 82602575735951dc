"""Views of solids as plain data: who is seen, by which camera, before what; their pictures and their words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from capriccio.errors import CapriccioError, nearest
from capriccio.world import backdrops
from capriccio.world.cameras import Cameras, cam_to_world, cameras, sample_rig, view_word
from capriccio.world.captions import Detail, backdrop_phrase, identity_phrase
from capriccio.world.graph import BACKDROPS, STUDIO, Backdrop, Identity, sample_backdrop
from capriccio.world.render import Layers, model_of, render
from capriccio.world.solids import sample_solid

PAPER = "paper"
"""The backdrop that only solids have: a plain sheet of one soft colour behind and under them."""

_PAPER = Backdrop(PAPER)
GROUNDS = (PAPER, STUDIO, *BACKDROPS)
"""What solids may stand before."""
_SHEETS = ("on a plain background", "on plain paper", "")
_TOLD = (
    "{subject} {place}, {word} view",
    "{subject}, {word} view, {place}",
    "{word} view of {subject} {place}",
    "a {word} view of {subject} {place}",
    "{subject} {place}, seen from the {seen}",
)
_SEEN = {"front": "front", "side": "side", "back": "back", "overhead": "top"}


@dataclass(frozen=True)
class View:
    """A solid seen by one camera before a backdrop; angles in degrees, conventions in ``cameras``."""

    solid: Identity
    azimuth: float
    elevation: float
    distance: float
    fov: float
    backdrop: Backdrop = _PAPER

    @property
    def word(self) -> str:
        """Front, side, back or overhead."""
        return view_word(self.azimuth, self.elevation)


@dataclass(frozen=True)
class Sights:
    """Pictures of B views and their truth; depth, normals and parts as in ``Layers``."""

    pixels: Tensor
    """(B, 3, H, W) in [-1, 1]."""
    mask: Tensor
    """(B, H, W) bool."""
    depth: Tensor
    """(B, H, W)."""
    normals: Tensor
    """(B, 3, H, W)."""
    parts: Tensor
    """(B, H, W) int64."""
    matrices: Tensor
    """(B, 4, 4) from camera to world."""


def sample_views(
    rng: np.random.Generator,
    count: int = 4,
    split: str = "train",
    kind: str | None = None,
    backdrop: str | None = PAPER,
) -> tuple[View, ...]:
    """Draw one solid and ``count`` views of it evenly round, at one height and distance, before one backdrop.

    Args:
        rng: Source of every choice.
        count: How many views; four are MVDream's.
        split: ``"train"`` or ``"test"``.
        kind: One of ``SOLIDS``, or ``None`` for any.
        backdrop: ``PAPER``, ``"studio"``, one of ``BACKDROPS``, or ``None`` for any of these.

    Raises:
        CapriccioError: If a name is unknown.
    """
    solid, rig = sample_solid(rng, split, kind), sample_rig(rng, count)
    return views_of(solid, rig, _sample_ground(rng, backdrop))


def sample_view(rng: np.random.Generator, split: str = "train", kind: str | None = None, front: float = 0.0) -> View:
    """Draw one view before any backdrop; with probability ``front`` it is a front view, as photographers prefer."""
    (view,) = sample_views(rng, 1, split, kind, None)
    turned = float(rng.uniform(-45, 45)) % 360 if rng.random() < front else view.azimuth
    return View(view.solid, round(turned, 4), view.elevation, view.distance, view.fov, view.backdrop)


def views_of(solid: Identity, c: Cameras, backdrop: Backdrop = _PAPER) -> tuple[View, ...]:
    """Views of one solid by cameras."""
    numbers = torch.stack([c.azimuth, c.elevation, c.distance, c.fov], 1).double().round(decimals=4).tolist()
    return tuple(View(solid, turned, raised, far, fov, backdrop) for turned, raised, far, fov in numbers)


def view_to_dict(view: View) -> dict[str, Any]:
    """Return a view as nested dictionaries that JSON can hold."""
    return asdict(view)


def view_from_dict(data: Mapping[str, Any]) -> View:
    """Rebuild what ``view_to_dict`` returned.

    Raises:
        CapriccioError: If a key is missing or unknown.
    """
    try:
        solid, backdrop = dict(data["solid"]), data["backdrop"]
        solid["shape"] = tuple(solid["shape"])
        ground = Backdrop(backdrop["kind"], tuple(backdrop["variation"]))
        return View(**{**data, "solid": Identity(**solid), "backdrop": ground})
    except (KeyError, TypeError) as error:
        raise CapriccioError(f"This is no view ({error}): give what view_to_dict returns.") from error


def cameras_of(views: Sequence[View], device: torch.device | str = "cpu") -> Cameras:
    """The cameras of views."""
    return cameras(*([getattr(one, name) for one in views] for name in ("azimuth", "elevation", "distance", "fov"))).to(
        device
    )


@torch.no_grad()
def draw_views(views: Sequence[View], size: int = 128, device: torch.device | str = "cpu") -> Sights:
    """Draw views with all their truth.

    Args:
        views: One or more views, of any kinds.
        size: Side of the pictures in pixels.
        device: Where to draw.

    Raises:
        CapriccioError: If there is nothing to draw or the size is less than 8.
    """
    if not views or size < 8:
        raise CapriccioError(f"Received {len(views)} views at {size} px: give at least one view and 8 px or more.")
    rows: list[int] = []
    pieces: list[Layers] = []
    for members in _by_kind(views):
        chosen = [views[row] for row in members]
        rows += members
        pieces.append(render(model_of([one.solid for one in chosen], device), cameras_of(chosen, device), size))
    back = torch.argsort(torch.tensor(rows, device=device))
    layers = Layers(*(torch.cat([getattr(one, name.name) for one in pieces])[back] for name in fields(Layers)))
    pixels = layers.over(_grounds(views, size, device)).clamp(0, 1) * 2 - 1
    mask = layers.cover[:, 0] > 0.5
    return Sights(pixels, mask, layers.depth, layers.normals, layers.parts, cam_to_world(cameras_of(views, device)))


def view_caption(view: View, rng: np.random.Generator, detail: Detail = "full", word: bool = True) -> str:
    """Say a view in one sentence.

    Args:
        view: What is seen.
        rng: Chooses among synonyms and forms.
        detail: ``"full"``, ``"brief"`` or ``"kind"``, as for scenes.
        word: Whether to say from where it is seen, as DreamFusion's prompts do; MVDream's never do.
    """
    place = _place_phrase(view.backdrop.kind, rng)
    subject = identity_phrase(view.solid, rng, detail)
    form = _TOLD[int(rng.integers(len(_TOLD)))] if word else "{subject} {place}"
    text = form.format(subject=subject, place=place, word=view.word, seen=_SEEN[view.word])
    text = text.replace(" ,", ",").rstrip(", ").replace("a overhead", "an overhead")
    return f"{text}, 3d asset" if rng.random() < 0.5 else text


def _sample_ground(rng: np.random.Generator, kind: str | None) -> Backdrop:
    if kind is not None and kind not in GROUNDS:
        raise CapriccioError(f"Received the backdrop {kind!r}, which solids do not have: {nearest(kind, GROUNDS)}")
    drawn = sample_backdrop(rng, kind if kind in BACKDROPS else None)
    plain = kind is None and rng.random() < 0.5
    return Backdrop(PAPER if plain else kind or drawn.kind, drawn.variation)


def _by_kind(views: Sequence[View]) -> Iterator[list[int]]:
    """Rows of the views of each kind."""
    for kind in dict.fromkeys(view.solid.kind for view in views):
        yield [row for row, view in enumerate(views) if view.solid.kind == kind]


def _grounds(views: Sequence[View], size: int, device: torch.device | str) -> Tensor:
    """What is behind the solids, (B, 3, size, size) in [0, 1]."""
    ground = torch.empty(len(views), 3, size, size, device=device)
    for is_paper in (True, False):
        rows = [row for row, view in enumerate(views) if (view.backdrop.kind == PAPER) is is_paper]
        if rows:
            chosen = [views[row].backdrop for row in rows]
            ground[rows] = _paper(chosen, size, device) if is_paper else backdrops.paint(chosen, size, device)
    return ground


def _paper(sheets: Sequence[Backdrop], size: int, device: torch.device | str) -> Tensor:
    """Sheets of paper in a pastel or a grey, darker towards the corners; hue and strength from the variation."""
    numbers = torch.tensor([one.variation for one in sheets], dtype=torch.float32, device=device)
    light, phase, hue = (numbers[:, index, None] for index in (1, 2, 3))
    wheel = (torch.tensor([0.0, 1 / 3, 2 / 3], device=device) + hue / 2) % 1
    tint = ((wheel - 0.5).abs() * 2 - 0.5) * 0.17 * (1 + phase)
    colour = (0.84 + 0.08 * light + tint).clamp(0, 0.98)[:, :, None, None]
    axis = (torch.arange(size, device=device) + 0.5) / size - 0.5
    away = (axis[None, :] ** 2 + (axis[:, None] + 0.15) ** 2)[None, None]
    return colour * (1.04 - 0.35 * away)


def _place_phrase(kind: str, rng: np.random.Generator) -> str:
    return _SHEETS[int(rng.integers(len(_SHEETS)))] if kind == PAPER else backdrop_phrase(kind, rng)
