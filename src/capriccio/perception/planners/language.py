"""What a language model is asked for, and how its answer is read: validated, asked for once more, then refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pydantic import ConfigDict

from capriccio.errors import CapriccioError
from capriccio.perception.pages import Page
from capriccio.scene import Model

Message = dict[str, str]
"""``{"role": "system" | "user" | "assistant", "content": ...}``."""
Ask = Callable[[list[Message]], str]
"""Something that answers a conversation."""

MAX_ANSWER = 2**16
"""Characters of an answer that are read at most."""
_MAX_OBJECTS = 500
OTHERWISE = "use another model or the planner 'grammar', or write the page's regions by hand"


class _Answer(Model):
    """What a model is asked for; its reasoning, or whatever else it adds, is left aside."""

    model_config = ConfigDict(extra="ignore")
    noun = "the answer"
    ratio: Any
    regions: tuple[str, ...]
    base: str | None = None


def read_answer(prompt: str, answer: str) -> Page:
    """Return the page that a language model's answer holds.

    Args:
        prompt: What the picture was to show; also the base prompt where the answer has none.
        answer: A JSON object with ``ratio``, ``regions`` and perhaps ``base``, bare, fenced, or among prose; or the
            last lines of RPG's template, ``Final split ratio:`` and ``Regional Prompt:`` with ``BREAK`` between
            regions, with or without Markdown. Of several, the last counts.

    Raises:
        CapriccioError: If there is no page in it; the sentence can be sent back to the model.
    """
    if len(answer) > MAX_ANSWER:
        raise CapriccioError(
            f"The answer has {len(answer)} characters, but at most {MAX_ANSWER} are read; answer with the JSON alone."
        )
    told = _json_answer(answer) or _lined_answer(answer)
    if told is None:
        raise CapriccioError(
            "The answer holds no plan; answer with one JSON object with the keys 'base', 'ratio' and 'regions'."
        )
    read = _Answer(**told)
    base = read.base if read.base and read.base.strip() else prompt
    regions = tuple(" ".join(region.split()) for region in read.regions)
    return Page(prompt=prompt, base=" ".join(base.split()), ratio=read.ratio, regions=regions)


def _json_answer(answer: str) -> dict[str, Any] | None:
    """The last JSON object that looks like a plan, wherever it stands."""
    plans = [one for one in _objects(answer) if {"ratio", "regions"} & one.keys()]
    return plans[-1] if plans else None


def _objects(text: str) -> Iterator[dict[str, Any]]:
    # Line breaks inside strings are forgiven: models write them.
    decoder, stop = json.JSONDecoder(strict=False), 0
    for opening in islice(re.finditer(r"\{\s*\"", text), _MAX_OBJECTS):
        if opening.start() >= stop:
            try:
                value, stop = decoder.raw_decode(text, opening.start())
                yield value
            except (ValueError, RecursionError):
                continue


_RATIO_LINE = re.compile(r"final\s+split\s+ratio[\s*_`]*:[\s*_`]*([^\n]*)", re.IGNORECASE)
_REGIONS_LINE = re.compile(r"regional\s+prompts?[\s*_`]*:", re.IGNORECASE)
_BREAK = re.compile(r"[*_`]*\bBREAK\b[*_`]*")
_PARAGRAPH = re.compile(r"\n\s*\n")


def _lined_answer(answer: str) -> dict[str, Any] | None:
    """The last lines of RPG's template."""
    ratios, labels = list(_RATIO_LINE.finditer(answer)), list(_REGIONS_LINE.finditer(answer))
    if not ratios and not labels:
        return None
    told: dict[str, Any] = {}
    if ratios:
        told["ratio"] = ratios[-1][1].strip(" \t\r*_`'\".")
    if labels:
        text = _RATIO_LINE.split(answer[labels[-1].end() :])[0]
        *regions, last = (piece.strip(" \t\r\n*_`") for piece in _BREAK.split(text))
        # Between two BREAKs blank lines mean nothing; behind the last region they end it, as in the published code.
        told["regions"] = [*regions, _PARAGRAPH.split(last)[0].strip(" *_`")]
    return told


_TASK = """\
You lay out pictures. Given a description, you divide the picture into rectangular cells and describe what each cell \
shows, so that a painter who sees one description at a time still paints the picture that was asked for.

Work in this order:
1. Name the key entities with all their attributes (colours, materials, clothes, poses). Every entity that can be told \
apart gets a cell of its own, several of one kind too.
2. Divide the picture into rows, from top to bottom. An entity is not split between rows, unless it is one person \
whose head, body and legs are described apart.
3. Divide each row into cells, from left to right, one entity in each. What is on the left of the description is on \
the left of the picture.
4. Give larger entities larger shares.
5. Describe each cell in one rich sentence: the entity with every attribute that was asked for and fitting details, \
and the setting and style that all cells share. A description never mentions another cell, or a position.

Answer with one JSON object and nothing else:
- "entities": the key entities, as a list of short texts;
- "base": the whole picture in one sentence;
- "ratio": how the picture is divided. One row: the widths of its cells, separated by commas. Several rows: separated \
by semicolons, and in each row the first number is the height of the row, the others are the widths of its cells (none \
if it has only one cell). All numbers are greater than zero and relative.
- "regions": the descriptions, one for each cell, row by row from left to right.

Description: a white cat on the left and a black dog on the right, in the snow
{"entities": ["a white cat", "a black dog"], "base": "a white cat and a black dog side by side in the snow", \
"ratio": "1,1", "regions": ["a white cat with thick soft fur sitting in deep snow, soft winter light", \
"a black dog with a shiny coat standing in deep snow, soft winter light"]}

Description: a hot air balloon over two houses, the left one red, the right one blue
{"entities": ["a hot air balloon", "a red house", "a blue house"], "base": "a hot air balloon in the sky over a red \
house and a blue house", "ratio": "1;1,1,1", "regions": ["a hot air balloon with colourful stripes floating in a clear \
blue sky", "a red wooden house with a green garden under a clear sky", "a blue wooden house with a green garden under \
a clear sky"]}"""


@dataclass(frozen=True)
class LanguagePlanner:
    """Lets a language model divide a picture; its answer is validated, and asked for once more if it is no plan.

    Attributes:
        ask: Answers a conversation; see `endpoint` and `local`.
    """

    ask: Ask

    def plan(self, prompt: str) -> Page:
        """Return the page of a prompt.

        Raises:
            CapriccioError: If the model cannot be asked, or neither of two answers is a plan.
        """
        messages = messages_for(prompt)
        answer = self.ask(messages)
        try:
            return read_answer(prompt, answer)
        except CapriccioError as error:
            repair = f"That answer cannot be used. {error} Answer again, with the whole corrected JSON object alone."
        # A long wrong answer is not sent back as a whole: its end matters least, and it might fill the context.
        again = [*messages, {"role": "assistant", "content": answer[:4000]}, {"role": "user", "content": repair}]
        try:
            return read_answer(prompt, self.ask(again))
        except Unreachable:
            raise
        except CapriccioError as error:
            raise CapriccioError(f"Twice the planner's answer was no plan ({inner(error)}); {OTHERWISE}.") from None


def messages_for(prompt: str) -> list[Message]:
    """Return the conversation that asks a language model for a page.

    Raises:
        CapriccioError: If the prompt is empty.
    """
    check_prompt(prompt)
    # One message, as the paper's: the chat templates of some models know no system.
    return [{"role": "user", "content": f"{_TASK}\n\nDescription: {prompt.strip()}"}]


class Unreachable(CapriccioError):
    """The model could not be asked: no matter of its answer."""


def inner(error: Exception) -> str:
    return str(error).rstrip(".")


def check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise CapriccioError("The prompt is empty, so that there is nothing to plan; say what the picture shows.")
