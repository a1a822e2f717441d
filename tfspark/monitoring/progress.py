"""Progress of a cluster: a live table in a terminal or notebook, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
from typing import Any, Protocol

from tfspark.monitoring import notebook
from tfspark.monitoring.status import NodeStatus, Snapshot, duration, format_metrics

logger = logging.getLogger("tfspark")
node_logger = logging.getLogger("tfspark.node")

PLAIN_SECONDS = 5.0
"""Pause between two log lines of the same phase."""

TERMINAL_LINES = 4
"""Number of log lines below the nodes in a terminal."""

MOST_NODES = 16
"""Largest number of nodes shown in a terminal; the live page and ``cluster.status()`` show all nodes."""

BAR_CHARACTERS = 20

METRICS = 2
"""Index of the metrics among the cells of a node."""


class View(Protocol):
    """Something that shows snapshots.

    Attributes
    ----------
    seconds
        Pause between two snapshots, in seconds.
    with_curves
        Whether it shows curves.
    """

    seconds: float
    with_curves: bool

    def show(self, snapshot: Snapshot, final: bool = False) -> None:
        """Show a snapshot; `final` ends the phase."""

    def close(self) -> None:
        """Release the output."""


class Progress:
    """Shows snapshots.

    Parameters
    ----------
    live
        ``True`` draws a live table, in the notebook or, outside of a notebook, in the terminal; ``False`` logs lines.
        By default, a live table is drawn in a notebook or if standard error is a terminal.
    """

    def __init__(self, live: bool | None = None) -> None:
        in_notebook = notebook.is_running()
        if live is None:
            live = in_notebook or sys.stderr.isatty()
        self._view: View = LogLines() if not live else notebook.NotebookView() if in_notebook else Terminal()

    @property
    def seconds(self) -> float:
        """Pause between two snapshots, in seconds."""
        return self._view.seconds

    @property
    def with_curves(self) -> bool:
        """Whether snapshots must contain curves."""
        return self._view.with_curves

    def show(self, snapshot: Snapshot, final: bool = False) -> None:
        """Show a snapshot; `final` ends the phase."""
        self._view.show(snapshot, final)

    def close(self) -> None:
        """Release the output."""
        self._view.close()


class News:
    """Finds the lines of a snapshot that earlier snapshots did not have."""

    def __init__(self) -> None:
        self._last_epoch = 0
        self._last_text = ""

    def epochs(self, s: Snapshot) -> list[str]:
        """Return a line for each epoch that has ended since the last call."""
        lines = s.epoch_lines(after=self._last_epoch)
        self._last_epoch = max((e.number for e in s.ended_epochs), default=0)
        return lines

    def state(self, s: Snapshot, final: bool = False) -> list[str]:
        """Return the snapshot in one line, or no line if the last call or the line of the last epoch said the same."""
        last = s.ended_epochs[-1] if s.ended_epochs else None
        if s.phase == "training" and last is not None and (final or last.number == last.of):
            return []
        text = s.line()
        same, self._last_text = text == self._last_text, text
        return [] if same else [text]


class LogLines:
    """Logs a line for each epoch, and a line every few seconds if there is news."""

    seconds = PLAIN_SECONDS
    with_curves = False

    def __init__(self) -> None:
        self._news = News()

    def show(self, snapshot: Snapshot, final: bool = False) -> None:
        """Log what is new."""
        for line in self._news.epochs(snapshot) + self._news.state(snapshot, final):
            logger.info("%s", line)

    def close(self) -> None:
        """Do nothing."""


class Terminal:
    """Draws a live table (rich) on standard error; one line for each phase and each epoch remains."""

    seconds = 0.25
    with_curves = False

    def __init__(self) -> None:
        self._live: Any = None
        self._console: Any = None
        self._news = News()

    def show(self, snapshot: Snapshot, final: bool = False) -> None:
        """Redraw the table; at the end of a phase, remove it and print a line."""
        from rich.console import Console
        from rich.live import Live

        self._console = self._console or Console(stderr=True, highlight=False)
        for line in self._news.epochs(snapshot):
            self._print(line)
        if final:
            self.close()
            for line in self._news.state(snapshot, final):
                self._print(line)
            return
        if self._live is None:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        self._live.update(rendered(snapshot))

    def _print(self, line: str) -> None:
        self._console.print(f"tfspark: {line}", markup=False, soft_wrap=True)

    def close(self) -> None:
        """Release the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def rendered(s: Snapshot) -> Any:
    """Return the snapshot for rich: a title, a line for each node, advice, and the newest log lines.

    It fits a terminal of 80 columns: lines that are too long are cut at their end.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def line(text: str, style: str = "") -> Text:
        return Text(text, style=style, no_wrap=True, overflow="ellipsis")

    # If a row is too long, its metrics are cut.
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False, expand=True)
    shown = [_cells(n) for n in s.nodes[:MOST_NODES]]
    for i, column in enumerate(zip(*shown, strict=True)):
        room: dict[str, Any] = {"ratio": 1} if i == METRICS else {"width": max(map(len, column))}
        table.add_column(justify="left" if i <= METRICS else "right", no_wrap=True, overflow="ellipsis", **room)
    for cells in shown:
        table.add_row(*map(Text, cells))
    below = [line(f"... and {len(s.nodes) - MOST_NODES} more nodes", "dim")] if len(s.nodes) > MOST_NODES else []
    below += [line(s.advice, "yellow")] if s.advice else []
    below += [line(s.error.splitlines()[0], "red")] if s.error else []
    below += [Text(f"{name}: {url}", overflow="fold") for name, url in s.links.items()]
    # If the log shows the nodes' lines, the table does not repeat them.
    if not s.is_over and not node_logger.isEnabledFor(logging.INFO):
        below += [line(text, "dim") for text in s.lines[-TERMINAL_LINES:]]
    return Group(line(_title(s), "bold"), table, *below)


def _title(s: Snapshot) -> str:
    """Return the phase, its duration, the progress of training, and the feed rates."""
    parts = ["tfspark", s.phase, duration(s.seconds)]
    of = s.ended_epochs[-1].of if s.ended_epochs else 0
    if of and not s.is_over:
        done = s.ended_epochs[-1].number
        left = f" {duration(s.seconds_left)} left" if s.seconds_left else ""
        parts.insert(2, f"epoch {min(done + 1, of)}/{of} {_bar(done / of)}{left}")
    elif s.is_over and s.ended_epochs:
        parts.append(s.epoch_lines()[-1])
    if s.rows:
        parts.append(f"{s.rows:,} rows, {s.feed_rates}")
    return " · ".join(parts)


def _bar(share: float) -> str:
    full = round(share * BAR_CHARACTERS)
    return "━" * full + "─" * (BAR_CHARACTERS - full)


def _cells(n: NodeStatus) -> list[str]:
    """Return the cells of a node: name, state, metrics with the step, rows, and the share of time spent waiting."""
    share = n.input_times.waiting_share
    step = f"step {n.step:,}" if n.step else ""
    metrics = format_metrics({k: v for k, v in n.metrics.items() if k != "epoch"})
    return [
        n.name,
        n.state if not n.step or n.state != "running" else "",
        " ".join(filter(None, [metrics, step])),
        f"{n.rows_per_second:,.0f} rows/s" if n.rows_read else f"{n.rows:,} rows" if n.rows else "",
        f"{share:.0%} waiting" if share is not None else "",
    ]
