"""A cluster on a real standalone master and workers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from standalone import Standalone, environment

PROGRAM = Path(__file__).parents[1] / "programs" / "run_one.py"


def outcome_of(standalone: Standalone, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), standalone.url, *arguments],
        cwd=PROGRAM.parent,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    outcome: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return outcome


def test_a_cluster_on_a_standalone_master(standalone: Standalone) -> None:
    assert outcome_of(standalone) == {"result": 42}


@pytest.mark.parametrize(
    ("argument", "error", "name"),
    [
        ("checkpoint_relative", "ConfigurationError", "checkpoint_dir"),
        ("export_relative", "NodeFailed", "The directory of ctx.export"),
    ],
)
def test_a_relative_path_is_refused_on_a_cluster(standalone: Standalone, argument: str, error: str, name: str) -> None:
    outcome = outcome_of(standalone, argument)
    assert outcome["error"] == error
    assert f"{name} must be an absolute path or a URI" in outcome["message"].splitlines()[0]
