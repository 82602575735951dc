"""The miniature against its targets, measured afresh from the committed weights, in minutes on two cores.

python benchmarks/miniature.py                                          a table
python benchmarks/miniature.py --json                                   one row a line: name, value, floor, aim
python benchmarks/miniature.py --save benchmarks/results/miniature.json and a file with its recipe
python benchmarks/miniature.py --quick                                  a tenth of the pictures, to see it work
python benchmarks/miniature.py --only readings                          only what reads pictures, or only paintings
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict

from capriccio import assets
from capriccio.backbones.base import Defaults
from capriccio.backbones.loading import MINIATURE, MINIATURE_DEFAULTS, MINIATURE_SD, MINIATURE_SD_DEFAULTS
from capriccio.evaluation import holes, reports, targets
from capriccio.studio import Studio
from capriccio.training.trainer import Row

PICTURES = {
    "flux": {"one_subject": 128, "two_subjects": 96, "two_panels": 64, "people": 96},
    "sd": {"one_subject": 128, "two_subjects": 96, "people": 96},
    "fill": {"new_subject": 64, "new_top": 48},
    "controlnet-inpaint": {"new_subject": 64, "new_top": 48},
    "sd-inpaint": {"new_subject": 64, "new_top": 48},
}
"""What each model paints, and how many pictures; a row is a function of ``targets``, of inpainters one of ``holes``."""
ENGINES = {"fill": "fill", "controlnet-inpaint": "controlnet", "sd-inpaint": "fill"}
"""How each inpainter keeps what is known."""
STUDIOS = {model: MINIATURE_SD if model.startswith("sd") else MINIATURE for model in PICTURES}
DEFAULTS = {"flux": MINIATURE_DEFAULTS, "sd": MINIATURE_SD_DEFAULTS}
NEEDED = {
    **dict.fromkeys(("people", "people_reader", "new_top"), "miniature/people-reader"),
    "solid_reader": "miniature/solid-reader",
}
"""Weights that some rows are read with."""


def installed(asset: str, what: str) -> bool:
    """Whether weights are there; if not, say what is left out."""
    if not assets.available(asset):
        reports.note(f"{what}: left out, for {asset} is not installed")
    return assets.available(asset)


def measured_readings() -> Iterator[Row]:
    """Yield the rows of all that reads pictures, as they are measured."""
    readers = (targets.reader, targets.people_reader, targets.solid_reader)
    for part in (targets.vae, targets.clip, *readers, targets.copy_alarm):
        if installed(NEEDED.get(part.__name__, "miniature"), part.__name__):
            reports.note(f"{part.__name__} ...")
            yield from part()


def measured_paintings(quick: bool) -> Iterator[Row]:
    """Yield the rows of all that paints, as they are measured."""
    for model, rows in PICTURES.items():
        if installed(f"miniature/{model}", model):
            yield from painted(Studio.open(STUDIOS[model]), model, rows, quick)


def painted(studio: Studio, model: str, rows: Mapping[str, int], quick: bool) -> Iterator[Row]:
    """Yield the rows of one model as they are measured."""
    for name, count in rows.items():
        if installed(NEEDED.get(name, "miniature"), f"{model}, {name}"):
            count = max(4, count // 10) if quick else count
            told, named = reports.counting(f"{model}, {name}", count), model.replace("-", "_")
            if model in ENGINES:
                yield from getattr(holes, name)(studio, count, told, named, ENGINES[model])
            else:
                yield from getattr(targets, name)(studio, count, told, named)


def numbers(own: Defaults) -> dict[str, object]:
    """What a model is painted with when nobody says otherwise, as here."""
    return {name: getattr(own, name) for name in ("num_inference_steps", "true_cfg_scale", "scheduler")}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--save", metavar="FILE", help="also write rows and recipe to this JSON file")
    parser.add_argument("--quick", action="store_true", help="a tenth of the pictures")
    parser.add_argument("--only", choices=("readings", "paintings"), help="leave out the other half")
    chosen = parser.parse_args()
    started = time.monotonic()
    # what the readers themselves get right is measured with each model's pictures, and told once
    measured = [
        *(measured_readings() if chosen.only != "paintings" else ()),
        *(measured_paintings(chosen.quick) if chosen.only != "readings" else ()),
    ]
    rows = list({row.name: asdict(row) for row in measured}.values())
    reports.show(rows, "The miniature against its targets", chosen.json)
    if chosen.save:
        minutes = round((time.monotonic() - started) / 60, 1)
        protocol = {"only": chosen.only or "everything", "quick": chosen.quick, "minutes": minutes}
        if chosen.only != "readings":
            protocol |= {"pictures": PICTURES, "numbers": {model: numbers(own) for model, own in DEFAULTS.items()}}
        reports.save(chosen.save, rows, reports.recipe(**protocol))


if __name__ == "__main__":
    main()
