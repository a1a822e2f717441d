"""Train on fed rows; the program says nothing and configures no logging."""

from __future__ import annotations

from typing import Any


def main(args: Any, ctx: Any) -> None:
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    ctx.fit(model, batch_size=100, label="y")


if __name__ == "__main__":
    import tfspark

    spark = tfspark.session("plain", "local[4]", **{"spark.log.level": "OFF"})
    df = spark.range(0, 1000, 1, 2).selectExpr("array(float(id) / 1000, 1f) as x", "float(id) / 1000 as y")
    with tfspark.Cluster(spark, main, workers=2, ui=True) as cluster:
        cluster.feed(df, epochs=2)
    spark.stop()
