"""The miniature's Paint by Example (arXiv 2211.13227): paints the subject that it is shown into a hole, without words.

A baseline of LAR-Gen's benchmark, in diffusers' own layout. The whole U-Net learns, from the miniature's inpainting
model; in the place of a sentence it reads one token, CLIP's embedding of the subject behind a small transformer. One
token is the paper's bottleneck: it says what the subject is, and too little to copy its pixels. For a fifth of the
pictures it is a vector that is learned too, for classifier-free guidance (section 3.3 of the paper).

The folder lacks the VAE, which is that of the miniature's Stable Diffusion, beside it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import PaintByExamplePipeline, UNet2DConditionModel
from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import CLIPImageProcessor, CLIPVisionConfig

from capriccio import assets
from capriccio.modules.lar_gen import Eye
from capriccio.recipes.painting import LATENTS, save_halved
from capriccio.recipes.sd import is_muons, new_scheduler
from capriccio.recipes.subjects import SubjectTask
from capriccio.training.optimisers import muon_and_adamw
from capriccio.training.trainer import Batch, Schedule

NOTHING = 0.2
"""Share of the pictures whose subject is replaced by the learned vector of no subject."""


class Painter(nn.Module):
    """The U-Net and what it sees subjects with, in one forward; channels last, as CPUs like convolutions."""

    def __init__(self, unet: UNet2DConditionModel, image_encoder: PaintByExampleImageEncoder) -> None:
        super().__init__()
        self.unet, self.image_encoder = unet, image_encoder
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, latents: Tensor, times: Tensor, subject: Tensor, nothing: Tensor) -> Tensor:
        """Return the noise (B, C, h, w) in latents with the known part.

        Args:
            latents: (B, 2 C + 1, h, w): noisy latents, the known part of the picture, and where it is known.
            times: (B,).
            subject: (B, 3, H, W), as CLIP is given pictures.
            nothing: (B,), true where no subject is shown.
        """
        tokens, unconditional = self.image_encoder(subject, return_uncond_vector=True)
        tokens = torch.where(nothing[:, None, None], unconditional.to(tokens.dtype), tokens)
        latents = latents.contiguous(memory_format=torch.channels_last)
        return self.unet(latents, times, encoder_hidden_states=tokens, return_dict=False)[0]


@dataclass
class PaintByExampleTask(SubjectTask):
    """Fine-tune the miniature's inpainting model until it paints from a subject instead of a sentence."""

    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=20, warmup=60, seed=7, average=0.995))
    name: str = "paint-by-example"
    dropout = 0.0  # the learned vector is this model's own way to be shown nothing

    def models(self) -> nn.Module:
        torch.manual_seed(self.schedule.seed)
        unet = UNet2DConditionModel.from_pretrained(self.base, subfolder="unet")
        return Painter(reordered(unet), new_image_encoder(self.eye, unet.config.cross_attention_dim))

    def optimisers(self, model: nn.Module) -> list[Optimizer]:
        return muon_and_adamw(model, is_muons, muon_lr=1.5e-3, adamw_lr=8e-4)

    def seen(self, noisy: Tensor, batch: Batch) -> Tensor:
        """Noisy latents, the latents of the picture with masked pixels mid-grey, and where it is known."""
        latents, mask, known = super().seen(noisy, batch).split([LATENTS, 1, LATENTS], dim=1)
        return torch.cat([latents, known, 1 - mask], dim=1)

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        noisy, noise, times = self.noised(batch, rng)
        nothing = (torch.rand(len(times), generator=rng) < NOTHING).to(times.device)
        subject = self.eye.to(times.device).prepared(batch["subject"])
        painted = model(self.seen(noisy, batch), times, subject, nothing)
        weights = self.weights.to(times.device)[times]
        error = (weights * (painted.float() - noise).square().flatten(1).mean(dim=1)).mean()
        return error, {"error": error}

    def save(self, model: nn.Module, folder: Path) -> None:
        processor = CLIPImageProcessor.from_pretrained(assets.path("miniature/clip/feature_extractor"))
        parts = {"unet": model.unet, "image_encoder": model.image_encoder, "feature_extractor": processor}
        pipe = PaintByExamplePipeline(vae=None, scheduler=new_scheduler(), safety_checker=None, **parts)
        save_halved(pipe, folder)


@torch.no_grad()
def reordered(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Let an inpainting U-Net read its channels as Paint by Example orders them, and paint what it painted before.

    It reads where the picture is known behind the known part, where others read what is to be painted before it.
    """
    latents, mask, known = unet.conv_in.weight.split([LATENTS, 1, LATENTS], dim=1)
    unet.conv_in.bias += mask.sum(dim=(1, 2, 3))  # but at the rim of the picture, where some of it falls on padding
    unet.conv_in.weight.copy_(torch.cat([latents, known, -mask], dim=1))
    return unet


def new_image_encoder(eye: Eye, width: int) -> PaintByExampleImageEncoder:
    """A copy of CLIP, which does not learn, behind it an untrained transformer and a projection to ``width``."""
    encoder = PaintByExampleImageEncoder(CLIPVisionConfig(**eye.encoder.config.to_dict()), proj_size=width)
    encoder.model = copy.deepcopy(eye.encoder.vision_model)
    return encoder
