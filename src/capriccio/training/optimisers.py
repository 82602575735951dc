"""Muon on the matrices of the blocks, AdamW on everything else."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def muon_and_adamw(
    model: nn.Module,
    muon: Callable[[str, Tensor], bool],
    muon_lr: float = 2e-3,
    adamw_lr: float = 1.2e-3,
    betas: tuple[float, float] = (0.9, 0.99),
) -> list[Optimizer]:
    """Optimisers over the trainable parameters of ``model``.

    Muon (Jordan et al. 2024) orthogonalises the momentum of a matrix; ``match_rms_adamw`` (Liu et al. 2025,
    arXiv 2502.16982) scales its step like AdamW's. Three-dimensional and convolution weights are AdamW's.

    Args:
        model: What learns; parameters that do not require gradients are left out.
        muon: Says for a parameter's name and value whether Muon takes it (only asked for matrices).
        muon_lr: Learning rate of Muon; 2e-3 to 3e-3 on small transformers.
        adamw_lr: Learning rate of AdamW.
        betas: AdamW's.

    Returns:
        One or two optimisers; an empty side is left out.
    """
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (matrices if parameter.dim() == 2 and muon(name, parameter) else others).append(parameter)
    optimisers: list[Optimizer] = []
    if matrices:
        optimisers.append(
            torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        )
    if others:
        optimisers.append(torch.optim.AdamW(others, lr=adamw_lr, betas=betas, weight_decay=0.01))
    return optimisers


def warm_constant_decay(
    progress: float, step: int, warmup: int = 200, decay: float = 0.35, floor: float = 0.02
) -> float:
    """Factor of the learning rate: linear warm-up, constant, over the last ``decay`` of the way linear to ``floor``.

    Args:
        progress: How much of the training is done, 0 to 1.
        step: Steps done so far.
    """
    warm = min(1.0, (step + 1) / warmup)
    remaining = min(1.0, (1.0 - progress) / decay) if decay else 1.0
    return warm * (floor + (1.0 - floor) * max(0.0, remaining))
