"""The miniature's autoencoder: ``AutoencoderKL``, factor 8, 8 latent channels.

Trained on random crops of the whole world and of a broader diet (shapes, strokes, gradients, textures), so that worlds
to come need no other. Every fourth step the decoder also paints half-size pictures from averaged latents, which keeps
latents smooth and therefore easy to paint. Then ``vae-tune`` goes on with whole pictures and with latents that are a
little wrong, as a painter's always are, held near those that other models learn, or have learned.
"""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn
from torch.optim import Optimizer

from capriccio import assets
from capriccio.evaluation import targets
from capriccio.objectives import gaussian_kl, gradient_l1, pyramid_l1
from capriccio.recipes.painting import forget_origins
from capriccio.training.hands import spare_hands, spread
from capriccio.training.optimisers import muon_and_adamw
from capriccio.training.trainer import Batch, Row, Schedule
from capriccio.world.diet import draw_diet
from capriccio.world.whole import depict, sample_picture

CHANNELS = (16, 32, 64, 128)
POOL = {"cpu": 3_072, "gpu": 16_384}  # pictures drawn beforehand by every process
CHUNK = 64
LATENT_CHANNELS = 8
HELD = 1.0  # weight of how far an encoder's latents move


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder of the miniature, without quantisation convolutions (as FLUX's)."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=128,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


class Autoencoding(nn.Module):
    """The autoencoder and its loss in one forward, so that it runs on several processes."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor, noise: Tensor, half: bool) -> tuple[Tensor, Tensor]:
        """Reconstruction loss and KL of pictures (B, 3, H, W) in [-1, 1]; ``half`` judges at half size."""
        posterior = self.vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * noise
        if half:
            latents, pixels = F.avg_pool2d(latents, 2), F.avg_pool2d(pixels, 2)
        painted = self.vae.decode(latents).sample.float()
        # the coarse scales make colours come early; alone, fine L1 can settle in two colour axes for long
        reconstruction = pyramid_l1(painted, pixels) + 0.5 * gradient_l1(painted, pixels)
        return reconstruction, gaussian_kl(posterior.mean.float(), posterior.logvar.float())


class Tuning(nn.Module):
    """A finished autoencoder that learns on, and its loss in one forward."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae
        self.before = deepcopy(vae.encoder).requires_grad_(False)

    def forward(self, pixels: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction loss of pictures (B, 3, H, W) in [-1, 1] from latents with an error, and how far these moved.

        Both the error (B, 8, H/8, W/8) and the way, a mean square, are of scaled latents.
        """
        with torch.no_grad():
            before = self.before(pixels).chunk(2, 1)[0]
        latents, scale = self.vae.encoder(pixels).chunk(2, 1)[0], self.vae.config.scaling_factor
        painted = self.vae.decode(latents + error / scale).sample.float()
        return reconstruction_loss(painted, pixels), (scale * (latents.float() - before.float())).square().mean()


def reconstruction_loss(painted: Tensor, pixels: Tensor) -> Tensor:
    """The loss of those that go on: what is left to learn are edges, which squares weigh more."""
    return pyramid_l1(painted, pixels) + 0.5 * gradient_l1(painted, pixels) + 10 * F.mse_loss(painted, pixels)


def painters_errors(count: int, size: int, rng: torch.Generator) -> Tensor:
    """Errors as a painter makes them, (count, 8, size, size): mostly small, up to .5 of the latents' deviation.

    A third of the pictures have none, for those that are only encoded and decoded. Half have a coarse part as well, a
    cell of which is 2 x 2 latents: a painter errs by regions.
    """
    amount = 0.5 * (1.5 * torch.rand(count, 1, 1, 1, generator=rng) - 0.5).clamp(min=0).square()
    share = (2 * torch.rand(count, 1, 1, 1, generator=rng) - 1).clamp(min=0)
    white = torch.randn(count, LATENT_CHANNELS, size, size, generator=rng)
    coarse = torch.randn(count, LATENT_CHANNELS, size // 2, size // 2, generator=rng)
    coarse = coarse.repeat_interleave(2, -1).repeat_interleave(2, -2)
    return amount * (share.sqrt() * coarse + (1 - share).sqrt() * white)


def draw_mixture(rng: np.random.Generator, count: int, diet: float = 0.3, people: float = 0.0) -> Tensor:
    """Pictures (count, 3, 128, 128) in [-1, 1]: whatever the world shows, and a share of the broad diet.

    Args:
        rng: Source of every choice.
        count: How many pictures.
        diet: Share of the broad diet.
        people: Which share of the world's pictures show people for certain; the others show whatever there is.
    """
    broad = int(rng.binomial(count, diet))
    peopled = int(rng.binomial(count - broad, people))
    contents = ["people"] * peopled + [None] * (count - broad - peopled)
    parts = [depict([sample_picture(rng, content=content) for content in contents]).pixels] if contents else []
    return torch.cat(parts + ([draw_diet(rng, broad)] if broad else []))


def draw_chunk(seed: tuple[int, ...], diet: float, people: float) -> np.ndarray:
    """A part of the pool, as bytes (CHUNK, 3, 128, 128)."""
    pixels = draw_mixture(np.random.default_rng(seed), CHUNK, diet, people)
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def random_crops(pictures: Tensor, rng: np.random.Generator, size: int) -> Tensor:
    """One random square crop of every picture."""
    limit = pictures.shape[-1] - size + 1
    corners = rng.integers(0, limit, (len(pictures), 2))
    return torch.stack([p[:, y : y + size, x : x + size] for p, (y, x) in zip(pictures, corners, strict=True)])


@torch.no_grad()
def standardise(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Record shift and scaling of the latents of ``pictures``, so that scaled latents have mean 0 and variance 1."""
    latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pictures.split(32)])
    vae.register_to_config(shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std()))


@torch.no_grad()
def plain_vae(vae: AutoencoderKL) -> AutoencoderKL:
    """Return the VAE without a shift of its latents, which Stable Diffusion's pipelines know nothing of.

    The shift moves into the 1 x 1 convolutions behind the encoder and before the decoder, which the published layout
    has anyway; scaled latents stay what they are.
    """
    settings = {"shift_factor": None, "use_quant_conv": True, "use_post_quant_conv": True}
    config = {key: value for key, value in dict(vae.config).items() if not key.startswith("_")}
    plain = AutoencoderKL(**config | settings).eval().requires_grad_(False)
    plain.load_state_dict(vae.state_dict(), strict=False)
    shift = torch.zeros(2 * LATENT_CHANNELS)
    shift[:LATENT_CHANNELS] = vae.config.shift_factor
    for convolution, bias in ((plain.quant_conv, -shift), (plain.post_quant_conv, shift[:LATENT_CHANNELS])):
        convolution.weight.copy_(torch.eye(len(bias))[:, :, None, None])
        convolution.bias.copy_(bias)
    return plain


def save_half(vae: AutoencoderKL, folder: Path) -> None:
    """Save an autoencoder in half precision; it stays in its own."""
    vae.half().save_pretrained(folder, max_shard_size="15MB")
    vae.float()


def hand_on(vae: AutoencoderKL, miniature: Path) -> None:
    """Give a tuned autoencoder to the pipelines in a folder of the miniature, which paint with an earlier one of it.

    Each file of weights is replaced as a whole; pipelines that are not there are left out.
    """
    for place, form in ((miniature / "flux/vae", vae), (miniature / "sd/vae", plain_vae(vae))):
        if place.is_dir():
            with TemporaryDirectory(dir=place) as scratch:
                save_half(form, Path(scratch))
                os.replace(Path(scratch, SAFETENSORS_WEIGHTS_NAME), place / SAFETENSORS_WEIGHTS_NAME)


def is_inner_kernel(name: str, value: Tensor) -> bool:
    """Kernels and matrices between the first and the last convolution of encoder and decoder are Muon's."""
    return min(value.shape[:2]) >= 16 and "conv_in" not in name and "conv_out" not in name


@dataclass
class VAETask:
    """Train the autoencoder. On a CPU 64-pixel crops are enough; a GPU takes whole pictures."""

    budget: str = "cpu"
    rank: int = 0
    processes: int = 1
    diet: ClassVar[float] = 0.3
    people: ClassVar[float] = 0.0

    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=25, warmup=60, decay=0.5, precision="no"))
    name: str = "vae"

    def models(self) -> nn.Module:
        torch.manual_seed(self.schedule.seed)
        return Autoencoding(new_vae())

    def optimisers(self, model: nn.Module) -> list[Optimizer]:
        return muon_and_adamw(model, is_inner_kernel, muon_lr=3e-3, adamw_lr=2e-3)

    @cached_property
    def pool(self) -> Tensor:
        """Pictures to take crops from, as bytes (N, 3, 128, 128)."""
        seeds = [(self.schedule.seed, self.rank, chunk) for chunk in range(POOL[self.budget] // CHUNK)]
        draw = partial(draw_chunk, diet=self.diet, people=self.people)
        return torch.from_numpy(np.concatenate(list(spread(draw, seeds, spare_hands(self.budget, self.processes)))))

    def batch(self, rng: np.random.Generator) -> Batch:
        count, size = (64, 128) if self.budget == "gpu" else (8, 64)
        rows = torch.from_numpy(rng.integers(0, len(self.pool), count))
        return {"pixels": random_crops(self.pool[rows].float() / 127.5 - 1, rng, size)}

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = batch["pixels"]
        shape = (len(pixels), LATENT_CHANNELS, pixels.shape[-2] // 8, pixels.shape[-1] // 8)
        noise = torch.randn(shape, generator=rng).to(pixels.device)
        half = bool(torch.rand((), generator=rng) < 0.25)
        reconstruction, divergence = model(pixels, noise, half)
        return reconstruction + 1e-3 * divergence, {"kl": divergence}

    def save(self, model: Autoencoding, folder: Path) -> None:
        standardise(model.vae, draw_mixture(np.random.default_rng(1), 128, diet=0.0))
        save_half(model.vae, folder)

    def measure(self, model: Autoencoding) -> list[Row]:
        return targets.vae(model=model.vae)


@dataclass
class TuneTask(VAETask):
    """Go on with a finished autoencoder, the committed one by default, near whose latents it stays."""

    diet = 0.15
    people = 0.5  # small faces and patterns in folds are what it draws worst

    start: Path | None = None
    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=30, warmup=60, decay=0.7, seed=4))

    def models(self) -> nn.Module:
        start = self.start or assets.path("miniature/vae")
        return Tuning(AutoencoderKL.from_pretrained(start, torch_dtype=torch.float32))

    def optimisers(self, model: nn.Module) -> list[Optimizer]:
        return muon_and_adamw(model, is_inner_kernel, muon_lr=2e-3, adamw_lr=1.2e-3)

    def batch(self, rng: np.random.Generator) -> Batch:
        rows = torch.from_numpy(rng.integers(0, len(self.pool), 4 if self.budget == "cpu" else 64))
        return {"pixels": self.pool[rows].float() / 127.5 - 1}

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = batch["pixels"]
        reconstruction, moved = model(
            pixels, painters_errors(len(pixels), pixels.shape[-1] // 8, rng).to(pixels.device)
        )
        return reconstruction + HELD * moved, {"moved": moved.sqrt()}

    def save(self, model: Tuning, folder: Path) -> None:  # type: ignore[override]
        save_half(model.vae, folder)
        forget_origins(folder)
        hand_on(model.vae, folder.parent)
