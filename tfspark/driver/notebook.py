"""The live view in a notebook: one output that is updated in place."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import replace
from typing import Any

from tfspark.driver.html import snapshot_html
from tfspark.driver.status import Snapshot

logger = logging.getLogger(__name__)

UPDATE_SECONDS = 0.5
"""Pause between two updates: each one is stored in the notebook's document until the next."""


def is_running() -> bool:
    """Tell whether this process is the kernel of a notebook; imports nothing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


class NotebookView:
    """Shows snapshots in the output of the cell that runs; a new cell gets an output of its own."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._cell: Any = None
        self._shown: Snapshot | None = None
        self._shown_at = 0.0

    def show(self, snapshot: Snapshot, final: bool = False) -> None:
        """Replace what is shown."""
        from IPython import get_ipython
        from IPython.display import HTML, display

        now = time.monotonic()
        if not final and now - self._shown_at < UPDATE_SECONDS:
            return
        self._shown, self._shown_at = snapshot, now
        cell = get_ipython().execution_count
        html = HTML(snapshot_html(snapshot))
        if self._handle is None or cell != self._cell:
            self._cell = cell
            self._handle = display(html, display_id=True)
        else:
            self._handle.update(html)

    def close(self) -> None:
        """Leave the last state in the notebook, without links that lead nowhere from now on."""
        from IPython.display import HTML

        handle, self._handle = self._handle, None
        if handle is not None and self._shown is not None:
            try:
                handle.update(HTML(snapshot_html(replace(self._shown, links={}))))
            except Exception as e:
                # The kernel may be on its way out; the cluster has more to clean up than this.
                logger.debug("the notebook takes no more updates: %s", e)
