"""The whole world: one sampler, one pencil and one voice for whatever a picture can show.

Objects, people, garments laid flat and solids under cameras, each by its share; sheets of panels that show one object
or one person twice or more, or a garment beside somebody who wears it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from capriccio.world import graph
from capriccio.world.captions import Detail, caption, panel_caption, sample_caption, sample_panel_caption
from capriccio.world.casting import flat, sample_garment, sample_people, sample_people_panels, sample_tryon_panels
from capriccio.world.draw import Drawing, draw, draw_panels
from capriccio.world.graph import STUDIO, Backdrop, Panels, SceneGraph, sample_panels, sample_scene
from capriccio.world.views import View, draw_views, sample_view, view_caption, view_from_dict, view_to_dict
from capriccio.world.words import sample_detail

Picture = SceneGraph | Panels | View

CONTENTS = ("objects", "people", "garments", "solids")
SHARES = (0.62, 0.24, 0.05, 0.09)
SHEETS = ("objects", "people", "garments")
SHEET_SHARES = (0.72, 0.18, 0.10)
SUBJECTS = (0.55, 0.33, 0.08, 0.04)
"""Share of scenes of objects with one to four of them."""
GROUPS = ((1, 0), (1, 1), (2, 0), (3, 0))
GROUP_SHARES = (0.76, 0.10, 0.11, 0.03)
"""Share of scenes of people with so many people, and so many things beside them."""
SHADED_ANYWAY = 0.4  # the world's own share of other styles, one in four, becomes one in seven
WHITE_SCENES, WHITE_PANELS = 0.05, 0.3
UNKNOWN = 255
"""The class of every pixel of the maps where nothing is said of parts or inks."""


def sample_picture(rng: np.random.Generator, split: str = "train", content: str | None = None) -> SceneGraph | View:
    """Draw what one picture shows; some scenes stand on plain white, as product photos of the web do.

    Args:
        rng: Source of every choice.
        split: ``"train"`` or ``"test"``.
        content: One of ``CONTENTS``; ``None`` chooses by ``SHARES``.
    """
    chosen = content or str(rng.choice(CONTENTS, p=SHARES))
    if chosen == "solids":
        return sample_view(rng, split, front=0.3)
    if chosen == "garments":
        return flat(sample_garment(rng, split))
    style = _style(rng)
    if chosen == "people":
        people, things = GROUPS[int(rng.choice(len(GROUPS), p=GROUP_SHARES))]
        scene = sample_people(rng, people, split, style, things=things)
    else:
        scene = sample_scene(rng, subjects=int(rng.choice(4, p=SUBJECTS)) + 1, split=split, style=style)
    return _on_white(scene) if rng.random() < WHITE_SCENES else scene


def sample_sheet(
    rng: np.random.Generator, rows: int = 1, columns: int = 2, split: str = "train", content: str | None = None
) -> Panels:
    """Draw panels of one subject; in some, one panel stands on plain white.

    Args:
        rng: Source of every choice.
        rows: Rows of the grid.
        columns: Columns of the grid; garments and who wears them take two panels in a row, other grids leave them out.
        split: ``"train"`` or ``"test"``.
        content: One of ``SHEETS``; ``None`` chooses by ``SHEET_SHARES``.
    """
    chosen = content or str(rng.choice(SHEETS, p=SHEET_SHARES))
    if chosen == "garments" and (rows, columns) == (1, 2):
        return sample_tryon_panels(rng, split)
    sample = sample_people_panels if chosen == "people" else sample_panels
    panels = sample(rng, rows, columns, split, _style(rng))
    white = int(rng.integers(len(panels.scenes))) if rng.random() < WHITE_PANELS else None
    return replace(panels, scenes=tuple(_on_white(s) if i == white else s for i, s in enumerate(panels.scenes)))


def depict(pictures: Sequence[Picture], size: int = 128, device: torch.device | str = "cpu") -> Drawing:
    """Draw sheets of one form, or pictures of any content.

    Of solids nothing is said of parts and inks (``UNKNOWN``), and depth is 0.
    """
    if isinstance(pictures[0], Panels):
        return draw_panels(pictures, size, device)  # type: ignore[arg-type]
    scenes = [row for row, one in enumerate(pictures) if isinstance(one, SceneGraph)]
    views = [row for row, one in enumerate(pictures) if isinstance(one, View)]
    pieces = [draw([pictures[row] for row in scenes], size, device)] if scenes else []  # type: ignore[misc]
    if views:
        pieces.append(_solids([pictures[row] for row in views], size, device))  # type: ignore[misc]
    return _merged(pieces).rows(torch.argsort(torch.tensor(scenes + views)).tolist())


def describe(picture: Picture, rng: np.random.Generator, detail: Detail | None = None) -> str:
    """Say what a picture shows, in as much detail as asked for, or drawn as captions to learn from are."""
    if isinstance(picture, View):
        return view_caption(picture, rng, detail or sample_detail(rng))
    if isinstance(picture, Panels):
        return panel_caption(picture, rng, detail) if detail else sample_panel_caption(picture, rng)
    return caption(picture, rng, detail) if detail else sample_caption(picture, rng)


def to_dict(picture: Picture) -> dict[str, Any]:
    """Return what a picture shows as nested dictionaries and lists that JSON can hold."""
    return view_to_dict(picture) if isinstance(picture, View) else graph.to_dict(picture)


def from_dict(data: Mapping[str, Any]) -> Picture:
    """Rebuild what ``to_dict`` returned.

    Raises:
        CapriccioError: If a key is missing or unknown, or a name is not of the world.
    """
    return view_from_dict(data) if "solid" in data else graph.from_dict(data)


def _solids(views: Sequence[View], size: int, device: torch.device | str) -> Drawing:
    sights = draw_views(views, size, device)
    unknown = torch.full_like(sights.parts, UNKNOWN)
    return Drawing(sights.pixels, sights.mask[:, None], unknown, unknown, torch.zeros_like(sights.depth))


def _merged(pieces: Sequence[Drawing]) -> Drawing:
    """Drawings one after the other; those of fewer subjects get empty ones."""
    most = max(piece.subjects.shape[1] for piece in pieces)
    widened = [
        replace(piece, subjects=F.pad(piece.subjects, (0, 0, 0, 0, 0, most - piece.subjects.shape[1])))
        for piece in pieces
    ]
    return Drawing(*(torch.cat([getattr(piece, field.name) for piece in widened]) for field in fields(Drawing)))


def _style(rng: np.random.Generator) -> str | None:
    return "shaded" if rng.random() < SHADED_ANYWAY else None


def _on_white(scene: SceneGraph) -> SceneGraph:
    return replace(scene, backdrop=Backdrop(STUDIO))
