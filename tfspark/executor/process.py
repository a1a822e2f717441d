"""Spawn a node's process and make sure that it never outlives its supervisor.

Four things end it: the supervisor's word on its standard input; SIGTERM and SIGKILL to its process group; the
kernel's parent-death signal; and a guardian, forked by the node before all else, that kills the whole group and
removes its files when the supervisor's end of a pipe closes. The parent-death signal alone would reach the node, but
not what it has started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping

LENGTH_BYTES = 8


def spawn(module: str, directory: str, payload: bytes, env: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start ``python -m module`` in a session of its own, its output in one pipe, and hand it `payload`.

    `directory` holds its temporary files and goes when it goes. Returns the process, and the descriptor whose closing
    sets its guardian to work.

    The payload, which holds the cluster's token, goes through the pipe: argument lists and environments can be
    read by others on the host.
    """
    guarded, lifeline = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", module, str(os.getpid()), str(guarded), directory],
        pass_fds=(guarded,),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(env),
        start_new_session=True,
    )
    os.close(guarded)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(len(payload).to_bytes(LENGTH_BYTES, "big") + payload)
        process.stdin.flush()
    return process, lifeline


def tell_to_stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to stop."""
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):
        process.stdin.write(b"stop\n")
        process.stdin.flush()


def kill_group(process: subprocess.Popen[bytes], sig: int = signal.SIGKILL) -> None:
    """Send a signal to the process and all it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, sig)


def is_stopped(pid: int) -> bool:
    """Tell whether a process is held by a signal or a debugger."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] in "Tt"
    except (OSError, IndexError):
        return False


def resident_bytes(pid: int) -> int:
    """Return the resident set size of a process, 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def out_of_memory_kills() -> int:
    """Return how many processes of this one's control group the kernel has killed for want of memory; 0 if unknown."""
    try:
        with open("/proc/self/cgroup") as f:
            groups = [line.rstrip("\n").split(":", 2) for line in f]
    except OSError:
        return 0
    for _, controllers, path in groups:
        if controllers == "memory":
            names = [f"/sys/fs/cgroup/memory{path}/memory.oom_control", "/sys/fs/cgroup/memory/memory.oom_control"]
        elif not controllers:
            names = [f"/sys/fs/cgroup{path}/memory.events", "/sys/fs/cgroup/memory.events"]
        else:
            continue
        # In a container the path may be the host's, and its own group is mounted at the root.
        for name in names:
            with contextlib.suppress(OSError, ValueError), open(name) as f:
                for line in f:
                    key, value = line.split()
                    if key == "oom_kill":
                        return int(value)
    return 0
