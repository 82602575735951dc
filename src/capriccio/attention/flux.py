"""Attention programs in FLUX: one joint sequence of text and image tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxIPAdapterAttnProcessor
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from capriccio.attention.slots import StandIn, refuse_mask


class FluxProcessor(StandIn):
    """Runs an attention program in the double and single blocks of FLUX-like transformers.

    Backend and parallel configuration are those of the processor found, whatever is set meanwhile.
    """

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        ip_hidden_states: Any = None,
        ip_adapter_masks: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Attend; names and order of the arguments, and the results, are those of diffusers' processors."""
        self.slot.expect(hidden_states.shape[0])
        has_ip = isinstance(self.inner, FluxIPAdapterAttnProcessor)
        if not self.slot.parts:
            extra = (ip_hidden_states, ip_adapter_masks) if has_ip else ()
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb, *extra)
        refuse_mask(attention_mask)
        query, key, value = image = _image_stream(attn, hidden_states)
        num_text = 0
        if encoder_hidden_states is not None:
            num_text = encoder_hidden_states.shape[1]
            text = _text_stream(attn, encoder_hidden_states)
            query, key, value = (torch.cat(pair, dim=1) for pair in zip(text, image, strict=True))
        if image_rotary_emb is not None:
            turns = _turns(image_rotary_emb, query.device)
            query, key = (apply_rotary_emb(x, turns, use_real=False) for x in (query, key))
        self.slot.remember(*(() if encoder_hidden_states is None else (encoder_hidden_states,)), hidden_states)
        joint = self.slot.attend(query, key, value, self._core).flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return joint
        text_out = attn.to_add_out(joint[:, :num_text].contiguous())
        image_out = attn.to_out[1](attn.to_out[0](joint[:, num_text:].contiguous()))
        if not has_ip:
            return image_out, text_out
        return image_out, text_out, self._ip_adapters(attn, image[0], ip_hidden_states)

    def _core(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return dispatch_attention_fn(
            query, key, value, attn_mask=mask, backend=self._attention_backend, parallel_config=self._parallel_config
        )

    def _ip_adapters(self, attn: FluxAttention, query: Tensor, tokens: Sequence[Tensor]) -> Tensor:
        """Attend from the image queries, before rotation, to the tokens of each IP-Adapter; sum their outputs."""
        total = torch.zeros_like(query.flatten(2, 3))
        for states, scale, to_k, to_v in zip(tokens, self.inner.scale, self.to_k_ip, self.to_v_ip, strict=False):
            key, value = (linear(states).unflatten(-1, (-1, attn.head_dim)) for linear in (to_k, to_v))
            key, value = (x.reshape(query.shape[0], -1, *x.shape[-2:]) for x in (key, value))
            total = total + scale * self._core(query, key, value, None).flatten(2, 3).to(query.dtype)
        return total

    @property
    def _attention_backend(self) -> Any:
        return self.inner._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.inner._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return self.inner._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self.inner._parallel_config = config


def grow(model: nn.Module, first: int) -> list[RemovableHandle]:
    """Give the image a twin that is a stream of its own from a single block on, until the handles are removed.

    The twin joins the states of the text, behind them, for those go through the same weights as the image there and are
    dropped at the end. It has the positions of the image. Residuals of ControlNets reach the image alone.

    Args:
        model: A FLUX-like transformer.
        first: Index of the single block.
    """
    last: list[Any] = [None, None]  # the positions of a forward, and what they became

    def at_each(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if last[0] is not kwargs["image_rotary_emb"]:
            image = kwargs["hidden_states"].shape[1]
            last[:] = kwargs["image_rotary_emb"], tuple(torch.cat([x, x[-image:]]) for x in kwargs["image_rotary_emb"])
        return args, {**kwargs, "image_rotary_emb": last[1]}

    def at_first(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        both = torch.cat([kwargs["encoder_hidden_states"], kwargs["hidden_states"]], dim=1)
        return at_each(block, args, {**kwargs, "encoder_hidden_states": both})

    whole: Any = getattr(model, "_orig_mod", model)
    blocks = whole.single_transformer_blocks[first:]
    hooks = [at_first, *[at_each] * (len(blocks) - 1)]
    return [block.register_forward_pre_hook(hook, with_kwargs=True) for block, hook in zip(blocks, hooks, strict=True)]


def _turns(angles: tuple[Tensor, Tensor], device: torch.device) -> Tensor:
    """Return the turns of all positions (1, S, D / 2) as complex numbers, given cosines and sines (S, D) of pairs.

    With them diffusers turns states to the same last bit as with its real form, which runs over memory five times.
    """
    cosine, sine = (x[:, ::2].to(device) for x in angles)
    return torch.complex(cosine, sine)[None]


def _image_stream(attn: FluxAttention, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if attn.fused_projections:
        flat = attn.to_qkv(states).chunk(3, dim=-1)
    else:
        flat = attn.to_q(states), attn.to_k(states), attn.to_v(states)
    query, key, value = (x.unflatten(-1, (-1, attn.head_dim)) for x in flat)
    return attn.norm_q(query), attn.norm_k(key), value


def _text_stream(attn: FluxAttention, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if attn.fused_projections:
        flat = attn.to_added_qkv(states).chunk(3, dim=-1)
    else:
        flat = attn.add_q_proj(states), attn.add_k_proj(states), attn.add_v_proj(states)
    query, key, value = (x.unflatten(-1, (-1, attn.head_dim)) for x in flat)
    return attn.norm_added_q(query), attn.norm_added_k(key), value
