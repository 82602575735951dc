"""A finished Stable Diffusion as the teacher of FLUX: what it believes a thing looks like, told as FLUX's velocity.

What a picture was is known, but of one noisy picture many others may have been the origin, and most of FLUX's squared
error over things is that doubt: 0.65 to 1.07 at levels from 0.3 to 0.9, of which the teacher has a tenth less. From
what the teacher believes, which is a mean over those many, FLUX is only 0.15 to 0.27 away. U-Nets learn forms sooner,
for their convolutions look at every latent and not at tokens of four. Of backdrops FLUX knows as much by itself, and
of the first steps, whose noise is beyond all of the teacher's, more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from capriccio.errors import CapriccioError
from capriccio.objectives import as_diffused, velocity_of_noise
from capriccio.training.optimisers import quick_dtype
from capriccio.world.tokenizers import CLIP_LENGTH

TRUST = 0.8  # how far what a token should become moves from what it was to what the teacher believes
HIGHEST = 0.9  # noise level above which the teacher is not asked: there its errors pass FLUX's own


def ask_folder(folder: Path) -> None:
    """Make sure that a folder can teach, before anything is loaded.

    Raises:
        CapriccioError: If it is no Stable Diffusion with its text encoder, or its U-Net does not tell noise.
    """
    needed = [folder / part / "config.json" for part in ("unet", "text_encoder")]
    settings = folder / "scheduler" / "scheduler_config.json"
    if not all(place.is_file() for place in (*needed, settings)):
        raise CapriccioError(
            f"The teacher {folder} is no folder of a Stable Diffusion with its text encoder; name one that "
            "`capriccio train miniature sd` wrote."
        )
    told = json.loads(settings.read_text()).get("prediction_type", "epsilon")
    if told != "epsilon":
        raise CapriccioError(f"The teacher {folder} tells {told}; it must tell epsilon.")


@dataclass
class Teacher:
    """A U-Net that tells noise, and the text encoder that it reads.

    Attributes:
        alphas: (T,), its share of the picture's variance that is left at each time.
        padding: Word that fills a sentence up to 77.
    """

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    alphas: Tensor
    padding: int

    @classmethod
    def open(cls, folder: Path) -> Teacher:
        """Load the teacher from the pipeline folder of a Stable Diffusion.

        Raises:
            CapriccioError: If the folder cannot teach (``ask_folder``).
        """
        ask_folder(folder)
        scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)
        text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32)
        for part in (unet, text_encoder):
            part.eval().requires_grad_(False)
        padding = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer").pad_token_id
        return cls(unet, text_encoder, scheduler.alphas_cumprod, padding)

    @torch.no_grad()
    def velocity(self, noisy: Tensor, sigma: Tensor, clip_ids: Tensor) -> Tensor:
        """What the teacher believes the velocity to be, (B, C, h, w); at levels above ``HIGHEST`` as if at that.

        Args:
            noisy: Latents (B, C, h, w) of rectified flow.
            sigma: Their noise levels (B,) in (0, 1).
            clip_ids: Word ids (B, T) of the sentences, T at most 77.
        """
        device = noisy.device
        sigma = sigma.clamp(max=HIGHEST)
        seen, times = as_diffused(noisy, sigma, self.alphas.to(device))
        whole = F.pad(clip_ids, (0, CLIP_LENGTH - clip_ids.shape[1]), value=self.padding)
        text = self.text_encoder.to(device)(whole).last_hidden_state
        quick = quick_dtype(device)
        with torch.autocast(device.type, quick, enabled=quick != torch.float32):
            noise = self.unet.to(device)(seen, times, encoder_hidden_states=text, return_dict=False)[0]
        return velocity_of_noise(noisy, noise.float(), sigma)


def taught(velocity: Tensor, believed: Tensor, sigma: Tensor, shown: Tensor) -> Tensor:
    """What tokens should become: the velocity, moved towards the teacher's where a token shows a thing.

    Args:
        velocity: Of the picture that it was, tokens (B, N, C).
        believed: The teacher's, (B, N, C).
        sigma: Noise levels (B,).
        shown: (B, N), which share of a token shows a thing.
    """
    trust = TRUST * shown * (sigma <= HIGHEST).float()[:, None]
    return velocity.lerp(believed, trust[..., None])
