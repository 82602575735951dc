"""The miniature against its targets, measured afresh from the committed weights, in minutes on two cores.

python benchmarks/miniature.py                                          a table
python benchmarks/miniature.py --json                                   one row a line: name, value, floor, aim
python benchmarks/miniature.py --save benchmarks/results/miniature.json and a file with its recipe
python benchmarks/miniature.py --quick                                  a tenth of the pictures, to see it work
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

from capriccio.evaluation import reports, targets
from capriccio.studio import Studio
from capriccio.training.trainer import Row

PICTURES = {"one_subject": 128, "two_subjects": 96, "two_panels": 64}


def progress(name: str, total: int) -> Callable[[int], None]:
    done = 0

    def told(pictures: int) -> None:
        nonlocal done
        done += pictures
        reports.note(f"{name}: {done} of {total} pictures")

    return told


def measure(studio: Studio, quick: bool) -> Iterator[Row]:
    """Yield rows as they are measured, the quick ones first."""
    for part in (targets.vae, targets.clip, targets.reader, targets.copy_alarm):
        reports.note(f"{part.__name__} ...")
        yield from part()
    for name, count in PICTURES.items():
        count = max(4, count // 10) if quick else count
        yield from getattr(targets, name)(studio, count, told=progress(name, count))


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--save", metavar="FILE", help="also write rows and recipe to this JSON file")
    parser.add_argument("--quick", action="store_true", help="a tenth of the pictures")
    chosen = parser.parse_args()
    started = time.monotonic()
    rows = [asdict(row) for row in measure(Studio.open("miniature"), chosen.quick)]
    reports.show(rows, "The miniature against its targets", chosen.json)
    if chosen.save:
        minutes = round((time.monotonic() - started) / 60, 1)
        protocol = {"pictures": PICTURES, "true_cfg_scale": targets.GUIDANCE, "quick": chosen.quick, "minutes": minutes}
        reports.save(chosen.save, rows, reports.recipe(**protocol))


if __name__ == "__main__":
    main()
