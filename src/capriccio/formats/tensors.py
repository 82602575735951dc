"""Files of weights by name, whoever wrote them, and whether they are those of a network."""

from __future__ import annotations

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
