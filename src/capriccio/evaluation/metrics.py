"""Readings of pictures, as small functions of pixels: same subject, right words, painted rather than pasted.

Pixels are (B, 3, H, W) in [-1, 1]; scores are (B,) tensors on the processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from capriccio import assets
from capriccio.errors import CapriccioError

# Root mean square difference, in [-1, 1] units, below which a subject's pixels count as found again, each averaged with
# its neighbours: what is finer the VAE mixes with where it happens to lie, and a paste goes through the VAE as well.
# Chosen to balance the two errors on 768 scenes that no table uses (2.1 % of either; pixel by pixel it was 5 %). It
# belongs to the VAE: the rows copy_alarm_* of benchmarks/miniature.py say what it is worth with the one at hand.
COPY_THRESHOLD = 0.034
_AVERAGED = 7  # pixels a side, so many that no average of the subject's inner pixels reaches over its border


def to_pixels(pictures: Sequence[Image.Image], width: int = 128, height: int = 128) -> Tensor:
    """Return pictures as pixels (B, 3, height, width), resized where they have another size."""
    sized = (picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS) for picture in pictures)
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in sized])).permute(0, 3, 1, 2) / 127.5 - 1


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """Return pixels (B, 3, H, W) in [-1, 1] as pictures: the inverse of ``to_pixels``."""
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte()
    return [Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).cpu().numpy()]


def psnr(pixels: Tensor, others: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each picture in dB, (B,)."""
    error = ((pixels - others) / 2).square().mean(dim=(1, 2, 3))
    return -10 * error.clamp_min(1e-10).log10()


def load_vae() -> AutoencoderKL:
    """Load the miniature's VAE in single precision."""
    return AutoencoderKL.from_pretrained(assets.path("miniature/vae"), torch_dtype=torch.float32)


@torch.no_grad()
def reconstruct(model: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Return what is left of pixels (B, 3, H, W) after the latents, without noise."""
    parts = [model.decode(model.encode(part).latent_dist.mode()).sample for part in pixels.split(32)]
    return torch.cat(parts).clamp(-1, 1)


@dataclass(frozen=True)
class Clip:
    """A pair of CLIP towers with the tokenizer they were trained with."""

    images: CLIPVisionModelWithProjection
    texts: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Of the three channels in 0 to 1, as the image tower was trained; those of the miniature by default."""
    deviation: tuple[float, ...] = (0.5, 0.5, 0.5)

    @torch.no_grad()
    def embed_images(self, pixels: Tensor) -> Tensor:
        """Return unit vectors (B, D) of pixels (B, 3, H, W) in [-1, 1]."""
        return F.normalize(self.images(pixel_values=pixels).image_embeds.float(), dim=-1)

    def embed_pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return unit vectors (B, D) of pictures, each resized to the tower's square, normalised as it learned."""
        side = self.images.config.image_size
        mean, deviation = (torch.tensor(values)[:, None, None] for values in (self.mean, self.deviation))
        return self.embed_images(((to_pixels(pictures, side, side) + 1) / 2 - mean) / deviation)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors (B, D) of texts."""
        tokens = self.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
        return F.normalize(self.texts(input_ids=tokens.input_ids).text_embeds.float(), dim=-1)


def load_clip(folder: str = "miniature/clip") -> Clip:
    """Load the miniature's CLIP from its asset folder."""
    place = assets.path(folder)
    return Clip(
        CLIPVisionModelWithProjection.from_pretrained(place / "image_encoder", dtype=torch.float32).eval(),
        CLIPTextModelWithProjection.from_pretrained(place / "text_encoder", dtype=torch.float32).eval(),
        CLIPTokenizer.from_pretrained(place / "tokenizer"),
    )


def open_clip(name: str) -> Clip:
    """Load CLIP's towers as they are published: a folder or repository such as ``openai/clip-vit-large-patch14``.

    Raises:
        CapriccioError: If there is none, or it is no CLIP.
    """
    from transformers import CLIPImageProcessor  # which warns when it is imported

    try:
        look = CLIPImageProcessor.from_pretrained(name)
        return Clip(
            CLIPVisionModelWithProjection.from_pretrained(name, dtype=torch.float32).eval(),
            CLIPTextModelWithProjection.from_pretrained(name, dtype=torch.float32).eval(),
            CLIPTokenizer.from_pretrained(name),
            tuple(look.image_mean),
            tuple(look.image_std),
        )
    except (OSError, ValueError, KeyError) as error:
        raise CapriccioError(
            f"{name!r} could not be opened as a CLIP ({type(error).__name__}); give a folder in the public layout, or "
            "connect to download one."
        ) from None


def retrieval(images: Tensor, texts: Tensor) -> Tensor:
    """Return for each picture whether its own text is the nearest, unit vectors (B, D) twice -> (B,) boolean."""
    return (images @ texts.T).argmax(dim=1) == torch.arange(len(images))


def copied(references: Tensor, masks: Tensor, pixels: Tensor) -> Tensor:
    """Return whether the copy alarm rings: the subject's pixels are found again in the picture, (B,) boolean.

    Args:
        references: Pixels (B, 3, H, W) as the VAE leaves them (:func:`reconstruct`): so would it leave a paste.
        masks: Where the subject is, (B, H, W) boolean.
        pixels: Painted pixels (B, 3, H, W).
    """
    inner = F.max_pool2d((~masks).float(), _AVERAGED, stride=1, padding=_AVERAGED // 2) == 0
    return copy_distances(_averaged(references), inner, _averaged(pixels)) < COPY_THRESHOLD


def _averaged(pixels: Tensor) -> Tensor:
    return F.avg_pool2d(pixels, _AVERAGED, stride=1, padding=_AVERAGED // 2, count_include_pad=False)


def copy_distances(references: Tensor, masks: Tensor, pixels: Tensor) -> Tensor:
    """Return how nearly the reference's subject is found in the picture, pixel for pixel, wherever it stands.

    The root mean square difference over the subject's pixels, the smallest over all whole-pixel shifts, (B,): near 0
    for a paste, large for a subject that was painted in another size, light or state.

    Args:
        references: Pixels (B, 3, H, W).
        masks: Where the subject is, (B, H, W) boolean.
        pixels: Pixels (B, 3, H, W) to search.
    """
    return torch.stack([_copy_distance(*one) for one in zip(references, masks, pixels, strict=True)])


def _copy_distance(reference: Tensor, mask: Tensor, picture: Tensor) -> Tensor:
    """sum m (r - p)^2 = sum m r^2 - 2 (m r) * p + m * p^2, with * the correlation over shifts."""
    rows, columns = (torch.where(mask.any(dim=dim))[0] for dim in (1, 0))
    box = (..., slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    weight, wanted = mask[box].double(), (mask * reference)[box].double()
    crossed = _correlate(wanted, picture.double()).sum(dim=0)
    energy = _correlate(weight, picture.double().square().sum(dim=0))
    squared = wanted.square().sum() - 2 * crossed + energy
    return (squared.min().clamp_min(0) / (len(picture) * weight.sum())).sqrt().float()


def _correlate(patch: Tensor, picture: Tensor) -> Tensor:
    """Correlate (..., h, w) with (..., H, W) at every shift that keeps the patch inside, (..., H-h+1, W-w+1)."""
    size = picture.shape[-2:]
    spectrum = torch.fft.rfft2(patch, s=size).conj() * torch.fft.rfft2(picture)
    height, width = (whole - part + 1 for whole, part in zip(size, patch.shape[-2:], strict=True))
    return torch.fft.irfft2(spectrum, s=size)[..., :height, :width]
