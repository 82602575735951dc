"""Opening backbones: the miniature, a repository of the Hub, a folder or a single file, in a memory mode."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers import (
    BitsAndBytesConfig,
    ControlNetModel,
    ControlNetUnionModel,
    DiffusionPipeline,
    FluxControlNetModel,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors import SafetensorError, safe_open

from capriccio import assets
from capriccio.backbones import unet, weights
from capriccio.backbones.base import Defaults
from capriccio.backbones.flux import FluxBackbone
from capriccio.backbones.unet import UNetBackbone
from capriccio.errors import CapriccioError, nearest
from capriccio.formats import alimama, largen
from capriccio.formats.alimama import load_inpainting_controlnet

Memory = Literal["full", "offload", "sequential", "8bit", "4bit"]

Source = str | os.PathLike[str]
ControlNets = Mapping[str, Source] | Sequence[Source]
Networks = {"transformer": FluxTransformer2DModel, "unet": UNet2DConditionModel}
"""The denoiser of each family, by its name among the components of a pipeline."""

SideNetworks = {"transformer": FluxControlNetModel, "unet": ControlNetModel}
"""The ControlNets of each family, by the name of its denoiser."""

MINIATURE, MINIATURE_SD = "miniature", "miniature-sd"
MINIATURE_DEFAULTS = Defaults(
    width=128,
    height=128,
    num_inference_steps=28,
    guidance_scale=1.0,
    true_cfg_scale=3.0,
    max_sequence_length=64,
    scheduler="Euler stochastic",  # its outlines are cleaner than those of Euler's method
    own=True,
    panel_margin=0,  # it knows panels of 128 pixels
    panel_spoiled=4,
    engines=("fill", "controlnet", "hold"),
    rows=16,
    longest_text=128,
    caution="The miniature knows only its own world of bold objects; for photographs use FLUX.1 weights: "
    "capriccio paint ... --model black-forest-labs/FLUX.1-dev",
)

MINIATURE_SD_DEFAULTS = replace(
    MINIATURE_DEFAULTS,
    num_inference_steps=24,
    true_cfg_scale=6.0,  # people need more than things: three in four are right, of two in three at 4
    max_sequence_length=77,
    scheduler=None,
    engines=("fill", "hold"),
    longest_text=77,
    shortest_text=77,
    plain_guidance=True,
)


def open_backbone(
    name: Source,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    memory: Memory = "full",
    inpainting: Source | None = None,
    controlnets: ControlNets = (),
    config: Source | None = None,
    textual_inversions: Sequence[Source] = (),
    ip_adapter: Source | None = None,
    tiling: bool = False,
) -> FluxBackbone | UNetBackbone:
    """Load a backbone: FLUX, Stable Diffusion 1.x and 2.x, or SDXL, told apart by what is there.

    Args:
        name: ``"miniature"`` (FLUX), ``"miniature-sd"`` (Stable Diffusion), a repository of the Hub, a folder, or a
            single file of weights.
        device: Where to paint; an accelerator if there is one.
        dtype: Of the weights; bfloat16 on an accelerator, float32 on a CPU.
        memory: ``"full"`` keeps everything on the device; ``"offload"`` one network at a time; ``"sequential"`` one
            layer at a time; ``"8bit"`` and ``"4bit"`` quantise the denoiser and T5.
        inpainting: A model to paint into a canvas with as well: an inpainting ControlNet (alimama layout) or FLUX Fill
            beside FLUX, the inpainting model of the same family beside Stable Diffusion or SDXL: a folder, a
            repository, or a single file by the names of LDM.
        controlnets: Folders or repositories of ControlNets that control pictures steer through, by the names that
            controls call them; in a list, by the names of the folders.
        config: For a single file: a pipeline folder or repository with everything that the file lacks.
        textual_inversions: Files of learned words, for Stable Diffusion and SDXL.
        ip_adapter: A file of an IP-Adapter, for Stable Diffusion and SDXL: on the disk, or in a repository as
            ``owner/name/path/to/file``.
        tiling: Let the VAE work on tiles, for pictures that would not fit in memory.

    Raises:
        CapriccioError: If something is not found, does not fit together, or does not fit in memory.
    """
    name, device = os.fspath(name), torch.device(device or _best_device())
    _check_memory(memory, device)
    dtype = dtype or (
        torch.bfloat16 if device.type == "cuda" and name not in (MINIATURE, MINIATURE_SD) else torch.float32
    )
    try:
        with _quiet():
            backbone: FluxBackbone | UNetBackbone
            if name == MINIATURE:
                backbone = _miniature(dtype, memory, inpainting, controlnets)
            elif name == MINIATURE_SD:
                backbone = _miniature_sd(dtype, memory, inpainting, controlnets)
            else:
                pipe = _pipeline(name, dtype, memory, config)
                part = _denoiser_name(pipe)
                nets = _controlnets(controlnets, part, dtype)
                backbone = wrap(pipe, name, controlnets=nets, **_engine(inpainting, pipe, dtype, memory))
            _add(backbone, textual_inversions, ip_adapter)
            _place(backbone, device, memory)
    except (torch.OutOfMemoryError, MemoryError):
        raise out_of_memory(name) from None
    if tiling:
        backbone.pipe.vae.enable_tiling()
    return backbone


def _add(
    backbone: FluxBackbone | UNetBackbone, textual_inversions: Sequence[Source], ip_adapter: Source | None
) -> None:
    if not isinstance(backbone, UNetBackbone) and (textual_inversions or ip_adapter is not None):
        raise CapriccioError(
            "Learned words and IP-Adapters are loaded into Stable Diffusion and SDXL, but "
            f"{backbone.name!r} is neither; leave them out."
        )
    for source in textual_inversions:
        weights.learn_word(backbone.pipe, os.fspath(source))
    if ip_adapter is not None:
        weights.add_ip_adapter(backbone.pipe, os.fspath(ip_adapter))


def wrap(pipe: Any, name: str | None = None, **parts: Any) -> FluxBackbone | UNetBackbone:
    """Return the backbone of a person's own diffusers pipeline; a backbone is returned as it is.

    Raises:
        CapriccioError: If the pipeline is of no family known here.
    """
    if isinstance(pipe, FluxBackbone | UNetBackbone):
        return pipe
    return UNetBackbone(pipe, name=name, **parts) if unet.takes(pipe) else FluxBackbone(pipe, name=name, **parts)


def _denoiser_name(pipe: Any) -> str:
    return "unet" if unet.takes(pipe) else "transformer"


def out_of_memory(name: str) -> CapriccioError:
    """Return the sentence for a model or a picture that is too large."""
    return CapriccioError(
        f"There is too little memory for {name!r}; try memory='offload' (--memory offload), then 'sequential' or "
        "'4bit', a smaller picture, or fewer pictures at once."
    )


def _miniature(dtype: torch.dtype, memory: Memory, inpainting: Source | None, controlnets: ControlNets) -> FluxBackbone:
    pipe = _pipeline(os.fspath(assets.path("miniature/flux")), dtype, memory, None)
    parts: dict[str, Any] = {}
    # Its own inpainters come along, unless one is named.
    for engine in ("miniature/fill", "miniature/controlnet-inpaint"):
        if inpainting is None and assets.available(engine):
            parts |= _engine(assets.path(engine), pipe, dtype, memory)
    parts = parts or _engine(inpainting, pipe, dtype, memory)
    union = "miniature/controlnet-union"
    nets = {"union": assets.path(union)} if assets.available(union) else {}
    parts["controlnets"] = _controlnets(nets | _named(controlnets), "transformer", dtype)
    return FluxBackbone(pipe, name=MINIATURE, defaults=MINIATURE_DEFAULTS, **parts)


def _miniature_sd(
    dtype: torch.dtype, memory: Memory, inpainting: Source | None, controlnets: ControlNets
) -> UNetBackbone:
    pipe = _pipeline(os.fspath(assets.path("miniature/sd")), dtype, memory, None)
    if inpainting is None and assets.available("miniature/sd-inpaint"):
        inpainting = assets.path("miniature/sd-inpaint")
    parts = _engine(inpainting, pipe, dtype, memory) | {"controlnets": _controlnets(controlnets, "unet", dtype)}
    return UNetBackbone(pipe, name=MINIATURE_SD, defaults=MINIATURE_SD_DEFAULTS, **parts)


def _pipeline(name: str, dtype: torch.dtype, memory: Memory, config: Source | None) -> Any:
    if Path(name).is_file():
        return _single_file(name, dtype, config)
    if config is not None:
        raise CapriccioError(f"config={str(config)!r} is for single files, but {name!r} is none; leave it out.")
    try:
        part = _part_of(name)
        denoiser = _denoiser(name, part, dtype, memory)
        extra = _t5(name, dtype, memory) if part == "transformer" else {}
        return DiffusionPipeline.from_pretrained(name, dtype=dtype, **{part: denoiser}, **extra)
    except _UNREADABLE as error:
        raise _unreadable(name, error) from None


def _part_of(name: str) -> str:
    """Return what the denoiser of a repository or folder is called: it tells the family."""
    index = DiffusionPipeline.load_config(name)
    return next((part for part in Networks if part in index), "transformer")


def _single_file(name: str, dtype: torch.dtype, config: Source | None) -> Any:
    try:
        keys = _keys(name)
        whole = next((kind for mark, kind in _WHOLE_FILES if any(key.startswith(mark) for key in keys)), None)
        if whole is not None:
            own = {} if config is None else {"config": os.fspath(config)}
            return whole.from_single_file(name, dtype=dtype, **own)
        if config is None:
            return FluxPipeline.from_single_file(name, dtype=dtype)
        part = _part_of(os.fspath(config))
        denoiser = Networks[part].from_single_file(name, config=os.fspath(config), subfolder=part, dtype=dtype)
        return DiffusionPipeline.from_pretrained(config, dtype=dtype, **{part: denoiser})
    except _UNREADABLE as error:
        raise _unreadable(name, error) from None


_UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError)
_WHOLE_FILES: tuple[tuple[str, Any], ...] = (
    ("conditioner.embedders.1.", StableDiffusionXLPipeline),
    ("cond_stage_model.", StableDiffusionPipeline),
)
"""Names of weights that only a file with a whole pipeline has, the rarer first."""


def _keys(name: str) -> list[str]:
    """Return the names of the weights in a file; none of one that only a run of its code could open."""
    if not name.endswith(".safetensors"):
        return ["cond_stage_model."] if name.endswith(".ckpt") else []
    with safe_open(name, "pt") as file:
        return list(file.keys())


def _denoiser(name: str, part: str, dtype: torch.dtype, memory: Memory) -> Any:
    quantised: dict[str, Any] = {}
    if memory in ("8bit", "4bit"):
        quantised["quantization_config"] = BitsAndBytesConfig(**_bits(memory, dtype))
    network, info = Networks[part].from_pretrained(
        name, subfolder=part, dtype=dtype, output_loading_info=True, **quantised
    )
    return _whole(network, info, f"{part} in {name!r}")


def _whole(network: Any, info: Mapping[str, Any], what: str) -> Any:
    """Return a network that was loaded, once it is sure that all of it was."""
    # diffusers would fill what is missing with chance, and leave out what it does not know.
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing or unexpected:
        example = missing[0] if missing else unexpected[0]
        raise CapriccioError(
            f"The {what} does not fit its config.json: {len(missing)} keys are missing and "
            f"{len(unexpected)} unexpected (such as {example!r}); fetch the checkpoint again."
        )
    return network


def _t5(name: str, dtype: torch.dtype, memory: Memory) -> dict[str, Any]:
    if memory not in ("8bit", "4bit"):
        return {}
    import transformers

    quantised = transformers.BitsAndBytesConfig(**_bits(memory, dtype))
    encoder = transformers.T5EncoderModel.from_pretrained(
        name, subfolder="text_encoder_2", dtype=dtype, quantization_config=quantised
    )
    return {"text_encoder_2": encoder}


def _bits(memory: Memory, dtype: torch.dtype) -> dict[str, Any]:
    if memory == "8bit":
        return {"load_in_8bit": True}
    return {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}


def _engine(source: Source | None, pipe: Any, dtype: torch.dtype, memory: Memory) -> dict[str, Any]:
    """Load an inpainting ControlNet or the denoiser of an inpainting model, whichever is there, for a pipeline."""
    if source is None:
        return {}
    part = _denoiser_name(pipe)
    if part == "unet" and Path(source).is_file():
        if memory in ("8bit", "4bit"):
            raise CapriccioError(
                f"memory={memory!r} quantises models in folders, but {str(source)!r} is a single file; use 'offload'."
            )
        return {"fill": largen.inpainting_unet(Path(source), pipe.unet.config, dtype)}
    if part == "transformer" and not _has_part(source, part):
        controlnet: FluxControlNetModel = load_inpainting_controlnet(source, dtype)
        return {"controlnet": controlnet}
    try:
        return {"fill": _denoiser(os.fspath(source), part, dtype, memory)}
    except (OSError, ValueError) as error:
        raise _unreadable(os.fspath(source), error) from None


def _named(controlnets: ControlNets) -> dict[str, Source]:
    """Return ControlNets by name; those of a list are called by their folders."""
    if isinstance(controlnets, str | os.PathLike):
        controlnets = [controlnets]
    if isinstance(controlnets, Mapping):
        return dict(controlnets)
    names = [Path(source).name for source in controlnets]
    for name in names:
        if names.count(name) > 1:
            raise CapriccioError(
                f"Two ControlNets are in folders called {name!r}; give a map of names, as in "
                "controlnets={'edges': ..., 'depth': ...}."
            )
    return dict(zip(names, controlnets, strict=True))


def _controlnets(controlnets: ControlNets, part: str, dtype: torch.dtype) -> dict[str, Any]:
    return {name: _controlnet(os.fspath(source), part, dtype) for name, source in _named(controlnets).items()}


def _controlnet(source: str, part: str, dtype: torch.dtype) -> Any:
    """Load a ControlNet of the family of a denoiser."""
    wanted = SideNetworks[part]
    try:
        config = wanted.load_config(source)
        kind = config.get("_class_name") if isinstance(config, dict) else None
        if part == "unet" and isinstance(config, dict) and "num_control_type" in config:
            # Published ones carry the name that their class had before diffusers took it in.
            wanted = ControlNetUnionModel
        elif kind != wanted.__name__:
            raise CapriccioError(
                f"{source!r} holds a {kind or 'model of no known kind'}, but this model is steered by a "
                f"{wanted.__name__}; give a ControlNet of its family."
            )
        if alimama.is_config(config):
            raise CapriccioError(
                f"{source!r} is an inpainting ControlNet, which takes masks; open it with inpainting=."
            )
        network, info = wanted.from_pretrained(source, dtype=dtype, output_loading_info=True)
        return _whole(network, info, f"ControlNet in {source!r}").eval()
    except _UNREADABLE as error:
        raise _unreadable(source, error, "give the folder of a ControlNet, with its config.json") from None


def _has_part(source: Source, part: str) -> bool:
    """Whether a folder or repository has a part of a pipeline; a ControlNet lies bare."""
    if Path(source).exists():
        return (Path(source) / part / "config.json").is_file()
    from huggingface_hub import file_exists

    try:
        return file_exists(os.fspath(source), f"{part}/config.json")
    except (OSError, ValueError) as error:
        raise _unreadable(os.fspath(source), error) from None


def _unreadable(
    name: str,
    error: Exception,
    remedy: str = "give the folder or file of a FLUX checkpoint or of Stable Diffusion or SDXL",
) -> CapriccioError:
    if isinstance(error, CapriccioError):
        return error
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
    here = Path(name).exists()
    remedy = remedy if here else "check the name and the connection"
    return CapriccioError(f"The model {name!r} could not be loaded ({reason.rstrip('.')}); {remedy}.")


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _check_memory(memory: str, device: torch.device) -> None:
    modes = get_args(Memory)
    if memory not in modes:
        raise CapriccioError(f"memory={memory!r} is unknown; {nearest(memory, modes)}")
    if memory in ("offload", "sequential") and device.type == "cpu":
        raise CapriccioError(f"memory={memory!r} moves networks to an accelerator, and there is none; use 'full'.")
    if memory in ("8bit", "4bit"):
        from importlib.util import find_spec

        if find_spec("bitsandbytes") is None:
            raise CapriccioError(f"memory={memory!r} needs bitsandbytes; run pip install 'capriccio[quantised]'.")


def _place(backbone: FluxBackbone | UNetBackbone, device: torch.device, memory: Memory) -> None:
    if memory == "offload":
        from accelerate import cpu_offload_with_hook

        backbone.pipe.enable_model_cpu_offload(device=device)
        backbone.hooks = tuple(cpu_offload_with_hook(part, device)[1] for part in _left(backbone))
    elif memory == "sequential":
        from accelerate import cpu_offload

        backbone.pipe.enable_sequential_cpu_offload(device=device)
        for part in _left(backbone):
            cpu_offload(part, device)
    else:
        for part in (backbone.pipe, *backbone.parts.values()):
            if not getattr(part, "is_quantized", False):  # bitsandbytes has put it where it belongs
                part.to(device)


def _left(backbone: FluxBackbone | UNetBackbone) -> list[Any]:
    """Return the networks that the pipeline does not offload."""
    return [part for part in backbone.parts.values() if not any(hasattr(m, "_hf_hook") for m in part.modules())]


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the progress bars that diffusers and transformers draw for every component."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    bars = [logging for logging in (of_diffusers, of_transformers) if logging.is_progress_bar_enabled()]
    for logging in bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging in bars:
            logging.enable_progress_bar()
