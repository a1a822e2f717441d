"""What happened to a cluster: its last events and what followed from each, for errors and bug reports."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from tfspark.control.events import Event, Instruction, Pulse, Seen, Tick
from tfspark.errors import TFSparkError

KEPT_ENTRIES = 200
"""Events that are remembered; signs of life and ticks that nothing follows from are not."""

LONGEST_ENTRY = 300
"""Characters of an event or instruction; the rest, such as of a traceback, is left out."""

SHOWN_ENTRIES = 20
"""Events that an `IllegalTransition` tells."""


class IllegalTransition(TFSparkError):
    """An event that cannot follow what happened before, such as a result of a node that has failed."""


@dataclass(frozen=True)
class Entry:
    """When something happened, what it was, and what was done because of it."""

    seconds: float
    event: str
    instructions: tuple[str, ...]

    def __str__(self) -> str:
        """Return a line of the story."""
        done = "; ".join(self.instructions)
        return f"{self.seconds:9.2f} s  {self.event}" + (f"  ->  {done}" if done else "")


class Story:
    """The last events of a cluster; times count from its beginning.

    Parameters
    ----------
    began
        When it began.
    """

    def __init__(self, began: float) -> None:
        self._began = began
        self._entries: deque[Entry] = deque(maxlen=KEPT_ENTRIES)

    def add(self, now: float, event: Event, instructions: Sequence[Instruction]) -> None:
        """Note an event and what followed."""
        if instructions or not isinstance(event, (Seen, Pulse, Tick)):
            done = tuple(_short(i) for i in instructions)
            self._entries.append(Entry(now - self._began, _short(event), done))

    def tell(self, last: int = KEPT_ENTRIES) -> str:
        """Return the last entries, one a line."""
        return "\n".join(map(str, list(self._entries)[-last:]))


def _short(told: Event | Instruction) -> str:
    text = repr(told)
    return text if len(text) <= LONGEST_ENTRY else f"{text[:LONGEST_ENTRY]}..."
