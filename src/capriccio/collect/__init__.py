"""Data engines: from a folder of pictures to what a method learns from."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "collect_quadruplets": "run",
    **dict.fromkeys(("Cast", "Settings", "cast"), "sources"),
    **dict.fromkeys(("Limits", "Quadruplet", "Stages"), "quadruplets"),
    **dict.fromkeys(("Engine", "engine"), "engines"),
    "Quadruplets": "shards",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'capriccio.collect' has no attribute {name!r}")
    return getattr(import_module(f"capriccio.collect.{_HOMES[name]}"), name)
