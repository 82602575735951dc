"""Means with intervals, resampled over subjects: scenes of one subject are not independent of each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap, spearmanr

_RESAMPLES = 4999


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(scores: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Return the mean of a score with its percentile bootstrap interval over subjects.

    Args:
        scores: One row a subject, (S, scenes) or (S,); readings that do not exist are NaN and left out.
        confidence: The mass of the interval, in (0, 1).
        seed: Fixes the resamples.
    """
    subjects = subject_means(scores)
    if subjects.size < 2 or np.ptp(subjects) == 0:  # nothing to resample: every resample has the same mean
        mean = float(subjects.mean())
        return Interval(mean, mean, mean)
    result = bootstrap(
        (subjects,),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Interval(float(subjects.mean()), *(float(end) for end in result.confidence_interval))


def paired_gain(scores: ArrayLike, baseline: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Return how much higher a score is than the baseline's on the same subjects.

    The bootstrap is paired: a resample draws subjects, and with each subject both of its scores, which for a difference
    of means is the bootstrap of the differences within subjects.

    Args:
        scores: One row a subject, (S, scenes) or (S,).
        baseline: The same subjects in the same order; the number of scenes may differ.
        confidence: The mass of the interval, in (0, 1).
        seed: Fixes the resamples.
    """
    return mean_interval(subject_means(scores) - subject_means(baseline), confidence, seed)


def rank_correlation(scores: ArrayLike) -> Interval:
    """Return how surely scores rise from setting to setting: Spearman's within each subject, -1 to 1, their mean.

    Args:
        scores: One row a subject, one column a setting, in their order, (S, settings); a subject that has the same
            score under all of them counts 0.
    """
    table = np.asarray(scores, dtype=np.float64)
    order = np.arange(table.shape[1])
    return mean_interval([spearmanr(order, row).statistic if np.ptp(row) else 0.0 for row in table])


def subject_means(scores: ArrayLike) -> NDArray[np.float64]:
    """Return the mean of each row, (S, scenes) or (S,) -> (S,), NaN left out."""
    table = np.asarray(scores, dtype=np.float64)
    return np.nanmean(table.reshape(len(table), -1), axis=1)
