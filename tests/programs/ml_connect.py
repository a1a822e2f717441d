"""On Spark Connect: load a KerasModel, predict with it and evaluate it, fit another; be told why save does not work.

    python ml_connect.py DIRECTORY

DIRECTORY holds ``model``, a saved KerasModel with a column ``x``. Prints JSON: the predictions of two rows, metrics,
what was fitted, and the errors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from pyspark.ml import PipelineModel
from pyspark.sql import SparkSession

from tfspark.errors import ConfigurationError
from tfspark.ml import KerasEstimator, KerasModel


def error_of(action: Callable[[], Any]) -> str:
    """Run what must fail and return what it says."""
    try:
        action()
    except ConfigurationError as e:
        return str(e)
    raise AssertionError("nothing was raised")


def build() -> Any:
    import keras

    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])


def fit(df: Any) -> dict[str, Any]:
    """Fit a model with validation, weights and early stopping; say what came of it."""
    columns = {"featuresCol": "x", "labelCol": "y", "weightCol": "y", "loss": "mse", "optimizer": "sgd"}
    twice = df.union(df).union(df).union(df).repartition(2)
    estimator = KerasEstimator(model=build, **columns, epochs=3, batchSize=2, validationSplit=0.4, seed=3)
    model = estimator.fit(twice)
    summary = model.summary
    rows = [summary.rows, summary.validationRows]
    return {"epochs": model.history.count(), "rows": rows, "columns": model.transform(df).columns}


def main() -> None:
    """Do it all in a Connect server of this machine."""
    spark = SparkSession.builder.remote("local[2]").getOrCreate()
    directory = sys.argv[1]
    model = KerasModel.load(f"{directory}/model")
    df = spark.sql("select array(1.0f, 2.0f) as x, 0.5f as y union all select array(3.0f, 4.0f), 0.25f")
    answer = {
        "kind": type(df).__module__,
        "predictions": [r.prediction for r in model.transform(df).orderBy("y").collect()],
        "evaluated": model.evaluate(df),
        "fitted": fit(df),
        "save": error_of(lambda: model.save(f"{directory}/again")),
        "overwrite": error_of(lambda: model.write().overwrite().save(f"{directory}/model")),
        "estimator": error_of(lambda: KerasEstimator(model="m.keras").save(f"{directory}/again")),
        "pipeline": error_of(lambda: PipelineModel(stages=[model]).save(f"{directory}/pipeline")),
    }
    spark.stop()
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
