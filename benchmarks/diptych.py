"""Diptych Prompting and its ablations on held-out subjects, against painting the same captions without the reference.

    python benchmarks/diptych.py                                        a table
    python benchmarks/diptych.py --json                                 one row a line: name, variant, value, low, high
    python benchmarks/diptych.py --save benchmarks/results/diptych.json and a file with its recipe
    python benchmarks/diptych.py --quick                                8 subjects, to see that it works

64 held-out subjects x 4 scenes for ``text_only`` and ``diptych``; the ablations change one factor of ``diptych`` and
paint the first scene of each subject. Intervals are 95 % bootstrap intervals over subjects, ``gain`` is the paired
difference to the variant ``versus`` on the same pictures. A run that is interrupted goes on where it stopped: the
scores of a variant are kept until weights, versions or protocol change.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capriccio import assets
from capriccio.evaluation import reports
from capriccio.evaluation.cases import asks, held_out_cases
from capriccio.evaluation.judge import Judge, Score
from capriccio.evaluation.statistics import mean_interval, paired_gain
from capriccio.evaluation.variants import DIPTYCH, TEXT_ONLY, Variant, paint
from capriccio.methods.diptych import Options
from capriccio.pictures import write_whole
from capriccio.studio import Studio

CACHE = Path(__file__).parent / ".cache" / "diptych"
READINGS = tuple(field.name for field in fields(Score))

MAIN = (TEXT_ONLY, DIPTYCH)
# One factor at a time.
ABLATIONS = (
    *(Variant(f"lambda_{weight}", options={"attention_weight": weight}) for weight in (1.0, 1.1, 1.2, 1.3, 1.4, 1.5)),
    Variant("keep_background", remove_background=False),
    *(Variant(f"engine_{engine}", options={"engine": engine}) for engine in ("controlnet", "fill", "hold")),
)


@dataclass(frozen=True)
class Protocol:
    """How much is painted, and how."""

    subjects: int = 64
    scenes: int = 4
    ablation_scenes: int = 1
    steps: int = 16
    seed: int = 0
    batch: int = 16


class Table:
    """Scores (subjects, scenes) by variant and reading, painted when first asked for and kept on disk."""

    def __init__(self, protocol: Protocol, studio: Studio) -> None:
        self.protocol, self.studio = protocol, studio
        self.cases = held_out_cases(protocol.subjects, protocol.scenes, protocol.seed)
        self.judge = Judge(self.cases)
        self.folder = CACHE / fingerprint(protocol)
        self.same = {f"lambda_{Options().attention_weight}", f"engine_{studio.backbone.engines[0]}"}

    def scores(self, variant: Variant, scenes: int) -> Mapping[str, NDArray[np.float64]]:
        """Return the scores of the first ``scenes`` of every subject, by reading."""
        if variant.name in self.same:  # one value of each ablation is that of diptych itself
            return {name: values[:, :scenes] for name, values in self.scores(DIPTYCH, self.protocol.scenes).items()}
        place = self.folder / f"{variant.name}-{scenes}.json"
        if not place.exists():
            scores = [asdict(score) for score in self._paint(variant, scenes)]
            write_whole(place, json.dumps(scores).encode())
        found = json.loads(place.read_text())
        return {name: np.array([score[name] for score in found]).reshape(-1, scenes) for name in READINGS}

    def _paint(self, variant: Variant, scenes: int) -> list[Score]:
        wanted = [ask for ask in asks(self.cases) if ask.scene < scenes]
        told = Progress(variant.name, len(wanted))
        painted = paint(self.studio, wanted, variant, steps=self.protocol.steps, batch=self.protocol.batch, told=told)
        return self.judge.score(wanted, painted)


class Progress:
    """Says on the standard error how many pictures of a variant are done, and how long one takes."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done, self.started = name, total, 0, time.monotonic()

    def __call__(self, more: int) -> None:
        self.done += more
        each = (time.monotonic() - self.started) / self.done
        reports.note(f"{self.name}: {self.done} of {self.total} pictures, {each:.2f} s each")


def rows(table: Table) -> list[dict[str, Any]]:
    """Return the table: the two main variants in full, then each ablation against ``diptych`` on the same pictures."""
    scenes, fewer = table.protocol.scenes, table.protocol.ablation_scenes
    text_only, diptych = (table.scores(variant, scenes) for variant in MAIN)
    same = {name: values[:, :fewer] for name, values in diptych.items()}
    result = describe("text_only", text_only) + describe("diptych", diptych, "text_only", text_only)
    for variant in ABLATIONS:
        engine = variant.options.get("engine")
        if engine is not None and engine not in table.studio.backbone.engines:
            reports.note(f"{variant.name}: left out, the miniature has no weights for this engine yet")
            continue
        result += describe(variant.name, table.scores(variant, fewer), "diptych", same)
    return result


def describe(
    variant: str,
    scores: Mapping[str, NDArray[np.float64]],
    versus: str | None = None,
    baseline: Mapping[str, NDArray[np.float64]] | None = None,
) -> list[dict[str, Any]]:
    """Return one row a reading: mean and interval, number of pictures, and the paired gain over the baseline."""
    found = []
    for name, values in scores.items():
        row = {"name": name, "variant": variant, **asdict(mean_interval(values)), "n": values.size}
        if baseline is not None:
            gain = paired_gain(values, baseline[name])
            row |= {"versus": versus, "gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}
        found.append(row)
    return found


def fingerprint(protocol: Protocol) -> str:
    """Return a name for everything that decides the scores: protocol, versions, weights."""
    digest = hashlib.sha256(json.dumps([asdict(protocol), reports.recipe()["versions"]]).encode())
    for path in sorted(assets.path("miniature").rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--save", metavar="FILE", help="also write rows and recipe to this JSON file")
    parser.add_argument("--quick", action="store_true", help="8 subjects x 1 scene")
    parser.add_argument("--subjects", type=int, default=Protocol.subjects)
    parser.add_argument("--scenes", type=int, default=Protocol.scenes, help="scenes a subject of the main variants")
    parser.add_argument("--ablation-scenes", type=int, default=Protocol.ablation_scenes, help="and for the ablations")
    parser.add_argument("--steps", type=int, default=Protocol.steps, help="denoising steps")
    parser.add_argument("--batch", type=int, default=Protocol.batch, help="pictures a batch")
    return parser.parse_args()


def main() -> None:
    """Paint, judge, print, save."""
    chosen = parse()
    subjects, scenes = (8, 1) if chosen.quick else (chosen.subjects, chosen.scenes)
    fewer = min(scenes, chosen.ablation_scenes)
    protocol = Protocol(subjects, scenes, fewer, chosen.steps, batch=chosen.batch)
    found = rows(Table(protocol, Studio.open("miniature")))
    reports.show(found, "Diptych Prompting on held-out subjects", chosen.json)
    if chosen.save:
        reports.save(chosen.save, found, reports.recipe(**asdict(protocol), interval="95 % bootstrap over subjects"))


if __name__ == "__main__":
    main()
