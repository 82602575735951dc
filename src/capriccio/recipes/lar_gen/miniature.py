"""The miniature's LAR-Gen: Assign on the frozen inpainting model, then Refine beside both (section 4.4 of the paper).

Pairs of the gallery teach it (`capriccio.recipes.subjects`). What the stages are, and what they learn by, is in
`capriccio.recipes.lar_gen.stages`, which the training at paper scale shares.

Two differences from the paper: the resampler is learned too, for the miniature has no IP-Adapter to take it from; and
the inpainting model stays as it is, so that the same one paints with and without LAR-Gen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.optim import Optimizer

from capriccio import assets
from capriccio.methods.lar_gen import NAME
from capriccio.modules.lar_gen import LarGen
from capriccio.recipes.gallery import PANEL
from capriccio.recipes.lar_gen.stages import ASSIGN, DROPOUT, REFINE, Stage, assigned, stage_loss
from capriccio.recipes.painting import FACTOR
from capriccio.recipes.subjects import SubjectTask
from capriccio.training.optimisers import muon_and_adamw
from capriccio.training.trainer import Batch, Row, Schedule


@dataclass
class AssignTask(SubjectTask):
    """Stage 1: the resampler, and keys and values of Assign."""

    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=20, warmup=60, seed=5, average=0.995))
    name: str = "lar-gen-assign"
    dropout = DROPOUT
    stage: ClassVar[Stage] = ASSIGN

    def models(self) -> nn.Module:
        torch.manual_seed(self.schedule.seed)
        unet = UNet2DConditionModel.from_pretrained(self.base, subfolder="unet")
        module = LarGen.new(unet, self.eye)  # whose keys and values are copies of layers that learn
        return self.stage.around(unet.requires_grad_(False), module, PANEL // FACTOR)

    def optimisers(self, model: nn.Module) -> list[Optimizer]:
        return muon_and_adamw(model, lambda name, value: ".layers." in name, muon_lr=1.5e-3, adamw_lr=8e-4)

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return stage_loss(self, model, batch, rng)

    def save(self, model: nn.Module, folder: Path) -> None:
        model.module.save(folder)  # type: ignore[union-attr,operator]

    def measure(self, model: nn.Module) -> list[Row]:
        return []  # what it is worth, the benchmark of the method says


@dataclass
class RefineTask(AssignTask):
    """Stage 2: RefineNet's cross-attention, and what it reads of CLIP."""

    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=20, warmup=60, seed=6, average=0.995))
    name: str = NAME
    stage: ClassVar[Stage] = REFINE

    @property
    def assign(self) -> Path:
        """What stage 1 saved."""
        return Path(assets.path("miniature/lar-gen-assign"))

    @property
    def text_model(self) -> Path:
        """The model that paints from text, of which RefineNet is a copy."""
        return Path(assets.path("miniature/sd"))

    def models(self) -> nn.Module:
        torch.manual_seed(self.schedule.seed)
        unet = UNet2DConditionModel.from_pretrained(self.base, subfolder="unet")
        text_unet = UNet2DConditionModel.from_pretrained(self.text_model, subfolder="unet")
        module = assigned(self.assign, unet, text_unet, self.eye)
        return self.stage.around(unet, module, PANEL // FACTOR)
