"""On Spark Connect: load a KerasModel and predict with it; be told why fit and save do not work.

    python ml_connect.py DIRECTORY

DIRECTORY holds ``model``, a saved KerasModel with a column ``x``. Prints JSON: the predictions of two rows,
and the errors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

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


def main() -> None:
    """Do it all in a Connect server of this machine."""
    spark = SparkSession.builder.remote("local[2]").getOrCreate()
    directory = sys.argv[1]
    model = KerasModel.load(f"{directory}/model")
    df = spark.sql("select array(1.0f, 2.0f) as x, 0.5f as y union all select array(3.0f, 4.0f), 0.25f")
    answer = {
        "kind": type(df).__module__,
        "predictions": [r.prediction for r in model.transform(df).orderBy("y").collect()],
        "fit": error_of(lambda: KerasEstimator(model=len, featuresCol="x", labelCol="y", loss="mse").fit(df)),
        "evaluate": error_of(lambda: model.evaluate(df)),
        "save": error_of(lambda: model.save(f"{directory}/again")),
    }
    spark.stop()
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
