"""The state of a cluster at one moment, for all its views."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tfspark.control.coordinator import Coordinator
from tfspark.control.node_history import NO_TIME, EndedEpoch, InputTimes, curves_of
from tfspark.errors import ClusterStopped
from tfspark.monitoring.bottleneck import Bottleneck, bottleneck, describe
from tfspark.spec import NodeId

Curves = Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]

SHOWN_LINES = 8
"""Default number of log lines in a snapshot."""

ENDS = ("finished", "failed", "stopped")
"""Phases of a cluster that has ended."""

_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")
"""Matches terminal control sequences; they are removed, because lines of a node must not change the terminal."""


@dataclass(frozen=True)
class NodeStatus:
    """The state of one node, from `Cluster.status`.

    Attributes
    ----------
    role, index, host, pid
        Role and index of the node; host and process id of its process.
    state
        ``"pending"``, ``"launched"``, ``"registered"``, ``"running"``, ``"finished"``, ``"failed"`` or ``"gone"``.
    rows
        Rows that the current or last feed has delivered to the node.
    step, metrics
        Step and metrics of its last report.
    gpus
        Addresses of its GPUs.
    rows_read
        Rows that its dataset has read, over all epochs.
    rows_per_second, step_seconds
        Rows read per second and seconds per step, over the last ten seconds; `step_seconds` is ``None`` if no step has
        ended.
    input_times
        Seconds that its input spent in each state.
    bottleneck
        Its bottleneck in the last ten seconds, or over the whole time if ten seconds are not enough to find it.
    advice
        The bottleneck in words.
    memory_bytes
        Resident memory of its process, in bytes.
    last_line
        The last line that the node printed.
    epoch, epochs
        The current epoch, counted from 1, and the number of epochs; 0 if the node has not reported them.
    """

    role: str
    index: int
    host: str
    state: str
    pid: int | None
    rows: int
    step: int
    metrics: dict[str, float]
    gpus: tuple[str, ...] = ()
    rows_read: int = 0
    rows_per_second: float = 0.0
    step_seconds: float | None = None
    input_times: InputTimes = NO_TIME
    bottleneck: Bottleneck = Bottleneck.UNKNOWN
    advice: str = ""
    memory_bytes: int = 0
    last_line: str = ""
    epoch: int = 0
    epochs: int = 0

    @property
    def name(self) -> str:
        """Role and index."""
        return f"{self.role} {self.index}"


class Status(list[NodeStatus]):
    """A list with the `NodeStatus` of each node of a cluster, and the addresses of its views.

    Attributes
    ----------
    tensorboard_url, ui_url
        Addresses of its TensorBoard and of its live page, or ``None``.
    """

    def __init__(
        self, nodes: Iterable[NodeStatus], tensorboard_url: str | None = None, ui_url: str | None = None
    ) -> None:
        super().__init__(nodes)
        self.tensorboard_url = tensorboard_url
        self.ui_url = ui_url

    def __repr__(self) -> str:
        lines = [f"{n.name} on {n.host}: {n.state}, step {n.step}, {n.rows:,} rows. {n.advice}".rstrip() for n in self]
        lines += [f"{name}: {url}" for name, url in self.links.items()]
        return "\n".join(lines)

    @property
    def links(self) -> dict[str, str]:
        """Addresses by name."""
        named = {"TensorBoard": self.tensorboard_url, "live page": self.ui_url}
        return {name: url for name, url in named.items() if url}

    def _repr_html_(self) -> str:
        from tfspark.monitoring.html import links_html, nodes_table

        return nodes_table(self) + links_html(self.links)


@dataclass(frozen=True)
class Snapshot:
    """The state of a cluster at one moment.

    Attributes
    ----------
    phase
        ``"starting"``, ``"feeding"``, ``"training"`` ...
    seconds
        Seconds since the phase began.
    nodes
        All nodes.
    rows, bytes
        Rows and bytes that the current feed has delivered so far; 0 in other phases.
    curves
        Points ``(step, value)`` by metric and node.
    lines
        Newest log lines.
    error
        The failure of the cluster, or an empty string.
    links
        Addresses by name.
    ended_epochs
        The ended epochs of the first node that reports epochs.
    seconds_left
        Estimated seconds until the last epoch ends, from the mean time of the ended epochs after the first; ``None`` if
        unknown.
    """

    phase: str
    seconds: float
    nodes: Sequence[NodeStatus] = ()
    rows: int = 0
    bytes: int = 0
    curves: Curves = field(default_factory=dict)
    lines: Sequence[str] = ()
    error: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    ended_epochs: Sequence[EndedEpoch] = ()
    seconds_left: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether the cluster has finished, failed or stopped."""
        return self.phase in ENDS

    @property
    def feed_rates(self) -> str:
        """Rows and megabytes fed per second of the phase, as text."""
        seconds = max(self.seconds, 1e-9)
        return f"{self.rows / seconds:,.0f} rows/s, {self.bytes / 1e6 / seconds:,.1f} MB/s"

    def line(self) -> str:
        """Return the snapshot in one line."""
        if self.phase == "starting":
            up = sum(n.state in ("registered", "running") for n in self.nodes)
            return f"starting: {up} of {len(self.nodes)} nodes up after {self.seconds:.1f} s"
        if self.is_over:
            return self._last_line()
        parts = []
        if self.phase == "feeding":
            shares = ", ".join(f"{n.name} {n.rows:,}" for n in self.nodes if n.rows)
            rows = f"{self.rows:,} rows ({shares})" if shares else f"{self.rows:,} rows"
            parts.append(f"{rows}, {self.feed_rates}")
        reported = next((n for n in self.nodes if n.metrics), None)
        if reported is not None:
            parts.append(f"{reported.name} {_place(reported)}: {format_metrics(_without_epoch(reported.metrics))}")
        if self.advice:
            parts.append(self.advice)
        return f"{self.phase}: {'; '.join(parts) or f'{self.seconds:.0f} s'}"

    def epoch_lines(self, after: int = 0) -> list[str]:
        """Return a line for each ended epoch with a number greater than `after`."""
        return [
            f"epoch {e.number}/{e.of} {format_metrics(e.metrics)}".rstrip()
            for e in self.ended_epochs
            if e.number > after
        ]

    def _last_line(self) -> str:
        parts = [f"{self.phase} after {duration(self.seconds)}"]
        parts += self.epoch_lines()[-1:]
        if rows := sum(n.rows_read for n in self.nodes):
            parts.append(f"{rows:,} rows read")
        if self.error and self.phase == "failed":
            parts.append(self.error.splitlines()[0])
        return ": ".join([parts[0], "; ".join(parts[1:])]) if parts[1:] else parts[0]

    @property
    def advice(self) -> str:
        """The bottleneck of the input-bound node that waited longest for rows, or an empty string."""
        bound = [n for n in self.nodes if n.bottleneck in (Bottleneck.FEED, Bottleneck.INPUT)]
        worst = max(bound, key=lambda n: n.input_times.waiting, default=None)
        return f"{worst.name} is {worst.advice}" if worst is not None else ""


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Format metrics in one line; ``epoch`` is a whole number."""
    return ", ".join(f"{k} {v:.0f}" if k == "epoch" else f"{k} {v:.4g}" for k, v in metrics.items())


def duration(seconds: float) -> str:
    """Return a duration as text: ``8.3 s``, ``2:05 min``, ``1:02:05 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02} h" if hours else f"{minutes}:{s:02} min"


def _place(n: NodeStatus) -> str:
    if not n.epoch:
        return f"step {n.step}"
    return f"epoch {n.epoch}/{n.epochs} step {n.step}" if n.epochs else f"epoch {n.epoch} step {n.step}"


def _without_epoch(metrics: Mapping[str, float]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if k != "epoch"}


def _plain(text: str) -> str:
    return _CONTROLS.sub("", text)


def phase_at_end(error: Exception | None) -> str:
    """Return how a cluster has ended: finished, failed or stopped."""
    return "finished" if error is None else "stopped" if isinstance(error, ClusterStopped) else "failed"


def status_of(coordinator: Coordinator) -> list[NodeStatus]:
    """Return the state of each node."""
    rows = coordinator.ledger.rows if coordinator.ledger else {}
    return [_status(coordinator, node, rows.get(node, 0)) for node in coordinator.lifecycle.records]


def _status(coordinator: Coordinator, node: NodeId, rows: int) -> NodeStatus:
    record, reported = coordinator.lifecycle.records[node], coordinator.reports.get(node)
    history = coordinator.histories[node]
    rates, latest = history.rates, history.latest
    now = rates.times if bottleneck(rates.times) is not Bottleneck.UNKNOWN else latest.times
    return NodeStatus(
        node.role,
        node.index,
        record.host,
        record.state.value,
        record.address.pid if record.address else None,
        rows,
        reported.step if reported else 0,
        dict(reported.metrics) if reported else {},
        history.gpus,
        rows_read=latest.rows_read,
        rows_per_second=rates.rows_per_second,
        step_seconds=rates.step_seconds,
        input_times=latest.times,
        bottleneck=bottleneck(now),
        advice=describe(now),
        memory_bytes=history.memory_bytes,
        last_line=_plain(history.lines[-1]) if history.lines else "",
        epoch=int(reported.metrics.get("epoch", 0)) if reported else 0,
        epochs=history.epochs[-1].of if history.epochs else 0,
    )


def snapshot_of(
    coordinator: Coordinator,
    phase: str | None = None,
    began: float | None = None,
    links: Mapping[str, str] | None = None,
    curves: bool = True,
    lines: int = SHOWN_LINES,
) -> Snapshot:
    """Return the state of a cluster.

    Parameters
    ----------
    phase, began
        The phase of the driver, and its start (``time.monotonic()``); by default the phase of the cluster.
    links
        Addresses to show.
    curves
        Whether to include the curves, which contain all reported metrics.
    lines
        Number of the newest log lines to include.
    """
    life, ledger = coordinator.lifecycle, coordinator.ledger
    if phase is None:
        phase = "feeding" if coordinator.feeding else life.phase.value
    if began is None:
        began = coordinator.feed_began if phase == "feeding" else coordinator.began
    fed = ledger if phase == "feeding" else None
    error = life.error if life.concluded else None
    histories = coordinator.histories.values()
    ended = next((tuple(h.epochs) for h in histories if h.epochs), ())
    return Snapshot(
        phase,
        time.monotonic() - began,
        status_of(coordinator),
        sum(fed.rows.values()) if fed else 0,
        fed.nbytes if fed else 0,
        curves_of(coordinator.histories) if curves else {},
        [_plain(line) for line in list(coordinator.log)[-lines:]],
        str(error) if error else "",
        links or {},
        ended,
        _seconds_left(ended),
    )


def _seconds_left(ended: Sequence[EndedEpoch]) -> float | None:
    """Estimate the seconds until the last epoch ends; the first epoch does not count, because it builds the graph."""
    if len(ended) < 2 or ended[-1].number <= ended[0].number:
        return None
    last = ended[-1]
    each = (last.time - ended[0].time) / (last.number - ended[0].number)
    return max(0.0, (last.of - last.number) * each - (time.monotonic() - last.time))
