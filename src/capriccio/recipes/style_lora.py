"""A style LoRA of the miniature's FLUX: rank 4 on the linear layers of attention, learned from scenes of one style.

The sentences never name the style, so that it is the LoRA that brings it. The file is in diffusers' own layout, as
``save_lora_weights`` writes it: ``Lora(assets.path("miniature/style-lora"))``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from torch.optim import Optimizer

from capriccio import assets
from capriccio.errors import CapriccioError
from capriccio.evaluation.targets import style_read
from capriccio.recipes.flux import pack
from capriccio.recipes.inpainting import BesideFlux
from capriccio.studio import Studio
from capriccio.training.optimisers import muon_and_adamw
from capriccio.training.trainer import Batch, Row, Schedule
from capriccio.world.graph import SceneGraph

RANK = 4
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
AIMS = {0.0: (0.0, 0.0), 0.5: (0.2, 0.5), 1.0: (0.6, 0.9)}
"""Of each weight: which share of the pictures should at least, and should rather, be read as of the style."""


@dataclass
class StyleLoraTask(BesideFlux):
    """Train a LoRA of the miniature FLUX, which stays as it is, on the gallery's scenes of one style."""

    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=8, warmup=40, seed=3, average=0.99))
    style: str = "pencil"
    name: str = "style-lora"

    def models(self) -> nn.Module:
        torch.manual_seed(self.schedule.seed)
        transformer = FluxTransformer2DModel.from_pretrained(self.base, subfolder="transformer")
        transformer.requires_grad_(False)
        transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS))
        return transformer

    def optimisers(self, model: nn.Module) -> list[Optimizer]:
        # Products of thin matrices: Muon is made for whole ones.
        return muon_and_adamw(model, lambda name, value: False, adamw_lr=2e-3)

    @cached_property
    def of_style(self) -> list[int]:
        """Which scenes of the gallery are of the style."""
        graphs = self.wings["scenes"].graphs
        found = [row for row, graph in enumerate(graphs) if isinstance(graph, SceneGraph) and graph.style == self.style]
        if not found:
            raise CapriccioError(f"The gallery has no scene of the style {self.style!r}; give one of its styles.")
        return found

    def batch(self, rng: np.random.Generator) -> Batch:
        pictures = self.wings["scenes"]
        rows = rng.choice(self.of_style, self.sizes["scenes"] * (1 if self.budget == "cpu" else 8))
        unsaid = [replace(pictures.graphs[row], style="shaded") for row in rows]
        return {"latents": torch.from_numpy(pictures.latents[rows]).float(), **self.sentences(unsaid, rng)}

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        noisy, velocity, sigma, grid = self.noised(batch, rng)
        painted = model(
            hidden_states=pack(noisy),
            encoder_hidden_states=self.text_encoder.to(noisy.device)(batch["ids"]).last_hidden_state,
            pooled_projections=self.pooled(batch["clip_ids"]),
            timestep=sigma,
            img_ids=grid,
            txt_ids=grid.new_zeros(batch["ids"].shape[1], 3),
            return_dict=False,
        )[0]
        flow = F.mse_loss(painted.float(), velocity)
        return flow, {"flow": flow}

    def save(self, model: nn.Module, folder: Path) -> None:
        # Its alpha is its rank, which is what a file without one is read as.
        state = {name: value.half() for name, value in get_peft_model_state_dict(model).items()}
        FluxPipeline.save_lora_weights(folder, transformer_lora_layers=state)

    def measure(self, model: nn.Module) -> list[Row]:
        """Paint held-out captions at several weights of what was just saved; the reader says what style they are of."""
        studio, path = Studio.open("miniature"), assets.path("miniature/style-lora")
        shares = {weight: style_read(studio, self.style, path, weight) for weight in AIMS}
        return [Row(f"{self.style}_read_at_{weight:g}", shares[weight], *AIMS[weight]) for weight in AIMS]
