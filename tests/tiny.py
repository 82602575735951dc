"""Tiny checkpoints in the published layouts, with random weights: for tests, never for eyes."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    ControlNetUnionModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxFillPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from capriccio.formats.alimama import new_inpainting_controlnet, save_inpainting_controlnet
from capriccio.modules.lar_gen import Eye, LarGen

LATENTS, FACTOR = 4, 2
TOKEN = 2 * FACTOR


def clip_tokenizer() -> CLIPTokenizer:
    """One token a character."""
    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=77)


def clip_config(tokenizer: CLIPTokenizer, layers: int = 2) -> CLIPTextConfig:
    """Width 32."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def t5_tokenizer() -> T5TokenizerFast:
    """One token a character."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["<pad>", "</s>", "<unk>", "▁", *letters]
    return T5TokenizerFast(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)


def transformer(in_channels: int = 4 * LATENTS, guidance: bool = True) -> FluxTransformer2DModel:
    """Two double and two single blocks of 2 x 16."""
    return FluxTransformer2DModel(
        in_channels=in_channels,
        out_channels=4 * LATENTS,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 4, 8),
    )


def components(guidance: bool = True, fill: bool = False, seed: int = 0) -> dict[str, Any]:
    """Return everything a FluxPipeline or a FluxFillPipeline consists of."""
    torch.manual_seed(seed)
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    words = T5Config(
        vocab_size=len(t5),
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
    )
    channels = 8 * LATENTS + 4 * FACTOR**2 if fill else 4 * LATENTS
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, shift=3.0
        ),
        "vae": vae(),
        "text_encoder": CLIPTextModel(clip_config(clip)).eval(),
        "tokenizer": clip,
        "text_encoder_2": T5EncoderModel(words).eval(),
        "tokenizer_2": t5,
        "transformer": transformer(channels, guidance).eval(),
    }


def vae(levels: int = 2, **settings: Any) -> AutoencoderKL:
    """Factor 2, or as many halvings as there are levels below the first; four latent channels."""
    layout = {"shift_factor": 0.0609, "scaling_factor": 1.5035, "use_quant_conv": False, "use_post_quant_conv": False}
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        latent_channels=LATENTS,
        norm_num_groups=4,
        **layout | settings,
    ).eval()


def flux(guidance: bool = True, seed: int = 0) -> FluxPipeline:
    """A FluxPipeline."""
    pipe = FluxPipeline(**components(guidance, seed=seed))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def fill(guidance: bool = True) -> FluxFillPipeline:
    """A FluxFillPipeline."""
    pipe = FluxFillPipeline(**components(guidance, fill=True))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def controlnet(base: FluxTransformer2DModel) -> nn.Module:
    """An inpainting ControlNet in the alimama layout whose every layer says something."""
    torch.manual_seed(1)
    found = new_inpainting_controlnet(base, num_layers=1, num_single_layers=1)
    zeroed = [found.controlnet_x_embedder, *found.controlnet_blocks, *found.controlnet_single_blocks]
    for layer in zeroed:
        nn.init.normal_(layer.weight, std=0.3)
    return found.eval()


def loud(net: nn.Module) -> Any:
    """Let the zeroed layers of a ControlNet say something."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and not layer.weight.any():
            nn.init.normal_(layer.weight, std=0.3)
            nn.init.normal_(layer.bias, std=0.1)
    return net.eval()


def control_flux(modes: int | None = None, seed: int = 5, **settings: Any) -> FluxControlNetModel:
    """A ControlNet of FLUX, of one double and one single block; a union with so many modes."""
    torch.manual_seed(seed)
    own: dict[str, Any] = {
        "in_channels": 4 * LATENTS,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 4, 8),
        "num_mode": modes,
    }
    return loud(FluxControlNetModel(**own | settings))


def control_unet(unet: UNet2DConditionModel, seed: int = 5, **settings: Any) -> ControlNetModel:
    """A ControlNet for a tiny U-Net, whose pictures have two pixels a side for each cell of the latent."""
    torch.manual_seed(seed)
    known = signature(ControlNetModel.__init__).parameters
    own = {key: value for key, value in unet.config.items() if key in known}
    own |= {"conditioning_embedding_out_channels": (8, 16)}
    return loud(ControlNetModel(**own | settings))


def control_union(unet: UNet2DConditionModel, kinds: int = 6, seed: int = 7) -> ControlNetUnionModel:
    """A ControlNet of several kinds of picture for a tiny U-Net of SDXL."""
    torch.manual_seed(seed)
    known = signature(ControlNetUnionModel.__init__).parameters
    own = {key: value for key, value in unet.config.items() if key in known}
    own |= {"conditioning_embedding_out_channels": (8, 16), "num_control_type": kinds}
    width = unet.config.block_out_channels[0]
    return loud(ControlNetUnionModel(**own, num_trans_channel=width, num_trans_head=2, num_proj_channel=width))


def save_flux(folder: Path) -> Path:
    """A pipeline folder of FLUX."""
    flux().save_pretrained(folder)
    return folder


def save_fill(folder: Path) -> Path:
    """A pipeline folder of FLUX Fill."""
    fill().save_pretrained(folder)
    return folder


def save_controlnet(folder: Path) -> Path:
    """A folder of the inpainting ControlNet."""
    return save_inpainting_controlnet(controlnet(flux().transformer), folder)


def save_lora(folder: Path, pipe: FluxPipeline | None = None) -> Path:
    """A LoRA file for the tiny transformer, far from neutral."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = pipe or flux()
    torch.manual_seed(2)
    config = LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_v", "proj_out"])
    pipe.transformer.add_adapter(config)
    FluxPipeline.save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(pipe.transformer))
    return folder / "pytorch_lora_weights.safetensors"


# --- U-Nets ---

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def unet(kind: str = "sd15", in_channels: int = LATENTS, **settings: Any) -> UNet2DConditionModel:
    """Two resolutions, attention at both (SDXL: at the coarser), in the layout of SD 1.5, SD 2 or SDXL."""
    downs, ups = ("CrossAttnDownBlock2D",) * 2, ("CrossAttnUpBlock2D",) * 2
    own: dict[str, Any] = {
        "sd15": {"attention_head_dim": 2},
        "sd2": {"attention_head_dim": (1, 2), "use_linear_projection": True},
        "sdxl": {
            "attention_head_dim": (1, 2),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "transformer_layers_per_block": (1, 2),
            "projection_class_embeddings_input_dim": 6 * 8 + 32,
        },
    }[kind]
    if kind == "sdxl":
        downs, ups = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    return UNet2DConditionModel(
        in_channels=in_channels,
        out_channels=LATENTS,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=64 if kind == "sdxl" else 32,
        sample_size=16,
        down_block_types=downs,
        up_block_types=ups,
        **own | settings,
    ).eval()


def scheduler(prediction: str = "epsilon") -> DDIMScheduler:
    """The noise of Stable Diffusion."""
    return DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, prediction_type=prediction)


def stable_diffusion(kind: str = "sd15", inpaint: bool = False, seed: int = 0) -> Any:
    """A pipeline in the layout of SD 1.5, SD 2 (v prediction) or SDXL, or of their inpainting models."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    parts: dict[str, Any] = {
        "vae": vae(shift_factor=None, scaling_factor=0.18215, use_quant_conv=True, use_post_quant_conv=True),
        "unet": unet(kind, 2 * LATENTS + 1 if inpaint else LATENTS),
        "tokenizer": tokenizer,
        "text_encoder": CLIPTextModel(clip_config(tokenizer, 3)).eval(),
    }
    if kind == "sdxl":
        parts |= {
            "scheduler": EulerDiscreteScheduler(**NOISE, timestep_spacing="leading"),
            "tokenizer_2": clip_tokenizer(),
            "text_encoder_2": CLIPTextModelWithProjection(clip_config(tokenizer, 3)).eval(),
        }
        family = StableDiffusionXLInpaintPipeline if inpaint else StableDiffusionXLPipeline
        pipe = family(**parts, add_watermarker=False)
    else:
        noise = scheduler("v_prediction" if kind == "sd2" else "epsilon")
        family = StableDiffusionInpaintPipeline if inpaint else StableDiffusionPipeline
        none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = family(**parts, **none, scheduler=noise)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ip_adapter(unet: UNet2DConditionModel, seed: int = 3) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of an IP-Adapter for a tiny U-Net, as its files hold them; picture embeddings of width 32."""
    generator = torch.Generator().manual_seed(seed)
    text = unet.config.cross_attention_dim

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5

    project = {"proj.weight": noise(4 * text, 32), "proj.bias": noise(4 * text)}
    project |= {"norm.weight": torch.ones(text), "norm.bias": torch.zeros(text)}
    layers = {}
    for number, name in enumerate(unet.attn_processors):
        if "attn2" in name:
            width = unet.get_submodule(name.removesuffix(".processor")).inner_dim
            layers |= {f"{number}.to_{x}_ip.weight": noise(width, text) for x in "kv"}
    return {"image_proj": project, "ip_adapter": layers}


def eye() -> Eye:
    """A CLIP that sees little."""
    torch.manual_seed(2)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=32,
    )
    mean, std = [0.48, 0.46, 0.41], [0.3, 0.3, 0.3]
    return Eye(CLIPVisionModelWithProjection(config), CLIPImageProcessor(image_mean=mean, image_std=std))


def lar_gen(backbone: Any, refine: bool = True) -> LarGen:
    """A LAR-Gen for a backbone of the U-Net family, with random weights that are heard."""
    torch.manual_seed(3)
    module = LarGen.new(backbone.fill, eye())
    if refine:
        module.add_refine(backbone.base)
    with torch.no_grad():
        for layer in (*module.to_k, *module.to_v):
            layer.weight.normal_(std=0.5)
    return module.eval().requires_grad_(False)
