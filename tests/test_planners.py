"""Pages and planners: split ratios, answers of language models, endpoints that misbehave, and a small grammar."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capriccio.errors import CapriccioError
from capriccio.perception.pages import Cell, Page, Row, join_ratio, split_cells, split_rows
from capriccio.perception.planners import (
    MAX_ANSWER,
    GrammarPlanner,
    LanguagePlanner,
    Message,
    endpoint,
    local,
    messages_for,
    planner,
    read_answer,
)
from capriccio.world.captions import NOUNS, caption
from capriccio.world.casting import sample_people
from capriccio.world.graph import SceneGraph, foot_of, sample_scene
from capriccio.world.words import COLOURLESS, SYNONYMS, Detail, sample_detail

PARTS = st.floats(0.01, 100).map(lambda part: round(part, 4))
ROWS = st.builds(Row, PARTS, st.lists(PARTS, min_size=1, max_size=5).map(tuple))


def rectangles(ratio: str) -> list[tuple[float, ...]]:
    return [tuple(round(edge, 4) for edge in (one.left, one.top, one.right, one.bottom)) for one in split_cells(ratio)]


# --- split ratios ---


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        ("1", [(0, 0, 1, 1)]),
        ("0.5,0.5", [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]),
        (".5,1.", [(0, 0, 0.3333, 1), (0.3333, 0, 1, 1)]),
        ("1;3", [(0, 0, 1, 0.25), (0, 0.25, 1, 1)]),
        ("1,1;1,1,1", [(0, 0, 1, 0.5), (0, 0.5, 0.5, 1), (0.5, 0.5, 1, 1)]),
        (
            "1,2,1,1;2,4,6",
            [
                (0, 0, 0.5, 0.3333),
                (0.5, 0, 0.75, 0.3333),
                (0.75, 0, 1, 0.3333),
                (0, 0.3333, 0.4, 1),
                (0.4, 0.3333, 1, 1),
            ],
        ),
    ],
)
def test_a_ratio_cuts_the_page_as_published(ratio: str, expected: list[tuple[float, ...]]) -> None:
    assert rectangles(ratio) == expected


@pytest.mark.parametrize("dressed", ["**1, 1; 2 ,3**", " 1,1;\n2,3 ", "`1,1;2,3`"])
def test_blanks_and_markdown_mean_nothing(dressed: str) -> None:
    assert split_cells(dressed) == split_cells("1,1;2,3")


@pytest.mark.parametrize(
    ("ratio", "sentence"),
    [
        ("1,wide", "has 'wide' for a number; write '1,1' for two columns"),
        ("1,50%", "has '50%' for a number"),
        ("1,nan", "has 'nan' for a number"),
        ("1,1e3", "has '1e3' for a number"),
        ("", "has an empty part"),
        ("1;;1", "has an empty part"),
        ("1,1;", "has an empty part"),
        ("1,,1", "has an empty part"),
        ("1,0", "has a part 0, but parts are above 0"),
        ("1,-2", "has a part -2, but parts are above 0"),
        ("1,0." + 30 * "0" + "1", "has parts too unequal to be seen"),
        ("9" * 400 + ",1", "has parts too unequal to be seen"),
    ],
)
def test_what_is_no_ratio_gets_a_sentence(ratio: str, sentence: str) -> None:
    with pytest.raises(CapriccioError, match=re.escape(sentence)):
        split_cells(ratio)


@settings(deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=5))
def test_cells_tile_the_page(rows: list[Row]) -> None:
    cells = split_cells(join_ratio(rows))
    assert sum((one.right - one.left) * (one.bottom - one.top) for one in cells) == pytest.approx(1)
    assert (cells[0].left, cells[0].top, cells[-1].right, cells[-1].bottom) == (0, 0, 1, 1)
    for before, after in pairwise(cells):
        if after.left:  # the same row
            assert (after.left, after.top, after.bottom) == (before.right, before.top, before.bottom)
        else:
            assert (after.top, before.right) == (before.bottom, 1)


@settings(deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=5))
def test_rows_survive_being_written(rows: list[Row]) -> None:
    # What a ratio cannot hold: the height of a single row, the width of a row's only cell.
    plain = [Row(row.height, row.widths if len(row.widths) > 1 else (1.0,)) for row in rows]
    expected = plain if len(rows) > 1 else [Row(1.0, rows[0].widths)]
    assert list(split_rows(join_ratio(rows))) == expected


# --- pages ---

PAGE = Page(prompt="a cat, a dog", base="a cat and a dog", ratio="1,2", regions=("a cat", "a dog: brown"))


def test_a_page_knows_its_cells() -> None:
    assert PAGE.cells == (Cell(0, 0, 1 / 3, 1), Cell(1 / 3, 0, 1, 1))


@pytest.mark.parametrize("name", ["page.yaml", "page.yml", "deep/page.json"])
def test_a_page_survives_a_file(tmp_path: Path, name: str) -> None:
    assert Page.load(PAGE.save(tmp_path / name)) == PAGE


@settings(deadline=None, max_examples=40)
@given(st.text(min_size=1).filter(str.strip), st.sampled_from([".yaml", ".json"]))
def test_any_words_survive_a_file(tmp_path_factory: pytest.TempPathFactory, words: str, suffix: str) -> None:
    page = Page(prompt=words, base=words, ratio="1", regions=(words,))
    assert Page.load(page.save(tmp_path_factory.getbasetemp() / f"words{suffix}")) == page


def test_a_page_written_by_hand_is_read(tmp_path: Path) -> None:
    (tmp_path / "hand.yaml").write_text("prompt: a cat\nbase: a cat\nratio: 1\nregions:\n- a cat in the snow\n")
    assert Page.load(tmp_path / "hand.yaml").regions == ("a cat in the snow",)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"regions": ("a cat",)}, "The split ratio '1,2' cuts the page into 2 cells, but 1 region came with it"),
        ({"ratio": "1"}, "into 1 cell, but 2 regions came with it; give one prompt for each cell"),
        ({"regions": ("a cat", " ")}, "Region 2 of 2 is empty; say what"),
        ({"ratio": "1,x"}, "has 'x' for a number"),
        ({"base": ""}, "an empty prompt or base"),
        ({"region": "a cat"}, "A page has no setting 'region'; did you mean 'regions'?"),
        ({"regions": "a cat"}, "A page received 'a cat' for 'regions'"),
    ],
)
def test_what_is_no_page_gets_a_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CapriccioError, match=re.escape(sentence)):
        Page(**dict(PAGE) | change)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("page.txt", "", "A page is a .yaml, .yml or .json file, but received 'page.txt'"),
        ("page.json", "{", "is not valid JSON"),
        ("page.yaml", "a: [", "is not valid YAML"),
        ("page.yaml", "- 1", "holds list, but a page is a map with 'prompt'"),
        ("page.yaml", "prompt: a\nprompt: b", "has the key 'prompt' twice"),
        ("page.json", '{"prompt": "a", "prompt": "b"}', "has the key 'prompt' twice"),
        ("page.json", '{"prompt": "a"}', "page.json': A page needs 'base'; give it."),
        ("page.json", " " * (2**20 + 1), "is larger than 1 MiB"),
        ("page.json", None, "cannot be read (No such file"),
    ],
)
def test_a_file_that_holds_no_page_gets_a_sentence(tmp_path: Path, name: str, text: str | None, sentence: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(CapriccioError, match=re.escape(sentence)):
        Page.load(tmp_path / name)


# --- answers ---

GOOD = {"entities": ["cat", "dog"], "base": "both", "ratio": "1,2", "regions": ["a white cat", "a black dog"]}
PUBLISHED = """\
### Reasoning
Key entities are ...
**Final split ratio:** 1, 2

**Regional Prompt:** a white
cat BREAK

a black dog

I hope that this helps!"""


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(GOOD),
        f"Of course!\n```json\n{json.dumps(GOOD, indent=2)}\n```\nEnjoy {{it}}.",
        f'<think>perhaps {{"ratio": "1", "regions": ["x"]}}</think> {json.dumps(GOOD)}',
        json.dumps(GOOD).replace("a white cat", "a white\ncat"),
        PUBLISHED,
        "Final split ratio: 1,2\nRegional Prompt: a white cat BREAK a black dog",
        "Final split ratio: `1,2`.\n\n__Regional Prompts__:\na white cat\n**BREAK**\na black dog\n```",
        "Regional Prompt: a white cat BREAK a black dog\nFinal split ratio: 1,2",
        "Final split ratio: 5\nNo, better:\nFinal Split Ratio:\n1,2\nRegional Prompt: a white cat BREAK a black dog",
    ],
)
def test_an_answer_is_read_in_any_dress(answer: str) -> None:
    page = read_answer("a cat, a dog", answer)
    assert (page.prompt, page.ratio.replace(" ", "")) == ("a cat, a dog", "1,2")
    assert page.regions == ("a white cat", "a black dog")
    assert page.base == ("both" if "both" in answer else "a cat, a dog")


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("I cannot do that.", "The answer holds no plan; answer with one JSON object"),
        ('{"colour": "red"}', "The answer holds no plan"),
        ("{" * 50_000, "The answer holds no plan"),
        ('{"ratio": ' * 5000, "The answer holds no plan"),
        ('{"ratio": "1,1"}', "The answer needs 'regions'; give it."),
        ('{"ratio": "1,1", "regions": ["a"]}', "into 2 cells, but 1 region came"),
        ('{"ratio": [1, 1], "regions": ["a", "b"]}', "received [1, 1] for 'ratio'"),
        ('{"ratio": "1,1", "regions": [{"a": 1}, "b"]}', "The answer received {'a': 1} for 'regions.0'"),
        ("Final split ratio: 1,1 (halves)\nRegional Prompt: a BREAK b", "has '1(halves)' for a number"),
        ("Regional Prompt: a BREAK b", "The answer needs 'ratio'; give it."),
        ("Final split ratio: 1,1", "The answer needs 'regions'; give it."),
        ("Final split ratio: 1,1\nRegional Prompt: a BREAK", "Region 2 of 2 is empty"),
        ("x" * (MAX_ANSWER + 1), "at most 65536 are read"),
    ],
)
def test_an_answer_that_is_no_plan_gets_a_sentence(answer: str, sentence: str) -> None:
    with pytest.raises(CapriccioError, match=re.escape(sentence)):
        read_answer("a cat", answer)


@dataclass
class Parrot:
    """Gives prepared answers, the last one for ever, and remembers what it was asked."""

    answers: list[str]
    heard: list[list[Message]] = field(default_factory=list)

    def __call__(self, messages: list[Message]) -> str:
        self.heard.append(messages)
        return self.answers[min(len(self.heard), len(self.answers)) - 1]


def test_a_good_answer_is_asked_for_once() -> None:
    parrot = Parrot([json.dumps(GOOD)])
    assert LanguagePlanner(parrot).plan("a cat, a dog").regions == ("a white cat", "a black dog")
    assert parrot.heard == [messages_for("a cat, a dog")]
    assert parrot.heard[0][-1]["content"].endswith("Description: a cat, a dog")


def test_the_examples_of_the_instruction_are_plans() -> None:
    (message,) = messages_for("a cat")
    examples = re.findall(r"Description: (.+)\n(\{.+\})\n", message["content"])
    assert [len(read_answer(*example).regions) for example in examples] == [2, 3]


def test_a_bad_answer_is_repaired_once_with_the_sentence() -> None:
    bad = json.dumps(GOOD | {"ratio": "1,1,1"})
    parrot = Parrot([bad, json.dumps(GOOD)])
    assert LanguagePlanner(parrot).plan("a cat, a dog").ratio == "1,2"
    first, again = parrot.heard
    assert again[: len(first)] == first
    assert again[-2] == {"role": "assistant", "content": bad}
    assert "into 3 cells, but 2 regions came with it" in again[-1]["content"]


def test_two_bad_answers_are_refused() -> None:
    parrot = Parrot(["no", '{"ratio": "1"}', json.dumps(GOOD)])
    with pytest.raises(
        CapriccioError, match=r"Twice .* no plan \(The answer needs 'regions'; give it\); use another model"
    ):
        LanguagePlanner(parrot).plan("a cat, a dog")
    assert len(parrot.heard) == 2


@pytest.mark.parametrize("name", ["grammar", "http://localhost:1/v1#m"])
def test_nothing_to_plan_gets_a_sentence(name: str) -> None:
    with pytest.raises(CapriccioError, match="The prompt is empty"):
        planner(name).plan(" \n")


# --- an endpoint ---

SECRET = "sk-very-secret-0123456789"
Act = Callable[[BaseHTTPRequestHandler], None]


def reply(status: int, body: bytes, **headers: str) -> Act:
    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return act


def said(content: Any) -> Act:
    return reply(200, json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode())


def drip(handler: BaseHTTPRequestHandler) -> None:
    """A byte now and then: no single read takes long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    try:
        for _ in range(30):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)
    except OSError:
        pass


def hang(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(1.5)


def drop(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


@dataclass
class Served:
    """A server that acts its script, the last act for ever."""

    url: str
    acts: list[Act] = field(default_factory=list)
    heard: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            script.heard.append((self.path, dict(self.headers), body))
            script.acts[min(len(script.heard), len(script.acts)) - 1](self)

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    script = Served(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield script
    server.shutdown()
    server.server_close()


def test_an_endpoint_plans(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{SECRET}\n")
    served.acts = [said("```json\n" + json.dumps(GOOD) + "\n```")]
    assert planner(f"{served.url}/#tiny-llama").plan("a cat, a dog").ratio == "1,2"
    ((path, headers, body),) = served.heard
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert body == {"model": "tiny-llama", "messages": messages_for("a cat, a dog")}


def test_no_key_is_sent_where_there_is_none(served: Served) -> None:
    served.acts = [said("hello")]
    assert endpoint(f"{served.url}/chat/completions", "m")([]) == "hello"
    ((path, headers, _),) = served.heard
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers


@pytest.mark.parametrize("trouble", [reply(500, b"oh"), reply(503, b""), reply(429, b"slow down"), drop])
def test_what_may_pass_is_tried_again(served: Served, trouble: Act) -> None:
    served.acts = [trouble, trouble, said("hello")]
    assert endpoint(served.url, "m", retries=2, pause=0)([]) == "hello"
    assert len(served.heard) == 3


def test_pauses_grow(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("capriccio.perception.planners.http_model.time.sleep", pauses.append)
    served.acts = [reply(500, b"")]
    with pytest.raises(CapriccioError, match="answered with the status 500; try again later"):
        endpoint(served.url, "m", retries=6, pause=1)([])
    assert pauses == [1, 2, 4, 8, 16, 20]
    assert len(served.heard) == 7


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (reply(200, b"<html>Hello</html>"), "answered with something other than chat completions; check that"),
        (reply(200, b'{"choices": []}'), "something other than chat completions"),
        (reply(200, b'{"error": "sorry"}'), "something other than chat completions"),
        (reply(200, b"[" * 100_000), "something other than chat completions"),
        (reply(200, b"\xff\xfe"), "something other than chat completions"),
        (reply(200, b" " * (2**22 + 1)), "said too much"),
        (said(None), "answered with no text; use another model"),
        (said(""), "answered with no text"),
        (said([1]), "answered with no text"),
        (reply(400, b"sorry"), "answered with the status 400; check the model's name"),
        (reply(401, SECRET.encode()), "refused the key in OPENAI_API_KEY; set OPENAI_API_KEY to a valid one"),
        (reply(404, b""), "has no model 'm', or no /chat/completions; check both names"),
        (reply(302, b"", Location="http://127.0.0.1:9/"), "answered with the status 302; give the address"),
    ],
)
def test_what_waiting_cannot_help_is_told_at_once(
    served: Served, monkeypatch: pytest.MonkeyPatch, act: Act, sentence: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    served.acts = [act]
    with pytest.raises(CapriccioError, match=re.escape(sentence)) as told:
        LanguagePlanner(endpoint(served.url, "m", pause=0)).plan("a cat")
    assert SECRET not in str(told.value)
    assert len(served.heard) == 1


@pytest.mark.parametrize("slow", [hang, drip])
def test_an_endpoint_that_hangs_is_left(served: Served, slow: Act) -> None:
    served.acts = [slow]
    start = time.monotonic()
    with pytest.raises(CapriccioError, match=r"did not answer within 0\.3 seconds; check that"):
        endpoint(served.url, "m", timeout=0.3)([])
    assert time.monotonic() - start < 1
    assert len(served.heard) == 1


def test_a_refused_connection_gets_a_sentence(served: Served) -> None:
    with pytest.raises(CapriccioError, match=r"at http://127\.0\.0\.1:9/v1 cannot be reached \(Connection refused\)"):
        endpoint("http://127.0.0.1:9/v1", "m", retries=1, pause=0)([])


def test_the_key_is_told_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    ask = endpoint("http://example.com/v1", "m")
    assert SECRET not in f"{ask!r} {ask} {vars(ask)} {LanguagePlanner(ask)!r}"
    with pytest.raises(CapriccioError, match=r"would travel to http://example\.com/v1 in the open; use https") as told:
        ask([])
    assert SECRET not in str(told.value)


def test_a_broken_key_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f"{SECRET}\nX-Header: 1")
    with pytest.raises(CapriccioError, match="The key in MY_KEY has characters that no key has") as told:
        endpoint("https://127.0.0.1:9/v1", "m", key_env="MY_KEY")([])
    assert SECRET not in str(told.value)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"url": "ftp://example.com"}, "has no http, host or port"),
        ({"url": "https://"}, "has no http, host or port"),
        ({"url": "http://host:99999/v1"}, "has no http, host or port"),
        ({"url": "http://ho st/v1"}, "has no http, host or port"),
        ({"url": f"https://me:{SECRET}@example.com/v1"}, "came with a user, a password or a query"),
        ({"url": f"https://example.com/v1?key={SECRET}"}, "put the key into the environment variable OPENAI_API_KEY"),
        ({"model": " "}, "came without a model; name one behind a hash"),
        ({"timeout": 0}, "Received timeout=0"),
        ({"timeout": float("inf")}, "Received timeout=inf"),
        ({"retries": -1}, "Received retries=-1"),
        ({"retries": 1000}, "Received retries=1000"),
        ({"pause": -1}, "Received pause=-1"),
    ],
)
def test_an_endpoint_that_cannot_be_gets_a_sentence(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CapriccioError, match=re.escape(sentence)) as told:
        endpoint(**{"url": "https://example.com/v1", "model": "m"} | wrong)
    assert SECRET not in str(told.value)


# --- a transformers model ---


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model of the published class that knows letters, untrained."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: at for at, letter in enumerate([*letters, "<s>", "</s>"])}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = (
        "{% for message in messages %}<s>{{ message.role }}: {{ message.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant: {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16384,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_local_model_is_asked_and_repaired_and_refused(llama: Path) -> None:
    asked: list[list[Message]] = []
    model = local(str(llama), max_new_tokens=8)

    def ask(messages: list[Message]) -> str:
        asked.append(messages)
        return model(messages)

    with pytest.raises(CapriccioError, match=r"Twice the planner's answer was no plan \(The answer holds no plan"):
        LanguagePlanner(ask).plan("a cat")
    assert [len(messages) for messages in asked] == [1, 3]


def test_a_local_model_says_its_likeliest_words_alone(llama: Path) -> None:
    messages = [{"role": "user", "content": "hello"}]
    first, second = (local(str(llama), max_new_tokens=length)(messages) for length in (6, 12))
    assert first
    assert second.startswith(first.rstrip("�"))
    assert "hello" not in first
    assert planner(str(llama)) == LanguagePlanner(local(str(llama)))


def test_a_model_without_a_chat_template_gets_a_sentence(llama: Path, tmp_path: Path) -> None:
    for file in llama.iterdir():
        if file.name != "chat_template.jinja":
            os.link(file, tmp_path / file.name)
    with pytest.raises(CapriccioError, match="has no chat template, so that it cannot be asked"):
        planner(str(tmp_path)).plan("a cat")


def test_a_template_that_refuses_gets_a_sentence(llama: Path, tmp_path: Path) -> None:
    for file in llama.iterdir():
        if file.name != "chat_template.jinja":
            os.link(file, tmp_path / file.name)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    with pytest.raises(CapriccioError, match="refuses the planner's messages"):
        planner(str(tmp_path)).plan("a cat")


def test_a_model_that_is_not_there_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CapriccioError, match="could not be loaded; connect to download it, check its name"):
        planner(str(tmp_path)).plan("a cat")
    with pytest.raises(CapriccioError, match="max_new_tokens=0"):
        local("m", 0)


# --- names ---


def test_planners_have_names() -> None:
    assert planner("grammar") == GrammarPlanner()
    assert planner("http://localhost:8000/v1#a/b") == LanguagePlanner(endpoint("http://localhost:8000/v1", "a/b"))
    assert planner("Qwen/Qwen2.5-7B-Instruct") == LanguagePlanner(local("Qwen/Qwen2.5-7B-Instruct"))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gramar", "There is no planner 'gramar'; did you mean 'grammar'?, or give an address with its model"),
        ("./nowhere", "There is no planner './nowhere'"),
        ("", "There is no planner ''"),
        ("https://example.com/v1", "came without a model"),
    ],
)
def test_an_unknown_planner_gets_a_sentence(name: str, sentence: str) -> None:
    with pytest.raises(CapriccioError, match=re.escape(sentence)):
        planner(name)


# --- the grammar ---


@pytest.mark.parametrize(
    ("prompt", "ratio", "regions"),
    [
        # sides
        (
            "A red mug on the left and a blue teapot on the right, at sunset.",
            "1,1",
            ["a red mug at sunset", "a blue teapot at sunset"],
        ),
        (
            "On the left, a red cube; on the right, a blue ball in a forest at night.",
            "1,1",
            ["a red cube in a forest at night", "a blue ball in a forest at night"],
        ),
        ("on the left a red cube and a blue ball on the right", "1,1", ["a red cube", "a blue ball"]),
        ("left: a red cube, right: a blue ball", "1,1", ["a red cube", "a blue ball"]),
        (
            "A red cube is on the left. A blue ball is on the right. The sun sets.",
            "1,1",
            ["a red cube, the sun sets", "a blue ball, the sun sets"],
        ),
        ("a cat in the left half of the picture and a dog in the right half", "1,1", ["a cat", "a dog"]),
        ("a cat and a dog on the left and a bird on the right", "1,1", ["a cat and a dog", "a bird"]),
        ("a red cube on the left, a blue ball in the middle", "1,1,1", ["a red cube", "a blue ball", "background"]),
        ("a fish at the bottom and a bird at the top of the picture", "1;1", ["a bird", "a fish"]),
        (
            "{mug} on the left and the {cat} on the right in the snow",
            "1,1",
            ["{mug} in the snow", "the {cat} in the snow"],
        ),
        # corners
        (
            "in a forest at night, in the top left a red mug, in the bottom right a blue car",
            "1,1,1;1,1,1",
            ["a red mug in a forest at night", "background", "background", "a blue car in a forest at night"],
        ),
        ("a sun at the top, a cube on the left and a ball on the right", "1;1,1,1", ["a sun", "a cube", "a ball"]),
        (
            "a star in the centre, a cube at the top left, a ball at the upper right, a mug in the lower left corner "
            "and a car at the bottom right",
            "1,1,1;1;1,1,1",
            ["a cube", "a ball", "a star", "a mug", "a car"],
        ),
        (
            "a mug, a cat, a dog and a tree in the four corners of the picture, on the beach",
            "1,1,1;1,1,1",
            ["a mug on the beach", "a cat on the beach", "a dog on the beach", "a tree on the beach"],
        ),
        ("In four quarters: a mug, a cat, a dog and a tree", "1,1,1;1,1,1", ["a mug", "a cat", "a dog", "a tree"]),
        # relations
        ("a red cube above a blue ball", "1;1", ["a red cube", "a blue ball"]),
        ("a cat sits under a table at night", "1;1", ["a table at night", "a cat at night"]),
        ("a cat above a dog above a bird", "1;1;1", ["a cat", "a dog", "a bird"]),
        ("a moon above a red house and a blue tree", "1;1,1,1", ["a moon", "a red house", "a blue tree"]),
        ("a red mug to the left of a blue car", "1,1", ["a red mug", "a blue car"]),
        ("a red mug on the right of a blue and white car", "1,1", ["a blue and white car", "a red mug"]),
        ("a cat next to a dog under a starry sky", "1,1", ["a cat under a starry sky", "a dog under a starry sky"]),
        ("between a red house and a blue house stands a tree", "1,1,1", ["a red house", "a tree", "a blue house"]),
        (
            "a tree between a house and a barn in the snow",
            "1,1,1",
            ["a house in the snow", "a tree in the snow", "a barn in the snow"],
        ),
        ("a cat and a dog with a ball between them", "1,1,1", ["a cat", "a ball", "a dog"]),
        # lists
        (
            "From left to right: a red cube, a blue ball and a green cone.",
            "1,1,1",
            ["a red cube", "a blue ball", "a green cone"],
        ),
        ("red cube, blue ball and green cone from top to bottom", "1;1;1", ["red cube", "blue ball", "green cone"]),
        ("a mug with a blue handle and a tree from right to left", "1,1", ["a tree", "a mug with a blue handle"]),
        (
            "From left to right, a blonde girl in white shirt, a brown haired girl in blue shirt printed with a bird, "
            "an Asian young man in suit are walking in the campus happily.",
            "1,1,1",
            [
                "a blonde girl in white shirt walking in the campus happily",
                "a brown haired girl in blue shirt printed with a bird walking in the campus happily",
                "an Asian young man in suit walking in the campus happily",
            ],
        ),
        (
            "a watercolour of a cat, a dog and a bird on the beach, cinematic lighting",
            "1,1,1",
            [f"a watercolour of a {kind} on the beach, cinematic lighting" for kind in ("cat", "dog", "bird")],
        ),
        (
            "a woman wearing a hat and a scarf next to a man with a beard and a red coat in the park",
            "1,1",
            ["a woman wearing a hat and a scarf in the park", "a man with a beard and a red coat in the park"],
        ),
        # one subject, one cell
        ("a red robot on the left on the beach", "1", ["a red robot on the left on the beach"]),
        ("a red and blue robot with a black nose", "1", ["a red and blue robot with a black nose"]),
        ("a woman wearing a jacket over a white shirt", "1", ["a woman wearing a jacket over a white shirt"]),
        ("a red apple at the top of a hill", "1", ["a red apple at the top of a hill"]),
        ("three ducks in a row", "1", ["three ducks in a row"]),
    ],
)
def test_plain_sentences_are_divided(prompt: str, ratio: str, regions: list[str]) -> None:
    page = GrammarPlanner().plan(prompt)
    assert page.ratio == ratio
    assert page.base == page.prompt == prompt
    for region, expected in zip(page.regions, regions, strict=True):
        assert region.startswith("an empty background") if expected == "background" else region == expected


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("a cube on the left and a ball", "'a ball' comes without a place; give each subject one place"),
        ("a ball, and on the left a cube", "'a ball' comes without a place"),
        ("a cat and a dog side by side, a bird", "'a bird' comes without a place"),
        ("a house, a red cube on the left and a ball on the right", "One place is named for 'a house', 'a red cube'"),
        ("a cat and a dog on the left", "One place is named for 'a cat', 'a dog'"),
        ("a cat on the left and on the right", "Place 2 of 2 in the sentence has no subject"),
        ("a tree on the left, a sun at the top right and a house at the bottom right", "'a tree' stands at a side"),
        ("a sun at the top, a moon at the top left and a house at the bottom", "'a sun' has a row for itself"),
        ("a cat above a dog and to the left of a bird", "says 'above' and 'to the left of' at once"),
        ("a cat above a dog, both above a bird", "Who is meant in 'a dog, both'"),
        ("a cat with a ball on its left and a dog", "The word 'left' in the sentence cannot be followed"),
        ("a tree between a house", "Something stands between, but one subject at its sides: 'a house'"),
        ("a mug, a cat and a dog in four quarters", "Four quarters are named, but 3 subjects"),
        ("under a table, a cat", "The word 'under' in the sentence cannot be followed"),
    ],
)
def test_what_cannot_be_divided_gets_a_sentence_with_the_remedy(prompt: str, sentence: str) -> None:
    with pytest.raises(CapriccioError, match=re.escape(sentence)) as told:
        GrammarPlanner().plan(prompt)
    assert "ask a language model (planner='https://...#model'), or write the regions by hand." in str(told.value)


def in_its_cell(scene: SceneGraph, page: Page, detail: Detail) -> bool:
    """Whether every subject is told, by kind and main colour, in the one cell that holds its place."""
    farther = {id(one) for one in sorted(scene.things, key=foot_of)[: len(scene.things) // 2]}
    for thing in scene.things:
        words = [
            set(region.split())
            for cell, region in zip(page.cells, page.regions, strict=True)
            if cell.left <= thing.x < cell.right
            and (len(scene.things) < 4 or (cell.top == 0) == (id(thing) in farther))
        ]
        kind, main = thing.identity.kind, thing.identity.main
        said_kind = len(words) == 1 and words[0] & {kind, *NOUNS.get(kind, ())}
        coloured = detail != "kind" and scene.style not in COLOURLESS
        if not said_kind or (coloured and not words[0] & {main, *SYNONYMS.get(main, ())}):
            return False
    return len(page.regions) == len(scene.things)


def test_captions_of_the_world_are_divided_as_the_scene_is() -> None:
    rng, right, placed = np.random.default_rng(5), 0, 0
    for number in range(120):
        scene, detail = sample_scene(rng, 2 + number % 3), sample_detail(rng)
        text = caption(scene, rng, detail)
        page = GrammarPlanner().plan(text)
        if re.search(r"\b(left|right|top|bottom|middle)\b", text):
            placed += 1
            right += in_its_cell(scene, page, detail)
        assert len(page.regions) == len(scene.things)
    assert placed > 100
    assert right >= 0.95 * placed


def test_the_judge_of_captions_can_say_no() -> None:
    rng = np.random.default_rng(6)
    scene = sample_scene(rng, 2, style="shaded")
    page = GrammarPlanner().plan(caption(scene, rng, "full"))
    swapped = Page(**dict(page) | {"regions": page.regions[::-1]})
    assert in_its_cell(scene, page, "full")
    assert not in_its_cell(scene, swapped, "full")


def test_captions_of_people_are_divided_too() -> None:
    rng = np.random.default_rng(7)
    for number in range(40):
        scene = sample_people(rng, 1 + number % 3, things=int(number % 3 == 0))
        assert len(GrammarPlanner().plan(caption(scene, rng, sample_detail(rng))).regions) == len(scene.cast)
