"""Errors that are the user's to mend, and those that are not.

A `UserError` says what was found, where, and what to do; the command line prints it without a traceback and
exits with status 2. A `Failure` is a job that could not be finished (status 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user gave cannot be used: the message says what, where, and what to do."""


class Damaged(UserError):
    """A file that was written whole is not whole any more."""


class Failure(Exception):
    """A job could not be finished, through no mistake in what the user gave."""


class Cancelled(Exception):
    """The run was asked to stop."""


class OutOfTime(Exception):
    """The time budget of the run is spent."""


class Held(Exception):
    """Another process is at work on this cell."""


def nearest(word: str, words: Iterable[str], listed: str = "") -> str:
    """A hint naming the likeliest meant word; where none is near, all of them, or what lists them where they are many."""
    known = sorted(set(words))
    close = difflib.get_close_matches(word, known, n=5, cutoff=0.6)
    if close:
        # of words that are equally near, one with the same letters: two of them were swapped
        likeliest = min(close, key=lambda w: (-difflib.SequenceMatcher(None, w, word).ratio(), sorted(w) != sorted(word)))
        return f"did you mean {likeliest!r}?"
    if listed and len(known) > 20:
        return f"`{listed}` lists what is known"
    return "known: " + ", ".join(known) if known else "none are known"
