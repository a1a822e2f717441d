"""Versions, signatures and model cards: what `ctx.export` writes, and what others make of it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import tfspark
from tfspark.errors import ConfigurationError
from tfspark.saved_models.card import ModelCard
from tfspark.saved_models.description import read_signatures
from tfspark.saved_models.signatures import CLASSIFY, PREDICT, REGRESS, Signature, TensorInfo
from tfspark.saved_models.versions import new_version, newest_version, version_paths, versions_of


def word_model(outputs: int = 2, activation: str = "softmax") -> Any:
    """Strings and numbers in; untrained, but the same each time."""
    keras.utils.set_random_seed(3)
    x = keras.Input((2,), name="x")
    word = keras.Input((1,), name="word", dtype="string")
    found = keras.layers.StringLookup(vocabulary=["late", "early"], output_mode="one_hot")(word)
    both = keras.layers.Concatenate()([x, found])
    return keras.Model({"x": x, "word": word}, keras.layers.Dense(outputs, activation=activation)(both))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: Any) -> str:
    from tfspark.saved_models.export import export_model

    return export_model(
        word_model(),
        str(tmp_path_factory.mktemp("words")),
        classes=["no", "yes"],
        metrics={"auc": 0.75},
        data={"rows": 1000},
        description="Says no or yes.",
    )


PROGRAM = """
import sys
import tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
x, word = tf.constant([[1.0, 2.0]]), tf.constant([["late"]])
feature = {
    "x": tf.train.Feature(float_list=tf.train.FloatList(value=[1.0, 2.0])),
    "word": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"late"])),
}
example = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
one = loaded.signatures["serving_default"](x=x, word=word)["output_0"].numpy()
two = loaded.signatures["example"](examples=tf.constant([example]))["output_0"].numpy()
three = loaded.signatures["classify"](inputs=tf.constant([example]))
assert (one == two).all() and (one == three["scores"].numpy()).all()
assert three["classes"].numpy().tolist() == [[b"no", b"yes"]]
assert not {"tfspark", "pyspark"} & set(sys.modules)
print(one.tolist())
"""


def test_a_process_without_tfspark_loads_it_and_all_signatures_agree(exported: str) -> None:
    out = subprocess.run([sys.executable, "-c", PROGRAM, exported], capture_output=True, text=True, check=True).stdout
    import tensorflow as tf

    inputs = {"x": tf.constant([[1.0, 2.0]]), "word": tf.constant([["late"]])}
    np.testing.assert_allclose(json.loads(out), word_model()(inputs), rtol=1e-6)


@pytest.mark.long
def test_saved_model_cli_shows_and_runs_it(exported: str, tmp_path: Path) -> None:
    cli = os.path.join(os.path.dirname(sys.executable), "saved_model_cli")
    command = [cli] if os.path.exists(cli) else [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli"]

    def run(*args: str) -> str:
        return subprocess.run([*command, *args], capture_output=True, text=True, check=True).stdout

    shown = run("show", "--dir", exported, "--tag_set", "serve", "--signature_def", "classify")
    assert f"Method name is: {CLASSIFY}" in shown and "inputs['inputs'] tensor_info" in shown and "DT_STRING" in shown
    values = "x=[[1.0, 2.0]];word=[[b'late']]"
    ran = run(
        "run", "--dir", exported, "--tag_set", "serve", "--signature_def", "serving_default", "--input_exprs", values
    )
    assert "Result for output key output_0" in ran


def test_the_card_tells_programs_and_people(exported: str) -> None:
    card = json.loads((Path(exported) / "assets.extra" / "model_card.json").read_text())
    assert card["metrics"] == {"auc": 0.75} and card["data"] == {"rows": 1000}
    assert card["signatures"]["serving_default"]["inputs"]["word"] == {"dtype": "string", "shape": [None, 1]}
    assert {"tfspark", "tensorflow", "keras", "python"} == set(card["versions"])
    text = (Path(exported) / "assets.extra" / "MODEL_CARD.md").read_text()
    assert "Says no or yes." in text and "| auc | 0.75 |" in text and "| in | word | string (?, 1) |" in text


def test_the_card_is_json_whatever_the_metrics_and_needs_no_installed_tfspark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    card = ModelCard("m", metrics={"loss": math.nan, "auc": 0.5}, data={"scales": [math.inf, 1.0], "rows": 5})
    card.write(str(tmp_path))
    text = (tmp_path / "assets.extra" / "model_card.json").read_text()
    written = json.loads(text, parse_constant=no_constant)
    assert written["metrics"] == {"loss": None, "auc": 0.5}
    assert written["data"] == {"scales": [None, 1.0], "rows": 5}
    assert written["versions"]["tfspark"] == tfspark.__version__
    assert written["versions"]["keras"] == keras.__version__
    assert "| loss | nan |" in (tmp_path / "assets.extra" / "MODEL_CARD.md").read_text()


def test_signatures_are_read_without_loading_the_model(exported: str) -> None:
    found = read_signatures(exported)
    assert {n: s.method for n, s in found.items()} == {
        "classify": CLASSIFY,
        "example": PREDICT,
        "serving_default": PREDICT,
    }
    again = Signature.from_json(json.loads(json.dumps(found["serving_default"].to_json())))
    assert again.inputs["x"] == TensorInfo("float32", (None, 2)) and again.inputs["x"].has_rows
    assert str(TensorInfo("int64", None)) == "int64 (?)" and not TensorInfo("int64", ()).has_rows


def test_preprocessing_is_part_of_what_is_served(tmp_path: Path) -> None:
    import tensorflow as tf

    from tfspark.saved_models.export import export_model

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])

    def lengths(inputs: Any) -> Any:
        return tf.stack([tf.cast(tf.strings.length(inputs[n]), tf.float32) for n in ("a", "b")], axis=1)

    spec = {n: tf.TensorSpec([None], tf.string) for n in ("a", "b")}
    base = str(tmp_path / "m")
    path = export_model(model, base, preprocessing=lengths, input_signature=spec, regress=True)
    served = tf.saved_model.load(path).signatures
    assert served["serving_default"](a=tf.constant(["one"]), b=tf.constant(["three"]))["output_0"].numpy() == [[8.0]]
    assert read_signatures(path)["regress"].method == REGRESS
    raw = keras.Input((1,), name="raw", dtype="string")
    before = keras.Model(raw, keras.layers.StringLookup(vocabulary=["x"], output_mode="one_hot")(raw))
    path = export_model(model, base, preprocessing=before)
    assert tf.saved_model.load(path).signatures["serving_default"](raw=tf.constant([["x"]]))["output_0"].numpy() == [
        [1.0]
    ]
    with pytest.raises(ConfigurationError, match="its inputs are unknown"):
        export_model(model, base, preprocessing=lengths)


def test_what_cannot_be_exported_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    from tfspark.saved_models.export import export_model

    base = str(tmp_path / "m")
    for options, message in [
        ({"classes": ["a", "b", "c"]}, "classes has 3 names"),
        ({"regress": True}, "one number per row"),
        ({"keep": 0}, "keep must be"),
        ({"data": {"x": object()}}, "Cannot write the model card"),
        ({"input_signature": {"z": None}}, r"has the names \['z'\], but the inputs"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            export_model(word_model(), base, **options)
    with pytest.raises(ConfigurationError, match="not been built"):
        export_model(keras.Sequential([keras.layers.Dense(1)]), base)
    with pytest.raises(ConfigurationError, match="not a local path"):
        export_model(word_model(), "hdfs://host/models")
    assert not os.path.exists(base) or os.listdir(base) == []


def write(base: Path, keep: int | None = None) -> str:
    with new_version(str(base), keep) as version:
        (Path(version.staging) / "saved_model.pb").write_bytes(b"")
        assert versions_of(str(base)) == [] or newest_version(str(base)) != version.staging
    return version.path


def test_versions_count_up_and_old_ones_go(tmp_path: Path) -> None:
    assert [Path(write(tmp_path)).name for _ in range(3)] == ["1", "2", "3"]
    (tmp_path / "12").mkdir()
    (tmp_path / "007").mkdir()
    assert Path(write(tmp_path, keep=2)).name == "13"
    assert versions_of(str(tmp_path)) == [3, 13]
    (tmp_path / "007" / "saved_model.pb").write_bytes(b"")
    assert version_paths(str(tmp_path))[7] == str(tmp_path / "007")
    (tmp_path / "007" / "saved_model.pb").unlink()
    assert newest_version(f"file://{tmp_path}") == str(tmp_path / "13")
    with pytest.raises(RuntimeError), new_version(str(tmp_path)):
        raise RuntimeError
    assert sorted(os.listdir(tmp_path)) == ["007", "12", "13", "3"]


def test_exporters_at_the_same_time_get_versions_of_their_own(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: write(tmp_path), range(24)))
    assert sorted(int(Path(p).name) for p in paths) == list(range(1, 25))
