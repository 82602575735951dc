"""Paint held-out captions with the miniature FLUX on one sheet: two rows of scenes, one of panels.

python benchmarks/samples.py docs/pictures/flux-samples.png
"""

from __future__ import annotations

import sys

import numpy as np

from capriccio import Scene, Studio
from capriccio.evaluation.targets import scenes
from capriccio.pictures import grid, save_png
from capriccio.world.captions import caption, panel_caption
from capriccio.world.graph import sample_panels

COLUMNS = 8


def main(path: str) -> None:
    """Paint the sheet and save it."""
    rng = np.random.default_rng(11)
    alone = [caption(scene, rng) for scene in scenes(2 * COLUMNS, seed=11)]
    pairs = [panel_caption(sample_panels(rng, split="test", style="shaded"), rng) for _ in range(COLUMNS // 2)]
    asked = [Scene(text, seed=seed, true_cfg_scale=4.0) for seed, text in enumerate(alone)]
    asked += [Scene(text, seed=seed, true_cfg_scale=4.0, width=256, height=128) for seed, text in enumerate(pairs)]
    painted = [painting.images[0] for painting in Studio.open("miniature").paint_all(asked)]
    halves = [picture.crop((left, 0, left + 128, 128)) for picture in painted[2 * COLUMNS :] for left in (0, 128)]
    labels = [*alone, *(text for text in pairs for _ in range(2))]
    save_png(grid(painted[: 2 * COLUMNS] + halves, columns=COLUMNS, labels=labels), path)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "samples.png")
