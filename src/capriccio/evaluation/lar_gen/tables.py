"""How the ways to paint compare: means with intervals, paired differences, and whether the paper's order is ours.

Samples of one subject are not independent, so everything is resampled over subjects (``statistics``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capriccio.evaluation.lar_gen.measures import MEASURES
from capriccio.evaluation.statistics import Interval, mean_interval, paired_gain, rank_correlation, subject_means

Row = Mapping[str, Any]
Reasons = Mapping[tuple[str, str, str], str]
"""Why some weights do not stand as the paper's do, by measure, the lower and the upper variant of the paper."""
NEARLY = 0.95
"""Share of the baseline's CLIP-T that must be left for it to be "nearly kept"; the paper's own Refine leaves 0.966."""

PAPER: Mapping[str, tuple[float, float]] = {
    "inpainting": (0.6868, 0.3037),
    "locate": (0.6860, 0.3101),
    "paint-by-example": (0.7902, 0.2470),
    "assign": (0.7500, 0.3053),
    "assign-refine": (0.7915, 0.2994),
    "subject-only": (0.8339, 0.2607),
}
"""CLIP-I and CLIP-T of the paper's tables 1 and 2, of Stable Diffusion 1.5 on photographs: only their order is ours."""


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        name: In rows.
        title: For people.
        variants: Its rows; those that were not painted are left out.
        orders: By measure, the variants from lowest to highest as the paper has them.
        needs: The variants without which there is no verdict.
        keeps: A measure that the last of ``needs`` must nearly keep from the first.
    """

    name: str
    title: str
    variants: tuple[str, ...]
    orders: Mapping[str, tuple[str, ...]]
    needs: tuple[str, ...]
    keeps: str | None = None


TABLES = (
    Table(
        "table1",
        "Table 1: LAR-Gen and what else paints a subject into a hole",
        (
            "inpainting",
            "paint-by-example",
            "collage",
            "ip-adapter",
            "diptych",
            "assign-refine",
            "subject-only",
            "flux-inpainting",
            "flux-panel",
            "flux-subject-only",
        ),
        {
            "clip_i": ("inpainting", "paint-by-example", "assign-refine", "subject-only"),
            "clip_t": ("paint-by-example", "subject-only", "assign-refine", "inpainting"),
        },
        ("inpainting", "assign-refine", "subject-only"),
    ),
    Table(
        "table2",
        "Table 2: what each part of LAR-Gen is worth",
        ("inpainting", "locate", "assign", "assign-refine"),
        {"clip_i": ("inpainting", "assign", "assign-refine")},
        ("inpainting", "assign", "assign-refine"),
        keeps="clip_t",
    ),
)
NAMES = {"clip_i": "CLIP-I", "clip_t": "CLIP-T"}


@dataclass(frozen=True)
class Verdict:
    """Whether something that the paper shows is seen here.

    Attributes:
        name: What.
        holds: Whether; ``None`` where it cannot be told.
        sentence: What was found, for people.
        why: For each pair that stands other than in the paper, the cause, and what else sets the two apart.
    """

    name: str
    holds: bool | None
    sentence: str
    why: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"{self.name}: {self.sentence}", *(f"    Why: {cause}" for cause in self.why)])


def variants_of(rows: Iterable[Row]) -> list[str]:
    """Return the variants of rows, in the order of first appearance."""
    return list(dict.fromkeys(row["variant"] for row in rows))


def by_subject(rows: Sequence[Row], measure: str, *variants: str) -> list[NDArray[np.float64]]:
    """Return a score of each variant, (subjects, samples), on the samples that all have; NaN fills short rows."""
    scores = [{row["sample"]: row[measure] for row in rows if row["variant"] == variant} for variant in variants]
    subject = {row["sample"]: row["subject"] for row in rows}
    shared = sorted(set.intersection(*map(set, scores)))
    subjects = sorted({subject[sample] for sample in shared})
    members = [[sample for sample in shared if subject[sample] == one] for one in subjects]
    width = max(map(len, members), default=0)
    return [
        np.array([[one[sample] for sample in group] + [np.nan] * (width - len(group)) for group in members])
        for one in scores
    ]


def summary(rows: Sequence[Row], measures: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row a variant: how many samples, and each measure with the ends of its interval."""
    found = []
    for variant in variants_of(rows):
        line: dict[str, Any] = {"variant": variant, "n": sum(row["variant"] == variant for row in rows)}
        for measure in measures:
            interval = mean_interval(by_subject(rows, measure, variant)[0])
            line |= {measure: interval.value, f"{measure}_low": interval.low, f"{measure}_high": interval.high}
        found.append(line)
    return found


def gain(rows: Sequence[Row], measure: str, over: str, variant: str) -> Interval:
    """Return how much higher a variant scores than another, paired within subjects."""
    below, above = by_subject(rows, measure, over, variant)
    return paired_gain(above, below)


def verdicts(rows: Sequence[Row], reasons: Reasons | None = None) -> list[Verdict]:
    """Return what can be said about each table of the paper and about its figure 12.

    Args:
        rows: What was read.
        reasons: What is known of the weights that painted.
    """
    return [*(order_verdict(rows, table, reasons) for table in TABLES), beta_verdict(rows)]


def order_verdict(rows: Sequence[Row], table: Table, reasons: Reasons | None = None) -> Verdict:
    """Return whether neighbours stand as in the paper, and if not, which do not, how sure that is, and why."""
    name, there = table.title.partition(":")[0], set(variants_of(rows))
    told, right, why = [], [], []
    for measure, order in table.orders.items():
        for lower, upper in pairwise(variant for variant in order if variant in there):
            gained = gain(rows, measure, lower, upper)
            right.append(gained.value > 0)
            told.append(_compared(measure, lower, upper, gained))
            if gained.value <= 0:
                why.append(_why(rows, measure, lower, upper, reasons or {}))
    if table.keeps and there.issuperset(table.needs):
        first, last = table.needs[0], table.needs[-1]
        before, after = (float(np.nanmean(score)) for score in by_subject(rows, table.keeps, first, last))
        right.append(after >= NEARLY * before)
        told.append(f"{NAMES[table.keeps]} keeps {after / before:.0%} of {first}'s")
    seen = "; ".join(told)
    missing = [variant for variant in table.variants if variant not in there]
    without = f" Not painted: {', '.join(missing)}." if missing else ""
    if not there.issuperset(table.needs):
        return Verdict(name, None, f"Cannot be told yet{': ' if seen else ''}{seen}.{without}", tuple(why))
    stands = "In" if all(right) else "Not in"
    return Verdict(name, all(right), f"{stands} the paper's order: {seen}.{without}", tuple(why))


def _why(rows: Sequence[Row], measure: str, lower: str, upper: str, reasons: Reasons) -> str:
    """Why a variant is not above another: what is known of these weights, and what else sets their pictures apart."""
    cause = reasons.get((measure, lower, upper), "nothing is known of these weights that would explain it")
    gains = {other: gain(rows, other, lower, upper) for other in MEASURES if other != measure and other in rows[0]}
    apart = [
        f"{NAMES.get(other, other)} {one.value:+.2f} [{one.low:+.2f}, {one.high:+.2f}]"
        for other, one in gains.items()
        if one.low > 0 or one.high < 0
    ]
    ending = f"differ as well in {', '.join(apart)}" if apart else "differ in nothing else that is measured"
    return f"{NAMES[measure]}, {upper} and {lower}: {cause}. Their pictures {ending}."


def _compared(measure: str, lower: str, upper: str, gained: Interval) -> str:
    as_told = gained.value > 0
    sure = gained.low > 0 or gained.high < 0
    words = f"in {NAMES[measure]} {upper} is {'above' if as_told else 'not above'} {lower} by {gained.value:+.3f}"
    doubt = "" if sure else ", which these samples cannot tell from 0"
    return f"{words} [{gained.low:+.3f}, {gained.high:+.3f}]{doubt}"


# --- figure 12 ---------------------------------------------------------------------------------------------------


def beta_of(variant: str) -> float | None:
    """Return the strength of the subject in a variant of the sweep, ``"beta-0.3"``; ``None`` for any other."""
    found = re.fullmatch(r"beta-(\d+(?:\.\d+)?)", variant)
    return float(found.group(1)) if found else None


def sweep(rows: Sequence[Row]) -> list[dict[str, float]]:
    """Return means and intervals of CLIP-I and CLIP-T by beta, rising."""
    lines = summary([row for row in rows if beta_of(row["variant"]) is not None], tuple(NAMES))
    found = [{"beta": beta_of(line.pop("variant")), **line} for line in lines]
    return sorted(found, key=lambda line: line["beta"])


def beta_correlations(rows: Sequence[Row]) -> dict[str, Interval]:
    """Return by measure its rank correlation with beta (Spearman) within subjects, -1 to 1, and its interval."""
    strengths = {beta: variant for variant in variants_of(rows) if (beta := beta_of(variant)) is not None}
    if len(strengths) < 3:
        return {}
    betas, found = sorted(strengths), {}
    for measure in NAMES:
        scores = by_subject(rows, measure, *(strengths[beta] for beta in betas))
        found[measure] = rank_correlation(np.stack([subject_means(score) for score in scores], axis=1))
    return found


def beta_verdict(rows: Sequence[Row]) -> Verdict:
    """Return whether CLIP-I rises and CLIP-T falls with beta."""
    found = beta_correlations(rows)
    if not found:
        return Verdict("Figure 12", None, "Cannot be told, for fewer than three strengths beta were painted.")
    image, text = found["clip_i"], found["clip_t"]
    holds = image.value > 0 > text.value
    shown = [f"{NAMES[name]} {_trend(one)} (rank correlation {one.value:+.2f} [{one.low:+.2f}, {one.high:+.2f}])"
             for name, one in found.items()]  # fmt: skip
    ending = "as in the paper" if holds else "where the paper has CLIP-I rise and CLIP-T fall"
    return Verdict("Figure 12", holds, f"With beta {' and '.join(shown)}, {ending}.")


def _trend(one: Interval) -> str:
    trend = "rises" if one.value > 0 else "falls"
    return trend if one.low > 0 or one.high < 0 else f"{trend}, which these samples cannot tell from chance"


# --- rows for programs -------------------------------------------------------------------------------------------


def benchmark_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the benchmark's rows: ``table1``, ``table2``, ``beta``, ``outside``, ``seam``.

    ``outside`` counts pictures whose pixels outside the mask are the source's; ``drawn`` is left out of it and of
    ``seam``, for nobody painted it.
    """
    scores = {line["variant"]: line for line in summary(rows, (*NAMES, "seam"))}
    columns = ("clip_i", "clip_t", "clip_i_low", "clip_i_high", "clip_t_low", "clip_t_high")
    found: list[dict[str, Any]] = [
        {"name": table.name, "variant": variant} | {column: scores[variant][column] for column in columns}
        for table in TABLES
        for variant in table.variants
        if variant in scores
    ]
    found += [{"name": "beta"} | {key: line[key] for key in ("beta", *NAMES)} for line in sweep(rows)]
    painted = [row for row in rows if row["variant"] != "drawn"]
    found.append({"name": "outside", "cases": len(painted), "equal": sum(row["outside"] == 1 for row in painted)})
    found += [
        {"name": "seam", "variant": variant, "ours": scores[variant]["seam"], "plain": scores["inpainting"]["seam"]}
        for variant in scores
        if variant not in ("inpainting", "drawn") and "inpainting" in scores
    ]
    return found
