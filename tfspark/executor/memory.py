"""The memory of a node for waiting rows: a fixed minimum if memory is limited, else a share of what is free."""

from __future__ import annotations

import os
from pathlib import Path

from tfspark.executor.control_groups import MOUNTED, control_groups, of_this_process

LEAST_BYTES = 256 << 20
"""Bytes that every node may use; docs/guide/sizing.md uses this number."""

SHARE = 8
"""All nodes together use 1 / `SHARE` of the memory that is available when they start."""


def spool_memory(asked: int | None, nodes: int) -> int:
    """Return the number of bytes of rows that a node keeps in memory.

    Parameters
    ----------
    asked
        Value that the user has set, which is returned unchanged; or None.
    nodes
        Number of nodes that may run on this machine.
    """
    if asked is not None:
        return asked
    available = available_memory(Path("/proc/meminfo"))
    if available is None or is_counted():
        return LEAST_BYTES
    return max(LEAST_BYTES, available // (SHARE * nodes))


def is_counted() -> bool:
    """Return whether this process, or its executor, is killed if it uses more memory than a limit.

    YARN sums the memory of a container's processes, independently of their control groups.
    """
    return "CONTAINER_ID" in os.environ or limit_of(of_this_process(), MOUNTED) is not None


def available_memory(path: Path) -> int | None:
    """Return the bytes that Linux can allocate without swapping (``MemAvailable``), or ``None`` if unknown."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


def limit_of(groups: str, mounted: Path) -> int | None:
    """Return the smallest memory limit, in bytes, of the control groups and their parents; ``None`` without a limit.

    Parameters
    ----------
    groups, mounted
        As for `control_groups`.
    """
    texts = (
        g.read("memory.max" if g.version == 2 else "memory.limit_in_bytes")
        for g in control_groups("memory", groups, mounted)
    )
    # Without a limit the value is "max" (version 2) or the largest multiple of the page size in a long (version 1).
    return min((n for t in texts if t and t.isdecimal() and (n := int(t)) < 1 << 62), default=None)
