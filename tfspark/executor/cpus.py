"""How many CPUs a node may use: what Spark sets aside for its task, within what the kernel lets this process have."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path


def cpus_of_node(asked: float | None, neighbours: int) -> int:
    """Return the CPUs that a node uses of the `asked` ones, at least 1: a quota or an affinity may leave fewer.

    Without `asked` ones it shares this machine with its `neighbours`, of which it is one.
    """
    usable = usable_cpus()
    return max(1, usable // neighbours if asked is None else min(math.ceil(asked), usable))


def usable_cpus() -> int:
    """Return how many CPUs this process can keep busy: those it may run on, within the quotas of its control groups."""
    try:
        groups = Path("/proc/self/cgroup").read_text()
    except OSError:
        groups = ""
    quota = quota_of(groups, Path("/sys/fs/cgroup"))
    allowed = len(os.sched_getaffinity(0))
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def quota_of(groups: str, mounted: Path) -> float | None:
    """Return the smallest CPU quota, in CPUs, of a control group and of those that it is in; ``None`` without one.

    Parameters
    ----------
    groups
        The text of ``/proc/self/cgroup``.
    mounted
        Where control groups are mounted, ``/sys/fs/cgroup``.
    """
    return min(_quotas(groups, mounted), default=None)


def _quotas(groups: str, mounted: Path) -> Iterator[float]:
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if "cpu" not in names and controllers:
            continue
        # Version 1 has a tree for each controller, and its name may be that of two: cpu,cpuacct.
        roots = [mounted / n for n in (controllers, "cpu")] if controllers else [mounted]
        for root in roots:
            # In a container the path may be the one on the host, and the container's group is mounted at the root.
            inner = Path(path.lstrip("/"))
            for group in [root / inner, *((root / inner).parents[: len(inner.parts)] if inner.parts else ())]:
                quota = _quota_v1(group) if controllers else _quota_v2(group)
                if quota is not None:
                    yield quota


def _quota_v2(group: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        if quota != "max":
            return int(quota) / int(period)
    return None


def _quota_v1(group: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        quota = int((group / "cpu.cfs_quota_us").read_text())
        if quota > 0:
            return quota / int((group / "cpu.cfs_period_us").read_text())
    return None
