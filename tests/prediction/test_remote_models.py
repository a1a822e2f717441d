"""Models on file systems that only Hadoop knows, on executors of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tfspark.spark.home import is_spark_3

# pyspark brings the server of Spark Connect from Spark 4 on.
CONNECT = () if is_spark_3() else (pytest.param("connect", marks=pytest.mark.long),)
PROGRAM = Path(__file__).parents[1] / "programs" / "remote_models.py"


@pytest.mark.parametrize("master", ["local-cluster[2,1,1024]", *CONNECT])
def test_models_at_urls_are_copied_to_each_executor_once(master: str, tmp_path: Path) -> None:
    import keras

    x = keras.Input((2,), name="x")
    for version, factor in ((2, 2.0), (10, 10.0)):
        y = keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(factor), name="y")(x)
        keras.Model({"x": x}, {"y": y}).export(str(tmp_path / "base" / str(version)), verbose=False)
    keras.Model({"x": x}, {"y": y}).save(tmp_path / "file.keras")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), master, str(tmp_path)],
        env={**os.environ, "SPARK_LOCAL_IP": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["newest"] == found["again"] == [30.0, 70.0]
    assert found["version"] == [6.0, 14.0]
    assert found["keras file"] == [30.0, 70.0]
    assert found["rewritten"] == [6.0, 14.0], "a model that is written anew is copied anew"
    assert found["shipped"] == 4, "what stays the same is copied once"
    if master != "connect":
        assert found["copies"] == {name: 1 for name in found["copies"]} and len(found["copies"]) >= 1
    missing, no_file, unknown = found["refused"]
    assert missing.startswith("ConfigurationError: 'viewfs://models/m/none' holds no SavedModel")
    assert no_file.startswith("ConfigurationError: The file 'viewfs://models/m/none.keras' does not exist")
    assert unknown.startswith("ConfigurationError: 'nope://x/y' cannot be read: ") and "nope" in unknown
