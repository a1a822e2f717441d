"""Where tfspark's package does better than the original, and what carries it: install, roles, the inbox, the hooks."""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pyspark.errors import PySparkException

import tfspark
import tfspark.compat
from tfspark.cli import main as tfspark_command
from tfspark.compat import migrate
from tfspark.compat.tensorflowonspark import TFCluster, TFManager, TFNode, _members, dfutil, reservation
from tfspark.compat.tensorflowonspark._inbox import Inbox
from tfspark.errors import ConfigurationError, FeedError, NodeFailed, PredictError, ResourceError, SchemaError


@pytest.fixture
def unimported() -> Iterator[None]:
    """No tensorflowonspark, before and after."""
    yield
    sys.meta_path[:] = [f for f in sys.meta_path if f is not tfspark.compat._alias]
    for name in [m for m in sys.modules if m.partition(".")[0] == "tensorflowonspark"]:
        del sys.modules[name]


# --- install


def test_an_installed_name_is_the_same_module(unimported: None) -> None:
    tfspark.compat.install()
    tfspark.compat.install()
    for name in ("TFCluster", "TFNode", "marker", "compat"):
        own = importlib.import_module(f"tfspark.compat.tensorflowonspark.{name}")
        assert importlib.import_module(f"tensorflowonspark.{name}") is own
        assert own.__spec__ is not None and own.__spec__.name == own.__name__
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("tensorflowonspark.nothing")


def test_an_original_that_was_imported_is_not_replaced(unimported: None) -> None:
    original = ModuleType("tensorflowonspark")
    original.__file__ = "/somewhere/tensorflowonspark/__init__.py"
    sys.modules["tensorflowonspark"] = original
    with pytest.raises(ConfigurationError, match="imported before, from /somewhere"):
        tfspark.compat.install()
    assert sys.modules["tensorflowonspark"] is original


def test_calls_say_what_they_have_become(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match=r"TFManager\.start: with tfspark, ctx\.rows\(\)") as said:
        TFManager.start(b"", [])
    assert said[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="tfspark.Cluster waits"):
        reservation.Server(1)
    with pytest.warns(DeprecationWarning, match=r'df.write.format\("tfrecord"\)'):
        dfutil.toTFExample([("x", "int")])


def test_values_without_a_place_are_refused_and_nulls_left_out() -> None:
    import tensorflow as tf
    from pyspark.sql import Row

    with pytest.raises(SchemaError, match="'m' has type map<string,int>"):
        dfutil.toTFExample([("m", "map<string,int>")])
    ((data, _),) = dfutil.toTFExample([("x", "int"), ("s", "array<string>")])(iter([Row(x=None, s=["a", "b"])]))
    example = tf.train.Example.FromString(bytes(data))
    assert list(example.features.feature) == ["s"]
    assert dfutil.fromTFExample([(data, None)])[0].s == ["a", "b"]
    assert dfutil.infer_schema(example).simpleString() == "struct<s:array<string>>"


# --- roles


def test_nodes_are_numbered_as_ever() -> None:
    members = _members.plan_members(6, 2, "master", True)
    assert [(m.executor_id, m.job_name, m.task_index) for m in members] == [
        (0, "ps", 0), (1, "ps", 1), (2, "master", 0), (3, "evaluator", 0), (4, "worker", 0), (5, "worker", 1),
    ]  # fmt: skip
    assert [m.in_background for m in members] == [True, True, False, True, False, False]
    spec = _members.cluster_spec(members, [f"h:{i}" for i in range(6)])
    assert spec == {"ps": ["h:0", "h:1"], "master": ["h:2"], "evaluator": ["h:3"], "worker": ["h:4", "h:5"]}
    config = json.loads(str(_members.tf_config(members[2], spec)))
    assert config["cluster"] == {"ps": ["h:0", "h:1"], "chief": ["h:2"], "worker": ["h:4", "h:5"]}
    assert config["task"] == {"type": "chief", "index": 0}
    assert _members.tf_config(members[4], {"worker": ["h:4", "h:5"]}) is None


@pytest.mark.parametrize("counts", [(1, 1), (1, 2), (0, 0), (2, 1, "chief", True), (2, -1)])
def test_nodes_that_do_not_fit_are_refused(counts: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigurationError, match="executors"):
        _members.plan_members(*counts)


# --- the inbox


def test_batches_run_across_fed_chunks_and_end_short() -> None:
    inbox = Inbox(sources=1)
    inbox.deliver([1, 2, 3])
    inbox.deliver([4])
    inbox.end()
    assert [inbox.take(2), inbox.take(2), inbox.ended] == [[1, 2], [3, 4], False]
    assert [inbox.take(2), inbox.ended, inbox.take(2)] == [[], True, []]


def test_fed_rows_are_held_back_until_main_takes_them() -> None:
    inbox = Inbox(sources=1)
    with ThreadPoolExecutor(1) as pool:
        sending = [pool.submit(inbox.deliver, [i]) for i in range(4)]
        assert inbox.take(4) == [0, 1, 2, 3]
        assert all(s.result(10) is None for s in sending)


def test_each_question_gets_its_own_results_in_order() -> None:
    inbox = Inbox()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(inbox.ask, [1, 2, 3])
        assert inbox.take(2) == [1, 2]
        second = pool.submit(inbox.ask, [4, 5])
        # Rows of one question never share a batch with those of another.
        assert inbox.take(9) == [3] and inbox.take(9) == [4, 5]
        inbox.answer("abc")
        assert first.result(10) == ["a", "b", "c"]
        inbox.answer("d")
        inbox.answer("e")
        assert second.result(10) == ["d", "e"]
    with pytest.raises(PredictError, match="more results than"):
        inbox.answer("f")


def test_a_question_without_enough_results_fails() -> None:
    inbox = Inbox()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(inbox.ask, [1, 2])
        assert inbox.take(5) == [1, 2]
        inbox.answer(["one"])
        inbox.close("has returned")
        with pytest.raises(PredictError, match="map_fun has returned with 1 results for 2 rows"):
            asked.result(10)
    with pytest.raises(PredictError, match="0 results for 1 rows"):
        inbox.ask([3])


def test_after_closing_rows_are_dropped_and_an_error_wakes_everyone() -> None:
    inbox = Inbox()
    inbox.deliver([1])
    inbox.close("called terminate()")
    for i in range(5):
        inbox.deliver([i])
    assert inbox.take(3) == [] and inbox.ended
    failing = Inbox()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(failing.take, 1), pool.submit(failing.ask, [])]
        failing.fail(FeedError("lost"))
        with pytest.raises(FeedError, match="lost"):
            waiting[0].result(10)


def test_a_node_without_a_feed_says_so() -> None:
    ctx = importlib.import_module("tfspark.compat.tensorflowonspark.TFSparkNode").TFNodeContext()
    with pytest.raises(ConfigurationError, match="fed nothing"):
        ctx.get_data_feed()
    with pytest.raises(ConfigurationError, match=r"Use ctx\.get_data_feed"):
        TFNode.next_batch(None, 1)


# --- the hooks in tfspark itself


def test_any_objects_are_fed_to_chosen_workers_and_these_are_awaited(spark: Any) -> None:
    class Own:
        def __init__(self, x: int) -> None:
            self.x = x

    def main(args: Any, ctx: Any) -> Any:
        if ctx.index == 0:
            pause = threading.Event()
            while not ctx.stopping:
                pause.wait(0.05)
            return "stopped"
        return [getattr(row, "x", row) for row in ctx.rows()]

    rows = [1, "two", (3.0, [4]), None, {"five": b"6"}]
    rdd = spark.sparkContext.parallelize(rows, 2)
    cluster = tfspark.Cluster(spark, main, workers=2, strategy="none").start()
    with pytest.raises(ConfigurationError, match=r"workers=\[2\]: there are \[0, 1\]"):
        cluster.feed(rdd, workers=[2])
    with pytest.raises(ConfigurationError, match="pickled=True is for RDDs"):
        cluster.feed(spark.range(3), pickled=True)
    report = cluster.feed(rdd, 2, pickled=True, workers=[1])
    assert report.rows == 5
    cluster.feed(spark.sparkContext.parallelize([7], 1).map(Own), pickled=True, workers=[1])
    results = cluster.wait(workers=[1])
    assert list(results) == [("worker", 1)]
    found = results["worker", 1]
    assert found[10:] == [7] and found[:5] == found[5:10]
    assert sorted(map(str, found[:5])) == sorted(map(str, rows))
    cluster.stop()


# --- failures


def test_a_failure_names_the_node_and_spark_goes_on(spark: Any) -> None:
    def main(args: Any, ctx: Any) -> None:
        feed = ctx.get_data_feed()
        while not feed.should_stop():
            if 70 in feed.next_batch(10):
                raise ValueError("no such row")

    sc = spark.sparkContext
    cluster = TFCluster.run(sc, main, {}, 1, 0, input_mode=TFCluster.InputMode.SPARK)
    with pytest.raises(ConfigurationError, match="no queue 'other'"):
        cluster.train(sc.parallelize([1]), qname="other")
    cluster.train(sc.parallelize([], 2))
    with pytest.raises(NodeFailed, match="ValueError: no such row"):
        cluster.train(sc.parallelize(range(100), 2), 1)
        cluster.shutdown()
    assert "no such row" in TFCluster.tf_status["error"]
    assert sc.parallelize(range(3)).sum() == 3


def test_missing_results_fail_the_inference(spark: Any) -> None:
    def main(args: Any, ctx: Any) -> None:
        feed = ctx.get_data_feed(train_mode=False)
        feed.batch_results(feed.next_batch(10)[:1])

    cluster = TFCluster.run(spark.sparkContext, main, {}, 1, 0, input_mode=TFCluster.InputMode.SPARK)
    with pytest.raises(PySparkException, match=r"1 results for 2 rows|gave no answer"):
        cluster.inference(spark.sparkContext.parallelize([1, 2], 1)).collect()
    cluster.shutdown()


def test_feeding_needs_a_slot_beside_the_nodes(spark: Any) -> None:
    with pytest.raises(ResourceError, match=r"5 are needed: 4 for the nodes.* and 1 to feed them"):
        TFCluster.run(spark.sparkContext, print, {}, 4, 0, input_mode=TFCluster.InputMode.SPARK)


def test_a_main_that_does_not_return_is_ended_after_the_timeout(spark: Any) -> None:
    def main(args: Any, ctx: Any) -> None:
        threading.Event().wait()

    cluster = TFCluster.run(spark.sparkContext, main, {}, 1, 0)
    with pytest.raises(TimeoutError, match="has not returned"):
        cluster.shutdown(timeout=1)
    assert spark.range(3).count() == 3


# --- tfspark migrate

PROGRAM = """\
import tensorflowonspark.dfutil
import tensorflowonspark as tfos
from tensorflowonspark import TFCluster as tc, TFNode
from tensorflowonspark.pipeline import TFEstimator
from tensorflowonspark.TFCluster import InputMode

def main_fun(args, ctx):
    feed = TFNode.DataFeed(ctx.mgr)
    return feed.next_batch(3)

cluster = tc.run(sc, main_fun, args, 2, 0,
                 input_mode=InputMode.SPARK)
cluster.train(rdd)
tensorflowonspark.dfutil.saveAsTFRecords(df, path)
tfos.TFParallel.run(sc, main_fun, args, 2)
TFEstimator(main_fun, args)
unrelated.run(sc)
"""


def test_every_way_to_import_and_call_is_found() -> None:
    found = [(f.line, f.use) for f in migrate.find(PROGRAM)]
    assert [f for f in found if not f[1].startswith("import of")] == [
        (8, "TFNode.DataFeed(...)"),
        (8, "ctx.mgr"),
        (9, "feed.next_batch(...)"),
        (11, "TFCluster.run(...)"),
        (12, "input_mode="),
        (13, "cluster.train(...)"),
        (14, "dfutil.saveAsTFRecords(...)"),
        (15, "TFParallel.run(...)"),
        (16, "pipeline.TFEstimator(...)"),
    ]
    assert [line for line, use in found if use.startswith("import of")] == [1, 2, 3, 4, 5]
    assert migrate.find("import keras\nmodel.train(x)\nctx.job_name\n") == []


def test_every_name_in_the_report_exists() -> None:
    for name in migrate.CALLS:
        module, _, function = name.partition(".")
        assert hasattr(importlib.import_module(f"tfspark.compat.tensorflowonspark.{module}"), function)


@pytest.mark.filterwarnings("ignore")
def test_the_command_reports_files_and_directories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "a" / "program.py"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    assert tfspark_command(["migrate", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"{program}:13: cluster.train(...) -> cluster.feed(df, epochs=n)" in out
    assert "14 uses of tensorflowonspark found" in out
    assert program.read_text() == PROGRAM
    for bad in (["nowhere.py"], [str(tmp_path / "bad.py")]):
        (tmp_path / "bad.py").write_text("def (")
        assert tfspark_command(["migrate", *bad]) == 1
    assert "cannot be read as Python" in capsys.readouterr().err


def test_an_export_replaces_a_saved_model_and_nothing_else(tmp_path: Path) -> None:
    import keras

    from tfspark.compat.tensorflowonspark import compat
    from tfspark.errors import OutputError

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    (tmp_path / "notes.txt").write_text("a user's")
    with pytest.raises(OutputError, match="something else than a SavedModel"):
        compat.export_saved_model(model, str(tmp_path), True)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    for _ in range(2):
        compat.export_saved_model(model, str(tmp_path / "model"), True)
    assert (tmp_path / "model" / "saved_model.pb").exists()
