"""Passes prediction requests from Flight's threads to the function of ``ctx.serve``, and its results back."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from tfspark.errors import ClusterStopped, PredictError, TFSparkError
from tfspark.messages import ServeHeader
from tfspark.settings import Settings

Answer = Callable[[ServeHeader, pa.RecordBatch], pa.RecordBatch]

LOOK_SECONDS = 0.2
"""Seconds between two checks whether the client of a waiting request is still connected."""


@dataclass
class _Question:
    header: ServeHeader
    batch: pa.RecordBatch
    answer: Future[pa.RecordBatch]


class Questions:
    """Passes requests to the threads of ``ctx.serve`` and their results back.

    Parameters
    ----------
    patience
        Seconds that a request waits for ``main`` to call ``ctx.serve``, in each attempt of its Spark task.
    """

    def __init__(self, patience: float = Settings.serve_timeout) -> None:
        self._patience = patience
        self._changed = threading.Condition()
        self._questions: queue.Queue[_Question] = queue.Queue()
        self._ready = False
        self._streams = 0
        self._no_more = False
        self._error: TFSparkError | None = None
        self.rows = 0

    # --- events of the coordinator

    def no_more(self) -> None:
        """Note that the driver sends no new requests; running streams are completed."""
        with self._changed:
            self._no_more = True
            self._changed.notify_all()

    def fail(self, error: TFSparkError) -> None:
        """Raise `error` in all waiting threads."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    # --- Flight's threads

    @contextmanager
    def stream(self, is_cancelled: Callable[[], bool]) -> Iterator[None]:
        """Wait until ``main`` calls ``ctx.serve``, and keep ``ctx.serve`` running until the stream has ended."""
        waited, patience = 0.0, self._patience
        with self._changed:
            while not (self._ready or self._error or self._no_more or is_cancelled()) and waited < patience:
                self._changed.wait(LOOK_SECONDS)
                waited += LOOK_SECONDS
            if self._error is not None:
                raise self._error
            if not self._ready:
                raise PredictError(
                    f"main on this worker does not serve: ctx.serve(fn) was not called within {patience:g} s, or has "
                    "returned.",
                    hint="Call ctx.serve(fn) in main, and compute predictions inside the with block of the cluster.",
                )
            self._streams += 1
        try:
            yield
        finally:
            with self._changed:
                self._streams -= 1
                self._changed.notify_all()

    def answer(self, header: ServeHeader, batch: pa.RecordBatch, is_cancelled: Callable[[], bool]) -> pa.RecordBatch:
        """Pass a batch to a thread of ``ctx.serve`` and return its result."""
        question = _Question(header, batch, Future())
        self._questions.put(question)
        while not wait([question.answer], LOOK_SECONDS).done:
            if self._error is not None:
                raise self._error
            if is_cancelled():
                raise ClusterStopped("The client of this request has disconnected.")
        return question.answer.result()

    # --- main's threads

    def run(self, answer: Answer, threads: int = 1) -> int:
        """Process requests until there are no more, and return the number of rows.

        Raises
        ------
        ClusterStopped
            If the cluster is stopped.
        """
        with self._changed:
            self._ready = True
            self._changed.notify_all()
        others = [threading.Thread(target=self._serve, args=(answer,), daemon=True) for _ in range(threads - 1)]
        for t in others:
            t.start()
        self._serve(answer)
        for t in others:
            t.join()
        with self._changed:
            self._ready = False
            if self._error is not None:
                raise self._error
        return self.rows

    def _over(self) -> bool:
        with self._changed:
            return self._error is not None or (self._no_more and not self._streams)

    def _serve(self, answer: Answer) -> None:
        while not self._over():
            try:
                question = self._questions.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                continue
            try:
                found = answer(question.header, question.batch)
            except BaseException as e:
                question.answer.set_exception(e)
                if not isinstance(e, Exception):
                    raise
                continue
            with self._changed:
                self.rows += question.batch.num_rows
            question.answer.set_result(found)
