"""Describe the end of a process and its likely cause: pure functions for `control/lifecycle.py`."""

from __future__ import annotations

import re
import signal

KILLED_HINT = (
    "The executor or its Python worker was killed: look in the executor's log; out of memory is the usual cause "
    "(spark.executor.memoryOverhead)."
)

PEER_ERROR = re.compile(
    r"\b(Unavailable|Aborted|Cancelled|DeadlineExceeded|FailedPrecondition|Internal|Unknown)Error\b"
)
"""TensorFlow's errors in the remaining workers when one worker is lost."""


def tells_of_a_peer(reason: str) -> bool:
    """Return whether the loss of another node may have caused an exception, instead of an error in this node."""
    return PEER_ERROR.search(reason.split(":")[0]) is not None


def describe_exit(code: int, out_of_memory: bool = False) -> tuple[str, str | None]:
    """Return a description of how a process ended, and a hint about the likely cause or None."""
    if code >= 0:
        return f"its process exited with code {code} before main returned", None
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = None
    if -code == signal.SIGKILL:
        cause = "SIGKILL that tfspark did not send usually is the kernel's or a container's out-of-memory killer: give"
        if out_of_memory:
            name, cause = f"{name}: its host or container was out of memory", "Give"
        hint = (
            f"{cause} executors more memory (spark.executor.memoryOverhead holds what TensorFlow uses) or train on "
            "less at once."
        )
    elif -code in (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGBUS):
        hint = "Native code crashed; the last log lines may say where."
    return f"its process was killed by {name}", hint
