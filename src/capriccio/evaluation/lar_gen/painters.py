"""The ways to paint a sample, by name: one line each in `VARIANTS`.

A way of our own is a scene, so that ``by_scene(partial(scene_of_mine, beta=0.3))`` is all it takes to add one. Whatever
it is, a painter is told a sample and a seed, and gives back the whole picture in the source's size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image

from capriccio import assets
from capriccio.canvas import paste_back
from capriccio.errors import CapriccioError, nearest
from capriccio.evaluation.lar_gen.measures import pasted
from capriccio.evaluation.lar_gen.miniature import drawn
from capriccio.evaluation.lar_gen.samples import Guest, Place, Sample, Wish, box_mask
from capriccio.pictures import fit, fitted_box
from capriccio.scene import Edit, Scene, Subject
from capriccio.studio import Studio

Painter: TypeAlias = Callable[[Sample, int], Image.Image]
Variant: TypeAlias = "Callable[[Studio, Settings], Painter]"

RETOUCH = 0.5
"""Strength at which a collage is painted over: enough to soften the paste, too little to change who it is."""


@dataclass(frozen=True)
class Settings:
    """What all ways to paint share.

    Attributes:
        steps: Denoising steps; each model's own number if ``None``.
        guidance: Classifier-free guidance of the studio's model; its own if ``None``.
        paint_by_example: Folder of a Paint-by-Example checkpoint, for the baseline of that name.
        flux: A FLUX that paints beside the studio's model, for our port; with numbers of its own but for the steps.
    """

    steps: int | None = None
    guidance: float | None = None
    paint_by_example: Path | None = None
    flux: Studio | None = None

    @property
    def numbers(self) -> dict[str, Any]:
        """As a scene calls them; what is not given is left out."""
        named = {"num_inference_steps": self.steps, "true_cfg_scale": self.guidance}
        return {name: value for name, value in named.items() if value is not None}


# --- ways that are a scene ---------------------------------------------------------------------------------------


def by_scene(scene_of: Callable[[Sample], Scene]) -> Variant:
    """Return the way to paint that asks the studio for a scene.

    Args:
        scene_of: The scene of a sample; seed and numbers are put in.
    """

    def open_painter(studio: Studio, settings: Settings) -> Painter:
        def scene(sample: Sample, seed: int) -> Scene:
            return scene_of(sample).but(seed=seed, **settings.numbers)

        studio.plan(scene(_blank(), 0))  # what this model cannot paint is told before anything is painted
        return lambda sample, seed: studio.paint(scene(sample, seed)).images[0]

    return open_painter


def inpainting(sample: Sample) -> Scene:
    """Plain inpainting: text and mask, no subject (the paper's SD-Inpainting)."""
    return Scene(sample.text, [Edit(sample.place.source, sample.place.mask)])


def locate(sample: Sample) -> Scene:
    """Locate alone: plain inpainting that also holds what is known (Eq. 3), as LAR-Gen does."""
    return Scene(sample.text, [Edit(sample.place.source, sample.place.mask, options={"hold": True})])


def collage(sample: Sample) -> Scene:
    """Our collage baseline, after AnyDoor's strategy (arXiv 2307.09481): paste the subject, then paint over it lightly.

    AnyDoor itself learned to harmonise a high-frequency map of the pasted subject; here image-to-image does what it can
    without learning.
    """
    picture, _ = pasted(sample.place.source, sample.place.mask, sample.guest.picture)
    return Scene(sample.text, [Edit(picture, sample.place.mask, strength=RETOUCH)])


def diptych(sample: Sample) -> Scene:
    """Diptych Prompting's subject-driven editing: the subject on the left panel, the picture with its hole right."""
    subject = Subject(sample.guest.picture, name=sample.guest.name, by="diptych")
    return Scene(sample.prompt, [subject, Edit(sample.place.source, sample.place.mask, by="diptych")])


def lar_gen_panel(sample: Sample, text: bool = True) -> Scene:
    """Our port of LAR-Gen: a reference panel is its Refine; with the sentence or without."""
    subject = Subject(sample.guest.picture, name=sample.guest.name, by="lar-gen-panel")
    return Scene(sample.prompt if text else "", [subject, Edit(sample.place.source, sample.place.mask)])


def lar_gen(sample: Sample, beta: float = 0.3, refine: bool = True, text: bool = True) -> Scene:
    """LAR-Gen itself: Assign at a beta, Refine or not, with the sentence or without."""
    settings = {"beta": beta, "refine": refine}
    subject = Subject(sample.guest.picture, name=sample.guest.name, by="lar-gen", options=settings)
    return Scene(sample.prompt if text else "", [subject, Edit(sample.place.source, sample.place.mask)])


def on_flux(way: Variant) -> Variant:
    """Return a way as the FLUX beside the studio paints it."""

    def open_painter(studio: Studio, settings: Settings) -> Painter:
        if settings.flux is None:
            raise CapriccioError("Our port is painted by a FLUX that can inpaint; name one with --flux.")
        return way(settings.flux, replace(settings, guidance=None))

    return open_painter


# --- other ways --------------------------------------------------------------------------------------------------


def paint_by_example(studio: Studio, settings: Settings) -> Painter:
    """Paint by Example (arXiv 2211.13227), diffusers' pipeline: subject and mask, no text.

    The whole picture is padded to the square that the checkpoint was trained at; nothing outside the mask changes.

    Raises:
        CapriccioError: If there is no checkpoint, or it cannot be loaded.
    """
    folder = settings.paint_by_example
    if folder is None:
        raise CapriccioError("Paint-by-Example needs a checkpoint of its own; give its folder with --paint-by-example.")
    try:
        pipe = _paint_by_example_pipeline(folder)
    except (OSError, ValueError, KeyError) as error:
        raise CapriccioError(
            f"{str(folder)!r} could not be opened as Paint-by-Example ({type(error).__name__}); give the folder of a "
            "checkpoint in diffusers' layout, as Fantasy-Studio/Paint-by-Example has it."
        ) from None
    pipe.to(studio.backbone.device).set_progress_bar_config(disable=True)
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    steps = {} if settings.steps is None else {"num_inference_steps": settings.steps}

    def paint(sample: Sample, seed: int) -> Image.Image:
        source, mask = sample.place.source, sample.place.mask
        painted = pipe(
            example_image=sample.subject,
            image=fit(source, side, side)[0],
            mask_image=fit(mask, side, side)[0],
            generator=torch.Generator().manual_seed(seed),
            **steps,
        ).images[0]
        return paste_back(painted, source, mask, fitted_box(source.size, (side, side), "pad"))

    return paint


def _paint_by_example_pipeline(folder: Path) -> Any:
    # Part by part: diffusers no longer finds the image encoder by the name of the library that checkpoints give.
    import diffusers
    from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder
    from transformers import CLIPImageProcessor, CLIPVisionConfig

    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    look = CLIPVisionConfig.from_pretrained(folder, subfolder="image_encoder")
    # The miniature's folder leaves out the VAE, which is that of its Stable Diffusion.
    beside = folder if index["vae"][0] is not None else assets.path("miniature/sd")
    return diffusers.PaintByExamplePipeline(
        vae=diffusers.AutoencoderKL.from_pretrained(beside, subfolder="vae"),
        image_encoder=PaintByExampleImageEncoder.from_pretrained(folder, subfolder="image_encoder", config=look),
        unet=diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        scheduler=getattr(diffusers, index["scheduler"][1]).from_pretrained(folder, subfolder="scheduler"),
        safety_checker=None,  # a false alarm would turn a picture black, and its measures with it
        feature_extractor=CLIPImageProcessor.from_pretrained(folder, subfolder="feature_extractor"),
    )


VARIANTS: dict[str, Variant] = {
    "inpainting": by_scene(inpainting),
    "locate": by_scene(locate),
    "collage": by_scene(collage),
    "diptych": by_scene(diptych),
    "paint-by-example": paint_by_example,
    "ip-adapter": by_scene(partial(lar_gen, beta=0.5, refine=False)),
    "assign": by_scene(partial(lar_gen, refine=False)),
    "assign-refine": by_scene(lar_gen),
    "subject-only": by_scene(partial(lar_gen, beta=1.0, text=False)),
    "flux-inpainting": on_flux(by_scene(inpainting)),
    "flux-panel": on_flux(by_scene(lar_gen_panel)),
    "flux-subject-only": on_flux(by_scene(partial(lar_gen_panel, text=False))),
    **{f"beta-{tenths / 10:g}": by_scene(partial(lar_gen, beta=tenths / 10)) for tenths in range(1, 11)},
    "drawn": lambda studio, settings: drawn,
}
"""Every way to paint, baselines first.

``ip-adapter`` is an IP-Adapter-Plus at 0.5 beside the inpainting model, as the paper compares with: whatever is loaded
as Assign, without Refine. ``flux-...`` is our port. ``drawn`` is no model: the world itself puts the subject there, as
a ceiling.
"""


def open_painters(
    studio: Studio,
    settings: Settings,
    names: Iterable[str] = (),
    told: Callable[[str], None] = lambda sentence: None,
    variants: Mapping[str, Variant] = VARIANTS,
) -> dict[str, Painter]:
    """Return painters by name, in the order of the table.

    Args:
        studio: Who paints.
        settings: What all ways share.
        names: Which ways; all that this studio can paint by default.
        told: Hears, without names, which ways are left out, and why.
        variants: The table.

    Raises:
        CapriccioError: If a name is unknown, a way that was named cannot be painted, or none can.
    """
    wanted = set(names)
    for name in sorted(wanted - set(variants)):
        raise CapriccioError(f"There is no variant {name!r}; {nearest(name, variants)}")
    painters: dict[str, Painter] = {}
    lost: dict[str, list[str]] = {}
    for name in [name for name in variants if not wanted or name in wanted]:
        try:
            painters[name] = variants[name](studio, settings)
        except CapriccioError as error:
            if wanted:
                raise
            lost.setdefault(str(error), []).append(name)
    for why, left_out in lost.items():
        told(f"{', '.join(left_out)} {'is' if len(left_out) == 1 else 'are'} left out: {why}")
    if not painters:
        raise CapriccioError("This model can paint none of the variants; open one that can inpaint.")
    return painters


def _blank() -> Sample:
    """A grey sample to plan with."""
    picture, cut = Image.new("RGB", (128, 128), "grey"), Image.new("RGBA", (64, 64), "red")
    place = Place("blank", picture, box_mask(picture.size, (32, 32, 96, 96)))
    return Sample(0, place, Guest("thing", "thing", cut, picture), Wish("blank", "a {}"))
