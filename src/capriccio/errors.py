"""Errors that speak to the person: what was received, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class CapriccioError(ValueError):
    """Something the person gave cannot be done; the message is one sentence with the remedy."""


class Cancelled(Exception):
    """Raised by a callback (or by the studio when a callback returns ``False``) to stop a painting cleanly."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``"did you mean 'x'?"``, or the list of valid names when none is close.

    Args:
        name: What was received.
        names: What would have been accepted.
    """
    names = sorted(set(names))
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "valid names are " + ", ".join(map(repr, names))
