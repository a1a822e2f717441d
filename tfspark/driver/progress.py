"""What people see while a cluster works: a live table in a terminal, plain log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger("tfspark")

PLAIN_SECONDS = 5.0
"""Pause between two plain lines of the same phase."""


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
        State by node name.
    rows_by_node, rows, bytes
        Fed so far.
    metrics
        Newest ``(step, metrics)`` by node name.
    """

    phase: str
    seconds: float
    nodes: Mapping[str, str] = field(default_factory=dict)
    rows_by_node: Mapping[str, int] = field(default_factory=dict)
    rows: int = 0
    bytes: int = 0
    metrics: Mapping[str, tuple[int, Mapping[str, float]]] = field(default_factory=dict)

    def line(self) -> str:
        """Say it in one line."""
        if self.phase == "starting":
            up = sum(s in ("registered", "running") for s in self.nodes.values())
            return f"starting: {up} of {len(self.nodes)} nodes up after {self.seconds:.1f} s"
        parts = []
        if self.phase == "feeding":
            shares = ", ".join(f"{n} {r:,}" for n, r in self.rows_by_node.items())
            parts.append(f"{self.rows:,} rows ({shares}), {self._rates()}")
        if self.metrics:
            node, (step, metrics) = next(iter(self.metrics.items()))
            parts.append(f"{node} step {step}: {format_metrics(metrics)}")
        return f"{self.phase}: {'; '.join(parts) or f'{self.seconds:.0f} s'}"

    def _rates(self) -> str:
        seconds = max(self.seconds, 1e-9)
        return f"{self.rows / seconds:,.0f} rows/s, {self.bytes / 1e6 / seconds:,.1f} MB/s"


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Write metrics in a line, the epoch as a whole number."""
    return ", ".join(f"{k} {v:.0f}" if k == "epoch" else f"{k} {v:.4g}" for k, v in metrics.items())


class Progress:
    """Shows snapshots.

    Parameters
    ----------
    live
        A live table (rich); otherwise log lines. By default, live where standard error is a terminal.
    """

    def __init__(self, live: bool | None = None) -> None:
        self._live_wanted = sys.stderr.isatty() if live is None else live
        self._live: Any = None
        self._last_line = 0.0
        self._last_phase = ""
        self._last_text = ""

    def show(self, snapshot: Snapshot, final: bool = False) -> None:
        """Show a snapshot; `final` ends the phase."""
        if self._live_wanted:
            self._show_live(snapshot, final)
        else:
            self._show_line(snapshot, final)

    def _show_line(self, snapshot: Snapshot, final: bool) -> None:
        now = time.monotonic()
        if snapshot.phase != self._last_phase:
            self._last_phase, self._last_line = snapshot.phase, now
        text = snapshot.line()
        if final or (now - self._last_line >= PLAIN_SECONDS and text != self._last_text):
            self._last_line, self._last_text = now, text
            logger.info("%s", text)

    def _show_live(self, snapshot: Snapshot, final: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        if self._live is None:
            self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=False)
            self._live.start()
        self._live.update(_table(snapshot))
        if final:
            self.close()

    def close(self) -> None:
        """Give the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def _table(s: Snapshot) -> Any:
    from rich.table import Table

    title = f"tfspark · {s.phase} · {s.seconds:.0f} s"
    if s.rows:
        title += f" · {s.rows:,} rows · {s._rates()}"
    table = Table(title=title, title_justify="left", expand=False)
    for heading in ("node", "state", "rows", "step", "metrics"):
        table.add_column(heading, justify="right" if heading in ("rows", "step") else "left")
    for node, state in s.nodes.items():
        step, metrics = s.metrics.get(node, (0, {}))
        rows = s.rows_by_node.get(node, 0)
        table.add_row(node, state, f"{rows:,}" if rows else "", str(step or ""), format_metrics(metrics))
    return table
