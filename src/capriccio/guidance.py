"""Guidance: several predictions of one denoiser combined into one.

Every method's guidance is a *chain*: a base prediction, and steps from one prediction to another, each scaled:

    guided = p[base] + sum_i scale_i (p[to_i] - p[from_i])

The coefficients of the predictions therefore sum to 1. Classifier-free guidance is one step (Ho and Salimans,
arXiv 2207.12598, eq. 6), InstructPix2Pix two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from capriccio.errors import CapriccioError


@dataclass(frozen=True)
class Branch:
    """One prediction that guidance combines: its role, and the prompt it is conditioned on."""

    role: str
    prompt: str


@dataclass(frozen=True)
class Step:
    """A scaled step from one prediction to another."""

    start: str
    to: str
    scale: float


@dataclass(frozen=True)
class Chain:
    """A guidance equation over roles."""

    base: str
    steps: tuple[Step, ...] = ()

    @property
    def coefficients(self) -> dict[str, float]:
        """The factor of each role's prediction; they sum to 1."""
        factors = {self.base: 1.0}
        for step in self.steps:
            factors[step.to] = factors.get(step.to, 0.0) + step.scale
            factors[step.start] = factors.get(step.start, 0.0) - step.scale
        return factors

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that must be predicted: those whose coefficient is not 0, the last of the chain first."""
        return tuple(role for role, factor in reversed(self.coefficients.items()) if factor != 0)

    def forwards(self, together: bool) -> tuple[tuple[str, ...], ...]:
        """Return which roles share a forward: none, or all of them, the first of the chain first."""
        return (tuple(reversed(self.roles)),) if together else tuple((role,) for role in self.roles)

    def combine(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """Return the guided prediction; a single role's prediction is returned as it is.

        Args:
            predictions: Of every role in `roles`, at least.
        """
        factors = {role: factor for role, factor in self.coefficients.items() if factor != 0}
        if len(factors) < len(self.coefficients):
            # Some predictions drop out: the same sum, told from one that is there.
            base, *others = factors
            steps = tuple(Step(base, role, factors[role]) for role in others)
        else:
            base, steps = self.base, self.steps
        guided = predictions[base]
        for step in steps:
            # In the order of operations of diffusers' pipelines, so that the result is theirs to the last bit.
            guided = guided + step.scale * (predictions[step.to] - predictions[step.start])
        return guided

    def __str__(self) -> str:
        if len(self.roles) == 1:
            return self.roles[0]
        return " + ".join([self.base, *(f"{s.scale:g} ({s.to} - {s.start})" for s in self.steps if s.scale)])


def classifier_free(scale: float) -> Chain:
    """Return ``negative + scale (positive - negative)``; a scale of 1 needs no negative prediction.

    Raises:
        CapriccioError: If the scale is below 1.
    """
    if scale < 1:
        raise CapriccioError(
            f"true_cfg_scale received {scale:g}, but it starts at 1, where there is no guidance; 3 to 5 is usual."
        )
    return Chain("negative", (Step("negative", "positive", scale),))
