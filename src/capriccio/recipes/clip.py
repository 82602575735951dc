"""The miniature's CLIP: a text and an image encoder that put a picture and its caption in the same place.

Symmetric InfoNCE (Radford et al. 2021, arXiv 2103.00020, Fig. 3) on the whole world. Helpers that are thrown away make
it learn within minutes: both embeddings must name the attributes of whoever stands alone through the same linear heads,
and every image patch must say which parts and colours it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

from capriccio.modules.reader import CLASSES
from capriccio.recipes.gallery import CELL, Visitor
from capriccio.recipes.reader import IGNORED, indices, name_loss
from capriccio.training.optimisers import muon_and_adamw
from capriccio.training.trainer import Batch, Row, Schedule
from capriccio.world.casting import sample_people
from capriccio.world.draw import NUM_INKS, NUM_PARTS
from capriccio.world.graph import COLOURS, Garment, Identity, Panels, SceneGraph, Thing, sample_scene
from capriccio.world.people import GARMENTS, HAIR_COLOURS, HAIRS, PEOPLE, Sitter, top_of
from capriccio.world.tokenizers import CLIP_LENGTH, clip_tokenizer
from capriccio.world.views import View
from capriccio.world.whole import Picture, depict, describe
from capriccio.world.words import COLOURLESS, sample_detail

SIZE, PATCH, WIDTH = 128, 16, 192
NAMED: Mapping[str, tuple[str, ...]] = {
    **{name: CLASSES[name] for name in ("kind", "main", "accent", "pattern", "backdrop", "style")},
    "person": PEOPLE,
    "hair": HAIRS,
    "hair colour": tuple(HAIR_COLOURS),
    "garment": GARMENTS,
    "cloth": tuple(COLOURS),
}
"""What the heads name; ``"garment"`` and its colour ``"cloth"`` are those of the largest one that is worn, or laid."""
ALWAYS = ("kind", "backdrop", "style", "person")
"""What every caption tells; the rest only a full one does."""


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
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, len(words)) for name, words in NAMED.items()})
        self.cells = nn.Linear(WIDTH, NUM_PARTS + NUM_INKS)

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


def patch_shares(labels: Tensor, classes: int) -> Tensor:
    """How much of each patch every class covers, from label maps in cells (B, H/4, W/4): (B, patches, classes).

    Cells of the class ``UNKNOWN`` count for none.
    """
    shown = F.one_hot(labels.clamp_max(classes), classes + 1)[..., :classes].permute(0, 3, 1, 2).float()
    return F.avg_pool2d(shown, PATCH // CELL).flatten(2).transpose(1, 2)


def truths(picture: Picture) -> dict[str, str]:
    """What the heads should name: whoever stands alone, and the place; what is missing is not said."""
    if isinstance(picture, View):
        return {**_identity(picture.solid), "backdrop": picture.backdrop.kind, "style": "shaded"}
    if isinstance(picture, Panels):
        return {}
    place = {"backdrop": picture.backdrop.kind, "style": picture.style}
    if len(picture.cast) > 1:
        return place
    return place | looks(picture.cast[0], picture.style)


def looks(one: Thing | Sitter, style: str) -> dict[str, str]:
    """What the heads should name of one thing or person in a picture of a style."""
    known = _sitter(one) if isinstance(one, Sitter) else _identity(one.identity)
    hidden = ("main", "accent", "hair colour", "cloth") if style in COLOURLESS else ()
    return {name: word for name, word in known.items() if name not in hidden}


def _identity(one: Identity) -> dict[str, str]:
    if isinstance(one, Garment):
        return {"garment": one.kind, "cloth": one.main, "pattern": one.pattern}
    return {"kind": one.kind, "main": one.main, "accent": one.accent, "pattern": one.pattern}


def _sitter(sitter: Sitter) -> dict[str, str]:
    person, shown = sitter.person, top_of(sitter)
    worn = {"garment": shown.kind, "cloth": shown.main, "pattern": shown.pattern} if shown else {}
    return {"person": person.kind, "hair": person.hair, "hair colour": person.hair_colour} | worn


def soft_cross_entropy(logits: Tensor, shares: Tensor) -> Tensor:
    """Cross-entropy of logits (..., C) with distributions (..., C), averaged."""
    return -(logits.log_softmax(-1) * shares).sum(-1).mean()


def is_muons(name: str, value: Tensor) -> bool:
    """The matrices of the encoders' layers are Muon's."""
    return ".encoder.layers." in name


@dataclass
class ClipTask(Visitor):
    """Train both encoders on the scenes of the gallery."""

    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=20, warmup=50))
    start: Path | None = None  # a finished folder to go on from
    name: str = "clip"

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        return clip_tokenizer()

    def models(self) -> nn.Module:
        torch.manual_seed(self.schedule.seed)
        towers = Towers(self.tokenizer, layers=4)
        if self.start is not None:
            for part in ("text_encoder", "image_encoder"):
                encoder = getattr(towers, part)
                trained = type(encoder).from_pretrained(self.start / part, dtype=torch.float32)
                encoder.load_state_dict(trained.state_dict())
        return towers

    def optimisers(self, model: nn.Module) -> list[Optimizer]:
        return muon_and_adamw(model, is_muons, muon_lr=2.5e-3, adamw_lr=1.2e-3)

    def batch(self, rng: np.random.Generator) -> Batch:
        pictures = self.wings["scenes"]
        rows = rng.integers(0, len(pictures), 48 if self.budget == "cpu" else 512)
        shown = [pictures.graphs[row] for row in rows]
        details = [sample_detail(rng) for _ in rows]
        texts = [describe(one, rng, detail) for one, detail in zip(shown, details, strict=True)]
        seen = indices([truths(one) for one in shown], NAMED)
        brief = torch.tensor([detail != "full" for detail in details])
        told = {name: seen[name].masked_fill(brief & (name not in ALWAYS), IGNORED) for name in NAMED}
        return {
            "pixels": pictures.pixels(rows),
            "ids": self.ids(texts),
            "parts": patch_shares(torch.from_numpy(pictures.parts[rows]).long(), NUM_PARTS),
            "inks": patch_shares(torch.from_numpy(pictures.inks[rows]).long(), NUM_INKS),
            **{f"image/{name}": values for name, values in seen.items()},
            **{f"text/{name}": values for name, values in told.items()},
        }

    def ids(self, texts: list[str]) -> Tensor:
        """Word ids (B, T) of texts, padded to the longest."""
        return self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").input_ids

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        said = model(batch["pixels"], batch["ids"])
        own = torch.arange(len(batch["ids"]), device=batch["ids"].device)
        contrast = (F.cross_entropy(said["logits"], own) + F.cross_entropy(said["logits"].T, own)) / 2
        parts, inks = said["cells"].split([NUM_PARTS, NUM_INKS], dim=-1)
        cells = soft_cross_entropy(parts, batch["parts"]) + soft_cross_entropy(inks, batch["inks"])
        sides = {
            side: torch.stack([name_loss(said[key], batch[key]) for key in said if key.startswith(side)]).mean()
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
        return [
            Row(name, round(self.retrieved(model, content), 4), 0.90, 0.99)
            for name, content in (("clip_retrieval", "objects"), ("clip_retrieval_people", "people"))
        ]

    def retrieved(self, model: nn.Module, content: str, batches: int = 8) -> float:
        """The share of held-out pictures that find their own among 64 captions."""
        rng, own = np.random.default_rng(7), torch.arange(64)
        found = []
        for _ in range(batches):
            pictures, texts = distinct(rng, 64, content)
            found.append(model(depict(pictures).pixels, self.ids(texts))["logits"].argmax(1) == own)
        return float(torch.cat(found).float().mean())


def distinct(rng: np.random.Generator, count: int, content: str) -> tuple[list[Picture], list[str]]:
    """Held-out shaded pictures of one subject with different full captions."""
    samplers: dict[str, Callable[..., SceneGraph]] = {"objects": sample_scene, "people": sample_people}
    found: dict[str, Picture] = {}
    while len(found) < count:
        picture = samplers[content](rng, split="test", style="shaded")
        found[describe(picture, rng, "full")] = picture
    return list(found.values()), list(found)
