"""What the text of a failed Spark job means."""

from __future__ import annotations

import pytest

from tfspark.spark.jobs import CANCELLED, describe_job_error, failed_by_data

pytestmark = pytest.mark.unit

RAISED = """
  An exception was thrown from the Python worker. Please see the stack trace below.
Traceback (most recent call last):
  File "/venv/lib/python3.11/site-packages/pyspark/worker.py", line 1, in main
    process()
  File "/home/ada/rows.py", line 7, in check

    raise ValueError(text)
ValueError: row 200 is bad

JVM stacktrace:
org.apache.spark.api.python.PythonException
\tat org.apache.spark.A.b(A.scala:1)
"""
INTERRUPTED = "(org.apache.spark.SparkSQLException) [OPERATION_CANCELED] Operation has been canceled. SQLSTATE: HY008"


def test_the_exception_of_a_python_function_comes_first() -> None:
    assert describe_job_error(RuntimeError(RAISED)).splitlines() == [
        "ValueError: row 200 is bad",
        "Traceback (most recent call last):",
        "  ... 1 frame in pyspark",
        '  File "/home/ada/rows.py", line 7, in check',
        "",
        "    raise ValueError(text)",
        "ValueError: row 200 is bad",
    ]


def test_of_chained_exceptions_the_raised_one_comes_first() -> None:
    cause = 'Traceback (most recent call last):\n  File "a.py", line 1, in a\nKeyError: 7\n'
    between = "\nThe above exception was the direct cause of the following exception:\n\n"
    raised = 'Traceback (most recent call last):\n  File "b.py", line 2, in b\nRuntimeError: no row\n'
    told = describe_job_error(RuntimeError(cause + between + raised))
    assert told.splitlines()[0] == "RuntimeError: no row" and "b.py" in told


def test_other_errors_are_told_as_spark_tells_them() -> None:
    assert describe_job_error(RuntimeError("\n  a table is missing\n\n\tat A.b\n")) == "a table is missing\n\tat A.b"
    assert describe_job_error(RuntimeError()) == "RuntimeError"
    assert "--archives" in describe_job_error(RuntimeError("No module named 'tfspark'"))


def test_an_interrupted_job_did_not_fail_by_its_data() -> None:
    assert failed_by_data(RuntimeError(RAISED))
    assert CANCELLED.search(INTERRUPTED) and not failed_by_data(RuntimeError(INTERRUPTED))
