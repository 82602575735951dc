"""The benchmark from end to end: open, paint, read, compare, report.

>>> from capriccio.evaluation.lar_gen.benchmark import Benchmark
>>> Benchmark("miniature", count=100).run("lar-gen")      # lar-gen/index.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import capriccio.evaluation.lar_gen.miniature as world
from capriccio import assets
from capriccio.backbones.loading import MINIATURE_SD
from capriccio.backbones.weights import fingerprint
from capriccio.errors import CapriccioError
from capriccio.evaluation import reports
from capriccio.evaluation.lar_gen import tables
from capriccio.evaluation.lar_gen.measures import Examiner
from capriccio.evaluation.lar_gen.page import report
from capriccio.evaluation.lar_gen.painters import VARIANTS, Settings, open_painters
from capriccio.evaluation.lar_gen.photographs import photographs
from capriccio.evaluation.lar_gen.runs import run
from capriccio.evaluation.lar_gen.samples import Protocol
from capriccio.evaluation.metrics import Clip, load_clip, open_clip
from capriccio.perception.reader import load_reader
from capriccio.studio import Studio

PUBLIC_CLIP = "openai/clip-vit-large-patch14"
EXAMPLE = "miniature/paint-by-example"
"""The Paint-by-Example beside the miniature's Stable Diffusion."""


@dataclass(frozen=True)
class Result:
    """Where the page lies, what was read, and what it says about the paper's tables."""

    page: Path
    rows: Sequence[dict[str, Any]]
    verdicts: Sequence[tables.Verdict]

    def __str__(self) -> str:
        return "\n".join([*map(str, self.verdicts), f"report: {self.page}"])


@dataclass(frozen=True)
class Benchmark:
    """What is painted by whom.

    Attributes:
        model: A name for `Studio.open`.
        inpainting: The same of what it inpaints with, where that is another model.
        modules: What methods add to it.
        flux: A name for `Studio.open` of a FLUX that inpaints, for our port beside the model.
        coco: COCO's folder; the miniature's world without.
        dreambooth: DreamBooth's folder; both or neither.
        count: How many samples, a fair choice; all by default.
        variants: Names of `painters.VARIANTS`; all that the model can paint by default.
        settings: What all variants share; the miniature's Stable Diffusion has a Paint-by-Example of its own.
        clip: Folder or repository of a CLIP; for the world its own, for photographs ``openai/clip-vit-large-patch14``.
        seed: Of the choice of data.
    """

    model: str = "miniature"
    inpainting: str | None = None
    modules: Mapping[str, str] = field(default_factory=dict)
    flux: str | None = None
    coco: Path | None = None
    dreambooth: Path | None = None
    count: int | None = None
    variants: tuple[str, ...] = ()
    settings: Settings = field(default_factory=Settings)
    clip: str | None = None
    seed: int = 0

    def run(
        self,
        folder: str | Path,
        told: Callable[[int, int], None] = lambda done, total: None,
        noted: Callable[[str], None] = lambda sentence: None,
    ) -> Result:
        """Paint what a folder lacks, and write its report.

        Args:
            folder: Where everything is kept; a run that was stopped goes on.
            told: Called with pictures done and in all.
            noted: Told of variants that this model cannot paint.

        Raises:
            CapriccioError: If data, model, encoder or folder do not do.
        """
        folder, data = Path(folder), self._data()
        samples = data.samples(self.count)
        studio, clip = Studio.open(self.model, inpainting=self.inpainting, modules=self.modules), self._clip()
        flux = None if self.flux is None else Studio.open(self.flux)
        # The world cannot draw itself into photographs.
        ways = {name: way for name, way in VARIANTS.items() if self.coco is None or name != "drawn"}
        settings = replace(self.settings, flux=flux, paint_by_example=self._example())
        painters = open_painters(studio, settings, self.variants, noted, ways)
        examiner = Examiner(data, clip)
        manifest = self.manifest(data, studio, flux, clip)
        rows = run(samples, painters, examiner, folder, manifest, told)
        reasons = world.REASONS if self.model == MINIATURE_SD and self.coco is None else {}
        page = report(folder, samples, rows, examiner.measures, manifest, reasons)
        return Result(page, rows, tables.verdicts(rows, reasons))

    def manifest(self, data: Protocol, studio: Studio, flux: Studio | None, clip: Clip) -> dict[str, Any]:
        """Return what the numbers depend on, and the machine; neither how many samples nor which variants."""
        encoders = {"clip": {"image": fingerprint(clip.images), "text": fingerprint(clip.texts)}}
        world_reader = {"reader": fingerprint(load_reader())} if self.coco is None else {}
        made_by = reports.recipe(
            steps=self.settings.steps, guidance=self.settings.guidance, seeds="the sample's number"
        )
        example = self.settings.paint_by_example or (EXAMPLE if self._example() else None)
        return {
            "data": data.manifest(),
            "encoders": encoders | world_reader,
            "model": {"name": self.model, "weights": dict(studio.weights)},
            "flux": None if flux is None else {"name": self.flux, "weights": dict(flux.weights)},
            "paint_by_example": None if example is None else str(example),
            **made_by,
        }

    def _example(self) -> Path | None:
        own = self.model == MINIATURE_SD and assets.available(EXAMPLE)
        return self.settings.paint_by_example or (assets.path(EXAMPLE) if own else None)

    def _data(self) -> Protocol:
        if (self.coco is None) != (self.dreambooth is None):
            raise CapriccioError(
                "COCO gives the scenes and DreamBooth the subjects; give both --coco and --dreambooth, or neither for "
                "the miniature's world."
            )
        if self.coco is None or self.dreambooth is None:
            return world.miniature(self.seed)
        return photographs(self.coco, self.dreambooth, self.seed)

    def _clip(self) -> Clip:
        if self.clip is None and self.coco is None:
            return load_clip()
        return open_clip(self.clip or PUBLIC_CLIP)
