"""Are things where they were asked for, with regions and without? The miniature's FLUX, read by the reader.

    python benchmarks/layout.py --json                                      one row a line
    python benchmarks/layout.py --save benchmarks/results/layout.json       and a file with its recipe
    python benchmarks/layout.py --quick                                     8 scenes of two, to see that it works

Rows: ``{name: "right" | "bled", variant, subjects, value, low, high, n}``; the variants ``regions`` (the paper's base
ratio of 0.2) and ``regions, base 0.5`` have the paired gain over ``sentence`` (the same captions, seeds and steps
without regions), ``renders`` is what the reader makes of true
renders. ``{name: "strength", setting, value, ...}``: two subjects under more and more regional steps, and other
weights of the whole prompt. Scenes are held out: their combinations of kind, colours and pattern were never trained on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from capriccio.evaluation import reports
from capriccio.evaluation.metrics import to_pixels
from capriccio.evaluation.regions import bled, held_out, paint_graphs, read_places, right_places
from capriccio.evaluation.statistics import mean_interval, paired_gain
from capriccio.studio import Studio
from capriccio.world.draw import draw

SCORES = {"right": right_places, "bled": bled}
VARIANTS: dict[str, dict[str, Any]] = {
    "regions": {"mask_inject_steps": 0.5, "base_ratio": 0.2},
    "regions, base 0.5": {"mask_inject_steps": 0.5, "base_ratio": 0.5},
}
STRENGTHS: dict[str, dict[str, Any]] = {
    "inject 1/4": {"mask_inject_steps": 0.25},
    "inject 1/2": {"mask_inject_steps": 0.5},
    "inject all": {"mask_inject_steps": 1.0},
    "inject 1/2, base 0": {"mask_inject_steps": 0.5, "base_ratio": 0.0},
    "inject 1/2, base 0.5": {"mask_inject_steps": 0.5, "base_ratio": 0.5},
    "inject 1/2, base 0.8": {"mask_inject_steps": 0.5, "base_ratio": 0.8},
    "inject 1/2, every 2nd single block": {"mask_inject_steps": 0.5, "single_inject_blocks_interval": 2},
}


def measure(count: int, others: int, strengths: int, steps: int) -> Iterable[dict[str, Any]]:
    """Measure two subjects in full, three and four on fewer scenes, then strengths on fewer of the pairs."""
    studio = Studio.open("miniature")
    settings = {"num_inference_steps": steps}
    for subjects, scenes in ((2, count), (3, others), (4, others)):
        if not scenes:
            continue
        graphs = held_out(scenes, subjects, seed=8)  # others than those that strengths are compared on
        found = {
            "renders": draw(graphs).pixels,
            "sentence": to_pixels(paint_graphs(studio, graphs, False, told=reports.counting("sentence"), **settings)),
        }
        for variant, options in VARIANTS.items():
            told = reports.counting(variant)
            found[variant] = to_pixels(paint_graphs(studio, graphs, True, _whole(options, steps), told, **settings))
        seen = {variant: read_places(graphs, pixels) for variant, pixels in found.items()}
        for name, score in SCORES.items():
            values = {v: [score(g, s) for g, s in zip(graphs, places, strict=True)] for v, places in seen.items()}
            for variant, own in values.items():
                row = {
                    "name": name,
                    "variant": variant,
                    "subjects": subjects,
                    **asdict(mean_interval(own)),
                    "n": scenes,
                }
                if variant in VARIANTS:
                    gain = paired_gain(own, values["sentence"])
                    row |= {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}
                yield row
    graphs = held_out(strengths, 2)
    for setting, options in STRENGTHS.items() if strengths else ():
        pixels = to_pixels(
            paint_graphs(studio, graphs, True, _whole(options, steps), reports.counting(setting), **settings)
        )
        values = [right_places(g, s) for g, s in zip(graphs, read_places(graphs, pixels), strict=True)]
        yield {"name": "strength", "setting": setting, **asdict(mean_interval(values)), "n": strengths}


def _whole(options: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return options with a share of the steps as their number."""
    return options | {"mask_inject_steps": int(np.ceil(options["mask_inject_steps"] * steps))}


def main() -> None:
    """Print the table, or one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--save", metavar="FILE", help="also write rows and recipe to this JSON file")
    parser.add_argument("--quick", action="store_true", help="8 scenes of two subjects")
    parser.add_argument("--scenes", type=int, default=100, help="scenes of two subjects")
    parser.add_argument("--others", type=int, default=100, help="scenes of three, and of four")
    parser.add_argument("--strengths", type=int, default=48, help="scenes of two for each setting")
    parser.add_argument("--steps", type=int, default=24, help="denoising steps")
    arguments = parser.parse_args()
    sizes = (8, 0, 0) if arguments.quick else (arguments.scenes, arguments.others, arguments.strengths)
    rows = list(measure(*sizes, arguments.steps))
    reports.show(rows, "Things at their places", arguments.json)
    if arguments.save:
        names = ("two", "three_and_four", "strengths")
        protocol = dict(zip(names, sizes, strict=True)) | {"steps": arguments.steps}
        reports.save(arguments.save, rows, reports.recipe(**protocol))


if __name__ == "__main__":
    main()
