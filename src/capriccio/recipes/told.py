"""What a sentence tells of who stands where, asked of the states of its words, so that a text encoder learns to tell.

FLUX gives its words no positions: which colour belongs to which noun, and which of two things is on the left, its
transformer knows from the states of a text encoder or not at all. From pictures alone that is learned last. So while
the encoder learns, questions, one for each place, look at the words and must name what stands there; they are thrown
away afterwards, as the part map is. Public encoders have read so much before that nobody need ask them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from capriccio.recipes.clip import NAMED, looks
from capriccio.recipes.reader import IGNORED, indices, name_loss
from capriccio.training.trainer import Batch
from capriccio.world.graph import SceneGraph, Thing
from capriccio.world.people import Sitter
from capriccio.world.whole import Picture

PLACES = 4  # as many as a scene has things
ASKED = {name: words for name, words in NAMED.items() if name not in ("backdrop", "style")}


class Questions(nn.Module):
    """One learned question for each place of each number of things; what it finds in the words is named."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.questions = nn.Parameter(torch.randn(PLACES, PLACES, width))
        self.norm = nn.LayerNorm(width)
        self.look = nn.MultiheadAttention(width, heads, batch_first=True)
        self.named = nn.ModuleDict({name: nn.Linear(width, len(words)) for name, words in ASKED.items()})

    def forward(self, states: Tensor, counts: Tensor) -> dict[str, Tensor]:
        """Logits (B, places, classes) of every name, from states of words (B, T, D) and numbers of things (B,)."""
        asked = self.questions[counts.clamp(1, PLACES) - 1]
        states = self.norm(states)
        found = self.look(asked, states, states, need_weights=False)[0]
        return {name: head(found) for name, head in self.named.items()}


def places(scene: SceneGraph) -> list[Thing | Sitter]:
    """Who a scene shows, in the order of the places that sentences name: from the left, or four row by row."""
    cast = scene.cast
    if len(cast) < PLACES:
        return sorted(cast, key=lambda one: one.x)
    return [one for row in (cast[:2], cast[2:PLACES]) for one in sorted(row, key=lambda one: one.x)]


def told(pictures: Sequence[Picture | None]) -> Batch:
    """What the questions should name in sentences on these pictures, and of how many: ``"told/..."`` (B, places).

    Where a brief sentence leaves something out, the best answer is the doubt that remains. Nothing is asked of
    pictures that are no scenes, for they have no such places, nor where nothing is said (``None``).
    """
    scenes = [(one.style, places(one)) if isinstance(one, SceneGraph) else ("", []) for one in pictures]
    rows = [looks(cast[place], style) if place < len(cast) else {} for style, cast in scenes for place in range(PLACES)]
    named = {f"told/{name}": found.view(-1, PLACES) for name, found in indices(rows, ASKED).items()}
    return {**named, "told/count": torch.tensor([len(cast) for _, cast in scenes])}


def told_loss(answers: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Cross-entropy of the answers (B, places, classes), averaged over the names that a batch has something of."""
    asked = [(answers[name].float().flatten(0, 1), batch[f"told/{name}"].flatten()) for name in ASKED]
    there = sum(bool((wanted != IGNORED).any()) for _, wanted in asked)
    return torch.stack([name_loss(logits, wanted) for logits, wanted in asked]).sum() / max(there, 1)
