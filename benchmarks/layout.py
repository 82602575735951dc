"""Are things where they were asked for, with regions and without? The miniature's paintings, read by the reader.

    python benchmarks/layout.py --json                                      one row a line
    python benchmarks/layout.py --save benchmarks/results/layout.json       and a file with its recipe
    python benchmarks/layout.py --model miniature-sd                        Stable Diffusion instead of FLUX
    python benchmarks/layout.py --sheet places.jpg                          and the first scenes of each, to look at
    python benchmarks/layout.py --quick                                     8 scenes of two, to see that it works

Rows: ``{name: "right" | "bled", variant, subjects, value, low, high, n}``; the variant ``regions`` (half of the steps
and the paper's base ratio of 0.2; on U-Nets what is usual there, all steps and 0.5) has the paired gain over
``sentence`` (the same captions, seeds and steps without regions), ``renders`` is what the reader makes of true
renders. Captions of the world say where things are; those of ``sentence, unplaced`` and ``regions, unplaced`` only name
them. ``{name: "strength", series, setting, value, ..., rise}``: two subjects under more and more regional steps,
more of the single blocks, and less of the whole prompt, each with the paired gain over the setting before;
``{name: "rank correlation", series, value, ...}``: Spearman's within scenes, over the settings of a series. Scenes are
held out: their combinations of kind, colours and pattern were never trained on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image

from capriccio.backbones.unet import UNetBackbone
from capriccio.evaluation import reports
from capriccio.evaluation.metrics import to_pixels
from capriccio.evaluation.regions import bled, held_out, paint_graphs, read_places, right_places, scene_of
from capriccio.evaluation.statistics import mean_interval, paired_gain, rank_correlation
from capriccio.pictures import grid
from capriccio.studio import Studio
from capriccio.world.draw import draw

VARIANTS = {
    "sentence": (False, True),
    "regions": (True, True),
    "sentence, unplaced": (False, False),
    "regions, unplaced": (True, False),
}
"""Whether there are regions, and whether the sentence says where things are."""
SCORES = {"right": right_places, "bled": bled}
USUAL: dict[str, Any] = {"mask_inject_steps": 0.5, "base_ratio": 0.2}
ON_UNETS = {"mask_inject_steps": 1.0, "base_ratio": 0.5}
STRENGTHS: dict[str, dict[str, dict[str, Any]]] = {
    "steps": {f"inject {share:g}": {"mask_inject_steps": share} for share in (0.125, 0.25, 0.5, 1.0)},
    "blocks": {f"every {gap}": {"single_inject_blocks_interval": gap} for gap in (6, 3, 2)} | {"every 1": {}},
    "base ratio": {f"base {ratio:g}": {"base_ratio": ratio} for ratio in (0.8, 0.5, 0.2, 0.0)},
}
"""Series of settings, each from the weakest to the strongest; U-Nets have no single blocks."""


Pair = tuple[str, Image.Image, Image.Image]
"""What was asked for, and what was painted from the sentence alone and with regions."""
SHOWN = 3  # scenes of each number of things on a sheet


def measure(
    model: str, count: int, others: int, strengths: int, steps: int, pairs: list[Pair]
) -> Iterable[dict[str, Any]]:
    """Measure two, three and four subjects, then strengths on pairs; the first scenes of each are added to `pairs`."""
    studio = Studio.open(model)
    usual = _usual(studio)
    for subjects, scenes in ((2, count), (3, others), (4, others)):
        if not scenes:
            continue
        graphs = held_out(scenes, subjects, seed=8)  # others than those that strengths are compared on
        painted = {
            variant: paint_graphs(
                studio,
                graphs,
                regional,
                _whole(usual, steps) if regional else {},
                reports.counting(variant),
                placed=placed,
                num_inference_steps=steps,
            )
            for variant, (regional, placed) in VARIANTS.items()
        }
        sentences = [scene_of(graph, number, False, {}).prompt for number, graph in enumerate(graphs[:SHOWN])]
        pairs += zip(sentences, painted["sentence"][:SHOWN], painted["regions"][:SHOWN], strict=True)
        found = {"renders": draw(graphs).pixels} | {name: to_pixels(pictures) for name, pictures in painted.items()}
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
                if variant.startswith("regions"):
                    gain = paired_gain(own, values[variant.replace("regions", "sentence")])
                    row |= {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}
                yield row
    yield from compare_strengths(studio, strengths, steps)


def compare_strengths(studio: Studio, count: int, steps: int) -> Iterable[dict[str, Any]]:
    """Paint pairs under every series of settings; the usual ones, which all series have, once."""
    graphs, seen = held_out(count, 2), dict[str, list[float]]()
    for series, settings in STRENGTHS.items() if count else ():
        if series == "blocks" and isinstance(studio.backbone, UNetBackbone):
            continue
        values = {}
        for setting, options in settings.items():
            own = _whole(_usual(studio) | options, steps)
            if (key := str(sorted(own.items()))) not in seen:
                told = reports.counting(f"{series}, {setting}")
                pixels = to_pixels(paint_graphs(studio, graphs, True, own, told, num_inference_steps=steps))
                seen[key] = [right_places(g, s) for g, s in zip(graphs, read_places(graphs, pixels), strict=True)]
            values[setting] = seen[key]
        yield from reports.rising({"name": "strength", "series": series}, values, "setting")
        ranks = rank_correlation(list(zip(*values.values(), strict=True)))
        yield {"name": "rank correlation", "series": series, **asdict(ranks), "n": count}


def _usual(studio: Studio) -> dict[str, Any]:
    return ON_UNETS if isinstance(studio.backbone, UNetBackbone) else USUAL


def _whole(options: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return options with a share of the steps as their number."""
    return options | {"mask_inject_steps": int(np.ceil(options["mask_inject_steps"] * steps))}


def main() -> None:
    """Print the table, or one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--save", metavar="FILE", help="also write rows and recipe to this JSON file")
    parser.add_argument("--quick", action="store_true", help="8 scenes of two subjects")
    parser.add_argument("--sheet", metavar="FILE", help="also a picture: sentence above, regions below")
    parser.add_argument("--model", default="miniature", choices=("miniature", "miniature-sd"))
    parser.add_argument("--scenes", type=int, default=100, help="scenes of two subjects")
    parser.add_argument("--others", type=int, default=100, help="scenes of three, and of four")
    parser.add_argument("--strengths", type=int, default=24, help="scenes of two for each setting")
    parser.add_argument("--steps", type=int, default=24, help="denoising steps")
    arguments = parser.parse_args()
    sizes = (8, 0, 0) if arguments.quick else (arguments.scenes, arguments.others, arguments.strengths)
    pairs: list[Pair] = []
    rows = list(measure(arguments.model, *sizes, arguments.steps, pairs))
    reports.show(rows, "Things at their places", arguments.json)
    if arguments.sheet:
        both = [grid([plain, regional], columns=1, gap=4) for _, plain, regional in pairs]
        grid(both, len(pairs), [text for text, _, _ in pairs], gap=4, text_size=10).save(arguments.sheet, quality=88)
    if arguments.save:
        names = ("two", "three_and_four", "strengths")
        protocol = {"model": arguments.model, **dict(zip(names, sizes, strict=True)), "steps": arguments.steps}
        reports.save(arguments.save, rows, reports.recipe(**protocol))


if __name__ == "__main__":
    main()
