"""Plain inpainting and image to image: an existing picture is painted anew, in part or as a whole, from the prompt.

No paper of its own; what keeps the known part is the engine: an inpainting ControlNet, a model with the known part as
input channels, or holding the known latents on their path ``x_t = a_t z + s_t e`` with the noise e that the run
started from (known-region replacement as in RePaint, Lugmayr et al., arXiv 2201.09865, without its resampling). Pixels
outside the mask are those of the picture given. With a strength below 1 the run starts from the picture, noised
(SDEdit, Meng et al., arXiv 2108.01073).

    Scene("a hat", [Edit("cat.png", mask="head.png")])
    Scene("a cat as a watercolour", [Edit("cat.png", strength=0.6)])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from capriccio.canvas import Canvas, opaque, paste_back, size_like, softened
from capriccio.draft import CANVAS, PAINT, Draft, Finish, Method, Preparation
from capriccio.errors import CapriccioError
from capriccio.pictures import fit, fitted_box, open_mask, open_picture
from capriccio.scene import Edit

_MASK = "mask of the edit"


@dataclass(frozen=True)
class Options:
    """Settings of plain inpainting.

    Attributes:
        engine: How the known part is kept; the best at hand if ``None``.
        control_scale: Strength of the inpainting ControlNet; 0.95, as its authors recommend, if ``None``.
    """

    engine: Literal["controlnet", "fill", "hold"] | None = None
    control_scale: float | None = None


def plan(draft: Draft, conditions: Sequence[Edit], options: Options) -> Draft:
    """Lay the picture on a canvas of its own shape, paint the mask, put the result back into the picture."""
    (edit,) = conditions
    picture = opaque(open_picture(edit.image))
    whole = edit.mask is None
    mask = Image.new("L", picture.size, 255) if edit.mask is None else open_mask(edit.mask, picture.size, _MASK)
    for name, value in (("engine", options.engine), ("control_scale", options.control_scale)):
        if whole and value is not None:
            raise CapriccioError(f"{name}={value!r} is for what is outside a mask, and there is none; leave it out.")
    # Without a mask there is nothing to keep, unless the model cannot paint without.
    keeps = not whole or not draft.backbone.can_start_from_text
    draft = _sized(draft.inpaint(options.engine, options.control_scale) if keeps else draft, picture.size)
    size = draft.settings.width, draft.settings.height
    fitted, sentence = fit(picture, *size, edit.fit)
    paint = np.asarray(fit(mask, *size, edit.fit)[0]) > 127
    if not paint.any():
        raise CapriccioError("Nothing of the edit's mask is left after cropping; use fit='pad' or a larger mask.")
    box, seam = fitted_box(picture.size, size, edit.fit), softened(mask, edit.feather)
    return replace(
        draft.add(
            Preparation(CANVAS, "picture", sentence, lambda: fitted),
            Preparation(PAINT, "mask", f"the mask of the edit, {paint.mean():.0%} of the canvas", lambda: paint),
        ).say(*filter(None, [draft.backbone.defaults.caution])),
        canvas=Canvas(*size, draft.backbone.token),
        strength=edit.strength,
        groups={"image:edit": paint, "image:known": ~paint},
        finish=(Finish("put it into the picture given", lambda found, _: paste_back(found, picture, seam, box)),),
    )


def _sized(draft: Draft, picture: tuple[int, int]) -> Draft:
    """Take the picture's shape where the scene gives no size and the backbone can paint any."""
    defaults, scene, settings = draft.backbone.defaults, draft.scene, draft.settings
    if defaults.own or scene.width is not None or scene.height is not None:
        return draft
    width, height = size_like(*picture, defaults.width * defaults.height, draft.backbone.token)
    return replace(draft, settings=replace(settings, width=width, height=height))


METHOD = Method(
    name="inpainting",
    title="plain inpainting and image to image",
    paper="",
    what="paint an existing picture anew: a part of it, or all of it at a strength below 1",
    takes=(frozenset({"edit"}),),
    options=Options,
    plan=plan,
)
