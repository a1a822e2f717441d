"""What is known of a running cluster at one moment, as all its views show it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tfspark.driver.bottleneck import NO_TIME, Bottleneck, InputTimes, bottleneck, describe
from tfspark.driver.coordinator import Coordinator
from tfspark.spec import NodeId

Curves = Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]

SHOWN_LINES = 8
"""Log lines in a snapshot."""

_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")
"""Colours, and what moves the cursor: a node's line must not redraw the terminal it is shown in."""


@dataclass(frozen=True)
class NodeStatus:
    """One node, as `Cluster.status` gives it.

    Attributes
    ----------
    role, index, host, pid
        Who and where it is.
    state
        ``"pending"``, ``"launched"``, ``"registered"``, ``"running"``, ``"finished"``, ``"failed"`` or ``"gone"``.
    rows
        Rows delivered to it by the current or last feed.
    step, metrics
        What it has reported last.
    gpus
        Addresses of its GPUs.
    rows_read
        Rows that its dataset has taken, over all epochs.
    rows_per_second, step_seconds
        Rows taken per second, and seconds per step, over the last ten seconds; ``None`` if no step has ended.
    input_times
        Where the time of its input went, in seconds.
    bottleneck
        What holds it back; of the last ten seconds, or of all if there is too little in these.
    advice
        The same in words.
    memory_bytes
        Resident memory of its process.
    last_line
        What it has printed last.
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

    @property
    def name(self) -> str:
        """Role and index."""
        return f"{self.role} {self.index}"


class Status(list[NodeStatus]):
    """The nodes of a cluster, and where it can be watched.

    Attributes
    ----------
    tensorboard_url, ui_url
        Addresses of its TensorBoard and of its live page, ``None`` if there is none.
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
        from tfspark.driver.html import links_html, nodes_table

        return nodes_table(self) + links_html(self.links)


@dataclass(frozen=True)
class Snapshot:
    """One moment of a cluster.

    Attributes
    ----------
    phase
        ``"starting"``, ``"feeding"``, ``"training"`` ...
    seconds
        Since the phase began.
    nodes
        All nodes.
    rows, bytes
        Fed so far.
    curves
        Points ``(step, value)`` by metric and node.
    lines
        Newest log lines.
    error
        How the cluster failed, if it has.
    links
        Addresses by name.
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

    @property
    def feed_rates(self) -> str:
        """Rows and bytes fed per second of the phase."""
        seconds = max(self.seconds, 1e-9)
        return f"{self.rows / seconds:,.0f} rows/s, {self.bytes / 1e6 / seconds:,.1f} MB/s"

    def line(self) -> str:
        """Say it in one line."""
        if self.phase == "starting":
            up = sum(n.state in ("registered", "running") for n in self.nodes)
            return f"starting: {up} of {len(self.nodes)} nodes up after {self.seconds:.1f} s"
        parts = []
        if self.phase == "feeding":
            shares = ", ".join(f"{n.name} {n.rows:,}" for n in self.nodes if n.rows)
            parts.append(f"{self.rows:,} rows ({shares}), {self.feed_rates}")
        reported = next((n for n in self.nodes if n.metrics), None)
        if reported is not None:
            parts.append(f"{reported.name} step {reported.step}: {format_metrics(reported.metrics)}")
        if self.advice:
            parts.append(self.advice)
        return f"{self.phase}: {'; '.join(parts) or f'{self.seconds:.0f} s'}"

    @property
    def advice(self) -> str:
        """What holds the slowest input back, if any does."""
        bound = [n for n in self.nodes if n.bottleneck in (Bottleneck.FEED, Bottleneck.INPUT)]
        worst = max(bound, key=lambda n: n.input_times.waiting, default=None)
        return f"{worst.name} is {worst.advice}" if worst is not None else ""


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Write metrics in a line, the epoch as a whole number."""
    return ", ".join(f"{k} {v:.0f}" if k == "epoch" else f"{k} {v:.4g}" for k, v in metrics.items())


def _plain(text: str) -> str:
    return _CONTROLS.sub("", text)


def status_of(coordinator: Coordinator) -> list[NodeStatus]:
    """Return what is known of each node now."""
    rows = coordinator.ledger.rows if coordinator.ledger else {}
    return [_status(coordinator, node, rows.get(node, 0)) for node in coordinator.lifecycle.records]


def _status(coordinator: Coordinator, node: NodeId, rows: int) -> NodeStatus:
    record, reported = coordinator.lifecycle.records[node], coordinator.reports.get(node)
    monitor = coordinator.monitor.nodes[node]
    rates, latest = monitor.rates, monitor.latest
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
        monitor.gpus,
        rows_read=latest.rows_read,
        rows_per_second=rates.rows_per_second,
        step_seconds=rates.step_seconds,
        input_times=latest.times,
        bottleneck=bottleneck(now),
        advice=describe(now),
        memory_bytes=monitor.memory_bytes,
        last_line=_plain(monitor.lines[-1]) if monitor.lines else "",
    )


def snapshot_of(
    coordinator: Coordinator,
    phase: str | None = None,
    began: float | None = None,
    links: Mapping[str, str] | None = None,
) -> Snapshot:
    """Return what is known of a cluster now.

    Parameters
    ----------
    phase, began
        What the driver is at, and since when (``time.monotonic()``); by default what the cluster itself is at.
    links
        Addresses to show.
    """
    life, ledger = coordinator.lifecycle, coordinator.ledger
    if phase is None:
        phase = "feeding" if coordinator.feeding else life.phase.value
    if began is None:
        began = coordinator.feed_began if phase == "feeding" else coordinator.began
    fed = ledger if phase == "feeding" else None
    error = life.error if life.concluded else None
    return Snapshot(
        phase,
        time.monotonic() - began,
        status_of(coordinator),
        sum(fed.rows.values()) if fed else 0,
        fed.nbytes if fed else 0,
        coordinator.monitor.curves(),
        [_plain(line) for line in list(coordinator.log)[-SHOWN_LINES:]],
        str(error) if error else "",
        links or {},
    )
