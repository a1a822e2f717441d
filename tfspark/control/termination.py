"""Make SIGTERM end a driver program like Ctrl-C: an exception in its main thread stops its clusters.

By default SIGTERM ends a Python process at once. The nodes would detect this, but `main` could not save anything.
Nothing changes in a program that handles SIGTERM itself.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM
"""Exit code that a shell reports for a program ended by SIGTERM."""


def leave_in_order(any_live: Callable[[], bool], stop_all: Callable[[], object]) -> None:
    """Make SIGTERM raise `SystemExit` while clusters run. Outside the main thread this function does nothing.

    Parameters
    ----------
    any_live
        Returns whether there are clusters to stop.
    stop_all
        Stops the clusters; called in a new thread when the signal arrives.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return
    program = os.getpid()

    def on_sigterm(signum: int, frame: FrameType | None) -> None:
        # A second SIGTERM ends the process at once. A process forked from the program owns no cluster.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() == program and any_live():
            # A signal handler can interrupt any code, and at exit other threads have ended, so a new thread stops the
            # clusters; Python waits for it.
            threading.Thread(target=stop_all, name="tfspark-leaving").start()
            raise SystemExit(EXIT_CODE)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, on_sigterm)


def grace_after(error: BaseException | None) -> float | None:
    """Return the grace in seconds for `main` when `error` stops its cluster: 0.0 after a failure, else the default.

    The default is None, which means `stop_grace`. It applies to ``KeyboardInterrupt`` and ``SystemExit``: the user
    wants the program to end, and `main` may still save.
    """
    return 0.0 if isinstance(error, Exception) else None
