"""LoRAs of regions: a mask of tokens on what a LoRA adds in each of its layers.

In a linear layer PEFT computes ``base(x) + lora_B(lora_A(x)) * scaling``, token by token. With the output of ``lora_B``
multiplied by 1 at the tokens of a region and by 0 elsewhere, the layer is exactly that of the LoRA at these tokens, and
exactly that of the base model at all others; LoRAs of disjoint regions never meet in a layer. In a convolution the mask
lies on the feature map at its resolution: no cell outside gains anything, though a kernel at the border of a region
reads beyond it, as it always does.

The tokens of a region are its image tokens, in all steps and in every branch of guidance, and the tokens of its text
wherever that is read. Nothing else is: not the prompt's text, nor, on FLUX, the twin of the image that looks at the
prompt (in the double blocks, where the twin is the image itself, it is as the image is).

This is ours: Regional Prompting's authors apply LoRAs to the whole picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from capriccio.attention import CompiledProgram, PictureLayout, TokenLayout
from capriccio.backbones.base import Stream
from capriccio.canvas import Mask
from capriccio.errors import CapriccioError
from capriccio.scene import Lora

Found = dict[str, Any]
"""The layers that a LoRA changes, by their names in the network."""


class Limits:
    """The LoRAs of regions that are at work: each is told in which token layout the coming forwards are."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._now: CompiledProgram | None = None
        self._masks: dict[tuple[Any, ...], Tensor] = {}

    def tell(self, compiled: CompiledProgram) -> None:
        """Say which program, and so which token layout, the coming forwards have."""
        self._now = compiled

    def add(self, module: nn.Module, stream: Stream, region: str) -> None:
        """Limit the output of a module to the tokens of a region.

        Args:
            module: The ``lora_B`` of a layer.
            stream: What passes it.
            region: What its groups are called after ``image:`` and ``text:``.
        """

        def limited(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
            return output * self._mask(stream, region, output)

        self._handles.append(module.register_forward_hook(limited))

    def lift(self) -> None:
        """Let all of them be, for good."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._masks.clear()

    def _mask(self, stream: Stream, region: str, output: Tensor) -> Tensor:
        """Return the mask, (1, S, 1) or (1, 1, H, W), that is to be multiplied with an output."""
        if self._now is None:
            raise CapriccioError(
                "a LoRA of a region was given a forward whose token layout nobody has told; call limits.tell(compiled) "
                "before it."
            )
        key = (self._now, stream, region, output.device, output.dtype)
        if key not in self._masks:
            mask = torch.from_numpy(tokens_at(self._now, stream, region)).to(output)
            self._masks[key] = mask[None, None] if mask.ndim == 2 else mask[None, :, None]
        mask, tokens = self._masks[key], output.shape[2:] if output.ndim == 4 else output.shape[1:2]
        mask = mask if mask.ndim == output.ndim else mask.reshape(1, -1, 1)
        found = mask.shape[2:] if mask.ndim == 4 else mask.shape[1:2]
        if found != tokens:
            raise CapriccioError(
                f"a LoRA of a region works in a layer of {tuple(tokens)} tokens, but the token layout has "
                f"{tuple(found)} there; give a program that was compiled for this canvas and prompt length."
            )
        return mask


def tokens_at(compiled: CompiledProgram, stream: Stream, region: str) -> Mask:
    """Return which of the tokens that pass a layer are a region's.

    Args:
        compiled: The program of the forward, with its token layout.
        stream: What passes the layer.
        region: What its groups are called after ``image:`` and ``text:``.

    Returns:
        (S,), or (rows, columns) for image tokens of a U-Net.
    """
    layout = compiled.layout
    if isinstance(layout, PictureLayout):
        if stream.kind == "text":
            return _named(layout.text, region)
        image = layout.image(stream.level)
        return _named(image, region).reshape(image.grid or (-1, 1))
    if stream.kind == "joint":
        place = next(i for i, layer in enumerate(compiled.layers) if layer.name.startswith(f"{stream.block}."))
        joint = compiled.attended[place].queries
        return _named(joint, region)[joint.home]
    assert isinstance(layout, TokenLayout)
    text = layout.tokens("text")
    return _named(layout, region)[text if stream.kind == "text" else ~text]


def _named(layout: TokenLayout, region: str) -> Mask:
    # A text that is not read in this forward is no group of it.
    names = [name for name in (f"image:{region}", f"text:{region}") if name in layout.groups]
    return np.asarray(layout.tokens(tuple(names)))


@contextmanager
def limited(
    loras: Iterable[tuple[str, Lora]],
    regions: Mapping[str, str],
    denoiser: nn.Module,
    others: Sequence[nn.Module],
    stream: Callable[[str], Stream | None],
) -> Iterator[Limits]:
    """Limit the LoRAs that name a region to its tokens, for the length of a ``with`` block.

    Args:
        loras: With the names of their adapters, all loaded.
        regions: For the name of each region, what its groups are called after ``image:`` and ``text:``.
        denoiser: The network that paints.
        others: Networks that LoRAs may change too: text encoders.
        stream: Which tokens pass a layer of the denoiser, by its name; ``None`` if what passes it is no token.

    Raises:
        CapriccioError: If a LoRA cannot be limited in one of its layers.
    """
    limits = Limits()
    try:
        for name, lora in loras:
            if lora.region is None:
                continue
            if any(adapted(other, name) for other in others):
                raise CapriccioError(
                    f"The LoRA {lora.path!r} of the region {lora.region!r} changes the text encoder too, which reads "
                    "whole prompts and knows no regions; give a file without those layers (their keys begin with "
                    "text_encoder or lora_te), or leave out its region."
                )
            for path, layer in adapted(denoiser, name).items():
                passing = stream(path)
                limits.add(_added(path, layer, name, lora, passing), passing or Stream("image"), regions[lora.region])
        yield limits
    finally:
        limits.lift()


def adapted(network: nn.Module, name: str) -> Found:
    """Return the layers of a network that the adapter of that name changes."""
    network = getattr(network, "_orig_mod", network)  # torch.compile wraps
    layers = {path: part for path, part in network.named_modules() if isinstance(part, BaseTunerLayer)}
    return {
        path.replace("._orig_mod", ""): layer
        for path, layer in layers.items()
        if any(name in getattr(layer, kind, ()) for kind in layer.adapter_layer_names)
    }


def _added(path: str, layer: Any, name: str, lora: Lora, passing: Stream | None) -> nn.Module:
    """Return the module whose output is all that a LoRA adds in a layer, once it is sure that it can be masked."""
    base = layer.get_base_layer()
    remedy = "leave out its region, so that it works everywhere"
    if passing is None:
        problem, remedy = (
            "whose output is shared by all tokens (a modulation or an embedding of time)",
            (f"{remedy}, or give a file without such layers"),
        )
    elif type(base) not in (nn.Linear, nn.Conv2d):
        problem, remedy = (
            f"which is a {type(base).__name__}: quantised, not a plain linear layer",
            (f"{remedy}, or open the model without quantisation"),
        )
    elif name not in getattr(layer, "lora_B", ()) or name in layer.lora_variant:
        problem = "where it is no plain LoRA (DoRA, LoKr and the like rescale the whole layer)"
    else:
        return layer.lora_B[name]
    raise CapriccioError(
        f"The LoRA {lora.path!r} of the region {lora.region!r} cannot be limited to it in the layer {path}, "
        f"{problem}; {remedy}."
    )
