"""Files of weights by name, whoever wrote them, and whether they are those of a network."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from capriccio.errors import CapriccioError, nearest

State = dict[str, Tensor]
_WHOLE = 256 * 2**20
"""Bytes up to which every weight is hashed; of larger networks, every 4099th."""
_UNREADABLE = (OSError, EOFError, SafetensorError, pickle.UnpicklingError, RuntimeError, TypeError, ValueError)


def read(path: Path) -> dict[str, Any]:
    """Read safetensors, or what ``torch.save`` wrote: no code is run, and the disk is read when a weight is used.

    Raises:
        CapriccioError: If it is neither, or holds anything but weights by name.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        return {str(name): value for name, value in loaded.items()}
    except _UNREADABLE as error:
        raise CapriccioError(
            f"The weights {str(path)!r} could not be read ({type(error).__name__}); give a file of safetensors, or one "
            "that torch.save wrote, in its present form and with nothing but weights by name."
        ) from None


def digest(weights: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> str:
    """Return a SHA-256 of weights and their names, ``"sampled:..."`` where they are too many to read them all.

    Args:
        weights: By name; not on the meta device.
        dtype: What they are rounded to before, so that one network in two precisions is the same; ``None`` is their
            own.
    """
    size = sum(value.numel() * (dtype or value.dtype).itemsize for value in weights.values())
    every = 1 if size <= _WHOLE else 4099
    found = hashlib.sha256()
    for name, value in sorted(weights.items()):
        part = value.detach().reshape(-1)[::every].to(device="cpu", dtype=dtype or value.dtype).contiguous()
        found.update(f"{name} {tuple(value.shape)} {part.dtype}".encode())
        found.update(part.view(torch.uint8).numpy().tobytes() if part.numel() else b"")
    return ("" if every == 1 else "sampled:") + found.hexdigest()


def check_fit(wanted: Mapping[str, torch.Size], found: Mapping[str, Tensor], complaint: str, remedy: str) -> None:
    """Check that weights are those of a network: all of them, no others, and of its shapes.

    Args:
        wanted: Shapes by name.
        found: What was read.
        complaint: How the sentence begins.
        remedy: How it ends.

    Raises:
        CapriccioError: If they are not.
    """
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or unexpected:
        example = f"{missing[0]!r} is missing" if missing else f"{unexpected[0]!r}: {nearest(unexpected[0], wanted)}"
        raise CapriccioError(
            f"{complaint}: {len(missing)} keys are missing and {len(unexpected)} unexpected ({example}); {remedy}."
        )
    for key, shape in wanted.items():
        if found[key].shape != shape:
            raise CapriccioError(
                f"{complaint}: {key!r} has the shape {tuple(found[key].shape)} instead of {tuple(shape)}; {remedy}."
            )
