"""Rows and results in the queues of a manager that the program itself has started, as tests of main functions do."""

from __future__ import annotations

import queue
from collections.abc import Iterable
from typing import Any

from tfspark.compat.tensorflowonspark.marker import EndPartition
from tfspark.errors import ConfigurationError


class QueueFeed:
    """The counterpart of `_inbox.Inbox` for queues.

    ``None`` in the queue ends the rows, `marker.EndPartition` ends a partition.

    Parameters
    ----------
    source
        Queue from which rows are taken.
    results
        Queue into which results are put, or ``None``.
    train_mode
        Whether a batch continues after the end of a partition.
    """

    def __init__(self, source: queue.Queue[Any], results: queue.Queue[Any] | None, train_mode: bool) -> None:
        self._source, self._results = source, results
        self._train_mode = train_mode
        self.ended = False

    def take(self, most: int) -> list[Any]:
        """Wait for rows and return up to `most` of them."""
        taken: list[Any] = []
        while len(taken) < most and not self.ended:
            row = self._source.get()
            self._source.task_done()
            if row is None:
                self.ended = True
            elif isinstance(row, EndPartition) or row is EndPartition:
                if taken and not self._train_mode:
                    break
            else:
                taken.append(row)
        return taken

    def answer(self, results: Iterable[Any]) -> None:
        """Put results into their queue.

        Raises
        ------
        ConfigurationError
            If there is no queue for results.
        """
        if self._results is None:
            raise ConfigurationError(
                "This manager has no queue for results.", hint='TFManager.start(authkey, ["input", "output"])'
            )
        for result in results:
            self._results.put(result)

    def close(self, why: str) -> None:
        """Take no more rows, and drop the rows that are waiting."""
        self.ended = True
        while True:
            try:
                self._source.get_nowait()
            except queue.Empty:
                return
            self._source.task_done()
