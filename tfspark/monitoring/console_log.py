"""Log lines on standard error for programs that have not configured logging, such as programs under spark-submit."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, TextIO

from tfspark.monitoring import notebook

logger = logging.getLogger("tfspark")
node_logger = logging.getLogger("tfspark.node")

if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    # Python 3.10 has no logging.StreamHandler[...] at run time.
    _StreamHandler = logging.StreamHandler


class _StandardError(_StreamHandler):
    """Writes to the current ``sys.stderr``; writes nothing as soon as the root logger has handlers."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("tfspark: %(message)s"))
        self.addFilter(lambda _: not logging.root.handlers)

    @property
    def stream(self) -> TextIO:
        # While a live table is shown, it replaces sys.stderr in order to print lines above itself.
        return sys.stderr

    @stream.setter
    def stream(self, _: Any) -> None:
        raise AttributeError("stream")


def ensure_log_lines() -> None:
    """Show tfspark's log lines of level INFO and higher, unless the program has configured logging.

    The output of nodes is in the logs of their executors, on the live page and in `NodeFailed`. To see it here too,
    set the level of the logger ``tfspark.node`` to INFO.
    """
    # In a notebook, the output of the cell shows the progress.
    if logging.root.handlers or logger.handlers or notebook.is_running():
        return
    logger.addHandler(_StandardError())
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if node_logger.level == logging.NOTSET:
        node_logger.setLevel(logging.WARNING)
