"""The FLUX family: token layout, latent packing and scaling, schedule, text encoding and engines of inpainting.

One joint sequence, text first, then image tokens row by row; one image token is a 2 x 2 patch of the latent. Wherever
diffusers' ``FluxPipeline`` computes the same thing, it is done by its own functions, in its order, so that painting
without edits equals it to the last bit.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import FluxControlNetModel, FluxFillPipeline, FluxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from PIL import Image
from torch import Tensor, nn

from capriccio import text as words
from capriccio.attention import TokenLayout, layers_of
from capriccio.backbones.base import Defaults, Inputs, Known, Stream, Text, generator_of
from capriccio.backbones.wrapped import Wrapped
from capriccio.canvas import Canvas, Mask, latent_cells, to_pixels
from capriccio.errors import CapriccioError, nearest
from capriccio.formats import alimama

_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
_HIDDEN = {"controlnet": -1.0, "fill": 0.0}
"""The pixel value under the mask that each engine was trained with."""


class FluxBackbone(Wrapped):
    """FLUX.1, its Fill, its inpainting ControlNet, or any of them alone.

    Args:
        pipe: Any diffusers pipeline of the family; it is never changed.
        name: What to call it.
        controlnet: An inpainting ControlNet in the alimama layout.
        fill: The transformer of FLUX Fill, beside a pipeline that paints from text.
        defaults: Numbers to paint with; those of diffusers' pipeline by default.

    Raises:
        CapriccioError: If the pipeline is of another family or a part does not fit it.
    """

    main = "transformer"
    together = False
    clip_layers = 0

    def __init__(
        self,
        pipe: Any,
        *,
        name: str | None = None,
        controlnet: FluxControlNetModel | None = None,
        fill: FluxTransformer2DModel | None = None,
        defaults: Defaults | None = None,
    ) -> None:
        transformer = _transformer_of(pipe)
        own = getattr(pipe, "controlnet", None)
        is_fill = transformer.config.in_channels == _channels(pipe)["fill"]
        super().__init__(
            pipe,
            name,
            base=None if is_fill else transformer,
            fill=transformer if is_fill else fill,
            controlnet=controlnet or (own if _is_inpainting(own) else None),
        )
        self._check_parts()
        self.defaults = defaults or _defaults(pipe, is_fill)

    # --- facts ---

    @property
    def token(self) -> int:
        """Pixels a side of one image token."""
        return 2 * self.factor

    @property
    def schedulers(self) -> tuple[str, ...]:
        """Names of the schedulers that a scene may ask for."""
        return tuple(sorted({type(self.pipe.scheduler).__name__, *_SCHEDULERS}))

    @property
    def dtype(self) -> torch.dtype:
        """Of prompts and latents, as diffusers chooses it."""
        return self.pipe.text_encoder_2.dtype

    def embeds_guidance(self, engine: str | None) -> bool:
        """Whether that denoiser was taught to read a guidance scale."""
        return bool(self.denoiser(engine).config.guidance_embeds)

    def heads(self, engine: str | None) -> tuple[int, int]:
        """Return the number of attention heads and their width."""
        config = self.denoiser(engine).config
        return config.num_attention_heads, config.attention_head_dim

    def flops(self, engine: str | None, text: int, image: int, *, base: int | None = None, twin: int = 0) -> int:
        """Count the FLOPs of the linear layers in one forward of one row, a ControlNet's attention included."""
        count = _linear_flops(self.denoiser(engine), text, image, twin)
        if engine == "controlnet":
            heads, width = self.heads(engine)
            read = text if base is None else base
            attention = 4 * heads * width * (read + image) ** 2 * len(layers_of(self.controlnet))
            count += _linear_flops(self.controlnet, read, image) + attention
        return count

    # --- text ---

    def word_count(self, prompt: str) -> int:
        """Return how many text tokens a prompt needs."""
        return len(self.pipe.tokenizer_2(prompt, truncation=False, verbose=False).input_ids)

    def word_tokens(self, prompt: str, phrase: str, length: int) -> Mask:
        """Return which text tokens (length,) belong to a phrase."""
        return words.tokens_of(self.pipe.tokenizer_2, prompt, phrase, length)

    def span_tokens(self, prompt: str, span: tuple[int, int], length: int) -> Mask:
        """Return which text tokens (length,) belong to a stretch of characters."""
        return words.tokens_at(self.pipe.tokenizer_2, prompt, [span], length)

    @torch.no_grad()
    def encode_text(self, prompt: str | None, length: int, clip_skip: int | None = None) -> Text:
        """Encode one prompt with both text encoders; no prompt is the empty one; repeated ones are encoded once."""

        def encode() -> Text:
            tokens, pooled, _ = self.pipe.encode_prompt(prompt or "", device=self.device, max_sequence_length=length)
            return Text(tokens, pooled)

        return self.keep_text((prompt or "", length), encode)

    def layout(self, text: Mapping[str, Mask], length: int, canvas: Canvas, regions: Mapping[str, Mask]) -> TokenLayout:
        """Return the joint sequence: text first, then image tokens row by row."""
        no_text, no_image = np.zeros(length, bool), np.zeros(canvas.num_tokens, bool)
        groups = {name: np.concatenate([mask, no_image]) for name, mask in text.items()}
        groups |= {name: np.concatenate([no_text, canvas.tokens(region)]) for name, region in regions.items()}
        return TokenLayout(length + canvas.num_tokens, groups)

    # --- latents ---

    def pack(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W) as tokens (B, H/2 * W/2, 4 C)."""
        return FluxPipeline._pack_latents(latents, *latents.shape)

    def unpack(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """Tokens (B, rows * columns, 4 C) as latents (B, C, 2 rows, 2 columns)."""
        size = rows * self.token, columns * self.token
        return FluxPipeline._unpack_latents(tokens, *size, self.factor)

    def as_grid(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return tokens (B, N, C) as a picture of them, (B, C, rows, columns)."""
        return latents.transpose(1, 2).unflatten(2, grid)

    def from_grid(self, latents: Tensor) -> Tensor:
        """Return what `as_grid` was given."""
        return latents.flatten(2).transpose(1, 2).contiguous()

    def noise(self, seed: int | torch.Generator, rows: int, columns: int) -> Tensor:
        """Draw the starting latents (1, N, C) of a seed, on the CPU so that seeds travel."""
        shape = (1, self.channels, 2 * rows, 2 * columns)
        noise = torch.randn(shape, generator=generator_of(seed), dtype=self.dtype)
        return self.pack(noise.to(self.device))

    def clean(self, picture: Image.Image) -> Tensor:
        """Encode a whole picture as clean latents (1, N, C)."""
        return self.pack(self.encode(to_pixels(picture)))

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] as scaled latents: the mean of the posterior, so that no chance enters."""
        vae = self.pipe.vae
        latents = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist.mode()
        return ((latents - vae.config.shift_factor) * vae.config.scaling_factor).to(self.device, self.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor, rows: int, columns: int) -> list[Image.Image]:
        """Turn latents (B, N, C) into pictures."""
        vae = self.pipe.vae
        latents = self.unpack(latents, rows, columns)
        latents = (latents / vae.config.scaling_factor) + vae.config.shift_factor
        pixels = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
        return self.pipe.image_processor.postprocess(pixels, output_type="pil")

    # --- the known part of a canvas ---

    def known(self, engine: str, canvas: Image.Image, paint: Mask) -> Known:
        """Encode the known part of one canvas.

        ``controlnet``: latents with masked pixels at -1, and the inverted mask at latent size: 4 (L + 1) channels.
        ``fill``: latents with masked pixels at 0, and the mask's pixels as channels: 4 L + 4 f^2.
        ``hold``: the clean latents, and which of them are touched by no masked pixel.
        """
        pixels, mask = to_pixels(canvas), torch.from_numpy(paint)[None, None].float()
        if engine == "hold":
            latents = self.encode(pixels)
            keep = 1 - latent_cells(mask, self.factor).to(latents)
            return Known(latents=self.pack(latents), keep=self.pack(keep.expand_as(latents).contiguous()))
        latents = self.encode(torch.where(mask > 0.5, _HIDDEN[engine], pixels))
        if engine == "controlnet":
            small = nn.functional.interpolate(mask, size=latents.shape[-2:], mode="nearest")
            return Known(self.pack(torch.cat([latents, 1 - small.to(latents)], dim=1)))
        cells = nn.functional.pixel_unshuffle(mask, self.factor).to(latents)
        return Known(torch.cat([self.pack(latents), self.pack(cells)], dim=-1))

    # --- denoising ---

    def schedule(self, name: str | None, steps: int, tokens: int) -> Any:
        """Return a fresh scheduler whose timesteps are set as ``FluxPipeline`` sets them, shifted by ``tokens``."""
        scheduler = self._scheduler(name)
        config = scheduler.config
        by_itself = getattr(config, "use_flow_sigmas", False)
        shift = calculate_shift(
            tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        if by_itself:
            dynamic = {"mu": shift} if config.get("use_dynamic_shifting") else {}
            scheduler.set_timesteps(steps, device=self.device, **dynamic)
        else:
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=self.device, mu=shift)
        scheduler.set_begin_index(0)
        return scheduler

    def skipped(self, steps: int, strength: float) -> int:
        """Return how many steps a run leaves out that changes a picture by ``strength``, as diffusers counts them."""
        return int(max(steps - min(steps * strength, steps), 0))

    def _scheduler(self, name: str | None) -> Any:
        own = self.pipe.scheduler
        if name is None or name == type(own).__name__:
            return copy.deepcopy(own)
        if name not in _SCHEDULERS:
            raise CapriccioError(f"scheduler {name!r} is unknown here; {nearest(name, self.schedulers)}")
        shift = own.config.get("shift", 1.0)
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
        settings = {} if name == _SCHEDULERS[0] else flow
        return getattr(diffusers, name).from_config(dict(own.config), **settings)

    @torch.no_grad()
    def predict(self, latents: Tensor, time: Tensor, text: Text, role: str, inputs: Inputs) -> Tensor:
        """Return the velocity (B, N, C) that the denoiser predicts.

        Args:
            latents: Tokens (B, N, C) at noise level ``time / 1000``.
            time: One timestep, 0 to 1000.
            text: Of B rows.
            role: Of all rows of this forward.
            inputs: What every forward of the run shares.
        """
        denoiser = self.denoiser(inputs.engine)
        shared = self._shared(latents, time, text, inputs)
        seen, extra = latents, {}
        if inputs.engine == "fill":
            seen = torch.cat((latents, _condition(inputs)), dim=2)
        elif inputs.engine == "controlnet" and inputs.control_scale:
            extra = self._residuals(latents, shared, text.base, inputs)
        if not self.embeds_guidance(inputs.engine):
            shared["guidance"] = None
        # The names are those of diffusers' pipelines, for step caches that tell the two predictions apart.
        with denoiser.cache_context("cond" if role == "positive" else "uncond"):
            return denoiser(hidden_states=seen, joint_attention_kwargs={}, return_dict=False, **shared, **extra)[0]

    def _shared(self, latents: Tensor, time: Tensor, text: Text, inputs: Inputs) -> dict[str, Any]:
        rows, device, dtype = latents.shape[0], latents.device, text.tokens.dtype
        guidance = None
        if inputs.guidance_scale is not None:
            guidance = torch.full([1], inputs.guidance_scale, device=device, dtype=torch.float32).expand(rows)
        return {
            "timestep": time.expand(rows).to(latents.dtype) / 1000,
            "guidance": guidance,
            "pooled_projections": text.pooled,
            "encoder_hidden_states": text.tokens,
            "txt_ids": torch.zeros(text.tokens.shape[1], 3, device=device, dtype=dtype),
            "img_ids": FluxPipeline._prepare_latent_image_ids(rows, *inputs.grid, device, dtype),
        }

    def _residuals(self, latents: Tensor, shared: dict[str, Any], base: int | None, inputs: Inputs) -> dict[str, Any]:
        guidance = shared["guidance"] if self.controlnet.config.guidance_embeds else None
        own = {name: shared[name][..., :base, :] for name in ("encoder_hidden_states", "txt_ids")}
        double, single = self.controlnet(
            hidden_states=latents,
            controlnet_cond=_condition(inputs),
            conditioning_scale=inputs.control_scale,
            return_dict=False,
            **{**shared, **own, "guidance": guidance},
        )
        return {"controlnet_block_samples": double, "controlnet_single_block_samples": single}

    # --- weights ---

    def stream(self, engine: str | None, name: str) -> Stream | None:
        """Return which tokens pass a layer of the transformer; ``None`` for modulations and vectors of the whole."""
        return _stream(name)

    def pipe_with(self, denoiser: FluxTransformer2DModel) -> Any:
        """Return a pipeline that loads LoRAs into this transformer (and into the text encoders)."""
        if denoiser is self.pipe.transformer and hasattr(self.pipe, "load_lora_weights"):
            return self.pipe
        names = FluxFillPipeline._get_signature_keys(FluxFillPipeline)[0]
        parts = {name: part for name, part in self.pipe.components.items() if name in names}
        return FluxFillPipeline(**parts | {"transformer": denoiser})

    def _check_parts(self) -> None:
        for part, kind in ((self.base, "base"), (self.fill, "fill")):
            if part is not None and part.config.in_channels != _channels(self.pipe)[kind]:
                raise CapriccioError(
                    f"The denoiser of {self.name!r} takes {part.config.in_channels} channels, which is neither FLUX "
                    f"({4 * self.channels}) nor FLUX Fill ({8 * self.channels + 4 * self.factor**2}) with this VAE; "
                    "give a FLUX or FLUX Fill checkpoint."
                )
        if self.controlnet is None:
            return
        width = 4 * self.channels + alimama.MASK_CHANNELS
        found = self.controlnet.controlnet_x_embedder.in_features
        if found != width:
            raise CapriccioError(
                f"The inpainting ControlNet takes {found} condition channels, but this VAE gives {width}; give the "
                "ControlNet that was trained with this model."
            )


def _transformer_of(pipe: Any) -> FluxTransformer2DModel:
    transformer = getattr(pipe, "transformer", None)
    transformer = getattr(transformer, "_orig_mod", transformer)
    if not isinstance(transformer, FluxTransformer2DModel):
        raise CapriccioError(
            f"{type(pipe).__name__} is not a pipeline of the FLUX family; give a FluxPipeline, FluxFillPipeline or "
            "FluxControlNetPipeline."
        )
    return pipe.transformer


def _channels(pipe: Any) -> dict[str, int]:
    """Return how many input channels FLUX and FLUX Fill have with the VAE of a pipeline."""
    latents = 4 * pipe.vae.config.latent_channels
    return {"base": latents, "fill": 2 * latents + 4 * pipe.vae_scale_factor**2}


def _is_inpainting(controlnet: Any) -> bool:
    return isinstance(controlnet, FluxControlNetModel) and alimama.takes_masks(controlnet)


def _defaults(pipe: Any, is_fill: bool) -> Defaults:
    side = pipe.default_sample_size * pipe.vae_scale_factor
    distilled = bool(pipe.transformer.config.guidance_embeds) or is_fill
    return Defaults(
        width=side,
        height=side,
        num_inference_steps=(50 if is_fill else 28) if distilled else 4,
        guidance_scale=30.0 if is_fill else 3.5,
        true_cfg_scale=1.0,
        max_sequence_length=512 if distilled else 256,
        longest_text=512 if distilled else 256,
    )


def _condition(inputs: Inputs) -> Tensor:
    """Return the extra input that an engine of inpainting takes."""
    if inputs.known is None or inputs.known.condition is None:
        raise CapriccioError(f"The engine {inputs.engine!r} paints around a known part; give its condition in inputs.")
    return inputs.known.condition


def _linear_flops(network: nn.Module, text: int, image: int, twin: int = 0) -> int:
    linears = [(name, part) for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    return sum(2 * m.in_features * m.out_features * _tokens_through(name, text, image, twin) for name, m in linears)


def _tokens_through(name: str, text: int, image: int, twin: int) -> int:
    """Return how many tokens pass a linear layer of the transformer in one forward."""
    stream = _stream(name)
    return 1 if stream is None else {"text": text, "image": image, "joint": text + twin + image}[stream.kind]


def _stream(name: str) -> Stream | None:
    """Return which tokens pass a layer of the transformer, or of a ControlNet."""
    if ".norm" in name or name.startswith(("norm_out", "time_text_embed")):
        return None
    if name.startswith(("single_transformer_blocks", "controlnet_single_blocks")):
        return Stream("joint", block=".".join(name.split(".")[:2]))
    if name.startswith("context_embedder") or any(part in name for part in (".add_", ".to_add_out", ".ff_context")):
        return Stream("text")
    return Stream("image")
