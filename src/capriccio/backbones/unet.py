"""The U-Net family: Stable Diffusion 1.x and 2.x, SDXL, and their inpainting models.

The picture is a grid of latents that every layer sees at a resolution of its own; text stands beside it. Wherever
diffusers' pipelines of the family compute the same thing, it is done by their own functions, in their order and in
their batches (the branches of guidance share one forward), so that painting without edits equals them to the last bit.
What is drawn by chance there and not here is the encoding of a known picture: it is the mean of the posterior.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, ControlNetUnionModel, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.embeddings import ImageProjection
from PIL import Image
from torch import Tensor, nn

from capriccio import text as words
from capriccio.attention import PictureLayout, TokenLayout, layers_of
from capriccio.attention.processors import level_of
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
from capriccio.canvas import Canvas, Mask, latent_cells, rasterise
from capriccio.errors import CapriccioError

_ALIKE = (
    "cross_attention_dim",
    "block_out_channels",
    "layers_per_block",
    "addition_embed_type",
    "projection_class_embeddings_input_dim",
)
_MODES = ("pose", "depth", "scribble", "canny", "normal", "segment", "tile", "repaint")
"""Kinds of control picture, as the union of SDXL numbers them."""


class UNetBackbone(Wrapped):
    """Stable Diffusion 1.x, 2.x or XL, its inpainting model, or both.

    Args:
        pipe: Any diffusers pipeline of the family; it is never changed.
        name: What to call it.
        fill: The U-Net of an inpainting model, beside a pipeline that paints from text.
        controlnets: ControlNets that control pictures steer through, by name; those of the pipeline come along.
        defaults: Numbers to paint with; those of diffusers' pipeline by default.

    Raises:
        CapriccioError: If the pipeline is of another family or a part does not fit it.
    """

    main = "unet"
    together = True

    def __init__(
        self,
        pipe: Any,
        *,
        name: str | None = None,
        fill: UNet2DConditionModel | None = None,
        controlnets: Mapping[str, ControlNetModel | ControlNetUnionModel] | None = None,
        defaults: Defaults | None = None,
    ) -> None:
        unet = _unet_of(pipe)
        is_fill = unet.config.in_channels == _channels(pipe)["fill"]
        nets = nets_of(pipe) | dict(controlnets or {})
        super().__init__(pipe, name, base=None if is_fill else unet, fill=unet if is_fill else fill, controlnets=nets)
        self._check_parts()
        self.defaults = defaults or _defaults(pipe, self.is_xl)

    # --- facts ---

    @property
    def token(self) -> int:
        """Pixels a side of one image token in the finest layers."""
        return self.factor

    @property
    def is_xl(self) -> bool:
        """Whether the model reads two text encoders, pooled text and sizes."""
        return self.pipe.unet.config.addition_embed_type == "text_time"

    @property
    def clip_layers(self) -> int:
        """Layers of the CLIP text encoder that `encode_text` can leave out."""
        return self._encoder.config.num_hidden_layers - 1

    @property
    def schedulers(self) -> tuple[str, ...]:
        """Names of the schedulers that a scene may ask for."""
        return schedules.names(self.pipe.scheduler)

    @property
    def dtype(self) -> torch.dtype:
        """Of prompts and latents, as diffusers chooses it."""
        return self.pipe.text_encoder_2.dtype if self.is_xl else self._encoder.dtype

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences on what is loaded that a person should read in every plan."""
        return ("An IP-Adapter is loaded, but no picture is given to it; it is shown none.",) * bool(self._ip_adapters)

    @property
    def _ip_adapters(self) -> tuple[nn.Module, ...]:
        project = self.pipe.unet.encoder_hid_proj
        return tuple(getattr(project, "image_projection_layers", ()))

    def _no_picture(self, adapter: nn.Module) -> Tensor:
        """Return what diffusers shows an IP-Adapter in the negative branch: embeddings (1, 1, D) of nothing."""
        if not isinstance(adapter, ImageProjection):
            raise CapriccioError(
                f"The IP-Adapter of {self.name!r} reads features of {type(adapter).__name__}, which nothing here gives "
                "it; call unload_ip_adapter() on the pipeline first."
            )
        return torch.zeros(1, 1, adapter.image_embeds.in_features, dtype=self.dtype, device=self.device)

    @property
    def _encoder(self) -> Any:
        return self.pipe.text_encoder

    def embeds_guidance(self, engine: str | None) -> bool:
        """Whether that U-Net was taught to read a guidance scale (latent consistency models)."""
        return self.denoiser(engine).config.time_cond_proj_dim is not None

    def heads(self, engine: str | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the number of attention heads and their width, of each layer."""
        unet = self.denoiser(engine)
        modules = [unet.get_submodule(layer.name) for layer in layers_of(unet)]
        return tuple(m.heads for m in modules), tuple(m.inner_dim // m.heads for m in modules)

    def flops(self, engine: str | None, text: int, image: int, *, base: int | None = None, twin: int = 0) -> int:
        """Count the FLOPs of convolutions and linear layers in one forward of one row."""
        unet = self.denoiser(engine)
        return sum(_flops(unet, name, part, text, image) for name, part in unet.named_modules())

    def control_flops(self, at_work: Sequence[Steering], branches: int, text: int, image: int) -> int:
        """Count the FLOPs of the ControlNets at work in a step of so many branches, their attention included."""
        forwards = [[at_work[number] for number in numbers] for numbers in self._forwards(at_work)]
        return sum(
            (1 if some[0].guess else branches) * network_flops(self.controlnets[some[0].net], text, image, len(some))
            for some in forwards
        )

    def modes(self, net: str) -> tuple[str, ...] | None:
        """Return what a ControlNet calls each kind of control picture, if it is a union of several."""
        network = self.controlnets[net]
        return numbered(_MODES, network.config.num_control_type) if _is_union(network) else None

    def guesses(self, net: str, asked: bool) -> bool:
        """Return whether a ControlNet steers the positive branch alone: if asked, or if it pools its picture."""
        return asked or self.controlnets[net].config.global_pool_conditions

    def _forwards(self, at_work: Sequence[Steering]) -> list[list[int]]:
        """Return which ControlNets at work share a forward, by their numbers: a union reads all its pictures at once.

        A place of its own, which masks what is added, keeps a picture apart.
        """
        shared: dict[Any, list[int]] = {}
        for number, one in enumerate(at_work):
            joins = one.everywhere and _is_union(self.controlnets[one.net])
            shared.setdefault((one.net, one.guess) if joins else number, []).append(number)
        return list(shared.values())

    # --- text ---

    def word_count(self, prompt: str) -> int:
        """Return how many text tokens a prompt needs, the marks of its start and end included."""
        return len(self.pipe.tokenizer(self._with_vectors(prompt), truncation=False, verbose=False).input_ids)

    def word_tokens(self, prompt: str, phrase: str, length: int) -> Mask:
        """Return which text tokens (length,) belong to a phrase."""
        places = [self._place(prompt, span) for span in words.spans(prompt, phrase)]
        return words.tokens_at(self.pipe.tokenizer, self._with_vectors(prompt), places, length)

    def span_tokens(self, prompt: str, span: tuple[int, int], length: int) -> Mask:
        """Return which text tokens (length,) belong to a stretch of characters."""
        return words.tokens_at(self.pipe.tokenizer, self._with_vectors(prompt), [self._place(prompt, span)], length)

    def _with_vectors(self, prompt: str) -> str:
        """Return the prompt with every learned word that has several vectors written out as all of them."""
        return self.pipe.maybe_convert_prompt(prompt, self.pipe.tokenizer)

    def _place(self, prompt: str, span: tuple[int, int]) -> tuple[int, int]:
        start, stop = (len(self._with_vectors(prompt[:place])) for place in span)
        return start, stop

    @torch.no_grad()
    def encode_text(self, prompt: str | None, length: int, clip_skip: int | None = None) -> Text:
        """Encode one prompt with one CLIP or both.

        Args:
            prompt: ``None`` is no prompt at all: zeros in models that were trained so, else the empty prompt.
            length: Of the text; this family always pads to it.
            clip_skip: How many of the last layers to leave out.
        """
        adapters = self._ip_adapters
        text = self.keep_text((prompt, clip_skip), lambda: self._encode(prompt, clip_skip))
        return replace(text, pictures=tuple(self._no_picture(adapter) for adapter in adapters)) if adapters else text

    def _encode(self, prompt: str | None, clip_skip: int | None) -> Text:
        if self.is_xl:
            tokens, _, pooled, _ = self.pipe.encode_prompt(
                prompt or "", device=self.device, do_classifier_free_guidance=False, clip_skip=clip_skip
            )
            empty = prompt is None and self.pipe.config.force_zeros_for_empty_prompt
            return Text(torch.zeros_like(tokens), torch.zeros_like(pooled)) if empty else Text(tokens, pooled)
        if clip_skip is None:
            return Text(self.pipe.encode_prompt(prompt or "", self.device, 1, False)[0])
        return Text(self._early(prompt or "", clip_skip))

    def _early(self, prompt: str, clip_skip: int) -> Tensor:
        """Return the states (1, T, D) of an earlier layer, normalised as the last one's are."""
        tokenizer, encoder = self.pipe.tokenizer, self._encoder
        settings = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        given = tokenizer(self._with_vectors(prompt), max_length=tokenizer.model_max_length, **settings)
        masked = getattr(encoder.config, "use_attention_mask", False)
        mask = given.attention_mask.to(self.device) if masked else None
        found = encoder(given.input_ids.to(self.device), attention_mask=mask, output_hidden_states=True)
        # Where the norm is depends on the version of transformers.
        norm = getattr(encoder, "text_model", encoder).final_layer_norm
        return norm(found.hidden_states[-(clip_skip + 1)]).to(encoder.dtype)

    def layout(
        self,
        text: Mapping[str, Mask],
        length: int,
        canvas: Canvas,
        regions: Mapping[str, Mask],
        banks: Mapping[str, int | tuple[int, int]] = MappingProxyType({}),
    ) -> PictureLayout:
        """Return the shapes that every layer rasterises, the words beside them, and banks."""
        size = canvas.height, canvas.width
        return PictureLayout(TokenLayout(length, text), regions, size, self.factor, banks=banks)

    # --- latents ---

    def as_grid(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return latents (B, C, H, W) as they are: a token in the finest layers is one of them."""
        return latents

    def from_grid(self, latents: Tensor) -> Tensor:
        """Return what `as_grid` was given."""
        return latents

    def noise(self, seed: int | torch.Generator, rows: int, columns: int) -> Tensor:
        """Draw unit noise (1, C, rows, columns) of a seed, on the CPU so that seeds travel."""
        shape = (1, self.channels, rows, columns)
        return torch.randn(shape, generator=generator_of(seed), dtype=self.dtype).to(self.device)

    def clean(self, picture: Image.Image) -> Tensor:
        """Encode a whole picture as clean latents (1, C, H, W)."""
        return self.encode(self._pixels(picture))

    def _pixels(self, picture: Image.Image) -> Tensor:
        return self.pipe.image_processor.preprocess(picture.convert("RGB")).to(torch.float32)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] as scaled latents: the mean of the posterior, so that no chance enters."""
        with self._precise_vae() as vae:
            latents = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist.mode()
        return (vae.config.scaling_factor * latents.to(self.dtype)).to(self.device)

    @torch.no_grad()
    def decode(self, latents: Tensor, rows: int, columns: int) -> list[Image.Image]:
        """Turn latents (B, C, H, W) into pictures; a pipeline's own safety checker and watermark do their work."""
        with self._precise_vae() as vae:
            latents = _unscaled(latents, vae.config).to(vae.dtype)
            pixels = vae.decode(latents, return_dict=False)[0]
        fine = [True] * len(pixels)
        if getattr(self.pipe, "safety_checker", None) is not None:
            pixels, unsafe = self.pipe.run_safety_checker(pixels, self.device, self.dtype)
            fine = [not found for found in unsafe]
        if getattr(self.pipe, "watermark", None) is not None:
            pixels = self.pipe.watermark.apply_watermark(pixels)
        return self.pipe.image_processor.postprocess(pixels, output_type="pil", do_denormalize=fine)

    @contextmanager
    def _precise_vae(self) -> Iterator[Any]:
        """Lend the VAE, in single precision where half would overflow (that of SDXL)."""
        vae = self.pipe.vae
        overflows = self.is_xl and vae.dtype == torch.float16 and vae.config.force_upcast
        try:
            yield vae.to(torch.float32) if overflows else vae
        finally:
            if overflows:
                vae.to(torch.float16)

    # --- the known part of a canvas ---

    def known(self, engine: str, canvas: Image.Image, paint: Mask) -> Known:
        """Encode the known part of one canvas.

        ``fill``: the mask at latent size, and latents with masked pixels at 0: 1 + L channels.
        ``hold``: the clean latents, and which of them are touched by no masked pixel.
        """
        pixels, mask = self._pixels(canvas), torch.from_numpy(paint)[None, None].float()
        if engine == "hold":
            latents = self.encode(pixels)
            return Known(latents=latents, keep=1 - latent_cells(mask, self.factor).to(latents))
        latents = self.encode(pixels * (mask < 0.5))
        small = nn.functional.interpolate(mask, size=latents.shape[-2:]).to(latents)
        return Known(torch.cat([small, latents], dim=1))

    # --- control pictures ---

    def hint(self, net: str, picture: Image.Image, place: Mask | None) -> Hint:
        """Return the pixels of a control picture in [0, 1], and the cells of every level where it steers.

        Args:
            net: Name of the ControlNet.
            picture: RGB, of the canvas's size.
            place: Where it steers, (height, width); everywhere if ``None``.
        """
        network = self.controlnets[net]
        # Channels first in memory, as diffusers repeats them: the last bits depend on it.
        pixels = VaeImageProcessor.numpy_to_pt(VaeImageProcessor.pil_to_numpy(picture)).contiguous()
        condition = pixels.to(self.device, network.dtype)
        if place is None:
            return Hint(condition)
        cells = [self.factor << level for level in range(len(network.config.block_out_channels))]
        masks = [rasterise(place, cell).reshape([-(-side // cell) for side in place.shape]) for cell in cells]
        return Hint(condition, tuple(torch.from_numpy(mask).to(condition)[None, None] for mask in masks))

    @torch.no_grad()
    def steer(self, latents: Tensor, time: Tensor, text: Text, step: int, inputs: Inputs, positive: slice) -> Residuals:
        """Return what the control pictures at work in a step of the run add to the U-Net, summed as diffusers does.

        Args:
            latents: As the scheduler lets the U-Net see them, (B, C, H, W).
            time: One timestep.
            text: Of B rows; of passages behind the prompt, ControlNets read nothing.
            step: Of the run.
            inputs: What every forward of the run shares.
            positive: Rows that read the prompt; in guess mode they alone are steered.
        """
        total: list[Tensor] = []
        at_work = inputs.at(step)
        for numbers in self._forwards([one for one, _ in at_work]):
            some = [at_work[number] for number in numbers]
            rows = positive if some[0][0].guess else slice(0, len(latents))
            found = self._through(some, latents, time, text, rows, inputs)
            total = [before + now for before, now in zip(total, found, strict=True)] if total else found
        if not total:
            return {}
        return {"down_block_additional_residuals": total[:-1], "mid_block_additional_residual": total[-1]}

    def _through(
        self,
        some: Sequence[tuple[Steering, Hint]],
        latents: Tensor,
        time: Tensor,
        text: Text,
        rows: slice,
        inputs: Inputs,
    ) -> list[Tensor]:
        """Return what one ControlNet adds to all rows: 0 to those that it does not read; the middle comes last."""
        steerings, hints = zip(*some, strict=True)
        net, text = self.controlnets[steerings[0].net], text.rows(rows)
        conditions, scales = [hint.condition[rows] for hint in hints], [one.scale for one in steerings]
        shown: dict[str, Any] = {"controlnet_cond": conditions[0], "conditioning_scale": scales[0]}
        if _is_union(net):
            kinds = [one.mode for one in steerings]
            chosen = torch.zeros(1, net.config.num_control_type, dtype=text.tokens.dtype, device=text.tokens.device)
            chosen[:, kinds] = 1
            shown = {"controlnet_cond": conditions, "conditioning_scale": scales}
            shown |= {"control_type": chosen.repeat(len(text.tokens), 1), "control_type_idx": kinds}
        downs, mid = net(
            latents[rows],
            time,
            encoder_hidden_states=text.tokens[:, : text.base],
            added_cond_kwargs=self._added(text, inputs),
            guess_mode=steerings[0].guess,
            return_dict=False,
            **shown,
        )
        levels = _levels(net, len(downs))
        placed = [_at(hints[0], rows, sample, level) for sample, level in zip([*downs, mid], levels, strict=True)]
        return [_among(len(latents), rows, sample) for sample in placed]

    # --- denoising ---

    def schedule(self, name: str | None, steps: int, tokens: int) -> Any:
        """Return a fresh scheduler whose timesteps are set; the number of ``tokens`` is nothing to this family."""
        scheduler = schedules.make(name, self.pipe.scheduler)
        scheduler.set_timesteps(steps, device=self.device)
        schedules.begin_at(scheduler, 0)
        return scheduler

    def skipped(self, steps: int, strength: float) -> int:
        """Return how many steps a run leaves out that changes a picture by ``strength``, as diffusers counts them."""
        return max(steps - min(int(steps * strength), steps), 0)

    @torch.no_grad()
    def predict(
        self, latents: Tensor, time: Tensor, text: Text, role: str, inputs: Inputs, residuals: Residuals | None = None
    ) -> Tensor:
        """Return what the U-Net predicts (B, C, H, W): noise or v, as it was trained.

        Args:
            latents: As the scheduler lets it see them, (B, C, H, W).
            time: One timestep.
            text: Of B rows.
            role: Of the first rows.
            inputs: What every forward of the run shares.
            residuals: As `steer` returns them.
        """
        unet = self.denoiser(inputs.engine)
        if inputs.engine == "fill" and inputs.known is not None and inputs.known.condition is not None:
            latents = torch.cat([latents, inputs.known.condition], dim=1)
        elif inputs.engine == "hold":
            # As in diffusers' inpainting alone: a convolution's last bits depend on how memory is laid out.
            latents = latents.contiguous()
        return unet(
            latents,
            time,
            encoder_hidden_states=text.tokens,
            timestep_cond=self._guidance(unet, latents, inputs),
            cross_attention_kwargs=None,
            added_cond_kwargs=self._added(text, inputs),
            return_dict=False,
            **(residuals or {}),
        )[0]

    def _guidance(self, unet: Any, latents: Tensor, inputs: Inputs) -> Tensor | None:
        width = unet.config.time_cond_proj_dim
        if width is None or inputs.guidance_scale is None:
            return None
        scale = torch.tensor(inputs.guidance_scale - 1).repeat(len(latents))
        return self.pipe.get_guidance_scale_embedding(scale, embedding_dim=width).to(latents)

    def _added(self, text: Text, inputs: Inputs) -> dict[str, Any] | None:
        """Return pictures for IP-Adapters; and on SDXL pooled text and sizes: of the picture, no crop, and again."""
        shown = {"image_embeds": list(text.pictures)} if text.pictures else {}
        if not self.is_xl or text.pooled is None:
            return shown or None
        size = [side * self.factor for side in inputs.grid]
        ids = torch.tensor([[*size, 0, 0, *size]], dtype=text.tokens.dtype, device=text.tokens.device)
        return {"text_embeds": text.pooled, "time_ids": ids.repeat(len(text.pooled), 1), **shown}

    def beside(self, tokens: Tensor, grid: tuple[int, int]) -> dict[str, Any] | None:
        """Return what a network of this family reads beside tokens that are no words.

        Args:
            tokens: (B, T, D), in the place of text.
            grid: Rows and columns of the latents.

        Returns:
            On SDXL zeros for pooled text, and sizes as `predict` gives them; elsewhere nothing.
        """
        if not self.is_xl:
            return None
        pooled = tokens.new_zeros(len(tokens), self.pipe.text_encoder_2.config.projection_dim)
        return self._added(Text(tokens, pooled), Inputs(grid))

    # --- weights ---

    def stream(self, engine: str | None, name: str) -> Stream | None:
        """Return which tokens pass a layer of the U-Net; ``None`` for embeddings of time, size and pictures."""
        return _stream(self.denoiser(engine), name)

    def pipe_with(self, denoiser: UNet2DConditionModel) -> Any:
        """Return a pipeline that loads LoRAs into this U-Net (and into the text encoders)."""
        if denoiser is self.pipe.unet:
            return self.pipe
        names = type(self.pipe)._get_signature_keys(type(self.pipe))[0]
        parts = {name: part for name, part in self.pipe.components.items() if name in names}
        settings = {} if self.is_xl else {"requires_safety_checker": False}
        return type(self.pipe)(**parts | settings | {"unet": denoiser})

    def _check_parts(self) -> None:
        for part, kind in ((self.base, "base"), (self.fill, "fill")):
            wanted = _channels(self.pipe)
            if part is not None and part.config.in_channels != wanted[kind]:
                raise CapriccioError(
                    f"The U-Net of {self.name!r} takes {part.config.in_channels} channels, which is neither painting "
                    f"({wanted['base']}) nor inpainting ({wanted['fill']}) with this VAE; give a Stable Diffusion or "
                    "SDXL checkpoint, or one of their inpainting models."
                )
        if self._encoder is None:
            raise CapriccioError(
                f"{self.name!r} has no text encoder of its own kind (SDXL's refiner?); give a base or inpainting model."
            )
        for name, net in self.controlnets.items():
            self._check_net(name, net)

    def _check_net(self, name: str, net: Any) -> None:
        if not isinstance(net, ControlNetModel | ControlNetUnionModel):
            raise CapriccioError(
                f"The ControlNet {name!r} is a {type(net).__name__}, but {self.name!r} is of the Stable Diffusion "
                "family; give a ControlNetModel or a ControlNetUnionModel."
            )
        check_alike(name, net, self.base or self.fill, _ALIKE)
        config = net.config
        reads = (
            config.in_channels,
            config.conditioning_channels,
            2 ** (len(config.conditioning_embedding_out_channels) - 1),
        )
        if reads != (self.channels, 3, self.factor):
            raise CapriccioError(
                f"The ControlNet {name!r} reads {reads[0]} latent channels, {reads[1]} of a picture, and cells of "
                f"{reads[2]} pixels, but {self.name!r} has {self.channels}, 3 and {self.factor}; give a ControlNet "
                "that was trained with this model."
            )


def takes(pipe: Any) -> bool:
    """Whether a pipeline is of this family."""
    unet = getattr(pipe, "unet", None)
    unet = getattr(unet, "_orig_mod", unet)
    return isinstance(unet, UNet2DConditionModel) and hasattr(pipe, "vae") and hasattr(pipe, "encode_prompt")


def _unet_of(pipe: Any) -> UNet2DConditionModel:
    if not takes(pipe):
        raise CapriccioError(
            f"{type(pipe).__name__} is not a pipeline of the Stable Diffusion family; give a StableDiffusionPipeline, "
            "StableDiffusionXLPipeline or one of their inpainting pipelines."
        )
    return pipe.unet


def _channels(pipe: Any) -> dict[str, int]:
    """Return how many input channels painting and inpainting have with the VAE of a pipeline."""
    latents = pipe.vae.config.latent_channels
    return {"base": latents, "fill": 2 * latents + 1}


def _defaults(pipe: Any, is_xl: bool) -> Defaults:
    size = pipe.unet.config.sample_size
    height, width = (side * pipe.vae_scale_factor for side in ((size, size) if isinstance(size, int) else size))
    length = pipe.tokenizer.model_max_length
    distilled = pipe.unet.config.time_cond_proj_dim is not None
    return Defaults(
        width=width,
        height=height,
        num_inference_steps=50,
        guidance_scale=8.5 if distilled else 7.5,
        true_cfg_scale=1.0 if distilled else 5.0 if is_xl else 7.5,
        max_sequence_length=length,
        engines=("fill", "hold"),
        longest_text=length,
        shortest_text=length,
        plain_guidance=not distilled,
    )


def _unscaled(latents: Tensor, config: Any) -> Tensor:
    """Return latents as the VAE's decoder takes them."""
    mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is None or std is None:
        return latents / config.scaling_factor
    mean, std = (torch.tensor(x).view(1, -1, 1, 1).to(latents) for x in (mean, std))
    return latents * std / config.scaling_factor + mean


def _is_union(net: Any) -> bool:
    """Whether a ControlNet knows several kinds of control picture."""
    return isinstance(net, ControlNetUnionModel)


def _levels(net: Any, downs: int) -> list[int]:
    """Return how often the sides of the latent were halved at each residual, that of the middle last."""
    last = len(net.config.block_out_channels) - 1
    return [min(number // (net.config.layers_per_block + 1), last) for number in range(downs + 1)]


def _at(hint: Hint, rows: slice, sample: Tensor, level: int) -> Tensor:
    """Return a residual (B, C, H, W), or one for all places (B, C, 1, 1), where a control picture steers, else 0."""
    return sample * hint.places[level][rows].to(sample) if hint.places else sample


def _among(count: int, rows: slice, sample: Tensor) -> Tensor:
    """Return a residual of some rows as one of all of them, 0 in the others."""
    if len(sample) == count:
        return sample
    others = [sample.new_zeros(size, *sample.shape[1:]) for size in (rows.start, count - rows.stop)]
    return torch.cat([others[0], sample, others[1]])


def network_flops(network: nn.Module, text: int, image: int, pictures: int = 1) -> int:
    """Count the FLOPs of one forward of one row of a network of the family, its attention included.

    Args:
        network: A U-Net, or a ControlNet.
        text: Tokens that it reads.
        image: Tokens in its finest layers.
        pictures: How many control pictures it reads.
    """
    count = 0
    for name, part in network.named_modules():
        times = pictures if name.startswith("controlnet_cond_embedding") else 1
        count += times * _flops(network, name, part, text, image)
    for layer in layers_of(network):
        attention: Any = network.get_submodule(layer.name)
        tokens = max(image >> 2 * layer.level, 1)
        count += 4 * attention.inner_dim * tokens * (text if layer.kind == "cross" else tokens)
    return count


def _flops(unet: Any, name: str, part: nn.Module, text: int, image: int) -> int:
    """Count the FLOPs of one layer: two for each weight and place where it is used."""
    if not isinstance(part, nn.Linear | nn.Conv2d):
        return 0
    weights = int(np.prod(part.weight.shape))
    stream = _stream(unet, name)
    if stream is None:
        return 2 * weights  # once, or for the few tokens of an IP-Adapter
    if stream.kind == "text":
        return 2 * weights * text
    return 2 * weights * (max(image >> 2 * stream.level, 1) if stream.level >= 0 else image << -2 * stream.level)


_FEW = ("time_", "add_", "encoder_hid_proj", "control_add_", "transformer_layes", "spatial_ch_projs")
"""Where the layers begin that see time, sizes, and which pictures a union is shown: as good as no tokens."""


def _stream(unet: nn.Module, name: str) -> Stream | None:
    """Return which tokens pass a layer; feature maps count as image tokens."""
    if "time_emb" in name or "_ip." in name or name.startswith(_FEW):
        return None
    if ".attn2.to_k" in name or ".attn2.to_v" in name:
        return Stream("text")
    return Stream("image", _halvings(unet, name))


def _halvings(unet: Any, name: str) -> int:
    """Return how often the sides of the latent were halved where a layer works; below 0 on the pixels of a picture."""
    kind, _, rest = name.partition(".")
    if kind == "controlnet_cond_embedding":
        embedding = unet.get_submodule(kind)
        number = rest.removeprefix("blocks.")
        ahead = len(embedding.blocks) // 2
        return 0 if rest == "conv_out" else ((int(number) + 1) // 2 if number.isdigit() else 0) - ahead
    if kind == "controlnet_down_blocks":
        return int(rest) // (unet.config.layers_per_block + 1)
    if kind == "controlnet_mid_block":
        return len(unet.config.block_out_channels) - 1
    # A sampler works on the grid behind it: down halves, up doubles.
    return level_of(unet, name) + (".downsamplers." in name) - (".upsamplers." in name)
