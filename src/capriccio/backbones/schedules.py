"""Schedulers of diffusers by the names that people know, and what one of them says of noise, whatever its class.

A latent at a step is ``signal z + noise e``: clean latents z and unit noise e. Flow matching has ``(1 - s, s)``, the
variance-preserving schedulers ``(sqrt(a), sqrt(1 - a))``, those of k-diffusion ``(1, s)``; which one holds is asked of
the scheduler itself.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import diffusers
import torch
from torch import Tensor

from capriccio.errors import CapriccioError, nearest

_KARRAS = {"use_karras_sigmas": True}
_SDE = {"algorithm_type": "sde-dpmsolver++"}

DIFFUSION: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "DDPM": ("DDPMScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", _KARRAS),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", _SDE),
    "DPM++ 2M SDE Karras": ("DPMSolverMultistepScheduler", _SDE | _KARRAS),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler Karras": ("EulerDiscreteScheduler", _KARRAS),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "LCM": ("LCMScheduler", {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "TCD": ("TCDScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}
"""Schedulers of diffusion models: the name in most programs -> class in diffusers and its settings."""

FLOW: dict[str, tuple[str, dict[str, Any]]] = {
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", _SDE),
    "Euler": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": False}),
    "Euler stochastic": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}
"""The same of models that learned flow matching. A stochastic step goes to the clean latents that the model believes in
and draws all its noise anew, so that what went wrong in a step is not carried through the others."""


def names(own: Any) -> tuple[str, ...]:
    """Return what a person may ask for: names, classes, and the class of a pipeline's own scheduler."""
    known = _known(own)
    return tuple(sorted({*known, *(kind for kind, _ in known.values()), type(own).__name__}))


def make(name: str | None, own: Any) -> Any:
    """Return a fresh scheduler of that name for the model whose own scheduler is given; its own one for ``None``.

    Raises:
        CapriccioError: If the name is unknown.
    """
    if name is None or name == type(own).__name__:
        return copy.deepcopy(own)
    known = _known(own)
    kind, settings = known.get(name, (name, {}))
    if kind not in {kind for kind, _ in known.values()}:
        raise CapriccioError(f"scheduler {name!r} is unknown here; {nearest(name, names(own))}")
    if is_flow(own) and not kind.startswith("FlowMatch"):
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        settings = settings | flow | {"flow_shift": own.config.get("shift", 1.0)}
    return getattr(diffusers, kind).from_config(dict(own.config), **settings)


def _known(own: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    return FLOW if is_flow(own) else DIFFUSION


def is_flow(scheduler: Any) -> bool:
    """Whether its model predicts the velocity of a straight path from picture to noise."""
    prediction = getattr(getattr(scheduler, "config", None), "prediction_type", "flow_prediction")
    return prediction == "flow_prediction"


def levels(scheduler: Any, index: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return signal and noise before the step of that index, or (1, 0) after the last, in the dtype of ``like``."""
    if is_flow(scheduler):
        sigma = scheduler.sigmas[index].to(like)
        return 1 - sigma, sigma
    one, zero = like.new_ones(1), like.new_zeros(1)
    if index >= len(scheduler.timesteps):
        return one, zero
    time = scheduler.timesteps[index : index + 1]
    return scheduler.add_noise(one, zero, time), scheduler.add_noise(zero, one, time)


def noised(scheduler: Any, clean: Tensor, noise: Tensor, index: int) -> Tensor:
    """Return clean latents at the noise level before the step of that index."""
    signal, level = levels(scheduler, index, clean)
    return signal * clean + level * noise


def estimate(scheduler: Any, prediction: Tensor, latents: Tensor, index: int) -> Tensor:
    """Return the clean latents that a prediction at the step of that index speaks of.

    Velocities of flow matching, noise, samples, and v = signal e - noise z (Salimans and Ho, arXiv 2202.00512).
    """
    signal, noise = levels(scheduler, index, latents)
    if is_flow(scheduler):
        return latents - noise * prediction
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return (latents - noise * prediction) / signal
    if kind == "sample":
        return prediction
    size = signal**2 + noise**2
    return signal * latents / size - noise * prediction / size.sqrt()


def first(scheduler: Any, noise: Tensor) -> Tensor:
    """Return the latents that a run starts from, where it starts from noise alone."""
    return noise if is_flow(scheduler) else noise * scheduler.init_noise_sigma


def seen(scheduler: Any, latents: Tensor, time: Tensor) -> Tensor:
    """Return the latents as the denoiser is to see them."""
    return scheduler.scale_model_input(latents, time) if hasattr(scheduler, "scale_model_input") else latents


def step(
    scheduler: Any, prediction: Tensor, time: Tensor, latents: Tensor, generators: list[torch.Generator] | None
) -> Tensor:
    """Return the latents after a step; what is drawn in it is drawn from the generators, one for each row."""
    draws = generators is not None and "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": generators} if draws else {}
    return scheduler.step(prediction, time, latents, return_dict=False, **extra)[0]


def begin_at(scheduler: Any, index: int) -> None:
    """Let the run begin at the step of that index."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(index)
