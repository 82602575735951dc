"""A gallery: scenes and panels of the training split, drawn once, encoded once, kept as latents with their truth.

Drawing is cheap and encoding is not; the sentences are drawn afresh at every use. Shards are written atomically, so an
interrupted gallery goes on where it stopped, and several processes fill one gallery together.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from capriccio import assets
from capriccio.training.hands import spare_hands, spread
from capriccio.world.graph import Panels, SceneGraph
from capriccio.world.views import View
from capriccio.world.whole import Picture, depict, from_dict, sample_picture, sample_sheet, to_dict

SHARD = 256
PANEL = 128  # pixels a side of a scene and of every panel
CELL = 4  # pixels of one cell of the part map


@dataclass(frozen=True)
class Wing:
    """One kind of picture of a gallery: how many panels, and how many pictures."""

    name: str
    rows: int
    columns: int
    count: int

    @property
    def is_panels(self) -> bool:
        """Whether its pictures are panels of one subject."""
        return self.rows * self.columns > 1


WINGS = {
    "cpu": (Wing("scenes", 1, 1, 36_864), Wing("pairs", 1, 2, 8_192), Wing("grids", 2, 2, 256)),
    "gpu": (Wing("scenes", 1, 1, 81_920), Wing("pairs", 1, 2, 28_672), Wing("grids", 2, 2, 2_048)),
}


PATTERN_WORTH = {"plain": 0.0, "striped": 1.0, "dotted": 3.0, "checkered": 3.0}
"""How often each pattern is shown where patterns are learned: what keeps step along one axis alone comes by itself."""


WHOLE_FIGURE_WORTH = 2.0
"""How often a whole figure is shown where people are learned, beside a close view, whose face is larger."""
OTHER_PEOPLE_WORTH = 0.2
"""How often several people, or one in another style, are shown where people are learned, beside one close view."""


@dataclass
class Pictures:
    """Pictures of one wing and their truth.

    Attributes:
        latents: (N, 8, H/8, W/8), scaled, half precision.
        parts: Part map, (N, H/4, W/4).
        inks: Ink map, (N, H/4, W/4).
        graphs: What every picture shows.
        shards: Pixels (SHARD, 3, H, W) as bytes, left on the disk.
        subjects: Of panels, the pixels of the subject as bits (SHARD, H, W / 8), left on the disk.
    """

    latents: np.ndarray
    parts: np.ndarray
    inks: np.ndarray
    graphs: list[Picture]
    shards: list[np.ndarray]
    subjects: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.graphs)

    @cached_property
    def crowded(self) -> np.ndarray:
        """Which pictures are scenes of several things or people, (N,) boolean."""
        return np.array([isinstance(graph, SceneGraph) and len(graph.cast) > 1 for graph in self.graphs])

    @cached_property
    def peopled(self) -> np.ndarray:
        """How often each picture is worth showing where people are learned, (N,); zero where there are none."""
        return np.array([_people_worth(graph) for graph in self.graphs])

    @cached_property
    def patterned(self) -> np.ndarray:
        """How often each picture is worth showing where patterns are learned, (N,); zero where there is none."""
        return np.array([_pattern_worth(graph) for graph in self.graphs])

    def pixels(self, rows: np.ndarray) -> Tensor:
        """Pictures (len(rows), 3, H, W) in [-1, 1]."""
        return torch.from_numpy(_rows_of(self.shards, rows)).float() / 127.5 - 1

    def masks(self, rows: np.ndarray) -> Tensor:
        """The visible pixels of the subject of panels, (len(rows), H, W) boolean."""
        return torch.from_numpy(np.unpackbits(_rows_of(self.subjects, rows), axis=-1)).bool()


def _first_scene(graph: Picture) -> SceneGraph | View:
    """Of panels the first tells, since all show one subject in one style."""
    return graph.scenes[0] if isinstance(graph, Panels) else graph


def _people_worth(graph: Picture) -> float:
    """Somebody alone, in the style that is nobody's in particular, teaches most words."""
    scene = _first_scene(graph)
    if not isinstance(scene, SceneGraph) or not scene.people:
        return 0.0
    if len(scene.cast) > 1 or scene.style != "shaded":
        return OTHER_PEOPLE_WORTH
    return WHOLE_FIGURE_WORTH if scene.people[0].size < 1 else 1.0


def _pattern_worth(graph: Picture) -> float:
    """People and solids count like a mean thing."""
    scene = _first_scene(graph)
    if not isinstance(scene, SceneGraph) or scene.people:
        return sum(PATTERN_WORTH.values()) / len(PATTERN_WORTH)
    return max(PATTERN_WORTH[thing.identity.pattern] for thing in scene.things) if scene.style == "shaded" else 0.0


def _rows_of(shards: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
    return np.stack([shards[row // SHARD][row % SHARD] for row in rows])


def imagine(wing: Wing, rng: np.random.Generator, split: str = "train", content: str | None = None) -> Picture:
    """One picture for a wing, of one content of the world or of any."""
    if wing.is_panels:
        return sample_sheet(rng, wing.rows, wing.columns, split, content)
    return sample_picture(rng, split, content)


def gallery_folder(runs: Path, content: str | None) -> Path:
    """Where the gallery of a folder of runs lies: each content has its own."""
    return runs / (f"gallery-{content}" if content else "gallery")


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Scaled latents, the mean of the posterior, of pictures in [-1, 1], on the device of both."""
    mean = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pixels.split(16)])
    return (mean - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def cells(labels: Tensor) -> np.ndarray:
    """Labels (B, H, W) read at the centre of every cell, as uint8 (B, H/4, W/4)."""
    return labels[:, CELL // 2 :: CELL, CELL // 2 :: CELL].to(torch.uint8).numpy()


def _shards(wing: Wing, folder: Path) -> list[Path]:
    return [folder / f"{wing.name}-{index:04d}" for index in range(-(-wing.count // SHARD))]


def _draw_shard(wing: Wing, content: str | None, seed: int, path: Path) -> Path:
    """Draw a shard, all but its latents, into a folder beside its place, and return that."""
    rng = np.random.default_rng([seed, wing.rows, wing.columns, int(path.name.rpartition("-")[2])])
    graphs = [imagine(wing, rng, content=content) for _ in range(SHARD)]
    columns: dict[str, list[np.ndarray]] = {"parts": [], "inks": [], "pixels": []}
    for start in range(0, SHARD, 32):
        drawing = depict(graphs[start : start + 32])
        columns["parts"].append(cells(drawing.parts))
        columns["inks"].append(cells(drawing.inks))
        if wing.is_panels:
            columns.setdefault("subjects", []).append(np.packbits(drawing.subjects[:, 0].numpy(), axis=-1))
        columns["pixels"].append(((drawing.pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy())
    scratch = path.with_suffix(".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for name, chunks in columns.items():
        np.save(scratch / f"{name}.npy", np.concatenate(chunks))
    (scratch / "graphs.json").write_text(json.dumps([to_dict(graph) for graph in graphs]))
    return scratch


def _hang_shard(scratch: Path, vae: AutoencoderKL) -> None:
    """Encode a shard that was drawn, and put it in its place."""
    pixels = torch.from_numpy(np.load(scratch / "pixels.npy"))
    latents = [encode(vae, chunk.to(vae.device) / 127.5 - 1).half().cpu().numpy() for chunk in pixels.split(32)]
    np.save(scratch / "latents.npy", np.concatenate(latents))
    shutil.rmtree(scratch.with_suffix(""), ignore_errors=True)
    os.replace(scratch, scratch.with_suffix(""))


def fill_gallery(
    folder: Path,
    vae: AutoencoderKL,
    budget: str,
    rank: int = 0,
    processes: int = 1,
    seed: int = 0,
    content: str | None = None,
) -> None:
    """Draw and encode the shards of this process that are not there yet, with the hands that the machine has to spare.

    Args:
        folder: The gallery; made if absent.
        vae: Encodes, where it is.
        budget: ``"cpu"`` or ``"gpu"``.
        rank: The process that this is.
        processes: How many fill the gallery together.
        seed: Of everything that is drawn.
        content: What the pictures show, one of ``world.whole.CONTENTS``; ``None`` is the whole world.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for wing in WINGS[budget]:
        paths = _shards(wing, folder)
        last = "subjects.npy" if wing.is_panels else "latents.npy"  # earlier galleries had no subjects
        missing = [path for path in paths[rank::processes] if not (path / last).exists()]
        for scratch in spread(partial(_draw_shard, wing, content, seed), missing, spare_hands(budget, processes)):
            _hang_shard(scratch, vae)
            print(f"gallery: {scratch.stem} of {len(paths)}", flush=True)


def open_wing(folder: Path, wing: Wing) -> Pictures:
    """Open all shards of a wing; pixels stay on the disk."""
    paths = _shards(wing, folder)
    latents, parts, inks = (
        np.concatenate([np.load(path / f"{name}.npy") for path in paths]) for name in ("latents", "parts", "inks")
    )
    graphs = [from_dict(entry) for path in paths for entry in json.loads((path / "graphs.json").read_text())]
    pixels, subjects = (
        [np.load(path / f"{name}.npy", mmap_mode="r") for path in paths if (path / f"{name}.npy").exists()]
        for name in ("pixels", "subjects")
    )
    return Pictures(latents, parts, inks, graphs, pixels, subjects)


@dataclass
class Visitor:
    """A task that learns from the gallery, which the first visit fills."""

    runs: Path
    budget: str = "cpu"
    rank: int = 0
    processes: int = 1
    content: str | None = None

    @cached_property
    def vae(self) -> AutoencoderKL:
        return AutoencoderKL.from_pretrained(assets.path("miniature/vae")).eval().requires_grad_(False)

    @cached_property
    def wings(self) -> dict[str, Pictures]:
        folder = gallery_folder(self.runs, self.content)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        fill_gallery(folder, self.vae.to(device), self.budget, self.rank, self.processes, content=self.content)
        if self.processes > 1:
            torch.distributed.barrier()
        return {wing.name: open_wing(folder, wing) for wing in WINGS[self.budget]}
