"""Passes rows from a node's feeds to the program's main function, and results back.

Threads deliver fed rows and rows of an inference. Main takes the rows in the order in which they were delivered, as
many as it wants at a time, and gives one result for each row of an inference.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfspark.errors import PredictError

WAITING_CHUNKS = 2
"""Largest number of chunks of fed rows, of a few megabytes each, that wait for main."""


@dataclass(eq=False)
class _Chunk:
    rows: Sequence[Any]
    asked: bool
    taken: int = 0
    results: list[Any] = field(default_factory=list)


class Inbox:
    """The rows that were sent to a node and that main has not yet taken.

    Parameters
    ----------
    sources
        Number of threads that deliver rows; each calls `end` when it has no more.
    """

    def __init__(self, sources: int = 2) -> None:
        self._changed = threading.Condition()
        self._chunks: deque[_Chunk] = deque()
        self._unanswered: deque[_Chunk] = deque()
        self._open_sources = sources
        self._error: BaseException | None = None
        self._closed: str | None = None
        self._answerer: int | None = None
        self._moved_at = time.monotonic()
        self.was_asked = False
        self.ended = False

    # --- the threads that deliver

    def deliver(self, rows: Sequence[Any]) -> None:
        """Add fed rows as soon as there is room; drop them if main takes no more rows."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._chunks) < WAITING_CHUNKS or self._over)
            if not self._over:
                self._chunks.append(_Chunk(rows, asked=False))
                self._changed.notify_all()

    def ask(self, rows: Sequence[Any], timeout: float | None = None) -> list[Any]:
        """Add rows of an inference and wait for a result for each.

        Parameters
        ----------
        rows
            Any objects.
        timeout
            Seconds within which main must take a row or give a result; the time starts again with each of these.
            ``None`` for no limit.

        Raises
        ------
        PredictError
            If main gives no more results, or none in time.
        """
        chunk = _Chunk(rows, asked=True)
        with self._changed:
            self.was_asked = True
            if not self._over:
                self._moved_at = time.monotonic()
                self._chunks.append(chunk)
                self._unanswered.append(chunk)
                self._changed.notify_all()
                self._await_results(chunk, timeout)
            if self._error is not None:
                raise self._error
            if len(chunk.results) < len(rows):
                raise self._too_few(f"map_fun {self._closed}", chunk)
        return chunk.results

    def _await_results(self, chunk: _Chunk, timeout: float | None) -> None:
        def done() -> bool:
            return len(chunk.results) == len(chunk.rows) or self._over

        while not done():
            left = None if timeout is None else self._moved_at + timeout - time.monotonic()
            if left is not None and left <= 0:
                # Results that main gives later would be assigned to other rows.
                self._error = self._too_few(f"map_fun made no progress in feed_timeout={timeout:g} seconds", chunk)
                self._changed.notify_all()
            else:
                self._changed.wait(left)

    @staticmethod
    def _too_few(what: str, chunk: _Chunk) -> PredictError:
        return PredictError(
            f"{what}, with {len(chunk.results)} results for {len(chunk.rows)} rows.",
            hint="batch_results() takes one result for each row that next_batch() gave.",
        )

    def end(self) -> None:
        """Record that one of the sources has no more rows."""
        with self._changed:
            self._open_sources -= 1
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Wake all waiting threads; `ask` and `take` then raise `error`, or an earlier error if there is one."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    # --- main

    def take(self, most: int) -> list[Any]:
        """Wait for rows and return up to `most`: fewer at the end, and at the end of a chunk of an inference."""
        taken: list[Any] = []
        with self._changed:
            self._check_answered()
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
                self._moved_at = time.monotonic()
                if chunk.taken == len(chunk.rows):
                    self._chunks.popleft()
                    self._changed.notify_all()
                    if chunk.asked and taken:
                        break
        return taken

    def _check_answered(self) -> None:
        """Fail if the thread that gives results takes more rows while results are missing: it will never give them.

        If one thread takes rows and another gives results, only the timeout of `ask` detects missing results.
        """
        owed = self._unanswered[0] if self._unanswered else None
        if owed is not None and owed.taken == len(owed.rows) and self._answerer == threading.get_ident():
            self._error = self._error or self._too_few("map_fun asked for more rows", owed)
            self._changed.notify_all()

    def answer(self, results: Iterable[Any]) -> None:
        """Give results for the rows of an inference, in their order.

        Raises
        ------
        PredictError
            If there are more results than rows.
        """
        found = list(results)
        with self._changed:
            self._answerer = threading.get_ident()
            self._moved_at = time.monotonic()
            for result in found:
                chunk = self._unanswered[0] if self._unanswered else None
                if chunk is None or len(chunk.results) == chunk.taken:
                    if self.was_asked and self._closed is None:
                        raise PredictError(
                            "batch_results() was given more results than next_batch() has given rows.",
                            hint="Give one result for each row, and only for rows of TFCluster.inference().",
                        )
                    return
                chunk.results.append(result)
                if len(chunk.results) == len(chunk.rows):
                    self._unanswered.popleft()
            self._changed.notify_all()

    def close(self, why: str) -> None:
        """Take no more rows: waiting and later rows are dropped, and `ask` fails with the reason `why`."""
        with self._changed:
            self._closed = self._closed or why
            self.ended = True
            self._chunks.clear()
            self._unanswered.clear()
            self._changed.notify_all()

    @property
    def _over(self) -> bool:
        return self._error is not None or self._closed is not None
