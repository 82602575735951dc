"""Many hands: the same small job on every core, where a machine has cores to spare."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def spare_hands(budget: str, processes: int) -> int:
    """How many workers each of so many training processes may have.

    On a ``"cpu"`` budget they learn on every core, so there are none to spare; beside a ``"gpu"`` nearly all are.
    """
    return (os.cpu_count() or 1) // processes - 1 if budget == "gpu" else 0


def spread(job: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Do a job for every item, on so many workers, and yield the results in the order of the items.

    Args:
        job: A function of a module (or a partial of one), which a new process can import.
        items: What each call is given; each must be picklable, results too (arrays rather than tensors, which would
            take a file descriptor each).
        workers: Processes; fewer than two do everything here, one after the other.
    """
    if workers < 2:
        yield from map(job, items)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _single_threaded)
    try:
        yield from pool.map(job, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _single_threaded() -> None:
    torch.set_num_threads(1)
