"""The weights and cards that travel with the package, found by name.

>>> from capriccio import assets
>>> assets.path("miniature/flux")          # a folder that diffusers can load
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from capriccio.errors import CapriccioError, nearest

INSIDE = {"miniature/vae": "miniature/flux/vae", "miniature/t5": "miniature/flux/text_encoder_2"}
"""Assets that travel inside another one: that is where they are until they are trained again, each by itself."""


def path(name: str) -> Path:
    """Return the folder or file of an asset.

    Args:
        name: Its place below this package, such as ``"miniature/flux"``.

    Raises:
        CapriccioError: If no such asset was installed.
    """
    if not available(name):
        known = [folder for folder in _folders() if available(folder)]
        hint = nearest(name, known) if known else "no weights came with this copy"
        raise CapriccioError(
            f"There is no asset {name!r} ({hint}); `capriccio train miniature --all` makes the miniature's."
        )
    return _place(name)


def available(name: str) -> bool:
    """Return whether an asset is installed: a file, or a folder with something in it."""
    if not all(part.strip(".") for part in name.split("/")):
        return False
    place = _place(name)
    return place.is_file() or (place.is_dir() and any(place.iterdir()))


def _place(name: str) -> Path:
    # diffusers and transformers read folders, not streams: the package is always unpacked on disk.
    return place_below(Path(str(files(__package__))), name)


def place_below(root: Path, name: str) -> Path:
    """Return where an asset is, or would be, below a folder."""
    own = root.joinpath(*name.split("/"))
    return own if own.exists() or name not in INSIDE else root.joinpath(*INSIDE[name].split("/"))


def _folders() -> list[str]:
    root = Path(str(files(__package__)))
    return sorted(folder.relative_to(root).as_posix() for folder in root.glob("[!_]*/*") if folder.is_dir())
