"""The miniature's LAR-Gen: Assign on the frozen inpainting model, then Refine beside both (section 4.4 of the paper).

Pairs of the gallery teach it: the subject of one panel, alone on white, is painted into the other panel, whose caption
may say little of it. So it meets another view of the subject, in another state, than the one it is to paint, where the
paper cuts the subject out of the very picture. Stage 1 learns the resampler and the keys and values of Assign at beta
1; stage 2 keeps them at beta 0.3 and learns RefineNet's cross-attention and what it reads of CLIP. Text and subject are
left out by themselves, in one case of ten each.

Two differences from the paper: the resampler is learned too, for the miniature has no IP-Adapter to take it from; and
the inpainting model stays as it is, so that the same one paints with and without LAR-Gen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from torch.optim import Optimizer

from capriccio import assets
from capriccio.attention import (
    AttentionProgram,
    Bank,
    PictureLayout,
    Scope,
    TokenLayout,
    attach,
    compile_program,
    layers_of,
)
from capriccio.methods.lar_gen import CROSS, NAME, RIM
from capriccio.modules.lar_gen import QUERIES, Eye, LarGen, decoder, learns_in_refine
from capriccio.recipes.gallery import encode
from capriccio.recipes.masks import box_around
from capriccio.recipes.sd import FACTOR, SDInpaintTask
from capriccio.training.optimisers import muon_and_adamw
from capriccio.training.trainer import Batch, Row, Schedule
from capriccio.world.graph import Panels, SceneGraph
from capriccio.world.tokenizers import CLIP_LENGTH

PANEL = 128
ASSIGN = "lar-gen-assign"
DROPOUT = 0.1


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


class Assigner(nn.Module):
    """The inpainting model with Assign at work, in one forward."""

    def __init__(self, unet: UNet2DConditionModel, module: LarGen, beta: float) -> None:
        super().__init__()
        self.unet, self.module = unet.requires_grad_(False), module
        side = PANEL // FACTOR
        banks: dict[str, int | tuple[int, int]] = {"assign": QUERIES, "refine": (side, side)}
        whole = {"image": np.ones((side, side), bool)}
        layout = PictureLayout(TokenLayout(CLIP_LENGTH), whole, (side, side), 1, banks=banks)
        program = AttentionProgram((Bank("assign", "image", "own", beta, Scope(CROSS)), *self.more()))
        self.attachment = attach(unet, compile_program(program, layout, layers=layers_of(unet), num_steps=1))

    def more(self) -> tuple[Bank, ...]:
        """What else the layers look at."""
        return ()

    def forward(self, latents: Tensor, times: Tensor, text: Tensor, subject: Tensor) -> Tensor:
        """Return the noise (B, 8, 16, 16) in latents with the known part, given texts (B, 77, D) and subjects."""
        self.attachment.give("assign", self.module.assign(subject))
        return self.unet(latents, times, encoder_hidden_states=text, return_dict=False)[0]


class Refiner(Assigner):
    """The same with RefineNet."""

    def more(self) -> tuple[Bank, ...]:
        return (Bank("refine", "image", scope=Scope(decoder(self.unet))),)

    def forward(  # type: ignore[override]
        self, latents: Tensor, times: Tensor, text: Tensor, subject: Tensor, clean: Tensor, noise: Tensor, alpha: Tensor
    ) -> Tensor:
        """Return the noise; ``clean`` are the latents of the subject, ``noise`` and ``alpha`` (B,) what hides them."""
        details = self.module.details(subject)
        self.attachment.give("refine", self.module.reference(clean, noise, alpha, times, details))
        return super().forward(latents, times, text, subject)


@dataclass
class AssignTask(SDInpaintTask):
    """Stage 1: the resampler, and keys and values of Assign."""

    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=20, warmup=60, seed=5, average=0.995))
    name: str = ASSIGN
    beta = 1.0

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
        """No subject, (3, 128, 128); where batches are drawn, for the eye itself may be on a GPU."""
        return self.eye.nothing.cpu().expand(3, PANEL, PANEL)

    def models(self) -> nn.Module:
        torch.manual_seed(self.schedule.seed)
        unet = UNet2DConditionModel.from_pretrained(self.base, subfolder="unet")
        return Assigner(unet, LarGen.new(unet, self.eye), self.beta)

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
        noisy, noise, times = self.noised(batch, rng)
        given = self.seen(noisy, batch), times, self.text(batch["clip_ids"]), batch["subject"]
        painted = model(*given, *self.beside(batch, times, rng))
        weights = self.weights.to(times.device)[times]
        error = (weights * (painted.float() - noise).square().flatten(1).mean(dim=1)).mean()
        return error, {"error": error}

    def beside(self, batch: Batch, times: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """What else the model reads."""
        return ()

    def save(self, model: nn.Module, folder: Path) -> None:
        model.module.save(folder)  # type: ignore[union-attr,operator]

    def measure(self, model: nn.Module) -> list[Row]:
        return []  # what it is worth, the benchmark of the method says


@dataclass
class RefineTask(AssignTask):
    """Stage 2: RefineNet's cross-attention, and what it reads of CLIP."""

    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=20, warmup=60, seed=6, average=0.995))
    name: str = NAME
    beta = 0.3

    @property
    def assign(self) -> Path:
        """What stage 1 saved."""
        return Path(assets.path(f"miniature/{ASSIGN}"))

    @property
    def text_model(self) -> Path:
        """The model that paints from text, of which RefineNet is a copy."""
        return Path(assets.path("miniature/sd"))

    def models(self) -> nn.Module:
        torch.manual_seed(self.schedule.seed)
        unet = UNet2DConditionModel.from_pretrained(self.base, subfolder="unet")
        module = LarGen.load(self.assign, unet, None, self.eye)
        module.add_refine(UNet2DConditionModel.from_pretrained(self.text_model, subfolder="unet"))
        return Refiner(unet, only_refine_learns(module), self.beta)

    def beside(self, batch: Batch, times: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        clean = encode(self.vae.to(times.device), batch["subject"])
        noise = torch.randn(clean.shape, generator=rng).to(clean)
        return clean, noise, self.alphas[times.cpu()].to(clean)


def only_refine_learns(module: LarGen) -> LarGen:
    """Let RefineNet's cross-attention and its eyes learn, but for what comes after the last states that it lends."""
    assert module.refine is not None
    assert module.detail is not None
    module.requires_grad_(False)
    module.detail.requires_grad_(True)
    lent = [layer for layer in layers_of(module.refine) if layer in decoder(module.refine)]
    last = lent[-1].name.rpartition(".")[0]
    for name, weight in module.refine.named_parameters():
        weight.requires_grad_(learns_in_refine(name) and not name.startswith(last))
    return module


def _scenes(sheet: object) -> Sequence[SceneGraph]:
    assert isinstance(sheet, Panels)
    return sheet.scenes
