"""Many hands: results in order, on any number of workers, and none left behind."""

from __future__ import annotations

import os
from functools import partial

import pytest

from capriccio.training.hands import spare_hands, spread


def raised(power: int, number: int) -> tuple[int, int]:
    return number**power, os.getpid()


def refused(number: int) -> int:
    raise ValueError(f"{number} was refused")


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order(workers: int) -> None:
    squares, makers = zip(*spread(partial(raised, 2), range(5), workers), strict=True)
    assert squares == (0, 1, 4, 9, 16)
    assert (os.getpid() in makers) is (workers == 0)


def test_a_failure_is_told_here() -> None:
    with pytest.raises(ValueError, match="0 was refused"):
        list(spread(refused, range(3), 2))


def test_a_cpu_learns_on_all_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert spare_hands("cpu", 16) == spare_hands("cpu", 1) == 0
    assert spare_hands("gpu", 1) == 15
    assert spare_hands("gpu", 2) == 7
