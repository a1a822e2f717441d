"""Let a process that runs TensorFlow keep the memory that it frees, instead of returning it to the kernel at once.

Each batch of strings allocates and frees some MB. By default glibc returns them to the kernel after each batch, and the
kernel must fill every page with zeros for the next one: for strings of 75 KB this takes longer than copying them.
"""

from __future__ import annotations

import ctypes
import os

KEPT_BYTES = 256 << 20
"""Free bytes at the end of a heap from which glibc returns them."""

MAPPED_BYTES = 32 << 20
"""Size from which an allocation gets pages of its own, which are returned when it is freed; glibc's maximum."""

GROWTH_BYTES = 16 << 20
"""Bytes by which a heap grows at least."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_CHOSEN_BY_USER = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_MMAP_THRESHOLD_",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
)


def keep_freed_memory() -> None:
    """Set the limits of glibc's ``malloc``, unless the environment sets them or another allocator is loaded.

    With another C library nothing is changed. See ``mallopt(3)``.
    """
    if any(name in os.environ for name in _CHOSEN_BY_USER):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_TOP_PAD, GROWTH_BYTES)
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
