"""The recipe of LAR-Gen's training: which models, which shards, how much of each, as a typed YAML file.

    model: stable-diffusion-v1-5/stable-diffusion-v1-5
    shards: quadruplets

Every other setting has the paper's value where the paper gives one. Paths start from the folder of the file; what is
not there is taken for the name of a repository.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from capriccio.data import read_mapping
from capriccio.errors import CapriccioError
from capriccio.scene import Model
from capriccio.training.trainer import Precision, Schedule

_FILE = ("a recipe", "'model' and 'shards'", 2**20, "a recipe is a page of settings")
_PLACES = ("model", "inpainting", "adapter", "clip")


class StageSettings(Model):
    """How long and how fast a stage learns.

    Attributes:
        steps: Of the optimiser.
        rate: Of learning, AdamW's.
        warmup: Steps in which the rate grows to that; 1 is none.
    """

    noun: ClassVar[str] = "a stage"
    steps: int = Field(default=20_000, ge=1)
    rate: float = Field(default=1e-5, gt=0)
    warmup: int = Field(default=500, ge=1)


class Recipe(Model):
    """What is trained, from what.

    Attributes:
        model: Stable Diffusion that paints from text: a folder, a file, a repository, or ``miniature-sd``.
        shards: What ``capriccio collect quadruplets`` made.
        inpainting: The inpainting model that the main U-Net begins as; ``None`` widens that of ``model`` by channels
            that start at zero.
        adapter: The IP-Adapter-Plus that Assign begins as: a file, or ``owner/name/path/to/file`` of a repository;
            ``None`` begins anew, and learns the resampler too.
        clip: The CLIP that the adapter was trained with; ``None`` is the one beside the adapter.
        size: Pixels a side of what is painted.
        zoom: Size of the window around the box that is painted, in sizes of the box.
        batch: Pictures of a step in all.
        per_device: Of those, how many a process learns from at once.
        processes: On this machine, one for each GPU.
        dropout: How often text, and by itself the subject, is left out.
        precision: Of the forward, see `capriccio.training.trainer.Schedule`.
        average: Decay of the average of the weights.
        checkpoint_minutes: Between two checkpoints.
        seed: Of new weights and of all that is drawn.
        assign: Stage 1.
        refine: Stage 2.
    """

    noun: ClassVar[str] = "a recipe"
    model: str
    shards: Path
    inpainting: str | None = None
    adapter: str | None = None
    clip: str | None = None
    size: int = Field(default=512, ge=8)
    zoom: float = Field(default=1.3, ge=1)
    batch: int = Field(default=128, ge=1)
    per_device: int = Field(default=16, ge=1)
    processes: int = Field(default=1, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    precision: Precision = "auto"
    average: float = Field(default=0.999, ge=0, lt=1)
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    seed: int = Field(default=0, ge=0)
    assign: StageSettings = StageSettings()
    refine: StageSettings = StageSettings()

    @model_validator(mode="after")
    def _whole_parts(self) -> Self:
        if self.batch % (self.per_device * self.processes):
            raise CapriccioError(
                f"A batch of {self.batch} is not made of whole parts of {self.per_device} x {self.processes} "
                "(per_device x processes); choose numbers whose product divides it."
            )
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Return the recipe of a YAML or JSON file.

        Raises:
            CapriccioError: If the file cannot be read, or a setting is unknown, missing or of the wrong kind.
        """
        data = read_mapping(path, *_FILE)
        folder = Path(os.path.abspath(path)).parent
        try:
            return cls(**{str(name): _placed(str(name), value, folder) for name, value in data.items()})
        except CapriccioError as error:
            raise CapriccioError(f"In {os.fspath(path)!r}: {error}") from None

    @property
    def accumulation(self) -> int:
        """Batches of one step on each process."""
        return self.batch // (self.per_device * self.processes)

    @property
    def parts(self) -> str:
        """What a step learns from, in words."""
        return (
            f"{self.batch} pictures a step: {self.per_device} at once x {self.accumulation} in turn x "
            f"{self.processes} {'process' if self.processes == 1 else 'processes'}"
        )

    def stage(self, name: str) -> StageSettings:
        """Return the settings of a stage."""
        return {"assign": self.assign, "refine": self.refine}[name]

    def schedule(self, name: str) -> Schedule:
        """Return the schedule of a stage: so many steps at a constant rate."""
        own = self.stage(name)
        return Schedule(
            minutes=math.inf,
            steps=own.steps,
            warmup=own.warmup,
            decay=0.0,
            average=self.average,
            seed=self.seed,
            precision=self.precision,
            accumulation=self.accumulation,
            checkpoint_minutes=self.checkpoint_minutes,
        )

    def begins_from(self, name: str) -> dict[str, Any]:
        """Return the settings of a stage that must not change while it learns; how long it does may."""
        names = (*_PLACES, "size", "zoom", "batch", "dropout", "average", "seed")
        return {each: getattr(self, each) for each in names} | {"rate": self.stage(name).rate}


def _placed(name: str, value: Any, folder: Path) -> Any:
    """Return a setting with its path starting from a folder; what is not there is the name of a repository."""
    if not isinstance(value, str) or name not in (*_PLACES, "shards"):
        return value
    inside = folder / os.path.expanduser(value)
    return str(inside) if name == "shards" or inside.exists() else value
