"""What ``Cluster(log_dir=, profile=, debug_dumps=)`` asks of a node: TensorBoard's callback, profiler and debugger."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

logger = logging.getLogger("tfspark")

CIRCULAR_BUFFER = 1000
"""Newest executions that the debugger keeps; all of them would fill the disk."""


class Debugging:
    """All of it for one node; does nothing without a `log_dir`.

    Parameters
    ----------
    options
        ``log_dir``, ``profile`` and ``debug_dumps``, as the driver has checked them.
    name
        The node's, for directories.
    is_chief
        Whether it is the one that writes for all.
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
            self._dumps = os.path.join(self.log_dir, "debug", name)
            _enable_dumps(self._dumps, options["debug_dumps"])

    def step_ended(self, step: int) -> None:
        """Note that a step has ended."""
        if self._profiler is not None:
            self._profiler.step_ended(step)

    def callbacks(self, users: Sequence[Any]) -> list[Any]:
        """Return Keras' callback for TensorBoard on the chief, unless the user has one."""
        import keras

        if self.log_dir is None or not self._is_chief or any(isinstance(c, keras.callbacks.TensorBoard) for c in users):
            return []
        return [keras.callbacks.TensorBoard(self.log_dir)]

    def close(self) -> None:
        """Write what is still in memory: the process will leave without TensorFlow's own teardown."""
        if self._profiler is not None:
            self._profiler.close()
        if self._dumps is not None:
            import tensorflow as tf

            tf.debugging.experimental.disable_dump_debug_info()


def _check(log_dir: str) -> None:
    if not os.path.isdir(log_dir):
        logger.warning(
            "log_dir %s, which the driver has made, is not on this host: TensorBoard shows only Spark's metrics. Use a "
            "directory that all hosts mount.",
            log_dir,
        )


def _enable_dumps(directory: str, mode: str) -> None:
    import tensorflow as tf

    tf.debugging.experimental.enable_dump_debug_info(directory, mode, circular_buffer_size=CIRCULAR_BUFFER)
    logger.info("TensorFlow's debugger dumps to %s", directory)


class StepProfiler:
    """Runs TensorFlow's profiler over a range of steps.

    Parameters
    ----------
    log_dir
        Where TensorBoard looks for profiles.
    first, last
        Steps to profile, both of them as well.
    """

    def __init__(self, log_dir: str, first: int, last: int) -> None:
        self._log_dir, self._first, self._last = log_dir, first, last
        self._running = self._done = False
        self._lock = threading.Lock()

    def step_ended(self, step: int) -> None:
        """Note that a step has ended."""
        if self._done:
            return
        with self._lock:
            if not self._running and step >= self._first - 1:
                self._start()
            elif self._running and step >= self._last:
                self.close()

    def close(self) -> None:
        """Stop, if it runs, and write what there is."""
        import tensorflow as tf

        if self._running:
            self._running, self._done = False, True
            tf.profiler.experimental.stop()
            logger.info("the profile is in %s", self._log_dir)

    def _start(self) -> None:
        import tensorflow as tf

        try:
            tf.profiler.experimental.start(self._log_dir)
            self._running = True
        except tf.errors.AlreadyExistsError as e:
            self._done = True
            logger.warning("profile= does nothing: %s", e)
