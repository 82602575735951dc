"""From a sentence to a page: who says which part of a picture shows what.

RPG (Yang et al. 2024, "Mastering Text-to-Image Diffusion: Recaptioning, Planning, and Generating with Multimodal LLMs")
lets a language model divide a picture into cells and describe each. Here the model is whatever answers messages: an
endpoint, a transformers model, or any function. Its answer is validated, repaired once, then refused. Plain spatial
sentences, those of the miniature's world among them, need no model: a small grammar divides them.

Differences from the published code: JSON is asked for, and the paper's own last lines are read too, in any dress that
models give them; cells and regions are counted; whatever cannot be read is told in a sentence.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from pydantic import ConfigDict

from capriccio.errors import CapriccioError, nearest
from capriccio.perception.pages import Page, Row, join_ratio
from capriccio.scene import Model
from capriccio.world.vocabulary import SECTIONS

Message = dict[str, str]
"""``{"role": "system" | "user" | "assistant", "content": ...}``."""
Ask = Callable[[list[Message]], str]
"""Something that answers a conversation."""

MAX_ANSWER = 2**16
"""Characters of an answer that are read at most."""
_MAX_OBJECTS = 500
_MAX_RESPONSE = 2**22
_LONGEST_PAUSE = 20.0
_OTHERWISE = "use another model or the planner 'grammar', or write the page's regions by hand"


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


# --- answers of language models ----------------------------------------------------------------------------------


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
        except _Unreachable:
            raise
        except CapriccioError as error:
            raise CapriccioError(f"Twice the planner's answer was no plan ({_inner(error)}); {_OTHERWISE}.") from None


def messages_for(prompt: str) -> list[Message]:
    """Return the conversation that asks a language model for a page.

    Raises:
        CapriccioError: If the prompt is empty.
    """
    _check_prompt(prompt)
    # One message, as the paper's: the chat templates of some models know no system.
    return [{"role": "user", "content": f"{_TASK}\n\nDescription: {prompt.strip()}"}]


class _Unreachable(CapriccioError):
    """The model could not be asked: no matter of its answer."""


def _inner(error: Exception) -> str:
    return str(error).rstrip(".")


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise CapriccioError("The prompt is empty, so that there is nothing to plan; say what the picture shows.")


# --- an endpoint -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Endpoint:
    """A chat model behind an HTTP address that speaks as OpenAI's does.

    The key is read from the environment whenever it is sent, and kept nowhere. No sampling setting is sent, for some
    models refuse each of them.

    Attributes:
        url: The address, up to ``/v1`` or the like, or up to ``/chat/completions``.
        model: The name that the endpoint knows the model by.
        key_env: Environment variable with the key; ``None`` sends none.
        timeout: Seconds that one request may take as a whole.
        retries: How many times a request is sent again that met no listener, a busy server (429) or a broken one
            (5xx); one that takes too long is not.
        pause: Seconds before the first of these, twice as long before each next one, at most 20.
    """

    url: str
    model: str
    key_env: str | None = "OPENAI_API_KEY"
    timeout: float = 60.0
    retries: int = 2
    pause: float = 1.0

    def __call__(self, messages: list[Message]) -> str:
        """Return the answer to a conversation.

        Raises:
            CapriccioError: If none comes.
        """
        request = self._request(messages)
        reply = _within(self.timeout, request)
        for attempt in range(self.retries):
            if not reply.worth_repeating:
                break
            time.sleep(min(self.pause * 2**attempt, _LONGEST_PAUSE))
            reply = _within(self.timeout, request)
        return self._content(reply)

    def _request(self, messages: list[Message]) -> urllib.request.Request:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "capriccio"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        address = self.url if self.url.endswith("/chat/completions") else f"{self.url}/chat/completions"
        data = json.dumps({"model": self.model, "messages": messages}).encode("utf-8")
        return urllib.request.Request(address, data, headers)

    def _key(self) -> str:
        key = os.environ.get(self.key_env, "").strip() if self.key_env else ""
        if not (key.isascii() and key.isprintable()):
            raise _Unreachable(f"The key in {self.key_env} has characters that no key has; set the variable again.")
        address = urlsplit(self.url)
        if key and address.scheme == "http" and address.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise _Unreachable(
                f"The key in {self.key_env} would travel to {self.url} in the open; use https, or "
                "unset the variable to send none."
            )
        return key

    def _content(self, reply: _Reply) -> str:
        """The text of an answer; or a sentence, which never quotes the server: it might repeat the key."""
        if reply.trouble:
            raise _Unreachable(f"The planner at {self.url} {reply.trouble}; {_CHECK}.")
        if reply.status in (401, 403):
            told = f"refused the key in {self.key_env}" if self._key() else "wants a key"
            remedy = f"set {self.key_env} to a valid one" if self.key_env else "name its variable as key_env"
            raise _Unreachable(f"The planner at {self.url} {told}; {remedy}.")
        if reply.status == 404:
            raise _Unreachable(
                f"The planner at {self.url} has no model {self.model!r}, or no /chat/completions; check both names."
            )
        if reply.status != 200:
            raise _Unreachable(
                f"The planner at {self.url} answered with the status {reply.status}; {_remedy(reply.status)}."
            )
        try:
            content = json.loads(reply.body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise _Unreachable(
                f"The planner at {self.url} answered with something other than chat completions; {_CHECK}."
            ) from None
        if not isinstance(content, str) or not content.strip():
            raise _Unreachable(f"The planner at {self.url} answered with no text; {_OTHERWISE}.")
        return content


_CHECK = "check that the address is that of an OpenAI-compatible endpoint (often ending in /v1) and that it runs"


def _remedy(status: int) -> str:
    if status < 400:
        return "give the address that it points to"
    if status == 429 or status >= 500:
        return f"try again later, or {_OTHERWISE}"
    return f"check the model's name, or {_OTHERWISE}"


def endpoint(
    url: str,
    model: str,
    key_env: str | None = "OPENAI_API_KEY",
    timeout: float = 60.0,
    retries: int = 2,
    pause: float = 1.0,
) -> Endpoint:
    """Return what asks a chat model behind an OpenAI-compatible address; nothing is sent before it is asked.

    Args:
        url: The address, up to ``/v1`` or the like.
        model: The name that the endpoint knows the model by.
        key_env: Environment variable with the key; it may be unset where no key is wanted.
        timeout: Seconds that one request may take, above 0.
        retries: How many times a failed request is sent again, 0 to 10.
        pause: Seconds before the first of these; the next ones wait longer.

    Raises:
        CapriccioError: If the address cannot be used, the model is missing, or a number is out of range.
    """
    try:
        address = urlsplit(url)
        port = address.port
    except ValueError:
        address, port = urlsplit(""), None
    if address.scheme not in ("http", "https") or not address.hostname or port == 0 or not re.fullmatch(r"[!-~]+", url):
        raise CapriccioError(
            "The address of a planner is as 'https://api.openai.com/v1', but this one has no http, host or port that "
            "can be used; correct it."
        )
    if address.username is not None or address.password is not None or address.query:
        # Not quoted: what stands there may be a secret.
        raise CapriccioError(
            "The address of a planner came with a user, a password or a query, which would be told wherever it is "
            f"named; put the key into the environment variable {key_env or 'of key_env'} and give the plain address."
        )
    if not model.strip():
        raise CapriccioError(f"The planner at {url} came without a model; name one behind a hash, as {url}#gpt-4o.")
    if not 0 < timeout <= 3600:
        raise CapriccioError(f"Received timeout={timeout}, but a request takes above 0 and at most 3600 seconds.")
    if not 0 <= retries <= 10:
        raise CapriccioError(f"Received retries={retries}, but a request is sent again 0 to 10 times.")
    if not 0 <= pause <= _LONGEST_PAUSE:
        raise CapriccioError(f"Received pause={pause}, but 0 to {_LONGEST_PAUSE:g} seconds are waited.")
    return Endpoint(url.partition("#")[0].rstrip("/"), model.strip(), key_env, timeout, retries, pause)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows nothing: the key would go to wherever the address points."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True)
class _Reply:
    """What came back: status and body, or what went wrong before."""

    status: int = 0
    body: bytes = b""
    trouble: str = ""
    unheard: bool = False

    @property
    def worth_repeating(self) -> bool:
        return self.unheard or self.status == 429 or self.status >= 500


def _send(request: urllib.request.Request, timeout: float) -> _Reply:
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=timeout) as response:
            body = response.read(_MAX_RESPONSE + 1)
            return _Reply(response.status, body) if len(body) <= _MAX_RESPONSE else _Reply(trouble="said too much")
    except urllib.error.HTTPError as error:
        with error:
            return _Reply(error.code)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return _late(timeout)
        why = getattr(reason, "strerror", None) or type(reason).__name__
        return _Reply(trouble=f"cannot be reached ({why})", unheard=True)


def _late(seconds: float) -> _Reply:
    return _Reply(trouble=f"did not answer within {seconds:g} seconds")


def _within(seconds: float, request: urllib.request.Request) -> _Reply:
    """Send a request that may take so long as a whole.

    A socket's own limit holds for each read alone, and for no name look-up: a server that sends a byte now and then
    would never end. The thread that is left behind ends with the process.
    """
    came: list[_Reply] = []
    thread = threading.Thread(target=lambda: came.append(_send(request, seconds)), daemon=True)
    thread.start()
    thread.join(seconds)
    return came[0] if came else _late(seconds)


# --- a transformers model ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalModel:
    """A chat model of transformers, loaded when first asked; its likeliest answer, word by word.

    Attributes:
        model: Repository or folder of a causal language model whose tokenizer has a chat template.
        max_new_tokens: Length of an answer; RPG's own is 1024.
        device: Where it runs.
    """

    model: str
    max_new_tokens: int = 1024
    device: str = "cpu"

    def __call__(self, messages: list[Message]) -> str:
        """Return the answer to a conversation.

        Raises:
            CapriccioError: If the model cannot be loaded, or is none to chat with.
        """
        import torch

        tokenizer, model = self._loaded
        if not getattr(tokenizer, "chat_template", None):
            raise _Unreachable(f"{self.model!r} has no chat template, so that it cannot be asked; {_OTHERWISE}.")
        try:
            inputs = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(self.device)
        except Exception as error:
            # A template is a small program of the model's own, which may raise anything.
            raise _Unreachable(
                f"The chat template of {self.model!r} refuses the planner's messages ({type(error).__name__}); "
                f"{_OTHERWISE}."
            ) from None
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        return tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = os.path.expanduser(self.model)
        try:
            model = AutoModelForCausalLM.from_pretrained(folder).to(self.device).eval()
            return AutoTokenizer.from_pretrained(folder), model
        except (OSError, ValueError, KeyError):
            raise _Unreachable(
                f"{self.model!r}, which plans pages, could not be loaded; connect to download it, check its name, "
                f"or {_OTHERWISE}."
            ) from None


def local(model: str, max_new_tokens: int = 1024, device: str = "cpu") -> LocalModel:
    """Return what asks a chat model of transformers; it is loaded when first asked.

    Args:
        model: Repository or folder.
        max_new_tokens: Length of an answer, at least 1.
        device: Where it runs.

    Raises:
        CapriccioError: If the length is out of range.
    """
    if max_new_tokens < 1:
        raise CapriccioError(f"Received max_new_tokens={max_new_tokens}, but an answer has at least 1; 1024 is usual.")
    return LocalModel(model, max_new_tokens, device)


# --- a grammar ---------------------------------------------------------------------------------------------------
# Words are looked for in this order: the style in front, the setting before and behind, then what divides the rest.

_DET = r"(?:an?|the|one|two|three|four|five|six|seven|eight|nine|ten|some|several|another|his|her|their|its|my|our)"
_SIDES = r"left|right|top|bottom|upper|lower|middle|cent(?:er|re)"
_EXTENTS = r"side|corner|quarter|quadrant|half|third|part|edge|area|panel"
_PICTURE = r"(?:picture|image|photo|page|frame|scene|canvas|painting|composition)"

# Where a picture plays, the world's backdrops among them: the noun that a setting's phrase ends with, or near its end.
_SETTINGS = """
    beach sand sands shore coast seaside snow winter ice meadow grass field fields desert dunes dune night sky moonlight
    sea ocean water waves wall bricks table tabletop desk kitchen sunset sundown dusk evening dawn sunrise daylight noon
    morning afternoon midnight twilight mountains hills valley background backdrop scene landscape scenery countryside
    outdoors indoors studio forest jungle woods park garden street road sidewalk pavement city town village river lake
    waterfall island harbor harbour floor ground lawn room museum cafe café restaurant bar office school campus
    classroom library station airport market shop store stage stadium space universe world moon mars planet clouds rain
    sun sunlight sunshine autumn summer spring storm fog mist bedroom bathroom hallway castle palace church temple cave
    farm playground square plaza courtyard balcony rooftop terrace pier bridge party festival darkness light lighting
    shade style tokyo paris london
"""
_SCENERY = "|".join(_SETTINGS.split())
_PREPOSITION = r"(?:in front of|in|on|at|before|near|by|among|amidst?|inside|across|along|during|through|within)"
_PLAIN_WORDS = r"(?:(?!(?:and|with|wearing|of|in|on|at|by|an?|the)\b)[\w'-]+\s+)"
_IN_A_SETTING = (
    rf"(?:{_PREPOSITION}\s+(?:(?:an?|the|its|some)\s+)?(?:(?:middle|heart|cent(?:er|re)|edge)\s+of\s+(?:an?|the)\s+)?"
    rf"{_PLAIN_WORDS}{{0,3}}(?:{_SCENERY})\b(?:\s+top\b)?"
    rf"|(?:in\s+the\s+style\s+of|against)\s+(?!the\s+(?:{_SIDES})\b)[^,]+"
    rf"|under\s+(?:an?|the)\s+{_PLAIN_WORDS}{{0,2}}(?:sky|skies|stars|moon|moonlight|sun|sunlight|clouds|sea|water)\b"
    rf"|with\s+{_PLAIN_WORDS}{{1,4}}in\s+the\s+background\b)"
)


def _words(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


_STYLE = _words(
    rf"^(?:(?:an?|the)\s+)?{_PLAIN_WORDS}{{0,4}}?(?:photo|photograph|picture|image|painting|drawing|sketch|illustration|"
    r"watercolou?r|mosaic|blueprint|sign|art|render|rendering|portrait|closeup|close-up|poster|cartoon)\s+"
    r"(?:of|showing|(?<=photo )with|(?<=picture )with|(?<=image )with)\s+|^[^:,]{1,40}\bstyle\s*:\s*"
)
_LEADING = _words(rf"^({_IN_A_SETTING}(?:\s+{_IN_A_SETTING})*)(?:\s*[,:]\s*|\s+(?={_DET}\b|there\b))")
_LEADING_CLAUSE = _words(rf"^({_PREPOSITION}\s+[^,:]+?)\s*[,:]\s+")
_TRAILING = _words(rf"\s*,?\s*\b{_IN_A_SETTING}")
_MANNER = _words(
    r",\s*(?=[^,]*\b(?:style|lighting|light|4k|8k|hd|detailed|quality|realistic|photorealistic|cinematic|masterpiece|"
    r"watercolou?r|illustration|render|rendering|bokeh|colou?rs|weather)\b)(?!\s*(?:wearing|with|holding)\b)"
)
_SHARED_VERB = _words(r"\s+(?:are|were)\s+(?=\w)")
_PLACE = _words(
    r"(?<![\w-])(?<!facing )(?<!looking )(?<!turning )(?<!turned )(?<!pointing )"
    r"(?P<where>(?:on|at|in|to|towards?)\s+the\s+(?:far\s+|very\s+|extreme\s+)?)?(?(where)|(?:the\s+)?)"
    rf"(?P<first>{_SIDES})(?:[\s-]+(?P<second>left|right|top|bottom|middle|cent(?:er|re)))?"
    rf"(?:[\s-]+hand(?=[\s-]+(?:{_EXTENTS})))?(?:[\s-]+(?:{_EXTENTS}))?(?:\s+of\s+(?:the|this)\s+{_PICTURE})?\b"
    # "On the left of a house" is no place of the picture, "in the left hand" none at all.
    rf"(?(where)(?![\s-]+(?:of|hand|foot|arm|leg|eye|ear|wing|paw|shoulder|left|right|{_EXTENTS})\b)"
    r"|\s*(?::|\b(?:shows?|has|holds|contains)\b))"
)
_ARRANGED: dict[str, re.Pattern[str]] = {
    "columns": _words(
        r"\b(?:from\s+)?left\s+to\s+right\b|\bside[\s-]by[\s-]side\b(?!\s+with\b)|\bin\s+a\s+(?:horizontal\s+)?(?:row|line)\b|"
        r"\bnext\s+to\s+each\s+other\b|\bbeside\s+each\s+other\b"
    ),
    "columns backwards": _words(r"\b(?:from\s+)?right\s+to\s+left\b"),
    "rows": _words(
        r"\b(?:from\s+)?top\s+to\s+bottom\b|\bin\s+a\s+(?:vertical\s+)?column\b|\bstacked\s+vertically\b|"
        r"\bone\s+(?:above|on\s+top\s+of)\s+the\s+other\b"
    ),
    "rows backwards": _words(r"\b(?:from\s+)?bottom\s+to\s+top\b"),
    "quarters": _words(
        r"\b(?:one\s+)?in\s+(?:each\s+of\s+)?(?:the\s+|its\s+)?(?:four|4)\s+(?:quarters|corners|quadrants|panels)\b|"
        r"\b(?:one\s+)?in\s+(?:each|every)\s+(?:quarter|corner|quadrant)\b|"
        r"\bin\s+an?\s+(?:2\s*[x×]\s*2|two\s+by\s+two)\s+grid\b|\bin\s+a\s+(?:square\s+)?grid\b"
    ),
}
_OF_THE_PICTURE = _words(rf"^\s*of\s+(?:the|this)\s+{_PICTURE}\b")
_BEING = r"(?:\s+(?:is|are|stands?|sits?|lies))?(?:\s+(?:directly|just|right))?\s+"
_RELATION = _words(
    rf"{_BEING}(?:(?P<left>(?:(?:to|on|at)\s+the\s+)?left(?:\s+side)?\s+of)|"
    r"(?P<right>(?:(?:to|on|at)\s+the\s+)?right(?:\s+side)?\s+of)|(?P<above>above|over|on\s+top\s+of|atop)|"
    r"(?P<below>below|underneath|under|beneath)|(?P<beside>next\s+to|beside|alongside|side\s+by\s+side\s+with))\s+"
)
_BETWEEN = (
    _words(
        r"^between\s+(?P<outer>.+?)(?:,\s*|\s+)(?:there\s+)?(?:stands?|is|are|sits?|lies|floats?|hovers?)\s+(?P<inner>.+)$"
    ),
    _words(r"^between\s+(?P<outer>.+?),\s*(?P<inner>.+)$"),
    _words(r"^(?P<inner>.+?)(?:\s+(?:stands?|is|are|sits?|lies))?\s+(?:in\s+)?between\s+(?P<outer>.+)$"),
)
_WITH_BETWEEN = _words(
    rf"^(?P<outer>.+),?\s+with\s+(?P<inner>(?:{_DET}\s|\{{).+?)\s+(?:in\s+)?between(?:\s+them)?\b(?P<rest>(?:[\s,.].*)?)$"
)
_BETWEEN_THEM = _words(r"\b(?:in\s+)?between\s+(?:them|the\s+two)\b|\bin\s+between\b(?=\s*(?:[,.;]|$))")
_NEXT = _words(rf"\s*(?:[,;.]\s*(?:and\b|plus\b)?|\band\b|\bplus\b|&|\bas\s+well\s+as\b)\s*(?=\b{_DET}\b|\{{)")
_COMMAS = _words(r"\s*(?:[,;]\s*(?:and\b)?|\band\b)\s*")
_SEVERAL = _words(r"(?:two|three|four|five|six|seven|eight|nine|ten|some|several)\b")
_HAVING = _words(r"\b(?:with|wearing|in|holding|has|dressed)\b")
_PHRASE_HEAD = _words(
    rf"^(?:{_DET})\s+([\w'-]+(?:\s+(?!(?:with|in|on|at|to|of|wearing|under|above|and\s+{_DET}|\w{{3,}}ing)\b)[\w'-]+)*)"
)
_LEFT_OVER = _words(
    r"(?:^(?:over|under|atop)|\b(?:left|right|above|below|beneath|underneath|between|opposite|either\s+side))\b"
    r"(?![\s-]+(?:hand|foot|arm|leg|eye|ear|wing|paw|shoulder)\b)"
)
_BEFORE = _words(
    r"^(?:[\s,;:.–—-]+|(?:and|while|with|plus|then|is|are|there(?:'s|\s+is|\s+are|\s+stands?)|"
    r"(?:we|you)\s+(?:can\s+)?see|shows?|facing|opposite)(?=\s|$))+"
)
_BEHIND = _words(r"(?:[\s,;:.]+|(?<=\s)(?:and|while|is|are|placed|located|positioned|situated)$)+$")

# What an entity has, rather than another entity: "wearing a hat and a scarf" is about one.
_BELONGINGS = frozenset(
    word for section in ("accessories", "garments", "parts") for word in SECTIONS[section].split()
) | {"face", "hair", "skin", "eyes", "eyebrows", "brows", "beard", "mustache", "moustache", "smile"}

Place = tuple[str | None, str | None]
"""Row and column: ``"top"``, ``"left"``, ``"middle"`` and so on; neither is told by a bare ``"in the middle"``."""
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
_SAME = {"upper": "top", "lower": "bottom", "center": "middle", "centre": "middle"}
_EMPTY = "an empty background"
_SAY = (
    "give each subject one place ('a cube on the left and a ball on the right'), ask a language model "
    "(planner='https://...#model'), or write the regions by hand"
)


@dataclass(frozen=True)
class GrammarPlanner:
    """Divides plain spatial sentences, without a model.

    It knows sides and corners (``"X on the left, Y at the bottom right"``), relations (``"X above Y"``, ``"X between Y
    and Z"``), lists (``"from left to right: X, Y and Z"``, ``"in four corners"``) and unplaced lists, which stand side
    by side. Where the picture plays, and how it is made, goes into every region. Cells share rows and columns
    equally; corners that nobody names show the background.
    """

    def plan(self, prompt: str) -> Page:
        """Return the page of a prompt; one cell if it names one subject.

        Raises:
            CapriccioError: If the prompt is empty, or cannot be divided.
        """
        _check_prompt(prompt)
        text = " ".join(prompt.split())
        told = _divided(_framed(text))
        if told.count <= 1:
            return Page(prompt=prompt, base=text, ratio="1", regions=(text,))
        ratio = join_ratio(Row(widths=(1.0,) * len(row)) for row in told.rows)
        regions = tuple(told.dressed(region) for row in told.rows for region in row)
        return Page(prompt=prompt, base=text, ratio=ratio, regions=regions)


@dataclass(frozen=True)
class _Told:
    """A sentence, as far as it has been read.

    Attributes:
        text: What is still to be divided.
        style: What stands before every region, ``"a painting of "``.
        settings: What stands behind every region.
        rows: Regions, row by row; ``""`` where nobody is.
    """

    text: str
    style: str = ""
    settings: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()

    @property
    def count(self) -> int:
        return sum(map(len, self.rows))

    def dressed(self, region: str) -> str:
        """A region with style and settings."""
        text = self.style + (region or _EMPTY)
        for setting in self.settings:
            close = re.match(rf"(?:{_PREPOSITION}|under|against|with|\w+ing)\b", setting, re.IGNORECASE)
            text += f" {setting}" if close else f", {setting}"
        return text

    def set(self, setting: str) -> _Told:
        setting = _clean(setting)
        return replace(self, settings=(*self.settings, setting)) if setting else self


def _framed(text: str) -> _Told:
    """Take style and setting from the front of a sentence."""
    told = _Told(text)
    while True:
        if style := _STYLE.match(told.text):
            told = replace(told, text=told.text[style.end() :], style=told.style + style[0])
        elif setting := _leading(told.text):
            told = replace(told.set(_lowered(setting[1])), text=told.text[setting.end() :])
        else:
            return told


def _leading(text: str) -> re.Match[str] | None:
    if found := _LEADING.match(text):
        return found
    found = _LEADING_CLAUSE.match(text)
    patterns = (_PLACE, _RELATION, *_ARRANGED.values())
    return None if found is None or any(pattern.search(found[1]) for pattern in patterns) else found


def _divided(told: _Told) -> _Told:
    """Divide what is left of a sentence by the first kind of division that it names."""
    if (found := _WITH_BETWEEN.match(told.text)) and not _split(found["rest"])[1:] and len(_split(found["outer"])) == 2:
        return _between(told.set(found["rest"]), found)
    told = replace(told, text=_BETWEEN_THEM.sub("in the middle", told.text))
    for name, pattern in _ARRANGED.items():
        if found := pattern.search(told.text):
            return _arranged(told, name, found)
    places = list(_PLACE.finditer(told.text))
    if places:
        return _placed(told, places)
    for pattern in _BETWEEN:
        if found := pattern.match(told.text):
            return _between(told, found)
    relations = _relations(told.text)
    return _related(told, relations) if relations else _side_by_side(told)


# "from left to right: A, B and C"; "A, B, C and D in four corners"; "A and B"


def _arranged(told: _Told, name: str, found: re.Match[str]) -> _Told:
    rest = _OF_THE_PICTURE.sub("", told.text[found.end() :])
    before, behind = _clean(told.text[: found.start()]), _clean(rest)
    # A title ("three toys from left to right: ...") names nobody; what follows a list is its setting.
    if behind and (rest.lstrip().startswith(":") or not before):
        subjects = behind
    elif behind and _NEXT.match(f", {behind}"):
        if len(_split(before)) > 1 or not _SEVERAL.match(before):
            raise CapriccioError(f"{behind!r} comes without a place; {_SAY}.")
        subjects = behind
    else:
        told, subjects = told.set(behind), before
    told, entities = _listed(told, subjects, by_commas=True)
    if name == "quarters":
        if len(entities) != 4:
            raise CapriccioError(f"Four quarters are named, but {_count(entities)}: {_quoted(entities)}; {_SAY}.")
        return replace(told, rows=(tuple(entities[:2]), tuple(entities[2:])))
    if name.endswith("backwards"):
        entities.reverse()
    return replace(told, rows=_lined_up(entities, name.split()[0]))


def _side_by_side(told: _Told) -> _Told:
    word, (told, entities) = _LEFT_OVER.search(told.text), _listed(told, told.text)
    if len(entities) > 1 and word:
        raise CapriccioError(f"The word {word[0]!r} in the sentence cannot be followed; {_SAY}.")
    return replace(told, rows=(tuple(entities),))


def _lined_up(entities: Sequence[str], axis: str) -> tuple[tuple[str, ...], ...]:
    return (tuple(entities),) if axis == "columns" else tuple((entity,) for entity in entities)


# "A on the left and B on the right"; "in the top left A, in the bottom right B"


def _placed(told: _Told, found: list[re.Match[str]]) -> _Told:
    text = told.text
    bounds = [0, *(bound for place in found for bound in place.span()), len(text)]
    before, *between, behind = (text[bounds[at] : bounds[at + 1]] for at in range(0, len(bounds), 2))
    first_comes_the_place = (
        not _clean(before) or before.rstrip().endswith(":") or bool(re.match(rf"\s*(?:is\s+|are\s+)?{_DET}\b", behind))
    )
    if first_comes_the_place:
        chunks = [*between, behind]
        if before.strip() and not before.rstrip().endswith(":"):
            raise CapriccioError(f"{_clean(before)!r} comes without a place; {_SAY}.")
        told, chunks[-1] = _without_setting(told, chunks[-1])
    else:
        chunks = [before, *between]
        if re.match(rf"\s*,?\s*(?:and|plus)\s+{_DET}\b", behind, re.IGNORECASE):
            raise CapriccioError(f"{_clean(behind)!r} comes without a place; {_SAY}.")
        told = told.set(behind)
    for number, chunk in enumerate(chunks):
        told, chunks[number] = _one_sentence(told, chunk, 0 if first_comes_the_place else -1)
    entities = _shared_out([_clean(chunk) for chunk in chunks])
    if len(entities) == 1 and len(_split(entities[0])) == 1:
        return replace(told, rows=((entities[0],),))
    for entity in entities:
        _check_one_place(entity, alone=len(entities) == 1)
    return replace(told, rows=_grid([_place(match) for match in found], entities))


def _shared_out(chunks: list[str]) -> list[str]:
    """Give the second of "on the left a cube and a ball on the right" to the place behind it."""
    for at, (first, second) in enumerate(pairwise(chunks)):
        if not second and len(parts := _split(first)) == 2:
            chunks[at : at + 2] = parts
    if empty := [number for number, chunk in enumerate(chunks, 1) if not chunk]:
        raise CapriccioError(f"Place {empty[0]} of {len(chunks)} in the sentence has no subject; {_SAY}.")
    return chunks


def _check_one_place(entity: str, alone: bool) -> None:
    """Refuse what may be two entities of which one has no place: "a house, a cube on the left"."""
    parts = _split(entity)
    if len(parts) > 1 and (alone or not re.search(r"(?:\band|\bplus|&)\s*$", entity[: entity.rfind(parts[-1])])):
        raise CapriccioError(f"One place is named for {_quoted(parts)}; {_SAY}.")


def _one_sentence(told: _Told, chunk: str, at: int) -> tuple[_Told, str]:
    """Keep one sentence of several; the others, which name no place, are about the whole picture."""
    sentences = [one for one in re.split(r"(?<=[.!?])\s+", chunk.strip(" .,;")) if _clean(one)]
    for sentence in (one for one in sentences if one is not sentences[at]):
        told = told.set(sentence)
    return told, sentences[at] if sentences else ""


def _place(match: re.Match[str]) -> Place:
    words = [_SAME.get(word.lower(), word.lower()) for word in (match["first"], match["second"]) if word]
    row = next((word for word in words if word in ("top", "bottom")), None)
    column = next((word for word in words if word in ("left", "right")), None)
    if "middle" in words and len(words) == 2:
        row, column = row or "middle", column or "middle"
    return row, column


def _grid(places: Sequence[Place], entities: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Put entities into rows and columns; a corner, side or middle that nobody names stays empty."""
    rows_named = {row for row, _ in places if row}
    corners = any(row and column for row, column in places)
    grid: dict[str, dict[str | None, list[str]]] = {}
    for (row, column), entity in zip(places, entities, strict=True):
        if not rows_named:
            cell: Place = "all", column or "middle"
        elif row:
            cell = row, column
        elif column is None:
            cell = "middle", None
        elif corners or len(rows_named) == 3:
            raise CapriccioError(f"{entity!r} stands at a side where others stand in corners; {_SAY}.")
        else:
            # "a sun at the top, a cube on the left and a ball on the right": the sides share the row that is left.
            free = [one for one in _ROWS if one not in rows_named]
            cell = free[-1] if len(free) == 1 or "bottom" in free else free[0], column
        row_cells = grid.setdefault(cell[0] or "", {})
        row_cells.setdefault(cell[1], []).append(entity)
    if not rows_named:
        return (_columns(grid["all"]),)
    names = _filled(grid.keys(), _ROWS)
    return tuple(_columns(grid[name]) if name in grid else ("",) for name in names)


def _columns(cells: dict[str | None, list[str]]) -> tuple[str, ...]:
    joined = {column: " and ".join(entities) for column, entities in cells.items()}
    if None in joined:
        if len(joined) > 1:
            raise CapriccioError(f"{joined[None]!r} has a row for itself, but shares it with others; {_SAY}.")
        return (joined[None],)
    names = _filled([column for column in joined if column], _COLUMNS)
    return tuple(joined.get(name, "") for name in names)


def _filled(named: Any, order: Sequence[str]) -> list[str]:
    """The names to divide by: both ends, and the middle if it is named; a middle alone is all there is."""
    if set(named) == {"middle"}:
        return ["middle"]
    return [name for name in order if name in named or name != "middle"]


# "A to the left of B"; "A above B"; "B between A and C"


def _between(told: _Told, found: re.Match[str]) -> _Told:
    told, outer = _listed(told, found["outer"])
    told, inner = _without_setting(told, found["inner"])
    if len(outer) != 2:
        raise CapriccioError(f"Something stands between, but {_count(outer)} at its sides: {_quoted(outer)}; {_SAY}.")
    return replace(told, rows=((outer[0], _clean(inner), outer[1]),))


def _relations(text: str) -> list[re.Match[str]]:
    """All relations of a text but those inside one entity, as a jacket over a shirt."""
    return [
        found
        for found in _RELATION.finditer(text)
        if not (_HAVING.search(text[: found.start()]) and _belongs(text[found.end() :]))
        and not re.match(_IN_A_SETTING, found[0].strip() + " " + text[found.end() :], re.IGNORECASE)
    ]


def _related(told: _Told, found: list[re.Match[str]]) -> _Told:
    kinds = {match.lastgroup or "" for match in found}
    if len(kinds) > 1:
        words = " and ".join(repr(match[0].strip()) for match in found)
        raise CapriccioError(f"The sentence says {words} at once; {_SAY}.")
    text, bounds = told.text, [0, *(bound for match in found for bound in match.span()), len(told.text)]
    groups: list[list[str]] = []
    for at in range(0, len(bounds), 2):
        told, entities = _listed(told, text[bounds[at] : bounds[at + 1]], last=at == len(bounds) - 2)
        groups.append(entities)
    if not all(groups):
        raise CapriccioError(f"Beside {found[0][0].strip()!r} stands no subject; {_SAY}.")
    if unclear := [one for group in groups for one in group if re.search(r"\b(?:both|each|they|it|which)$", one)]:
        raise CapriccioError(f"Who is meant in {unclear[0]!r} is unclear; {_SAY}.")
    (kind,) = kinds
    if kind in ("right", "below"):
        groups.reverse()
    if kind in ("above", "below"):
        return replace(told, rows=tuple(map(tuple, groups)))
    return replace(told, rows=(tuple(entity for group in groups for entity in group),))


# entities


def _listed(told: _Told, text: str, by_commas: bool = False, last: bool = True) -> tuple[_Told, list[str]]:
    """Split a list of entities; what stands behind the last one and is shared by all becomes setting."""
    if last and len(_split(text)) > 1 and (verb := list(_SHARED_VERB.finditer(text))):
        told, text = told.set(text[verb[-1].end() :]), text[: verb[-1].start()]
    elif last:
        told, text = _without_setting(told, text)
    parts = _split(text)
    if by_commas and len(parts) == 1:
        parts = [part for part in map(_clean, _COMMAS.split(text)) if part]
    return told, parts


def _split(text: str) -> list[str]:
    """The entities of a list: parted where a comma or "and" stands before an article, a number, or a name in braces."""
    parts, start = [], 0
    for found in _NEXT.finditer(text):
        if not (_HAVING.search(text[start : found.start()]) and _belongs(text[found.end() :])):
            parts.append(text[start : found.start()])
            start = found.end()
    return [part for part in map(_clean, (*parts, text[start:])) if part]


def _belongs(text: str) -> bool:
    """Whether a text begins with something worn or had, rather than with another entity."""
    head = _PHRASE_HEAD.match(text)
    return head is not None and head[1].split()[-1].lower() in _BELONGINGS


def _without_setting(told: _Told, text: str) -> tuple[_Told, str]:
    """Cut from a last entity where the picture plays, and how it is made."""
    starts = [found.start() for pattern in (_MANNER, _TRAILING) if (found := pattern.search(text))]
    if not starts or not _clean(text[: min(starts)]):
        return told, text
    return told.set(text[min(starts) :]), text[: min(starts)]


def _clean(text: str) -> str:
    text = _BEHIND.sub("", _BEFORE.sub("", text.strip()))
    return _lowered(text)


def _lowered(text: str) -> str:
    """Begin in lower case, unless with a name."""
    first, *_ = text.split(None, 1) or [""]
    known = first != text and re.fullmatch(rf"{_DET}|{_PREPOSITION}|under|against", first, re.IGNORECASE)
    return text[:1].lower() + text[1:] if known else text


def _count(entities: Sequence[str]) -> str:
    return "one subject" if len(entities) == 1 else f"{len(entities)} subjects"


def _quoted(entities: Sequence[str]) -> str:
    return ", ".join(map(repr, entities))
