"""Several clusters in one Spark application, at once and one after another, leave nothing that grows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.long
def test_eight_clusters_two_at_a_time_leave_nothing_that_grows() -> None:
    command = [sys.executable, str(SCRIPT), "--times", "4", "--at-once", "2", "--warm-up", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.stdout, done.stderr[-3000:]
    *_, rounds, end = (json.loads(line) for line in done.stdout.splitlines())
    assert end["figure"] == "grown" and end["clusters"] == 8, end
    assert (end["what"], end["failures"], end["left"]) == ({}, [], []), done.stdout
    assert (rounds["node_processes"], rounds["node_files"], rounds["active_jobs"]) == (0, 0, 0)
    assert done.returncode == 0
