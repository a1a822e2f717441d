"""``Cluster(log_dir=, profile=, debug_dumps=)`` in a node: TensorBoard callback, profiler and debugger."""

from __future__ import annotations

import glob
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

logger = logging.getLogger("tfspark")

DUMPS_SUFFIX = ".metadata"
"""Suffix of the metadata file, which each set of the debugger's dumps has."""

CIRCULAR_BUFFER = 1000
"""Number of the newest executions that the debugger keeps; all executions would fill the disk."""


class Debugging:
    """Callback, profiler and debugger of one node; does nothing without a `log_dir`.

    Parameters
    ----------
    options
        ``log_dir``, ``profile`` and ``debug_dumps``, checked by the driver.
    name
        Name of the node, used for directories.
    is_chief
        Whether this node writes for the cluster.
    """

    def __init__(self, options: Mapping[str, Any], name: str, is_chief: bool) -> None:
        self.log_dir: str | None = options.get("log_dir")
        self._is_chief = is_chief
        self._dumps: str | None = None
        self._profiler: StepProfiler | None = None
        if self.log_dir is None:
            return
        _check(self.log_dir)
        if options.get("profile") and is_chief:
            self._profiler = StepProfiler(self.log_dir, *options["profile"])
        if options.get("debug_dumps"):
            self._dumps = _dump_root(self.log_dir, name, is_chief, options.get("restarts", 0))
            _enable_dumps(self._dumps, options["debug_dumps"])

    def step_ended(self, step: int) -> None:
        """Record that a step has ended."""
        if self._profiler is not None:
            self._profiler.step_ended(step)

    def callbacks(self, users: Sequence[Any]) -> list[Any]:
        """Return Keras' callback for TensorBoard on the chief, unless the user has one."""
        import keras

        if self.log_dir is None or not self._is_chief or any(isinstance(c, keras.callbacks.TensorBoard) for c in users):
            return []
        from tfspark.node.keras.graph import WriteGraph

        return [keras.callbacks.TensorBoard(self.log_dir, write_graph=False), WriteGraph(self.log_dir)]

    def close(self) -> None:
        """Write remaining data, because the process will exit without TensorFlow's own teardown."""
        if self._profiler is not None:
            self._profiler.close()
        if self._dumps is not None:
            import tensorflow as tf

            tf.debugging.experimental.disable_dump_debug_info()


def _check(log_dir: str) -> None:
    if not os.path.isdir(log_dir):
        logger.warning(
            "log_dir %s does not exist on this host, so TensorBoard shows only the driver's metrics. Use a directory "
            "that all hosts mount.",
            log_dir,
        )


def _dump_root(log_dir: str, name: str, is_chief: bool, restarts: int) -> str:
    """Return the directory for the dumps of a node.

    TensorBoard's page reads only one set of dumps in `log_dir`, that of the chief. If there were two sets, it would
    show none. Other sets go to subdirectories of ``debug``.
    """
    if is_chief and not glob.glob(os.path.join(glob.escape(log_dir), f"*{DUMPS_SUFFIX}")):
        return log_dir
    return os.path.join(log_dir, "debug", f"{name}-restart-{restarts}" if restarts else name)


def _enable_dumps(directory: str, mode: str) -> None:
    import tensorflow as tf

    tf.debugging.experimental.enable_dump_debug_info(directory, mode, circular_buffer_size=CIRCULAR_BUFFER)
    logger.info("TensorFlow's debugger writes to %s", directory)


class StepProfiler:
    """Runs TensorFlow's profiler over a range of steps and marks each step for XProf's overview.

    Parameters
    ----------
    log_dir
        Directory where TensorBoard looks for profiles.
    first, last
        First and last step to profile, both included.
    """

    def __init__(self, log_dir: str, first: int, last: int) -> None:
        self._log_dir, self._first, self._last = log_dir, first, last
        self._running = self._done = False
        self._mark: Any = None
        self._marking = 0
        self._lock = threading.Lock()

    def step_ended(self, step: int) -> None:
        """Record that a step has ended."""
        if self._done:
            return
        with self._lock:
            if not self._running and step >= self._first - 1:
                self._start()
            if self._running and step >= self._last:
                self.close()
            elif self._running:
                self._mark_step(step + 1)

    def close(self) -> None:
        """Stop the profiler if it runs, and write the profile."""
        import tensorflow as tf

        if self._running:
            self._end_mark()
            self._running, self._done = False, True
            tf.profiler.experimental.stop()
            logger.info("profile written to %s", self._log_dir)

    def _start(self) -> None:
        import tensorflow as tf

        try:
            tf.profiler.experimental.start(self._log_dir)
            self._running = True
        except tf.errors.AlreadyExistsError as e:
            self._done = True
            logger.warning("cannot profile (profile=...): %s", e)

    def _mark_step(self, step: int) -> None:
        """Begin the next step: all work of this thread until the next call is part of it."""
        import tensorflow as tf

        self._end_mark()
        # TensorFlow itself marks a training step like this: XProf groups by step_num, and _r makes the step a root
        # event.
        self._mark = tf.profiler.experimental.Trace("train", step_num=step, _r=1)
        self._mark.__enter__()
        self._marking = threading.get_ident()

    def _end_mark(self) -> None:
        mark, self._mark = self._mark, None
        # Only the thread that began a mark can end it.
        if mark is not None and self._marking == threading.get_ident():
            mark.__exit__(None, None, None)
