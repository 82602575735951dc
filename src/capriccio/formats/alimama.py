"""The layout of the public inpainting ControlNet, ``alimama-creative/FLUX.1-dev-Controlnet-Inpainting-Beta``.

It is diffusers' ``FluxControlNetModel`` but for one thing: beside the packed latents of the known picture (4 L
channels) its condition carries a packed mask (4 channels), said by ``extra_condition_channels`` in its
``config.json``. diffusers knows no such key and fails on the shape of ``controlnet_x_embedder``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxControlNetModel, FluxTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from capriccio.errors import CapriccioError
from capriccio.formats.tensors import check_fit
from capriccio.modules.controlnet import new_controlnet

MASK_CHANNELS = 4
"""One mask value for each of the 2 x 2 latent cells of a token."""

_KEY, _CONFIG, _WEIGHTS = "extra_condition_channels", "config.json", "diffusion_pytorch_model"


def takes_masks(controlnet: FluxControlNetModel) -> bool:
    """Whether a ControlNet's condition has room for a mask beside the latents."""
    return _extra(controlnet) == MASK_CHANNELS


def is_config(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is of this layout."""
    return _KEY in config


def new_inpainting_controlnet(
    transformer: FluxTransformer2DModel, *, num_layers: int, num_single_layers: int
) -> FluxControlNetModel:
    """Return an untrained inpainting ControlNet that starts as a copy of a transformer's first blocks.

    Args:
        transformer: The frozen base.
        num_layers: Double blocks to copy.
        num_single_layers: Single blocks to copy.
    """
    controlnet = new_controlnet(transformer, num_layers=num_layers, num_single_layers=num_single_layers)
    _make_room(controlnet, MASK_CHANNELS)
    nn.init.zeros_(controlnet.controlnet_x_embedder.weight)
    nn.init.zeros_(controlnet.controlnet_x_embedder.bias)
    return controlnet


def load_inpainting_controlnet(source: str | os.PathLike[str], dtype: torch.dtype | None = None) -> FluxControlNetModel:
    """Load an inpainting ControlNet from a folder or a repository of the Hub.

    Args:
        source: Folder or repository name.
        dtype: Of the weights; as stored by default.

    Raises:
        CapriccioError: If the folder is not of this layout, or keys are missing, unexpected or of the wrong shape.
    """
    folder = _folder(source)
    config = _config(folder)
    extra = config.pop(_KEY)
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    with torch.device("meta"):
        controlnet = FluxControlNetModel.from_config(config)
        _make_room(controlnet, extra)
    state = _state(folder)
    wanted = {key: value.shape for key, value in controlnet.state_dict().items()}
    complaint = f"The weights in {str(folder)!r} do not fit their config.json"
    check_fit(wanted, state, complaint, "fetch the folder again or give the right one")
    if dtype is not None:
        state = {key: value.to(dtype) for key, value in state.items()}
    controlnet.load_state_dict(state, assign=True)
    return controlnet.eval().requires_grad_(False)


def save_inpainting_controlnet(
    controlnet: FluxControlNetModel, folder: str | os.PathLike[str], max_shard_size: str = "15MB"
) -> Path:
    """Save an inpainting ControlNet in the public layout.

    Args:
        controlnet: As `new_inpainting_controlnet` or `load_inpainting_controlnet` return it.
        folder: Made if absent.
        max_shard_size: Of one file of weights.
    """
    folder = Path(folder)
    controlnet.save_pretrained(folder, max_shard_size=max_shard_size)
    config = json.loads((folder / _CONFIG).read_text()) | {_KEY: _extra(controlnet)}
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return folder


def _extra(controlnet: FluxControlNetModel) -> int:
    return controlnet.controlnet_x_embedder.in_features - controlnet.x_embedder.in_features


def _make_room(controlnet: FluxControlNetModel, extra: int) -> None:
    base = controlnet.x_embedder
    controlnet.controlnet_x_embedder = nn.Linear(base.in_features + extra, base.out_features)


def _folder(source: str | os.PathLike[str]) -> Path:
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(os.fspath(source), allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError) as error:
        raise CapriccioError(
            f"The inpainting ControlNet {os.fspath(source)!r} is neither a folder here nor a repository that could be "
            f"fetched ({type(error).__name__}); check the name and the connection."
        ) from None


def _config(folder: Path) -> dict[str, Any]:
    place = folder / _CONFIG
    config = json.loads(place.read_text()) if place.is_file() else {}
    if config.get("_class_name") != "FluxControlNetModel" or _KEY not in config:
        raise CapriccioError(
            f"{str(folder)!r} is not an inpainting ControlNet of FLUX: its config.json should be of a "
            f"FluxControlNetModel with {_KEY!r}; give the folder of the alimama ControlNet, or of FLUX Fill."
        )
    return config


def _state(folder: Path) -> dict[str, Tensor]:
    index = folder / f"{_WEIGHTS}.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = [f"{_WEIGHTS}.safetensors"]
    for name in names:
        if not (folder / name).is_file():
            raise CapriccioError(f"{str(folder)!r} lacks the weights file {name!r}; fetch the whole folder again.")
    return {key: value for name in names for key, value in load_file(folder / name).items()}
