"""capriccio: customised image generation, every method of the field in one house.

Names are loaded when first used, so that importing the package is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capriccio.errors import Cancelled, CapriccioError
    from capriccio.scene import Control, Edit, Layout, Lora, Region, Scene, Style, Subject
    from capriccio.studio import Painting, Studio

__version__ = "0.1.0"

_HOMES = {
    "Cancelled": "errors",
    "CapriccioError": "errors",
    "Control": "scene",
    "Edit": "scene",
    "Layout": "scene",
    "Lora": "scene",
    "Painting": "studio",
    "Region": "scene",
    "Scene": "scene",
    "Studio": "studio",
    "Style": "scene",
    "Subject": "scene",
}

__all__ = [
    "Cancelled",
    "CapriccioError",
    "Control",
    "Edit",
    "Layout",
    "Lora",
    "Painting",
    "Region",
    "Scene",
    "Studio",
    "Style",
    "Subject",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'capriccio' has no attribute {name!r}")
    return getattr(import_module(f"capriccio.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
