"""The miniature's reader of people: names who is seen and what is worn, and measures whether two faces are one.

The recipe is that of the reader of objects, from a pool (`capriccio.recipes.pools`). In a family somebody comes twice,
in two moods, poses and places, perhaps in other clothes; a rival wears the very same clothes in the very same two
scenes, so that only the face tells them apart, and one rival in three is a twin whom no words tell apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capriccio.modules.people_reader import FACE, LOWER, SIGHT, TOP, PeopleReader
from capriccio.modules.reader import Reader
from capriccio.recipes.pools import PooledReaderTask, small
from capriccio.recipes.reader import (
    IGNORED,
    accuracies,
    cell_shares,
    indices,
    overlap_loss,
    same_member_rate,
    sometimes_bare,
)
from capriccio.training.trainer import Batch, Row, Schedule
from capriccio.world.casting import VIEWS, sample_people, sample_people_panels, sample_person
from capriccio.world.draw import Drawing, draw
from capriccio.world.graph import SceneGraph
from capriccio.world.oracle import FACE_PARTS
from capriccio.world.people import SLOTS, Person, Sitter, garment_at, top_of
from capriccio.world.person_words import CLOSE, HALF
from capriccio.world.windows import body_part, garment_part
from capriccio.world.words import COLOURLESS

MEASURED = 192  # held-out pictures of each view
WEIGHTS = dict.fromkeys(SIGHT.classes, 0.5) | {"kind": 1.0, "skin": 1.0, "hair_colour": 1.0, "top_colour": 1.0}
HUES = ("skin", "hair_colour", "top_colour", "lower_colour")
"""Names of what some styles do not show."""
SURE = ("kind", "skin", "hair_colour", "top_colour")
"""What paintings are judged by, so that it must be read as surely as objects are."""


def draw_family(
    rng: np.random.Generator, split: str = "train", style: str | None = None, twins: float = 1 / 3
) -> list[SceneGraph]:
    """Two scenes of one person, and the same two scenes with a rival in the same clothes.

    Args:
        rng: Source of every choice.
        split: ``"train"`` or ``"test"``.
        style: One of ``STYLES``; ``None`` takes ``"shaded"`` three times in four.
        twins: How often the rival is one of whom the same words are true.
    """
    scenes = [sometimes_bare(scene, rng) for scene in sample_people_panels(rng, 1, 2, split, style).scenes]
    person = scenes[0].people[0].person
    rival = rival_of(person, rng, split)
    if rng.random() < twins:
        rival = twin_of(person, rival)
    return scenes + [with_person(scene, rival) for scene in scenes]


def rival_of(person: Person, rng: np.random.Generator, split: str) -> Person:
    """Another woman, or another man."""
    while (other := sample_person(rng, split)).kind != person.kind:
        pass
    return other


def twin_of(person: Person, other: Person) -> Person:
    """Somebody of whom all words are true that are true of a person, in the proportions of another."""
    return replace(person, shape=other.shape)


def with_person(scene: SceneGraph, person: Person) -> SceneGraph:
    """The scene with somebody else in the place and the clothes of its first person."""
    return replace(scene, people=(replace(scene.people[0], person=person), *scene.people[1:]))


def view_of(sitter: Sitter) -> str:
    """One of ``VIEWS``, from how large the figure is."""
    return "bust" if sitter.size > CLOSE else "half" if sitter.size > HALF else "whole"


def truth(scenes: Sequence[SceneGraph]) -> Batch:
    """Class indices (B,) for each name of the sight; what cannot be seen is ``IGNORED``."""
    return indices([_names(scene) for scene in scenes], SIGHT.classes)


def regions(drawing: Drawing) -> Tensor:
    """Pixels (B, looks, H, W) bool of what is looked at: the person, the face, garments on chest and on legs."""
    parts = (
        [body_part(name) for name in FACE_PARTS],
        _garment_parts("upper", "dress"),
        _garment_parts("lower"),
    )
    masks = [torch.isin(drawing.parts, torch.tensor(classes)) for classes in parts]
    return torch.stack([drawing.subjects.any(1), *masks], dim=1)


def shown(scenes: Sequence[SceneGraph]) -> dict[str, np.ndarray]:
    """Draw scenes of one person each and keep them small."""
    drawing = draw(scenes)
    cells = cell_shares(regions(drawing), drawing.inks, len(SIGHT.inks))
    colourless = torch.tensor([scene.style in COLOURLESS for scene in scenes])
    cells[:, len(SIGHT.looks) :] *= ~colourless[:, None, None, None]
    return small(drawing.pixels, cells, truth(scenes))


@dataclass
class PeopleReaderTask(PooledReaderTask):
    """Train the reader of people, half on families of four scenes, half on people who come once."""

    schedule: Schedule = field(default_factory=lambda: Schedule(minutes=30, warmup=50))
    name: str = "people-reader"

    network: ClassVar[type[Reader]] = PeopleReader
    weights: ClassVar[Mapping[str, float]] = WEIGHTS
    sight = SIGHT
    drawn: ClassVar[Mapping[str, int]] = {"cpu": 18_432, "gpu": 36_864}

    @property
    def shown(self) -> Callable[[Sequence[SceneGraph]], dict[str, np.ndarray]]:
        return shown

    def draw_family(self, rng: np.random.Generator) -> list[SceneGraph]:
        return draw_family(rng)

    def draw_once(self, rng: np.random.Generator) -> SceneGraph:
        return sometimes_bare(sample_people(rng), rng)

    def mask_loss(self, logits: Tensor, shares: Tensor) -> Tensor:
        """Four looks are only as good as the masks that lead them, and the legs' is seldom shown: masks weigh much."""
        return 8 * F.binary_cross_entropy_with_logits(logits, shares) + 2 * overlap_loss(logits, shares)

    def family(self, rng: np.random.Generator) -> list[SceneGraph]:
        """A held-out family on which identity is measured, in all views; its rival is no twin."""
        return draw_family(rng, "test", "shaded", twins=0)

    def measure(self, model: nn.Module) -> list[Row]:
        """Faces are judged on busts and half figures, clothes on half and whole ones, styles in all styles."""
        rng = np.random.default_rng(5)
        shaded = [sample_people(rng, 1, "test", "shaded", view) for view in VIEWS for _ in range(MEASURED)]
        styled = [sample_people(rng, split="test") for _ in range(2 * MEASURED)]
        rates = accuracies(model, draw(shaded).pixels, judged(truth(shaded)))
        rates |= accuracies(model, draw(styled).pixels, {"style": truth(styled)["style"]})
        bars = {name: (0.97, 0.995) if name in SURE else (0.90, 0.97) for name in SIGHT.classes}
        return [
            *(Row(f"people_reader_{name}", rates[name], *bar) for name, bar in bars.items()),
            Row("people_reader_same_person", same_member_rate(model, self.family), 0.90, 0.97),
        ]


def judged(answers: Batch) -> Batch:
    """The truth without the faces of whole figures and without the clothes of busts."""
    whole, _, bust = (answers["view"] == index for index in range(len(VIEWS)))
    left_out = dict.fromkeys(FACE, whole) | dict.fromkeys((*TOP, *LOWER), bust)
    return answers | {name: answers[name].masked_fill(rows, IGNORED) for name, rows in left_out.items()}


def _garment_parts(*slots: str) -> list[int]:
    """Both classes of every garment of the slots in the part map."""
    return [garment_part(kind) + accent for slot in slots for kind in SLOTS[slot] for accent in (0, 1)]


def _names(scene: SceneGraph) -> dict[str, str]:
    """What can be read of the first person; what the picture hides has no name."""
    sitter = scene.people[0]
    person, view = sitter.person, view_of(sitter)
    top, lower, hat = top_of(sitter), garment_at(sitter, "lower"), garment_at(sitter, "hat")
    names = {
        "kind": person.kind,
        "skin": person.skin,
        "hair": "" if hat else person.hair,
        "hair_colour": "" if person.hair == "bald" else person.hair_colour,
        "glasses": "" if sitter.accessory == "sunglasses" else person.glasses or "none",
        "beard": person.beard or "none",
        "expression": sitter.expression,
        "hat": hat.kind if hat else "none",
        "pose": "" if view == "bust" else sitter.pose.name,
        "view": view,
        "top": top.kind if top else "",
        "top_colour": top.main if top else "",
        "top_pattern": top.pattern if top else "",
        "lower": "" if view != "whole" else lower.kind if lower else "none",
        "lower_colour": lower.main if lower and view == "whole" else "",
        "backdrop": scene.backdrop.kind,
        "style": scene.style,
    }
    return names | dict.fromkeys(HUES, "") if scene.style in COLOURLESS else names
