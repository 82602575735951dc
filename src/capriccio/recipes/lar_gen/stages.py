"""The two stages in which LAR-Gen learns (arXiv 2403.19534, section 4.4), whatever the model and whatever the pictures.

Stage 1 learns Assign at beta 1; stage 2 keeps it at beta 0.3 and learns RefineNet's cross-attention and what it reads
of CLIP. The loss is the squared error of the noise; text and subject are left out by themselves (the paper does not say
how often: here, in one case of ten each).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

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
from capriccio.methods.lar_gen import CROSS
from capriccio.modules.lar_gen import Eye, LarGen, decoder, learns_in_refine
from capriccio.recipes.gallery import encode
from capriccio.training.trainer import Batch
from capriccio.world.tokenizers import CLIP_LENGTH

DROPOUT = 0.1


class Assigner(nn.Module):
    """An inpainting model with Assign at work, in one forward.

    Args:
        unet: The inpainting model.
        module: What LAR-Gen adds to it.
        beta: Weight of the subject's tokens.
        side: Of the latents that are painted.
    """

    def __init__(self, unet: UNet2DConditionModel, module: LarGen, beta: float, side: int) -> None:
        super().__init__()
        self.unet, self.module = unet, module
        banks: dict[str, int | tuple[int, int]] = {"assign": module.queries, "refine": (side, side)}
        whole = {"image": np.ones((side, side), bool)}
        layout = PictureLayout(TokenLayout(CLIP_LENGTH), whole, (side, side), 1, banks=banks)
        program = AttentionProgram((Bank("assign", "image", "own", beta, Scope(CROSS)), *self.more()))
        self.attachment = attach(unet, compile_program(program, layout, layers=layers_of(unet), num_steps=1))

    def more(self) -> tuple[Bank, ...]:
        """What else the layers look at."""
        return ()

    def forward(self, latents: Tensor, times: Tensor, text: Tensor, subject: Tensor) -> Tensor:
        """Return the noise (B, C, h, w) in latents with the known part, given texts (B, 77, D) and subjects."""
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


@dataclass(frozen=True)
class Stage:
    """One of the two: at which beta Assign works, and in which network."""

    name: str
    beta: float
    network: type[Assigner]

    def around(self, unet: UNet2DConditionModel, module: LarGen, side: int) -> Assigner:
        """Return the network that learns, for latents of ``side`` x ``side``."""
        return self.network(unet, module, self.beta, side)


ASSIGN, REFINE = Stage("assign", 1.0, Assigner), Stage("refine", 0.3, Refiner)
STAGES = {stage.name: stage for stage in (ASSIGN, REFINE)}


class Inpainting(Protocol):
    """What the loss of a stage asks of a task."""

    @property
    def stage(self) -> Stage: ...

    @property
    def vae(self) -> AutoencoderKL: ...

    @property
    def alphas(self) -> Tensor:
        """The share of the picture's variance at each time."""

    @property
    def weights(self) -> Tensor:
        """How much each time counts, 1 on average."""

    def text(self, ids: Tensor) -> Tensor:
        """CLIP's states (B, 77, D) of word ids."""

    def noised(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, their noise, and the times (B,) of a batch."""

    def seen(self, noisy: Tensor, batch: Batch) -> Tensor:
        """What the U-Net is given: noisy latents, mask and known part."""


def stage_loss(
    task: Inpainting, model: nn.Module, batch: Batch, rng: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the squared error of the noise, weighted by time, and itself as a reading.

    Args:
        task: What belongs to the model and does not learn.
        model: What `Stage.around` returned, or that on several processes.
        batch: With ``clip_ids`` (B, 77), ``subject`` (B, 3, H, W) in [-1, 1], and what the task's own methods read.
        rng: Draws times and noise.
    """
    noisy, noise, times = task.noised(batch, rng)
    subject = batch["subject"]
    given = task.seen(noisy, batch), times, task.text(batch["clip_ids"]), subject
    painted = model(*given, *(_hidden(task, subject, times, rng) if task.stage is REFINE else ()))
    weights = task.weights.to(times.device)[times]
    error = (weights * (painted.float() - noise).square().flatten(1).mean(dim=1)).mean()
    return error, {"error": error}


def _hidden(task: Inpainting, subject: Tensor, times: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
    """Return the latents of subjects, and the noise that hides them as much as that of the picture does."""
    clean = encode(task.vae.to(times.device), subject)
    noise = torch.randn(clean.shape, generator=rng).to(clean)
    return clean, noise, task.alphas[times.cpu()].to(clean)


def assigned(folder: Path, unet: UNet2DConditionModel, text_unet: UNet2DConditionModel, eye: Eye) -> LarGen:
    """Return what stage 1 saved with a new RefineNet, the only part that learns.

    Args:
        folder: Of stage 1.
        unet: The inpainting model, which stays as it is.
        text_unet: The model that paints from text, of which RefineNet is a copy.
        eye: CLIP.
    """
    unet.requires_grad_(False)
    module = LarGen.load(folder, unet, None, eye)
    module.add_refine(text_unet)
    return only_refine_learns(module)


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
