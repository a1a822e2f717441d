"""Metrics of the server in Prometheus' text format, with TensorFlow Serving's names."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping

PATH = "/monitoring/prometheus/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

BUCKETS = [10 * 1.8**i for i in range(33)]
"""Upper bounds of latency buckets in microseconds, from 10 microseconds to about 25 minutes."""

UNKNOWN_MODEL = "(unknown)"
"""Label for models that are not served, so that requests cannot create an unlimited number of labels."""

Labels = tuple[tuple[str, str], ...]


class _Histogram:
    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(BUCKETS, value)] += 1
        self.total += value


class Metrics:
    """Counters and histograms by name and labels. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, dict[Labels, int]] = {}
        self._histograms: dict[str, dict[Labels, _Histogram]] = {}

    def count(self, name: str, by: int = 1, **labels: str) -> None:
        """Add `by` to a counter."""
        with self._lock:
            values = self._counters.setdefault(name, {})
            key = tuple(labels.items())
            values[key] = values.get(key, 0) + by

    def time(self, name: str, seconds: float, **labels: str) -> None:
        """Add a time to a histogram."""
        with self._lock:
            self._histograms.setdefault(name, {}).setdefault(tuple(labels.items()), _Histogram()).add(seconds * 1e6)

    def exposition(self, gauges: Mapping[str, Mapping[Labels, float]]) -> str:
        """Return the answer to a scrape.

        Parameters
        ----------
        gauges
            Current values, by name and labels.
        """
        with self._lock:
            lines: list[str] = []
            for name, counts in sorted(self._counters.items()):
                lines += [f"# TYPE {name} counter", *(f"{name}{_shown(k)} {v}" for k, v in counts.items())]
            for name, histograms in sorted(self._histograms.items()):
                lines.append(f"# TYPE {name} histogram")
                for key, histogram in histograms.items():
                    lines += _distribution(name, key, histogram)
        for name, values in gauges.items():
            lines += [f"# TYPE {name} gauge", *(f"{name}{_shown(k)} {v:g}" for k, v in values.items())]
        return "\n".join(lines) + "\n"


def _distribution(name: str, labels: Labels, histogram: _Histogram) -> Iterable[str]:
    below = 0
    for bound, count in zip([*(f"{b:g}" for b in BUCKETS), "+Inf"], histogram.counts, strict=True):
        below += count
        yield f"{name}_bucket{_shown((*labels, ('le', bound)))} {below}"
    yield f"{name}_sum{_shown(labels)} {histogram.total:.0f}"
    yield f"{name}_count{_shown(labels)} {below}"


def _shown(labels: Labels) -> str:
    escaped = ((n, v.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for n, v in labels)
    return "{" + ",".join(f'{n}="{v}"' for n, v in escaped) + "}"


METRICS = Metrics()
"""The metrics of this process."""


def requested(model: str, api: str, entrypoint: str, status: str, seconds: float) -> None:
    """Record an answered request."""
    METRICS.count(":tensorflow:serving:request_count", model_name=model, status=status)
    METRICS.time(":tensorflow:serving:request_latency", seconds, model_name=model, API=api, entrypoint=entrypoint)


def loaded(model: str, status: str, seconds: float) -> None:
    """Record that a version was loaded or failed to load."""
    METRICS.count(":tensorflow:cc:saved_model:load_attempt_count", model_path=model, status=status)
    METRICS.count(":tensorflow:cc:saved_model:load_latency", int(seconds * 1e6), model_path=model)


def warmed_up(model: str, seconds: float) -> None:
    """Record that a version was warmed up."""
    METRICS.time(":tensorflow:serving:model_warmup_latency", seconds, model_path=model, status="OK")
