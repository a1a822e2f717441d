"""Measure steps per second on several workers: the engine, ``MultiWorkerMirroredStrategy`` and one process.

All ways run in the same TensorFlow processes and take turns of a few steps, so that noise affects all of them equally.
Rows are in memory. ``local`` is the engine's step without the collective; the additional time of ``engine`` is the
share of the collective. ``one process`` trains alone while the other workers wait.

    python benchmarks/train.py --rounds 8
    python benchmarks/train.py --models mlp --workers 2
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import _common as common

BENCHMARK = "train"
BATCH = 128
ROWS = BATCH * 8
WARM_UP = 5
WAYS = ("engine", "mirrored", "local", "one process")

MODELS = {
    "tiny": "16-16-10",
    "mlp": "784-512-512-10",
    "cnn": "28 x 28, two convolutions of 16 and 32",
    "embedding": "two tables of 100,000 x 32",
}


def build(name: str) -> Any:
    """Return a compiled model and its rows."""
    import keras
    import numpy as np

    layers, rng = keras.layers, np.random.default_rng(0)
    y = rng.integers(0, 10, ROWS).astype("int32")
    if name == "embedding":
        inputs = keras.Input((2,), dtype="int32")
        tables = [layers.Embedding(100_000, 32)(inputs[:, i]) for i in range(2)]
        outputs = layers.Dense(10)(layers.Dense(64, activation="relu")(layers.Concatenate()(tables)))
        x = rng.integers(0, 100_000, (ROWS, 2)).astype("int32")
    elif name == "cnn":
        inputs = keras.Input((28, 28, 1))
        h = layers.MaxPooling2D()(layers.Conv2D(16, 3, activation="relu")(inputs))
        h = layers.MaxPooling2D()(layers.Conv2D(32, 3, activation="relu")(h))
        outputs = layers.Dense(10)(layers.Flatten()(h))
        x = rng.random((ROWS, 28, 28, 1), dtype="float32")
    else:
        width, hidden = (16, (16,)) if name == "tiny" else (784, (512, 512))
        inputs = h = keras.Input((width,))
        for units in hidden:
            h = layers.Dense(units, activation="relu")(h)
        outputs = layers.Dense(10)(h)
        x = rng.random((ROWS, width), dtype="float32")
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-4), loss, jit_compile=False)
    return model, (x, y)


def steps_of(ctx: Any, way: str, name: str) -> Callable[[int], None]:
    """Return a function that runs a number of steps of a way."""
    import tensorflow as tf

    from tfspark.node.keras.collectives import Group
    from tfspark.node.keras.engine import Engine

    def dataset(rows: Any) -> Any:
        return tf.data.Dataset.from_tensor_slices(rows).batch(BATCH).repeat().prefetch(2)

    if way == "mirrored":
        strategy = ctx.strategy()
        with strategy.scope():
            model, rows = build(name)
        if ctx.num_workers > 1:
            iterator = iter(strategy.distribute_datasets_from_function(lambda _: dataset(rows)))
        else:
            iterator = iter(dataset(rows))
        model.make_train_function()
        function = model.train_function
    elif way == "one process":
        model, rows = build(name)
        model.make_train_function()
        iterator, function = iter(dataset(rows)), model.train_function
    else:
        model, rows = build(name)
        group = Group(ctx.num_workers, ctx.index) if way == "engine" else Group(1, 0)
        training = Engine(group, lambda: False).training(model)
        data = dataset(rows)
        training.build(data.element_spec)
        training.begin()
        iterator = iter(data)
        with training.in_place(data.element_spec):
            function = model.train_function

    def run(n: int) -> None:
        for _ in range(n):
            function(iterator)

    return run


def measure(args: dict[str, Any], ctx: Any) -> dict[str, list[float]]:
    """Run all ways in turns; return the seconds per step of each way."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(1)
    ways = [w for w in WAYS if w in args["ways"]]
    strategy = ctx.strategy()

    def meet() -> None:
        if ctx.num_workers > 1:
            strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(lambda: tf.constant(1.0)), axis=None)

    runs = {way: steps_of(ctx, way, args["model"]) for way in ways}
    found: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(args["rounds"] + 1):
        for way in common.in_turn(ways, turn):
            meet()
            if way == "one process" and ctx.index != 0:
                continue
            began = time.perf_counter()
            runs[way](args["steps"] if turn else WARM_UP)
            if turn:
                found[way].append((time.perf_counter() - began) / args["steps"])
    meet()
    return found


def report(model: str, workers: int, found: dict[str, list[float]]) -> None:
    """Print the figures of a model."""
    labels = {"model": model, "layers": MODELS[model], "workers": workers}
    for way, seconds in found.items():
        common.figure(BENCHMARK, f"steps of {way}", "steps/s", [1 / s for s in seconds], **labels)

    def ratio(name: str, over: str, under: str) -> None:
        if over in found and under in found:
            pairs = zip(found[over], found[under], strict=True)
            common.figure(BENCHMARK, name, "ratio", [a / b for a, b in pairs], **labels)

    ratio("engine / MultiWorkerMirroredStrategy", "mirrored", "engine")
    ratio("engine / one process", "one process", "engine")
    if "local" in found:
        shares = [1 - a / b for a, b in zip(found["local"], found["engine"], strict=True)]
        common.line(BENCHMARK, "share of the collective", statistics.median(shares), "of a step", **labels)


def main() -> None:
    """Measure and print."""
    common.keep_stdout_for_figures()
    parser = common.options(__doc__.splitlines()[0], master="local[4]", rounds=8)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--steps", type=int, default=25, help="steps of a turn")
    chosen = parser.parse_args()
    common.surroundings(BENCHMARK, batch=BATCH)
    import tfspark

    with common.session_of(chosen, "train") as spark:
        for workers in chosen.workers:
            for model in chosen.models:
                args = {"model": model, "ways": chosen.ways, "rounds": chosen.rounds, "steps": chosen.steps}
                with tfspark.Cluster(
                    spark, measure, args, workers=workers, strategy="multi_worker_mirrored", progress=False
                ) as cluster:
                    pass
                report(model, workers, cluster.results["worker", 0])


if __name__ == "__main__":
    main()
