"""Plain data in files: YAML and JSON, each key once, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from capriccio.errors import CapriccioError
from capriccio.pictures import write_whole

ENDINGS = (".yaml", ".yml", ".json")


def check_ending(path: str | os.PathLike[str], what: str) -> None:
    """Check that a file of data can have this name.

    Args:
        path: The file.
        what: It holds, with its article: ``"a scene"``.

    Raises:
        CapriccioError: If it ends in anything but .yaml, .yml or .json.
    """
    if Path(path).suffix.lower() not in ENDINGS:
        raise CapriccioError(
            f"{_upper(what)} is a .yaml, .yml or .json file, but received {Path(path).name!r}; change the ending."
        )


def write_mapping(path: str | os.PathLike[str], data: dict[str, Any], what: str) -> Path:
    """Write a map as YAML or JSON, whole or not at all.

    Raises:
        CapriccioError: If the name of the file says neither.
    """
    check_ending(path, what)
    dump = to_json if Path(path).suffix.lower() == ".json" else to_yaml
    return write_whole(Path(path), dump(data).encode("utf-8"))


def read_mapping(path: str | os.PathLike[str], what: str, keys: str, limit: int, too_large: str) -> dict[Any, Any]:
    """Return the map of a YAML or JSON file.

    Args:
        path: The file.
        what: It holds, with its article: ``"a scene"``.
        keys: That its map has, in words.
        limit: Bytes at most.
        too_large: What to do about a larger file.

    Raises:
        CapriccioError: If the file cannot be read, is no such file, holds a key twice or no map.
    """
    path, the = Path(path), f"The {what.partition(' ')[2]} {str(path)!r}"
    check_ending(path, what)
    parse: Callable[[str], Any] = _from_json if path.suffix.lower() == ".json" else _from_yaml
    try:
        if path.stat().st_size > limit:
            raise CapriccioError(f"{the} is larger than {limit // 2**20} MiB; {too_large}.")
        data = parse(path.read_text("utf-8"))
    except OSError as error:
        raise CapriccioError(f"{the} cannot be read ({error.strerror}); check the path.") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        if isinstance(error, CapriccioError):
            raise
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        place = f" near line {line + 1}" if line is not None else ""
        raise CapriccioError(f"{the} is not valid {path.suffix[1:].upper()}{place}; correct it.") from None
    if not isinstance(data, dict):
        raise CapriccioError(f"{the} holds {type(data).__name__}, but {what} is a map with {keys}; correct it.")
    return data


def to_yaml(data: dict[str, Any]) -> str:
    """Return a map as YAML, in its own order."""
    # PyYAML reads these line breaks, and the byte order mark, otherwise than it writes them; escaped, they are safe.
    plain = not set("\x85\u2028\u2029\ufeff") & set(to_json(data))
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=plain, width=120)


def to_json(data: dict[str, Any]) -> str:
    """Return a map as JSON for people."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def _once_each(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return a map of pairs; both formats would let the last of two equal keys win in silence."""
    result: dict[Any, Any] = {}
    for key, value in pairs:
        if key in result:
            raise CapriccioError(f"The file has the key {key!r} twice in one map; keep one of them.")
        result[key] = value
    return result


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which takes each key once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        _once_each((key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        return super().construct_mapping(node, deep)


def _from_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)


def _from_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once_each)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
