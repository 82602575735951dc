"""What a model of the Stable Diffusion family learns from: noisy latents, and what its inpainting model is shown."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionInpaintPipeline, UNet2DConditionModel
from torch import Tensor

from capriccio.objectives import diffused
from capriccio.recipes.gallery import encode

EARLY = 0.75
"""Of all times those above this share are the early steps of painting, in which words choose."""


def noised(latents: Tensor, alphas: Tensor, rng: torch.Generator, early: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return noisy latents, their noise, and the times (B,) of a batch.

    Args:
        latents: (B, C, h, w), scaled.
        alphas: (T,), the share of the picture's variance that is left at each time.
        rng: Draws times and noise, on the CPU.
        early: Which share of the times are of early steps (``EARLY``), beside those of them among the others.
    """
    times = torch.randint(0, len(alphas), (len(latents),), generator=rng)
    if early:
        first = torch.rand(len(latents), generator=rng) < early
        times = torch.where(first, int(EARLY * len(alphas)) + (times * (1 - EARLY)).long(), times)
    noise = torch.randn(latents.shape, generator=rng).to(latents.device)
    return diffused(latents, noise, alphas[times].to(latents.device)), noise, times.to(latents.device)


def seen(vae: AutoencoderKL, noisy: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
    """Return what an inpainting U-Net is given, (B, 2 C + 1, h, w): latents, mask, and the known part of the picture.

    Args:
        vae: Encodes the picture with its masked pixels mid-grey.
        noisy: Latents (B, C, h, w).
        pixels: (B, 3, H, W) in [-1, 1].
        mask: (B, 1, H, W), 1 where it paints.
    """
    known = encode(vae, pixels * (mask < 0.5))
    return torch.cat([noisy, F.interpolate(mask, size=noisy.shape[-2:]), known], dim=1)


def as_inpainting(pipe: object, unet: UNet2DConditionModel) -> StableDiffusionInpaintPipeline:
    """Return an inpainting pipeline of a pipeline's parts, around another U-Net."""
    none = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    parts = {**pipe.components, **none, "unet": unet}  # type: ignore[attr-defined]
    return StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
