"""Rows on their way from a node's feeds to the program's main function, and results on their way back.

Threads deliver fed rows and rows that someone asks about; main takes them in the order in which they came, as many as
it wants at a time, and gives one result for each row that was asked about.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfspark.errors import PredictError

WAITING_CHUNKS = 2
"""Chunks of fed rows, of a few megabytes, that wait ahead of main."""


@dataclass(eq=False)
class _Chunk:
    rows: Sequence[Any]
    asked: bool
    taken: int = 0
    results: list[Any] = field(default_factory=list)


class Inbox:
    """What one node has been sent and main has not yet taken.

    Parameters
    ----------
    sources
        Number of threads that deliver; each says so when it has ended.
    """

    def __init__(self, sources: int = 2) -> None:
        self._changed = threading.Condition()
        self._chunks: deque[_Chunk] = deque()
        self._unanswered: deque[_Chunk] = deque()
        self._open_sources = sources
        self._error: BaseException | None = None
        self._closed: str | None = None
        self._was_asked = False
        self.ended = False

    # --- the threads that deliver

    def deliver(self, rows: Sequence[Any]) -> None:
        """Hand fed rows over, once there is room; drop them if main wants no more."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._chunks) < WAITING_CHUNKS or self._over)
            if not self._over:
                self._chunks.append(_Chunk(rows, asked=False))
                self._changed.notify_all()

    def ask(self, rows: Sequence[Any]) -> list[Any]:
        """Hand rows over and wait for a result for each.

        Raises
        ------
        PredictError
            If main gives none any more.
        """
        chunk = _Chunk(rows, asked=True)
        with self._changed:
            self._was_asked = True
            if not self._over:
                self._chunks.append(chunk)
                self._unanswered.append(chunk)
                self._changed.notify_all()
                self._changed.wait_for(lambda: len(chunk.results) == len(rows) or self._over)
            if self._error is not None:
                raise self._error
            if len(chunk.results) < len(rows):
                raise PredictError(
                    f"map_fun {self._closed} with {len(chunk.results)} results for {len(rows)} rows.",
                    hint="batch_results() takes one result for each row that next_batch() gave.",
                )
        return chunk.results

    def end(self) -> None:
        """One of the sources has nothing more."""
        with self._changed:
            self._open_sources -= 1
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Wake everyone who waits here with `error`."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    # --- main

    def take(self, most: int) -> list[Any]:
        """Return up to `most` rows, waiting for them: fewer at the end, and where asked rows of a partition end."""
        taken: list[Any] = []
        with self._changed:
            while len(taken) < most:
                if not self._chunks:
                    self._changed.wait_for(lambda: bool(self._chunks) or self._open_sources <= 0 or self._over)
                if self._error is not None:
                    raise self._error
                if not self._chunks:
                    self.ended = True
                    break
                chunk = self._chunks[0]
                rows = chunk.rows[chunk.taken : chunk.taken + most - len(taken)]
                chunk.taken += len(rows)
                taken += rows
                if chunk.taken == len(chunk.rows):
                    self._chunks.popleft()
                    self._changed.notify_all()
                    if chunk.asked and taken:
                        break
        return taken

    def answer(self, results: Iterable[Any]) -> None:
        """Give results for the rows that were asked about, in their order.

        Raises
        ------
        PredictError
            If there are more results than rows.
        """
        with self._changed:
            for result in results:
                if not self._unanswered:
                    if self._was_asked and self._closed is None:
                        raise PredictError(
                            "batch_results() was given more results than next_batch() has given rows.",
                            hint="Give one result for each row, and only for rows of TFCluster.inference().",
                        )
                    return
                chunk = self._unanswered[0]
                chunk.results.append(result)
                if len(chunk.results) == len(chunk.rows):
                    self._unanswered.popleft()
            self._changed.notify_all()

    def close(self, why: str) -> None:
        """Main takes no more: what waits, and what still comes, is dropped; what was asked fails with the reason."""
        with self._changed:
            self._closed = self._closed or why
            self.ended = True
            self._chunks.clear()
            self._unanswered.clear()
            self._changed.notify_all()

    @property
    def _over(self) -> bool:
        return self._error is not None or self._closed is not None
