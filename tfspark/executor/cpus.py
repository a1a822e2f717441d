"""How many CPUs a node may use: what Spark sets aside for its task, within what the kernel lets this process have."""

from __future__ import annotations

import math
import os
from pathlib import Path

from tfspark.executor.control_groups import MOUNTED, ControlGroup, control_groups, of_this_process


def cpus_of_node(asked: float | None, neighbours: int) -> int:
    """Return the CPUs that a node uses of the `asked` ones, at least 1: a quota or an affinity may leave fewer.

    Without `asked` ones it shares this machine with its `neighbours`, of which it is one.
    """
    usable = usable_cpus()
    return max(1, usable // neighbours if asked is None else min(math.ceil(asked), usable))


def usable_cpus() -> int:
    """Return how many CPUs this process can keep busy: those it may run on, within the quotas of its control groups."""
    quota = quota_of(of_this_process(), MOUNTED)
    allowed = len(os.sched_getaffinity(0))
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def quota_of(groups: str, mounted: Path) -> float | None:
    """Return the smallest CPU quota, in CPUs, of a control group and of those that it is in; ``None`` without one.

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
    # No quota is "max", or -1.
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(quota) else None
