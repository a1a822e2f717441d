"""Nodes that fail are started again, go on from a checkpoint, and are fed what came after it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfspark
from tfspark.errors import ConfigurationError, NodeFailed


def count_rows(args: Any, ctx: Any) -> Any:
    """Train nothing: note, in what is saved, how often each row was seen; die where it was told to."""
    import tensorflow as tf

    seen = tf.Variable(tf.zeros([args["rows"]], tf.int64))
    saved = ctx.checkpoint(seen=seen)
    begun = saved.restore()
    epochs = []
    for epoch in ctx.epochs():
        epochs.append(epoch)
        for batch in ctx.dataset(10, shuffle=True):
            seen.scatter_add(tf.IndexedSlices(tf.ones_like(batch["id"]), batch["id"]))
            if (ctx.role, ctx.index, ctx.restarts, epoch) in args["dies"]:
                os.kill(os.getpid(), signal.SIGKILL)
        saved.save()
    return begun, epochs, seen.numpy().tolist()


@pytest.mark.parametrize("cache", ["disk", None])
def test_each_completed_epoch_saw_every_row_once_though_nodes_died(spark: Any, tmp_path: Path, cache: Any) -> None:
    args = {"rows": 90, "dies": [("worker", 0, 0, 2), ("worker", 0, 1, 4)]}
    with tfspark.Cluster(spark, count_rows, args, workers=1, max_restarts=2, checkpoint_dir=str(tmp_path)) as cluster:
        cluster.feed(spark.range(0, 50, 1, 3), epochs=2, cache=cache)
        cluster.feed(spark.range(50, 90, 1, 2), epochs=3, cache=cache)
    begun, epochs, seen = cluster.results["worker", 0]
    assert [e.reason for e in cluster.restarts] == ["its process was killed by SIGKILL"] * 2
    assert begun == 4 and epochs == [4]
    assert seen == [2] * 50 + [3] * 40
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "epoch-000003",
        "epoch-000004",
        "epoch-000005",
        "finished.json",
    ]


def test_without_checkpoints_a_restart_begins_anew(spark: Any) -> None:
    def main(args: Any, ctx: Any) -> Any:
        ids = [[int(i) for batch in ctx.dataset(7) for i in batch["id"]] for _ in ctx.epochs()]
        if ctx.restarts == 0:
            raise RuntimeError("the first time it fails")
        return [sorted(e) for e in ids]

    with tfspark.Cluster(spark, main, workers=2, strategy="none", max_restarts=1) as cluster:
        cluster.feed(spark.range(40), epochs=2)
    rows = [cluster.results["worker", i] for i in (0, 1)]
    assert len(cluster.restarts) == 1
    for epoch in (0, 1):
        assert sorted(rows[0][epoch] + rows[1][epoch]) == list(range(40))


def test_mistakes_are_not_repeated_and_restarts_end(spark: Any) -> None:
    def misses_a_module(args: Any, ctx: Any) -> None:
        import no_such_module  # noqa: F401

    def always_fails(args: Any, ctx: Any) -> None:
        raise RuntimeError(f"restart {ctx.restarts}")

    with pytest.raises(NodeFailed, match="no_such_module") as mistake:
        tfspark.run(spark, misses_a_module, workers=1, max_restarts=3)
    assert mistake.value.final
    with pytest.raises(NodeFailed, match="restart 1"):
        tfspark.run(spark, always_fails, workers=1, max_restarts=1)
    with pytest.raises(ConfigurationError, match="max_restarts"):
        tfspark.Cluster(spark, always_fails, workers=1, max_restarts=-1)


def fit(args: Any, ctx: Any) -> Any:
    import keras

    keras.utils.set_random_seed(3)
    with ctx.strategy().scope():
        inputs = keras.Input((1,), name="x")
        hidden = keras.layers.Dense(4, "relu")(inputs)
        model = keras.Model({"x": inputs}, keras.layers.Dense(1)(hidden))
        model.compile(optimizer=keras.optimizers.Adam(0.01), loss="mse")

    class DieOnce(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if args["dies"] and ctx.restarts == 0 and epoch == 2 and ctx.index == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    data = {"columns": ["x"], "label": "y", "batch_size": 16}
    history = ctx.fit(model, callbacks=[DieOnce()], **data)
    return history["loss"], model.get_weights()


def test_a_fit_goes_on_as_if_nothing_had_happened(spark: Any, tmp_path: Path) -> None:
    df = spark.range(0, 64, 1, 4).selectExpr("array(id / 64f) as x", "id / 32f as y")
    found = []
    for dies in (False, True):
        directory = str(tmp_path / str(dies))
        with tfspark.Cluster(
            spark, fit, {"dies": dies}, workers=2, max_restarts=1, checkpoint_dir=directory
        ) as cluster:
            cluster.feed(df, epochs=4, shapes={"x": 1}, seed=1)
        assert len(cluster.restarts) == dies
        found.append(cluster.results["worker", 0])
    (losses, weights), (last_losses, restored_weights) = found
    assert len(losses) == 4 and last_losses == pytest.approx(losses[2:], rel=1e-4)
    for w, r in zip(weights, restored_weights, strict=True):
        assert np.allclose(w, r, rtol=1e-4)


def test_what_was_trained_when_a_node_died_after_its_last_epoch_is_not_trained_again(
    spark: Any, tmp_path: Path
) -> None:
    def main(args: Any, ctx: Any) -> Any:
        import keras

        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((1,), name="x"), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        data = {"columns": ["x"], "label": "y", "batch_size": 16}
        losses = [ctx.fit(model, epochs=n, **data).get("loss", []) for n in (1, 2)]
        if ctx.restarts == 0:
            raise RuntimeError(f"died with {[w.tolist() for w in model.get_weights()]}")
        return [len(each) for each in losses], [w.tolist() for w in model.get_weights()]

    df = spark.range(0, 64, 1, 4).selectExpr("array(id / 64f) as x", "id / 32f as y")
    with tfspark.Cluster(spark, main, workers=1, max_restarts=1, checkpoint_dir=str(tmp_path)) as cluster:
        cluster.feed(df, epochs=3, shapes={"x": 1})
    trained, weights = cluster.results["worker", 0]
    assert trained == [0, 0]
    assert f"died with {weights}" in str(cluster.restarts[0])


def test_another_program_goes_on_where_a_killed_one_had_stopped_but_not_after_one_that_finished(
    spark: Any, tmp_path: Path
) -> None:
    directory = str(tmp_path)
    args = {"rows": 20, "dies": [("worker", 0, 0, 2)]}
    with (
        pytest.raises(NodeFailed),
        tfspark.Cluster(spark, count_rows, args, workers=1, checkpoint_dir=directory) as cluster,
    ):
        cluster.feed(spark.range(20), epochs=4)
    begun = []
    for _ in range(2):
        with tfspark.Cluster(spark, count_rows, {**args, "dies": []}, workers=1, checkpoint_dir=directory) as cluster:
            cluster.feed(spark.range(20), epochs=4)
        first, epochs, seen = cluster.results["worker", 0]
        assert epochs == list(range(first, 4)) and seen == [4] * 20
        begun.append(first)
    assert begun == [2, 0]


def test_the_evaluator_sees_the_last_checkpoint_and_ends_with_training(spark: Any, tmp_path: Path) -> None:
    def main(args: Any, ctx: Any) -> Any:
        import tensorflow as tf

        total = tf.Variable(0, dtype=tf.int64)
        saved = ctx.checkpoint(total=total)
        if ctx.role == "evaluator":
            found = []
            for path in ctx.new_checkpoints(poll_seconds=0.1):
                epochs = saved.restore(path)
                found.append((epochs, int(total.numpy())))
            return found, ctx.cluster_spec, type(ctx.strategy()).__name__
        for _ in ctx.epochs():
            for batch in ctx.dataset(10):
                total.assign_add(tf.reduce_sum(batch["id"]))
            saved.save()
        return int(total.numpy())

    with tfspark.Cluster(spark, main, workers=1, evaluator=True, checkpoint_dir=str(tmp_path)) as cluster:
        cluster.feed(spark.range(10), epochs=3)
    found, cluster_spec, strategy = cluster.results["evaluator", 0]
    assert cluster.results["worker", 0] == 135 and found[-1] == (3, 135)
    assert all(total == 45 * epochs for epochs, total in found)
    assert set(cluster_spec) == {"worker"} and strategy == "_DefaultDistributionStrategy"
