"""Rows that nobody reads are dropped, and a warning says how many."""

from __future__ import annotations

from typing import Any

import pytest

import tfspark
from tfspark.errors import ClusterStopped
from tfspark.feeding.unread import UnreadRows
from tfspark.spec import NodeId, plan_nodes, server_nodes

FIRST, SECOND = NodeId("worker", 0), NodeId("worker", 1)


@pytest.mark.unit
def test_what_was_fed_and_not_read_is_counted_once_for_each_epoch() -> None:
    unread = UnreadRows(plan_nodes(2), ())
    assert unread.fed({FIRST: 100, SECOND: 50}, 3) == []
    assert unread.fed({FIRST: 10, SECOND: 0}, 1) == []
    assert unread.fed({FIRST: 7, SECOND: 7}, 0) == [], "rows with a name may stay unread"
    assert unread.returned(SECOND, 150, False) is None
    warning = unread.returned(FIRST, 100, False)
    assert warning is not None and "worker 0 returned from main" in warning and ": 210 of 310 rows" in warning
    assert "up to 210 of 310" in str(unread.returned(FIRST, 100, True))
    (later,) = unread.fed({FIRST: 0, SECOND: 6}, 2)
    assert "worker 1 had returned from main before the feed ended: 12 rows" in later


@pytest.mark.unit
def test_a_chief_reads_for_the_workers_of_parameter_servers() -> None:
    nodes = plan_nodes(2, ps=1)
    unread = UnreadRows(nodes, server_nodes(nodes))
    unread.fed({FIRST: 10, SECOND: 20}, 2)
    assert "chief 0" in str(unread.returned(NodeId("chief", 0), 30, False))
    assert unread.returned(NodeId("chief", 0), 60, False) is None


def main(args: dict[str, Any], ctx: Any) -> int:
    """Read as many epochs as asked for, and perhaps begin another one."""
    rows = 0
    for _ in range(args.get("epochs", 0)):
        rows += sum(len(batch["id"]) for batch in ctx.dataset(10))
    if args.get("begins"):
        next(iter(ctx.dataset(10)))
    if args.get("waits"):
        # All that is fed has arrived, but none of it is asked for.
        ctx._link.spool.wait_for_feed()
        ctx._link.spool._changed.acquire()
        ctx._link.spool._changed.wait_for(lambda: ctx._link.spool.last_feed.ended, 60)
        ctx._link.spool._changed.release()
    return rows


@pytest.mark.parametrize(
    ("args", "epochs", "warning"),
    [
        ({"waits": True}, 1, ": 40 of 40 rows were dropped"),
        ({"epochs": 1}, 3, ": 80 of 120 rows were dropped"),
        ({"epochs": 1, "begins": True}, 3, ": up to 80 of 120 rows were dropped"),
        ({"epochs": 2}, 2, None),
    ],
)
def test_main_that_leaves_rows_unread_gets_a_warning(
    spark: Any, caplog: pytest.LogCaptureFixture, args: dict[str, Any], epochs: int, warning: str | None
) -> None:
    with tfspark.Cluster(spark, main, args, workers=1) as cluster:
        cluster.feed(spark.range(5), name="validation")
        cluster.feed(spark.range(0, 40, 1, 2), epochs=epochs)
    assert cluster.results["worker", 0] == 40 * args.get("epochs", 0)
    told = [r.getMessage() for r in caplog.records if "dropped" in r.getMessage()]
    assert [warning in t for t in told if warning] == ([True] if warning else []), told
    assert bool(told) == bool(warning)


def test_feeding_after_every_main_has_returned_gets_a_warning(spark: Any, caplog: pytest.LogCaptureFixture) -> None:
    with tfspark.Cluster(spark, lambda args, ctx: 5, workers=1) as cluster:
        coordinator = cluster._gang.coordinator  # type: ignore[union-attr]
        assert coordinator.wait(lambda: coordinator.lifecycle.concluded, 60)
        for data in (spark.range(30), spark.sparkContext.range(30), spark.range(30).toPandas()):
            caplog.clear()
            report = cluster.feed(data, epochs=2)
            assert report.rows == 0
            assert "main returned on every node before this feed began: its 60 rows were dropped" in caplog.text
        cluster.feed(iter([spark.range(30)]))
    assert cluster.results["worker", 0] == 5
    with pytest.raises(ClusterStopped, match=r"Feed before wait\(\)"):
        cluster.feed(spark.range(30))


def test_every_main_that_returns_during_a_feed_ends_it_with_a_warning(
    spark: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def return_at_once(args: Any, ctx: Any) -> str:
        ctx._link.spool.wait_for_feed()
        return "returned"

    # Spark would be busy for days.
    rows = spark.range(0, 10**15, 1, 4).where("id % 1000000007 = 1")
    with tfspark.Cluster(spark, return_at_once, workers=1) as cluster:
        assert cluster.feed(rows).rows == 0
    assert cluster.results["worker", 0] == "returned"
    assert "main returned on every node before all rows were fed: 0 rows that had arrived were dropped" in caplog.text
    assert "the rest was not sent" in caplog.text
