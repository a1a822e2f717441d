"""Metrics of a cluster in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tfspark.monitoring.bottleneck import Bottleneck
from tfspark.monitoring.status import NodeStatus, Snapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

NODE = ["node", "host"]

_COUNTERS: tuple[tuple[str, str, Callable[[NodeStatus], float]], ...] = (
    ("rows_read", "Rows that the node's dataset has read.", lambda n: n.rows_read),
    ("input_waiting_seconds", "Seconds that the dataset waited for rows.", lambda n: n.input_times.waiting),
    ("input_preparing_seconds", "Seconds that the dataset made tensors from rows.", lambda n: n.input_times.preparing),
    ("input_ahead_seconds", "Seconds that tensors waited for training.", lambda n: n.input_times.ahead),
)

_GAUGES: tuple[tuple[str, str, Callable[[NodeStatus], float | None]], ...] = (
    ("rows_fed", "Rows delivered by the current or last feed.", lambda n: n.rows),
    ("rows_per_second", "Rows read per second, over the last ten seconds.", lambda n: n.rows_per_second),
    ("step", "Newest step that main has reported.", lambda n: n.step),
    ("step_seconds", "Seconds per step, over the last ten seconds.", lambda n: n.step_seconds),
    ("memory_bytes", "Resident memory of the node's process.", lambda n: n.memory_bytes),
)


def exposition(snapshot: Snapshot, cluster: str) -> bytes:
    """Return the answer to a scrape.

    Parameters
    ----------
    snapshot
        The state of the cluster.
    cluster
        Name of the cluster, a label of every metric.
    """
    registry = CollectorRegistry()
    registry.register(_Fixed(list(_metrics(snapshot, cluster))))
    return generate_latest(registry)


class _Fixed(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _metrics(s: Snapshot, cluster: str) -> Iterable[Metric]:
    labels = ["cluster", *NODE]
    up = GaugeMetricFamily("tfspark_nodes", "Nodes by state.", labels=["cluster", "state"])
    for state in sorted({n.state for n in s.nodes}):
        up.add_metric([cluster, state], sum(n.state == state for n in s.nodes))
    yield up
    for name, text, of in _COUNTERS:
        counter = CounterMetricFamily(f"tfspark_{name}", text, labels=labels)
        for n in s.nodes:
            counter.add_metric([cluster, n.name, n.host], of(n))
        yield counter
    for name, text, value_of in _GAUGES:
        gauge = GaugeMetricFamily(f"tfspark_{name}", text, labels=labels)
        for n in s.nodes:
            if (value := value_of(n)) is not None:
                gauge.add_metric([cluster, n.name, n.host], value)
        yield gauge
    bound = GaugeMetricFamily("tfspark_input_bound", "1 if training waits for its input.", labels=labels)
    for n in s.nodes:
        if n.bottleneck is not Bottleneck.UNKNOWN:
            bound.add_metric([cluster, n.name, n.host], float(n.bottleneck is not Bottleneck.COMPUTE))
    yield bound
    reported = GaugeMetricFamily("tfspark_reported", "Newest metrics that main has reported.", labels=[*labels, "name"])
    for n in s.nodes:
        for name, value in n.metrics.items():
            reported.add_metric([cluster, n.name, n.host, name], value)
    yield reported
