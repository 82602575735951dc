"""The judge: everything we can say about a picture of a subject, read from its pixels against the world's truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from capriccio.evaluation.cases import Ask, Case, references
from capriccio.evaluation.metrics import Clip, copied, load_clip, load_vae, reconstruct, to_pixels
from capriccio.perception.reader import Reading, read


@dataclass(frozen=True)
class Score:
    """The readings of one picture; rates are 0 or 1."""

    identity: float  # cosine of the reader's identity embeddings, reference and picture
    clip_i: float  # cosine of the CLIP embeddings of the two pictures
    clip_t: float  # cosine of the CLIP embeddings of picture and caption
    kept: float  # kind, main colour and pattern read as the subject's own
    backdrop: float  # the backdrop read as the one asked for
    copy_alarm: float  # the reference's pixels found again


class Judge:
    """Knows the reference of every case and scores pictures against it."""

    def __init__(self, cases: Sequence[Case], clip: Clip | None = None) -> None:
        """Draw and embed the references.

        Args:
            cases: The subjects that will be asked for.
            clip: CLIP towers, or the miniature's.
        """
        self._clip = clip or load_clip()
        self._rows = {case.number: row for row, case in enumerate(cases)}
        pixels, self._masks = references(cases)
        self._blurred = reconstruct(load_vae(), pixels)
        self._identities = read(pixels).identity
        self._embeddings = self._clip.embed_images(pixels)

    def score(self, asks: Sequence[Ask], pictures: Sequence[Image.Image]) -> list[Score]:
        """Return the score of each picture, in order."""
        rows = [self._rows[ask.case.number] for ask in asks]
        pixels = to_pixels(pictures)
        reading, embedded = read(pixels), self._clip.embed_images(pixels)
        captions = self._clip.embed_texts([ask.caption for ask in asks])
        columns = (
            _cosine(reading.identity, self._identities[rows]),
            _cosine(embedded, self._embeddings[rows]),
            _cosine(embedded, captions),
            _kept(asks, reading),
            [float(seen == ask.backdrop) for ask, seen in zip(asks, reading.backdrop, strict=True)],
            copied(self._blurred[rows], self._masks[rows], pixels).float().tolist(),
        )
        return [Score(*values) for values in zip(*columns, strict=True)]


def _cosine(vectors: Tensor, others: Tensor) -> list[float]:
    return (vectors * others).sum(dim=-1).tolist()


def _kept(asks: Sequence[Ask], reading: Reading) -> list[float]:
    wanted = [(ask.case.identity.kind, ask.case.identity.main, ask.case.identity.pattern) for ask in asks]
    seen = zip(reading.kind, reading.main, reading.pattern, strict=True)
    return [float(one == other) for one, other in zip(wanted, seen, strict=True)]
