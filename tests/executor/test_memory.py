"""How much memory a node takes for rows that wait."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfspark.executor import memory

pytestmark = pytest.mark.unit

GROUPS = {2: "0::/pod/main\n", 1: "4:cpu,cpuacct:/pod/main\n5:memory:/pod/main\n1:name=systemd:/x\n"}
NO_LIMIT = {2: "max", 1: "9223372036854771712"}


def write_limit(mounted: Path, version: int, group: str, limit: str) -> None:
    directory = (mounted / "memory" if version == 1 else mounted) / group
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ("memory.limit_in_bytes" if version == 1 else "memory.max")).write_text(f"{limit}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_the_smallest_limit_counts(tmp_path: Path, version: int) -> None:
    assert memory.limit_of(GROUPS[version], tmp_path) is None
    write_limit(tmp_path, version, "pod/main", NO_LIMIT[version])
    assert memory.limit_of(GROUPS[version], tmp_path) is None
    write_limit(tmp_path, version, "pod", str(4 << 30))
    assert memory.limit_of(GROUPS[version], tmp_path) == 4 << 30
    # A container's own group is mounted at the root.
    write_limit(tmp_path, version, "", str(2 << 30))
    assert memory.limit_of(GROUPS[version].replace("pod/main", "on/the/host"), tmp_path) == 2 << 30


@pytest.mark.parametrize(
    ("available", "counted", "nodes", "expected"),
    [
        (64 << 30, False, 2, 4 << 30),
        (64 << 30, False, 1000, memory.LEAST_BYTES),
        (64 << 30, True, 1, memory.LEAST_BYTES),
        (1 << 30, False, 1, memory.LEAST_BYTES),
        (None, False, 1, memory.LEAST_BYTES),
    ],
)
def test_a_machine_with_plenty_gives_some(
    monkeypatch: pytest.MonkeyPatch, available: int | None, counted: bool, nodes: int, expected: int
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda path: available)
    monkeypatch.setattr(memory, "limit_of", lambda groups, mounted: None)
    monkeypatch.delenv("CONTAINER_ID", raising=False)
    if counted:
        monkeypatch.setenv("CONTAINER_ID", "container_1700000000000_0001_01_000002")
    assert memory.spool_memory(None, nodes) == expected
    assert memory.spool_memory(0, nodes) == 0, "what the user says counts"


def test_linux_says_what_is_available(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  8000 kB\nMemAvailable:  1000 kB\n")
    assert memory.available_memory(tmp_path / "meminfo") == 1000 << 10
    assert memory.available_memory(tmp_path / "missing") is None
