"""Every row reaches one worker once per epoch, whatever dies while it is fed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tfspark
from tfspark.errors import FeedError

PROGRAM = Path(__file__).parents[1] / "programs" / "feed_with_faults.py"


def test_whatever_dies_no_row_is_lost_or_doubled() -> None:
    """Tasks, Python workers and executors; half-way, and between commit and acknowledgement; with speculation."""
    done = subprocess.run([sys.executable, str(PROGRAM), "--runs", "6"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    outcome = json.loads(done.stdout.strip().splitlines()[-1])
    assert outcome["wrong"] == 0, done.stderr[-4000:]
    assert outcome["runs"] == 6 and outcome["epochs"] >= 6 and outcome["rows"] > 20_000
    assert outcome["partitions_of_later_attempts"] > 5, "the faults have had their effect"


def read_ids(args: Any, ctx: Any) -> list[list[list[int]]]:
    """Return the ids of every feed's two epochs; `args` says of each feed whether it is shuffled."""
    return [
        [[int(i) for batch in dataset for i in batch["id"]] for _ in range(2)]
        for dataset in (ctx.dataset(64, shuffle=shuffle) for shuffle in args)
    ]


def read(spark: Any, *feeds: tuple[bool, dict[str, Any]]) -> list[dict[Any, list[list[int]]]]:
    """Return what two workers read of each feed; shuffled or not, and with what options."""
    with tfspark.Cluster(spark, read_ids, [shuffle for shuffle, _ in feeds], workers=2) as cluster:
        for _, options in feeds:
            cluster.feed(spark.range(0, 5000, 1, 12), epochs=2, **options)
    found = [{worker: r[i] for worker, r in cluster.results.items()} for i in range(len(feeds))]
    for by_worker in found:
        for epoch in range(2):
            assert sorted(i for epochs in by_worker.values() for i in epochs[epoch]) == list(range(5000))
    return found


def test_a_seed_makes_a_feed_reproducible(spark: Any) -> None:
    first, other = read(spark, (True, {"seed": 1}), (True, {"seed": 2}))
    second, plain = read(spark, (True, {"seed": 1, "cache": None}), (False, {"seed": 1}))
    for worker, epochs in first.items():
        assert epochs[0] == second[worker][0], "the same seed, the same rows in the same order"
        assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1]), "a new order each epoch"
        assert sorted(epochs[0]) == sorted(plain[worker][0]), "in a later feed, too"
        assert sorted(plain[worker][0]) != sorted(other[worker][0])
    for epochs in plain.values():
        assert epochs[0] == epochs[1] == sorted(epochs[0])


def test_data_that_falls_apart_differently_when_recomputed_is_refused(spark: Any, monkeypatch: Any) -> None:
    from tfspark.feeding import ledger, sources

    # What Spark says of a repartition by random values whose shuffle files were lost with an executor.
    monkeypatch.setattr(sources, "rows_can_move", lambda data: True)
    assign = ledger.FeedLedger.assign

    def twice(self: Any, partition: int, upload: str, host: str, attempt: int, away: Any) -> Any:
        if self.committed:
            done = next(p for t in self.targets for p in self.partitions_of(t.node))
            assign(self, done, "again", host, 0, away)
        return assign(self, partition, upload, host, attempt, away)

    monkeypatch.setattr(ledger.FeedLedger, "assign", twice)
    with (
        pytest.raises(FeedError, match=r"rows can move to other partitions"),
        tfspark.Cluster(spark, read_ids, [False], workers=1) as cluster,
    ):
        cluster.feed(spark.range(0, 100, 1, 8))


def test_sparks_own_word_for_partitions_that_do_not_repeat(spark: Any) -> None:
    from tfspark.spark.internals import rows_can_move

    setting = "spark.sql.execution.sortBeforeRepartition"
    for fixed in (True, False):
        spark.conf.set(setting, str(fixed).lower())
        try:
            df = spark.range(100).selectExpr("id % 10 as k").groupBy("k").count().repartition(3)
            df.collect()
            assert rows_can_move(df) is not fixed
        finally:
            spark.conf.unset(setting)


def test_workers_get_equally_many_rows_if_partitions_are_small(spark: Any) -> None:
    sizes = [(7 * i) % 40 * 20 + 100 for i in range(80)]
    wanted = " or ".join(f"(id >= {i * 1000} and id < {i * 1000 + n})" for i, n in enumerate(sizes))
    df = spark.range(0, 80_000, 1, 80).where(wanted)
    with tfspark.Cluster(spark, lambda args, ctx: [None for _ in ctx.dataset(64)], workers=2) as cluster:
        report = cluster.feed(df)
    assert report.rows == sum(sizes)
    share = report.rows / 2
    assert all(abs(rows - share) < 0.05 * share for rows in report.rows_by_worker.values()), report


def test_a_partition_whose_source_fails_in_the_middle_is_fed_whole() -> None:
    program = PROGRAM.with_name("flaky_source.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert len(found) == 4 and all(rows == [400_000, 400_000] for rows in found.values()), found


def test_a_null_ends_the_job_at_once_where_spark_would_try_it_four_times(tmp_path: Path) -> None:
    program = PROGRAM.with_name("null_at_once.py")
    command = [sys.executable, str(program), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    (fed, of_feed), (predicted, of_predict) = json.loads(done.stdout.strip().splitlines()[-1])
    assert "Column 'x' holds 1 null(s) in 10 rows (first: row 4" in fed
    assert of_feed == ["0-0"]
    assert "tfspark.errors.SchemaError: Column 'x' holds 1 null(s) in 10 rows" in predicted
    assert of_predict in (["0-0"], ["0-0", "0-1"])
