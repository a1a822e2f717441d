"""How much memory a node may use for rows that wait: little where it is counted, more where there is plenty."""

from __future__ import annotations

import os
from pathlib import Path

from tfspark.executor.control_groups import MOUNTED, control_groups, of_this_process

LEAST_BYTES = 256 << 20
"""What every node takes; docs/guide/sizing.md counts with it."""

SHARE = 8
"""All nodes together take one part in so many of the memory that is available when they start."""


def spool_memory(asked: int | None, nodes: int) -> int:
    """Return the bytes of rows that a node keeps in memory.

    Parameters
    ----------
    asked
        What the user has set; it is taken as it is.
    nodes
        How many nodes may be on this machine.
    """
    if asked is not None:
        return asked
    available = available_memory(Path("/proc/meminfo"))
    if available is None or is_counted():
        return LEAST_BYTES
    return max(LEAST_BYTES, available // (SHARE * nodes))


def is_counted() -> bool:
    """Whether something ends this process, or the executor that it belongs to, if it takes too much memory.

    YARN adds up the memory of a container's processes, whatever their control groups are.
    """
    return "CONTAINER_ID" in os.environ or limit_of(of_this_process(), MOUNTED) is not None


def available_memory(path: Path) -> int | None:
    """Return the bytes that Linux can give without swapping (``MemAvailable``), or ``None`` if it does not say."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


def limit_of(groups: str, mounted: Path) -> int | None:
    """Return the smallest limit of memory, in bytes, of a control group and of those that it is in.

    Parameters
    ----------
    groups, mounted
        As for `control_groups`.
    """
    texts = (
        g.read("memory.max" if g.version == 2 else "memory.limit_in_bytes")
        for g in control_groups("memory", groups, mounted)
    )
    # Without a limit it is "max", or the largest multiple of the page size that a long holds.
    return min((n for t in texts if t and t.isdecimal() and (n := int(t)) < 1 << 62), default=None)
