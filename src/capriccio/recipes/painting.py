"""What the recipes of all painting models share: batches of the gallery, sentences, the part map, saving in half."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, TypeGuard

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor
from transformers import CLIPTextModel

from capriccio import assets
from capriccio.recipes import gallery
from capriccio.recipes.cuttings import UNIT, Cuttings, can_be_cut, only
from capriccio.recipes.gallery import CELL, Pictures, Visitor, Wing
from capriccio.training.trainer import Batch
from capriccio.world.captions import trait_caption
from capriccio.world.draw import NUM_INKS, NUM_PARTS
from capriccio.world.graph import SceneGraph
from capriccio.world.tokenizers import CLIP_LENGTH, clip_tokenizer
from capriccio.world.whole import UNKNOWN, Picture, describe
from capriccio.world.windows import ACCESSORY_PART, body_part

LATENTS = 8
FACTOR = 8  # pixels a side of one latent
PARTS, INKS = NUM_PARTS, NUM_INKS
SHOWN = 3.0  # what a cell of the part map counts that shows a thing
DRAWN = 2.0  # what a token counts that shows a thing, where a model is told to look at things
DETAILED = 3.0  # what a token counts beyond that for its cells that show another ink than most: patterns and outlines
FACED = 12.0  # what a token counts beyond that for its cells that show eyes, a mouth and what else tells faces apart
CROWDED = 0.6  # of the scenes show several things: which word belongs to which is learned last
TRAITS = 0.3  # of the sentences on one subject tell one trait of it, where a model learns from such
PARTLY = 0.12  # of the sentences on several things tell of one of them alone, where a model learns from such
FEATURES = tuple(body_part(name) for name in ("eyes", "brows", "mouth", "glasses", "beard"))
"""Classes of the part map that tell faces apart."""
LARGEST = "15MB"
"""File of weights in the repository, beyond which they are divided."""


def gather_cells(labels: Tensor, token: int) -> Tensor:
    """Label maps (B, H/4, W/4) as one row of cells for each square token of ``token`` pixels: (B, tokens, cells)."""
    side = token // CELL
    batch, height, width = labels.shape
    patches = labels.view(batch, height // side, side, width // side, side)
    return patches.permute(0, 1, 3, 2, 4).reshape(batch, -1, side * side)


def thing_share(parts: Tensor) -> Tensor:
    """Which share of each token shows a thing, (B, tokens), of its cells in the part map (B, tokens, cells)."""
    return ((parts > 0) & (parts != UNKNOWN)).float().mean(-1)


def people_share(parts: Tensor) -> Tensor:
    """Which share of each token shows a body or what it wears, (B, tokens), of its cells in the part map."""
    return ((parts > ACCESSORY_PART) & (parts != UNKNOWN)).float().mean(-1)


def face_share(parts: Tensor) -> Tensor:
    """Which share of each token shows features of a face, (B, tokens), of its cells in the part map."""
    return torch.isin(parts, torch.tensor(FEATURES, device=parts.device)).float().mean(-1)


def detail_share(inks: Tensor) -> Tensor:
    """Which share of each token shows another ink than most of it, (B, tokens), of its ink map (B, tokens, cells)."""
    most = inks.mode(-1, keepdim=True).values
    return (inks != most).float().mean(-1)


def thing_weights(parts: Tensor, inks: Tensor) -> Tensor:
    """What each token's error counts, (B, tokens), 1 on average: a thing ``DRAWN`` times, details and faces more.

    What a thing looks like is most of what words say, and a painter that may choose learns its backdrops first, of
    things their colours before their patterns and outlines, and of people their clothes before their faces.

    Args:
        parts: (B, tokens, cells); 0 is the backdrop.
        inks: (B, tokens, cells).
    """
    weights = 1.0 + (DRAWN - 1.0) * thing_share(parts) + DETAILED * detail_share(inks) + FACED * face_share(parts)
    return weights / weights.mean()


def thing_error(painted: Tensor, wanted: Tensor, parts: Tensor, inks: Tensor) -> Tensor:
    """Squared error of tokens (B, tokens, C), each by what it counts (``thing_weights``)."""
    return (thing_weights(parts, inks) * (painted.float() - wanted).square().mean(-1)).mean()


def map_loss(logits: Tensor, parts: Tensor, inks: Tensor) -> Tensor:
    """Cross-entropy of the part map and of the ink map, summed; cells of the class ``UNKNOWN`` do not count.

    A cell that shows some thing counts ``SHOWN`` times: what stands where, in which colour, is what only the words
    say, and the backdrop is most of every picture.

    Args:
        logits: (B, tokens, cells, parts + inks).
        parts: (B, tokens, cells); 0 is the backdrop.
        inks: (B, tokens, cells).
    """
    weights = torch.where(parts == 0, 1.0, SHOWN).masked_fill(parts == UNKNOWN, 0.0).flatten()
    losses = sum(
        F.cross_entropy(scores.flatten(0, 2), labels.flatten(), ignore_index=UNKNOWN, reduction="none")
        for scores, labels in zip(logits.float().split([PARTS, INKS], dim=-1), (parts, inks), strict=True)
    )
    return (losses * weights).sum() / weights.sum().clamp_min(1.0)


def has_traits(graph: Picture) -> TypeGuard[SceneGraph]:
    """Whether a picture shows one subject, alone and in colours that are its own."""
    return isinstance(graph, SceneGraph) and len(graph.cast) == 1 and graph.style == "shaded"


class Sentences:
    """Turns graphs into sentences and their word ids for CLIP, with caption dropout.

    Args:
        dropout: Which share of the pictures have no sentence.
        traits: Which share of the sentences on one subject, alone and shaded, tell one trait of it.
    """

    def __init__(self, dropout: float = 0.1, traits: float = 0.0) -> None:
        self.clip, self.dropout, self.traits = clip_tokenizer(), dropout, traits

    def say(self, graph: Picture, rng: np.random.Generator) -> str:
        """One sentence on a graph, or nothing."""
        if rng.random() < self.dropout:
            return ""
        if self.traits and has_traits(graph) and rng.random() < self.traits:
            return trait_caption(graph, rng)
        return describe(graph, rng)

    def clip_ids(self, texts: list[str], whole: bool = False) -> Tensor:
        """Word ids (B, T) of texts, padded to the longest, or as a whole to the 77 that CLIP always reads."""
        padding = "max_length" if whole else True
        settings = {"truncation": True, "max_length": CLIP_LENGTH, "return_tensors": "pt"}
        return self.clip(texts, padding=padding, **settings).input_ids

    def __call__(self, graphs: list[Picture], rng: np.random.Generator) -> Batch:
        return {"clip_ids": self.clip_ids([self.say(graph, rng) for graph in graphs], whole=True)}


@dataclass
class GalleryTask(Visitor):
    """A model that learns to paint the latents of the gallery from its sentences.

    Attributes:
        shares: How often a batch comes from each wing, in the order of the wings.
        sizes: Pictures in a batch from each wing, on a CPU; a GPU takes eight times as many.
        token: Pixels a side of one token of the part map.
        cut: Which share of the batches are cuttings of scenes.
        crowded: Which share of the scenes show several things.
        peopled: Which share of the batches show nothing but people, mostly one who is alone; the others then show none.
        patterned: Which share of the others show nothing but pictures with a pattern to learn from.
        partly: Which share of the sentences on several things tell of one of them alone, as people's often do.
        traits: Which share of the sentences on one subject tell one trait of it.
    """

    shares: ClassVar[Mapping[str, float]]
    sizes: ClassVar[Mapping[str, int]]
    token: ClassVar[int]
    cut: ClassVar[float] = 0.0
    crowded: ClassVar[float] = CROWDED
    peopled: ClassVar[float] = 0.0
    patterned: ClassVar[float] = 0.0
    partly: ClassVar[float] = 0.0
    traits: ClassVar[float] = 0.0

    @cached_property
    def clip(self) -> CLIPTextModel:
        encoder = CLIPTextModel.from_pretrained(assets.path("miniature/clip/text_encoder"), dtype=torch.float32)
        return encoder.eval().requires_grad_(False)

    @cached_property
    def sentences(self) -> Sentences:
        return Sentences(traits=self.traits)

    def choose_wing(self, rng: np.random.Generator) -> Wing:
        """The wing that a batch comes from; all wings cost about the same a batch."""
        return gallery.WINGS[self.budget][int(rng.choice(len(self.shares), p=list(self.shares.values())))]

    def batch(self, rng: np.random.Generator) -> Batch:
        if self.cut and rng.random() < self.cut and self.alone.windows:
            return self.cuttings(rng)
        wing = self.choose_wing(rng)
        pictures = self.wings[wing.name]
        rows = self.choose(pictures, self.size_of(wing.name), rng)
        return {
            "latents": torch.from_numpy(pictures.latents[rows]).float(),
            "parts": gather_cells(torch.from_numpy(pictures.parts[rows]).long(), self.token),
            "inks": gather_cells(torch.from_numpy(pictures.inks[rows]).long(), self.token),
            **self.sentences([self.told_of(pictures.graphs[row], rng) for row in rows], rng),
            **self.extras(wing, pictures, rows, rng),
        }

    def size_of(self, wing: str) -> int:
        """Pictures in a batch from a wing."""
        return self.sizes[wing] * (1 if self.budget == "cpu" else 8)

    def choose(self, pictures: Pictures, count: int, rng: np.random.Generator) -> np.ndarray:
        """Rows of a wing, so many of them with several things that a model learns whose words are whose."""
        worth = np.ones(len(pictures))
        if self.peopled and pictures.peopled.any() and not pictures.peopled.all():
            if rng.random() < self.peopled:
                return _draw(rng, pictures.peopled, count)
            worth = worth * (pictures.peopled == 0)
        if self.patterned and (worth * pictures.patterned).any() and rng.random() < self.patterned:
            worth = worth * pictures.patterned
        crowded, alone = worth * pictures.crowded, worth * ~pictures.crowded
        if not crowded.any() or not alone.any():
            return _draw(rng, worth, count)
        return np.where(rng.random(count) < self.crowded, _draw(rng, crowded, count), _draw(rng, alone, count))

    def told_of(self, graph: Picture, rng: np.random.Generator) -> Picture:
        """What of a picture its sentence tells: all of it, or one of several things."""
        if self.partly and rng.random() < self.partly and can_be_cut(graph):
            return only(graph, int(rng.integers(len(graph.things))))
        return graph

    @cached_property
    def alone(self) -> Cuttings:
        """What can be cut out of the scenes."""
        return Cuttings.of(self.wings["scenes"].graphs)

    def cuttings(self, rng: np.random.Generator) -> Batch:
        """A batch of single things out of scenes of several, from one window; its ``corner`` is (0, top, left)."""
        pictures = self.wings["scenes"]
        window, chosen = self.alone.choose(rng, 2 * self.size_of("scenes"))
        rows = [row for row, _ in chosen]
        maps = {"parts": pictures.parts, "inks": pictures.inks}
        cut = {name: torch.from_numpy(window.of(shown[rows], UNIT // CELL)).long() for name, shown in maps.items()}
        return {
            "latents": torch.from_numpy(window.of(pictures.latents[rows], UNIT // FACTOR)).float(),
            **{name: gather_cells(shown, self.token) for name, shown in cut.items()},
            "corner": torch.tensor([0.0, window.top, window.left]),
            **self.sentences([only(pictures.graphs[row], thing) for row, thing in chosen], rng),
        }

    def extras(self, wing: Wing, pictures: Pictures, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """What a fine-tune needs beside latents and words; nothing here."""
        return {}


def _draw(rng: np.random.Generator, worth: np.ndarray, count: int) -> np.ndarray:
    """Rows, each as often as it is worth among all."""
    return rng.choice(len(worth), count, p=worth / worth.sum())


def save_halved(pipe: DiffusionPipeline, folder: Path, largest: str = LARGEST) -> None:
    """Save a pipeline in half precision, such that a plain ``from_pretrained(folder)`` gives single precision.

    diffusers loads its own parts in single precision, transformers in the precision that their configuration names:
    left alone, a CPU would be asked to multiply one with the other.

    Args:
        pipe: Is in half precision afterwards.
        folder: Made if absent.
        largest: File of weights, beyond which they are divided.
    """
    pipe.to(torch.float16).save_pretrained(folder, max_shard_size=largest)
    for place in folder.glob("*_encoder*/config.json"):
        config = json.loads(place.read_text()) | {"dtype": "float32"}
        place.write_text(json.dumps(config, indent=2) + "\n")
    forget_origins(folder)


def forget_origins(folder: Path) -> None:
    """Take out of all configurations in a folder from where their parts were once loaded."""
    for place in folder.rglob("config.json"):
        config = {key: value for key, value in json.loads(place.read_text()).items() if key != "_name_or_path"}
        place.write_text(json.dumps(config, indent=2) + "\n")
