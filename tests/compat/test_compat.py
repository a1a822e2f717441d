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
        with pytest.raises(PredictError, match="map_fun has returned, with 1 results for 2 rows"):
            asked.result(10)
    with pytest.raises(PredictError, match="0 results for 1 rows"):
        inbox.ask([3])


def test_the_thread_that_answers_cannot_ask_for_more_while_it_owes_results() -> None:
    inbox = Inbox()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(inbox.ask, [1, 2])
        assert inbox.take(5) == [1, 2]
        inbox.answer(["one"])
        with pytest.raises(PredictError, match="asked for more rows, with 1 results for 2 rows"):
            inbox.take(5)
        with pytest.raises(PredictError, match="asked for more rows, with 1 results for 2 rows"):
            asked.result(10)


def test_a_thread_may_take_rows_ahead_of_the_one_that_answers() -> None:
    inbox = Inbox()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(inbox.ask, [1, 2])
        assert pool.submit(inbox.take, 5).result(10) == [1, 2]
        ahead = pool.submit(inbox.take, 5)
        inbox.answer(["one"])
        second = pool.submit(inbox.ask, [3])
        assert ahead.result(10) == [3]
        inbox.answer(["two", "three"])
        assert (first.result(10), second.result(10)) == (["one", "two"], ["three"])


def test_results_for_rows_that_were_not_taken_are_refused() -> None:
    inbox = Inbox()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(inbox.ask, [1, 2])
        assert inbox.take(1) == [1]
        with pytest.raises(PredictError, match="more results than"):
            inbox.answer(["one", "two"])
        inbox.close("has returned")
        with pytest.raises(PredictError, match="has returned, with 1 results for 2 rows"):
            asked.result(10)


def test_a_question_waits_no_longer_than_its_timeout_for_anything_to_move() -> None:
    inbox = Inbox()
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(inbox.ask, [1, 2], 0.3)
        assert inbox.take(1) == [1]
        with pytest.raises(PredictError, match=r"no progress in feed_timeout=0\.3 seconds, with 0 results for 2 rows"):
            asked.result(10)
        # Results that come too late are for nobody.
        with pytest.raises(PredictError, match="feed_timeout"):
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
    with pytest.raises(ConfigurationError, match="This node gets no rows"):
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
    with pytest.raises(ConfigurationError, match=r"unknown workers \[2\]; the cluster has \[0, 1\]"):
        cluster.feed(rdd, workers=[2])
    with pytest.raises(ConfigurationError, match="pickled=True works for RDDs"):
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
    with pytest.raises(ConfigurationError, match="The queue 'other' does not exist"):
        cluster.train(sc.parallelize([1]), qname="other")
    cluster.train(sc.parallelize([], 2))
    with pytest.raises(NodeFailed, match="ValueError: no such row"):
        cluster.train(sc.parallelize(range(100), 2), 1)
        cluster.shutdown()
    assert "no such row" in TFCluster.tf_status["error"]
    assert sc.parallelize(range(3)).sum() == 3


def infer(sc: Any, main: Any, rows: Any, **options: Any) -> Any:
    """Run an inference that must fail; returns what the action says, and the cluster."""
    cluster = TFCluster.run(sc, main, {}, 1, 0, input_mode=TFCluster.InputMode.SPARK)
    with pytest.raises(PySparkException) as raised:
        cluster.inference(sc.parallelize(rows, 1), **options).collect()
    return str(raised.value), cluster


def test_missing_results_fail_the_inference(spark: Any) -> None:
    def returns(args: Any, ctx: Any) -> None:
        feed = ctx.get_data_feed(train_mode=False)
        feed.batch_results(feed.next_batch(10)[:1])

    def asks_for_more(args: Any, ctx: Any) -> None:
        feed = ctx.get_data_feed(train_mode=False)
        while not feed.should_stop():
            feed.batch_results(feed.next_batch(10)[:1])

    said, cluster = infer(spark.sparkContext, returns, [1, 2])
    assert "map_fun has returned, with 1 results for 2 rows" in said
    cluster.shutdown()
    said, cluster = infer(spark.sparkContext, asks_for_more, [1, 2])
    assert "map_fun asked for more rows, with 1 results for 2 rows" in said
    with pytest.raises(NodeFailed, match="asked for more rows"):
        cluster.shutdown()


def test_an_inference_that_does_not_move_ends_after_its_feed_timeout(spark: Any) -> None:
    def main(args: Any, ctx: Any) -> None:
        feed = ctx.get_data_feed(train_mode=False)
        while not feed.should_stop():
            feed.next_batch(10)

    said, cluster = infer(spark.sparkContext, main, [1, 2, 3], feed_timeout=2)
    assert "map_fun made no progress in feed_timeout=2 seconds, with 0 results for 3 rows" in said
    with pytest.raises(NodeFailed, match="feed_timeout=2 seconds"):
        cluster.shutdown()
    with pytest.raises(ConfigurationError, match=r"feed_timeout must be > 0, got 0\."):
        TFCluster.TFCluster.inference(cluster, spark.sparkContext.parallelize([1]), feed_timeout=0)


def test_an_inference_raises_what_map_fun_raised_with_its_traceback(spark: Any) -> None:
    def at_a_row(args: Any, ctx: Any) -> None:
        feed = ctx.get_data_feed(train_mode=False)
        while not feed.should_stop():
            feed.batch_results([10 // row for row in feed.next_batch(2)])

    def at_once(args: Any, ctx: Any) -> None:
        raise OSError("no such model")

    for main, words in ((at_a_row, "ZeroDivisionError: integer"), (at_once, "OSError: no such model")):
        said, cluster = infer(spark.sparkContext, main, [2, 1, 5, 0, 3])
        assert f"map_fun failed: {words}" in said
        assert f"in {main.__name__}\n" in said
        with pytest.raises(NodeFailed, match=words):
            cluster.shutdown()


def test_a_main_that_fails_before_it_is_fed_fails_the_training(spark: Any) -> None:
    """Also on a node that gets no rows."""

    def main(args: Any, ctx: Any) -> None:
        if ctx.task_index == 1:
            raise OSError("no such directory")
        # Waits for the other one, as in a collective.
        threading.Event().wait()

    cluster = TFCluster.run(spark.sparkContext, main, {}, 2, 0, input_mode=TFCluster.InputMode.SPARK)
    with pytest.raises(NodeFailed, match=r"worker 1 .*OSError: no such directory"):
        cluster.train(spark.sparkContext.parallelize(range(100), 1), 1)
        cluster.cluster.wait(timeout=120)


def test_a_cluster_takes_the_timeouts_of_tfspark(spark: Any) -> None:
    def main(args: Any, ctx: Any) -> None:
        ctx.get_data_feed().next_batch(10)

    for name in ("stall_timeout", "hang_timeout"):
        with pytest.raises(ConfigurationError, match=f"{name} must be a number of seconds > 0"):
            TFCluster.run(spark.sparkContext, main, {}, 1, 0, **{name: -1})


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


# --- Keras on several workers


def test_checkpoints_and_backups_are_the_chiefs_and_training_resumes_from_them(spark: Any, tmp_path: Path) -> None:
    """Two workers under a MultiWorkerMirroredStrategy of the program's; the first run breaks off in its third epoch."""

    def main(args: Any, ctx: Any) -> None:
        import keras
        import numpy as np
        import tensorflow as tf

        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        rng = np.random.default_rng(ctx.executor_id)
        x = rng.normal(size=(64, 2)).astype("float32")
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        ds = tf.data.Dataset.from_tensor_slices((x, x @ [[2.0], [3.0]])).batch(32).with_options(options)
        with strategy.scope():
            model = keras.Sequential([keras.layers.Dense(1, input_shape=(2,))])
            model.compile(keras.optimizers.Adam(0.1), "mse", metrics=["mae"])
        seen: list[int] = []

        def note(epoch: int, logs: Any) -> None:
            seen.append(epoch)
            if args["break_off"] and epoch == 2:
                raise KeyError("broken off")

        here = args["directory"]
        history = model.fit(
            ds,
            validation_data=ds,
            epochs=4,
            verbose=0,
            callbacks=[
                keras.callbacks.ModelCheckpoint(f"{here}/all-{{epoch}}-{{val_loss:.1f}}.keras"),
                keras.callbacks.ModelCheckpoint(
                    Path(f"{here}/best.weights.h5"), monitor="val_mae", save_best_only=True, save_weights_only=True
                ),
                keras.callbacks.ModelCheckpoint(f"{here}/steps-{{epoch}}-{{batch}}.keras", save_freq=2),
                keras.callbacks.BackupAndRestore(f"{here}/backup"),
                keras.callbacks.LambdaCallback(on_epoch_end=note),
            ],
        )
        said = {"seen": seen, "epochs": len(history.epoch), "weights": [w.tolist() for w in model.get_weights()]}
        (Path(here) / f"{ctx.job_name}.json").write_text(json.dumps(said))

    def run(break_off: bool) -> None:
        arguments = {"directory": str(tmp_path), "break_off": break_off}
        TFCluster.run(spark.sparkContext, main, arguments, 2, 0, master_node="chief").shutdown(timeout=240)

    with pytest.raises(NodeFailed, match="broken off"):
        run(True)
    assert (tmp_path / "backup").exists() and len(list(tmp_path.glob("all-*.keras"))) == 3
    run(False)
    chief, worker = (json.loads((tmp_path / f"{job}.json").read_text()) for job in ("chief", "worker"))
    # The third epoch had been backed up before it broke off.
    assert chief["seen"] == worker["seen"] == [3] and chief["weights"] == worker["weights"]
    assert not (tmp_path / "backup").exists() and (tmp_path / "best.weights.h5").exists()
    assert len(list(tmp_path.glob("all-*.keras"))) == 4 and len(list(tmp_path.glob("steps-*.keras"))) >= 4


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


KERAS_2 = """\
import tensorflow as tf
from tensorflow import estimator, keras as k
from tensorflow.keras.callbacks import ModelCheckpoint

def main_fun(args, ctx):
    run = tf.estimator.RunConfig(args.model_dir)
    filepath = args.model_dir + "/weights-{epoch:04d}"
    tf.keras.callbacks.ModelCheckpoint(filepath=filepath, verbose=1, save_weights_only=True)
    ModelCheckpoint(f"{args.model_dir}/model-{{epoch}}")
    k.callbacks.ModelCheckpoint(args.model_dir + "/best.keras", save_best_only=True)
    ModelCheckpoint(tf.io.gfile.join(args.model_dir, "x.weights.h5"), save_weights_only=True)
    ModelCheckpoint(args.path)
    model = k.Sequential()
    model.compile(tf.keras.optimizers.Adam(lr=0.1))
    model.fit_generator(rows)
    model.save(args.export_dir, save_format="tf")
    model.save_weights(args.model_dir + "/last")
    ctx.start_cluster_server(1)
    predict(conv2d_input=image)
    stage.setOutputMapping({"dense_1": "prediction"})
"""


def test_what_keras_3_does_not_understand_must_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {(f.line, f.use): f for f in migrate.find(KERAS_2)}
    must = sorted(line for (line, _), f in found.items() if not f.runs)
    assert must == [2, 6, 8, 9, 14, 15, 16, 17]
    assert found[6, "tf.estimator"].becomes.startswith("Keras and ctx.fit")
    assert found[8, "the path of ModelCheckpoint, ...'/weights-{epoch:04d}'"].becomes.endswith("'.weights.h5'")
    assert "'.keras' or '.h5'" in next(f.becomes for (line, _), f in found.items() if line == 9)
    assert "model.export(directory)" in found[16, "save_format="].becomes
    stay = sorted(line for (line, _), f in found.items() if f.runs)
    assert stay == [12, 19, 20]
    (tmp_path / "program.py").write_text("from tensorflowonspark import TFCluster\n" + KERAS_2)
    assert tfspark_command(["migrate", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "program.py:7: must change: tf.estimator -> Keras and ctx.fit" in out
    assert "program.py:19: must change: ctx.start_cluster_server(...) -> ctx.strategy()" in out
    assert "9 must change before tfspark.compat can run the program" in out
    (tmp_path / "program.py").write_text("x = 1\n")
    assert tfspark_command(["migrate", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "No uses of tensorflowonspark found.\n"


def test_what_compat_refuses_must_change() -> None:
    program = (
        "from tensorflowonspark import TFNode, TFNothing\n"
        "from tensorflowonspark.TFCluster import InputMode, Nothing\n"
        "import tensorflowonspark.pipeline, tensorflowonspark.nothing\n"
        "def main(args, ctx):\n"
        "    ctx.mgr.get_queue('control')\n"
        "    TFNode.next_batch(ctx.mgr, 3)\n"
        "    the_model.save(args.dir + '/model')\n"
        "    df.write.save('/model')\n"
    )
    must = [(f.line, f.use) for f in migrate.find(program) if not f.runs]
    assert must == [
        (1, "import of tensorflowonspark.TFNothing"),
        (2, "import of tensorflowonspark.TFCluster.Nothing"),
        (3, "import of tensorflowonspark.nothing"),
        (5, "ctx.mgr.get_queue(...)"),
        (6, "TFNode.next_batch(...)"),
        (7, "save(...'/model')"),
    ]


def test_what_must_change_is_what_keras_3_does_not_have() -> None:
    import tensorflow as tf

    from tfspark.compat import keras2_uses

    for name in keras2_uses.GONE:
        package, *path = name.split(".")
        found: Any = tf if package == "tensorflow" else None
        for part in path:
            found = getattr(found, part, None)
        if name.endswith(".legacy"):
            # The module is there, and refuses each of its names.
            with pytest.raises(ImportError, match="not supported in Keras 3"):
                found.Adam()
        else:
            assert found is None, name
    for method in keras2_uses.METHODS:
        assert not hasattr(tf.keras.Model, method), method


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
    assert "14 uses of tensorflowonspark and of old Keras found; tfspark.compat runs them as they are." in out
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
    with pytest.raises(OutputError, match="contains files that are not a SavedModel"):
        compat.export_saved_model(model, str(tmp_path), True)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    for _ in range(2):
        compat.export_saved_model(model, str(tmp_path / "model"), True)
    assert (tmp_path / "model" / "saved_model.pb").exists()


def layers() -> Any:
    import keras

    return keras.layers


def signature_of(model: Any, directory: Path) -> tuple[list[str], list[str]]:
    """Export a model; returns the names of inputs and outputs."""
    import tensorflow as tf

    from tfspark.compat.tensorflowonspark import compat

    compat.export_saved_model(model, str(directory), True)
    signature = tf.saved_model.load(str(directory)).signatures["serving_default"]
    return sorted(signature.structured_input_signature[1]), sorted(signature.structured_outputs)


def convolutional(first: Any = ()) -> Any:
    import keras

    conv = layers().Conv2D(2, 3) if first else layers().Conv2D(2, 3, input_shape=(4, 4, 1))
    return keras.Sequential([*first, conv, layers().Flatten(), layers().Dense(3), layers().Dense(2)])


def deferred() -> Any:
    import keras

    model = keras.Sequential([layers().Dense(2)])
    model.build((None, 3))
    return model


def functional(as_dict: bool) -> Any:
    import keras

    a, b = keras.Input((1,)), keras.Input((2,))
    outputs = [layers().Dense(1)(b), layers().Dense(1, name="score")(a)]
    return (
        keras.Model({"u": a, "v": b}, dict(zip("pq", outputs, strict=True)))
        if as_dict
        else keras.Model([b, a], outputs)
    )


def subclassed(inputs: Any, as_dict: bool = False) -> Any:
    import keras

    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers().Dense(1)

        def call(self, inputs: Any) -> Any:
            found = self.dense(sum(keras.tree.flatten(inputs)))
            return {"p": found, "q": found} if as_dict else found

    model = Own()
    model(inputs)
    return model


@pytest.mark.filterwarnings("ignore")
def test_exports_name_inputs_and_outputs_as_keras_2_did(tmp_path: Path) -> None:
    import keras
    import numpy as np

    ones = np.ones((2, 1), "float32")
    expected: list[tuple[Any, list[str], list[str]]] = [
        (convolutional, ["conv2d_input"], ["dense_1"]),
        (lambda: convolutional([keras.Input((4, 4, 1))]), ["conv2d_input"], ["dense_1"]),
        (lambda: convolutional([keras.Input((4, 4, 1), name="image")]), ["image"], ["dense_1"]),
        (deferred, ["dense_input"], ["dense"]),
        (lambda: functional(False), ["input_1", "input_2"], ["dense", "score"]),
        (lambda: functional(True), ["u", "v"], ["p", "q"]),
        (lambda: subclassed(ones), ["input_1"], ["output_1"]),
        (lambda: subclassed({"u": ones, "v": ones}, True), ["u", "v"], ["p", "q"]),
        (lambda: subclassed([ones, ones]), ["input_1", "input_2"], ["output_1"]),
    ]
    for i, (build, inputs, outputs) in enumerate(expected):
        # However many models the process has built.
        for _ in range(2):
            assert signature_of(build(), tmp_path / str(i)) == (inputs, outputs), i


@pytest.mark.filterwarnings("ignore")
def test_names_that_the_program_gave_stay(tmp_path: Path) -> None:
    import keras

    keras.backend.clear_session()
    x = keras.Input((2,), name="dense_input")
    model = keras.Model(x, layers().Dense(1, name="dense_1")(x))
    assert signature_of(model, tmp_path / "model") == (["dense_input"], ["dense_1"])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert signature_of(loaded, tmp_path / "model") == (["dense_input"], ["dense_1"])
