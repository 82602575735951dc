"""Reading pictures of the miniature's world: what a small trained network sees in pixels.

>>> from capriccio.perception.reader import read
>>> reading = read(pixels)                 # (B, 3, H, W) in [-1, 1]
>>> reading.kind, reading.main             # ['mug', ...], ['red', ...]
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from capriccio import assets
from capriccio.errors import CapriccioError
from capriccio.modules.reader import SIZE, Reader

_BATCH = 64


@dataclass(frozen=True)
class Reading:
    """What was read in B pictures; every list has one name a picture."""

    kind: list[str]
    main: list[str]
    accent: list[str]
    pattern: list[str]
    backdrop: list[str]
    style: list[str]
    accessory: list[str]
    """``"none"`` where nothing is worn."""
    box: Tensor
    """(B, 4): left, top, right, bottom of the subject as fractions."""
    mask: Tensor
    """(B, 32, 32): probability that a cell of 4 x 4 pixels shows the subject."""
    identity: Tensor
    """(B, 64) of unit length: near for pictures of the same individual."""
    confidence: dict[str, Tensor]
    """For each name, the probability (B,) that the reader gives to what it read."""


@cache
def load_reader(name: str = "miniature/reader") -> Reader:
    """Load the trained reader, once.

    Args:
        name: Its asset folder.

    Raises:
        CapriccioError: If its weights are not installed.
    """
    return with_weights(Reader(), name)


def with_weights(reader: Reader, name: str) -> Reader:
    """Give a reader the weights of an asset folder.

    Raises:
        CapriccioError: If they are not installed.
    """
    weights = load_file(assets.path(name) / "model.safetensors")
    reader.load_state_dict({key: value.float() for key, value in weights.items()})
    return reader.eval().requires_grad_(False)


@cache
def identity_threshold(name: str = "miniature/reader") -> float:
    """Return the cosine that 5 % of the pairs of different held-out individuals of one kind exceed."""
    return float(json.loads((assets.path(name) / "config.json").read_text())["identity_threshold"])


def read(pixels: Tensor, reader: Reader | None = None) -> Reading:
    """Read pictures of one subject each.

    Args:
        pixels: (B, 3, H, W) in [-1, 1]; other sizes than 128 x 128 are resized.
        reader: Who reads; the miniature's own if not given.

    Raises:
        CapriccioError: If the pixels have another shape.
    """
    names, confidence, said = understand(pixels, reader or load_reader())
    return Reading(
        **names,
        box=said["box"].clamp(0, 1),
        mask=said["mask"].sigmoid(),
        identity=said["identity"],
        confidence=confidence,
    )


def understand(pixels: Tensor, reader: Reader) -> tuple[dict[str, list[str]], dict[str, Tensor], Mapping[str, Tensor]]:
    """Names of all that a reader tells of pictures (B, 3, H, W), how sure it is (B,) of each, and its own words.

    Raises:
        CapriccioError: If the pixels have another shape.
    """
    if pixels.dim() != 4 or pixels.shape[1] != 3 or not len(pixels):
        raise CapriccioError(f"Received pixels of shape {tuple(pixels.shape)}: give at least one picture (B, 3, H, W).")
    with torch.no_grad():
        parts = [reader(_sized(part)) for part in pixels.split(_BATCH)]
    said = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    classes = reader.sight.classes
    best = {name: said[name].softmax(dim=1).max(dim=1) for name in classes}
    names = {name: [classes[name][index] for index in found.indices.tolist()] for name, found in best.items()}
    return names, {name: found.values for name, found in best.items()}, said


def same_individual(pixels: Tensor, others: Tensor) -> Tensor:
    """Return whether pictures, pair by pair, show the same individual beyond the 5 % impostor threshold, (B,)."""
    cosine = (read(pixels).identity * read(others).identity).sum(dim=1)
    return cosine > identity_threshold()


def _sized(pixels: Tensor) -> Tensor:
    floats = pixels.detach().float().cpu()
    if floats.shape[-2:] == (SIZE, SIZE):
        return floats
    return F.interpolate(floats, (SIZE, SIZE), mode="bilinear", antialias=True)
