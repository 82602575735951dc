"""The published layout of IP-Adapter files: a projection of picture features, and keys and values for each layer.

The projection is a resampler of all features in the Plus kind, and one layer on a picture's embedding in the plain one.

Two groups of weights, ``image_proj`` and ``ip_adapter`` (a dictionary of two in ``.bin`` files, prefixes in
safetensors). The layers are counted by twos from 1, for the original counted self-attention too: down, then up, then
middle, which is the order of diffusers' modules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection
from safetensors.torch import save_file
from torch import Tensor, nn

from capriccio.errors import CapriccioError
from capriccio.formats import tensors
from capriccio.formats.tensors import State

Projection: TypeAlias = IPAdapterPlusImageProjection | ImageProjection
GROUPS = ("image_proj", "ip_adapter")
_NAMES = (  # of a layer: diffusers, published
    (r"\.ln0\.", ".0.norm1."),
    (r"\.ln1\.", ".0.norm2."),
    (r"\.attn\.to_q\.", ".0.to_q."),
    (r"\.attn\.to_out\.0\.", ".0.to_out."),
    (r"\.ff\.0\.", ".1.0."),
    (r"\.ff\.1\.net\.0\.proj\.", ".1.1."),
    (r"\.ff\.1\.net\.2\.", ".1.3."),
)


def read(path: Path) -> dict[str, State]:
    """Read both groups of weights from a file.

    Raises:
        CapriccioError: If it cannot be read, or is no IP-Adapter.
    """
    return groups(tensors.read(path), path)


def groups(loaded: Mapping[str, Any], path: Path) -> dict[str, State]:
    """Return both groups of weights among those that `tensors.read` found in a file.

    Raises:
        CapriccioError: If it is no IP-Adapter.
    """
    found = {group: _group(loaded, group) for group in GROUPS}
    if not all(found.values()):
        raise CapriccioError(
            f"{str(path)!r} holds neither an IP-Adapter nor LAR-Gen; give a file with the two groups of weights "
            "image_proj and ip_adapter, or the released one, which has attn2.to_k_ip beside attn2.to_k."
        )
    return found


def _group(loaded: Mapping[str, Any], group: str) -> State:
    if isinstance(loaded.get(group), Mapping):
        return dict(loaded[group])
    return {k.removeprefix(f"{group}."): value for k, value in loaded.items() if k.startswith(f"{group}.")}


def projection_of(state: Mapping[str, Tensor]) -> Projection:
    """Return what makes tokens of CLIP's features, by diffusers' own conversion: a resampler (Plus), or one layer.

    Raises:
        CapriccioError: If the adapter is of another kind (Full, FaceID), or incomplete.
    """
    if not any({*names} <= state.keys() for names in (("latents", "proj_in.weight"), ("proj.weight", "norm.weight"))):
        raise CapriccioError(
            "The IP-Adapter is neither a plain one nor of the Plus kind (it has no resampler of picture features and "
            "no projection of a picture's embedding); give an IP-Adapter or an IP-Adapter-Plus."
        )
    try:
        convert: Any = UNet2DConditionModel._convert_ip_adapter_image_proj_to_diffusers
        return convert(None, dict(state), low_cpu_mem_usage=False)
    except (RuntimeError, KeyError) as error:
        raise CapriccioError(
            f"The image_proj of the IP-Adapter is incomplete ({str(error).splitlines()[0]}); give a whole file."
        ) from None


def published(projection: Projection, to_k: Sequence[nn.Linear], to_v: Sequence[nn.Linear]) -> State:
    """Return the weights of a safetensors file that any reader of IP-Adapters loads.

    Args:
        projection: Of picture features.
        to_k: Keys of each layer with cross-attention, in the order of diffusers' modules.
        to_v: Values, in the same way.
    """
    state, result = projection.state_dict(), {}
    for key, value in state.items():
        if isinstance(projection, ImageProjection):
            result[key.replace("image_embeds", "proj")] = value
        elif key.endswith("attn.to_k.weight"):
            joined = torch.cat([value, state[key.replace("to_k", "to_v")]])
            result[key.replace(".attn.to_k.", ".0.to_kv.")] = joined
        elif not key.endswith("attn.to_v.weight"):
            for ours, theirs in _NAMES:
                key = re.sub(ours, theirs, key)
            result[key] = value
    written = {f"image_proj.{key}": value for key, value in result.items()}
    for name, layers in (("to_k_ip", to_k), ("to_v_ip", to_v)):
        written |= {f"ip_adapter.{2 * i + 1}.{name}.weight": layer.weight for i, layer in enumerate(layers)}
    return {key: value.detach().contiguous() for key, value in written.items()}


def write(path: Path, state: State, dtype: torch.dtype = torch.float16) -> None:
    """Write the weights that `published` returned."""
    save_file({key: value.to(dtype) for key, value in state.items()}, path)
