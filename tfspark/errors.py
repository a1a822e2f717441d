"""All errors that tfspark raises on purpose.

TFSparkError
├── ConfigurationError      arguments or settings that cannot work; nothing was launched
│   ├── ResourceError       Spark has fewer task slots, CPUs or GPUs than the cluster needs
│   ├── DependencyError     Java, Spark or a Python package is missing or has the wrong version
│   ├── OutputError         the output directory holds files that this job did not write
│   └── SchemaError         a column has no tensor form, or a value breaks a rule of its column
├── ClusterError            a running cluster failed
│   ├── StartTimeout        nodes did not register in time
│   ├── NodeFailed          one TensorFlow process failed; contains its traceback and last log lines
│   ├── StepTimeout         workers waited too long for each other within a training step
│   └── ClusterStopped      the cluster had stopped already, or its job was cancelled
├── FeedError               rows could not be delivered
└── PredictError            workers could not compute predictions for ``cluster.predict``

A message says what happened, where (role, index, host) and, after ``Hint:``, how to fix it.
The classes contain fields and format them; they contain no other logic. All of them can be pickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from traceback import format_tb

from tfspark.tracebacks import said_more, user_frames

__all__ = [
    "ClusterError",
    "ClusterStopped",
    "ConfigurationError",
    "DependencyError",
    "FeedError",
    "NodeFailed",
    "OutputError",
    "PredictError",
    "ResourceError",
    "SchemaError",
    "StartTimeout",
    "StepTimeout",
    "TFSparkError",
]


class TFSparkError(Exception):
    """Base of all errors raised by tfspark.

    Parameters
    ----------
    message
        What happened and where.
    hint
        How to fix it; shown after ``Hint:``.

    Examples
    --------
    >>> try:
    ...     tfspark.run(spark, print, workers=0)
    ... except TFSparkError as error:
    ...     print(error.message)
    ...     print(error.hint)
    workers must be >= 1, got 0.
    Pass workers=1 to train in one process, or more to train in parallel.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nHint: {self.hint}" if self.hint else self.message

    def _render_traceback_(self) -> list[str]:
        """Return the lines that a notebook shows: the user's frames and the error, without the frames of libraries."""
        frames = user_frames("".join(format_tb(self.__traceback__)))
        return [*frames.splitlines(), f"{type(self).__name__}: {self}"]


class ConfigurationError(TFSparkError, ValueError):
    """Arguments or settings that cannot work; raised before anything is launched.

    Examples
    --------
    >>> tfspark.run(spark, print, workers=1, ps=-1)
    Traceback (most recent call last):
    tfspark.errors.ConfigurationError: ps must be >= 0, got -1.
    """


class ResourceError(ConfigurationError):
    """Spark has fewer task slots, CPUs or GPUs than the cluster needs.

    Examples
    --------
    >>> try:
    ...     tfspark.run(spark, print, workers=1000)
    ... except ResourceError as error:
    ...     print("Spark has too few task slots.")
    Spark has too few task slots.
    """


class DependencyError(ConfigurationError):
    """Java, Spark, TensorFlow or another package is missing or has the wrong version.

    Examples
    --------
    >>> raise DependencyError("matplotlib is not installed.", hint="pip install matplotlib")
    Traceback (most recent call last):
    tfspark.errors.DependencyError: matplotlib is not installed.
    Hint: pip install matplotlib
    """


class OutputError(ConfigurationError):
    """The output directory holds files that this job did not write; see `tfspark.jobs.RunDirectory`.

    Examples
    --------
    >>> _ = (Path(directory) / "result.json").write_text("{}")
    >>> try:
    ...     tfspark.jobs.RunDirectory("train", directory, None).claim()
    ... except OutputError as error:
    ...     print(error.hint)
    Use another directory, or move it away.
    """


class SchemaError(ConfigurationError):
    """A column has no tensor form, or a value breaks a rule of its column, such as the rule for nulls.

    Examples
    --------
    >>> try:
    ...     tfspark.predict(spark.sql("SELECT map('a', 1) AS x"), model_directory)
    ... except SchemaError as error:
    ...     print("The column has no tensor form.")
    The column has no tensor form.
    """


class ClusterError(TFSparkError, RuntimeError):
    """A running cluster failed.

    Examples
    --------
    >>> try:
    ...     raise NodeFailed("worker", 1, "10.0.0.7", "ValueError: bad label")
    ... except ClusterError as error:
    ...     print(error.message)
    worker 1 on 10.0.0.7 failed: ValueError: bad label
    """


class StartTimeout(ClusterError, TimeoutError):
    """The nodes of a cluster did not all register in time.

    Examples
    --------
    >>> issubclass(StartTimeout, TimeoutError)
    True
    """


class StepTimeout(ClusterError, TimeoutError):
    """Workers waited too long for each other within a training step.

    Examples
    --------
    >>> issubclass(StepTimeout, TimeoutError)
    True
    """


class ClusterStopped(ClusterError):
    """The cluster had stopped already, or its Spark job was cancelled.

    Examples
    --------
    >>> try:
    ...     raise ClusterStopped("The cluster is stopping: stop() was called")
    ... except ClusterError as error:
    ...     print(error.message)
    The cluster is stopping: stop() was called
    """


class FeedError(TFSparkError, RuntimeError):
    """Rows could not be delivered to the workers.

    Examples
    --------
    >>> raise FeedError("Nothing was fed.", hint="Call cluster.feed(df) in the driver.")
    Traceback (most recent call last):
    tfspark.errors.FeedError: Nothing was fed.
    Hint: Call cluster.feed(df) in the driver.
    """


class PredictError(TFSparkError, RuntimeError):
    """Workers could not compute predictions for ``cluster.predict``.

    Examples
    --------
    >>> raise PredictError("fn must return a dict with the keys ['score'], got list.")
    Traceback (most recent call last):
    tfspark.errors.PredictError: fn must return a dict with the keys ['score'], got list.
    """


class NodeFailed(ClusterError):
    """One node of the cluster failed.

    Parameters
    ----------
    role, index, host
        Which node: for example ``"worker"``, ``1``, ``"10.0.0.7"``.
    reason
        One line: the exception, exit code or signal.
    remote_traceback
        Traceback formatted in the node's process, or ``""``. The error's text shows it without the frames of libraries.
    log_tail
        Last lines that the process wrote to stdout and stderr. The error's text shows the lines that are not in the
        traceback.
    hint
        How to fix it.
    final
        Whether the node would fail in the same way again. A cluster is not restarted after such a failure.

    Examples
    --------
    >>> reason = "ValueError: bad label"
    >>> error = NodeFailed("worker", 1, "10.0.0.7", reason, log_tail=["epoch 3"])
    >>> print(error)
    worker 1 on 10.0.0.7 failed: ValueError: bad label
    --- last log lines of worker 1 ---
    epoch 3
    """

    def __init__(
        self,
        role: str,
        index: int,
        host: str,
        reason: str,
        remote_traceback: str = "",
        log_tail: Sequence[str] = (),
        hint: str | None = None,
        final: bool = False,
    ) -> None:
        super().__init__(f"{role} {index} on {host} failed: {reason}", hint)
        self.role = role
        self.index = index
        self.host = host
        self.reason = reason
        self.remote_traceback = remote_traceback
        self.log_tail = tuple(log_tail)
        self.final = final

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        fields = (self.role, self.index, self.host, self.reason)
        return type(self), (*fields, self.remote_traceback, self.log_tail, self.hint, self.final)

    def __str__(self) -> str:
        parts = [self.message]
        if self.hint:
            parts.append(f"Hint: {self.hint}")
        if self.remote_traceback:
            parts.append(f"--- traceback of {self.role} {self.index} ---\n{user_frames(self.remote_traceback)}")
        if lines := said_more(self.log_tail, self.remote_traceback):
            parts.append("\n".join([f"--- last log lines of {self.role} {self.index} ---", *lines]))
        return "\n".join(parts)


def all_of(problems: Sequence[SchemaError]) -> SchemaError:
    """Return one error that lists several problems, so that the user can fix them together."""
    if len(problems) == 1:
        return problems[0]
    hints = dict.fromkeys(p.hint for p in problems if p.hint)
    return SchemaError(
        f"{len(problems)} columns do not fit: " + " ".join(p.message for p in problems), hint=" ".join(hints) or None
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if the message is empty."""
    lines = message_of(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def message_of(error: BaseException) -> str:
    """Return an error's message, also if its ``__str__`` raises."""
    try:
        return str(error)
    except Exception as e:
        return f"(its message cannot be shown: {type(e).__name__})"
