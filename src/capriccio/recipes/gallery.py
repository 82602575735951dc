"""A gallery: scenes and panels of the training split, drawn once, encoded once, kept as latents with their truth.

Drawing is cheap and encoding is not; the sentences are drawn afresh at every use. Shards are written atomically, so an
interrupted gallery goes on where it stopped, and several processes fill one gallery together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from capriccio.world.draw import Drawing, draw, draw_panels
from capriccio.world.graph import Panels, SceneGraph, from_dict, sample_panels, sample_scene, to_dict

SHARD = 256
CELL = 4  # pixels of one cell of the part map


@dataclass(frozen=True)
class Wing:
    """One kind of picture of a gallery: how many panels, and how many pictures."""

    name: str
    rows: int
    columns: int
    count: int


WINGS = {
    "cpu": (Wing("scenes", 1, 1, 14_336), Wing("pairs", 1, 2, 6_144), Wing("grids", 2, 2, 256)),
    "gpu": (Wing("scenes", 1, 1, 122_880), Wing("pairs", 1, 2, 61_440), Wing("grids", 2, 2, 8_192)),
}
SUBJECTS = (0.55, 0.33, 0.08, 0.04)  # share of scenes with one to four subjects


@dataclass
class Pictures:
    """Pictures of one wing: latents (N, 8, H/8, W/8) scaled, part and ink maps (N, H/4, W/4), and what they show."""

    latents: np.ndarray
    parts: np.ndarray
    inks: np.ndarray
    graphs: list[SceneGraph | Panels]

    def __len__(self) -> int:
        return len(self.graphs)


def imagine(wing: Wing, rng: np.random.Generator, split: str = "train") -> SceneGraph | Panels:
    """One scene or one set of panels for a wing."""
    if wing.rows * wing.columns > 1:
        return sample_panels(rng, wing.rows, wing.columns, split)
    return sample_scene(rng, subjects=int(rng.choice(4, p=SUBJECTS)) + 1, split=split)


def depict(graphs: list[SceneGraph | Panels]) -> Drawing:
    """Draw scenes or panels (all of one kind)."""
    return draw(graphs) if isinstance(graphs[0], SceneGraph) else draw_panels(graphs)  # type: ignore[arg-type]


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Scaled latents, the mean of the posterior, of pictures in [-1, 1]."""
    mean = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pixels.split(16)])
    return (mean - vae.config.shift_factor) * vae.config.scaling_factor


def cells(labels: Tensor) -> np.ndarray:
    """Labels (B, H, W) read at the centre of every cell, as uint8 (B, H/4, W/4)."""
    return labels[:, CELL // 2 :: CELL, CELL // 2 :: CELL].to(torch.uint8).numpy()


def _shards(wing: Wing, folder: Path) -> Iterator[tuple[int, Path]]:
    for index in range(-(-wing.count // SHARD)):
        yield index, folder / f"{wing.name}-{index:04d}.npz"


def _write_shard(path: Path, wing: Wing, index: int, vae: AutoencoderKL, seed: int) -> None:
    rng = np.random.default_rng([seed, len(wing.name), wing.rows * wing.columns, index])
    graphs = [imagine(wing, rng) for _ in range(SHARD)]
    chunks = []
    for start in range(0, SHARD, 32):
        drawing = depict(graphs[start : start + 32])
        chunks.append((encode(vae, drawing.pixels).half().numpy(), cells(drawing.parts), cells(drawing.inks)))
    latents, parts, inks = (np.concatenate(column) for column in zip(*chunks, strict=True))
    scratch = path.with_suffix(".tmp.npz")
    np.savez(scratch, latents=latents, parts=parts, inks=inks, graphs=json.dumps([to_dict(graph) for graph in graphs]))
    os.replace(scratch, path)


def fill_gallery(folder: Path, vae: AutoencoderKL, budget: str, rank: int = 0, processes: int = 1, seed: int = 0) -> None:
    """Draw and encode the shards of this process that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for wing in WINGS[budget]:
        for index, path in _shards(wing, folder):
            if index % processes == rank and not path.exists():
                _write_shard(path, wing, index, vae, seed)
                print(f"gallery: {wing.name} {index + 1}/{-(-wing.count // SHARD)}", flush=True)


def open_wing(folder: Path, wing: Wing) -> Pictures:
    """Load all shards of a wing."""
    columns: list[tuple[np.ndarray, ...]] = []
    graphs: list[SceneGraph | Panels] = []
    for _, path in _shards(wing, folder):
        with np.load(path) as shard:
            columns.append((shard["latents"], shard["parts"], shard["inks"]))
            graphs += [from_dict(entry) for entry in json.loads(str(shard["graphs"]))]
    latents, parts, inks = (np.concatenate(column) for column in zip(*columns, strict=True))
    return Pictures(latents, parts, inks, graphs)
