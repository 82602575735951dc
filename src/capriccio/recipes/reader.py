"""The miniature's reader: names what a picture shows and measures whether two pictures show the same individual.

It learns from renders that are zoomed, softened and recoloured a little, so that it also reads pictures that a model
painted. Half of a batch are scenes of their own; in the other half an individual comes twice, in two scenes, and a
rival of its kind stands in the very same two scenes, so that only the individual itself tells them apart.

The recipes of its sisters, ``people_reader`` and ``solid_reader``, take losses, augmentations and measures from here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from capriccio.modules.reader import CLASSES, MAP, SIZE, Reader, bounds
from capriccio.training.optimisers import muon_and_adamw
from capriccio.training.trainer import Batch, Row, Schedule
from capriccio.world.captions import COLOURLESS
from capriccio.world.draw import Drawing, draw
from capriccio.world.graph import (
    COLOURS,
    STUDIO,
    Backdrop,
    Identity,
    SceneGraph,
    sample_identity,
    sample_panels,
    sample_scene,
)
from capriccio.world.whole import Picture, depict

Family = Callable[[np.random.Generator], Sequence[Picture]]
"""Draws four pictures: two of one individual, and the same two with a rival in its place."""

IGNORED = -100
TEMPERATURE = 0.1
WEIGHTS_FILE = "model.safetensors"
WEIGHTS = {"kind": 1.0, "main": 1.0, "accent": 1.0, "pattern": 1.0, "backdrop": 0.5, "style": 0.3, "accessory": 0.5}


def draw_family(rng: np.random.Generator, split: str = "train", style: str | None = None) -> list[SceneGraph]:
    """Two scenes of one individual, and the same two scenes with a rival of its kind in its place."""
    scenes = [sometimes_bare(scene, rng) for scene in sample_panels(rng, 1, 2, split, style).scenes]
    return scenes + [with_identity(scene, rival) for rival in [rival_of(scenes[0], rng, split)] for scene in scenes]


def rival_of(scene: SceneGraph, rng: np.random.Generator, split: str) -> Identity:
    """Another individual of the kind: one time in three a twin that no caption tells apart."""
    shown = scene.things[0].identity
    other = sample_identity(rng, split, shown.kind)
    return twin_of(shown, other) if rng.random() < 1 / 3 else other


def twin_of(identity: Identity, other: Identity) -> Identity:
    """An individual of whom all words are true that are true of one, in the proportions of another of its kind."""
    return replace(other, main=identity.main, accent=identity.accent, pattern=identity.pattern)


def with_identity(scene: SceneGraph, identity: Identity) -> SceneGraph:
    """The scene with somebody else in the place of its first thing."""
    return replace(scene, things=(replace(scene.things[0], identity=identity), *scene.things[1:]))


def truth(scenes: Sequence[SceneGraph]) -> Batch:
    """Class indices (B,) for each name of ``CLASSES``; what cannot be seen is ``IGNORED``."""
    return indices([_names(scene) for scene in scenes], CLASSES)


def indices(rows: Sequence[Mapping[str, str]], classes: Mapping[str, tuple[str, ...]]) -> Batch:
    """Places (B,) of what rows say among the names of each class; ``IGNORED`` where they say nothing that is there."""
    return {
        name: torch.tensor([names.index(row[name]) if row.get(name) in names else IGNORED for row in rows])
        for name, names in classes.items()
    }


def maps(drawing: Drawing) -> Tensor:
    """Share of the subject and of every colour in each cell, (B, 1 + colours, 32, 32) in [0, 1]."""
    return cell_shares(drawing.subjects.any(1)[:, None], drawing.inks, len(COLOURS))


def cell_shares(masks: Tensor, inks: Tensor, count: int) -> Tensor:
    """How much of each cell is filled, (B, M + count, 32, 32) in [0, 1].

    Args:
        masks: (B, M, 128, 128) bool.
        inks: (B, 128, 128): 0 for none, else one of 1 to ``count``.
        count: How many inks there are.
    """
    step = SIZE // MAP // 2  # two samples a side are enough, and cheap
    painted = F.one_hot(inks[:, ::step, ::step], 1 + count)[..., 1:].permute(0, 3, 1, 2)
    return F.avg_pool2d(torch.cat([masks[..., ::step, ::step], painted], dim=1).float(), 2)


def centres(scenes: Sequence[SceneGraph]) -> Tensor:
    """Where the first things are, (B, 2), x and y in [-1, 1]."""
    return torch.tensor([[2 * scene.things[0].x - 1, 2 * scene.things[0].y - 1] for scene in scenes])


def zooms(
    places: Tensor, rng: np.random.Generator, nearer: float = 1.4, farther: float = 1.3, stray: float = 0.3
) -> Tensor:
    """Affine maps (B, 2, 3) that enlarge or shrink pictures and move their subjects near the middle.

    Args:
        places: Where the subjects are, (B, 2), x and y in [-1, 1].
        rng: Chooses.
        nearer: By how much pictures are enlarged at most.
        farther: By how much they are shrunk at most.
        stray: How far from the middle subjects come to be.
    """
    count = len(places)
    scale = torch.from_numpy(np.exp(rng.uniform(np.log(1 / nearer), np.log(farther), count))).float()[:, None]
    shift = places - scale * torch.from_numpy(rng.uniform(-stray, stray, (count, 2))).float()
    return torch.cat([torch.eye(2) * scale[:, :, None], shift[:, :, None]], dim=2)


def look(pictures: Tensor, affine: Tensor) -> Tensor:
    """Pictures (B, C, H, W) through affine maps (B, 2, 3); what lies beyond a border is the border's."""
    grid = F.affine_grid(affine, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def shaken(box: Tensor, rng: np.random.Generator) -> Tensor:
    """Boxes (B, 4) whose sides are a little off, as a reader's own are."""
    return box + torch.from_numpy(rng.normal(0, 0.015, box.shape)).float()


def soften(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur, recolour and dirty pictures (B, 3, H, W) in [-1, 1] a little, each to its own degree."""
    count = len(pixels)

    def each(low: float, high: float, width: int = 1) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, width, 1, 1))).float()

    blurred = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear")
    mixed = torch.lerp(pixels, blurred, each(-0.6, 1.0).clamp_min(0))
    coarse = torch.from_numpy(rng.standard_normal((count, 3, SIZE // 4, SIZE // 4))).float()
    stain = F.interpolate(coarse, scale_factor=4, mode="bilinear") * each(-0.08, 0.12).clamp_min(0)
    return (mixed * each(0.92, 1.08) + each(-0.05, 0.05, 3) + stain).clamp(-1, 1)


def name_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy of logits (B, C) where there is something to name; zero where there is nothing in the batch."""
    if (wanted == IGNORED).all():
        return logits.sum() * 0
    return F.cross_entropy(logits, wanted, ignore_index=IGNORED)


def cell_loss(logits: Tensor, shares: Tensor) -> Tensor:
    """Cross-entropy of logits (B, C, h, w) in the cells, by the shares (B, C, h, w) of the classes in them."""
    return -(logits.log_softmax(1) * shares).sum() / shares.sum().clamp_min(1)


def overlap_loss(logits: Tensor, shares: Tensor) -> Tensor:
    """One less the overlap of masks (Dice, Milletari et al. 2016, section 3, of plain sums), over those that are shown.

    A small part counts as much as a large one, and a part that is seldom seen as one that always is.

    Args:
        logits: (B, ..., h, w).
        shares: How much of each cell is filled, in [0, 1], the same shape.
    """
    said, shown = logits.sigmoid(), shares.amax((-2, -1)) > 0.5
    common, all_told = (said * shares).sum((-2, -1)), (said + shares).sum((-2, -1))
    return ((1 - 2 * common / all_told) * shown).sum() / shown.sum().clamp_min(1)


def identity_loss(embeddings: Tensor, members: Tensor) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, Eq. 2): views of one member attract, all others repel.

    Args:
        embeddings: (B, D) of unit length.
        members: (B,) who is seen.
    """
    itself = torch.eye(len(members), dtype=torch.bool, device=members.device)
    logits = (embeddings @ embeddings.T / TEMPERATURE).masked_fill(itself, float("-inf"))
    alike = (members[:, None] == members[None]) & ~itself
    log_share = logits - logits.logsumexp(1, keepdim=True)
    return -log_share[alike].mean()


def is_muons(name: str, value: Tensor) -> bool:
    """The matrices inside the network are Muon's; the first and the last layers AdamW's."""
    first_or_last = name.startswith(("glance.0.0.", "close.0.", "cells.", "heads.", "embed."))
    return name.endswith((".kernel", ".weight")) and not first_or_last


@dataclass
class ReaderTask:
    """Train the reader, half on families of four scenes, half on single ones.

    Families alone would do for the embedding, but a batch would then hold so few kinds that the names learn nothing.
    """

    budget: str = "cpu"
    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=12, warmup=50))
    start: Path | None = None  # a finished folder to go on from
    name: str = "reader"

    network: ClassVar[type[Reader]] = Reader
    weights: ClassVar[Mapping[str, float]] = WEIGHTS

    def models(self) -> nn.Module:
        torch.manual_seed(self.schedule.seed)
        reader: Any = self.network()  # PyTorch's annotations do not know this form of ``to``
        if self.start is not None:
            reader.load_state_dict(load_file(self.start / WEIGHTS_FILE))
        return reader.to(memory_format=torch.channels_last)

    def optimisers(self, model: nn.Module) -> list[Optimizer]:
        return muon_and_adamw(model, is_muons, muon_lr=3e-3, adamw_lr=1.2e-3)

    def batch(self, rng: np.random.Generator) -> Batch:
        families = 6 if self.budget == "cpu" else 64
        scenes = [scene for _ in range(families) for scene in draw_family(rng)]
        scenes += [sample_scene(rng) for _ in range(4 * families)]
        drawing = draw(scenes)
        pixels, cells = drawing.pixels, maps(drawing)
        chosen = torch.from_numpy(np.flatnonzero(rng.random(len(scenes)) < 0.4))
        affine = zooms(centres(scenes)[chosen], rng)
        pixels[chosen], cells[chosen] = look(pixels[chosen], affine), look(cells[chosen], affine)
        colourless = torch.tensor([scene.style in COLOURLESS for scene in scenes])
        return {
            "pixels": soften(pixels, rng).contiguous(memory_format=torch.channels_last),
            "mask": cells[:, 0],
            "inks": cells[:, 1:] * ~colourless[:, None, None, None],
            "box": shaken(bounds(cells[:, 0] > 0.5), rng),
            "member": torch.cat(
                [torch.arange(2 * families).repeat_interleave(2), torch.arange(2 * families, 6 * families)]
            ),
            **truth(scenes),
        }

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        said = {name: value.float() for name, value in model(batch["pixels"], batch["box"]).items()}
        named = {name: name_loss(said[name], batch[name]) for name in self.weights}
        masks = self.mask_loss(said["mask"], batch["mask"])
        inks = cell_loss(said["inks"], batch["inks"])
        who = identity_loss(said["identity"], batch["member"])
        names = torch.stack([weight * named[name] for name, weight in self.weights.items()]).sum()
        cells = masks + inks
        return names + cells + 0.5 * who, {**named, "cells": cells, "identity": who}

    def mask_loss(self, logits: Tensor, shares: Tensor) -> Tensor:
        """What masks cost, for logits and shares of the same shape."""
        return 2 * F.binary_cross_entropy_with_logits(logits, shares)

    def save(self, model: nn.Module, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = {"identity_threshold": round(impostor_threshold(model, self.family), 4)}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        weights = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
        save_file(weights, folder / WEIGHTS_FILE)

    def family(self, rng: np.random.Generator) -> Sequence[Picture]:
        """A held-out family on which identity is measured; its rival is no twin."""
        scenes = list(sample_panels(rng, 1, 2, "test", "shaded").scenes)
        rival = sample_identity(rng, "test", scenes[0].things[0].identity.kind)
        return scenes + [with_identity(scene, rival) for scene in scenes]

    def measure(self, model: nn.Module) -> list[Row]:
        rng = np.random.default_rng(5)
        shaded = _rates(model, [sample_scene(rng, split="test", style="shaded") for _ in range(512)])
        styled = _rates(model, [sample_scene(rng, split="test") for _ in range(512)])
        return [
            *(Row(f"reader_{name}", shaded[name], 0.97, 0.995) for name in ("kind", "main", "pattern", "backdrop")),
            *(Row(f"reader_{name}", shaded[name], 0.90, 0.97) for name in ("accent", "accessory")),
            Row("reader_style", styled["style"], 0.97, 0.995),
            Row("reader_same_identity", same_member_rate(model, self.family), 0.90, 0.97),
        ]


@torch.no_grad()
def accuracies(model: nn.Module, pixels: Tensor, wanted: Batch) -> dict[str, float]:
    """The share of pictures (B, 3, 128, 128) in which each name is read rightly, among those where it can be seen."""
    said = [model(chunk) for chunk in pixels.split(64)]
    rates = {}
    for name, answers in wanted.items():
        best, judged = torch.cat([part[name] for part in said]).argmax(1), answers != IGNORED
        rates[name] = round(float((best == answers)[judged].float().mean()), 4)
    return rates


def impostor_threshold(model: nn.Module, family: Family) -> float:
    """The cosine that 5 % of the pairs of different held-out individuals of one kind, each in its own scene, exceed."""
    first, _, _, impostor = _families(model, family)
    return float(_likest(first, impostor))


def same_member_rate(model: nn.Module, family: Family) -> float:
    """The share of pairs of scenes of one individual whose embeddings are more alike than the impostor threshold."""
    first, second, _, impostor = _families(model, family)
    return round(float(((first * second).sum(1) > _likest(first, impostor)).float().mean()), 4)


def _likest(one: Tensor, other: Tensor) -> Tensor:
    """The cosine that 5 % of pairs of embeddings exceed."""
    return (one * other).sum(1).quantile(0.95)


@torch.no_grad()
def _families(model: nn.Module, family: Family, count: int = 256) -> list[Tensor]:
    """Identity embeddings (count, 64) of the four pictures of held-out families: twice one, twice its rival."""
    rng = np.random.default_rng(6)
    pictures = [picture for _ in range(count) for picture in family(rng)]
    embeddings = torch.cat([model(chunk)["identity"] for chunk in depict(pictures).pixels.split(64)])
    return list(embeddings.view(count, 4, -1).unbind(1))


def _rates(model: nn.Module, scenes: Sequence[SceneGraph]) -> dict[str, float]:
    return accuracies(model, draw(scenes).pixels, truth(scenes))


def _names(scene: SceneGraph) -> dict[str, str]:
    thing = scene.things[0]
    colours = ("", "") if scene.style in COLOURLESS else (thing.identity.main, thing.identity.accent)
    return {
        "kind": thing.identity.kind,
        "main": colours[0],
        "accent": colours[1],
        "pattern": thing.identity.pattern,
        "backdrop": scene.backdrop.kind,
        "style": scene.style,
        "accessory": thing.accessory or "none",
    }


def sometimes_bare(scene: SceneGraph, rng: np.random.Generator) -> SceneGraph:
    """One scene in twelve on plain white, where references stand once their background is removed."""
    return replace(scene, backdrop=Backdrop(STUDIO)) if rng.random() < 1 / 12 else scene
