"""A chat model behind an HTTP address."""

from __future__ import annotations

import http.client
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from capriccio.errors import CapriccioError
from capriccio.perception.planners.language import OTHERWISE, Message, Unreachable

_MAX_RESPONSE = 2**22
_LONGEST_PAUSE = 20.0


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
            raise Unreachable(f"The key in {self.key_env} has characters that no key has; set the variable again.")
        address = urlsplit(self.url)
        if key and address.scheme == "http" and address.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise Unreachable(
                f"The key in {self.key_env} would travel to {self.url} in the open; use https, or "
                "unset the variable to send none."
            )
        return key

    def _content(self, reply: _Reply) -> str:
        """The text of an answer; or a sentence, which never quotes the server: it might repeat the key."""
        if reply.trouble:
            raise Unreachable(f"The planner at {self.url} {reply.trouble}; {_CHECK}.")
        if reply.status in (401, 403):
            told = f"refused the key in {self.key_env}" if self._key() else "wants a key"
            remedy = f"set {self.key_env} to a valid one" if self.key_env else "name its variable as key_env"
            raise Unreachable(f"The planner at {self.url} {told}; {remedy}.")
        if reply.status == 404:
            raise Unreachable(
                f"The planner at {self.url} has no model {self.model!r}, or no /chat/completions; check both names."
            )
        if reply.status != 200:
            raise Unreachable(
                f"The planner at {self.url} answered with the status {reply.status}; {_remedy(reply.status)}."
            )
        try:
            content = json.loads(reply.body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise Unreachable(
                f"The planner at {self.url} answered with something other than chat completions; {_CHECK}."
            ) from None
        if not isinstance(content, str) or not content.strip():
            raise Unreachable(f"The planner at {self.url} answered with no text; {OTHERWISE}.")
        return content


_CHECK = "check that the address is that of an OpenAI-compatible endpoint (often ending in /v1) and that it runs"


def _remedy(status: int) -> str:
    if status < 400:
        return "give the address that it points to"
    if status == 429 or status >= 500:
        return f"try again later, or {OTHERWISE}"
    return f"check the model's name, or {OTHERWISE}"


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
