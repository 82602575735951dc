"""Seeing: what is where in a picture, by models behind small protocols."""

from capriccio.perception.segment import (
    GroundedSegmenter,
    Segmenter,
    WorldSegmenter,
    largest_filled_contour,
    on_white,
    segment,
)

__all__ = ["GroundedSegmenter", "Segmenter", "WorldSegmenter", "largest_filled_contour", "on_white", "segment"]
