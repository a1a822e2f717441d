"""What holds training back, told from where the time of its input goes. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

ENOUGH_SECONDS = 1.0
"""Of less than so much time nothing is said."""

AHEAD_SHARE = 0.1
"""An input that is ready before it is asked for this share of its time does not hold training back."""


class Bottleneck(str, Enum):
    """What training waits for."""

    UNKNOWN = "unknown"
    COMPUTE = "compute"
    FEED = "feed"
    INPUT = "input"


@dataclass(frozen=True)
class InputTimes:
    """Where the time of an input went, in seconds; see `InputState`."""

    waiting: float = 0.0
    preparing: float = 0.0
    ahead: float = 0.0

    @property
    def total(self) -> float:
        """Seconds in which an epoch was being read."""
        return self.waiting + self.preparing + self.ahead

    @property
    def waiting_share(self) -> float | None:
        """Share of the time in which there were no rows, ``None`` if no epoch was read."""
        return self.waiting / self.total if self.total > 0 else None

    def __sub__(self, other: InputTimes) -> InputTimes:
        return InputTimes(self.waiting - other.waiting, self.preparing - other.preparing, self.ahead - other.ahead)


NO_TIME = InputTimes()


def bottleneck(times: InputTimes) -> Bottleneck:
    """Tell what holds training back.

    An input works ahead of training by a few chunks. It is kept from going on, hence ahead, if training is slower;
    if it hardly ever is, training takes each batch as soon as it is there, and waits. It then waits for the rows to
    arrive, or for the making of tensors, whichever takes longer.

    Returns
    -------
    Bottleneck
        ``UNKNOWN`` if no epoch was read for long enough.
    """
    if times.total < ENOUGH_SECONDS:
        return Bottleneck.UNKNOWN
    if times.ahead >= AHEAD_SHARE * times.total:
        return Bottleneck.COMPUTE
    return Bottleneck.FEED if times.waiting >= times.preparing else Bottleneck.INPUT


def describe(times: InputTimes) -> str:
    """Say it in a few words; nothing if it is not known."""
    total = max(times.total, 1e-9)
    match bottleneck(times):
        case Bottleneck.COMPUTE:
            return f"compute-bound: rows were ready {times.ahead / total:.0%} of the time"
        case Bottleneck.FEED:
            return f"input-bound: waited for Spark's rows {times.waiting / total:.0%} of the time"
        case Bottleneck.INPUT:
            return f"input-bound: made rows into tensors {times.preparing / total:.0%} of the time"
        case _:
            return ""
