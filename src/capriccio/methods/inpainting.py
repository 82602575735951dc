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
from dataclasses import dataclass
from typing import Literal

from capriccio.draft import Draft, Method, as_data, paint_into
from capriccio.errors import CapriccioError
from capriccio.scene import Edit


@dataclass(frozen=True)
class Options:
    """Settings of plain inpainting.

    Attributes:
        engine: How the known part is kept; the best at hand if ``None``.
        control_scale: Strength of the inpainting ControlNet; 0.95, as its authors recommend, if ``None``.
        hold: Whether known latents are held on their path as well, beside what another engine shows of them: what is
            painted then fits its surroundings better. Without, it is what diffusers' pipelines do.
    """

    engine: Literal["controlnet", "fill", "hold"] | None = None
    control_scale: float | None = None
    hold: bool | None = None


def plan(draft: Draft, conditions: Sequence[Edit], options: Options) -> Draft:
    """Lay the picture on a canvas of its own shape, paint the mask, put the result back into the picture."""
    (edit,) = conditions
    whole = edit.mask is None
    for name, value in as_data(options).items():
        if whole and value is not None:
            raise CapriccioError(f"{name}={value!r} is for what is outside a mask, and there is none; leave it out.")
    # Without a mask there is nothing to keep, unless the model cannot paint without.
    keeps = not whole or not draft.backbone.can_start_from_text
    draft = draft.inpaint(options.engine, options.control_scale, options.hold) if keeps else draft
    return paint_into(draft, edit).say(*filter(None, [draft.backbone.defaults.caution]))


METHOD = Method(
    name="inpainting",
    title="plain inpainting and image to image",
    paper="",
    what="paint an existing picture anew: a part of it, or all of it at a strength below 1",
    takes=(frozenset({"edit"}),),
    options=Options,
    plan=plan,
)
