"""Published forms of attention, re-stated plainly on diffusers' blocks: what compiled ones are compared with and timed.

They are literal on purpose: one dense mask, every projection where the authors compute it, nothing shared.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Streams = tuple[Tensor, ...]


def regional_mask(lengths: list[int], masks: Tensor) -> Tensor:
    """Return who sees whom in Regional Prompting: booleans (S, S) over the texts of the regions, then the image.

    Text sees itself and its region, a region sees its text and itself, tokens of no region see each other (arXiv
    2411.02395, section 3.2; overlapping regions see both).

    Args:
        lengths: Text tokens of each of R regions.
        masks: Which image tokens each region covers, booleans (R, N).
    """
    text = torch.block_diag(*(torch.ones(length, length) for length in lengths)).bool()
    to_image = torch.cat([mask.expand(length, -1) for mask, length in zip(masks, lengths, strict=True)])
    inside = (masks.T.float() @ masks.float()) > 0
    nowhere = ~masks.any(0)
    image = inside | (nowhere[:, None] & nowhere[None, :])
    return torch.cat([torch.cat([text, to_image], 1), torch.cat([to_image.T, image], 1)])


def regional_flux(
    model: Any,
    inputs: dict[str, Any],
    regions: Tensor,
    mask: Tensor,
    base_ratio: float,
    intervals: tuple[int, int] = (1, 1),
) -> Tensor:
    """One injected forward of Regional Prompting on FLUX (arXiv 2411.02395), as its authors compute it.

    Args:
        model: A ``FluxTransformer2DModel``.
        inputs: Of its forward; the text in them is the base prompt.
        regions: Texts of all regions, one after the other, (B, R T, D).
        mask: From `regional_mask`.
        base_ratio: Weight of the pass under the base prompt.
        intervals: Every how many double and single blocks the mask is in force; elsewhere all regions see each other.

    Returns:
        The prediction (B, N, C).
    """
    image = model.x_embedder(inputs["hidden_states"])
    levels = [inputs["timestep"], *([] if inputs.get("guidance") is None else [inputs["guidance"]])]
    temb = model.time_text_embed(*(level.to(image.dtype) * 1000 for level in levels), inputs["pooled_projections"])
    base, regional = model.context_embedder(inputs["encoder_hidden_states"]), model.context_embedder(regions)
    turns = {}
    for name, text in (("base", base), ("regional", regional)):
        ids = torch.cat([inputs["txt_ids"].new_zeros(text.shape[1], 3), inputs["img_ids"]])
        turns[name] = model.pos_embed(ids)
    for index, block in enumerate(model.transformer_blocks):
        own = mask if index % intervals[0] == 0 else None
        image, base, regional = _double(block, image, base, regional, temb, turns, own, base_ratio)
    base, regional = torch.cat([base, image], 1), torch.cat([regional, image], 1)
    for index, block in enumerate(model.single_transformer_blocks):
        own = mask if index % intervals[1] == 0 else None
        base, regional = _single(block, base, regional, image.shape[1], temb, turns, own, base_ratio)
    found = model.norm_out(regional[:, -image.shape[1] :], temb)
    return model.proj_out(found)


def _double(
    block: Any,
    image: Tensor,
    base: Tensor,
    regional: Tensor,
    temb: Tensor,
    turns: dict[str, Any],
    mask: Tensor | None,
    ratio: float,
) -> Streams:
    normed, gate, *inner = block.norm1(image, emb=temb)
    found, texts = [], []
    for text, name, own in ((base, "base", None), (regional, "regional", mask)):
        normed_text, text_gate, *text_inner = block.norm1_context(text, emb=temb)
        seen, said = _joint(block.attn, normed, normed_text, turns[name], own)
        found.append(seen)
        text = text + text_gate.unsqueeze(1) * said
        texts.append(_feed(text, block.norm2_context, block.ff_context, *text_inner))
    image = image + gate.unsqueeze(1) * ((1 - ratio) * found[1] + ratio * found[0])
    return _feed(image, block.norm2, block.ff, *inner), *texts


def _feed(states: Tensor, norm: Any, inner: Any, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
    return states + gate.unsqueeze(1) * inner(norm(states) * (1 + scale[:, None]) + shift[:, None])


def _joint(attn: Any, image: Tensor, text: Tensor, turns: Any, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    of_image = _heads(attn, image, attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k)
    added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj, attn.norm_added_q, attn.norm_added_k)
    of_text = _heads(attn, text, *added)
    query, key, value = (torch.cat(pair, 1) for pair in zip(of_text, of_image, strict=True))
    out = _attend(query, key, value, turns, mask)
    said, seen = out[:, : text.shape[1]], out[:, text.shape[1] :]
    return attn.to_out[0](seen), attn.to_add_out(said)


def _single(
    block: Any,
    base: Tensor,
    regional: Tensor,
    image: int,
    temb: Tensor,
    turns: dict[str, Any],
    mask: Tensor | None,
    ratio: float,
) -> Streams:
    attn, parts = block.attn, []
    for states, name, own in ((base, "base", None), (regional, "regional", mask)):
        normed, gate = block.norm(states, emb=temb)
        inner = block.act_mlp(block.proj_mlp(normed))
        query, key, value = _heads(attn, normed, attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k)
        parts.append((states, _attend(query, key, value, turns[name], own), inner, gate))
    seen, twin = parts[1][1], parts[0][1]
    seen[:, -image:] = (1 - ratio) * seen[:, -image:] + ratio * twin[:, -image:]
    return tuple(s + gate.unsqueeze(1) * block.proj_out(torch.cat([a, inner], 2)) for s, a, inner, gate in parts)


def _heads(attn: Any, states: Tensor, to_q: Any, to_k: Any, to_v: Any, norm_q: Any, norm_k: Any) -> Streams:
    query, key, value = (linear(states).unflatten(-1, (attn.heads, -1)) for linear in (to_q, to_k, to_v))
    return norm_q(query), norm_k(key), value


def _attend(query: Tensor, key: Tensor, value: Tensor, turns: Any, mask: Tensor | None) -> Tensor:
    query, key = _turned(query, turns), _turned(key, turns)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


def _turned(states: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs of channels of (B, S, H, D) by the angles of their positions (S, D)."""
    cosine, sine = (x[None, :, None].to(states.device) for x in turns)
    real, imaginary = states.unflatten(-1, (-1, 2)).unbind(-1)
    across = torch.stack([-imaginary, real], -1).flatten(-2)
    return (states.float() * cosine + across.float() * sine).to(states.dtype)
