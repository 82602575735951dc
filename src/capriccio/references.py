"""Reference pictures on panels: fitted, the subject found in them, put alone on white.

A method that shows a model its reference lays such a panel on its canvas; what is done to the pictures is the same for
all of them, and no forward pass of a denoiser.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from capriccio import perception
from capriccio.canvas import Box, on_colour, opaque
from capriccio.draft import Draft, Preparation
from capriccio.pictures import Fit, Picture, fit, open_mask, open_picture
from capriccio.scene import Style, Subject


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
