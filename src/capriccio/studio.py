"""The studio: a loaded backbone, what it will do, and what it paints.

studio = Studio.open("miniature")
print(studio.plan(scene))
studio.paint(scene).save("snow.png")
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image

import capriccio
from capriccio import assets, pictures
from capriccio.backbones.base import Backbone
from capriccio.backbones.loading import ControlNets, Memory, open_backbone, out_of_memory, wrap
from capriccio.backbones.unet import UNetBackbone
from capriccio.errors import CapriccioError, nearest
from capriccio.methods import METHODS, Method
from capriccio.plan import Plan, make_plan, plan_turn
from capriccio.sampling import Callback, Painted, Progress, count_steps, paint
from capriccio.scene import Scene
from capriccio.turns import turns

_VERSIONS = ("torch", "diffusers", "transformers")


@dataclass(frozen=True, eq=False)
class Painting:
    """What was painted.

    Attributes:
        scene: What was asked for.
        plan: What was done.
        images: One for each seed.
        canvases: The whole canvases that they were cut from.
        readings: Seconds, and what else was measured.
        weights: Hashes of the weights that painted.
        earlier: Of a scene in turns, the pictures after each turn but the last, one for each seed.
    """

    scene: Scene
    plan: Plan
    images: list[Image.Image]
    canvases: list[Image.Image]
    readings: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    earlier: Sequence[list[Image.Image]] = ()

    def save(self, path: str | os.PathLike[str], recipe: bool = True) -> list[Path]:
        """Save the pictures as PNG files that carry their recipe.

        Args:
            path: Of the picture; where there are several, the seed is put before the ending.
            recipe: Whether the files say how they were painted.
        """
        seeds, path = self.scene.all_seeds(), Path(path)
        places = [path if len(seeds) == 1 else path.with_stem(f"{path.stem}-{seed}") for seed in seeds]
        if len(set(places)) < len(places):
            places = [path.with_stem(f"{path.stem}-{index}") for index in range(len(seeds))]
        return [
            pictures.save_png(image, place, self.recipe(seed) if recipe else None)
            for place, seed, image in zip(places, seeds, self.images, strict=True)
        ]

    def recipe(self, seed: int) -> dict[str, Any]:
        """Return what painted the picture of a seed: scene, inputs, model, versions, weights."""
        scene = self.scene.single(seed).recipe()
        return {
            "scene": scene,
            "model": self.plan.backbone,
            "plan": str(self.plan).splitlines(),
            "versions": _versions(),
            "weights": dict(self.weights),
        }


class Studio:
    """A loaded backbone that plans and paints scenes.

    Args:
        pipe: A diffusers pipeline of the FLUX, Stable Diffusion or SDXL family, used as it is and given back
            unchanged; or a backbone.
    """

    def __init__(self, pipe: Any) -> None:
        self.backbone: Backbone = wrap(pipe)

    @classmethod
    def open(
        cls,
        name: str | os.PathLike[str] = "miniature",
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        memory: Memory = "full",
        inpainting: str | os.PathLike[str] | None = None,
        controlnets: ControlNets = (),
        config: str | os.PathLike[str] | None = None,
        textual_inversions: Sequence[str | os.PathLike[str]] = (),
        ip_adapter: str | os.PathLike[str] | None = None,
        modules: Mapping[str, str | os.PathLike[str]] = MappingProxyType({}),
        tiling: bool = False,
    ) -> Studio:
        """Load a model and open a studio with it.

        Args:
            name: ``"miniature"``, a repository of the Hub, a folder, or a single file of weights.
            device: Where to paint; an accelerator if there is one.
            dtype: Of the weights; bfloat16 on an accelerator, float32 on a CPU.
            memory: ``"full"``, ``"offload"``, ``"sequential"``, ``"8bit"`` or ``"4bit"``.
            inpainting: A folder or repository of a model to paint into a canvas with as well: an inpainting ControlNet
                (alimama layout), FLUX Fill, an inpainting model of Stable Diffusion or SDXL (or a single file of one).
            controlnets: Folders or repositories of ControlNets, by the names that controls call them; in a list, by the
                names of the folders.
            config: For a single file: a pipeline folder or repository with everything that the file lacks.
            textual_inversions: Files of learned words, for Stable Diffusion and SDXL.
            ip_adapter: A file of an IP-Adapter, for Stable Diffusion and SDXL.
            modules: What methods add to the model, by the name of the method: a folder, or a file. The miniature's own
                come along.
            tiling: Let the VAE work on tiles, for pictures that would not fit in memory.

        Raises:
            CapriccioError: If something is not found, does not fit together, or does not fit in memory.
        """
        parts: dict[str, Any] = {"textual_inversions": textual_inversions, "ip_adapter": ip_adapter, "tiling": tiling}
        parts["controlnets"] = controlnets
        backbone = open_backbone(
            name, device=device, dtype=dtype, memory=memory, inpainting=inpainting, config=config, **parts
        )
        add_modules(backbone, modules, METHODS)
        return cls(backbone)

    def plan(self, scene: Scene) -> Plan:
        """Say what painting a scene will do and cost, without a forward pass of the denoiser.

        Where a scene is painted in turns, the later ones are planned on a blank picture.

        Raises:
            CapriccioError: If the scene cannot be painted here.
        """
        return make_plan(scene, self.backbone, METHODS)

    def paint(self, scene: Scene, callback: Callback | None = None) -> Painting:
        """Paint a scene, one picture for each of its seeds.

        Args:
            scene: What to paint.
            callback: Told after each step; returning ``False`` or raising `capriccio.Cancelled` ends the run.

        Raises:
            CapriccioError: If the scene cannot be painted here.
            Cancelled: If the callback ended the run.
        """
        return self.paint_all([scene], callback)[0]

    def paint_all(self, scenes: Sequence[Scene], callback: Callback | None = None) -> list[Painting]:
        """Paint scenes; those with equal canvas, edits and numbers are painted together."""
        plans = [self.plan(scene) for scene in scenes]
        groups: dict[Any, list[int]] = {}
        for index, plan in enumerate(plans):
            groups.setdefault(plan.batch_key, []).append(index)
        lengths = [sum(self._lengths([plans[i] for i in members])) for members in groups.values()]
        paintings: dict[int, Painting] = {}
        for number, members in enumerate(groups.values()):
            started = time.perf_counter()
            told = _shifted(callback, sum(lengths[:number]), sum(lengths))
            results = self._paint_turns([plans[index] for index in members], told)
            seconds = (time.perf_counter() - started) / len(members)
            for index, painted in zip(members, results, strict=True):
                paintings[index] = self._painting(plans[index], painted, seconds)
        return [paintings[index] for index in range(len(plans))]

    def _lengths(self, plans: Sequence[Plan]) -> list[int]:
        """Return the steps of each turn of plans that are painted together."""
        return [count_steps(turn, self.backbone) for turn in zip(*(plan.turns for plan in plans), strict=True)]

    def _paint_turns(self, plans: Sequence[Plan], callback: Callback | None) -> list[list[list[Painted]]]:
        """Return for each plan, after each turn, its pictures."""
        # A CPU kills a process that asks for too much instead of telling it.
        if self.backbone.device.type == "cpu" and plans[0].total.working > _free_memory():
            raise out_of_memory(self.backbone.name)
        lengths = self._lengths(plans)
        done = [[pictures] for pictures in self._paint(plans, _shifted(callback, 0, sum(lengths)))]
        for number in range(1, len(lengths)):
            told = _shifted(callback, sum(lengths[:number]), sum(lengths))
            before = [[one.image for one in stages[-1]] for stages in done]
            painted = iter(self._paint(self._plan_turn(plans, number, before), told))
            # There every picture has a plan of its own.
            for stages in done:
                stages.append([next(painted)[0] for _ in stages[-1]])
        return done

    def _plan_turn(self, plans: Sequence[Plan], number: int, before: Sequence[Sequence[Image.Image]]) -> list[Plan]:
        """Return a plan of a later turn for each picture of these plans, in order."""
        return [
            plan_turn(turns(plan.scene)[number], image, seed, self.backbone, METHODS)
            for plan, images in zip(plans, before, strict=True)
            for image, seed in zip(images, plan.scene.all_seeds(), strict=True)
        ]

    def _paint(self, plans: Sequence[Plan], callback: Callback | None) -> list[list[Painted]]:
        try:
            return paint(plans, self.backbone, callback)
        except (torch.OutOfMemoryError, MemoryError):
            raise out_of_memory(self.backbone.name) from None

    def _painting(self, plan: Plan, painted: Sequence[Sequence[Painted]], seconds: float) -> Painting:
        *earlier, images = ([one.image for one in stage] for stage in painted)
        canvases = [one.canvas for one in painted[-1]]
        return Painting(plan.scene, plan, images, canvases, {"seconds": round(seconds, 2)}, self.weights, earlier)

    @cached_property
    def weights(self) -> dict[str, str]:
        """Hashes of the weights, by component."""
        return self.backbone.fingerprint()


def add_modules(backbone: Any, sources: Mapping[str, str | os.PathLike[str]], methods: Mapping[str, Method]) -> None:
    """Load what methods add to a model: what is named, and on the miniature what came with the package.

    Raises:
        CapriccioError: If a method is unknown or adds nothing, or what it adds does not fit the model.
    """
    able = {name: method.load for name, method in methods.items() if method.load is not None}
    for name in sources:
        if name not in able:
            raise CapriccioError(
                f"modules names {name!r}, which is no method that adds to a model; {nearest(name, able)}"
            )
    own = {n: assets.path(f"miniature/{n}") for n in able if assets.available(f"miniature/{n}")}
    fits = backbone.defaults.own and isinstance(backbone, UNetBackbone)
    for name, source in ({**own, **sources} if fits else dict(sources)).items():
        backbone.modules[name] = able[name](Path(source), backbone).to(backbone.device)


def _shifted(callback: Callback | None, before: int, total: int) -> Callback | None:
    """Return a callback that hears of one group among several."""
    if callback is None:
        return None
    return lambda progress: callback(replace(progress, step=before + progress.step, total=total))


def _free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _versions() -> dict[str, str]:
    found = {"capriccio": capriccio.__version__, "python": platform.python_version()}
    return found | {name: version(name) for name in _VERSIONS}


__all__ = ["Painting", "Progress", "Studio"]
