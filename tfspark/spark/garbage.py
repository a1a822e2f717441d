"""Garbage collection in Spark's Python workers, which serve one task after another."""

from __future__ import annotations

import functools
import gc
import sys


def freeze() -> None:
    """Leave out of all later garbage collections all that there is now.

    A Python worker of Spark collects all garbage after each task (``pyspark/daemon.py``) and looks at all objects of
    all modules for it: that takes 40 ms with pandas, and some times as long with TensorFlow, for tasks that may need
    less themselves. ``gc.freeze`` is made for processes with much that stays.
    """
    gc.collect()
    gc.freeze()


@functools.cache
def freeze_imports() -> None:
    """`freeze`, once per process; not where TensorFlow is: only the collector frees models that it has loaded."""
    if "tensorflow" not in sys.modules:
        freeze()
