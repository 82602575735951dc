"""Readings of attention weights, gathered over layers and steps."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


class Recorder:
    """The running mean of one tap, for every batch row by itself.

    Rows are known by their role and their order within it, so the forwards of two guidance branches do not mix.
    Sums keep their autograd history, which is what makes a reading differentiable.
    """

    def __init__(self) -> None:
        self.totals: dict[Hashable, Tensor] = {}
        self.counts: dict[Hashable, int] = {}

    def add(self, rows: Sequence[Hashable], reading: Tensor) -> None:
        """Add the reading (B, ...) of one layer and step; ``rows`` names its B rows."""
        for row, value in zip(rows, reading.unbind(0), strict=True):
            self.totals[row] = self.totals[row] + value if row in self.totals else value
            self.counts[row] = self.counts.get(row, 0) + 1

    def mean(self) -> Tensor:
        """Return the mean reading (rows, ...), rows in the order in which they first came."""
        return torch.stack([total / self.counts[row] for row, total in self.totals.items()])

    def clear(self) -> None:
        """Forget everything read so far."""
        self.totals.clear()
        self.counts.clear()
