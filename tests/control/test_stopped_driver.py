"""A driver that stands still for a while, as after Ctrl-Z or on a machine that was paused."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from waiting import eventually

PROGRAM = Path(__file__).parents[1] / "programs" / "stopped_driver.py"
ROWS = 800


@pytest.mark.parametrize(
    ("seconds", "epochs", "at_step"),
    [
        # Longer than a report, a commit or an assignment may take; it begins while rows are being fed.
        pytest.param(16.0, 14, 1, id="16"),
        pytest.param(60.0, 60, 150, id="60", marks=[pytest.mark.alone, pytest.mark.long]),
    ],
)
def test_a_stopped_driver_does_no_harm(tmp_path: Path, seconds: float, epochs: int, at_step: int) -> None:
    arguments = [str(tmp_path), str(ROWS), "1.0", str(epochs)]
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments],
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "errors").open("w"),
        text=True,
        env={**os.environ, "PYSPARK_PYTHON": sys.executable},
    )

    def steps() -> list[int]:
        return [int(p.read_text() or 0) for p in sorted(tmp_path.glob("worker-*"))]

    try:
        assert process.stdout is not None
        json.loads(process.stdout.readline())
        assert eventually(lambda: len(steps()) == 2 and min(steps()) >= at_step, 120), (tmp_path / "errors").read_text()
        os.kill(process.pid, signal.SIGSTOP)
        stopped_at, began = steps(), time.monotonic()
        try:
            # They go on meanwhile, well after the first calls to the driver have timed out.
            assert eventually(lambda: time.monotonic() - began > seconds, seconds + 10)
            meanwhile = steps()
        finally:
            os.kill(process.pid, signal.SIGCONT)
        output, _ = process.communicate(timeout=180)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, (tmp_path / "errors").read_text()
    found = json.loads(output.splitlines()[-1])
    assert all(after > before for before, after in zip(stopped_at, meanwhile, strict=True))
    assert found["rows"] == ROWS
    by_epoch = [sorted(itertools.chain.from_iterable(ids)) for ids in zip(*found["read"], strict=True)]
    assert by_epoch == [list(range(ROWS))] * epochs
