"""The FLUX family: token layout, latent packing and scaling, schedule, text encoding and engines of inpainting.

One joint sequence, text first, then image tokens row by row; one image token is a 2 x 2 patch of the latent. Wherever
diffusers' ``FluxPipeline`` computes the same thing, it is done by its own functions, in its order, so that painting
without edits equals it to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers import FluxControlNetModel, FluxFillPipeline, FluxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from PIL import Image
from torch import Tensor, nn

from capriccio import text as words
from capriccio.attention import TokenLayout, layers_of
from capriccio.backbones import schedules
from capriccio.backbones.base import (
    Defaults,
    Hint,
    Inputs,
    Known,
    Residuals,
    Steering,
    Stream,
    Text,
    generator_of,
    numbered,
)
from capriccio.backbones.wrapped import Wrapped, check_alike, nets_of
from capriccio.canvas import Canvas, Mask, latent_cells, rasterise, to_pixels
from capriccio.errors import CapriccioError
from capriccio.formats import alimama

_HIDDEN = {"controlnet": -1.0, "fill": 0.0}
"""The pixel value under the mask that each engine was trained with."""
_MODES = ("canny", "tile", "depth", "blur", "pose", "gray", "low quality")
"""Kinds of control picture, as Union and Union-Pro number them."""
_ALIKE = ("joint_attention_dim", "pooled_projection_dim")


class FluxBackbone(Wrapped):
    """FLUX.1, its Fill, its inpainting ControlNet, or any of them alone.

    Args:
        pipe: Any diffusers pipeline of the family; it is never changed.
        name: What to call it.
        controlnet: An inpainting ControlNet in the alimama layout.
        fill: The transformer of FLUX Fill, beside a pipeline that paints from text.
        controlnets: ControlNets that control pictures steer through, by name; those of the pipeline come along.
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
        controlnets: Mapping[str, FluxControlNetModel] | None = None,
        defaults: Defaults | None = None,
    ) -> None:
        transformer = _transformer_of(pipe)
        own = nets_of(pipe)
        masks = next((net for net in own.values() if _is_inpainting(net)), None)
        own = {label: net for label, net in own.items() if not _is_inpainting(net)}
        is_fill = transformer.config.in_channels == _channels(pipe)["fill"]
        super().__init__(
            pipe,
            name,
            base=None if is_fill else transformer,
            fill=transformer if is_fill else fill,
            controlnet=controlnet or masks,
            controlnets=own | dict(controlnets or {}),
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
        return schedules.names(self.pipe.scheduler)

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
            count += _net_flops(self.controlnet, text if base is None else base, image)
        return count

    def control_flops(self, at_work: Sequence[Steering], branches: int, text: int, image: int) -> int:
        """Count the FLOPs of the ControlNets at work in a step of so many branches, their attention included."""
        return branches * sum(_net_flops(self.controlnets[one.net], text, image) for one in at_work)

    def modes(self, net: str) -> tuple[str, ...] | None:
        """Return what a ControlNet calls each kind of control picture, if it is a union of several."""
        count = self.controlnets[net].config.num_mode
        return None if count is None else numbered(_MODES, count)

    def guesses(self, net: str, asked: bool) -> bool:
        """Return ``False``: the ControlNets of this family have no guess mode.

        Raises:
            CapriccioError: If it is asked for.
        """
        if asked:
            raise CapriccioError(
                f"guess_mode was given, but the ControlNets of FLUX, as {net!r}, have none; leave it out."
            )
        return False

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

    def layout(
        self,
        text: Mapping[str, Mask],
        length: int,
        canvas: Canvas,
        regions: Mapping[str, Mask],
        banks: Mapping[str, int | tuple[int, int]] = MappingProxyType({}),
    ) -> TokenLayout:
        """Return the joint sequence: text first, then image tokens row by row.

        Raises:
            CapriccioError: If there are banks, for FLUX looks at none here.
        """
        if banks:
            raise CapriccioError(
                f"{self.name!r} looks at no bank ({', '.join(banks)}); put the reference on a panel, as diptych does, "
                "or open a Stable Diffusion or SDXL model."
            )
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

    # --- control pictures ---

    def hint(self, net: str, picture: Image.Image, place: Mask | None) -> Hint:
        """Encode a control picture of the canvas's size: latents as tokens; for XLabs' layout of ControlNets, pixels.

        Args:
            net: Name of the ControlNet.
            picture: RGB.
            place: Where it steers, (height, width); everywhere if ``None``.
        """
        # Channels first in memory, as diffusers repeats them: the last bits depend on it.
        pixels = self.pipe.image_processor.preprocess(picture).contiguous()
        if self.controlnets[net].input_hint_block is None:
            condition = self.pack(self.encode(pixels))
        else:
            condition = pixels.to(self.device, self.dtype)
        if place is None:
            return Hint(condition)
        inside = torch.from_numpy(rasterise(place, self.token)).to(condition)
        return Hint(condition, (inside[None, :, None],))

    @torch.no_grad()
    def steer(self, latents: Tensor, time: Tensor, text: Text, step: int, inputs: Inputs, positive: slice) -> Residuals:
        """Return what the control pictures at work in a step of the run add to the blocks of the transformer.

        ControlNets of one depth are summed as diffusers sums them. (Of two depths it would lose what the deeper one
        has more, and all for the single blocks if the first has none; here each is spread over all blocks first.)

        Args:
            latents: Tokens (B, N, C) at noise level ``time / 1000``.
            time: One timestep, 0 to 1000.
            text: Of B rows; of passages behind the prompt, ControlNets read nothing.
            step: Of the run.
            inputs: What every forward of the run shares.
            positive: Rows that read the prompt; here all are steered.
        """
        residuals: Residuals = {}
        for one, hint in inputs.at(step):
            net = self.controlnets[one.net]
            shared = self._shared(latents, time, text, inputs)
            found = self._through(net, latents, hint.condition, one.scale, shared, text.base, one.mode)
            found = {key: [_at(hint, sample) for sample in samples] for key, samples in found.items()}
            residuals = self._sum(residuals, found, inputs.engine)
        return residuals

    def _through(
        self,
        net: FluxControlNetModel,
        latents: Tensor,
        condition: Tensor,
        scale: float,
        shared: Mapping[str, Any],
        base: int | None,
        mode: int | None = None,
    ) -> dict[str, list[Tensor]]:
        """Return what one ControlNet adds."""
        guidance = None
        if net.config.guidance_embeds:
            # It may have been taught to read what the transformer does not.
            guidance = shared["guidance"]
            guidance = self._guidance(latents, self.defaults.guidance_scale) if guidance is None else guidance
        own = {name: shared[name][..., :base, :] for name in ("encoder_hidden_states", "txt_ids")}
        double, single = net(
            hidden_states=latents,
            controlnet_cond=condition,
            controlnet_mode=None if mode is None else torch.full((len(latents), 1), mode, device=latents.device),
            conditioning_scale=scale,
            return_dict=False,
            **{**shared, **own, "guidance": guidance},
        )
        if double is not None and net.input_hint_block is not None:
            # In XLabs' layout the blocks take turns.
            double = [double[block % len(double)] for block in range(len(self.pipe.transformer.transformer_blocks))]
        found = {"controlnet_block_samples": double, "controlnet_single_block_samples": single}
        return {key: samples for key, samples in found.items() if samples is not None}

    def _sum(self, one: Residuals, two: Residuals, engine: str | None) -> Residuals:
        denoiser = self.denoiser(engine)
        depths = {
            "controlnet_block_samples": len(denoiser.transformer_blocks),
            "controlnet_single_block_samples": len(denoiser.single_transformer_blocks),
        }
        both = one.keys() & two.keys()
        return {**one, **two} | {key: _summed(one[key], two[key], depths[key]) for key in both}

    # --- denoising ---

    def schedule(self, name: str | None, steps: int, tokens: int) -> Any:
        """Return a fresh scheduler whose timesteps are set as ``FluxPipeline`` sets them, shifted by ``tokens``."""
        scheduler = schedules.make(name, self.pipe.scheduler)
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

    @torch.no_grad()
    def predict(
        self, latents: Tensor, time: Tensor, text: Text, role: str, inputs: Inputs, residuals: Residuals | None = None
    ) -> Tensor:
        """Return the velocity (B, N, C) that the denoiser predicts.

        Args:
            latents: Tokens (B, N, C) at noise level ``time / 1000``.
            time: One timestep, 0 to 1000.
            text: Of B rows.
            role: Of all rows of this forward.
            inputs: What every forward of the run shares.
            residuals: As `steer` returns them.
        """
        denoiser = self.denoiser(inputs.engine)
        shared = self._shared(latents, time, text, inputs)
        seen, extra = latents, residuals or {}
        if inputs.engine == "fill":
            seen = torch.cat((latents, _condition(inputs)), dim=2)
        elif inputs.engine == "controlnet" and inputs.control_scale:
            condition, scale = _condition(inputs), inputs.control_scale
            known = self._through(self.controlnet, latents, condition, scale, shared, text.base)
            extra = self._sum(extra, known, inputs.engine)
        if not self.embeds_guidance(inputs.engine):
            shared["guidance"] = None
        # The names are those of diffusers' pipelines, for step caches that tell the two predictions apart.
        with denoiser.cache_context("cond" if role == "positive" else "uncond"):
            return denoiser(hidden_states=seen, joint_attention_kwargs={}, return_dict=False, **shared, **extra)[0]

    def _shared(self, latents: Tensor, time: Tensor, text: Text, inputs: Inputs) -> dict[str, Any]:
        rows, device, dtype = latents.shape[0], latents.device, text.tokens.dtype
        return {
            "timestep": time.expand(rows).to(latents.dtype) / 1000,
            "guidance": None if inputs.guidance_scale is None else self._guidance(latents, inputs.guidance_scale),
            "pooled_projections": text.pooled,
            "encoder_hidden_states": text.tokens,
            "txt_ids": torch.zeros(text.tokens.shape[1], 3, device=device, dtype=dtype),
            "img_ids": FluxPipeline._prepare_latent_image_ids(rows, *inputs.grid, device, dtype),
        }

    def _guidance(self, latents: Tensor, scale: float) -> Tensor:
        return torch.full([1], scale, device=latents.device, dtype=torch.float32).expand(len(latents))

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
        for name, net in self.controlnets.items():
            self._check_net(name, net)
        if self.controlnet is None:
            return
        width = 4 * self.channels + alimama.MASK_CHANNELS
        found = self.controlnet.controlnet_x_embedder.in_features
        if found != width:
            raise CapriccioError(
                f"The inpainting ControlNet takes {found} condition channels, but this VAE gives {width}; give the "
                "ControlNet that was trained with this model."
            )

    def _check_net(self, name: str, net: Any) -> None:
        if not isinstance(net, FluxControlNetModel):
            raise CapriccioError(
                f"The ControlNet {name!r} is a {type(net).__name__}, but {self.name!r} is of the FLUX family; give a "
                "FluxControlNetModel."
            )
        check_alike(name, net, self.base or self.fill, _ALIKE)
        heads = net.config.num_attention_heads * net.config.attention_head_dim
        width = self.pipe.transformer.inner_dim
        if heads != width:
            raise CapriccioError(
                f"The ControlNet {name!r} is {heads} wide, but the transformer that it would steer {width}; give a "
                "ControlNet that was trained with this model."
            )
        if _is_inpainting(net):
            raise CapriccioError(f"{name!r} is an inpainting ControlNet, which takes masks; open it with inpainting=.")
        taken = net.config.in_channels, net.controlnet_x_embedder.in_features
        if net.input_hint_block is None and taken != (4 * self.channels,) * 2:
            raise CapriccioError(
                f"The ControlNet {name!r} takes {taken[0]} channels and {taken[1]} of its picture, but this VAE gives "
                f"{4 * self.channels}; give a ControlNet that was trained with this model."
            )
        if net.input_hint_block is not None and 8 * net.config.patch_size != self.token:
            raise CapriccioError(
                f"The ControlNet {name!r} reads patches of {8 * net.config.patch_size} pixels, but a token of "
                f"{self.name!r} is {self.token}; give a ControlNet that was trained with this model."
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


def _at(hint: Hint, sample: Tensor) -> Tensor:
    return sample * hint.places[0].to(sample) if hint.places else sample


def _summed(one: Sequence[Tensor], two: Sequence[Tensor], depth: int) -> list[Tensor]:
    """Return the sums of what two ControlNets add, each block for block where they are not of one depth."""
    if len(one) != len(two):
        one, two = ([given[block // ceil(depth / len(given))] for block in range(depth)] for given in (one, two))
    return [a + b for a, b in zip(one, two, strict=True)]


def _net_flops(net: FluxControlNetModel, text: int, image: int) -> int:
    """Count the FLOPs of a ControlNet; one of several kinds of picture reads its mode as one text token more."""
    text += net.union
    width = net.config.num_attention_heads * net.config.attention_head_dim
    return _linear_flops(net, text, image) + 4 * width * (text + image) ** 2 * len(layers_of(net))


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
    if name.startswith("single_transformer_blocks"):
        return Stream("joint", block=".".join(name.split(".")[:2]))
    if name.startswith("context_embedder") or any(part in name for part in (".add_", ".to_add_out", ".ff_context")):
        return Stream("text")
    return Stream("image")
