"""The examination paper: held-out subjects, one picture of each, and captions that do not give them away."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from capriccio.errors import CapriccioError
from capriccio.world.captions import backdrop_phrase
from capriccio.world.draw import draw
from capriccio.world.graph import BACKDROPS, KINDS, Identity, SceneGraph, sample_scene


@dataclass(frozen=True)
class Case:
    """One subject: the picture of it that is given, and the backdrops it is asked for."""

    number: int
    reference: SceneGraph
    backdrops: tuple[str, ...]

    @property
    def identity(self) -> Identity:
        """Who the subject is."""
        return self.reference.things[0].identity

    @property
    def name(self) -> str:
        """The word a caption may use for the subject: its kind and nothing more."""
        return self.identity.kind


@dataclass(frozen=True)
class Ask:
    """One picture that is asked for: a subject on a backdrop, from a seed that no variant changes."""

    case: Case
    scene: int

    @property
    def backdrop(self) -> str:
        """The kind of backdrop that should be seen."""
        return self.case.backdrops[self.scene]

    @property
    def caption(self) -> str:
        """The caption in plain words, ``"the mug in the snow"``."""
        return f"the {self.case.name} {backdrop_phrase(self.backdrop, None)}"

    @property
    def prompt(self) -> str:
        """The caption with the subject as a named condition, ``"the {mug} in the snow"``."""
        return f"the {{{self.case.name}}} {backdrop_phrase(self.backdrop, None)}"

    @property
    def seed(self) -> int:
        """The seed of the picture."""
        return 1000 * self.case.number + self.scene


def held_out_cases(subjects: int, scenes: int, seed: int = 0, kinds: Sequence[str] = KINDS) -> list[Case]:
    """Draw subjects that no model was trained on, kinds in turn, each with a reference and other backdrops to go to.

    Args:
        subjects: How many subjects.
        scenes: How many different backdrops each is asked for, none of them that of its reference.
        seed: Fixes everything; the first subjects do not depend on how many there are.
        kinds: The kinds that are taken in turn.

    Raises:
        CapriccioError: If more scenes are asked for than there are other backdrops.
    """
    if scenes >= len(BACKDROPS):
        raise CapriccioError(
            f"{scenes} scenes a subject were asked for, but beside the reference's there are only {len(BACKDROPS) - 1} "
            "backdrops; ask for fewer."
        )
    return [_case(seed, number, kinds[number % len(kinds)], scenes) for number in range(subjects)]


def _case(seed: int, number: int, kind: str, scenes: int) -> Case:
    rng = np.random.default_rng([seed, number])
    reference = held_out_scene(rng, kind)
    others = [backdrop for backdrop in BACKDROPS if backdrop != reference.backdrop.kind]
    return Case(number, reference, tuple(str(name) for name in rng.permutation(others)[:scenes]))


def held_out_scene(rng: np.random.Generator, kind: str | None = None) -> SceneGraph:
    """Draw a shaded scene of one held-out subject of a kind, or of any, that wears nothing."""
    while True:
        scene = sample_scene(rng, split="test", style="shaded", accessories=False)
        if kind in (None, scene.things[0].identity.kind):
            return scene


def asks(cases: Iterable[Case]) -> list[Ask]:
    """Return every picture that is asked for, subject by subject."""
    return [Ask(case, scene) for case in cases for scene in range(len(case.backdrops))]


def references(cases: Sequence[Case], size: int = 128) -> tuple[Tensor, Tensor]:
    """Draw the reference pictures.

    Returns:
        Pixels (B, 3, size, size) in [-1, 1] and the subjects' masks (B, size, size), boolean.
    """
    drawing = draw([case.reference for case in cases], size=size)
    return drawing.pixels, drawing.subjects[:, 0]
