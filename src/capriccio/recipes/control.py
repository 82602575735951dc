"""The miniature's ControlNet: one network for five kinds of control picture, drawn from the graphs without error.

It is of the published Union layout: a plain ``FluxControlNetModel`` with a mode for each kind, numbered as Union and
Union-Pro number theirs. Its one double and one single block start as copies of the transformer's first ones, with
outputs at zero; the base stays frozen. Half of the sentences are left out, so that the picture must be read (Zhang et
al., arXiv 2302.05543, section 3.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from capriccio.evaluation import steering
from capriccio.modules.controlnet import new_controlnet
from capriccio.recipes.flux import BATCH, JointSentences, pack
from capriccio.recipes.gallery import Pictures, Wing, encode
from capriccio.recipes.inpainting import ControlNetTask, Guided
from capriccio.recipes.painting import LARGEST, forget_origins
from capriccio.studio import Studio
from capriccio.training.trainer import Batch, Row, Schedule
from capriccio.world.controls import CONTROLS, control_pictures
from capriccio.world.graph import SceneGraph

SHARES = {"canny": 0.27, "tile": 0.1, "depth": 0.27, "blur": 0.1, "pose": 0.26}
"""How often a batch shows each kind of picture: shrunk and blurred ones are soon learned."""


@dataclass
class UnionTask(ControlNetTask):
    """Train the ControlNet; every batch shows one kind of picture."""

    shares = {"scenes": 1.0}  # noqa: RUF012  # as in the base
    sizes = BATCH

    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=20, warmup=60, decay=0.8, seed=3))
    name: str = "controlnet-union"

    @cached_property
    def sentences(self) -> JointSentences:
        return JointSentences(dropout=0.5)

    def models(self) -> nn.Module:
        torch.manual_seed(self.schedule.seed)
        net = new_controlnet(self.transformer, num_layers=1, num_single_layers=1, num_mode=len(CONTROLS))
        return Guided(net, self.transformer)

    def choose(self, pictures: Pictures, count: int, rng: np.random.Generator) -> np.ndarray:
        """Of the pictures, those of flat scenes: for the solids among them there are no control pictures."""
        return rng.choice([row for row, graph in enumerate(pictures.graphs) if isinstance(graph, SceneGraph)], count)

    def extras(self, wing: Wing, pictures: Pictures, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        scenes = [graph for row in rows if isinstance(graph := pictures.graphs[row], SceneGraph)]
        mode = int(rng.choice(len(CONTROLS), p=[SHARES[kind] for kind in CONTROLS]))
        return {"control": shown(CONTROLS[mode], scenes), "mode": torch.full((len(scenes), 1), mode)}

    def condition(self, batch: Batch) -> dict[str, Tensor]:
        """The control picture, encoded and packed as the picture is: 4 L channels; and its mode."""
        picture = pack(encode(self.vae.to(batch["control"].device), batch["control"]))
        return {"controlnet_cond": picture, "controlnet_mode": batch["mode"]}

    def save(self, model: Any, folder: Path) -> None:
        model.controlnet.half().save_pretrained(folder, max_shard_size=LARGEST)
        forget_origins(folder)

    def measure(self, model: nn.Module) -> list[Row]:
        """Paint held-out sentences along control pictures, and read how well the pictures are kept."""
        return steering.rows(Studio.open("miniature"))


def shown(kind: str, scenes: Sequence[SceneGraph]) -> Tensor:
    """Control pictures (B, 3, H, W) in [-1, 1], as a VAE reads pictures."""
    return 2 * control_pictures(kind, scenes) - 1
