"""`Finding`: the result of a check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from tfspark.errors import TFSparkError


class State(str, Enum):
    """The state of what was checked."""

    OK = "ok"
    WARNING = "warning"
    BROKEN = "broken"
    UNKNOWN = "unknown"
    """Not checked, because something else is broken."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes
    ----------
    check
        Name of the check.
    state
        State of what was checked.
    text
        What the check found.
    hint
        How to fix it; empty if there is nothing to fix.
    """

    check: str
    state: State
    text: str
    hint: str = ""


def ok(check: str, text: str) -> Finding:
    """Return a finding for something that works."""
    return Finding(check, State.OK, text)


def warning(check: str, text: str, hint: str) -> Finding:
    """Return a finding for something that may fail."""
    return Finding(check, State.WARNING, text, hint)


def broken(check: str, text: str, hint: str) -> Finding:
    """Return a finding for something that prevents a cluster from running."""
    return Finding(check, State.BROKEN, text, hint)


def unknown(check: str, text: str) -> Finding:
    """Return a finding for something that was not checked."""
    return Finding(check, State.UNKNOWN, text)


def of_error(check: str, error: Exception, hint: str = "") -> Finding:
    """Return a finding for an error; its hint is the error's own, or else `hint`."""
    if isinstance(error, TFSparkError):
        return broken(check, error.message, error.hint or hint)
    return broken(check, f"{type(error).__name__}: {error}", hint)


def guarded(check: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check; if the check raises an error, yield a finding for the error."""
    try:
        yield from look()
    except (TFSparkError, OSError, ImportError) as e:
        yield of_error(check, e)
