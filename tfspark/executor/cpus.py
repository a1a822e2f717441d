"""The number of CPUs that a node may use: those that Spark reserves for its task, within the limits of the kernel."""

from __future__ import annotations

import math
import os
from pathlib import Path

from tfspark.executor.control_groups import MOUNTED, ControlGroup, control_groups, of_this_process


def cpus_of_node(asked: float | None, neighbours: int) -> int:
    """Return the number of CPUs that a node uses, at least 1.

    Parameters
    ----------
    asked
        CPUs that Spark reserves for the node; a quota or the affinity may allow fewer. If None, the node gets an equal
        share of the CPUs of this machine.
    neighbours
        Number of nodes that share this machine, including this one.
    """
    usable = usable_cpus()
    return max(1, usable // neighbours if asked is None else min(math.ceil(asked), usable))


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use: its CPU affinity, limited by control group quotas."""
    quota = quota_of(of_this_process(), MOUNTED)
    allowed = len(os.sched_getaffinity(0))
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def quota_of(groups: str, mounted: Path) -> float | None:
    """Return the smallest CPU quota, in CPUs, of the control groups and their parents; ``None`` without a quota.

    Parameters
    ----------
    groups, mounted
        As for `control_groups`.
    """
    quotas = (_quota(group) for group in control_groups("cpu", groups, mounted))
    return min((q for q in quotas if q is not None), default=None)


def _quota(group: ControlGroup) -> float | None:
    if group.version == 2:
        quota, _, period = (group.read("cpu.max") or "max").partition(" ")
    else:
        quota, period = (group.read(f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
    # Without a quota the value is "max" (version 2) or -1 (version 1).
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(quota) else None
