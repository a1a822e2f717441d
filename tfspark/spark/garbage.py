"""Garbage collection in Spark's Python workers, which run one task after another."""

from __future__ import annotations

import functools
import gc
import sys


def freeze() -> None:
    """Exclude all existing objects from later garbage collections.

    A Python worker of Spark runs a full garbage collection after each task (``pyspark/daemon.py``), which looks at all
    objects of all modules. This takes 40 ms with pandas, and several times as long with TensorFlow, while the tasks
    themselves may take less. ``gc.freeze`` is made for processes with many objects that stay.
    """
    gc.collect()
    gc.freeze()


@functools.cache
def freeze_imports() -> None:
    """Call `freeze` once per process, unless TensorFlow is imported: only the collector frees its loaded models."""
    if "tensorflow" not in sys.modules:
        freeze()
