"""The miniature's FLUX: ``FluxTransformer2DModel``, learned on scenes and panels beside text encoders that stay.

One subject, several subjects, and panels that show one identity twice (as FLUX met them on the web). A part map,
predicted from the image tokens of the fourth block and thrown away afterwards, makes shapes come sooner. Texts are
padded to a random length, mostly short, so that no length is baked in. Of scenes of several things it also meets what
is around one of them alone, with a sentence on that: a region that sees nothing else is a picture of such a shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import CLIPTextModel, T5EncoderModel

from capriccio import assets
from capriccio.evaluation import targets
from capriccio.objectives import flow_matching_pair, logit_normal
from capriccio.recipes.gallery import CELL, PANEL
from capriccio.recipes.painting import (
    FACTOR,
    INKS,
    LATENTS,
    PARTS,
    TRAITS,
    GalleryTask,
    Sentences,
    map_loss,
    people_share,
    save_halved,
    thing_error,
    thing_share,
)
from capriccio.recipes.teacher import Teacher, taught
from capriccio.studio import Studio
from capriccio.training.optimisers import muon_and_adamw
from capriccio.training.trainer import Batch, Row, Schedule
from capriccio.world.tokenizers import clip_tokenizer, t5_tokenizer
from capriccio.world.whole import Picture

TOKEN = 16  # pixels of one image token
CELLS = (TOKEN // CELL) ** 2
SCENE = (PANEL // TOKEN) ** 2  # image tokens of one scene


@dataclass(frozen=True)
class Size:
    """Width and depth of the transformer."""

    heads: int
    double: int
    single: int


SIZE = Size(heads=4, double=2, single=6)
UNHEARD = 0.5  # of the sentences reach the transformer by their words alone, without CLIP's pooled text
SHARES = {"scenes": 0.78, "pairs": 0.2, "grids": 0.02}
BATCH = {"scenes": 24, "pairs": 12, "grids": 6}


@dataclass(frozen=True)
class Levels:
    """Noise levels of training: the sigmoid of a normal, with a mean for each wing, and for scenes of people.

    Above 0.8 the words choose kinds and colours: there they lower the loss three to ten times more than below 0.6. What
    is small they choose later: a woman's mouth or a man's, of a whole figure, at 0.3 to 0.5.
    """

    scenes: float
    panels: float
    people: float | None = None  # of scenes that show somebody; as of others where it is not said
    deviation: float = 1.0

    def draw(self, batch: Batch, rng: torch.Generator) -> Tensor:
        """Draw levels (B,) in (0, 1) for a batch of scenes or of panels."""
        latents = batch["latents"]
        mean: float | Tensor = self.scenes
        if latents.shape[-1] > PANEL // FACTOR:
            mean = self.panels
        elif self.people is not None:
            mean = torch.where((people_share(batch["parts"]) > 0).any(1).cpu(), self.people, self.scenes)
        return logit_normal(len(latents), mean, rng, self.deviation)


def new_transformer(size: Size, in_channels: int = 4 * LATENTS) -> FluxTransformer2DModel:
    """An untrained transformer whose modulations and output start at zero."""
    width = 64 * size.heads
    transformer = FluxTransformer2DModel(
        in_channels=in_channels,
        out_channels=4 * LATENTS,
        num_layers=size.double,
        num_single_layers=size.single,
        attention_head_dim=64,
        num_attention_heads=size.heads,
        joint_attention_dim=width,
        pooled_projection_dim=192,
        guidance_embeds=False,
        axes_dims_rope=(16, 24, 24),
    )
    for name, parameter in transformer.named_parameters():
        if (".norm" in name and ".linear." in name) or name.startswith(("norm_out.linear", "proj_out")):
            nn.init.zeros_(parameter)
    return transformer


def grid_ids(rows: int, columns: int) -> Tensor:
    """Positions (rows * columns, 3) of image tokens, row-major: (0, row, column), as FLUX's pipelines."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], -1).reshape(-1, 3).float()


def pack(latents: Tensor) -> Tensor:
    """Latents (B, C, H, W) as tokens (B, H/2 * W/2, 4 C): 2 x 2 patches, channel-major, as FLUX's."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, 4 * channels)


class Painter(nn.Module):
    """Transformer, text encoder, which does not learn, and the part-map head, in one forward."""

    def __init__(self, transformer: FluxTransformer2DModel, text_encoder: T5EncoderModel) -> None:
        super().__init__()
        width = transformer.inner_dim
        self.transformer, self.text_encoder = transformer, text_encoder
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 256), nn.GELU(), nn.Linear(256, CELLS * (PARTS + INKS))
        )
        self._features: Tensor | None = None
        fourth = transformer.single_transformer_blocks[3 - len(transformer.transformer_blocks)]
        fourth.register_forward_hook(self._remember)

    def _remember(self, block: nn.Module, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, Tensor]) -> None:
        self._features = outputs[1]

    def forward(
        self, tokens: Tensor, sigma: Tensor, ids: Tensor, pooled: Tensor, grid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Velocity (B, tokens, 32) and logits (B, tokens, 16, parts + inks).

        Args:
            tokens: Noisy image tokens (B, tokens, C).
            sigma: Noise levels (B,).
            ids: Word ids (B, T).
            pooled: Of CLIP, (B, 192).
            grid: Positions (tokens, 3).
        """
        text = self.text_encoder(ids).last_hidden_state
        velocity = self.transformer(
            hidden_states=tokens,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=sigma,
            img_ids=grid,
            txt_ids=grid.new_zeros(ids.shape[1], 3),
            return_dict=False,
        )[0]
        return velocity, self.head(self._features).unflatten(-1, (CELLS, PARTS + INKS))


def is_muons(name: str, value: Tensor) -> bool:
    """The matrices of the blocks are Muon's; modulations, embedders and output AdamW's."""
    return "transformer_blocks." in name and ".norm" not in name


def text_length(longest: int, rng: np.random.Generator) -> int:
    """How many text tokens a batch has: mostly the longest sentence and a little more, sometimes 64 to 128."""
    if rng.random() < 0.06:
        return max(longest, int(rng.integers(64, 129)))
    return max(16, longest + int(rng.integers(0, 9)))


class JointSentences(Sentences):
    """Sentences for both encoders of FLUX: word ids of T5, padded to a random length, and of CLIP."""

    def __init__(self, dropout: float = 0.1, traits: float = 0.0) -> None:
        super().__init__(dropout, traits)
        self.t5 = t5_tokenizer()

    def ids(self, texts: list[str], rng: np.random.Generator) -> Tensor:
        """Word ids (B, T) of T5."""
        words = self.t5(texts, padding=True, truncation=True, max_length=128, return_tensors="pt").input_ids
        return F.pad(words, (0, text_length(words.shape[1], rng) - words.shape[1]), value=self.t5.pad_token_id)

    def __call__(self, graphs: list[Picture], rng: np.random.Generator) -> Batch:
        texts = [self.say(graph, rng) for graph in graphs]
        return {"ids": self.ids(texts, rng), "clip_ids": self.clip_ids(texts)}


@dataclass
class FluxTask(GalleryTask):
    """Train the transformer from latents of the gallery, beside the text encoders of the miniature."""

    shares = SHARES
    sizes = BATCH
    token = TOKEN
    levels: ClassVar = Levels(scenes=0.8, panels=1.0, people=0.2)
    cut = 0.03
    patterned = 0.92  # a lattice is learned from many pictures of lattices
    crowded = 0.25  # whose colour is whose, it learns last
    peopled = 0.5  # whose words are many, and each of a small place
    traits = TRAITS

    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=60, warmup=60, decay=0.8))
    start: Path | None = None  # a finished pipeline folder, whose transformer goes on
    teacher: Path | None = None  # the pipeline folder of a Stable Diffusion that has met the same pictures
    name: str = "flux"

    @cached_property
    def sentences(self) -> JointSentences:
        return JointSentences(traits=self.traits)

    @cached_property
    def text_encoder(self) -> T5EncoderModel:
        encoder = T5EncoderModel.from_pretrained(assets.path("miniature/t5"), dtype=torch.float32)
        return encoder.eval().requires_grad_(False)

    def models(self) -> nn.Module:
        torch.manual_seed(self.schedule.seed)
        if self.start is not None:
            transformer = FluxTransformer2DModel.from_pretrained(self.start, subfolder="transformer")
        else:
            transformer = new_transformer(SIZE)
        return Painter(transformer, self.text_encoder)

    def optimisers(self, model: nn.Module) -> list[Optimizer]:
        gently = 1.0 if self.start is None else 0.6  # at full speed what goes on forgets its patterns first
        return muon_and_adamw(model, is_muons, muon_lr=gently * 2.5e-3, adamw_lr=gently * 1.2e-3)

    def pooled(self, ids: Tensor) -> Tensor:
        """CLIP's pooled text (B, 192), not learned."""
        with torch.no_grad():
            return self.clip.to(ids.device)(ids).pooler_output

    @property
    def mapped(self) -> float:
        """What the part map counts: little where a FLUX goes on, for the head that reads it begins anew."""
        return 0.4 if self.start is None else 0.05

    @cached_property
    def silence(self) -> Tensor:
        """CLIP's pooled text of no words, (1, 192)."""
        return self.pooled(self.sentences.clip_ids([""]))

    def heard(self, ids: Tensor, rng: torch.Generator) -> Tensor:
        """CLIP's pooled text (B, 192), of some sentences that of no words.

        One vector tells the colours of one thing, and of two it tells them all and not whose they are: a transformer
        that has learned its colours there paints the right thing in the colours of the left one.
        """
        unheard = torch.rand(len(ids), 1, generator=rng) < UNHEARD
        return torch.where(unheard.to(ids.device), self.silence.to(ids.device), self.pooled(ids))

    def noised(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noisy latents, velocity as tokens, noise level and token grid of a batch."""
        latents = batch["latents"]
        sigma = self.levels.draw(batch, rng).to(latents.device)
        noise = torch.randn(latents.shape, generator=rng).to(latents.device)
        noisy, velocity = flow_matching_pair(latents, noise, sigma)
        grid = grid_ids(latents.shape[-2] // 2, latents.shape[-1] // 2).to(latents.device)
        if "corner" in batch:
            grid = grid + batch["corner"]
        return noisy, pack(velocity), sigma, grid

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        noisy, velocity, sigma, grid = self.noised(batch, rng)
        painted, logits = model(pack(noisy), sigma, batch["ids"], self.heard(batch["clip_ids"], rng), grid)
        flow = F.mse_loss(painted.float(), velocity)
        shapes = map_loss(logits, batch["parts"], batch["inks"])
        shown = "cuttings" if "corner" in batch else "scenes" if len(grid) == SCENE else "panels"
        things = thing_error(painted, self.wanted(velocity, noisy, sigma, batch), batch["parts"], batch["inks"])
        return things + self.mapped * shapes, {shown: flow, "things": things, "map": shapes}

    @cached_property
    def school(self) -> Teacher | None:
        """The teacher, loaded, if there is one."""
        return None if self.teacher is None else Teacher.open(self.teacher)

    def wanted(self, velocity: Tensor, noisy: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        """What the tokens should become: the velocity of the picture, or of a whole scene what a teacher makes of it.

        Of panels the teacher knows less than FLUX, who sees the other one; one thing alone FLUX learns by itself. A
        FLUX that goes on has passed its teacher in things, whose patterns it knows better, and asks of people alone.
        """
        if self.school is None or velocity.shape[1] != SCENE:
            return velocity
        shown = (thing_share if self.start is None else people_share)(batch["parts"])
        if not shown.any():
            return velocity
        believed = pack(self.school.velocity(noisy, sigma, batch["clip_ids"]))
        return taught(velocity, believed, sigma, shown)

    def save(self, model: nn.Module, folder: Path) -> None:
        save_halved(pipeline(model.transformer, model.text_encoder, self.vae, self.clip), folder)

    def measure(self, model: nn.Module) -> list[Row]:
        """Paint held-out captions with what was just saved, and let the reader judge."""
        studio = Studio.open("miniature")
        parts = ((targets.one_subject, 128), (targets.two_subjects, 96), (targets.two_panels, 64))
        return [row for part, count in parts for row in part(studio, count) if row.name.startswith("flux")]


def pipeline(
    transformer: FluxTransformer2DModel, text_encoder: T5EncoderModel, vae: AutoencoderKL, clip: CLIPTextModel
) -> FluxPipeline:
    """An ordinary ``FluxPipeline`` of the miniature's parts."""
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0),
        vae=vae,
        text_encoder=clip,
        tokenizer=clip_tokenizer(),
        text_encoder_2=text_encoder,
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )
