"""`Finding`: what a check has found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from tfspark.errors import TFSparkError


class State(str, Enum):
    """How it stands with what was checked."""

    OK = "ok"
    WARNING = "warning"
    BROKEN = "broken"
    UNKNOWN = "unknown"
    """It could not be looked at, because of something else that is broken."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes
    ----------
    check
        What was looked at, in a word or two.
    state
        How it stands.
    text
        What was found.
    hint
        What to do about it; empty if there is nothing to do.
    """

    check: str
    state: State
    text: str
    hint: str = ""


def ok(check: str, text: str) -> Finding:
    """Nothing to do."""
    return Finding(check, State.OK, text)


def warning(check: str, text: str, hint: str) -> Finding:
    """Works, but not everywhere or not for long."""
    return Finding(check, State.WARNING, text, hint)


def broken(check: str, text: str, hint: str) -> Finding:
    """A cluster would not run like this."""
    return Finding(check, State.BROKEN, text, hint)


def unknown(check: str, text: str) -> Finding:
    """Could not be looked at."""
    return Finding(check, State.UNKNOWN, text)


def of_error(check: str, error: Exception, hint: str = "") -> Finding:
    """What an error says, its own hint as what to do."""
    if isinstance(error, TFSparkError):
        return broken(check, error.message, error.hint or hint)
    return broken(check, f"{type(error).__name__}: {error}", hint)


def guarded(check: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Go through a check's findings; what it raises is one of them."""
    try:
        yield from look()
    except (TFSparkError, OSError, ImportError) as e:
        yield of_error(check, e)
