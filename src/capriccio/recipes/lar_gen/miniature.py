"""The miniature's LAR-Gen: Assign on the frozen inpainting model, then Refine beside both (section 4.4 of the paper).

Pairs of the gallery teach it: the subject of one panel, alone on white, is painted into the other panel, whose caption
may say little of it. So it meets another view of the subject, in another state, than the one it is to paint, where the
paper cuts the subject out of the very picture. What the stages are, and what they learn by, is in
`capriccio.recipes.lar_gen.stages`, which the training at paper scale shares.

Two differences from the paper: the resampler is learned too, for the miniature has no IP-Adapter to take it from; and
the inpainting model stays as it is, so that the same one paints with and without LAR-Gen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from torch.optim import Optimizer

from capriccio import assets
from capriccio.methods.lar_gen import NAME, RIM
from capriccio.modules.lar_gen import Eye, LarGen
from capriccio.recipes.lar_gen.stages import ASSIGN, DROPOUT, REFINE, Stage, assigned, nothing, stage_loss
from capriccio.recipes.masks import box_around
from capriccio.recipes.sd import FACTOR, SDInpaintTask
from capriccio.training.optimisers import muon_and_adamw
from capriccio.training.trainer import Batch, Row, Schedule
from capriccio.world.graph import Panels, SceneGraph

PANEL = 128


def alone(pixels: Tensor, mask: Tensor) -> Tensor:
    """Return a subject on white, in a square a little larger than itself, as pixels (3, 128, 128).

    Args:
        pixels: (3, H, W) in [-1, 1].
        mask: (H, W), true somewhere.
    """
    rows, columns = (torch.where(mask.any(dim=dim))[0] for dim in (1, 0))
    box = (..., slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    close = torch.where(mask, pixels, pixels.new_ones(()))[box]
    side = round(RIM * max(close.shape[-2:]))
    left, top = ((side - length) // 2 for length in (close.shape[-1], close.shape[-2]))
    rims = (left, side - close.shape[-1] - left, top, side - close.shape[-2] - top)
    square = pad(close, rims, value=1.0)
    return interpolate(square[None], (PANEL, PANEL), mode="bicubic", antialias=True)[0].clamp(-1, 1)


@dataclass
class AssignTask(SDInpaintTask):
    """Stage 1: the resampler, and keys and values of Assign."""

    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=20, warmup=60, seed=5, average=0.995))
    name: str = "lar-gen-assign"
    stage: ClassVar[Stage] = ASSIGN

    @property
    def base(self) -> Path:
        """The inpainting model."""
        return Path(assets.path("miniature/sd-inpaint"))

    @cached_property
    def eye(self) -> Eye:
        """The miniature's CLIP."""
        return Eye.load(Path(assets.path("miniature/clip")))

    @cached_property
    def blank(self) -> Tensor:
        """No subject, (3, 128, 128)."""
        return nothing(self.eye, PANEL)

    def models(self) -> nn.Module:
        torch.manual_seed(self.schedule.seed)
        unet = UNet2DConditionModel.from_pretrained(self.base, subfolder="unet")
        module = LarGen.new(unet, self.eye)  # whose keys and values are copies of layers that learn
        return self.stage.around(unet.requires_grad_(False), module, PANEL // FACTOR)

    def optimisers(self, model: nn.Module) -> list[Optimizer]:
        return muon_and_adamw(model, lambda name, value: ".layers." in name, muon_lr=1.5e-3, adamw_lr=8e-4)

    def batch(self, rng: np.random.Generator) -> Batch:
        pictures = self.wings["pairs"]
        rows = rng.integers(0, len(pictures), 2 * self.sizes["pairs"] * (1 if self.budget == "cpu" else 8))
        sides = rng.integers(0, 2, len(rows))
        targets = [_scenes(pictures.graphs[row])[side] for row, side in zip(rows, sides, strict=True)]
        pixels = pictures.pixels(rows).unflatten(-1, (2, PANEL))
        each = torch.arange(len(rows))
        masks = pictures.masks(rows).unflatten(-1, (2, PANEL))
        subjects = [
            self.blank if rng.random() < DROPOUT or not mask.any() else alone(picture, mask)
            for picture, mask in zip(pixels[each, :, :, 1 - sides], masks[each, :, 1 - sides], strict=True)
        ]
        latents = torch.from_numpy(pictures.latents[rows]).float().unflatten(-1, (2, PANEL // FACTOR))
        return {
            "latents": latents[each, :, :, sides],
            "pixels": pixels[each, :, :, sides],
            "mask": torch.stack([box_around(rng, mask.numpy())[None] for mask in masks[each, :, sides]]),
            "subject": torch.stack(subjects),
            **self.sentences(list(targets), rng),
        }

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


def _scenes(sheet: object) -> Sequence[SceneGraph]:
    assert isinstance(sheet, Panels)
    return sheet.scenes
