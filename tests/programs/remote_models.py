"""Predict with models at URLs, in an application of its own, and print, as JSON, what came of it.

``remote_models.py MASTER DIRECTORY``, where ``connect`` is a master, too. The directory, which has ``base``, versions
of a model, and ``file.keras``, is a file system of Hadoop, ``viewfs://models/m``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import tfspark
from tfspark.prediction import model_source

URL = "viewfs://models/m"


def session(master: str, directory: str) -> Any:
    settings = {
        "spark.hadoop.fs.viewfs.mounttable.models.link./m": f"file://{directory}",
        "spark.ui.enabled": "false",
        "spark.log.level": "OFF",
    }
    if master != "connect":
        return tfspark.session("remote models", master, **settings)
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.remote("local[2]")
    for key, value in settings.items():
        builder = builder.config(key, value)
    return tfspark.configure(builder).getOrCreate()


def refusal(df: Any, model: str) -> str:
    try:
        tfspark.predict(df, model)
    except tfspark.errors.TFSparkError as e:
        return f"{type(e).__name__}: {e}"
    return "none"


def copies(spark: Any, name: str) -> dict[str, int]:
    """Return how many copies of a shipped model each executor has, by its directory."""
    import pyarrow as pa

    def look(batches: Any) -> Any:
        from tfspark.spark.remote_files import shipped

        for _ in batches:
            place = Path(shipped(name))
            found = [p for p in place.parent.rglob("saved_model.pb") if p.parent.name == name]
            yield pa.RecordBatch.from_pydict({"place": [str(place)], "copies": [len(found)]})

    rows = spark.range(0, 2, 1, 2).mapInArrow(look, "place string, copies long").collect()
    return {r.place: r.copies for r in rows}


def main(master: str, directory: str) -> None:
    spark = session(master, directory)
    df = spark.createDataFrame([([1.0, 2.0],), ([3.0, 4.0],)], "x array<float>").coalesce(1)

    def predicted(path: str) -> list[float]:
        return [r.y for r in tfspark.predict(df, f"{URL}/{path}").collect()]

    found: dict[str, Any] = {"newest": predicted("base"), "again": predicted("base"), "version": predicted("base/2/")}
    found["keras file"] = predicted("file.keras")
    if master != "connect":
        newest = tfspark.prediction.plan.model_source_of(spark, f"{URL}/base")
        found["copies"] = copies(spark, newest.name)
    shutil.copytree(os.path.join(directory, "base", "2"), os.path.join(directory, "base", "11"))
    found["rewritten"] = predicted("base")
    (sent,) = model_source._shipped.values()
    found["shipped"] = len(sent)
    found["refused"] = [refusal(df, model) for model in (f"{URL}/none", f"{URL}/none.keras", "nope://x/y")]
    print(json.dumps(found))
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
