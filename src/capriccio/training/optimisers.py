"""Muon on the matrices and kernels of the blocks, AdamW on everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, distributed, nn
from torch.optim import AdamW, Optimizer

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def quick_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """What matrix products are quickest in: bfloat16 on GPUs and on CPUs with its instructions, else float32."""
    if torch.device(device).type != "cpu":
        return torch.bfloat16
    can = torch.cpu.get_capabilities()
    return torch.bfloat16 if can.get("avx512_bf16") or can.get("amx_bf16") else torch.float32


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Replace the singular values of matrices (n, rows, columns) by values near 1.

    Quintic Newton-Schulz iteration with the coefficients of Jordan et al. 2024 (Muon).
    """
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp_min(1e-7)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(Optimizer):
    """Momentum orthogonalised by Newton-Schulz (Jordan et al. 2024), scaled to AdamW's size (arXiv 2502.16982, Eq. 4).

    PyTorch's own takes matrices only and always computes in bfloat16, which CPUs without it emulate five times slower
    than float32. This one takes convolution kernels too (flattened), computes in bfloat16 only where that is quick,
    and shares the work among the processes of a run.

    Args:
        params: Matrices and kernels.
        lr: Learning rate.
        momentum: Of the running mean of gradients.
        weight_decay: Decoupled.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step with the gradients at hand."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            directions = _shared([self._momentum(p, p.grad, group["momentum"]) for p in parameters])
            for parameter, direction in zip(parameters, directions, strict=True):
                size = 0.2 * max(direction.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction.view_as(parameter), alpha=-group["lr"] * size)

    def _momentum(self, parameter: nn.Parameter, gradient: Tensor, momentum: float) -> Tensor:
        """Nesterov's mean of the gradients, as a matrix."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum"], momentum).flatten(1)


def _shared(matrices: list[Tensor]) -> list[Tensor]:
    """Orthogonalise matrices, those of one shape together, each process its share."""
    processes = distributed.get_world_size() if distributed.is_initialized() else 1
    rank = distributed.get_rank() if processes > 1 else 0
    results = [torch.zeros_like(matrix) for matrix in matrices]
    shapes: dict[torch.Size, list[int]] = {}
    for index in range(rank, len(matrices), processes):
        shapes.setdefault(matrices[index].shape, []).append(index)
    for indices in shapes.values():
        stack = torch.stack([matrices[index] for index in indices])
        stack = orthogonalise(stack.to(quick_dtype(stack.device))).to(stack.dtype)
        for index, result in zip(indices, stack, strict=True):
            results[index] = result.contiguous()
    if processes > 1:
        flat = torch.cat([result.flatten() for result in results])
        distributed.all_reduce(flat)
        chunks = flat.split([matrix.numel() for matrix in matrices])
        return [chunk.view(matrix.shape) for chunk, matrix in zip(chunks, matrices, strict=True)]
    return results


def muon_and_adamw(
    model: nn.Module,
    muon: Callable[[str, Tensor], bool],
    muon_lr: float = 2e-3,
    adamw_lr: float = 1.2e-3,
    betas: tuple[float, float] = (0.9, 0.99),
) -> list[Optimizer]:
    """Optimisers over the trainable parameters of ``model``.

    Args:
        model: What learns; parameters that do not require gradients are left out.
        muon: Says for a parameter's name and value whether Muon takes it (not asked for vectors).
        muon_lr: Learning rate of Muon; 2e-3 to 3e-3 on small transformers.
        adamw_lr: Learning rate of AdamW.
        betas: AdamW's.

    Returns:
        One or two optimisers; an empty side is left out.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (matrices if parameter.dim() > 1 and muon(name, parameter) else others).append(parameter)
    optimisers: list[Optimizer] = [Muon(matrices, lr=muon_lr)] if matrices else []
    if others:
        optimisers.append(AdamW(others, lr=adamw_lr, betas=betas, weight_decay=0.01))
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
