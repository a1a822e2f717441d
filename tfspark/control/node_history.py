"""The history of what nodes report: the numbers that all views of a cluster show. No I/O, no threads.

Views read while threads of the coordinator write: each read copies a whole list and takes no lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tfspark.spec import NodeId

WINDOW_SECONDS = 10.0
"""Time over which rates are computed: a longer time gives steadier rates, a shorter time shows changes sooner."""

CURVE_POINTS = 400
"""Number of points of a curve at which every second one is dropped."""

BY_EPOCH = " by epoch"
"""Suffix of the name of a curve that has one point per epoch."""

KEPT_EPOCHS = 100
"""Number of ended epochs kept per node."""

KEPT_LINES = 20
"""Number of log lines kept per node."""


@dataclass(frozen=True)
class InputTimes:
    """Seconds that an input has spent in each state; see `InputState`."""

    waiting: float = 0.0
    preparing: float = 0.0
    ahead: float = 0.0

    @property
    def total(self) -> float:
        """Seconds in which an epoch was read."""
        return self.waiting + self.preparing + self.ahead

    @property
    def waiting_share(self) -> float | None:
        """Share of the time in which the input waited for rows; ``None`` if no epoch was read."""
        return self.waiting / self.total if self.total > 0 else None

    def __sub__(self, other: InputTimes) -> InputTimes:
        return InputTimes(self.waiting - other.waiting, self.preparing - other.preparing, self.ahead - other.ahead)


NO_TIME = InputTimes()


@dataclass(frozen=True)
class Sample:
    """The numbers of one pulse."""

    time: float
    rows_read: int = 0
    step: int = 0
    times: InputTimes = NO_TIME


@dataclass(frozen=True)
class Rates:
    """The current speed of a node.

    Attributes
    ----------
    rows_per_second
        Rows per second that its dataset has read.
    step_seconds
        Seconds per step, including waiting; ``None`` if no step ended.
    times
        Seconds that its input has spent in each state.
    """

    rows_per_second: float = 0.0
    step_seconds: float | None = None
    times: InputTimes = NO_TIME


@dataclass(frozen=True)
class EndedEpoch:
    """An epoch that a node has trained.

    Attributes
    ----------
    number, of
        Number of the epoch, counted from 1, and the number of epochs.
    time
        When it ended, by ``time.monotonic()``.
    metrics
        Metrics over all rows of the epoch, and of the validation after it.
    """

    number: int
    of: int
    time: float
    metrics: Mapping[str, float]


class Curve:
    """Metrics by step; every second point is dropped when there are `most` points. The newest point is always kept."""

    def __init__(self, most: int = CURVE_POINTS) -> None:
        self._most = most
        self._kept: list[tuple[int, Mapping[str, float]]] = []
        self._newest: tuple[int, Mapping[str, float]] | None = None
        self._stride = 1
        self._count = 0

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a point."""
        self._newest = (step, metrics)
        if self._count % self._stride == 0:
            self._kept.append(self._newest)
        self._count += 1
        if len(self._kept) >= self._most:
            self._kept = self._kept[::2]
            self._stride *= 2

    @property
    def points(self) -> list[tuple[int, Mapping[str, float]]]:
        """Pairs of a step and its metrics."""
        kept, newest = self._kept, self._newest
        return [*kept, newest] if newest is not None and (not kept or kept[-1] is not newest) else list(kept)

    def series(self, name: str) -> list[tuple[int, float]]:
        """Return the step and value of each point that has this metric."""
        return [(step, metrics[name]) for step, metrics in self.points if name in metrics]

    @property
    def names(self) -> list[str]:
        """Names of the metrics, in the order in which they were first reported."""
        return list(dict.fromkeys(name for _, metrics in self.points for name in metrics))


class NodeHistory:
    """The history of what one node has reported."""

    def __init__(self) -> None:
        self.curve, self.epoch_curve = Curve(), Curve()
        self.epochs: deque[EndedEpoch] = deque(maxlen=KEPT_EPOCHS)
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.memory_bytes = 0
        self.gpus: tuple[str, ...] = ()
        self.latest = Sample(0.0)
        self._recent: deque[Sample] = deque()

    def epoch_ended(self, epoch: EndedEpoch) -> None:
        """Add an epoch that has ended."""
        self.epochs.append(epoch)
        self.epoch_curve.add(epoch.number, epoch.metrics)

    def pulse(self, sample: Sample) -> None:
        """Add a pulse."""
        if sample.rows_read < self.latest.rows_read or sample.times.total < self.latest.times.total:
            # The node was started again and counts from 0.
            self._recent.clear()
        self.latest = sample
        self._recent.append(sample)
        while sample.time - self._recent[0].time > WINDOW_SECONDS:
            self._recent.popleft()

    def finished(self, now: float, rows_read: int) -> None:
        """Set the total number of rows read at the end; the last pulse may have had a smaller number."""
        if rows_read > self.latest.rows_read:
            self.pulse(replace(self.latest, time=now, rows_read=rows_read))

    @property
    def rates(self) -> Rates:
        """Speed of the node in the `WINDOW_SECONDS` before its latest pulse."""
        recent = list(self._recent)
        if len(recent) < 2:
            return Rates()
        first, last = recent[0], recent[-1]
        seconds, steps = last.time - first.time, last.step - first.step
        return Rates(
            (last.rows_read - first.rows_read) / seconds if seconds > 0 else 0.0,
            seconds / steps if steps > 0 else None,
            last.times - first.times,
        )


def curves_of(histories: Mapping[NodeId, NodeHistory]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return ``{metric: {node: [(step, value), ...]}}`` of all reported metrics.

    Metrics of ended epochs are curves by epoch, with the suffix `BY_EPOCH`. Metrics that Keras reports within an epoch
    are running averages that start again with each epoch; they are separate curves with other names.
    """
    out: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for node, history in histories.items():
        for name in history.epoch_curve.names:
            out.setdefault(f"{name}{BY_EPOCH}", {})[str(node)] = history.epoch_curve.series(name)
    for node, history in histories.items():
        running = bool(history.epoch_curve.names) or "epoch" in history.curve.names
        for name in history.curve.names:
            # Validation metrics are reported only at the end of an epoch and already have a curve by epoch.
            if name not in history.epoch_curve.names or not name.startswith("val_"):
                shown = f"{name} within the epoch" if running and name != "epoch" else name
                out.setdefault(shown, {})[str(node)] = history.curve.series(name)
    return out
