"""Draw the contact sheet of a model of the miniature: what it makes of held-out pictures and sentences.

python benchmarks/samples.py flux flux.png
"""

from __future__ import annotations

import sys

from capriccio.evaluation.sheets import sheet
from capriccio.pictures import save_png


def main(model: str = "flux", path: str = "samples.png") -> None:
    """Draw the sheet of a model and save it."""
    save_png(sheet(model), path)


if __name__ == "__main__":
    main(*sys.argv[1:])
