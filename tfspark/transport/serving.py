"""How questions that arrive in Flight's threads reach the function that ``main`` serves with, and the answers them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from tfspark.errors import ClusterStopped, PredictError, TFSparkError
from tfspark.transport.messages import ServeHeader

Answer = Callable[[ServeHeader, pa.RecordBatch], pa.RecordBatch]

READY_SECONDS = 120.0
"""How long a question waits for ``main`` to call ``ctx.serve``, each time that Spark tries its task."""

LOOK_SECONDS = 0.2
"""How often a waiting question looks whether its client is still there."""


@dataclass
class _Question:
    header: ServeHeader
    batch: pa.RecordBatch
    answer: Future[pa.RecordBatch]


class Serving:
    """Hands questions to the threads that serve, and answers back."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._questions: queue.Queue[_Question] = queue.Queue()
        self._ready = False
        self._streams = 0
        self._no_more = False
        self._error: TFSparkError | None = None
        self.rows = 0

    # --- told by the coordinator

    def no_more(self) -> None:
        """The driver asks nothing new; streams under way are answered to their end."""
        with self._changed:
            self._no_more = True
            self._changed.notify_all()

    def fail(self, error: TFSparkError) -> None:
        """Wake everyone who waits here with `error`."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    # --- Flight's threads

    @contextmanager
    def stream(self, is_cancelled: Callable[[], bool], patience: float = READY_SECONDS) -> Iterator[None]:
        """Wait until ``main`` serves, and keep it serving until the stream has ended."""
        waited = 0.0
        with self._changed:
            while not (self._ready or self._error or self._no_more or is_cancelled()) and waited < patience:
                self._changed.wait(LOOK_SECONDS)
                waited += LOOK_SECONDS
            if self._error is not None:
                raise self._error
            if not self._ready:
                raise PredictError(
                    "main on this worker does not serve: it has not called ctx.serve(fn), or that has ended.",
                    hint="Call ctx.serve(fn) in main, and compute predictions within the cluster's with block.",
                )
            self._streams += 1
        try:
            yield
        finally:
            with self._changed:
                self._streams -= 1
                self._changed.notify_all()

    def answer(self, header: ServeHeader, batch: pa.RecordBatch, is_cancelled: Callable[[], bool]) -> pa.RecordBatch:
        """Have a batch answered by a thread that serves."""
        question = _Question(header, batch, Future())
        self._questions.put(question)
        while not wait([question.answer], LOOK_SECONDS).done:
            if self._error is not None:
                raise self._error
            if is_cancelled():
                raise ClusterStopped("The client is gone.")
        return question.answer.result()

    # --- main's threads

    def run(self, answer: Answer, threads: int = 1) -> int:
        """Answer questions until no more come; returns how many rows were answered.

        Raises
        ------
        ClusterStopped
            If the cluster is stopped meanwhile.
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
