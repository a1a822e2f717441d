"""Garbage collection in Spark's Python workers, which serve one task after another."""

from __future__ import annotations

import functools
import gc


@functools.cache
def freeze_imports(of: str) -> None:
    """Leave out of all later garbage collections what there is now; once per process and name.

    A Python worker of Spark collects all garbage after each task (``pyspark/daemon.py``) and looks at all objects of
    all modules for it: that takes 40 ms with pandas, and some times as long with TensorFlow, for tasks that may need
    less themselves. ``gc.freeze`` is made for processes with much that stays.

    Parameters
    ----------
    of
        What has been imported.
    """
    gc.collect()
    gc.freeze()
