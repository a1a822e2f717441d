"""What people see while a cluster works: a live table in a terminal or a notebook, plain log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Protocol

from tfspark.driver import notebook
from tfspark.driver.status import NodeStatus, Snapshot, format_metrics

logger = logging.getLogger("tfspark")
node_logger = logging.getLogger("tfspark.node")

PLAIN_SECONDS = 5.0
"""Pause between two plain lines of the same phase."""

TERMINAL_LINES = 4
"""Log lines below the table in a terminal."""


class View(Protocol):
    """A place where snapshots are shown."""

    def show(self, snapshot: Snapshot, final: bool = False) -> None:
        """Show a snapshot; `final` ends the phase."""

    def close(self) -> None:
        """Give the place back."""


class Progress:
    """Shows snapshots.

    Parameters
    ----------
    live
        A table that is kept up to date, in the notebook if there is one, else in the terminal; otherwise log lines. By
        default, live in a notebook, and where standard error is a terminal.
    """

    def __init__(self, live: bool | None = None) -> None:
        in_notebook = notebook.is_running()
        if live is None:
            live = in_notebook or sys.stderr.isatty()
        self._view: View = LogLines() if not live else notebook.NotebookView() if in_notebook else Terminal()

    def show(self, snapshot: Snapshot, final: bool = False) -> None:
        """Show a snapshot; `final` ends the phase."""
        self._view.show(snapshot, final)

    def close(self) -> None:
        """Give the place back."""
        self._view.close()


class LogLines:
    """A log line now and then."""

    def __init__(self) -> None:
        self._last_line = 0.0
        self._last_phase = ""
        self._last_text = ""

    def show(self, snapshot: Snapshot, final: bool = False) -> None:
        """Log the snapshot if it is time."""
        now = time.monotonic()
        if snapshot.phase != self._last_phase:
            self._last_phase, self._last_line = snapshot.phase, now
        text = snapshot.line()
        if final or (now - self._last_line >= PLAIN_SECONDS and text != self._last_text):
            self._last_line, self._last_text = now, text
            logger.info("%s", text)

    def close(self) -> None:
        """Nothing to give back."""


class Terminal:
    """A live table (rich) on standard error."""

    def __init__(self) -> None:
        self._live: Any = None

    def show(self, snapshot: Snapshot, final: bool = False) -> None:
        """Redraw the table."""
        from rich.console import Console
        from rich.live import Live

        if self._live is None:
            self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=False)
            self._live.start()
        self._live.update(rendered(snapshot))
        if final:
            self.close()

    def close(self) -> None:
        """Give the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def rendered(s: Snapshot) -> Any:
    """Return the snapshot as rich draws it: a table, what to do about it, and the newest log lines."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    title = f"tfspark · {s.phase} · {s.seconds:.0f} s"
    if s.rows:
        title += f" · {s.rows:,} rows · {s.feed_rates}"
    table = Table(title=title, title_justify="left", expand=False)
    with_gpus = any(n.gpus for n in s.nodes)
    for heading, right in _COLUMNS:
        if heading != "GPUs" or with_gpus:
            table.add_column(heading, justify="right" if right else "left")
    for n in s.nodes:
        cells = _cells(n)
        if not with_gpus:
            del cells[2]
        table.add_row(*map(Text, cells))
    below = [Text(s.advice, style="yellow")] if s.advice else []
    below += [Text(f"{name}: {url}") for name, url in s.links.items()]
    # Whoever lets the nodes' lines into the log has them there.
    if not node_logger.isEnabledFor(logging.INFO):
        below += [Text(line, style="dim", overflow="ellipsis", no_wrap=True) for line in s.lines[-TERMINAL_LINES:]]
    return Group(table, *below)


_COLUMNS = (
    ("node", False), ("host", False), ("GPUs", False), ("state", False), ("rows fed", True), ("rows/s", True),
    ("step", True), ("s/step", True), ("waiting", True), ("metrics", False),
)  # fmt: skip


def _cells(n: NodeStatus) -> list[str]:
    share = n.input_times.waiting_share
    return [
        n.name,
        n.host,
        ", ".join(n.gpus),
        n.state,
        f"{n.rows:,}" if n.rows else "",
        f"{n.rows_per_second:,.0f}" if n.rows_read else "",
        str(n.step or ""),
        f"{n.step_seconds:.3g}" if n.step_seconds is not None else "",
        f"{share:.0%}" if share is not None else "",
        format_metrics(n.metrics),
    ]
