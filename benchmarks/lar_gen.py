"""LAR-Gen's benchmark on the miniature's world: 20 scenes x 10 subjects x 10 sentences, or a fair choice of them.

    python benchmarks/lar_gen.py                      a table
    python benchmarks/lar_gen.py --json               one row a line: table1, table2, beta, outside, seam, cost
    python benchmarks/lar_gen.py --only cost          what RefineNet costs a batch of one subject
    python benchmarks/lar_gen.py --save benchmarks/results/lar_gen.json
    python benchmarks/lar_gen.py --samples 20 --steps 8      to see that it works

Intervals are 95 % bootstrap intervals over subjects. Pictures, samples.csv, variants.csv and the page index.html are
kept in ``--out``; a run that is interrupted goes on there.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from capriccio.evaluation import reports
from capriccio.evaluation.lar_gen.benchmark import Benchmark
from capriccio.evaluation.lar_gen.cost import cost_row
from capriccio.evaluation.lar_gen.miniature import miniature
from capriccio.evaluation.lar_gen.painters import VARIANTS, Settings
from capriccio.evaluation.lar_gen.tables import benchmark_rows
from capriccio.studio import Studio

OUT = Path(__file__).parent / ".cache" / "lar_gen"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--save", metavar="FILE", help="also write rows and recipe to this JSON file")
    parser.add_argument("--model", default="miniature-sd", help="miniature-sd, or any that inpaints")
    parser.add_argument("--flux", default="miniature", help="the FLUX that paints our port")
    parser.add_argument("--only", choices=("pictures", "cost"), help="one half of the rows")
    parser.add_argument("--samples", type=int, default=30, help="a fair choice of so many; 2000 are all")
    parser.add_argument("--steps", type=int, default=12, help="denoising steps")
    parser.add_argument("--variant", action="append", default=[], help=f"one of {', '.join(VARIANTS)}; all by default")
    parser.add_argument("--out", type=Path, help="where pictures and the page are kept")
    return parser.parse_args()


def progress(done: int, total: int) -> None:
    if done % 10 == 0 or done == total:
        reports.note(f"{done} of {total} pictures")


def painted(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of everything that is painted and read."""
    settings = Settings(steps=chosen.steps)
    benchmark = Benchmark(
        chosen.model, flux=chosen.flux, count=chosen.samples, variants=tuple(chosen.variant), settings=settings
    )
    result = benchmark.run(chosen.out or OUT / f"{chosen.model}-{chosen.steps}", progress, reports.note)
    reports.note(str(result))
    return benchmark_rows(result.rows)


def main() -> None:
    """Paint, read, print, save."""
    chosen = parse()
    rows = []
    if chosen.only != "cost":
        rows += painted(chosen)
    if chosen.only != "pictures":
        (sample,) = miniature().samples(1)
        rows.append(cost_row(Studio.open(chosen.model), sample))
    reports.show(rows, "LAR-Gen's benchmark on the miniature's world", chosen.json)
    if chosen.save:
        protocol = {name: getattr(chosen, name) for name in ("model", "flux", "samples", "steps", "only")}
        reports.save(chosen.save, rows, reports.recipe(**protocol, interval="95 % bootstrap over subjects"))


if __name__ == "__main__":
    main()
