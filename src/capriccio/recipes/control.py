"""The miniature's ControlNets: what they are shown is drawn from the graphs of the gallery's scenes, without error.

One recipe for three conditions, each a plain ``FluxControlNetModel`` of one double and one single block that starts as
a copy of the transformer's first ones, with outputs at zero; the base stays frozen. Half of the sentences are left out,
so that the picture must be read (Zhang et al., arXiv 2302.05543, section 3.4).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import FluxControlNetModel
from torch import Tensor, nn

from capriccio.recipes.flux import BATCH, JointSentences, pack
from capriccio.recipes.gallery import Pictures, Wing, encode
from capriccio.recipes.inpainting import ControlNetTask, Guided
from capriccio.recipes.painting import forget_origins
from capriccio.training.trainer import Batch, Schedule
from capriccio.world.controls import CONTROLS, control_pictures
from capriccio.world.graph import SceneGraph


@dataclass
class ControlTask(ControlNetTask):
    """Train a ControlNet that sees one kind of control picture.

    Attributes:
        kind: One of ``CONTROLS``.
    """

    shares = {"scenes": 1.0}  # noqa: RUF012  # as in the base
    sizes = BATCH
    kind: ClassVar[str]

    @cached_property
    def sentences(self) -> JointSentences:
        return JointSentences(dropout=0.5)

    def models(self) -> nn.Module:
        torch.manual_seed(self.schedule.seed)
        config = self.transformer.config
        heads = {name: config[name] for name in ("attention_head_dim", "num_attention_heads")}
        net = FluxControlNetModel.from_transformer(self.transformer, num_layers=1, num_single_layers=1, **heads)
        return Guided(net, self.transformer)

    def choose(self, pictures: Pictures, count: int, rng: np.random.Generator) -> np.ndarray:
        """Of the pictures, those of flat scenes: for the solids among them there are no control pictures."""
        return rng.choice([row for row, graph in enumerate(pictures.graphs) if isinstance(graph, SceneGraph)], count)

    def extras(self, wing: Wing, pictures: Pictures, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        scenes = [graph for row in rows if isinstance(graph := pictures.graphs[row], SceneGraph)]
        return {"control": 2 * control_pictures(self.kind, scenes) - 1}

    def condition(self, batch: Batch) -> Tensor:
        """The control picture, encoded and packed as the picture is: 4 L channels."""
        return pack(encode(self.vae.to(batch["control"].device), batch["control"]))

    def save(self, model: Any, folder: Path) -> None:
        model.controlnet.half().save_pretrained(folder, max_shard_size="15MB")
        forget_origins(folder)


@dataclass
class EdgesTask(ControlTask):
    """The ControlNet of edges."""

    kind = "edges"
    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=15, warmup=60, seed=3))
    name: str = "controlnet-edges"


@dataclass
class DepthTask(ControlTask):
    """The ControlNet of depth."""

    kind = "depth"
    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=15, warmup=60, seed=4))
    name: str = "controlnet-depth"


@dataclass
class KeypointsTask(ControlTask):
    """The ControlNet of key points."""

    kind = "keypoints"
    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=15, warmup=60, seed=5))
    name: str = "controlnet-keypoints"


__all__ = ["CONTROLS", "ControlTask", "DepthTask", "EdgesTask", "KeypointsTask"]
