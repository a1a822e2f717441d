"""The jobs that people copy, each through spark-submit on a standalone master with two workers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from sentences import write_sentences
from standalone import JOBS, Standalone, environment

sys.path.insert(0, str(JOBS))

import convert
import search
import text
import wide_and_deep

from tfspark import jobs

ALL = ["batch_predict", "convert", "digits", "flights", "images", "search", "streaming", "text", "wide_and_deep"]


def succeed(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a job has logged."""
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def result_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "result.json").read_text())


# --- data


@pytest.fixture(scope="module")
def digits() -> Any:
    from sklearn.datasets import load_digits

    return load_digits()


@pytest.fixture(scope="module")
def pictures(standalone: Standalone, digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TFRecord shards of PNG files of zeros and ones, made by the conversion."""
    import tensorflow as tf

    directory = tmp_path_factory.mktemp("pictures")
    for n in np.flatnonzero(digits.target < 2)[:64]:
        path = directory / "png" / ("zero", "one")[digits.target[n]] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.clip(digits.images[n] * 16, 0, 255).astype("uint8")[:, :, None]
        path.write_bytes(tf.io.encode_png(image).numpy())
    selected = ("--select", "content AS image", "--select", "element_at(split(path, '/'), -2) AS label")
    source = ("--data", directory / "png", "--format", "binaryFile", "--option", "recursiveFileLookup=true")
    succeed(standalone.submit(JOBS / "convert.py", *source, *selected, "--output", directory / "data", "--shards", 4))
    return directory / "data" / "run"


# --- all of them


@pytest.mark.parametrize("job", ALL)
def test_help_tells_the_exit_codes(job: str) -> None:
    done = subprocess.run([sys.executable, str(JOBS / f"{job}.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for word in ("Exit codes:", "--output", "--master", "spark-submit"):
        assert word in done.stdout
    done = subprocess.run([sys.executable, str(JOBS / f"{job}.py"), "--nonsense"], capture_output=True, text=True)
    assert done.returncode == 2


# --- conversion


def test_shards_are_shuffled_the_same_way_every_time(spark: Any, tmp_path: Path) -> None:
    df = spark.range(0, 2000, 1, 5).selectExpr("id", "concat('row ', id) AS name", "array(id, id + 1) AS pair")

    def shards(seed: int, partitions: int) -> list[list[int]]:
        spread = convert.shuffled(df.repartition(partitions), 4, seed)
        return [[r.id for r in rows] for rows in spread.rdd.glom().collect()]

    first = shards(1, 3)
    assert sorted(i for shard in first for i in shard) == list(range(2000))
    assert all(400 < len(shard) < 600 for shard in first)
    assert all(shard != sorted(shard) for shard in first)
    assert shards(1, 7) == first != shards(2, 3)


def test_conversion(standalone: Standalone, tmp_path: Path) -> None:
    rows = [f"{i},name {i},{i / 2}" for i in range(300)]
    (tmp_path / "in.csv").write_text("\n".join(["id,name,half", *rows]))
    source = (
        "--data",
        tmp_path / "in.csv",
        "--format",
        "csv",
        "--option",
        "header=true",
        "--option",
        "inferSchema=true",
    )
    terms = ("--where", "id >= 100", "--shards", 3, "--compression", "gzip", "--output", tmp_path, "--run-id", "night")
    # As left by a run that was cut off.
    jobs.RunDirectory("convert", str(tmp_path), "night").claim()
    for left in ("part-00000.tfrecord", "_temporary/0/part-00000.tfrecord"):
        (tmp_path / "night" / left).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "night" / left).write_bytes(b"half")
    assert "200 records in 3 shards" in succeed(standalone.submit(JOBS / "convert.py", *source, *terms))
    assert not (tmp_path / "night" / "_temporary").exists()
    counts = json.loads((tmp_path / "night" / "_counts.json").read_text())
    files = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "night").glob("part-*")}
    assert counts["records"] == sum(counts["shards"].values()) == 200 and counts["shards"].keys() == files.keys()
    schema = json.loads((tmp_path / "night" / "_schema.json").read_text())
    assert [(f["name"], f["type"]) for f in schema["fields"]] == [
        ("id", "integer"),
        ("name", "string"),
        ("half", "double"),
    ]

    import tensorflow as tf

    paths = [str(tmp_path / "night" / name) for name in sorted(files)]
    ids = [
        tf.train.Example.FromString(r).features.feature["id"].int64_list.value[0]
        for r in tf.data.TFRecordDataset(paths, "GZIP").as_numpy_iterator()
    ]
    assert sorted(ids) == list(range(100, 300)) and ids != sorted(ids)

    # Asked again, as Airflow does after it has lost sight of a job, it leaves what it has done alone.
    assert "200 records" in succeed(standalone.submit(JOBS / "convert.py", *source, *terms))
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "night").glob("part-*")} == files


# --- training


@pytest.mark.long
def test_text_classification_and_its_predictions(standalone: Standalone, tmp_path: Path) -> None:
    write_sentences(tmp_path / "train" / "a.parquet", 1200, seed=1)
    where = ("--data", tmp_path / "train", "--format", "parquet", "--output", tmp_path / "models")
    # As left by a run that was cut off, with a user's files there and beside it.
    jobs.RunDirectory("text", str(tmp_path / "models"), "run").claim()
    (tmp_path / "models" / "run" / "model" / "1").mkdir(parents=True)
    notes = [tmp_path / "models" / "notes.txt", tmp_path / "models" / "run" / "notes.txt"]
    for note in notes:
        note.write_text("a user's")
    succeed(standalone.submit(JOBS / "text.py", *where, "--epochs", 3, "--batch-size", 32, "--min-accuracy", 0.95))
    result = result_of(tmp_path / "models" / "run")
    assert result["labels"] == ["billing", "network"] and result["tested"] > 50
    assert result["loss"][-1] < result["loss"][0] and result["model"].endswith("/run/model/1")
    assert all(note.read_text() == "a user's" for note in notes)

    write_sentences(tmp_path / "new" / "b.parquet", 300, seed=2)
    terms = ("--model", tmp_path / "models" / "run" / "model", "--data", tmp_path / "new", "--format", "parquet")
    kept = ("--keep", "id,label", "--rename", "probabilities=scores", "--output", tmp_path / "predictions")
    assert "300 rows" in succeed(standalone.submit(JOBS / "batch_predict.py", *terms, *kept))
    found = pd.read_parquet(tmp_path / "predictions" / "run").sort_values("id")
    assert list(found.columns) == ["id", "label", "scores"] and list(found.id) == list(range(300))
    best = [result["labels"][int(np.argmax(s))] for s in found.scores]
    assert np.mean(np.array(best) == found.label) > 0.95

    # A bar that is not passed is an exit code of its own; the run is not done again for it.
    done = standalone.submit(JOBS / "text.py", *where, "--min-accuracy", 1.01)
    assert done.returncode == 3 and "accuracy" in done.stdout


@pytest.mark.long
def test_image_training_that_is_ended_leaves_nothing_behind_and_goes_on(
    standalone: Standalone, pictures: Path, tmp_path: Path
) -> None:
    network = ("--network", "InceptionV3", "--size", 75, "--batch-size", 8)
    terms = ("--data", pictures, "--test", pictures, "--output", tmp_path, *network)
    command = standalone.command(JOBS / "images.py", *terms, "--epochs", 1000)
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:
        try:
            assert job.stdout is not None
            log = []
            for line in job.stdout:
                log.append(line)
                if "epoch 1 is saved" in line:
                    break
            else:
                pytest.fail("".join(log)[-4000:])
            assert len(standalone.nodes()) >= 2
            mine = [*psutil.Process(job.pid).children(recursive=True), *standalone.executing()]
            job.send_signal(signal.SIGTERM)
            job.communicate(timeout=60)
        finally:
            job.kill()
    assert job.returncode == 143
    _, alive = psutil.wait_procs(mine, timeout=60)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], (
        "whoever adopts them may reap them late"
    )
    assert not (tmp_path / "run" / "result.json").exists()

    # Nodes go on for the seconds of grace that they have.
    saved = max((tmp_path / "run" / "checkpoints").glob("epoch-*.weights.h5"))
    done = int(saved.name[6:10])
    succeed(standalone.submit(JOBS / "images.py", *terms, "--epochs", done + 3))
    result = result_of(tmp_path / "run")
    assert result["labels"] == ["one", "zero"] and 0 <= result["accuracy"] <= 1
    assert result["restored_epochs"] == done and len(result["loss"]) == 3
    # With batches as small as these, the loss also rises at times.
    assert min(result["loss"]) < 0.5, "it is log(2) for a network that has learned nothing"


@pytest.mark.long
def test_wide_and_deep_with_parameter_servers(standalone: Standalone, tmp_path: Path) -> None:
    terms = ("--rows", 20_000, "--epochs", 3, "--bins", 5000, "--batch-size", 64, "--min-auc", 0.7)
    rates = ("--wide-rate", 1.0, "--deep-rate", 0.005, "--workers", 2, "--ps", 1)
    succeed(standalone.submit(JOBS / "wide_and_deep.py", *terms, *rates, "--output", tmp_path))
    result = result_of(tmp_path / "run")
    assert result["auc"] > 0.7, "which needs both the user and the item"
    assert len(set(result["rows_per_epoch"])) == 1 and 17_500 < result["rows_per_epoch"][0] < 18_500
    assert result["loss"][-1] < result["loss"][0]


def test_crosses_of_what_are_no_categories_are_refused() -> None:
    with pytest.raises(SystemExit) as refused:
        wide_and_deep.parse(["--output", "x", "--categories", "a,b", "--crosses", "a*c"])
    assert refused.value.code == 2


@pytest.mark.long
def test_a_stream_is_trained_on_until_told_to_stop_and_gone_on_with(standalone: Standalone, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    output = tmp_path / "out"

    def arrive(name: str) -> None:
        x = draw.random((512, 2)).astype("float32")
        rows = pd.DataFrame({"x1": x[:, 0], "x2": x[:, 1], "y": 2 * x[:, 0] - x[:, 1]})
        (tmp_path / "in").mkdir(exist_ok=True)
        rows.to_json(tmp_path / "in" / name, orient="records", lines=True)

    def outcome(log: str) -> dict[str, Any]:
        return json.loads(log[log.index("\n{\n") :])

    terms = ("--data", tmp_path / "in", "--format", "json", "--schema", "x1 float, x2 float, y float", "--label", "y")
    rates = ("--batch-size", 16, "--learning-rate", 0.01, "--export-steps", 10, "--files-per-batch", 1)
    arrive("a.json")
    arrive("b.json")
    command = standalone.command(JOBS / "streaming.py", *terms, *rates, "--every", "1 second", "--output", output)
    job = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = ""
    assert job.stdout is not None
    for line in job.stdout:
        log += line
        if "exported" in line:
            (output / "stop").touch()
    assert job.wait() == 0, log[-4000:]
    first = outcome(log)
    assert first["began_at_step"] == 0 and len(first["versions"]) == first["steps"] // 10 + 1

    arrive("c.json")
    second = outcome(
        succeed(standalone.submit(JOBS / "streaming.py", *terms, *rates, "--available-now", "--output", output))
    )
    assert second["began_at_step"] >= first["steps"]
    assert 48 <= first["steps"] + second["steps"] <= 52, "all rows once, 16 for each of 2 workers in a step"
    assert second["loss"][0] < 0.1
    versions = [p.name for p in (output / "model").iterdir()]
    assert len(versions) == len(first["versions"]) + len(second["versions"])


@pytest.mark.long
def test_trials_are_shared_out_and_the_best_model_is_kept(standalone: Standalone, digits: Any, tmp_path: Path) -> None:
    import tensorflow as tf

    (tmp_path / "data").mkdir()
    with tf.io.TFRecordWriter(str(tmp_path / "data" / "digits.tfrecord")) as writer:
        for features, label in zip(digits.data, digits.target, strict=True):
            example = tf.train.Example()
            example.features.feature["features"].float_list.value.extend(features)
            example.features.feature["label"].int64_list.value.append(label)
            writer.write(example.SerializeToString())
    terms = ("--data", tmp_path / "data", "--trials", 4, "--epochs", 5, "--workers", 2)
    succeed(standalone.submit(JOBS / "search.py", *terms, "--output", tmp_path / "found"))
    result = result_of(tmp_path / "found" / "run")
    assert sorted(t["trial"] for t in result["trials"]) == [0, 1, 2, 3]
    assert all(t["node"] == t["trial"] % 2 for t in result["trials"])
    assert result["trials"][0]["accuracy"] == max(t["accuracy"] for t in result["trials"]) > 0.9
    drawn = search.draw_trials(4, seed=1)
    assert all(t["learning_rate"] == drawn[t["trial"]]["learning_rate"] for t in result["trials"])
    assert [p.name for p in (tmp_path / "found" / "run").iterdir() if p.is_dir()] == ["model"]
    model = tf.saved_model.load(result["model"])
    scores = model.serve(tf.constant(digits.data, tf.float32))
    assert np.mean(np.argmax(scores, 1) == digits.target) > 0.9


def test_docstrings_are_a_corpus() -> None:
    found = list(text.docstrings(["keras", "nowhere"]))
    assert len(found) > 500 and {label for _, label in found} == {"keras"}


# --- the main job


def test_flights(standalone: Standalone, tmp_path: Path) -> None:
    terms = ("--months", 1, "--epochs", 2, "--batch-size", 256, "--output", tmp_path, "--run-id", "january")
    done = standalone.submit(JOBS / "flights.py", *terms)
    assert done.returncode in (0, 3), done.stdout[-4000:]
    result = result_of(tmp_path / "january")
    assert result["auc"] > 0.6 and (done.returncode == 0) == (result["auc"] > result["logistic_regression_auc"])
    assert (Path(result["model"]) / "saved_model.pb").exists()


# --- failing


def test_a_node_that_fails_is_named_last(standalone: Standalone, tmp_path: Path) -> None:
    write_sentences(tmp_path / "train" / "a.parquet", 100, seed=1)
    where = ("--data", tmp_path / "train", "--format", "parquet", "--output", tmp_path)
    done = standalone.submit(JOBS / "text.py", *where, "--width", 0)
    assert done.returncode == 1
    assert done.stdout.strip().splitlines()[-1].startswith("NodeFailed: worker"), done.stdout[-3000:]
    assert "Traceback" in done.stdout and not (tmp_path / "run" / "result.json").exists()
