"""The miniature's T5: what FLUX knows of the order of words, learned from sentences alone, before any picture.

FLUX gives its words no positions: its transformer sees them as a bag, and what stands left or right of what, in which
colour, it knows from the states of T5 or not at all. Published T5 encoders have read the web, and stay as they are when
FLUX learns. So does ours. It reads sentences on the world, and questions that are thrown away afterwards (``told.py``)
must find in its states who stands where.

An encoder that goes on from an earlier one says what that one said, for the pictures painted beside it rest on that,
and learns the order of words besides.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import T5Config, T5EncoderModel

from capriccio.evaluation import targets
from capriccio.recipes import flux
from capriccio.recipes.cuttings import can_be_cut, only
from capriccio.recipes.gallery import WINGS, imagine
from capriccio.recipes.told import ASKED, Questions, told, told_loss
from capriccio.training.optimisers import muon_and_adamw
from capriccio.training.trainer import Batch, Row, Schedule
from capriccio.world.whole import Picture

LAYERS = 2
SHARES = {"scenes": 0.8, "pairs": 0.15, "grids": 0.05}
ALONE = 0.15  # of the sentences on several things tell of one of them, as those on cuttings do
AS_BEFORE = 2.0
"""What the distance from what an earlier encoder said counts, beside the questions."""


def new_text_encoder(vocabulary: int, width: int = 64 * flux.SIZE.heads, layers: int = LAYERS) -> T5EncoderModel:
    """An untrained T5 encoder, as wide as a transformer, whose heads begin with a sense of order."""
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_kv=64,
            d_ff=2 * width,
            num_layers=layers,
            num_heads=width // 64,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            dropout_rate=0.0,
        )
    )
    show_order(encoder)
    return encoder


def distances(encoder: T5EncoderModel) -> nn.Parameter:
    """The biases (buckets, heads) by which a T5 knows how far apart its words are: half of them back, half ahead."""
    return encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight


@torch.no_grad()
def show_order(encoder: T5EncoderModel) -> None:
    """Let the heads of a T5 begin by looking back, ahead, near and anywhere, in turn.

    Distances are all that a T5 knows of the order of its words, and it begins to know them by random numbers near
    zero. From those, a small one asked for what sentences tell of two things named both, and after 300 batches not yet
    which was on the left; from these it told kinds and main colours of 99 % by their sides after 200.
    """
    table = distances(encoder)
    back, ahead = table.split(len(table) // 2)  # each from the nearest to the farthest
    table.zero_()
    ahead[:, 0::4] = -4.0
    back[:, 1::4] = -4.0
    farther = -0.7 * torch.arange(len(back), dtype=table.dtype)[:, None]
    for half in (back, ahead):
        half[:, 2::4] = farther


def knows_order(encoder: T5EncoderModel) -> bool:
    """Whether any distance matters to a T5; where all biases are about zero, a sentence is a bag of words to it."""
    return bool(distances(encoder).abs().max() > 1.0)


def begin_in_order(encoder: T5EncoderModel) -> T5EncoderModel:
    """An encoder of the same words, whose layers begin anew with a sense of order.

    In one that has learned without, queries and keys have grown (from norms of 2 and 16 to 30) until each word looks
    at one other for what it is, and then a sense of order comes too late: beside the biases of ``show_order`` sides
    stayed at chance, while new layers on its words told 96 % of kinds and 95 % of main colours by place after 200
    batches.
    """
    anew = T5EncoderModel(encoder.config)
    anew.shared.load_state_dict(encoder.shared.state_dict())
    show_order(anew)
    return anew


def departure(states: Tensor, before: Tensor) -> Tensor:
    """Squared distance of states (B, T, D) from those of before, as a share of how much those differ among words."""
    return (states - before).square().mean() / (before - before.mean((0, 1))).square().mean()


class Asked(nn.Module):
    """The encoder and the questions on it, in one forward."""

    def __init__(self, text_encoder: T5EncoderModel) -> None:
        super().__init__()
        self.text_encoder, self.questions = text_encoder, Questions(text_encoder.config.d_model)

    def forward(self, ids: Tensor, counts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """States (B, T, D) of words (B, T), and the answers of sentences on so many things, (B,)."""
        states = self.text_encoder(ids).last_hidden_state
        return states, self.questions(states, counts)


def is_muons(name: str, value: Tensor) -> bool:
    """The matrices of the encoder's layers are Muon's."""
    return "text_encoder.encoder." in name and "relative_attention_bias" not in name


@dataclass
class T5Task:
    """Train a T5 encoder on sentences."""

    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=5, warmup=30, decay=0.4, average=0.99))
    budget: str = "cpu"
    start: Path | None = None  # the folder of an earlier encoder, or of its FLUX; it goes on saying the same
    content: str | None = None
    name: str = "t5"

    @cached_property
    def sentences(self) -> flux.JointSentences:
        return flux.JointSentences(dropout=0.05)

    @cached_property
    def before(self) -> T5EncoderModel | None:
        """The encoder that it goes on from, as it was."""
        if self.start is None:
            return None
        inside = self.start / "text_encoder_2"
        encoder = T5EncoderModel.from_pretrained(inside if inside.is_dir() else self.start, dtype=torch.float32)
        return encoder.eval().requires_grad_(False)

    def models(self) -> nn.Module:
        torch.manual_seed(self.schedule.seed)
        if self.before is None:
            return Asked(new_text_encoder(len(self.sentences.t5)))
        if not knows_order(self.before):
            return Asked(begin_in_order(self.before))
        return Asked(deepcopy(self.before).train().requires_grad_(True))

    def optimisers(self, model: nn.Module) -> list[Optimizer]:
        return muon_and_adamw(model, is_muons, muon_lr=2.5e-3, adamw_lr=1.2e-3)

    def imagined(self, rng: np.random.Generator) -> Picture:
        """What one sentence tells of."""
        wing = WINGS[self.budget][int(rng.choice(len(SHARES), p=list(SHARES.values())))]
        picture = imagine(wing, rng, content=self.content)
        if can_be_cut(picture) and rng.random() < ALONE:
            return only(picture, int(rng.integers(len(picture.things))))
        return picture

    def batch(self, rng: np.random.Generator) -> Batch:
        pictures = [self.imagined(rng) for _ in range(96 if self.budget == "cpu" else 768)]
        texts = [self.sentences.say(picture, rng) for picture in pictures]
        asked = told([picture if text else None for picture, text in zip(pictures, texts, strict=True)])
        return {"ids": self.sentences.ids(texts, rng), **asked}

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        states, answers = model(batch["ids"], batch["told/count"])
        words = told_loss(answers, batch)
        if self.before is None:
            return words, {"told": words}
        with torch.no_grad():
            before = self.before.to(states.device)(batch["ids"]).last_hidden_state
        apart = departure(states.float(), before.float())
        return words + AS_BEFORE * apart, {"told": words, "departure": apart}

    def save(self, model: Any, folder: Path) -> None:
        model.text_encoder.half().save_pretrained(folder)

    @torch.no_grad()
    def measure(self, model: nn.Module) -> list[Row]:
        """Ask what held-out sentences tell of two things, on which side."""
        pairs = targets.scenes(96, 2)
        asked = told(pairs)
        ids = self.sentences.t5(targets.captions_of(pairs), padding=True, return_tensors="pt").input_ids
        states, answers = model(ids, asked["told/count"])
        right = {name: (answers[name].argmax(-1) == asked[f"told/{name}"])[:, :2].float().mean() for name in ASKED}
        rows = [Row(f"t5_{name}_by_side", round(float(right[name]), 4), 0.90, 0.99) for name in ("kind", "main")]
        if self.before is not None:
            alike = F.cosine_similarity(states, self.before.cpu()(ids).last_hidden_state, dim=-1).mean()
            rows.append(Row("t5_alike_before", round(float(alike), 4), 0.95, 0.99))
        return rows
