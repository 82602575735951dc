"""The miniature's Stable Diffusion: ``UNet2DConditionModel``, epsilon prediction, text from the miniature's CLIP.

Eight latents at 16 x 16, scaled-linear betas, cross-attention at every level, heads of 32. The text encoder is frozen,
as Stable Diffusion's is. A part map, predicted behind the last but one up block and thrown away afterwards, makes
shapes come sooner. Of scenes of several things it also meets what is around one of them alone, and sentences that tell
of one of them: regions ask for both. Its inpainting model reads the mask and the masked picture as 1 + 8 further
channels; that folder holds a U-Net and nothing else, for diffusers' own inpainting pipeline runs models of 4 latents
alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import CLIPTextModel

from capriccio import assets
from capriccio.evaluation import holes, targets
from capriccio.objectives import noise_weight
from capriccio.recipes import masks
from capriccio.recipes.diffusion import noised, seen
from capriccio.recipes.gallery import CELL, Pictures, Wing
from capriccio.recipes.painting import (
    FACTOR,
    INKS,
    LATENTS,
    PARTLY,
    PARTS,
    TRAITS,
    GalleryTask,
    forget_origins,
    map_loss,
    save_halved,
    thing_weights,
)
from capriccio.recipes.vae import plain_vae
from capriccio.studio import Studio
from capriccio.training.optimisers import muon_and_adamw
from capriccio.training.trainer import Batch, Row, Schedule
from capriccio.world.tokenizers import clip_tokenizer

HEAD = 32  # width of an attention head
CELLS = (FACTOR // CELL) ** 2


@dataclass(frozen=True)
class Size:
    """Channels of each level, and layers in each of its blocks."""

    channels: tuple[int, ...]
    layers: int


SIZE = Size((64, 160), 1)
SHARES = {"scenes": 0.85, "pairs": 0.15, "grids": 0.0}
BATCH = {"scenes": 16, "pairs": 8, "grids": 4}


def new_unet(size: Size, width: int = 192) -> UNet2DConditionModel:
    """An untrained U-Net whose output starts at zero.

    Args:
        size: Channels and layers.
        width: Of the text encoder.
    """
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENTS,
        out_channels=LATENTS,
        down_block_types=("CrossAttnDownBlock2D",) * len(size.channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(size.channels),
        block_out_channels=size.channels,
        layers_per_block=size.layers,
        cross_attention_dim=width,
        # A historical name: it is the number of heads.
        attention_head_dim=tuple(channels // HEAD for channels in size.channels),
        use_linear_projection=True,
    )
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet


def new_scheduler() -> DDIMScheduler:
    """The noise of Stable Diffusion: betas whose roots are evenly spaced."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class Painter(nn.Module):
    """U-Net and the part-map head, in one forward; channels last, which CPUs do half as fast again in float32."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        width = unet.config.block_out_channels[1]
        self.unet = unet
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 256), nn.GELU(), nn.Linear(256, CELLS * (PARTS + INKS))
        )
        self._features: Tensor | None = None
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        unet.up_blocks[-2].register_forward_hook(self._remember)

    def _remember(self, block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._features = output.flatten(2).transpose(1, 2)

    def forward(self, latents: Tensor, times: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Noise (B, 8, H, W) and logits (B, H * W, 4, parts + inks) from noisy latents and text states (B, 77, D)."""
        latents = latents.contiguous(memory_format=torch.channels_last)
        noise = self.unet(latents, times, encoder_hidden_states=text, return_dict=False)[0]
        return noise, self.head(self._features).unflatten(-1, (CELLS, PARTS + INKS))


def is_muons(name: str, value: Tensor) -> bool:
    """The matrices of attention and its feed-forward layers are Muon's; convolutions, embedders and output AdamW's."""
    return ".transformer_blocks." in name and value.dim() == 2


@dataclass
class SDTask(GalleryTask):
    """Train the U-Net from latents of the gallery."""

    shares = SHARES
    sizes = BATCH
    token = FACTOR
    cut = 0.1  # of things alone, which it has learned
    peopled = 0.35  # whose words are many, and each of a small place
    patterned = 0.4
    partly = PARTLY
    traits = TRAITS
    early: ClassVar[float] = 0.3  # of a picture that is all noise, words tell what noise may seem to

    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=60, warmup=60, decay=0.8))
    start: Path | None = None  # a finished pipeline folder to go on from
    name: str = "sd"

    @cached_property
    def alphas(self) -> Tensor:
        """The share of the picture's variance at each of the 1000 times."""
        return new_scheduler().alphas_cumprod

    @cached_property
    def weights(self) -> Tensor:
        """How much each of the 1000 times counts, 1 on average."""
        weights = noise_weight(self.alphas, most=10.0)  # whose skin is dark, the early steps choose
        return weights / weights.mean()

    def models(self) -> nn.Module:
        torch.manual_seed(self.schedule.seed)
        if self.start is not None:
            return Painter(UNet2DConditionModel.from_pretrained(self.start, subfolder="unet"))
        return Painter(new_unet(SIZE))

    def optimisers(self, model: nn.Module) -> list[Optimizer]:
        gently = 1.0 if self.start is None else 0.6  # at full speed what goes on begins by forgetting
        return muon_and_adamw(model, is_muons, muon_lr=gently * 2e-3, adamw_lr=gently * 1.2e-3)

    def text(self, ids: Tensor) -> Tensor:
        """CLIP's states (B, 77, 192) of word ids, not learned."""
        with torch.no_grad():
            return self.clip.to(ids.device)(ids).last_hidden_state

    def noised(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, their noise, and the times (B,) of a batch."""
        return noised(batch["latents"], self.alphas, rng, self.early)

    def seen(self, noisy: Tensor, batch: Batch) -> Tensor:
        """What the U-Net is given: the noisy latents."""
        return noisy

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        noisy, noise, times = self.noised(batch, rng)
        painted, logits = model(self.seen(noisy, batch), times, self.text(batch["clip_ids"]))
        weights = self.weights.to(times.device)[times]
        squares = (painted.float() - noise).square().mean(1).flatten(1)  # (B, tokens)
        error = (weights * squares.mean(1)).mean()
        things = (weights * (thing_weights(batch["parts"], batch["inks"]) * squares).mean(1)).mean()
        shapes = map_loss(logits, batch["parts"], batch["inks"])
        wide = noisy.shape[-1] > 16
        shown = "cuttings" if "corner" in batch else "panels" if wide else "scenes"
        return things + 0.4 * shapes, {shown: error, "things": things, "map": shapes}

    def save(self, model: nn.Module, folder: Path) -> None:
        save_halved(pipeline(model.unet, self.vae, self.clip), folder)

    def measure(self, model: nn.Module) -> list[Row]:
        """Paint held-out captions with what was just saved, and let the reader judge."""
        studio = Studio.open("miniature-sd")
        parts = ((targets.one_subject, 128), (targets.two_subjects, 96))
        rows = [row for part, count in parts for row in part(studio, count, model=self.name)]
        return [row for row in rows if row.name.startswith(self.name)]


@dataclass
class SDInpaintTask(SDTask):
    """Fine-tune the miniature's Stable Diffusion into its inpainting model: 8 + 1 + 8 input channels."""

    cut = 0.0  # a hole in what was cut out would lie too near its border
    partly = 0.0

    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=38, warmup=60, seed=1))
    name: str = "sd-inpaint"

    def models(self) -> nn.Module:
        torch.manual_seed(self.schedule.seed)
        base = self.start or Path(assets.path("miniature/sd"))
        return Painter(widen(UNet2DConditionModel.from_pretrained(base, subfolder="unet"), 2 * LATENTS + 1))

    def optimisers(self, model: nn.Module) -> list[Optimizer]:
        return muon_and_adamw(model, is_muons, muon_lr=1.5e-3, adamw_lr=8e-4)

    def extras(self, wing: Wing, pictures: Pictures, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        return {"pixels": pictures.pixels(rows), "mask": masks.holes(rng, wing, pictures, rows)}

    def seen(self, noisy: Tensor, batch: Batch) -> Tensor:
        """Noisy latents, the mask at latent size, and the latents of the picture with masked pixels mid-grey."""
        return seen(self.vae.to(noisy.device), noisy, batch["pixels"], batch["mask"])

    def save(self, model: nn.Module, folder: Path) -> None:
        # The U-Net alone: everything else is the same as beside the model that paints from text.
        unet: Any = model.unet
        unet.half().save_pretrained(folder / "unet")
        forget_origins(folder)

    def measure(self, model: nn.Module) -> list[Row]:
        """Paint into holes of held-out pictures with what was just saved, and let the readers judge."""
        return holes.rows(Studio.open("miniature-sd"), "sd_inpaint", "fill")


def widen(unet: UNet2DConditionModel, in_channels: int) -> UNet2DConditionModel:
    """Give the first convolution more input channels; the new ones start at zero, so the model starts unchanged."""
    old = unet.conv_in
    new = nn.Conv2d(in_channels, old.out_channels, old.kernel_size, padding=old.padding)
    with torch.no_grad():
        new.weight.zero_()[:, : old.in_channels] = old.weight
        new.load_state_dict({"weight": new.weight, "bias": old.bias})
    unet.conv_in = new
    unet.register_to_config(in_channels=in_channels)
    return unet


def pipeline(unet: UNet2DConditionModel, vae: AutoencoderKL, clip: CLIPTextModel) -> StableDiffusionPipeline:
    """An ordinary ``StableDiffusionPipeline`` of the miniature's parts."""
    return StableDiffusionPipeline(
        scheduler=new_scheduler(),
        vae=plain_vae(vae),
        text_encoder=clip,
        tokenizer=clip_tokenizer(),
        unet=unet,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
