"""Start a node's process and make sure that it ends when its supervisor ends.

Four things end it: a line ``stop`` on its standard input; SIGTERM and SIGKILL to its process group; the kernel's
parent-death signal; and a guardian process. The node forks the guardian before anything else. When the supervisor's end
of a pipe closes, the guardian kills the process group and removes its files. The parent-death signal alone would kill
the node, but not the processes that the node has started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping

LENGTH_BYTES = 8


def spawn(
    module: str, directory: str, payload: bytes, env: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], int, socket.socket]:
    """Start ``python -m module`` in its own session, with stdout and stderr in one pipe, and send it `payload`.

    `directory` is for the temporary files of the process and is removed when the process ends. Returns the process, its
    lifeline, which is a file descriptor that wakes the guardian when it is closed, and the socket of its pulses
    (`tfspark.node.pulses`).

    The payload contains the cluster's token. So it is sent through a pipe: other users of the host can read argument
    lists.
    """
    guarded, lifeline = os.pipe()
    pulses, of_process = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pulses.setblocking(False)
    descriptors = guarded, of_process.fileno()
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", module, str(os.getpid()), *map(str, descriptors), directory],
        pass_fds=descriptors,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(env),
        start_new_session=True,
    )
    os.close(guarded)
    of_process.close()
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(len(payload).to_bytes(LENGTH_BYTES, "big") + payload)
        process.stdin.flush()
    return process, lifeline, pulses


def tell_to_stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to stop."""
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):
        process.stdin.write(b"stop\n")
        process.stdin.flush()


def close_pipes(process: subprocess.Popen[bytes]) -> None:
    """Close this side of the pipes of a process that has ended.

    Otherwise Python 3.13 reports an error when it garbage-collects a pipe with unwritten data and without a reader.
    """
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def kill_group(process: subprocess.Popen[bytes], sig: int = signal.SIGKILL) -> None:
    """Send a signal to the process and to all processes in its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, sig)


def exit_descriptor(pid: int) -> int | None:
    """Return a file descriptor that becomes readable when the process ends, or None if this host has none."""
    try:
        return os.pidfd_open(pid)
    # Linux before 5.3 and some sandboxes lack the call; Python lacks it if it was built for such a kernel.
    except (AttributeError, OSError):
        return None


def is_stopped(pid: int) -> bool:
    """Return whether a process is stopped by a signal or a debugger."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] in "Tt"
    except (OSError, IndexError):
        return False


def resident_bytes(pid: int) -> int:
    """Return the resident set size of a process in bytes; 0 if the process has ended."""
    try:
        with open(f"/proc/{pid}/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def out_of_memory_kills() -> int:
    """Return the number of out-of-memory kills in this process's control group; 0 if unknown."""
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
        # In a container the path may be the one on the host, and the container's group is mounted at the root.
        for name in names:
            with contextlib.suppress(OSError, ValueError), open(name) as f:
                for line in f:
                    key, value = line.split()
                    if key == "oom_kill":
                        return int(value)
    return 0
