"""Every row reaches one worker once per epoch, also when feeding tasks die and run again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parent / "programs" / "feed_with_faults.py"


def test_tasks_that_die_half_way_neither_lose_nor_double_a_row() -> None:
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    outcome = json.loads(done.stdout.strip().splitlines()[-1])
    assert outcome["rows"] == 40_000
    for epoch in range(2):
        assert sorted(i for worker in outcome["read"] for i in worker[epoch]) == list(range(40_000))
    assert all(len(worker[0]) >= 10_000 for worker in outcome["read"])
