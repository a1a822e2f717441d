"""The last events of a cluster and the instructions that followed from each, for errors and bug reports."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from tfspark.control.events import Event, Instruction, Pulse, Seen, Tick
from tfspark.errors import TFSparkError

KEPT_ENTRIES = 200
"""Number of events kept. Heartbeats, pulses and ticks without instructions are not kept."""

LONGEST_ENTRY = 300
"""Characters kept of an event or instruction; the rest, for example of a traceback, is cut off."""

SHOWN_ENTRIES = 20
"""Number of events in the message of an `IllegalTransition`."""


class IllegalTransition(TFSparkError):
    """An event that cannot follow what happened before, such as a result of a node that has failed."""


@dataclass(frozen=True)
class Entry:
    """An event, its time in seconds since the cluster began, and the instructions that followed."""

    seconds: float
    event: str
    instructions: tuple[str, ...]

    def __str__(self) -> str:
        """Return the entry as one line."""
        done = "; ".join(self.instructions)
        return f"{self.seconds:9.2f} s  {self.event}" + (f"  ->  {done}" if done else "")


class Story:
    """The last events of a cluster, with times in seconds since it began.

    Parameters
    ----------
    began
        Time when the cluster began, by the clock of the events.
    """

    def __init__(self, began: float) -> None:
        self._began = began
        self._entries: deque[Entry] = deque(maxlen=KEPT_ENTRIES)

    def add(self, now: float, event: Event, instructions: Sequence[Instruction]) -> None:
        """Add an event and the instructions that followed."""
        if instructions or not isinstance(event, (Seen, Pulse, Tick)):
            done = tuple(_short(i) for i in instructions)
            self._entries.append(Entry(now - self._began, _short(event), done))

    def tell(self, last: int = KEPT_ENTRIES) -> str:
        """Return the last entries, one per line."""
        return "\n".join(map(str, list(self._entries)[-last:]))


def _short(told: Event | Instruction) -> str:
    text = repr(told)
    return text if len(text) <= LONGEST_ENTRY else f"{text[:LONGEST_ENTRY]}..."
