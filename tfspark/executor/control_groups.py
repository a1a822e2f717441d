"""The control groups of this process, for both versions of Linux's interface."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNTED = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class ControlGroup:
    """A directory whose files contain the limits of its processes.

    Attributes
    ----------
    path
        The directory; it may be missing.
    version
        Version of the interface: 1, in which each controller has a separate tree, or 2.
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
    """Return the text of ``/proc/self/cgroup``, or an empty text if the file cannot be read."""
    try:
        return Path("/proc/self/cgroup").read_text()
    except OSError:
        return ""


def control_groups(controller: str, groups: str, mounted: Path = MOUNTED) -> Iterator[ControlGroup]:
    """Yield the control groups in which a controller may limit this process: its own groups and their parents.

    Parameters
    ----------
    controller
        For example ``cpu`` or ``memory``.
    groups
        The text of ``/proc/self/cgroup``.
    mounted
        Directory where control groups are mounted.
    """
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Version 1 has a tree per controller; the name of a tree may list two controllers: cpu,cpuacct.
        roots = [mounted / n for n in (controllers, controller)] if controllers else [mounted]
        for root in roots:
            # In a container the path may be the one on the host, and the container's group is mounted at the root.
            inner = Path(path.lstrip("/"))
            for group in (root / inner, *((root / inner).parents[: len(inner.parts)] if inner.parts else ())):
                yield ControlGroup(group, 1 if controllers else 2)
