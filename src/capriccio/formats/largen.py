"""The released layout of LAR-Gen (ModelScope ``iic/LARGEN``, its folder ``models``): Locate and Assign on SDXL.

Three things lie beside each other:

* ``largen_ckpt_s22k.pth``, a whole model by the names of LDM. Its U-Net has nine input channels (noise, mask, masked
  picture: the order of diffusers), and in each layer of cross-attention, beside the keys and values of the text,
  ``attn2.to_k`` and ``attn2.to_v``, those of Assign, ``attn2.to_k_ip`` and ``attn2.to_v_ip``, without biases;
* ``ip-adapter-plus_sdxl_vit-h.bin``, of which only the resampler of CLIP's features counts;
* ``clip_encoder``, CLIP ViT-H as a folder of transformers.

VAE and text encoders, which the first file holds as well (``first_stage_model.``; ``conditioner.`` or
``cond_stage_model.``), are not read: the paper trains the U-Net alone, so they are those of SDXL, and the open model
brings them along. There is no RefineNet, here or anywhere public.

A U-Net is read in the same way from any file by the names of LDM, of SDXL as of Stable Diffusion 1.x and 2.x.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import LDM_UNET_KEY, convert_ldm_unet_checkpoint
from torch import Tensor

from capriccio.errors import CapriccioError
from capriccio.formats import ip_adapter, tensors
from capriccio.formats.tensors import State

CHECKPOINT, ENCODER = "largen_ckpt_s22k.pth", "clip_encoder"
ADAPTERS = ("ip-adapter-plus_sdxl_vit-h.bin", "ip-adapter-plus_sdxl_vit-h.safetensors")
"""The file with the resampler, in both forms in which IP-Adapter publishes it."""

_WHOLES = ("model", "state_dict")  # what a file may call all of its weights
_PREFIXES = (LDM_UNET_KEY, "model.", "")  # of the weights of a U-Net
_FIRST = "input_blocks.0.0.weight"
_ASSIGN = (".attn2.to_k_ip.weight", ".attn2.to_v_ip.weight")


def is_largen(loaded: Mapping[str, Any]) -> bool:
    """Whether weights that `tensors.read` returned hold Assign as the release does."""
    return any(name.endswith(_ASSIGN) for name in _whole(loaded))


def inpainting_unet(path: Path, like: Mapping[str, Any], dtype: torch.dtype) -> UNet2DConditionModel:
    """Load the inpainting U-Net of a file by the names of LDM; Assign, where it is there, is left to `groups`.

    Args:
        path: safetensors, ``.ckpt`` or ``.pth``.
        like: Configuration of the U-Net of the same family that paints from text.
        dtype: Of the weights.

    Raises:
        CapriccioError: If the file cannot be read, holds no U-Net, or one of another family or for another task.
    """
    config = {key: value for key, value in like.items() if not key.startswith("_")}
    config["in_channels"] = 2 * config["out_channels"] + 1
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    named = _converted(tensors.read(path), config, path)
    state = {name: value for name, value in named.items() if not name.endswith(_ASSIGN)}
    wanted = {name: value.shape for name, value in unet.state_dict().items()}
    remedy = "give the inpainting model of the same family, with nine input channels"
    tensors.check_fit(wanted, state, f"The U-Net in {str(path)!r} does not inpaint for the model that is open", remedy)
    unet.load_state_dict({name: value.to(dtype) for name, value in state.items()}, assign=True)
    return unet.eval().requires_grad_(False)


def groups(
    loaded: Mapping[str, Any], path: Path, unet: UNet2DConditionModel, layers: Sequence[str]
) -> dict[str, State]:
    """Return Assign as the two groups of weights of an IP-Adapter-Plus.

    Args:
        loaded: What `tensors.read` returned, and `is_largen` is true of.
        path: Where it was read; the file with the resampler is beside it.
        unet: The inpainting model that Assign adds to.
        layers: Names of its layers of cross-attention, in order.

    Raises:
        CapriccioError: If weights or the file beside are missing, or do not fit the model.
    """
    named = _converted(loaded, unet.config, path)
    found = {name: value for name, value in named.items() if name.endswith(_ASSIGN)}
    names = {
        f"{layer}.{side}_ip.weight": f"{2 * index + 1}.{side}_ip.weight"
        for index, layer in enumerate(layers)
        for side in ("to_k", "to_v")
    }
    wanted = {name: unet.get_parameter(name.replace("_ip.", ".")).shape for name in names}
    remedy = f"open the SDXL model with inpainting={str(path)!r}, or fetch the file again"
    tensors.check_fit(wanted, found, f"Assign in {str(path)!r} does not fit the inpainting model", remedy)
    return {
        "image_proj": ip_adapter.read(_adapter_beside(path))["image_proj"],
        "ip_adapter": {names[name]: value for name, value in found.items()},
    }


def _adapter_beside(path: Path) -> Path:
    place = next((path.parent / name for name in ADAPTERS if (path.parent / name).is_file()), None)
    if place is None:
        raise CapriccioError(
            f"Beside {str(path)!r} there is no {ADAPTERS[0]!r}, the IP-Adapter-Plus whose resampler LAR-Gen sees "
            "subjects with; put it there."
        )
    return place


def _whole(loaded: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return all weights of a file, which may lie a level deeper."""
    return next((loaded[name] for name in _WHOLES if isinstance(loaded.get(name), Mapping)), loaded)


def _converted(loaded: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the weights of a U-Net by the names of diffusers, Assign's among them.

    Names that diffusers does not know stay as they are, for `tensors.check_fit` to find.
    """
    whole = _whole(loaded)
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}{_FIRST}" in whole), None)
    if prefix is None:
        raise CapriccioError(
            f"{str(path)!r} holds no U-Net by the names of LDM (there is no {LDM_UNET_KEY}{_FIRST}); give a single "
            "file of an inpainting model, or the folder of one in the layout of diffusers."
        )
    names = [name.removeprefix(prefix) for name in whole if name.startswith(prefix)]
    try:
        # The conversion only renames, so it may as well be asked for the names alone.
        new = convert_ldm_unet_checkpoint({f"{LDM_UNET_KEY}{name}": name for name in names}, config)
    except KeyError as error:
        raise CapriccioError(
            f"The U-Net in {str(path)!r} is not of the family of the model that is open: it has no {error.args[0]!r}; "
            "give the inpainting model of the same family."
        ) from None
    new |= {name: name for name in set(names) - set(new.values())}
    return {name: whole[f"{prefix}{old}"] for name, old in new.items()}
