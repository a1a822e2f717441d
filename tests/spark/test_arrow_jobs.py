"""Jobs that hand Arrow batches to Python tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tfspark.spark.arrow_jobs import map_in_arrow


def counter() -> Any:
    """Return a function of its own, which travels to executors as it is."""

    def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pydict({"n": [sum(b.num_rows for b in batches)]})

    return count


def test_a_job_answers_for_each_partition(spark: Any) -> None:
    found = map_in_arrow(spark.range(0, 10, 1, 2), counter(), "n long", barrier=True).collect()
    assert sorted(r.n for r in found) == [5, 5]


@pytest.mark.long
def test_tasks_get_the_resources_of_a_profile_in_the_way_of_spark_3_5() -> None:
    program = Path(__file__).parents[1] / "programs" / "with_profile.py"
    ran = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["tasks"] == [[5, 2, True]] * 2 and not found["move"]
    assert found["nodes"] == 2
    assert found["error"].startswith("Spark has 2 task slot(s) of 2 CPU(s), but 3 are needed")
