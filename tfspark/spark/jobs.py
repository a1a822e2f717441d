"""Spark jobs that run in separate threads and can be cancelled by a tag, and the meaning of their failures."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tfspark.spark.connect import is_connect
from tfspark.spark.home import is_spark_3
from tfspark.tracebacks import user_frames

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

CANCEL_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
"""Seconds after which a job that has not ended is cancelled again."""


class TaggedJob:
    """A Spark job that runs in its own thread and can be cancelled.

    Parameters
    ----------
    spark
        The session.
    tag
        Spark job tag; it must be unique.
    action
        Runs the job; called in the thread.
    on_end
        Called in the thread with the result or with the exception.
    """

    def __init__(
        self,
        spark: SparkSession,
        tag: str,
        action: Callable[[], Any],
        on_end: Callable[[Any, BaseException | None], None],
    ) -> None:
        self._spark, self.tag = spark, tag
        self._action, self._on_end = action, on_end
        self._cancelled, self._ended = threading.Event(), threading.Event()
        self._first_cancel = threading.Lock()
        self._again = threading.Thread(target=self._cancel_until_ended, name=f"{tag}-cancel", daemon=True)
        self._thread = _thread_of(spark)(target=self._run, name=tag, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        result, error = None, None
        try:
            if is_connect(self._spark):
                # Connect's client keeps tags per thread.
                self._spark.addTag(self.tag)
            else:
                self._spark.sparkContext.addJobTag(self.tag)
            if self._cancelled.is_set():
                raise RuntimeError("The job has been cancelled before it was submitted.")
            result = self._action()
        except BaseException as e:
            error = e
        self._ended.set()
        self._on_end(result, error)

    def cancel(self) -> None:
        """Cancel the job; do nothing if it has ended or Spark is gone."""
        self._cancelled.set()
        self._cancel()
        # Several threads may cancel at the same time; one of them starts the thread. While Python exits, none can.
        if self._first_cancel.acquire(blocking=False):
            with contextlib.suppress(RuntimeError):
                self._again.start()

    def _cancel_until_ended(self) -> None:
        # Spark cancels only jobs that it knows; this one may just be on its way to it.
        for pause in CANCEL_PAUSES:
            if self._ended.wait(pause):
                return
            self._cancel()

    def _cancel(self) -> None:
        try:
            if is_connect(self._spark):
                self._spark.interruptTag(self.tag)
                return
            # Not interruptTag: it knows only the tags of the calling thread and of the threads that started it.
            self._spark.sparkContext.cancelJobsWithTag(self.tag)
        except Exception as e:
            logger.debug("could not cancel %s: %s", self.tag, e)

    def join(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for the thread, and return whether it has ended."""
        self._thread.join(timeout)
        if self._ended.is_set() and self._again.ident is not None:
            self._again.join(timeout)
        return not self._thread.is_alive()


def result_within(spark: SparkSession, tag: str, action: Callable[[], Any], seconds: float) -> Any:
    """Run a job under a tag, and return its result.

    Raises
    ------
    TimeoutError
        If the job has not ended after `seconds`; it is then cancelled.
    BaseException
        The error of the job.
    """
    outcome: list[Any] = []
    ended = threading.Event()

    def end(result: Any, error: BaseException | None) -> None:
        outcome.extend([result, error])
        ended.set()

    job = TaggedJob(spark, tag, action, end)
    in_time = ended.wait(seconds)
    if not in_time:
        job.cancel()
    job.join(seconds)
    if not in_time:
        raise TimeoutError(f"The Spark job took longer than {seconds:g} s.")
    result, error = outcome
    if error is not None:
        raise error
    return result


_RAISED_BY_CODE = re.compile(r"Traceback \(most recent call last\)|SQLSTATE: (?!XX)\w{5}")
"""Matches the text of a job's error that user code or an expression has raised."""

CANCELLED = re.compile(
    r"Job \d+ cancelled|has been cancell?ed|OPERATION_CANCELED|SESSION_CLOSED|SparkContext was shut down"
)
"""Matches the text of the error of a job that was cancelled from outside, also on Spark Connect."""

_RAISED_IN_PYTHON = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t].*\n|\n)+(\w[\w.]*(?::.*)?)(?:\n|$)")
"""Matches the traceback of a Python function in a job's error; the group is the exception."""

_NOT_BY_DATA = re.compile(
    rf"did not take the rows|[Cc]ancelled|{CANCELLED.pattern}|ExecutorLost|exited unexpectedly|"
    r"FlightUnavailable|FlightTimedOut|before it had sent all rows|EOFException"
)
"""Matches the text of a job's error if a node, an executor or Spark itself is gone."""


def failed_by_data(error: BaseException) -> bool:
    """Return whether a job failed in code that computes its rows, such as a UDF, and not because a process was lost."""
    text = str(error)
    return _RAISED_BY_CODE.search(text) is not None and _NOT_BY_DATA.search(text) is None


def _thread_of(spark: SparkSession) -> Callable[..., threading.Thread]:
    """Return a function that makes threads in which jobs of a session can run."""
    if is_connect(spark):
        return threading.Thread
    from pyspark import InheritableThread

    # In Spark 3.5 a thread inherits its properties from the JVM, and InheritableThread has no argument `session`.
    return InheritableThread if is_spark_3() else partial(InheritableThread, session=spark)


def describe_job_error(error: BaseException) -> str:
    """Return the meaning of a Spark exception in one or a few lines."""
    text = str(error)
    if "No module named 'tfspark" in text:
        return (
            "the Python of the executors has no tfspark. Install the same environment there, ship one with "
            "--archives, or point PYSPARK_PYTHON to one that has it"
        )
    if tracebacks := list(_RAISED_IN_PYTHON.finditer(text)):
        # The last one is that of the exception that was raised; those before are of the exceptions that caused it.
        raised = tracebacks[-1]
        return f"{raised[1].strip()}\n{user_frames(raised[0].rstrip())}"
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return "\n".join(lines[:12]) or type(error).__name__
