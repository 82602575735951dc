"""Reference pictures on panels: fitted, the subject found in them, put alone on white; and pictures beside them.

A method that shows a model its reference lays such a panel on its canvas; what is done to the pictures is the same for
all of them, and no forward pass of a denoiser.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from capriccio import perception
from capriccio.canvas import Box, Canvas, lay, on_colour, opaque, paste_back, side_by_side, size_like, softened
from capriccio.draft import CANVAS, PAINT, Draft, Finish, Preparation
from capriccio.errors import CapriccioError
from capriccio.pictures import Fit, Picture, fit, fitted_box, open_mask, open_picture
from capriccio.scene import Edit, Style, Subject


def reference_panel(draft: Draft, box: Box, reference: Subject | Style) -> Draft:
    """Add the preparation ``<name>.panel`` to a draft: a picture of a box's size, made from those of the reference.

    Args:
        draft: A plan in the making.
        box: Of the panel.
        reference: A subject is found and put alone on white, unless it shall keep its background; of several pictures,
            the one that shows it largest is taken. A style stays whole.
    """
    name = reference.name
    alone = isinstance(reference, Subject) and reference.remove_background
    sources = reference.images if isinstance(reference, Subject) else (reference.image,)
    mask = reference.mask if isinstance(reference, Subject) else None
    fitted = [_fitted(source, mask if alone else None, name, box, reference.fit) for source in sources]
    sentences = " ".join(dict.fromkeys(sentence for _, sentence in fitted))
    pictures = [picture for picture, _ in fitted]
    draft = draft.add(Preparation(f"{name}.pictures", "pictures", sentences, lambda: pictures))
    if mask is not None and not alone:
        draft = draft.say(f"The mask of {name!r} has no effect, because remove_background is off.")
    if not alone and any(picture.mode == "RGBA" for picture in pictures):
        draft = draft.say(f"The picture of {name!r} is transparent in places; white is put there.")
    if alone or len(pictures) > 1:
        return draft.add(*_found(draft, name, pictures, alone))
    whole = Preparation(f"{name}.panel", "picture", "the picture as it is", _first, (f"{name}.pictures",))
    return draft.add(whole)


def paint_beside(draft: Draft, reference: Subject | Style, edit: Edit, method: str) -> Draft:
    """Put a reference on the left panel and the picture to be edited on the right, and paint that one's mask alone.

    The groups are ``image:left``, ``image:right`` and, of the latter, ``image:edit``; the result goes back into the
    picture.

    Args:
        draft: A plan in the making, whose engine is chosen.
        reference: On the left.
        edit: With a mask, from noise.
        method: Who asks, for those who made a mistake.

    Raises:
        CapriccioError: If there is no mask, nothing is left of it, or the edit has a strength.
    """
    if edit.mask is None or edit.strength != 1:
        raise CapriccioError(
            f"{method} paints a subject into the mask of an edit, from noise; give a mask, no strength."
        )
    picture = opaque(open_picture(edit.image))
    mask = open_mask(edit.mask, picture.size, "mask of the edit")
    canvas = _two_panels(draft, picture.size)
    left, right = canvas.panel("left"), canvas.panel("right")
    size = right.width, right.height
    fitted, sentence = fit(picture, *size, edit.fit)
    paint = canvas.mask(right)
    paint[:, right.left :] = np.asarray(fit(mask, *size, edit.fit)[0]) > 127
    if not paint.any():
        raise CapriccioError("Nothing of the edit's mask is left after cropping; use fit='pad' or a larger mask.")
    box, seam = fitted_box(picture.size, size, edit.fit), softened(mask, edit.feather)

    def finish(painted: Image.Image, _: Any) -> Image.Image:
        return paste_back(painted.crop(right.corners), picture, seam, box)

    panel = f"{reference.name}.panel"
    draft = reference_panel(draft, left, reference).add(
        Preparation(
            CANVAS,
            "picture",
            f"left: {panel}; right: the picture to edit. {sentence}",
            lambda shown: lay(canvas, {"left": shown, "right": fitted}),
            (panel,),
        ),
        Preparation(PAINT, "mask", "the mask of the edit", lambda: paint),
    )
    groups = {"image:left": canvas.mask(left), "image:right": canvas.mask(right), "image:edit": paint}
    back = Finish("put the right panel back into the picture given", finish)
    return replace(draft, canvas=canvas, groups=groups, picture=right, finish=(back,))


def _two_panels(draft: Draft, picture: tuple[int, int]) -> Canvas:
    """Two panels of the shape of the picture that is edited, unless the scene or the backbone says their size."""
    token, defaults, scene, settings = draft.backbone.token, draft.backbone.defaults, draft.scene, draft.settings
    size = settings.width, settings.height
    if not (defaults.own or scene.width or scene.height):
        size = size_like(*picture, settings.width * settings.height, token)
    return side_by_side(("left", "right"), *size, token)


def _first(pictures: list[Image.Image]) -> Image.Image:
    return opaque(pictures[0])


def _fitted(source: Picture, mask: Picture | None, name: str, box: Box, how: Fit) -> tuple[Image.Image, str]:
    picture = open_picture(source)
    if mask is not None:
        given = open_mask(mask, picture.size, f"mask of {name!r}")
        picture = picture.convert("RGB")
        picture.putalpha(given)
    return fit(picture, box.width, box.height, how)


def _found(draft: Draft, name: str, pictures: list[Image.Image], alone: bool) -> tuple[Preparation, Preparation]:
    """Find the subject in each picture, and make the panel from the picture that shows it largest."""
    own = draft.backbone.defaults.own

    def masks(pictures: list[Image.Image]) -> list[Image.Image]:
        return [subject_mask(picture, name, own) for picture in pictures]

    def panel(pictures: list[Image.Image], masks: list[Image.Image]) -> Image.Image:
        picture, mask = max(zip(pictures, masks, strict=True), key=lambda pair: np.asarray(pair[1], np.int64).sum())
        return on_colour(picture, mask) if alone else opaque(picture)

    given = all(picture.mode == "RGBA" for picture in pictures)
    finds = "the mask or transparency given" if given else f"find the {name}, keep its largest part, holes filled"
    several = f", from the one of {len(pictures)} pictures that shows it largest" if len(pictures) > 1 else ""
    puts = (f"the {name} alone on white" if alone else "the picture as it is") + several
    return (
        Preparation(f"{name}.masks", "masks", finds, masks, (f"{name}.pictures",)),
        Preparation(f"{name}.panel", "picture", puts, panel, (f"{name}.pictures", f"{name}.masks")),
    )


def subject_mask(picture: Image.Image, name: str, is_miniature: bool) -> Image.Image:
    """Return where a subject is in its picture, mode ``"L"``: what is not transparent, else what a segmenter finds.

    Raises:
        CapriccioError: If nobody finds it.
    """
    if picture.mode == "RGBA":
        return picture.getchannel("A")
    found = perception.segment(picture, name, backbone_is_miniature=is_miniature)
    return Image.fromarray(np.where(found, np.uint8(255), np.uint8(0)))
