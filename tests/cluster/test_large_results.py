"""What ``main`` returns, in parts: the driver holds it once, when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import tfspark
from tfspark.control.results import ResultStore
from tfspark.spec import NodeId

RESULT_BYTES = 300 << 20
NODE = NodeId("worker", 0)


@pytest.mark.unit
def test_parts_that_come_twice_count_once_and_gaps_are_refused() -> None:
    store, body = ResultStore(), cloudpickle.dumps(list(range(100)))
    for offset in (0, 0, 10, 0, 10, 20):
        store.write(NODE, offset, body[offset : offset + 10] if offset < 20 else body[offset:])
    with pytest.raises(ValueError, match="begins at 1000, but"):
        store.write(NODE, 1000, b"x")
    with pytest.raises(ValueError, match=f"must have 5 bytes, got {len(body)}"):
        store.complete(NODE, 5)
    assert NODE not in store
    store.complete(NODE, len(body))
    with pytest.raises(ValueError, match="already complete"):
        store.write(NODE, 0, body)
    assert NODE in store
    assert store.load(NODE) == list(range(100))
    assert store.load(NODE) is store.load(NODE)


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def test_a_large_result_takes_little_memory_until_it_is_asked_for(spark: Any) -> None:
    def main(nbytes: int, ctx: Any) -> Any:
        import numpy as np

        return np.arange(nbytes // 8)

    with tfspark.Cluster(spark, main, RESULT_BYTES, workers=1, progress=False) as cluster:
        Path("/proc/self/clear_refs").write_text("5")
        before = peak_bytes()
        coordinator = cluster._require_started().coordinator
        assert coordinator.wait(lambda: NODE in coordinator.results, 120)
        grown = peak_bytes() - before
        result = cluster.wait()["worker", 0]
    print(f"peak grew by {grown / 2**20:.0f} MiB for a result of {RESULT_BYTES / 2**20:.0f} MiB")
    assert grown < 100 << 20
    assert result.nbytes == RESULT_BYTES
    assert (result[[0, -1]] == [0, RESULT_BYTES // 8 - 1]).all()
    assert cluster.results["worker", 0] is result
