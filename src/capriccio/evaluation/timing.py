"""Times side by side: what is compared runs in turn, so that other work on the machine falls on all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def in_turn(functions: Sequence[Callable[[], object]], rounds: int, device: str = "cpu") -> list[list[float]]:
    """Return seconds for each function and round, measured in turn after one warm-up."""
    times: list[list[float]] = [[] for _ in functions]
    for index in range(rounds + 1):
        for function, own in zip(functions, times, strict=True):
            synchronise(device)
            start = time.perf_counter()
            function()
            synchronise(device)
            if index:
                own.append(time.perf_counter() - start)
    return times


def synchronise(device: str) -> None:
    """Wait for the device to finish."""
    if device == "cuda":
        torch.cuda.synchronize()


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median of the ratios of neighbouring measurements."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
