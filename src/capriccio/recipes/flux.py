"""The miniature's FLUX: ``FluxTransformer2DModel`` with its T5 encoder, learned together on scenes and panels.

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
from transformers import CLIPTextModel, T5Config, T5EncoderModel

from capriccio.evaluation import targets
from capriccio.objectives import flow_matching_pair, logit_normal
from capriccio.recipes.gallery import CELL, PANEL
from capriccio.recipes.painting import (
    CUT,
    INKS,
    LATENTS,
    PARTS,
    GalleryTask,
    Sentences,
    map_loss,
    save_halved,
    thing_error,
    thing_share,
)
from capriccio.recipes.teacher import Teacher, taught
from capriccio.recipes.told import Questions, told, told_loss
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
    """Width and depth of the transformer and of its text encoder."""

    heads: int
    double: int
    single: int
    text_layers: int


SIZE = Size(heads=4, double=2, single=6, text_layers=2)
SHARES = {"scenes": 0.72, "pairs": 0.25, "grids": 0.03}
BATCH = {"scenes": 24, "pairs": 12, "grids": 6}


@dataclass(frozen=True)
class Levels:
    """Noise levels of training: the sigmoid of a normal, with a mean for each wing; panels see more noise.

    Above 0.8 the words choose kinds and colours: there they lower the loss three to ten times more than below 0.6.
    """

    scenes: float
    panels: float
    deviation: float = 1.0

    def draw(self, count: int, panels: bool, rng: torch.Generator) -> Tensor:
        """Draw levels (count,) in (0, 1) for scenes or for panels."""
        return logit_normal(count, self.panels if panels else self.scenes, rng, self.deviation)


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


def new_text_encoder(size: Size, vocabulary: int) -> T5EncoderModel:
    """An untrained T5 encoder as wide as the transformer, whose heads begin with a sense of order."""
    width = 64 * size.heads
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_kv=64,
            d_ff=2 * width,
            num_layers=size.text_layers,
            num_heads=size.heads,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            dropout_rate=0.0,
        )
    )
    show_order(encoder)
    return encoder


def distances(encoder: T5EncoderModel) -> nn.Parameter:
    """The biases (buckets, heads) by which a T5 knows how far apart its words are: half of them back, half ahead."""
    return encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight


@torch.no_grad()
def show_order(encoder: T5EncoderModel) -> None:
    """Let the heads of a T5 begin by looking back, ahead, near and anywhere, in turn.

    Distances are all that a T5 knows of the order of its words, and it begins to know them by random numbers near
    zero. From those, a small one asked for what sentences tell of two things named both, and after 300 batches not yet
    which was on the left; from these it told kinds and main colours of 99 % by their sides after 200.
    """
    table = distances(encoder)
    back, ahead = table.split(len(table) // 2)  # each from the nearest to the farthest
    table.zero_()
    ahead[:, 0::4] = -4.0
    back[:, 1::4] = -4.0
    farther = -0.7 * torch.arange(len(back), dtype=table.dtype)[:, None]
    for half in (back, ahead):
        half[:, 2::4] = farther


def knows_order(encoder: T5EncoderModel) -> bool:
    """Whether any distance matters to a T5; where all biases are about zero, a sentence is a bag of words to it."""
    return bool(distances(encoder).abs().max() > 1.0)


def begin_in_order(encoder: T5EncoderModel) -> T5EncoderModel:
    """An encoder of the same words, whose layers begin anew with a sense of order.

    In one that has learned without, queries and keys have grown (from norms of 2 and 16 to 30) until each word looks
    at one other for what it is, and then a sense of order comes too late: beside the biases of ``show_order`` sides
    stayed at chance, while new layers on its words told 96 % of kinds and 95 % of main colours by place after 200
    batches.
    """
    anew = T5EncoderModel(encoder.config)
    anew.shared.load_state_dict(encoder.shared.state_dict())
    show_order(anew)
    return anew


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
    """Transformer, text encoder, the part-map head and, where the text learns, questions on it, in one forward."""

    def __init__(self, transformer: FluxTransformer2DModel, text_encoder: T5EncoderModel) -> None:
        super().__init__()
        width = transformer.inner_dim
        self.transformer, self.text_encoder = transformer, text_encoder
        learning = any(value.requires_grad for value in text_encoder.parameters())
        self.questions = Questions(text_encoder.config.d_model) if learning else None
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 256), nn.GELU(), nn.Linear(256, CELLS * (PARTS + INKS))
        )
        self._features: Tensor | None = None
        fourth = transformer.single_transformer_blocks[3 - len(transformer.transformer_blocks)]
        fourth.register_forward_hook(self._remember)

    def _remember(self, block: nn.Module, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, Tensor]) -> None:
        self._features = outputs[1]

    def forward(
        self, tokens: Tensor, sigma: Tensor, ids: Tensor, pooled: Tensor, grid: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Velocity (B, tokens, 32), logits (B, tokens, 16, parts + inks), and answers on sentences, if asked.

        Args:
            tokens: Noisy image tokens (B, tokens, C).
            sigma: Noise levels (B,).
            ids: Word ids (B, T).
            pooled: Of CLIP, (B, 192).
            grid: Positions (tokens, 3).
            counts: Of how many things each sentence tells, (B,).
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
        answers = {} if self.questions is None else self.questions(text, counts)
        return velocity, self.head(self._features).unflatten(-1, (CELLS, PARTS + INKS)), answers


def is_muons(name: str, value: Tensor) -> bool:
    """The matrices of the blocks and of the text encoder are Muon's; modulations, embedders and output AdamW's."""
    inside = "transformer_blocks." in name or "text_encoder.encoder." in name
    return inside and ".norm" not in name and "relative_attention_bias" not in name


def text_length(longest: int, rng: np.random.Generator) -> int:
    """How many text tokens a batch has: mostly the longest sentence and a little more, sometimes 64 to 128."""
    if rng.random() < 0.06:
        return max(longest, int(rng.integers(64, 129)))
    return max(16, longest + int(rng.integers(0, 9)))


class JointSentences(Sentences):
    """Sentences for both encoders of FLUX: word ids of T5, padded to a random length, and of CLIP."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__(dropout)
        self.t5 = t5_tokenizer()

    def __call__(self, graphs: list[Picture], rng: np.random.Generator) -> Batch:
        texts = [self.say(graph, rng) for graph in graphs]
        words = self.t5(texts, padding=True, truncation=True, max_length=128, return_tensors="pt").input_ids
        words = F.pad(words, (0, text_length(words.shape[1], rng) - words.shape[1]), value=self.t5.pad_token_id)
        asked = told([graph if text else None for graph, text in zip(graphs, texts, strict=True)])
        return {"ids": words, "clip_ids": self.clip_ids(texts), **asked}


@dataclass
class FluxTask(GalleryTask):
    """Train transformer and text encoder from latents of the gallery."""

    shares = SHARES
    sizes = BATCH
    token = TOKEN
    levels: ClassVar = Levels(scenes=1.0, panels=1.3)
    cut = CUT

    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=60, warmup=60, decay=0.8))
    start: Path | None = None  # a finished pipeline folder to go on from
    keep_text: bool = False  # the text encoder stays, so that what learned beside it fits on
    teacher: Path | None = None  # the pipeline folder of a Stable Diffusion that has met the same pictures
    name: str = "flux"

    @cached_property
    def sentences(self) -> JointSentences:
        return JointSentences()

    def models(self) -> nn.Module:
        torch.manual_seed(self.schedule.seed)
        if self.start is not None:
            text_encoder = T5EncoderModel.from_pretrained(self.start, subfolder="text_encoder_2", dtype=torch.float32)
            text_encoder.requires_grad_(not self.keep_text)
            if not self.keep_text and not knows_order(text_encoder):
                text_encoder = begin_in_order(text_encoder)
            return Painter(FluxTransformer2DModel.from_pretrained(self.start, subfolder="transformer"), text_encoder)
        return Painter(new_transformer(SIZE), new_text_encoder(SIZE, len(self.sentences.t5)))

    def optimisers(self, model: nn.Module) -> list[Optimizer]:
        return muon_and_adamw(model, is_muons, muon_lr=2.5e-3, adamw_lr=1.2e-3)

    def pooled(self, ids: Tensor) -> Tensor:
        """CLIP's pooled text (B, 192), not learned."""
        with torch.no_grad():
            return self.clip.to(ids.device)(ids).pooler_output

    def noised(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noisy latents, velocity as tokens, noise level and token grid of a batch; panels see more noise."""
        latents = batch["latents"]
        sigma = self.levels.draw(len(latents), latents.shape[-1] > 16, rng).to(latents.device)
        noise = torch.randn(latents.shape, generator=rng).to(latents.device)
        noisy, velocity = flow_matching_pair(latents, noise, sigma)
        grid = grid_ids(latents.shape[-2] // 2, latents.shape[-1] // 2).to(latents.device)
        if "corner" in batch:
            grid = grid + batch["corner"]
        return noisy, pack(velocity), sigma, grid

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        noisy, velocity, sigma, grid = self.noised(batch, rng)
        pooled, counts = self.pooled(batch["clip_ids"]), batch["told/count"]
        painted, logits, answers = model(pack(noisy), sigma, batch["ids"], pooled, grid, counts)
        flow = F.mse_loss(painted.float(), velocity)
        shapes = map_loss(logits, batch["parts"], batch["inks"])
        shown = "cuttings" if "corner" in batch else "scenes" if len(grid) == SCENE else "panels"
        things = thing_error(painted, self.wanted(velocity, noisy, sigma, batch), batch["parts"])
        loss, readings = things + 0.4 * shapes, {shown: flow, "things": things, "map": shapes}
        if not answers:
            return loss, readings
        words = told_loss(answers, batch)
        return loss + 0.2 * words, readings | {"told": words}

    @cached_property
    def school(self) -> Teacher | None:
        """The teacher, loaded, if there is one."""
        return None if self.teacher is None else Teacher.open(self.teacher)

    def wanted(self, velocity: Tensor, noisy: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        """What the tokens should become: the velocity of the picture, or of a whole scene what a teacher makes of it.

        Of panels the teacher knows less than FLUX, who sees the other one; one thing alone FLUX learns by itself.
        """
        if self.school is None or velocity.shape[1] != SCENE:
            return velocity
        believed = pack(self.school.velocity(noisy, sigma, batch["clip_ids"]))
        return taught(velocity, believed, sigma, thing_share(batch["parts"]))

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
