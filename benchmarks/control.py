"""Do pictures keep to their control pictures, and take on the style of a LoRA? Read from the miniature's paintings.

    python benchmarks/control.py --json                                     one row a line
    python benchmarks/control.py --save benchmarks/results/control.json     and a file with its recipe
    python benchmarks/control.py --quick                                    8 scenes, to see that it works

Rows: ``{name: "canny" | "depth" | "pose", regions, scale, value, low, high, n}``: how well pictures of held-out scenes
keep to a control picture under ``controlnet_conditioning_scale`` (see ``evaluation/steering.py``), from the caption
alone and with a region for the thing as well; ``rise`` is the paired gain over the next smaller scale. ``scale: null``
is the reading of true renders. ``{name: "style", regions, scale, ...}``: the share of pictures that are read as of the
style of the miniature's LoRA, from captions that name none, under its weight.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from capriccio import assets
from capriccio.evaluation import reports
from capriccio.evaluation.metrics import to_pixels
from capriccio.evaluation.regions import paint_graphs
from capriccio.evaluation.statistics import mean_interval
from capriccio.evaluation.steering import KEPT, kept, paint_along
from capriccio.evaluation.targets import scenes
from capriccio.perception.reader import read
from capriccio.scene import Lora
from capriccio.studio import Studio
from capriccio.world.draw import draw
from capriccio.world.graph import SceneGraph

SCALES = {False: (0.0, 0.5, 1.0), True: (0.0, 1.0)}
"""Of controls and of the LoRA, without regions and with them."""
STYLE, LORA = "pencil", "miniature/style-lora"

Row = dict[str, Any]


def controls(studio: Studio, graphs: Sequence[SceneGraph]) -> Iterable[Row]:
    """Paint along every kind of control picture, harder and harder; at 0 all kinds are one picture."""
    drawn = draw(graphs).pixels
    free = {regional: to_pixels(paint_along(studio, graphs, "canny", 0.0, regional)) for regional in SCALES}
    for kind in KEPT:
        for regional, scales in SCALES.items():
            values = {}
            for scale in scales:
                told = reports.counting(f"{kind} x {scale:g}{', regions' * regional}")
                pixels = (
                    to_pixels(paint_along(studio, graphs, kind, scale, regional, told)) if scale else free[regional]
                )
                values[scale] = kept(kind, pixels, graphs).tolist()
            yield from reports.rising({"name": kind, "regions": regional}, values)
        yield {"name": kind, "regions": False, "scale": None, **asdict(mean_interval(kept(kind, drawn, graphs)))}


def styles(studio: Studio, graphs: Sequence[SceneGraph]) -> Iterable[Row]:
    """Paint with the LoRA, harder and harder; its weight is told to PEFT, so 0 is the model as it is."""
    for regional, weights in SCALES.items():
        values = {}
        for weight in weights:
            loras = [Lora(assets.path(LORA), weight=weight)] * len(graphs)
            told = reports.counting(f"{STYLE} x {weight:g}{', regions' * regional}")
            painted = paint_graphs(studio, graphs, regional, told=told, beside=loras)
            values[weight] = [float(style == STYLE) for style in read(to_pixels(painted)).style]
        yield from reports.rising({"name": "style", "regions": regional}, values)


def main() -> None:
    """Print the table, or one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--save", metavar="FILE", help="also write rows and recipe to this JSON file")
    parser.add_argument("--quick", action="store_true", help="8 scenes")
    parser.add_argument("--scenes", type=int, default=48, help="held-out scenes of one thing")
    arguments = parser.parse_args()
    graphs = scenes(8 if arguments.quick else arguments.scenes, seed=9)
    studio = Studio.open("miniature")
    rows = [*controls(studio, graphs), *styles(studio, graphs)]
    reports.show(rows, "Control pictures and a style", arguments.json)
    if arguments.save:
        reports.save(arguments.save, rows, reports.recipe(scenes=len(graphs), style=STYLE))


if __name__ == "__main__":
    main()
