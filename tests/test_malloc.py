"""Freed memory stays in a process that asks for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit

PROGRAM = """
import os, resource, sys
from tfspark.malloc import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def batch():
    return [os.urandom(75_000) for _ in range(128)]
for _ in range(3):
    batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(way: str, **env: str) -> int:
    """Return the number of new pages that five equal batches of strings need after the first ones."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, way], env={**os.environ, **env}, stdout=subprocess.PIPE, text=True, check=True
    )
    return int(ran.stdout)


def test_batches_use_the_memory_of_earlier_ones() -> None:
    assert page_faults("keep") < page_faults("default") / 10


def test_the_limits_of_the_environment_stay() -> None:
    limits = {"MALLOC_TRIM_THRESHOLD_": str(128 << 10), "MALLOC_TOP_PAD_": str(128 << 10)}
    assert page_faults("keep", **limits) > 5 * page_faults("keep")
