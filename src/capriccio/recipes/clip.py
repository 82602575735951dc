"""The miniature's CLIP: a text and an image encoder that put a picture and its caption in the same place.

Symmetric InfoNCE (Radford et al. 2021, arXiv 2103.00020, Fig. 3). Helpers that are thrown away make it learn within
minutes: both embeddings must name the subject's attributes through the same linear heads, and every image patch must
say which parts and colours it shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from capriccio.recipes.reader import IGNORED, truth
from capriccio.training.optimisers import muon_and_adamw
from capriccio.training.trainer import Batch, Row, Schedule
from capriccio.world.captions import caption
from capriccio.world.draw import Drawing, draw
from capriccio.world.graph import COLOURS, KINDS, SceneGraph, sample_scene
from capriccio.world.tokenizers import CLIP_LENGTH, clip_tokenizer

SIZE, PATCH, WIDTH = 128, 16, 192
PARTS, INKS = 2 * len(KINDS) + 2, len(COLOURS) + 1
"""Classes of the maps of scenes of objects, whatever else the world draws."""
NAMED = {"kind": 16, "main": 10, "accent": 10, "pattern": 4, "backdrop": 10, "style": 8}
"""What the heads name, and into how many classes."""
FULL_ONLY = ("main", "accent", "pattern")
"""What only a full caption tells."""
PAIRED = ("backdrop", "style")
"""What is still one thing when there are two subjects."""


def new_text_encoder(tokenizer: CLIPTokenizer, layers: int) -> CLIPTextModelWithProjection:
    """An untrained text encoder for the vocabulary of a tokenizer."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=6,
            max_position_embeddings=CLIP_LENGTH,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_image_encoder(layers: int) -> CLIPVisionModelWithProjection:
    """An untrained image encoder for 128-pixel pictures in patches of 16."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=6,
            image_size=SIZE,
            patch_size=PATCH,
            hidden_act="gelu",
        )
    )


def image_processor() -> CLIPImageProcessor:
    """Pictures to pixels in [-1, 1], as the image encoder learned them."""
    return CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


class Towers(nn.Module):
    """Both encoders and their helpers in one forward."""

    def __init__(self, tokenizer: CLIPTokenizer, layers: int) -> None:
        super().__init__()
        self.text_encoder, self.image_encoder = new_text_encoder(tokenizer, layers), new_image_encoder(layers)
        self.temperature = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, count) for name, count in NAMED.items()})
        self.cells = nn.Linear(WIDTH, PARTS + INKS)

    def forward(self, pixels: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """Embed pictures (B, 3, 128, 128) and word ids (B, T).

        Returns:
            ``"logits"`` (B, B), picture by text; ``"cells"`` (B, 64, parts + inks); and ``"image/<name>"`` and
            ``"text/<name>"`` (B, classes) for what the heads name.
        """
        seen = self.image_encoder(pixel_values=pixels)
        told = self.text_encoder(input_ids=ids)
        cells = self.cells(seen.last_hidden_state[:, 1:])
        image, text = F.normalize(seen.image_embeds.float(), dim=1), F.normalize(told.text_embeds.float(), dim=1)
        scale = self.temperature.exp().clamp(max=100)
        named = {
            f"{side}/{name}": head(WIDTH**0.5 * vectors)
            for side, vectors in (("image", image), ("text", text))
            for name, head in self.heads.items()
        }
        return {"logits": scale * image @ text.T, "cells": cells.float(), **named}


def patch_shares(drawing: Drawing) -> tuple[Tensor, Tensor]:
    """How much of each patch every part, and every ink, covers: (B, 64, parts) and (B, 64, inks)."""
    step = 4

    def shares(labels: Tensor, classes: int) -> Tensor:
        shown = F.one_hot(labels[:, ::step, ::step], classes).permute(0, 3, 1, 2).float()
        return F.avg_pool2d(shown, PATCH // step).flatten(2).transpose(1, 2)

    return shares(drawing.parts, PARTS), shares(drawing.inks, INKS)


def soft_cross_entropy(logits: Tensor, shares: Tensor) -> Tensor:
    """Cross-entropy of logits (..., C) with distributions (..., C), averaged."""
    return -(logits.log_softmax(-1) * shares).sum(-1).mean()


def is_muons(name: str, value: Tensor) -> bool:
    """The matrices of the encoders' layers are Muon's."""
    return ".encoder.layers." in name


@dataclass
class ClipTask:
    """Train both encoders on scenes of one subject, and a few of two."""

    budget: str = "cpu"
    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=15, warmup=50))
    name: str = "clip"

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        return clip_tokenizer()

    def models(self) -> nn.Module:
        torch.manual_seed(self.schedule.seed)
        return Towers(self.tokenizer, layers=4 if self.budget == "cpu" else 6)

    def optimisers(self, model: nn.Module) -> list[Optimizer]:
        return muon_and_adamw(model, is_muons, muon_lr=2.5e-3, adamw_lr=1.2e-3)

    def batch(self, rng: np.random.Generator) -> Batch:
        count = 48 if self.budget == "cpu" else 512
        scenes = [sample_scene(rng, 2 if rng.random() < 0.15 else 1) for _ in range(count)]
        full = rng.random(count) < 0.7
        texts = [
            caption(scene, rng, "full" if whole else ("brief", "kind")[int(rng.integers(2))])
            for scene, whole in zip(scenes, full, strict=True)
        ]
        drawing = draw(scenes)
        parts, inks = patch_shares(drawing)
        answers = _without_pairs(truth(scenes), scenes)
        hidden = torch.from_numpy(~full)
        told = {name: answers[name].masked_fill(hidden & (name in FULL_ONLY), IGNORED) for name in NAMED}
        return {
            "pixels": drawing.pixels,
            "ids": self.ids(texts),
            "parts": parts,
            "inks": inks,
            **{f"image/{name}": answers[name] for name in NAMED},
            **{f"text/{name}": told[name] for name in NAMED},
        }

    def ids(self, texts: list[str]) -> Tensor:
        """Word ids (B, T) of texts, padded to the longest."""
        return self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").input_ids

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        said = model(batch["pixels"], batch["ids"])
        own = torch.arange(len(batch["ids"]), device=batch["ids"].device)
        contrast = (F.cross_entropy(said["logits"], own) + F.cross_entropy(said["logits"].T, own)) / 2
        parts, inks = said["cells"].split([PARTS, INKS], dim=-1)
        cells = soft_cross_entropy(parts, batch["parts"]) + soft_cross_entropy(inks, batch["inks"])
        sides = {
            side: torch.stack(
                [F.cross_entropy(said[key], batch[key], ignore_index=IGNORED) for key in said if key.startswith(side)]
            ).mean()
            for side in ("image", "text")
        }
        retrieved = (said["logits"].argmax(1) == own).float().mean()
        readings = {"contrast": contrast, "retrieved": retrieved, "cells": cells, **sides}
        return contrast + cells + sides["image"] + sides["text"], readings

    def save(self, model: nn.Module, folder: Path) -> None:
        for part in ("text_encoder", "image_encoder"):
            getattr(model, part).half().save_pretrained(folder / part)
            getattr(model, part).float()
        self.tokenizer.save_pretrained(folder / "tokenizer")
        image_processor().save_pretrained(folder / "feature_extractor")

    @torch.no_grad()
    def measure(self, model: nn.Module) -> list[Row]:
        rng = np.random.default_rng(7)
        rates = []
        for _ in range(8):
            scenes, texts = distinct_scenes(rng, 64)
            logits = model(draw(scenes).pixels, self.ids(texts))["logits"]
            rates.append(float((logits.argmax(1) == torch.arange(64)).float().mean()))
        return [Row("clip_retrieval", round(float(np.mean(rates)), 4), 0.90, 0.99)]


def distinct_scenes(rng: np.random.Generator, count: int) -> tuple[list[SceneGraph], list[str]]:
    """Held-out scenes of one subject with different full captions."""
    found: dict[str, SceneGraph] = {}
    while len(found) < count:
        scene = sample_scene(rng, split="test", style="shaded")
        found[caption(scene, rng)] = scene
    return list(found.values()), list(found)


def _without_pairs(answers: Batch, scenes: list[SceneGraph]) -> Batch:
    """The answers without those of scenes of two subjects, which have no one kind or colour."""
    several = torch.tensor([len(scene.things) > 1 for scene in scenes])
    return {name: row if name in PAIRED else row.masked_fill(several, IGNORED) for name, row in answers.items()}
