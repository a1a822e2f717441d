"""Log lines on standard error for programs that have not configured logging, such as one under spark-submit."""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

from tfspark.monitoring import notebook

logger = logging.getLogger("tfspark")
node_logger = logging.getLogger("tfspark.node")


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what standard error is now; silent as soon as the program has handlers of its own."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("tfspark: %(message)s"))
        self.addFilter(lambda _: not logging.root.handlers)

    @property
    def stream(self) -> TextIO:
        # A live table takes its place for a while, to print lines above itself.
        return sys.stderr

    @stream.setter
    def stream(self, _: Any) -> None:
        raise AttributeError("stream")


def ensure_log_lines() -> None:
    """Show tfspark's log lines from INFO on, unless the program has configured logging.

    What nodes print stays in their executors' logs, on the live page and in `NodeFailed`; to see it here, too, set the
    level of the logger ``tfspark.node`` to INFO.
    """
    # In a notebook the view of the cell says it.
    if logging.root.handlers or logger.handlers or notebook.is_running():
        return
    logger.addHandler(_StandardError())
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if node_logger.level == logging.NOTSET:
        node_logger.setLevel(logging.WARNING)
