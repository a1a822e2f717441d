"""What nodes have said of themselves, over time: the numbers behind every view of a cluster. No I/O, no threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tfspark.driver.bottleneck import NO_TIME, InputTimes
from tfspark.spec import NodeId

WINDOW_SECONDS = 10.0
"""Rates are those of so much time; more is calmer, less is quicker to show a change."""

CURVE_POINTS = 400
"""Points kept of a curve; when it has more, every second one is dropped."""

KEPT_LINES = 20
"""Log lines kept of each node."""


@dataclass(frozen=True)
class Sample:
    """One pulse."""

    time: float
    rows_read: int = 0
    step: int = 0
    times: InputTimes = NO_TIME


@dataclass(frozen=True)
class Rates:
    """How fast a node is now.

    Attributes
    ----------
    rows_per_second
        Rows that its dataset has taken.
    step_seconds
        Seconds per step, waiting included; ``None`` if no step ended.
    times
        Where the time of its input went.
    """

    rows_per_second: float = 0.0
    step_seconds: float | None = None
    times: InputTimes = NO_TIME


class Curve:
    """Metrics by step, thinned out as they become many; the newest point is always there."""

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
        """Steps and their metrics."""
        kept, newest = self._kept, self._newest
        return [*kept, newest] if newest is not None and kept[-1] is not newest else list(kept)

    def series(self, name: str) -> list[tuple[int, float]]:
        """Return the points that have this metric."""
        return [(step, metrics[name]) for step, metrics in self.points if name in metrics]

    @property
    def names(self) -> list[str]:
        """Metrics, in the order in which they first came."""
        return list(dict.fromkeys(name for _, metrics in self.points for name in metrics))


class NodeMonitor:
    """One node."""

    def __init__(self) -> None:
        self.curve = Curve()
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.memory_bytes = 0
        self.gpus: tuple[str, ...] = ()
        self.latest = Sample(0.0)
        self._recent: deque[Sample] = deque()

    def pulse(self, sample: Sample) -> None:
        """Take note of a pulse."""
        if sample.rows_read < self.latest.rows_read or sample.times.total < self.latest.times.total:
            # The node was started again, and counts anew.
            self._recent.clear()
        self.latest = sample
        self._recent.append(sample)
        while sample.time - self._recent[0].time > WINDOW_SECONDS:
            self._recent.popleft()

    @property
    def rates(self) -> Rates:
        """How fast the node was in the window before its latest pulse."""
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


class Monitor:
    """All nodes of a cluster.

    Parameters
    ----------
    nodes
        The cluster's.
    """

    def __init__(self, nodes: Sequence[NodeId]) -> None:
        self.nodes = {n: NodeMonitor() for n in nodes}

    def curves(self) -> dict[str, dict[str, list[tuple[int, float]]]]:
        """Return ``{metric: {node: [(step, value), ...]}}`` of all that was reported."""
        out: dict[str, dict[str, list[tuple[int, float]]]] = {}
        for node, monitor in self.nodes.items():
            for name in monitor.curve.names:
                out.setdefault(name, {})[str(node)] = monitor.curve.series(name)
        return out
