"""The live view in a notebook: one cell output that is updated in place."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from typing import Any

from tfspark.monitoring.html import snapshot_html
from tfspark.monitoring.status import Snapshot

logger = logging.getLogger(__name__)

UPDATE_SECONDS = 0.5
"""Pause between two updates; the notebook's document stores each update until the next update."""


def is_running() -> bool:
    """Return whether this process is the kernel of a notebook; imports nothing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


class NotebookView:
    """Shows snapshots in the output of the running cell; each cell gets its own output."""

    seconds = UPDATE_SECONDS
    with_curves = True

    def __init__(self) -> None:
        self._handle: Any = None
        self._cell: Any = None
        self._shown: Snapshot | None = None
        self._outputs: list[tuple[Any, Snapshot]] = []

    def show(self, snapshot: Snapshot, final: bool = False) -> None:
        """Replace the shown snapshot."""
        from IPython import get_ipython
        from IPython.display import HTML, display

        cell = get_ipython().execution_count
        moved = cell != self._cell and not snapshot.is_over
        if moved and self._handle is not None and self._shown is not None:
            self._outputs.append((self._handle, self._shown))
        self._shown = snapshot
        html = HTML(snapshot_html(snapshot))
        if self._handle is None or moved:
            self._cell = cell
            self._handle = display(html, display_id=True)
        else:
            self._handle.update(html)

    def close(self) -> None:
        """Show in all outputs how the cluster has ended, and remove the links, which no longer work."""
        from IPython.display import HTML

        handle, self._handle = self._handle, None
        if handle is None or self._shown is None:
            return
        outputs, self._outputs = [*self._outputs, (handle, self._shown)], []
        phase = self._shown.phase
        try:
            for output, shown in outputs:
                output.update(HTML(snapshot_html(replace(shown, phase=phase, links={}))))
        except Exception as e:
            # The kernel may be shutting down; this must not stop the rest of the cleanup.
            logger.debug("cannot update the notebook: %s", e)
