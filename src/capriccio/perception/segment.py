"""Where a subject is in its picture.

What the person gave comes first: a mask, then transparency. Otherwise a segmenter looks: one for the smooth pictures
of the miniature's world, from pixels alone, and Grounding DINO with SAM for photographs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Protocol

import numpy as np
from PIL import Image

from capriccio.errors import CapriccioError
from capriccio.pictures import Picture, Source, open_mask, open_picture

Mask = np.ndarray
"""(H, W) truth values."""

_REMEDIES = "give a mask or a picture with a transparent background, use another name, or set remove_background=False"


@dataclass(frozen=True)
class Sighting:
    """A place where something may be.

    Attributes:
        box: Left, top, right and bottom in pixels.
        score: How sure the finder is, 0 to 1.
    """

    box: tuple[float, ...]
    score: float


class Segmenter(Protocol):
    """Something that finds a named thing."""

    def __call__(self, image: Image.Image, name: str) -> Mask:
        """Return where the thing is in an RGB picture; all false if it is nowhere."""


def segment(
    image: Source | Picture,
    name: str,
    *,
    mask: Source | Picture | None = None,
    backbone_is_miniature: bool = False,
    segmenter: Segmenter | None = None,
) -> Mask:
    """Return where a subject is.

    Args:
        image: The picture, (H, W).
        name: What the subject is called.
        mask: The answer, if the person knows it; taken as it is.
        backbone_is_miniature: Whether to look as suits the miniature's world, rather than photographs.
        segmenter: Who looks instead.

    Returns:
        (H, W) truth values: the mask given, what is not transparent, or the largest filled contour found.

    Raises:
        CapriccioError: If the mask does not fit, or nobody finds the subject.
    """
    picture = open_picture(image)
    if mask is not None:
        return np.asarray(open_mask(mask, picture.size, f"mask of {name!r}")) > 0
    if picture.mode == "RGBA":
        return _found(np.asarray(picture.getchannel("A")) >= 128, name)
    look = segmenter or (WorldSegmenter() if backbone_is_miniature else _grounded())
    return _found(largest_filled_contour(look(picture, name)), name)


def _found(mask: Mask, name: str) -> Mask:
    if not mask.any():
        raise CapriccioError(f"No {name!r} was found in its picture; {_REMEDIES}.")
    return mask


def largest_filled_contour(mask: Mask) -> Mask:
    """Return the largest connected piece of a mask, counted with its holes filled.

    Args:
        mask: (H, W) truth values; pieces touch along edges and corners.
    """
    from scipy import ndimage

    filled = ndimage.binary_fill_holes(mask)
    pieces, count = ndimage.label(filled, structure=np.ones((3, 3)))
    if count == 0:
        return np.zeros_like(filled)
    return pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])


def on_white(image: Image.Image, mask: Mask) -> Image.Image:
    """Return the picture as RGB with white wherever the mask is false."""
    white = Image.new("RGB", image.size, "white")
    return Image.composite(image.convert("RGB"), white, Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))))


# --- the miniature's world ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorldSegmenter:
    """Finds the one bold thing before a smooth backdrop, whatever it is called: the name plays no part.

    What the frame of the picture shows is backdrop. Every pixel is as strange as it is far from its nearest
    neighbours in the frame, by colour (CIELAB) and place; a minimal cut then parts the strange from the familiar along
    strong edges (Boykov and Jolly 2001).

    Attributes:
        side: Pixels of the longer side it works at.
        frame: Width of the frame in those pixels.
        strangeness: Distance from which a pixel is rather the thing's.
        smoothness: Cost of an edge of the cut where colours are equal.
        place: How much a picture's height, and width, weigh against colour, per pixel.
    """

    side: int = 128
    frame: int = 4
    strangeness: float = 11.0
    smoothness: float = 20.0
    place: tuple[float, float] = (0.6, 0.08)

    def __call__(self, image: Image.Image, name: str) -> Mask:
        """Return where the thing is; see the class."""
        from scipy import ndimage

        small = image.convert("RGB")
        small.thumbnail((self.side, self.side), Image.Resampling.BOX)
        if min(small.size) <= 2 * self.frame:
            return np.zeros((image.height, image.width), dtype=bool)
        colours = lab(np.asarray(small) / 255.0)
        frame = np.ones(colours.shape[:2], dtype=bool)
        frame[self.frame : -self.frame, self.frame : -self.frame] = False
        strange = np.minimum(_strangeness(colours, frame, self.place), 40)
        # In a soft or busy picture nothing may be as strange as in the world: then less must do.
        for enough in (self.strangeness, self.strangeness / 2, self.strangeness / 4):
            cut = minimal_cut(np.where(frame, -1e3, strange - enough) / 4, colours, self.smoothness)
            if cut.any():
                break
        joined = ndimage.binary_closing(np.pad(cut, 2), iterations=2)[2:-2, 2:-2]
        return np.asarray(Image.fromarray(joined).resize(image.size, Image.Resampling.NEAREST))


def lab(rgb: np.ndarray) -> np.ndarray:
    """Return CIELAB of sRGB in 0..1, (H, W, 3), with lightness weakened: shading is no edge."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1095, 0.8728]])  # white is 1
    x, y, z = np.moveaxis(np.cbrt(linear @ to_xyz.T + 1e-6), -1, 0)
    return np.stack([0.6 * (116 * y - 16), 500 * (x - y), 200 * (y - z)], -1)


def _strangeness(colours: np.ndarray, frame: Mask, place: tuple[float, float]) -> np.ndarray:
    """Mean distance of each pixel to its four nearest in the frame, by colour and place; (H, W)."""
    from scipy.spatial import cKDTree

    height, width = frame.shape
    rows, columns = np.mgrid[:height, :width]
    features = np.concatenate([colours, np.stack([rows * place[0], columns * place[1]], -1)], -1)
    distances, _ = cKDTree(features[frame]).query(features.reshape(height * width, -1), k=4)
    return distances.mean(-1).reshape(height, width)


def minimal_cut(gain: np.ndarray, colours: np.ndarray, smoothness: float) -> Mask:
    """Return the pixels to keep: the greatest sum of gains less the cost of their outline.

    The outline costs ``smoothness * exp(-|a - b|^2 / (2 mean |a - b|^2))`` between neighbours of colours a and b,
    over their distance (Boykov and Jolly 2001, equations 1 to 4).

    Args:
        gain: (H, W), what keeping a pixel is worth; negative where it should go.
        colours: (H, W, C).
        smoothness: In the unit of the gains.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    count, unit = gain.size, 50  # flows are whole numbers: fiftieths
    first, second, cost = _outline(colours)
    cost, worth = np.rint(unit * smoothness * cost), np.rint(unit * gain.ravel())
    pixels, source, sink = np.arange(count), np.full(count, count), np.full(count, count + 1)
    tails = np.concatenate([first, second, source, pixels])
    heads = np.concatenate([second, first, pixels, sink])
    room = np.concatenate([cost, cost, worth.clip(0), (-worth).clip(0)]).astype(np.int32)
    graph = csr_matrix((room, (tails, heads)), shape=(count + 2, count + 2))
    rest = graph - maximum_flow(graph, count, count + 1).flow
    rest.eliminate_zeros()
    kept = np.zeros(count + 2, dtype=bool)
    kept[breadth_first_order(rest, count, return_predecessors=False)] = True
    return kept[:count].reshape(gain.shape)


def _outline(colours: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of neighbours, also across corners, as two arrays of pixel numbers, and what parting them costs."""
    height, width, channels = colours.shape
    number = np.arange(height * width).reshape(height, width)
    pairs = [
        (number[:, :-1], number[:, 1:]),
        (number[:-1], number[1:]),
        (number[:-1, :-1], number[1:, 1:]),
        (number[:-1, 1:], number[1:, :-1]),
    ]
    first, second = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    distance = np.repeat([1.0, 1.0, 2**0.5, 2**0.5], [pair[0].size for pair in pairs])
    flat = colours.reshape(-1, channels)
    squares = ((flat[first] - flat[second]) ** 2).sum(-1)
    return first, second, np.exp(-squares / (2 * squares.mean() + 1e-9)) / distance


# --- photographs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GroundedSegmenter:
    """Grounding DINO finds the box of a name, SAM what fills it; loaded when first used.

    Of several boxes the best scored is taken, where the published code of Diptych Prompting takes whichever is first.

    Attributes:
        detector: Repository or folder of a Grounding DINO.
        segmenter: Repository or folder of a SAM.
        threshold: Least score of a box.
        device: Where both run.
    """

    detector: str = "IDEA-Research/grounding-dino-tiny"
    segmenter: str = "facebook/sam-vit-base"
    threshold: float = 0.3
    device: str = "cpu"

    def __call__(self, image: Image.Image, name: str) -> Mask:
        """Return where the thing is; all false if no box scores enough."""
        box = self.box(image, name)
        return np.zeros((image.height, image.width), dtype=bool) if box is None else self.inside(image, box)

    def box(self, image: Image.Image, name: str) -> list[float] | None:
        """Return the best box in pixels: left, top, right, bottom; ``None`` if there is none."""
        found = self.boxes(image, name)
        return list(max(found, key=lambda sighting: sighting.score).box) if found else None

    def boxes(self, image: Image.Image, name: str) -> list[Sighting]:
        """Return every box of a name that scores enough, and its score."""
        import torch

        processor, model = self._detector
        inputs = processor(images=image, text=f"{name.lower().strip(' .')}.", return_tensors="pt").to(self.device)
        with torch.inference_mode():
            outputs = model(**inputs)
        sizes = [(image.height, image.width)]
        found = processor.post_process_grounded_object_detection(
            outputs, inputs.input_ids, threshold=self.threshold, target_sizes=sizes
        )[0]
        pairs = zip(found["boxes"].tolist(), found["scores"].tolist(), strict=True)
        return [Sighting(tuple(box), score) for box, score in pairs]

    def inside(self, image: Image.Image, box: Sequence[float]) -> Mask:
        """Return what fills a box: wherever one of SAM's three answers is positive, as published."""
        import torch

        processor, model = self._segmenter
        inputs = processor(image, input_boxes=[[list(box)]], return_tensors="pt").to(self.device)
        with torch.inference_mode():
            outputs = model(**inputs)
        masks = processor.post_process_masks(
            outputs.pred_masks.cpu(), inputs["original_sizes"].cpu(), inputs["reshaped_input_sizes"].cpu()
        )[0]
        return masks[0].any(0).numpy()

    @cached_property
    def _detector(self) -> tuple[Any, Any]:
        from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

        return self._load(self.detector, GroundingDinoProcessor, GroundingDinoForObjectDetection)

    @cached_property
    def _segmenter(self) -> tuple[Any, Any]:
        from transformers import SamModel, SamProcessor

        return self._load(self.segmenter, SamProcessor, SamModel)

    def _load(self, name: str, processor: Any, model: Any) -> tuple[Any, Any]:
        try:
            return processor.from_pretrained(name), model.from_pretrained(name).to(self.device).eval()
        except (OSError, ValueError):
            raise CapriccioError(
                f"{name!r}, which looks for subjects, could not be loaded; connect to download it, or {_REMEDIES}."
            ) from None


@cache
def _grounded() -> GroundedSegmenter:
    # One for all subjects of a run: its weights are loaded once.
    return GroundedSegmenter()
