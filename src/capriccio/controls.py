"""Control pictures: which ControlNet sees what, where on the canvas, how strongly, and in which steps.

Zhang, Rao and Agrawala: *Adding Conditional Control to Text-to-Image Diffusion Models*, ICCV 2023, arXiv 2302.05543. A
side network reads a control picture beside the noisy latents and the prompt, and adds to the denoiser's blocks

    block i:  x <- x + place * scale * residual_i        in the steps [start, end) of the run

with ``scale`` = ``controlnet_conditioning_scale`` and everything else as in diffusers' pipelines, its guess mode
included. With regions, as Chen et al. (arXiv 2411.02395) publish it, it reads the whole prompt alone and adds to the
regional stream of the image.
``place`` is ours: where the control's own mask, and its picture, reach; 1 on the whole canvas leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from capriccio.backbones.base import Backbone, Steering
from capriccio.canvas import Box, Canvas, Mask, on_colour
from capriccio.errors import CapriccioError, nearest
from capriccio.pictures import fit, open_mask, open_picture
from capriccio.scene import Control


@dataclass(frozen=True, eq=False)
class Guide:
    """A control picture on the canvas.

    Attributes:
        steering: Its ControlNet at work.
        picture: RGB, of the canvas's size, black where there is nothing to see.
        place: Where it steers, (height, width); everywhere if ``None``.
        says: What was done to the picture.
    """

    steering: Steering
    picture: Image.Image
    place: Mask | None
    says: str


def guide(control: Control, name: str, backbone: Backbone, canvas: Canvas, box: Box | None, num_steps: int) -> Guide:
    """Return what becomes of a control.

    Args:
        control: What is asked for.
        name: Of its control picture among the outputs of the preparations.
        backbone: Whose ControlNets steer.
        canvas: What is painted.
        box: Where on it the picture lies that the control is for; all of it if ``None``.
        num_steps: Of the run.

    Raises:
        CapriccioError: If the ControlNet, the kind of picture, the steps or the mask cannot be.
    """
    net = _net(control, backbone)
    names = backbone.modes(net)
    mode = _mode(control, net, names)
    kind = "" if names is None or mode is None else names[mode]
    picture, place, says = _laid(control, canvas, box or Box(0, 0, canvas.width, canvas.height))
    scale, steps = control.controlnet_conditioning_scale, window(control, num_steps)
    guess = backbone.guesses(net, control.guess_mode)
    return Guide(Steering(net, mode, kind, scale, steps, name, place is None, guess), picture, place, says)


def window(control: Control, num_steps: int) -> range:
    """Return the steps in which a control is at work: those that lie inside its share of the run, as in diffusers.

    Raises:
        CapriccioError: If there is none.
    """
    start, end = control.control_guidance_start, control.control_guidance_end
    inside = [i for i in range(num_steps) if not (i / num_steps < start or (i + 1) / num_steps > end)]
    if not inside:
        raise CapriccioError(
            f"A control from {start:g} to {end:g} of {num_steps} steps holds no whole step; move "
            "control_guidance_start and control_guidance_end apart, or take more steps."
        )
    return range(inside[0], inside[-1] + 1)


def words(steering: Steering) -> str:
    """Say what a ControlNet does."""
    named = "" if steering.kind == str(steering.mode) else f" ({steering.kind})"
    kind = "" if steering.mode is None else f", mode {steering.mode}{named}"
    where = "" if steering.everywhere else ", in its place on the canvas alone"
    steps = f"steps [{steering.steps.start}, {steering.steps.stop})"
    guess = ", the prompt's branch alone (guess mode)" * steering.guess
    return f"ControlNet {steering.net}{kind} x {steering.scale:g}, {steps}{where}{guess}: sees {steering.hint}"


def _net(control: Control, backbone: Backbone) -> str:
    names = list(backbone.controlnets)
    if not names:
        raise CapriccioError(
            f"A control was given, but {backbone.name!r} was opened without a ControlNet; open it with controlnets= "
            "the folder or repository of one (--controlnet)."
        )
    if control.net is None and len(names) > 1:
        raise CapriccioError(
            f"A control names no ControlNet, and {backbone.name!r} has {', '.join(map(repr, names))}; give net= one of "
            "them (--control FILE:NET)."
        )
    if control.net is not None and control.net not in names:
        raise CapriccioError(f"{backbone.name!r} has no ControlNet {control.net!r}; {nearest(control.net, names)}")
    return control.net or names[0]


def _mode(control: Control, net: str, names: Sequence[str] | None) -> int | None:
    mode = control.mode
    if names is None:
        if mode is not None:
            raise CapriccioError(
                f"mode={mode!r} was given, but the ControlNet {net!r} knows one kind of picture only; leave it out."
            )
        return None
    if mode is None:
        raise CapriccioError(
            f"The ControlNet {net!r} knows {len(names)} kinds of picture, but the control does not say which; give "
            f"mode= {', '.join(map(repr, names))}, or its number."
        )
    if isinstance(mode, str):
        if mode not in names:
            raise CapriccioError(f"The ControlNet {net!r} knows no picture of mode={mode!r}; {nearest(mode, names)}")
        return names.index(mode)
    if mode >= len(names):
        raise CapriccioError(
            f"mode={mode!r} was given, but the ControlNet {net!r} knows {len(names)} kinds of picture; give one of 0 "
            f"to {len(names) - 1}."
        )
    return mode


def _laid(control: Control, canvas: Canvas, box: Box) -> tuple[Image.Image, Mask | None, str]:
    """Return the control picture on the canvas, where it steers, and what was done to it."""
    picture = open_picture(control.image)
    if picture.mode == "RGBA":
        # In control pictures black is nothing.
        picture = on_colour(picture, picture.getchannel("A"), "black")
    whole = Image.new("L", picture.size, 255)
    mask = whole
    if control.mask is not None:
        mask = open_mask(control.mask, picture.size, "mask of the control", all_white=True)
    size = box.width, box.height
    fitted, says = fit(picture, *size, control.fit)
    reach, chosen = (fit(given, *size, control.fit)[0] for given in (whole, mask))
    place = np.zeros((canvas.height, canvas.width), bool)
    left, top, right, bottom = box.corners
    place[top:bottom, left:right] = np.asarray(chosen) > 127
    if not place.any():
        raise CapriccioError("Nothing of the control's mask is left after cropping; use fit='pad' or a larger mask.")
    laid = Image.new("RGB", (canvas.width, canvas.height), "black")
    laid.paste(on_colour(fitted, reach, "black"), (left, top))
    return laid, None if place.all() else place, says
