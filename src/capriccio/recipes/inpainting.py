"""The miniature's two inpainters, both from its FLUX: Fill (channels) and the inpainting ControlNet (a side network).

Both see holes in scenes and panels, at random and around things, and never a whole panel masked (``masks.py``).
Fill's folder holds its transformer and nothing else: ``FluxFillPipeline.from_pretrained`` takes the rest from the
folder of FLUX, beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FluxControlNetModel, FluxTransformer2DModel
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import CLIPTextModel, T5EncoderModel

from capriccio import assets
from capriccio.evaluation import holes
from capriccio.formats.alimama import new_inpainting_controlnet, save_inpainting_controlnet
from capriccio.recipes import masks
from capriccio.recipes.flux import FluxTask, Levels, Painter, is_muons, pack
from capriccio.recipes.gallery import Pictures, Wing, encode
from capriccio.recipes.painting import (
    CROWDED,
    FACTOR,
    LARGEST,
    LATENTS,
    forget_origins,
    map_loss,
    thing_error,
)
from capriccio.studio import Studio
from capriccio.training.optimisers import muon_and_adamw
from capriccio.training.trainer import Batch, Row, Schedule

SHARES = {"scenes": 0.3, "pairs": 0.67, "grids": 0.03}
CHANNELS = 8 * LATENTS + 4 * FACTOR**2  # noisy latents, known latents, and the mask's pixels, of a token


def widen(transformer: FluxTransformer2DModel, in_channels: int) -> FluxTransformer2DModel:
    """Give the image embedder more input columns; the new ones start at zero, so the model starts unchanged."""
    old = transformer.x_embedder
    new = nn.Linear(in_channels, old.out_features)
    with torch.no_grad():
        new.weight.zero_()[:, : old.in_features] = old.weight
        new.bias.copy_(old.bias)
    transformer.x_embedder = new
    transformer.register_to_config(in_channels=in_channels, out_channels=old.in_features)
    return transformer


def pack_mask(mask: Tensor) -> Tensor:
    """Pixel mask (B, 1, H, W) as Fill packs it: the 8 x 8 pixels of a latent as channels, then 2 x 2 patches."""
    return pack(F.pixel_unshuffle(mask, FACTOR))


@dataclass
class BesideFlux(FluxTask):
    """What learns beside a finished FLUX, with that one's text, from pictures with holes; ``start`` is its folder."""

    shares = SHARES
    cut = 0.0  # a hole in what was cut out would lie too near its border
    crowded = CROWDED
    peopled = 0.0  # as many as the gallery has
    traits = 0.0
    levels = Levels(scenes=0.0, panels=0.3, deviation=1.6)  # nearly even: what is known tells much of the colours
    engine: ClassVar[str] = "fill"  # of plain inpainting, which is asked for what was learned

    @property
    def base(self) -> Path:
        """The pipeline folder of the FLUX."""
        return self.start or Path(assets.path("miniature/flux"))

    @cached_property
    def clip(self) -> CLIPTextModel:  # the base's own, whose pooled vectors it learned from
        encoder = CLIPTextModel.from_pretrained(self.base, subfolder="text_encoder", dtype=torch.float32)
        return encoder.eval().requires_grad_(False)

    @cached_property
    def text_encoder(self) -> T5EncoderModel:
        encoder = T5EncoderModel.from_pretrained(self.base, subfolder="text_encoder_2", dtype=torch.float32)
        return encoder.eval().requires_grad_(False)

    def extras(self, wing: Wing, pictures: Pictures, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        return {"pixels": pictures.pixels(rows), "mask": masks.holes(rng, wing, pictures, rows)}

    def known(self, batch: Batch, hidden: float) -> Tensor:
        """Latents of the pictures with the masked pixels set to ``hidden``."""
        return encode(self.vae.to(batch["pixels"].device), torch.where(batch["mask"] > 0.5, hidden, batch["pixels"]))

    def measure(self, model: nn.Module) -> list[Row]:
        """Paint into holes of held-out pictures with what was just saved, and let the readers judge."""
        return holes.rows(Studio.open("miniature"), self.name.replace("-", "_"), self.engine)


@dataclass
class FillTask(BesideFlux):
    """Fine-tune the miniature FLUX into Fill: masked-image latents and the mask join the input channels.

    ``start`` is the folder of a FLUX, or that of a Fill that goes on, beside the miniature's text.
    """

    patterned = 0.7  # FLUX has its lattices: who is shown a plain thing must learn to leave it plain

    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=22, warmup=60, decay=0.8, seed=1))
    name: str = "fill"

    @property
    def goes_on(self) -> bool:
        """Whether what it starts from is a Fill, whose folder has no text."""
        return self.start is not None and not (self.start / "text_encoder_2").is_dir()

    @property
    def base(self) -> Path:
        return Path(assets.path("miniature/flux")) if self.start is None or self.goes_on else self.start

    def models(self) -> nn.Module:
        torch.manual_seed(self.schedule.seed)
        transformer = FluxTransformer2DModel.from_pretrained(self.start or self.base, subfolder="transformer")
        return Painter(transformer if self.goes_on else widen(transformer, CHANNELS), self.text_encoder)

    def optimisers(self, model: nn.Module) -> list[Optimizer]:
        gently = 0.5 if self.goes_on else 1.0  # what goes on has its shapes already
        return muon_and_adamw(model, is_muons, muon_lr=gently * 2e-3, adamw_lr=gently * 8e-4)

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        noisy, velocity, sigma, grid = self.noised(batch, rng)
        # Fill's pipeline multiplies the preprocessed picture by (1 - mask): hidden pixels are mid-grey, 0
        tokens = torch.cat([pack(noisy), pack(self.known(batch, 0.0)), pack_mask(batch["mask"])], dim=-1)
        painted, logits = model(tokens, sigma, batch["ids"], self.pooled(batch["clip_ids"]), grid)
        flow = F.mse_loss(painted.float(), velocity)
        shapes = map_loss(logits, batch["parts"], batch["inks"])
        things = thing_error(painted, velocity, batch["parts"], batch["inks"])
        return things + 0.1 * shapes, {"flow": flow, "things": things, "map": shapes}

    def save(self, model: nn.Module, folder: Path) -> None:
        # The transformer alone: everything else is the same as beside the model that paints from text.
        transformer: Any = model.transformer
        transformer.half().save_pretrained(folder / "transformer", max_shard_size=LARGEST)
        forget_origins(folder)


class Guided(nn.Module):
    """The frozen FLUX with the inpainting ControlNet, in one forward."""

    def __init__(self, controlnet: FluxControlNetModel, transformer: FluxTransformer2DModel) -> None:
        super().__init__()
        self.controlnet, self.transformer = controlnet, transformer

    def forward(self, inputs: dict[str, Tensor], condition: dict[str, Tensor]) -> Tensor:
        """Velocity (B, tokens, 32) from the transformer's inputs and those of the ControlNet alone."""
        double, single = self.controlnet(**inputs, **condition, conditioning_scale=1.0, return_dict=False)
        residuals = {"controlnet_block_samples": double, "controlnet_single_block_samples": single}
        return self.transformer(**inputs, **residuals, return_dict=False)[0]


@dataclass
class ControlNetTask(BesideFlux):
    """Train the inpainting ControlNet in the alimama layout: 4 (L + 1) condition channels; the base stays frozen."""

    engine = "controlnet"

    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=18, warmup=60, decay=0.8, seed=2))
    name: str = "controlnet-inpaint"

    @cached_property
    def transformer(self) -> FluxTransformer2DModel:
        transformer = FluxTransformer2DModel.from_pretrained(self.base, subfolder="transformer")
        return transformer.eval().requires_grad_(False)

    def models(self) -> nn.Module:
        torch.manual_seed(self.schedule.seed)
        controlnet = new_inpainting_controlnet(self.transformer, num_layers=1, num_single_layers=1)
        return Guided(controlnet, self.transformer)

    def condition(self, batch: Batch) -> dict[str, Tensor]:
        """Masked pixels at -1, encoded; the mask at latent size, inverted (1 = known); packed to 4 (L + 1) channels."""
        latents = self.known(batch, -1.0)
        known = 1.0 - F.interpolate(batch["mask"], size=latents.shape[-2:], mode="nearest")
        return {"controlnet_cond": pack(torch.cat([latents, known], dim=1))}

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        noisy, velocity, sigma, grid = self.noised(batch, rng)
        device = noisy.device
        inputs = {
            "hidden_states": pack(noisy),
            "encoder_hidden_states": self.text_encoder.to(device)(batch["ids"]).last_hidden_state,
            "pooled_projections": self.pooled(batch["clip_ids"]),
            "timestep": sigma,
            "img_ids": grid,
            "txt_ids": grid.new_zeros(batch["ids"].shape[1], 3),
        }
        painted = model(inputs, self.condition(batch))
        things = thing_error(painted, velocity, batch["parts"], batch["inks"])
        return things, {"flow": F.mse_loss(painted.float(), velocity), "things": things}

    def save(self, model: nn.Module, folder: Path) -> None:
        save_inpainting_controlnet(model.controlnet.half(), folder)
