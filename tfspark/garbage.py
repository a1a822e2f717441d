"""Garbage collection in Spark's Python workers, which serve one task after another."""

from __future__ import annotations

import functools
import gc
import sys


@functools.cache
def freeze_imports(of: str) -> None:
    """Leave out of all later garbage collections all that there is now; once per process and name.

    A Python worker of Spark collects all garbage after each task (``pyspark/daemon.py``) and looks at all objects of
    all modules for it: that takes 40 ms with pandas, and some times as long with TensorFlow, for tasks that may need
    less themselves. ``gc.freeze`` is made for processes with much that stays.

    Parameters
    ----------
    of
        What has been imported. Where TensorFlow was there before, nothing is left out: models that it has loaded, which
        only the collector frees, would stay for good.
    """
    if "tensorflow" in sys.modules and of != "tensorflow":
        return
    gc.collect()
    gc.freeze()
