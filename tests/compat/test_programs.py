"""The original's example patterns, written anew for the old API, run unchanged: `tests/compat/programs`."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfspark.compat
from tfspark.saved_models.description import read_signatures

PROGRAMS = Path(__file__).parent / "programs"

Run = Callable[..., None]


@pytest.fixture
def run(spark: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a program as ``python program.py --name value ...`` would, in the session of the tests."""
    tfspark.compat.install()

    def run_program(name: str, **options: Any) -> None:
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        monkeypatch.setattr(sys, "argv", [name, *words])
        runpy.run_path(str(PROGRAMS / name), run_name="__main__")

    yield run_program
    sys.meta_path.remove(tfspark.compat._alias)
    for module in [m for m in sys.modules if m.partition(".")[0] == "tensorflowonspark"]:
        del sys.modules[module]


def accuracy_of(export_dir: Path) -> float:
    import tensorflow as tf
    from sklearn.datasets import load_digits

    digits = load_digits()
    signature = tf.saved_model.load(str(export_dir)).signatures["serving_default"]
    (name,) = signature.structured_input_signature[1]
    (scores,) = signature(**{name: tf.constant(digits.data / 16.0, tf.float32)}).values()
    return float(np.mean(np.argmax(scores, axis=1) == digits.target))


def test_keras_on_several_nodes_fed_by_an_rdd(run: Run, tmp_path: Path) -> None:
    run("digits_spark.py", export_dir=tmp_path / "model")
    assert accuracy_of(tmp_path / "model") > 0.9
    assert os.listdir(tmp_path) == ["model"]


def test_nodes_read_files_and_independent_instances_infer(run: Run, tmp_path: Path) -> None:
    run("digits_files.py", images=tmp_path / "images", export_dir=tmp_path / "model")
    accuracy = accuracy_of(tmp_path / "model")
    assert accuracy > 0.8
    (tmp_path / "found").mkdir()
    run("parallel_inference.py", images=tmp_path / "images", export_dir=tmp_path / "model", output=tmp_path / "found")
    found = [json.loads(f.read_text()) for f in (tmp_path / "found").iterdir()]
    assert len(found) == 2 and sum(f["rows"] for f in found) == 1797 and all(f["rows"] for f in found)
    assert sum(f["hits"] for f in found) == round(accuracy * 1797)


def test_a_stream_feeds_until_the_program_has_enough(run: Run, tmp_path: Path) -> None:
    run("digits_streaming.py", export_dir=tmp_path / "model")
    assert accuracy_of(tmp_path / "model") > 0.6


def test_a_pipeline_trains_and_infers(run: Run, tmp_path: Path) -> None:
    run("digits_pipeline.py", export_dir=tmp_path / "model", result=tmp_path / "result")
    result = json.loads((tmp_path / "result").read_text())
    assert result["accuracy"] > 0.85 and result["types"] == [["scores", "array<double>"]]


def test_an_evaluator_judges_checkpoints_beside_the_chief(run: Run, tmp_path: Path) -> None:
    run("digits_evaluator.py", model_dir=tmp_path / "model", evaluations=tmp_path / "evaluations")
    found = [json.loads(line) for line in (tmp_path / "evaluations").read_text().splitlines()]
    assert [f["checkpoint"] for f in found] == ["ckpt-1", "ckpt-2", "ckpt-3"]
    assert found[0]["accuracy"] < found[-1]["accuracy"] and found[-1]["accuracy"] > 0.5


@pytest.mark.long
def test_a_residual_network_on_several_nodes(run: Run, tmp_path: Path) -> None:
    run("resnet.py", result=tmp_path / "result")
    assert json.loads((tmp_path / "result").read_text())["accuracy"] > 0.9


@pytest.mark.long
def test_a_segmentation_network_fed_with_images(run: Run, tmp_path: Path) -> None:
    run("segmentation.py", result=tmp_path / "result")
    assert json.loads((tmp_path / "result").read_text())["accuracy"] > 0.9


def checkpoints_of(model_dir: Path) -> list[str]:
    return sorted(os.listdir(model_dir))


@pytest.mark.long
def test_a_convolutional_network_with_checkpoints_is_exported_and_applied(run: Run, tmp_path: Path) -> None:
    # Small batches are many steps, whatever network training begins with.
    run("mnist_spark.py", model_dir=tmp_path / "checkpoints", export_dir=tmp_path / "model", batch_size=16)
    # Written by the chief alone, and the backup is gone with the end of the training.
    assert checkpoints_of(tmp_path / "checkpoints") == [f"weights-000{i}.weights.h5" for i in (1, 2, 3)]
    run("mnist_inference.py", images=tmp_path / "images", export_dir=tmp_path / "model", output=tmp_path / "found")
    found = [line.split() for f in sorted((tmp_path / "found").iterdir()) for line in f.read_text().splitlines()]
    assert len(list((tmp_path / "found").iterdir())) == 2 and len(found) == 1797
    assert np.mean([label == guess for label, guess in found]) > 0.8


def test_a_pipeline_exports_unnamed_inputs_and_infers_by_their_names(run: Run, tmp_path: Path) -> None:
    run("mnist_pipeline.py", mode="train", model_dir=tmp_path / "checkpoints", export_dir=tmp_path / "model")
    assert checkpoints_of(tmp_path / "checkpoints") == [f"weights-000{i}.weights.h5" for i in (1, 2, 3)]
    run("mnist_pipeline.py", mode="inference", export_dir=tmp_path / "model", output=tmp_path / "found")
    found = json.loads((tmp_path / "found").read_text())
    assert found["rows"] == 1797 and found["hits"] > 0.8 * 1797


@pytest.mark.long
def test_keras_2_trains_and_exports_on_several_workers(tmp_path: Path) -> None:
    """Metrics of Keras 2 are added up over the workers when a model is exported."""
    program = [str(PROGRAMS / "mnist_spark.py"), "--model_dir", f"{tmp_path}/checkpoints"]
    command = [sys.executable, "-m", "tfspark.compat", *program, "--export_dir", f"{tmp_path}/model", "--epochs", "2"]
    env = {
        **os.environ,
        "TF_USE_LEGACY_KERAS": "1",
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_SUBMIT_ARGS": "--master local[3] --conf spark.ui.enabled=false pyspark-shell",
    }
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, env=env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "keras_metadata.pb").exists()
    assert {f"weights-000{i}.weights.h5" for i in (1, 2)} <= set(checkpoints_of(tmp_path / "checkpoints"))
    signature = read_signatures(str(tmp_path / "model"))["serving_default"]
    assert (list(signature.inputs), list(signature.outputs)) == (["conv2d_input"], ["dense_1"])


def test_a_program_file_runs_by_itself(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "import tfspark\n"
        "from tensorflowonspark import TFCluster\n"
        "from helper import double\n"
        "def main_fun(args, ctx):\n"
        "    import tensorflowonspark.TFNode as TFNode\n"
        "    feed = TFNode.DataFeed(ctx.mgr, False)\n"
        "    while not feed.should_stop():\n"
        "        feed.batch_results([double(x) for x in feed.next_batch(10)])\n"
        "if __name__ == '__main__':\n"
        "    spark = tfspark.session('program', 'local[2]', spark_ui_enabled=False)\n"
        "    sc = spark.sparkContext\n"
        "    cluster = TFCluster.run(sc, main_fun, sys.argv, 1, 0, input_mode=TFCluster.InputMode.SPARK)\n"
        "    def name_of(x):\n"
        "        from tensorflowonspark import marker\n"
        "        return (x, marker.EndPartition.__module__)\n"
        "    print(cluster.inference(sc.parallelize(range(5), 2)).map(name_of).collect())\n"
        "    cluster.shutdown()\n"
    )
    (tmp_path / "helper.py").write_text("def double(x):\n    return 2 * x\n")
    command = [sys.executable, "-m", "tfspark.compat", str(program)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=env)
    assert done.returncode == 0, done.stderr
    home = "tfspark.compat.tensorflowonspark.marker"
    assert done.stdout.strip() == repr([(2 * x, home) for x in range(5)])
    assert "DeprecationWarning: tensorflowonspark's TFCluster.run: with tfspark, tfspark.Cluster(" in done.stderr
