"""Weights: LoRAs put on and taken off again through diffusers, and a hash that says which weights painted."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from capriccio.backbones.limits import adapted
from capriccio.errors import CapriccioError
from capriccio.formats import tensors
from capriccio.scene import Lora

_UP = re.compile(r"(lora_B|lora_up|lora\.up|lora_linear_layer\.up)(\.\w+)?\.weight$")
"""The second matrix of a pair, in the layouts that diffusers' readers return."""

_LEFT_OUT = re.compile(r"unsupported|filter|do not (support|handle)", re.IGNORECASE)
"""What diffusers says where it leaves out a part of a file."""

Scalings = dict[Any, dict[str, float]]
"""Strength of each adapter, by layer."""


@contextmanager
def adapters(pipe: Any, loras: Sequence[Lora]) -> Iterator[list[str]]:
    """Put LoRAs on a pipeline, beside those that are active, and restore it exactly.

    Args:
        pipe: A diffusers pipeline that loads LoRAs.
        loras: Files, folders or repositories, and their strengths.

    Yields:
        The name of each one's adapter.

    Raises:
        CapriccioError: If one cannot be read or does not fit this model, or LoRAs are fused into it.
    """
    before, found = list(pipe.get_active_adapters()), _scalings(pipe)
    if any(layer.merged for layer in found):
        # PEFT then runs the base layer alone, whatever else is loaded.
        raise CapriccioError(
            "The pipeline has LoRAs fused into its weights, beside which no other is heard; call unfuse_lora() on it, "
            "or unload_lora_weights() to keep them fused for good."
        )
    names = [_adapter_name(index, lora) for index, lora in enumerate(loras)]
    loaded: list[str] = []
    try:
        for name, lora in zip(names, loras, strict=True):
            loaded.append(name)
            _load(pipe, name, lora)
        pipe.set_adapters([*before, *names], [1.0] * len(before) + [lora.weight for lora in loras])
        _rescale(found)
        yield names
    finally:
        _restore(pipe, loaded, before, found)


def _load(pipe: Any, name: str, lora: Lora) -> None:
    place = Path(lora.path)
    where = {"pretrained_model_name_or_path_or_dict": lora.path}
    if place.is_file():
        where = {"pretrained_model_name_or_path_or_dict": str(place.parent), "weight_name": place.name}
    try:
        with _listening() as dropped:
            held = _held(pipe, where)
            pipe.load_lora_weights(adapter_name=name, **where)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AssertionError, SafetensorError) as error:
        raise CapriccioError(
            f"The LoRA {lora.path!r} could not be put on this model ({_reason(error)}); "
            "give a LoRA file trained for it."
        ) from None
    if name not in _present(pipe):
        raise CapriccioError(f"The LoRA {lora.path!r} fits no layer of this model; give a LoRA file trained for it.")
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    fitting = sum(len(adapted(part, name)) for part in parts)
    if dropped or fitting < held:
        what = f"only {fitting} of its {held} layers do" if fitting < held else f"diffusers leaves out: {dropped[0]}"
        raise CapriccioError(
            f"The LoRA {lora.path!r} does not fit this model as a whole ({what}); give a LoRA file trained for it."
        )


def _held(pipe: Any, where: dict[str, str]) -> int:
    """Return how many layers a file changes, once diffusers has brought it into its own layout.

    Raises:
        ValueError: If it needs a wider model: diffusers would widen this one, for good.
    """
    settings = {"unet_config": pipe.unet.config} if isinstance(pipe, StableDiffusionXLLoraLoaderMixin) else {}
    state = pipe.lora_state_dict(**where, return_alphas=True, **settings)[0]
    parts = pipe.transformer.named_modules() if hasattr(pipe, "transformer") else ()
    widths = {path.removesuffix(".base_layer"): part.in_features for path, part in parts if isinstance(part, nn.Linear)}
    for key, value in state.items():
        layer = key.removeprefix("transformer.").removesuffix(".lora_A.weight")
        if value.ndim > 1 and value.shape[1] > widths.get(layer, value.shape[1]):
            raise ValueError(f"{layer} takes {value.shape[1]} channels there and {widths[layer]} here")
    return sum(bool(_UP.search(key)) and value.ndim > 1 for key, value in state.items())


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Collect what diffusers' readers of foreign layouts say that they leave out; they tell nobody else."""
    said: list[str] = []
    listener = _Listener(said)
    loggers = [logging.getLogger(f"diffusers.loaders.{name}") for name in ("lora_conversion_utils", "lora_pipeline")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addFilter(listener)
        logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeFilter(listener)
            logger.setLevel(level)


class _Listener(logging.Filter):
    def __init__(self, said: list[str]) -> None:
        super().__init__()
        self.said = said

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep what is said on keys that are left out; let nothing through that was not asked for."""
        message = record.getMessage()
        if _LEFT_OUT.search(message):
            self.said.append(message.split(". ")[0][:160])
            return False
        return record.levelno >= logging.getLogger("diffusers").level


def _restore(pipe: Any, loaded: list[str], before: list[str], found: Scalings) -> None:
    if not before and not found:
        pipe.unload_lora_weights()
        return
    pipe.delete_adapters([name for name in loaded if name in _present(pipe)])
    if before:
        pipe.set_adapters(before)
    _rescale(found)


def _rescale(found: Scalings) -> None:
    """Put back the strengths that were found, for which diffusers has no reading."""
    for layer, scaling in found.items():
        layer.scaling.update(scaling)


def _present(pipe: Any) -> set[str]:
    return {name for names in pipe.get_list_adapters().values() for name in names}


def _scalings(pipe: Any) -> Scalings:
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    layers = [module for part in parts for module in part.modules() if isinstance(module, BaseTunerLayer)]
    return {layer: dict(layer.scaling) for layer in layers}


def _adapter_name(index: int, lora: Lora) -> str:
    # PEFT makes module names of it, which may hold no dots.
    stem = re.sub(r"\W+", "_", lora.name or Path(lora.path).stem)
    return f"capriccio_{index}_{stem}"


def learn_word(pipe: Any, source: str) -> None:
    """Load a learned word (textual inversion) into the text encoders of a pipeline; its name is the token's.

    Args:
        pipe: A Stable Diffusion or SDXL pipeline.
        source: A file or a repository. A file for SDXL holds a vector for each encoder, ``clip_l`` and ``clip_g``.

    Raises:
        CapriccioError: If it cannot be read or does not fit.
    """
    place = Path(source)
    try:
        state = load_file(source) if place.suffix == ".safetensors" and place.is_file() else None
        if state is not None and {"clip_l", "clip_g"} <= set(state):
            for key, number in (("clip_l", ""), ("clip_g", "_2")):
                to = {part: getattr(pipe, f"{part}{number}") for part in ("text_encoder", "tokenizer")}
                pipe.load_textual_inversion({place.stem: state[key]}, token=place.stem, **to)
        else:
            named = state is None or "emb_params" not in state
            pipe.load_textual_inversion(source, **{} if named else {"token": place.stem})
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CapriccioError(
            f"The learned word {source!r} could not be loaded ({_reason(error)}); "
            "give a textual inversion of this model."
        ) from None


def add_ip_adapter(pipe: Any, source: str) -> None:
    """Load an IP-Adapter through diffusers.

    Args:
        pipe: A Stable Diffusion or SDXL pipeline.
        source: A file; or ``owner/name/path/to/file`` in a repository. An ``image_encoder`` folder beside it comes
            along.

    Raises:
        CapriccioError: If it cannot be read or does not fit.
    """
    place = Path(source)
    here = place.is_file()
    folder = str(place.parent) if here else "/".join(place.parts[:2])
    inside = "" if here else "/".join(place.parts[2:-1])
    encoder = "image_encoder" if not here or (place.parent / "image_encoder").is_dir() else None
    try:
        pipe.load_ip_adapter(folder, subfolder=inside, weight_name=place.name, image_encoder_folder=encoder)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CapriccioError(
            f"The IP-Adapter {source!r} could not be loaded ({_reason(error)}); give a file trained for this model."
        ) from None


def _reason(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:160]


def fingerprint(network: nn.Module) -> str:
    """Return a SHA-256 of a network's weights, ``"sampled:..."`` where it is too large to read whole."""
    state = network.state_dict()
    return "not at hand (offloaded)" if any(value.is_meta for value in state.values()) else tensors.digest(state)
