"""From a sentence to a page: who says which part of a picture shows what.

RPG (Yang et al. 2024, "Mastering Text-to-Image Diffusion: Recaptioning, Planning, and Generating with Multimodal LLMs")
lets a language model divide a picture into cells and describe each. Here the model is whatever answers messages: an
endpoint, a transformers model, or any function. Its answer is validated, repaired once, then refused. Plain spatial
sentences, those of the miniature's world among them, need no model: a small grammar divides them.

Differences from the published code: JSON is asked for, and the paper's own last lines are read too, in any dress that
models give them; cells and regions are counted; whatever cannot be read is told in a sentence.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

from capriccio.errors import CapriccioError, nearest
from capriccio.perception.pages import Page
from capriccio.perception.planners.grammar import GrammarPlanner
from capriccio.perception.planners.http_model import endpoint
from capriccio.perception.planners.language import MAX_ANSWER, LanguagePlanner, Message, messages_for, read_answer
from capriccio.perception.planners.transformers_model import local


class Planner(Protocol):
    """Something that divides a picture."""

    def plan(self, prompt: str) -> Page:
        """Return what each part of the picture of a prompt shows."""


def planner(name: str) -> Planner:
    """Return the planner of a name.

    Args:
        name: ``"grammar"``; an address with the model behind a hash, ``"http://localhost:11434/v1#llama3.1"``; or a
            transformers model, by its folder or as ``"owner/name"``.

    Raises:
        CapriccioError: If it is none of these.
    """
    if name == "grammar":
        return GrammarPlanner()
    if name.startswith(("http://", "https://")):
        address, _, model = name.partition("#")
        return LanguagePlanner(endpoint(address, model))
    # One slash, as repositories have; a path from here or from the root is a folder or nothing.
    if (name and Path(name).expanduser().is_dir()) or re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        return LanguagePlanner(local(name))
    hint = nearest(name, ["grammar"])
    raise CapriccioError(
        f"There is no planner {name!r}; {hint}, or give an address with its model "
        "('https://api.openai.com/v1#gpt-4o'), a folder, or the 'owner/name' of a transformers model."
    )


__all__ = [
    "MAX_ANSWER",
    "GrammarPlanner",
    "LanguagePlanner",
    "Message",
    "Planner",
    "endpoint",
    "local",
    "messages_for",
    "planner",
    "read_answer",
]
