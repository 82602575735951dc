"""Two subjects in two places, each from its own picture: one after the other, or on one canvas (ours, an experiment).

    python benchmarks/joint.py --json                                   one row a line
    python benchmarks/joint.py --save benchmarks/results/joint.json     and a file with its recipe
    python benchmarks/joint.py --sheet joint.png                        and what was painted, a pair a row

Rows: ``{name: "identity" | "right" | "bled" | "seconds", variant, value, low, high, gain, n}``, on the miniature and
its Fill, means over the two places of a pair: cosine of the place and the reference in the reader's embedding; kind and
main colour read as the subject's own; one of them read as the other's; and seconds a pair. ``gain`` is the paired
difference to the paper's way. The two of a pair differ in kind and main colour, and were never trained on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image

from capriccio.evaluation import reports
from capriccio.evaluation.bleeding import bled
from capriccio.evaluation.cases import Case, held_out_cases, references
from capriccio.evaluation.metrics import to_pictures, to_pixels
from capriccio.evaluation.statistics import mean_interval, paired_gain
from capriccio.evaluation.targets import half_view
from capriccio.perception.reader import read
from capriccio.scene import Region, Scene, Subject
from capriccio.studio import Studio
from capriccio.world.captions import backdrop_phrase

PLACES = (0.0, 0.25, 0.5, 1.0), (0.5, 0.25, 1.0, 1.0)
VARIANTS: dict[str, dict[str, Any] | None] = {
    "in turns": None,
    "joint, stack": {"arrangement": "stack"},
    "joint, row": {"arrangement": "row"},
    "joint, stack, not apart": {"arrangement": "stack", "apart": False},
    "joint, stack, neutral": {"arrangement": "stack", "attention_weight": 1.0, "apart": False},
}
"""The options of ``diptych-joint``, or nothing for the paper's way."""
Pair = tuple[Case, Case]


def pairs(count: int, seed: int = 11) -> list[Pair]:
    """Return pairs of held-out subjects that kind and main colour tell apart."""
    cases = held_out_cases(4 * count, 1, seed)
    found = list(zip(cases[::2], cases[1::2], strict=True))
    told = [(a, b) for a, b in found if a.name != b.name and a.identity.main != b.identity.main]
    return told[:count]


def scene_of(pair: Pair, pictures: Sequence[Image.Image], number: int, options: dict[str, Any] | None) -> Scene:
    """Return what is asked for: the two subjects side by side on the backdrop of the first."""
    names, where = [case.name for case in pair], backdrop_phrase(pair[0].backdrops[0], None)
    own = {} if options is None else {"by": "diptych-joint", "options": options}
    subjects = [Subject(picture, name=name, **own) for picture, name in zip(pictures, names, strict=True)]
    regions = [
        Region(f"a {{{name}}} {where}", box, **({} if options is None else {"by": "diptych-joint"}))
        for name, box in zip(names, PLACES, strict=True)
    ]
    return Scene(f"a {{{names[0]}}} and a {{{names[1]}}} {where}", [*subjects, *regions], seed=number)


def scores(found: Sequence[Pair], painted: Sequence[Image.Image]) -> dict[str, list[float]]:
    """Return what the reader says of each pair."""
    pixels, looks = to_pixels(painted), [[_looks(case) for case in pair] for pair in found]
    rows: dict[str, list[Any]] = {"identity": [], "right": [], "bled": []}
    for side in (0, 1):
        seen = read(half_view(pixels, side))
        own = read(references([pair[side] for pair in found])[0]).identity
        names = [{"kind": kind, "colour": main} for kind, main in zip(seen.kind, seen.main, strict=True)]
        rows["identity"].append((seen.identity * own).sum(-1).tolist())
        rows["right"].append([float(s == look[side]) for s, look in zip(names, looks, strict=True)])
        rows["bled"].append(
            [float(bool(bled(s, look[side], look[1 - side]))) for s, look in zip(names, looks, strict=True)]
        )
    return {name: np.mean(values, axis=0).tolist() for name, values in rows.items()}


def _looks(case: Case) -> dict[str, str]:
    return {"kind": case.identity.kind, "colour": case.identity.main}


def measure(count: int, steps: int) -> tuple[list[dict[str, Any]], list[list[Image.Image]]]:
    """Paint every pair in every way; return rows, and the pictures by pair behind its references."""
    studio, found = Studio.open("miniature"), pairs(count)
    given = [to_pictures(references(pair)[0]) for pair in found]
    sheet, rows, first = [list(pictures) for pictures in given], [], {}
    for variant, options in VARIANTS.items():
        begun, painted = time.perf_counter(), []
        for number, (pair, pictures) in enumerate(zip(found, given, strict=True)):
            scene = scene_of(pair, pictures, number, options).but(num_inference_steps=steps)
            painted.append(studio.paint(scene).images[0])
            reports.note(f"{variant}: {number + 1} of {len(found)}")
        seconds = (time.perf_counter() - begun) / len(found)
        for line, picture in zip(sheet, painted, strict=True):
            line.append(picture)
        for name, values in scores(found, painted).items():
            row = {"name": name, "variant": variant} | asdict(mean_interval(values))
            if first.setdefault(name, {}):
                row["gain"] = str(paired_gain(values, next(iter(first[name].values()))))
            first[name].setdefault(variant, values)
            rows.append(row | {"n": len(found)})
        rows.append({"name": "seconds", "variant": variant, "value": seconds, "n": len(found)})
    return rows, sheet


def save_sheet(sheet: Sequence[Sequence[Image.Image]], path: str) -> None:
    """Save pictures in rows."""
    size = sheet[0][0].size
    page = Image.new("RGB", (len(sheet[0]) * size[0], len(sheet) * size[1]))
    for row, line in enumerate(sheet):
        for column, picture in enumerate(line):
            page.paste(picture, (column * size[0], row * size[1]))
    page.save(path)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=8, help="pairs")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save")
    parser.add_argument("--sheet")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows, sheet = measure(given.count, given.steps)
    if given.sheet:
        save_sheet(sheet, given.sheet)
    if given.save:
        reports.save(given.save, rows, reports.recipe(pairs=given.count, steps=given.steps, places=PLACES))
    reports.show(rows, "two subjects, two places", given.json)


if __name__ == "__main__":
    main()
