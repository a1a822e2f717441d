"""Finds the bottleneck of training from the times of the input. Pure functions."""

from __future__ import annotations

from enum import Enum

from tfspark.control.node_history import InputTimes

ENOUGH_SECONDS = 1.0
"""Shorter measurements give ``UNKNOWN``."""

AHEAD_SHARE = 0.1
"""If tensors are ready in advance for at least this share of the time, the input is not the bottleneck."""


class Bottleneck(str, Enum):
    """The bottleneck of training."""

    UNKNOWN = "unknown"
    COMPUTE = "compute"
    FEED = "feed"
    INPUT = "input"


def bottleneck(times: InputTimes) -> Bottleneck:
    """Return the bottleneck of training.

    The input prepares a few chunks in advance. If training is slower than the input, tensors are often ready in
    advance. If they are rarely ready, training waits for the input: for rows to arrive (``FEED``) or for rows to be
    converted to tensors (``INPUT``), whichever takes longer.

    Returns
    -------
    Bottleneck
        ``UNKNOWN`` if the measured time is too short.
    """
    if times.total < ENOUGH_SECONDS:
        return Bottleneck.UNKNOWN
    if times.ahead >= AHEAD_SHARE * times.total:
        return Bottleneck.COMPUTE
    return Bottleneck.FEED if times.waiting >= times.preparing else Bottleneck.INPUT


def describe(times: InputTimes) -> str:
    """Return a short description of the bottleneck; an empty string if it is unknown."""
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
