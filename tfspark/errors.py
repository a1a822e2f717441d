"""Every error tfspark raises on purpose.

TFSparkError
├── ConfigurationError      arguments or settings that cannot work; nothing was launched
│   ├── ResourceError       Spark does not offer the slots, CPUs or GPUs that were asked for
│   ├── DependencyError     Java, Spark or a Python package is missing or of a wrong version
│   ├── OutputError         files would have to be replaced that something else has written
│   └── SchemaError         a column has no tensor form, or its values break the rule for nulls
├── ClusterError            a running cluster failed
│   ├── StartTimeout        nodes did not register in time
│   ├── NodeFailed          one TensorFlow process failed; carries its traceback and last log lines
│   └── ClusterStopped      the cluster was asked to work after it had stopped, or was cancelled
├── FeedError               rows could not be delivered
└── PredictError            workers could not answer for rows that ``cluster.predict`` asked about

A message says what happened, where (role, index, host) and, after ``Hint:``, what to do about it.
The classes carry fields and format them; they hold no other logic. All of them survive pickling.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    "TFSparkError",
]


class TFSparkError(Exception):
    """Base of all errors raised by tfspark.

    Parameters
    ----------
    message
        What happened and where.
    hint
        What to do about it; shown after ``Hint:``.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nHint: {self.hint}" if self.hint else self.message


class ConfigurationError(TFSparkError, ValueError):
    """Arguments or settings that cannot work; raised before anything is launched."""


class ResourceError(ConfigurationError):
    """Spark does not offer the task slots, CPUs or GPUs that were asked for."""


class DependencyError(ConfigurationError):
    """Java, Spark, TensorFlow or another package is missing or of a wrong version."""


class OutputError(ConfigurationError):
    """Files would have to be replaced that something else has written; see `tfspark.jobs.RunDirectory`."""


class SchemaError(ConfigurationError):
    """A column has no tensor form, or its values break the rule for nulls."""


class ClusterError(TFSparkError, RuntimeError):
    """A running cluster failed."""


class StartTimeout(ClusterError, TimeoutError):
    """The nodes of a cluster did not all register in time."""


class StepTimeout(ClusterError, TimeoutError):
    """Workers have waited too long for one another within a training step."""


class ClusterStopped(ClusterError):
    """The cluster was asked to work after it had stopped, or it was cancelled."""


class FeedError(TFSparkError, RuntimeError):
    """Rows could not be delivered to the workers."""


class PredictError(TFSparkError, RuntimeError):
    """Workers could not answer for the rows that ``cluster.predict`` asked about."""


class NodeFailed(ClusterError):
    """One node of the cluster failed.

    Parameters
    ----------
    role, index, host
        Which node: for example ``"worker"``, ``1``, ``"10.0.0.7"``.
    reason
        One line: the exception, exit code or signal.
    remote_traceback
        Traceback formatted in the node's process, or ``""``.
    log_tail
        Last lines the process wrote to stdout and stderr.
    hint
        What to do about it.
    final
        Whether it would fail in the same way again, so that restarting the cluster cannot help.
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
        if self.remote_traceback:
            parts.append(f"--- traceback of {self.role} {self.index} ---\n{self.remote_traceback.rstrip()}")
        if self.log_tail:
            lines = "\n".join(self.log_tail)
            parts.append(f"--- last log lines of {self.role} {self.index} ---\n{lines}")
        if self.hint:
            parts.append(f"Hint: {self.hint}")
        return "\n".join(parts)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its type if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
