"""LAR-Gen on any Stable Diffusion of the 1.5 class, from quadruplets of photographs: the training of the paper.

Stage 1 learns the whole inpainting U-Net and the keys and values of Assign, which begins as an IP-Adapter-Plus; CLIP
and the resampler stay as they are. Stage 2 keeps all of that and learns RefineNet's cross-attention and what it reads
of CLIP. In both, AdamW on the squared error of the noise (sections 4.4 and 6.2). A picture is learned as the method
paints one: a box around a thing is hidden, and the window around the box is seen, enlarged.

Choices of ours, where the paper is silent: text and subject are left out in one case of ten each; the box around a
thing is larger than it by a random share, so that it tells nothing of the shape; the learning rate is constant behind a
short warm-up; the weights are an average over steps. Without an IP-Adapter the resampler begins anew, and learns.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from capriccio import assets
from capriccio.backbones.loading import open_backbone
from capriccio.backbones.unet import UNetBackbone
from capriccio.canvas import check_size, to_pixels, window
from capriccio.collect.shards import Quadruplets
from capriccio.errors import CapriccioError
from capriccio.modules.lar_gen import QUERIES, Eye, LarGen, encoder_in
from capriccio.pictures import fit
from capriccio.recipes.diffusion import as_inpainting, noised, seen
from capriccio.recipes.gallery import encode
from capriccio.recipes.lar_gen.recipe import Recipe
from capriccio.recipes.lar_gen.stages import ASSIGN, Stage, assigned, stage_loss
from capriccio.recipes.masks import box_around
from capriccio.recipes.painting import save_halved
from capriccio.recipes.sd import widen
from capriccio.recipes.subjects import nothing
from capriccio.training.trainer import Batch, Row, Schedule
from capriccio.world.tokenizers import CLIP_LENGTH

_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError)


@dataclass
class ShardTask:
    """One stage, as a recipe has it.

    Attributes:
        recipe: Models, shards and numbers.
        stage: Which of the two.
        before: What stage 1 saved, for stage 2.
    """

    recipe: Recipe
    stage: Stage
    before: Path | None = None
    name: str = field(init=False)
    schedule: Schedule = field(init=False)

    def __post_init__(self) -> None:
        self.name, self.schedule = f"lar-gen {self.stage.name}", self.recipe.schedule(self.stage.name)

    # --- what does not learn ---

    @cached_property
    def backbone(self) -> UNetBackbone:
        """The model that paints from text, and beside it the one that inpaints, where there is one already."""
        inpainting = self.recipe.inpainting if self.before is None else self.before / "inpainting"
        opened = open_backbone(self.recipe.model, device="cpu", dtype=torch.float32, inpainting=inpainting)
        check_model(opened)
        assert isinstance(opened, UNetBackbone)
        check_size(self.recipe.size, self.recipe.size, opened.factor << len(opened.base.config.down_block_types) - 1)
        return opened

    @cached_property
    def eye(self) -> Eye:
        """CLIP."""
        if self.recipe.clip is None and self.backbone.defaults.own:
            return Eye.load(Path(assets.path("miniature/clip")))
        return open_eye(self.recipe.clip, self.recipe.adapter)

    @property
    def vae(self) -> AutoencoderKL:
        return self.backbone.pipe.vae

    @cached_property
    def alphas(self) -> Tensor:
        """The share of the picture's variance at each time."""
        return torch.as_tensor(self.backbone.pipe.scheduler.alphas_cumprod)

    @cached_property
    def weights(self) -> Tensor:
        """Every time counts the same, as in the paper."""
        return torch.ones_like(self.alphas)

    @cached_property
    def blank(self) -> Tensor:
        """No subject, (3, size, size)."""
        return nothing(self.eye, self.recipe.size)

    @cached_property
    def quadruplets(self) -> Quadruplets:
        """What is learned from."""
        return Quadruplets(self.recipe.shards)

    # --- what learns ---

    def models(self) -> nn.Module:
        torch.manual_seed(self.recipe.seed)
        unet, module = self._first() if self.before is None else self._second(self.before)
        _ = self.blank  # now, while CLIP is on the CPU: other processes draw the batches
        return self.stage.around(unet, module, self.recipe.size // self.backbone.factor)

    def _first(self) -> tuple[UNet2DConditionModel, LarGen]:
        """Return the inpainting U-Net, all of which learns, and Assign, of which keys and values do."""
        base, fill, channels = self.backbone.base, self.backbone.fill, self.backbone.channels
        unet = widen(copy.deepcopy(base), 2 * channels + 1) if fill is None else fill
        if self.recipe.adapter is None:
            return unet.requires_grad_(True), LarGen.new(unet, self.eye)
        module = LarGen.load(adapter_file(self.recipe.adapter), unet, None, self.eye)
        if module.queries != QUERIES:
            raise CapriccioError(
                f"The adapter {self.recipe.adapter!r} makes {module.queries} tokens of a subject, but LAR-Gen begins "
                f"from {QUERIES}; give an IP-Adapter-Plus."
            )
        for side in (module.to_k, module.to_v):
            side.requires_grad_(True)
        return unet.requires_grad_(True), module

    def _second(self, before: Path) -> tuple[UNet2DConditionModel, LarGen]:
        """Return the inpainting U-Net of stage 1, which stays, and Assign beside a RefineNet, which learns."""
        unet = self.backbone.fill
        return unet, assigned(before, unet, self.backbone.base, self.eye)

    def optimisers(self, model: nn.Module) -> list[Optimizer]:
        learning = [weight for weight in model.parameters() if weight.requires_grad]
        return [AdamW(learning, lr=self.recipe.stage(self.stage.name).rate)]

    # --- batches ---

    def batch(self, rng: np.random.Generator) -> Batch:
        recipe, size = self.recipe, (self.recipe.size, self.recipe.size)
        chosen = [self.quadruplets[n] for n in rng.integers(0, len(self.quadruplets), recipe.per_device)]
        windows = [hidden(one["source"], one["mask"], recipe.size, recipe.zoom, rng) for one in chosen]
        texts = ["" if rng.random() < recipe.dropout else one["text"] for one in chosen]
        subjects = [
            self.blank if rng.random() < recipe.dropout else to_pixels(fit(one["subject"], *size)[0])[0]
            for one in chosen
        ]
        return {
            "pixels": torch.cat([to_pixels(picture) for picture, _ in windows]),
            "mask": torch.stack([torch.from_numpy(np.asarray(mask) > 127).float()[None] for _, mask in windows]),
            "subject": torch.stack(subjects),
            "clip_ids": self._ids(texts),
        }

    def _ids(self, texts: list[str]) -> Tensor:
        settings: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return self.backbone.pipe.tokenizer(texts, max_length=CLIP_LENGTH, **settings).input_ids

    # --- the loss ---

    def text(self, ids: Tensor) -> Tensor:
        """CLIP's states (B, 77, D) of word ids."""
        with torch.no_grad():
            return self.backbone.pipe.text_encoder.to(ids.device)(ids).last_hidden_state

    def noised(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, their noise, and the times (B,) of a batch."""
        pixels = batch["pixels"]
        return noised(encode(self.vae.to(pixels.device), pixels), self.alphas, rng)

    def seen(self, noisy: Tensor, batch: Batch) -> Tensor:
        """What the U-Net is given."""
        return seen(self.vae.to(noisy.device), noisy, batch["pixels"], batch["mask"])

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return stage_loss(self, model, batch, rng)

    # --- what comes of it ---

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write what ``modules=`` takes; of stage 1 also, in the folder ``inpainting``, what ``inpainting=`` takes.

        Args:
            model: What `models` returned, with averaged weights.
            folder: Made if absent.
        """
        model.module.save(folder)  # type: ignore[union-attr,operator]
        if not self.backbone.defaults.own or self.recipe.clip is not None:
            save_eye(self.eye, folder)
        if self.stage is ASSIGN:
            whole = as_inpainting(self.backbone.pipe, model.unet)  # type: ignore[arg-type]
            save_halved(whole, folder / "inpainting", "5GB")

    def measure(self, model: nn.Module) -> list[Row]:
        return []  # what it is worth, the benchmark of the method says


def hidden(
    source: Image.Image, mask: Image.Image, size: int, zoom: float, rng: np.random.Generator
) -> tuple[Image.Image, Image.Image]:
    """Return the window around a box that hides a thing, as large as it is painted, and that box in it.

    Args:
        source: RGB.
        mask: Of its size, white where the thing is.
        size: Pixels a side of the result.
        zoom: Size of the window in sizes of the box.
        rng: Chooses how much larger than the thing the box is.
    """
    box = box_around(rng, np.asarray(mask) > 127).numpy() > 0
    place = window(box, zoom, (size, size)).corners
    parts = source.convert("RGB"), Image.fromarray(np.where(box, np.uint8(255), np.uint8(0)))
    picture, hole = (fit(part.crop(place), size, size)[0] for part in parts)
    return picture, hole


# --- checkpoints -------------------------------------------------------------------------------------------------


def check_model(backbone: Any) -> None:
    """Check that LAR-Gen can learn on a model in both stages.

    Raises:
        CapriccioError: If it is of another family, does not paint from text, or predicts something else than noise.
    """
    is_unet = isinstance(backbone, UNetBackbone)
    if not is_unet or backbone.is_xl or backbone.base is None:
        kind = "an inpainting model" if is_unet and not backbone.is_xl else "of another family"
        raise CapriccioError(
            f"The model {backbone.name!r} is {kind}, but LAR-Gen learns on a Stable Diffusion of the 1.5 class that "
            "paints from text; give one as 'model', and an inpainting model as 'inpainting'."
        )
    predicts = backbone.pipe.scheduler.config.prediction_type
    if predicts != "epsilon":
        raise CapriccioError(
            f"The model {backbone.name!r} predicts {predicts}, but LAR-Gen's loss is that of noise; give a model that "
            "predicts epsilon, such as Stable Diffusion 1.5."
        )


def adapter_file(source: str) -> Path:
    """Return the file of an IP-Adapter-Plus, fetched where it is ``owner/name/path/to/file`` of a repository.

    Raises:
        CapriccioError: If there is none.
    """
    parts = Path(source).parts
    if Path(source).is_file():
        return Path(source)
    if len(parts) < 3 or Path(source).is_absolute():
        raise CapriccioError(
            f"The adapter {source!r} is no file; give the path of one, or owner/name/path/to/file of a repository."
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download("/".join(parts[:2]), "/".join(parts[2:])))
    except _UNREADABLE as error:
        raise CapriccioError(
            f"The adapter {source!r} could not be fetched ({_reason(error)}); check the path, or the name and the "
            "connection."
        ) from None


def open_eye(source: str | None, adapter: str | None) -> Eye:
    """Open the CLIP that an adapter was trained with.

    Args:
        source: A folder with an ``image_encoder``, or a CLIP of transformers: a folder or a repository. ``None`` looks
            beside the adapter.
        adapter: The file of an IP-Adapter-Plus.

    Raises:
        CapriccioError: If there is none.
    """
    for folder in (Path(place) for place in (source, adapter and os.path.dirname(adapter)) if place):
        if encoder_in(folder) is not None:
            return Eye.load(folder)
    if source is None:
        raise CapriccioError(
            "The recipe names no CLIP to see subjects with, and none lies beside the adapter; give 'clip', such as "
            "laion/CLIP-ViT-H-14-laion2B-s32B-b79K for the adapters of Stable Diffusion 1.5."
        )
    try:
        encoder = CLIPVisionModelWithProjection.from_pretrained(source, dtype=torch.float32)
        return Eye(encoder, CLIPImageProcessor.from_pretrained(source))
    except _UNREADABLE as error:
        raise CapriccioError(
            f"The CLIP {source!r} could not be loaded ({_reason(error)}); check the path, or the name and the "
            "connection."
        ) from None


def save_eye(eye: Eye, folder: Path) -> None:
    """Write CLIP where LAR-Gen looks for it, beside its own weights."""
    side = eye.encoder.config.image_size
    mean, std = (values.flatten().tolist() for values in (eye.mean, eye.std))
    crop, size = {"height": side, "width": side}, {"shortest_edge": side}
    processor = CLIPImageProcessor(size=size, crop_size=crop, image_mean=mean, image_std=std)
    processor.save_pretrained(folder / "feature_extractor")
    eye.encoder.save_pretrained(folder / "image_encoder")


def _reason(error: Exception) -> str:
    lines = (line.strip().rstrip(".") for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)[:160]
