"""What Spark's Python workers leave out of their garbage collections."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import gc, sys, types
if {there}:
    sys.modules["tensorflow"] = types.ModuleType("tensorflow")
from tfspark.spark.garbage import freeze_imports
freeze_imports()
first = gc.get_freeze_count()
kept = [[] for _ in range(1000)]
freeze_imports()
print(first > 0, gc.get_freeze_count() == first)
"""


@pytest.mark.parametrize("there", [False, True])
def test_imports_are_frozen_once_and_not_where_models_may_be(there: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(there=there)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"{not there} True\n", done.stderr
