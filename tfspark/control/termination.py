"""SIGTERM ends a driver program as Ctrl-C does: by an exception in its main thread, which stops its clusters.

Python's own answer to SIGTERM is to be gone at once. Nodes would notice, but `main` could not save anything. A program
that handles SIGTERM itself is left alone.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM
"""What a shell gives for a program that SIGTERM has ended."""


def leave_in_order(any_live: Callable[[], bool], stop_all: Callable[[], object]) -> None:
    """Have SIGTERM raise `SystemExit` as long as there are clusters; nothing happens outside the main thread.

    Parameters
    ----------
    any_live
        Tells whether there are clusters to stop.
    stop_all
        Stops them, wherever the program is when the signal comes.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return
    program = os.getpid()

    def on_sigterm(signum: int, frame: FrameType | None) -> None:
        # A second one does not wait; a process forked from the program has no cluster of its own.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() == program and any_live():
            # Not here, in the middle of anything, and not at exit, when threads have ended: Python waits for this one.
            threading.Thread(target=stop_all, name="tfspark-leaving").start()
            raise SystemExit(EXIT_CODE)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, on_sigterm)


def grace_after(error: BaseException | None) -> float | None:
    """Return the grace for `main` when `error` stops its cluster: none after a failure, the usual one if it was wanted.

    ``KeyboardInterrupt`` and ``SystemExit`` say that someone wants the program to end; `main` may still save.
    """
    return 0.0 if isinstance(error, Exception) else None
