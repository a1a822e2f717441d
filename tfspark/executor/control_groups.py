"""The control groups that this process is in, of both versions of Linux's interface."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNTED = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class ControlGroup:
    """A directory whose files say what its processes may use.

    Attributes
    ----------
    path
        The directory; it may be missing.
    version
        1, where each controller has a tree of its own, or 2.
    """

    path: Path
    version: int

    def read(self, name: str) -> str | None:
        """Return the text of a file; ``None`` if it cannot be read."""
        try:
            return (self.path / name).read_text().strip()
        except OSError:
            return None


def of_this_process() -> str:
    """Return the text of ``/proc/self/cgroup``; empty where there is no such file."""
    try:
        return Path("/proc/self/cgroup").read_text()
    except OSError:
        return ""


def control_groups(controller: str, groups: str, mounted: Path = MOUNTED) -> Iterator[ControlGroup]:
    """Yield the groups that a controller, such as ``cpu`` or ``memory``, may limit: own ones and those around them.

    Parameters
    ----------
    groups
        The text of ``/proc/self/cgroup``.
    mounted
        Where control groups are mounted.
    """
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Version 1 has a tree for each controller, and its name may be that of two: cpu,cpuacct.
        roots = [mounted / n for n in (controllers, controller)] if controllers else [mounted]
        for root in roots:
            # In a container the path may be the one on the host, and the container's group is mounted at the root.
            inner = Path(path.lstrip("/"))
            for group in (root / inner, *((root / inner).parents[: len(inner.parts)] if inner.parts else ())):
                yield ControlGroup(group, 1 if controllers else 2)
