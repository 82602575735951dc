"""Attention programs in U-Nets: self-attention of the picture, and cross-attention from the picture to text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

from diffusers.image_processor import IPAdapterMaskProcessor
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from capriccio.attention.slots import StandIn, refuse_mask


class UNetProcessor(StandIn):
    """Runs an attention program in the layers ``attn1`` and ``attn2`` of diffusers' U-Nets."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        ip_adapter_masks: Any = None,
    ) -> Tensor:
        """Attend; names and order of the arguments, and the result, are those of diffusers' processors."""
        self.slot.expect(hidden_states.shape[0])
        has_ip = isinstance(self.inner, IPAdapterAttnProcessor2_0)
        if not self.slot.parts:
            extra = {"ip_adapter_masks": ip_adapter_masks} if has_ip else {}
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **extra)
        refuse_mask(attention_mask)
        text, pictures = encoder_hidden_states if has_ip else (encoder_hidden_states, ())
        states = _tokens(attn, hidden_states, temb)
        self.slot.remember(states)
        query, key, value = _project(attn, states, text)
        held = self.slot.bring(lambda tokens, to_k, to_v: _bank(attn, tokens, to_k, to_v))
        out = self.slot.attend(query, key, value, _core, held).flatten(2, 3).to(query.dtype)
        if has_ip:
            out = self._with_pictures(out, query, pictures, ip_adapter_masks)
        out = attn.to_out[1](attn.to_out[0](out))
        if hidden_states.ndim == 4:
            out = out.transpose(-1, -2).reshape(hidden_states.shape)
        out = out + hidden_states if attn.residual_connection else out
        return out / attn.rescale_output_factor

    def _with_pictures(self, out: Tensor, query: Tensor, pictures: Sequence[Tensor], masks: Any) -> Tensor:
        """Add what the image queries find in the tokens (B, pictures, T, C) of each IP-Adapter, where its mask lets."""
        parts = zip(pictures, self.inner.scale, self.to_k_ip, self.to_v_ip, _masks(masks), strict=False)
        for states, scale, to_k, to_v, mask in parts:
            for tokens, weight, area in _each(states, scale, mask):
                if weight:
                    key, value = (_heads(linear(tokens), query) for linear in (to_k, to_v))
                    seen = _core(query, key, value, None).flatten(2, 3).to(query.dtype)
                    out = out + weight * (seen if area is None else seen * _downsampled(area, seen))
        return out


def _core(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    # PyTorch's own call, as in the stock processor of this family, which no attention backend reaches.
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def _tokens(attn: Attention, states: Tensor, temb: Tensor | None) -> Tensor:
    """Return normalised states as tokens (B, N, C)."""
    if attn.spatial_norm is not None:
        states = attn.spatial_norm(states, temb)
    if states.ndim == 4:
        states = states.flatten(2).transpose(1, 2)
    return states if attn.group_norm is None else attn.group_norm(states.transpose(1, 2)).transpose(1, 2)


def _project(attn: Attention, states: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value (B, tokens, H, D)."""
    if text is not None and attn.norm_cross:
        text = attn.norm_encoder_hidden_states(text)
    if not attn.fused_projections:
        source = states if text is None else text
        flat = attn.to_q(states), attn.to_k(source), attn.to_v(source)
    elif text is None:
        flat = attn.to_qkv(states).chunk(3, dim=-1)
    else:
        flat = attn.to_q(states), *attn.to_kv(text).chunk(2, dim=-1)
    query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in flat)
    query = query if attn.norm_q is None else attn.norm_q(query)
    return query, key if attn.norm_k is None else attn.norm_k(key), value


def _bank(attn: Attention, tokens: Tensor, to_k: Any, to_v: Any) -> tuple[Tensor, Tensor]:
    """Return key and value (rows, T, H, D) of a bank's tokens."""
    if to_k is None and to_v is None and attn.fused_projections:
        key, value = (attn.to_kv(tokens) if attn.is_cross_attention else attn.to_qkv(tokens)).chunk(3, dim=-1)[-2:]
    else:
        key, value = (to_k or attn.to_k)(tokens), (to_v or attn.to_v)(tokens)
    key, value = (x.unflatten(-1, (attn.heads, -1)) for x in (key, value))
    return key if attn.norm_k is None or to_k is not None else attn.norm_k(key), value


def _heads(flat: Tensor, query: Tensor) -> Tensor:
    """Return projected tokens (B, ..., C) as (B, T, H, D), as the queries are."""
    return flat.reshape(query.shape[0], -1, *query.shape[2:])


def _masks(masks: Any) -> Any:
    """Return one mask (1, pictures, height, width), or ``None``, for each IP-Adapter."""
    if masks is None:
        return repeat(None)
    return masks if isinstance(masks, list) else list(masks.unsqueeze(1))


def _each(states: Tensor, scale: Any, mask: Tensor | None) -> Iterator[tuple[Tensor, Any, Tensor | None]]:
    """Yield what is looked at together: all pictures of an adapter, or each by itself where masks part them."""
    if mask is None:
        yield states, scale, None
        return
    scales = scale if isinstance(scale, list) else [scale] * mask.shape[1]
    for picture in range(mask.shape[1]):
        yield states[:, picture], scales[picture], mask[:, picture]


def _downsampled(area: Tensor, seen: Tensor) -> Tensor:
    return IPAdapterMaskProcessor.downsample(area, *seen.shape).to(seen)
