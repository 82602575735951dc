"""The procedural world of the miniature: scene graphs, their pictures, their words and their truth.

Names are loaded when first used: the graph needs only NumPy, whatever draws needs torch.
``capriccio.world.draw`` is the module; the function of that name is in it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    **dict.fromkeys(
        (
            "ACCESSORIES", "BACKDROPS", "COLOURS", "KINDS", "PATTERNS", "SIZES", "STUDIO", "STYLES",
            "Backdrop", "Garment", "Identity", "Panels", "SceneGraph", "Thing",
            "sample_identity", "sample_panels", "sample_scene", "size_word", "split_of",
        ),
        "graph",
    ),
    **dict.fromkeys(("Drawing", "draw_panels"), "draw"),
    **dict.fromkeys(("GARMENTS", "POSES", "SLOTS", "Person", "Pose", "Sitter"), "people"),
    **dict.fromkeys(
        (
            "flat", "sample_garment", "sample_people", "sample_people_panels", "sample_person", "sample_tryon",
            "sample_tryon_panels", "wearing",
        ),
        "casting",
    ),
    "TryOn": "tryon",
    "draw_diet": "diet",
    **dict.fromkeys(("View", "draw_views", "sample_view", "sample_views", "view_caption"), "views"),
    **dict.fromkeys(("SOLIDS", "sample_solid"), "solids"),
    **dict.fromkeys(("Edit", "draw_edits", "sample_edit"), "edits"),
    **dict.fromkeys(("depict", "describe", "from_dict", "sample_picture", "sample_sheet", "to_dict"), "whole"),
    **dict.fromkeys(("Interleaved", "draw_interleaved", "sample_interleaved"), "interleaved"),
}  # fmt: skip

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'capriccio.world' has no attribute {name!r}")
    return getattr(import_module(f"capriccio.world.{_HOMES[name]}"), name)
