"""What is read from a painted picture: the paper's two scores, and what every inpainting must answer for.

The paper asks for four consistencies; each has its measures here (`CONSISTENCIES`). CLIP-I compares the inpainted
region with the subject alone on white, CLIP-T the region with the sentence (section 6.1); both are cosines, 0 to 1 for
what belongs together, which the paper prints times 100.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from capriccio.canvas import on_colour
from capriccio.errors import CapriccioError
from capriccio.evaluation.lar_gen.samples import Protocol, Sample, box_of
from capriccio.evaluation.metrics import Clip, copied, load_vae, reconstruct, to_pixels
from capriccio.perception.reader import read

CONSISTENCIES = {
    "context": ("outside", "backdrop"),
    "identity": ("clip_i", "identity", "kind", "colour"),
    "semantic": ("clip_t", "wish"),
    "smoothness": ("seam",),
}
"""Which measures stand for each of the paper's consistencies; the first is read everywhere, others in the world."""

MEASURES = {
    "clip_i": "CLIP-I: inpainted region and subject on white",
    "clip_t": "CLIP-T: inpainted region and sentence",
    "outside": "1 if every pixel outside the mask is the source's",
    "seam": "jump along the mask's border beyond the source's own, in parts of the range",
    "identity": "cosine of the reader's identity embeddings",
    "kind": "1 if the subject's kind is read",
    "colour": "1 if the subject's main colour is read",
    "wish": "1 if what the sentence asks for is read",
    "backdrop": "1 if the source's backdrop is read",
    "copied": "1 if the copy-paste alarm rings",
}
"""Every measure and what it says; those from ``identity`` on need the world's truth."""

PLAIN = ("clip_i", "clip_t", "outside", "seam")


def region(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """Return the inpainted region: the box of the mask, white (as around the subject) where the mask is not.

    CLIP sees all of it, resized to its square. The paper does not say how it was cut; with this, CLIP tells subjects
    that the world itself has drawn apart better than with the region in the middle of a white square.
    """
    return on_colour(picture, mask).crop(box_of(mask))


def outside_equal(picture: Image.Image, source: Image.Image, mask: Image.Image) -> bool:
    """Return whether every pixel outside the mask is the source's, to the bit.

    Raises:
        CapriccioError: If the sizes differ.
    """
    pixels, given, inside = _arrays(picture, source, mask)
    return bool((pixels[~inside] == given[~inside]).all())


def seam_error(picture: Image.Image, source: Image.Image, mask: Image.Image) -> float:
    """Return how much harder the picture jumps along the mask's border than the source does there.

    Over all pairs of neighbours (left and right, above and below) of which one is in the mask and one is not, the mean
    of ``|p_in - p_out| - |s_in - s_out|`` in parts of the range: 0 for the source itself, negative where the source had
    an edge and the picture has none, at most 1.

    Raises:
        CapriccioError: If the sizes differ, or the mask has no border.
    """
    pixels, given, inside = _arrays(picture, source, mask)
    jumps, own = (_jumps(array, inside) for array in (pixels, given))
    if not jumps.size:
        raise CapriccioError("The mask covers nothing or everything, so it has no border; give one that covers a part.")
    return float((jumps - own).mean() / 255)


def _jumps(pixels: NDArray[np.int16], inside: NDArray[np.bool_]) -> NDArray[np.int16]:
    """Absolute differences across the border, (pairs, 3)."""
    across = [np.abs(np.diff(pixels, axis=axis))[np.diff(inside, axis=axis)] for axis in (0, 1)]
    return np.concatenate(across)


def _arrays(
    picture: Image.Image, source: Image.Image, mask: Image.Image
) -> tuple[NDArray[np.int16], NDArray[np.int16], NDArray[np.bool_]]:
    sizes = {one.size for one in (picture, source, mask)}
    if len(sizes) > 1:
        told = ", ".join(f"{one.width} x {one.height}" for one in (picture, source, mask))
        raise CapriccioError(f"Picture, source and mask are {told} pixels; give three of the same size.")
    pixels, given = (np.asarray(one.convert("RGB"), np.int16) for one in (picture, source))
    return pixels, given, np.asarray(mask) > 127


def emptied(source: Image.Image, mask: Image.Image) -> Image.Image:
    """Return the source with its hole filled by the nearest pixels around it, softened: the thing in it is gone."""
    inside = np.asarray(mask) > 127
    rows, columns = distance_transform_edt(inside, return_distances=False, return_indices=True)
    filled = Image.fromarray(np.asarray(source.convert("RGB"))[rows, columns])
    soft = filled.filter(ImageFilter.GaussianBlur(max(source.size) / 32))
    return Image.composite(soft, source.convert("RGB"), mask)


def pasted(source: Image.Image, mask: Image.Image, subject: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Return the source with the subject pasted into the emptied hole at fitting size, standing on its floor.

    Args:
        source: RGB.
        mask: The hole, ``"L"``.
        subject: Alone, RGBA.

    Returns:
        The picture, and where the subject is in it (``"L"``); neither reaches outside the mask.
    """
    left, top, right, bottom = box_of(mask)
    alone = subject.crop(subject.getchannel("A").getbbox())
    scale = min((right - left) / alone.width, (bottom - top) / alone.height)
    width, height = (max(1, round(side * scale)) for side in alone.size)
    place = left + (right - left - width) // 2, bottom - height
    layer = Image.new("RGBA", source.size)
    layer.paste(alone.resize((width, height), Image.Resampling.LANCZOS), place)
    there = Image.composite(layer.getchannel("A"), Image.new("L", source.size), mask)
    return Image.composite(layer.convert("RGB"), emptied(source, mask), there), there


class Examiner:
    """Reads painted pictures of a protocol; what belongs to the data is computed once."""

    def __init__(self, protocol: Protocol, clip: Clip) -> None:
        """Embed subjects and sentences.

        Args:
            protocol: Where the samples come from.
            clip: The towers of CLIP-I and CLIP-T.
        """
        self.protocol, self.clip = protocol, clip
        self.knows_truth = all(guest.looks for guest in protocol.guests)
        self._subjects: dict[str, Tensor] = {}
        self._texts: dict[str, Tensor] = {}
        self._pastes: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}

    @property
    def measures(self) -> tuple[str, ...]:
        """What is read from every picture: `MEASURES`, or those that need no truth."""
        return tuple(MEASURES) if self.knows_truth else PLAIN

    def read(self, sample: Sample, picture: Image.Image) -> dict[str, float]:
        """Return every measure of one picture.

        Raises:
            CapriccioError: If the picture is not of the source's size.
        """
        source, mask = sample.place.source, sample.place.mask
        seen = self.clip.embed_pictures([region(picture, mask)])[0]
        plain = {
            "clip_i": float(seen @ self._subject(sample)),
            "clip_t": float(seen @ self._text(sample)),
            "outside": float(outside_equal(picture, source, mask)),
            "seam": seam_error(picture, source, mask),
        }
        return plain | (self._truth(sample, picture) if self.knows_truth else {})

    def _truth(self, sample: Sample, picture: Image.Image) -> dict[str, float]:
        # The world's reader knows things with room around them, so it sees the whole picture.
        pixels, looks = to_pixels([picture]), sample.guest.looks
        reading = read(pixels)
        return {
            "identity": float(reading.identity[0] @ self._identities[sample.guest.id]),
            "kind": float(reading.kind[0] == looks["kind"]),
            "colour": float(reading.main[0] == looks["main"]),
            "wish": float(all(getattr(reading, name)[0] == asked for name, asked in sample.wish.looks.items())),
            "backdrop": float(reading.backdrop[0] == sample.place.backdrop),
            "copied": float(copied(*self._paste(sample), pixels)[0]),
        }

    def _subject(self, sample: Sample) -> Tensor:
        key = sample.guest.id
        if key not in self._subjects:
            self._subjects[key] = self.clip.embed_pictures([sample.subject])[0]
        return self._subjects[key]

    def _text(self, sample: Sample) -> Tensor:
        if sample.text not in self._texts:
            self._texts[sample.text] = self.clip.embed_texts([sample.text])[0]
        return self._texts[sample.text]

    def _paste(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """The subject as a paste would show it here, through the VAE, and where it is: what the alarm looks for."""
        key = sample.place.id, sample.guest.id
        if key not in self._pastes:
            picture, there = pasted(sample.place.source, sample.place.mask, sample.guest.picture)
            mask = torch.from_numpy(np.asarray(there) > 127)[None]
            self._pastes[key] = reconstruct(self._vae, to_pixels([picture])), mask
        return self._pastes[key]

    @cached_property
    def _vae(self) -> AutoencoderKL:
        return load_vae()

    @cached_property
    def _identities(self) -> dict[str, Tensor]:
        guests = self.protocol.guests
        found = read(to_pixels([guest.original for guest in guests])).identity
        return {guest.id: vector for guest, vector in zip(guests, found, strict=True)}
