"""Training losses as pure functions: tensors in, a scalar tensor out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def flow_matching_pair(clean: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy sample and velocity target of rectified flow.

    x_sigma = (1 - sigma) x_0 + sigma n and v = n - x_0 (Liu et al. 2022, arXiv 2209.03003, Eq. 1; FLUX's convention).

    Args:
        clean: Latents x_0, any shape (B, ...), scaled.
        noise: Standard normal, same shape.
        sigma: (B,) in [0, 1].

    Returns:
        (x_sigma, v), both of the shape of ``clean``.
    """
    weight = sigma.view(-1, *[1] * (clean.dim() - 1))
    return (1 - weight) * clean + weight * noise, noise - clean


def diffused(clean: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """Noisy sample of diffusion, sqrt(a) x_0 + sqrt(1 - a) n (Ho et al. 2020, arXiv 2006.11239, Eq. 4).

    Args:
        clean: Latents x_0, any shape (B, ...), scaled.
        noise: Standard normal, same shape.
        alpha: (B,), the share of the picture's variance that is left at each one's time, in [0, 1].
    """
    share = alpha.view(-1, *[1] * (clean.dim() - 1))
    return share.sqrt() * clean + (1 - share).sqrt() * noise


def as_diffused(noisy: Tensor, sigma: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
    """The sample of diffusion that has as much noise beside its signal as one of rectified flow, and its time.

    x_sigma / sqrt((1 - sigma)^2 + sigma^2) is sqrt(a) x_0 + sqrt(1 - a) n with a / (1 - a) = ((1 - sigma) / sigma)^2;
    between the times of a U-Net, whose embedding knows fractions, the logarithm of that ratio is interpolated.

    Args:
        noisy: x_sigma, any shape (B, ...).
        sigma: (B,), above 0 and below 1.
        alphas: (T,), the share of the picture's variance that is left at each time, falling.

    Returns:
        (sample, times): the shape of ``noisy``, and (B,) in [0, T - 1]; levels beyond them get the nearest.
    """
    levels = torch.log((1 - alphas) / alphas)
    wanted = 2 * torch.log(sigma / (1 - sigma))
    after = torch.searchsorted(levels, wanted).clamp(1, len(levels) - 1)
    share = (wanted - levels[after - 1]) / (levels[after] - levels[after - 1])
    times = after - 1 + share.clamp(0, 1)
    length = torch.hypot(1 - sigma, sigma)
    return noisy / length.view(-1, *[1] * (noisy.dim() - 1)), times


def velocity_of_noise(noisy: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Velocity n - x_0 of rectified flow, for x_sigma and the noise n in it: (n - x_sigma) / (1 - sigma).

    Args:
        noisy: x_sigma, any shape (B, ...).
        noise: The same shape.
        sigma: (B,), below 1.
    """
    return (noise - noisy) / (1 - sigma).view(-1, *[1] * (noisy.dim() - 1))


def noise_weight(alpha: Tensor, most: float = 3.0, snr_cap: float = 25.0) -> Tensor:
    """How much the squared error of predicted noise counts at each time, such that no stage of painting is neglected.

    Bare, the loss forgets the early steps, which choose places and colours: there nearly all of the sample is noise and
    easy to tell. Velocity's loss, (1 + 1 / SNR) times as much (Salimans and Ho 2022, arXiv 2202.00512, App. D), up to
    ``most`` times, brings them back; min(SNR, cap) / SNR (Hang et al. 2023, arXiv 2303.09556, Eq. 8) keeps the last
    steps, whose error nobody sees, from drowning the rest. With 10 and 5 a small U-Net learned colours and places, and
    hardly any shapes, which the middle steps choose.

    Args:
        alpha: (...,), the share of the picture's variance that is left, above 0 and below 1.
        most: Bound of the first factor.
        snr_cap: Signal to noise from which the second factor falls below 1.
    """
    snr = alpha / (1 - alpha)
    return (1 / alpha).clamp(max=most) * (snr_cap / snr).clamp(max=1)


def logit_normal(count: int, mean: float | Tensor, generator: torch.Generator, deviation: float = 1.0) -> Tensor:
    """Noise levels (count,), the sigmoid of a normal (Esser et al. 2024, arXiv 2403.03206, Eq. 19).

    With a deviation of 1.6 they are spread nearly evenly over (0, 1).

    Args:
        count: How many.
        mean: Of the normal; or one for each level, (count,).
        generator: Of the CPU.
        deviation: Of the normal.
    """
    return torch.sigmoid(deviation * torch.randn(count, generator=generator) + mean)


def masked_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of ``values`` where ``weight`` (broadcastable) says so; zero weight everywhere gives 0."""
    weight = weight.expand_as(values)
    return (values * weight).sum() / weight.sum().clamp_min(1e-8)


def gradient_l1(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the derivatives across and down of two pictures (B, C, H, W)."""
    across = (image.diff(dim=-1) - target.diff(dim=-1)).abs().mean()
    down = (image.diff(dim=-2) - target.diff(dim=-2)).abs().mean()
    return across + down


def pyramid_l1(image: Tensor, target: Tensor, scales: tuple[int, ...] = (1, 4, 8)) -> Tensor:
    """Mean absolute difference of pictures (B, C, H, W), summed over pooled scales (factors of H and W)."""
    difference = image - target
    return sum((F.avg_pool2d(difference, scale).abs().mean() for scale in scales), start=difference.new_zeros(()))


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL of N(mean, exp(log_variance)) from N(0, 1), averaged over numbers (Kingma and Welling 2013, Appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def contrastive(left: Tensor, right: Tensor, scale: Tensor | float) -> Tensor:
    """Symmetric InfoNCE of matching rows (Radford et al. 2021, arXiv 2103.00020, Fig. 3).

    Args:
        left: (B, D), unit norm.
        right: (B, D), unit norm; row i belongs to row i of ``left``.
        scale: Multiplies the cosines (inverse temperature).
    """
    logits = scale * left @ right.T
    labels = torch.arange(len(left), device=left.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
