"""Count what a Spark application holds: processes, found by a mark in their environment, files, threads and ports."""

from __future__ import annotations

import os
import threading
import uuid
from pathlib import Path
from typing import Any

MARK = "TFSPARK_BENCHMARK_MARK"


def mark() -> None:
    """Mark this process and all processes that it starts from now on."""
    os.environ[MARK] = uuid.uuid4().hex


def marked() -> dict[int, str]:
    """Return the command lines, by pid, of all other living processes with the mark."""
    wanted = f"{MARK}={os.environ[MARK]}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0") and state(int(entry.name)) != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
        except OSError:
            continue
    return found


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def state(pid: int) -> str:
    """Return the state of a process as one letter."""
    return _stat(pid)[0]


def parent(pid: int) -> int:
    """Return the pid of a process's parent."""
    return int(_stat(pid)[1])


def children(pid: int) -> list[int]:
    """Return the pids of a process's children."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and parent(int(entry.name)) == pid:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def nodes() -> dict[int, str]:
    """Return the processes of clusters: the TensorFlow processes and their guardians."""
    return {pid: command for pid, command in marked().items() if "tfspark.node" in command}


def left() -> dict[int, str]:
    """Return processes left after ``spark.stop()``, except the JVM, which ends with this process, and its daemon."""
    return {p: c for p, c in marked().items() if "pyspark-shell" not in c and "pyspark.daemon" not in c}


def files(directory: str) -> list[str]:
    """Return the files of clusters under Spark's local directory."""
    return [str(p) for p in Path(directory).rglob("*") if "tfspark-" in str(p.relative_to(directory)) and p.is_file()]


def threads() -> list[str]:
    """Return the names of this process's threads that belong to clusters."""
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("tfspark"))


def open_files(pid: int | None = None) -> int:
    """Return the number of open files and sockets of a process."""
    return len(os.listdir(f"/proc/{pid or os.getpid()}/fd"))


def native_threads(pid: int | None = None) -> int:
    """Return the number of a process's threads."""
    return len(os.listdir(f"/proc/{pid or os.getpid()}/task"))


def resident_mb(pid: int | None = None) -> float:
    """Return a process's resident memory in MB."""
    pages = int(Path(f"/proc/{pid or os.getpid()}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def listening(pid: int | None = None) -> int:
    """Return the number of TCP ports on which a process listens."""
    pid = pid or os.getpid()
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(fd)
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = 0
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            found += fields[3] == "0A" and fields[9] in inodes
    return found


def of_jvm(spark: Any) -> int:
    """Return the pid of the driver's JVM."""
    return int(spark._jvm.java.lang.ProcessHandle.current().pid())
