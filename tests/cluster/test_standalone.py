"""A cluster on a real standalone master and workers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from standalone import Standalone, environment

PROGRAM = Path(__file__).parents[1] / "programs" / "run_one.py"


def test_a_cluster_on_a_standalone_master(standalone: Standalone) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), standalone.url],
        cwd=PROGRAM.parent,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert json.loads(done.stdout.strip().splitlines()[-1]) == {"result": 42}, done.stderr[-3000:]
