"""Spark jobs in threads of their own, which can be cancelled by a tag, and what their failures mean."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tfspark.spark.connect import is_connect
from tfspark.spark.home import is_spark_3

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)


class TaggedJob:
    """A Spark job in a thread of its own that can be cancelled.

    Parameters
    ----------
    spark
        The session.
    tag
        Spark job tag; unique.
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
        self._thread = _thread_of(spark)(target=self._run, name=tag, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        result, error = None, None
        try:
            if is_connect(self._spark):
                # Of this thread: Connect's client keeps tags for each.
                self._spark.addTag(self.tag)
            else:
                self._spark.sparkContext.addJobTag(self.tag)
            result = self._action()
        except BaseException as e:
            error = e
        self._on_end(result, error)

    def cancel(self) -> None:
        """Cancel the job; nothing happens if it has ended or Spark is gone."""
        try:
            if is_connect(self._spark):
                self._spark.interruptTag(self.tag)
                return
            # Not interruptTag: it knows only the tags of the thread that calls it, and of those that thread came from.
            self._spark.sparkContext.cancelJobsWithTag(self.tag)
        except Exception as e:
            logger.debug("could not cancel %s: %s", self.tag, e)

    def join(self, timeout: float) -> bool:
        """Wait for the thread; tell whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()


_RAISED_BY_CODE = re.compile(r"Traceback \(most recent call last\)|SQLSTATE: (?!XX)\w{5}")
"""In the text of a job's error if code of the user, or an expression, has raised it."""

_NOT_BY_DATA = re.compile(
    r"did not take the rows|[Cc]ancelled|SparkContext was shut down|ExecutorLost|exited unexpectedly|"
    r"FlightUnavailable|FlightTimedOut|before it had sent all rows|EOFException"
)
"""In it if a node, an executor or Spark itself has gone."""


def failed_by_data(error: BaseException) -> bool:
    """Tell whether a job failed of what computes its rows, such as a UDF, and not because some process was lost."""
    text = str(error)
    return _RAISED_BY_CODE.search(text) is not None and _NOT_BY_DATA.search(text) is None


def _thread_of(spark: SparkSession) -> Callable[..., threading.Thread]:
    """Return what makes threads that run jobs of a session."""
    if is_connect(spark):
        return threading.Thread
    from pyspark import InheritableThread

    # Spark 3.5 takes all that a thread inherits from the JVM, and knows no session.
    return InheritableThread if is_spark_3() else partial(InheritableThread, session=spark)


def describe_job_error(error: BaseException) -> str:
    """Say in a line or a few what Spark's exception means."""
    text = str(error)
    if "No module named 'tfspark" in text:
        return (
            "the Python of the executors has no tfspark. Install the same environment there, ship one with "
            "--archives, or point PYSPARK_PYTHON to one that has it"
        )
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines[:12]) or type(error).__name__
