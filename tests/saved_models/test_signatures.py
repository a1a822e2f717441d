"""What a SavedModel says of itself, read without TensorFlow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tfspark.errors import ConfigurationError
from tfspark.saved_models.description import DTYPES, read_signatures
from tfspark.saved_models.signatures import CLASSIFY, PREDICT, TensorInfo
from tfspark.saved_models.versions import SAVED_MODEL_FILE


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tensorflow as tf

    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float16, "x"), tf.TensorSpec(None, tf.string, "s")])
        def several(self, x: Any, s: Any) -> Any:
            return {"flag": x > 0, "s": s, "twice": x * 2}

        @tf.function(input_signature=[tf.TensorSpec([], tf.int64, "n")])
        def none(self, n: Any) -> Any:
            return {"n": tf.zeros([n, 0], tf.uint8)}

    model = Model()
    found = tmp_path_factory.mktemp("model")
    tf.saved_model.save(model, str(found), {"serving_default": model.several, "none": model.none})
    return found


def test_signatures_are_those_that_tensorflow_reads(directory: Path) -> None:
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    found = read_signatures(str(directory))
    assert list(found) == ["none", "serving_default"]
    assert {n: (i.dtype, i.shape) for n, i in found["serving_default"].inputs.items()} == {
        "s": ("string", None),
        "x": ("float16", (None, 3)),
    }
    assert found["none"].inputs["n"].shape == () and found["none"].outputs["n"].shape == (None, 0)

    proto = saved_model_pb2.SavedModel.FromString((directory / SAVED_MODEL_FILE).read_bytes())
    defined = proto.meta_graphs[0].signature_def
    for name, signature in found.items():
        assert signature.method == defined[name].method_name == PREDICT
        for ours, theirs in [(signature.inputs, defined[name].inputs), (signature.outputs, defined[name].outputs)]:
            assert ours == {
                n: TensorInfo(tf.as_dtype(t.dtype).name, _shape(tf.TensorShape(t.tensor_shape)), t.name)
                for n, t in theirs.items()
            }


def _shape(shape: Any) -> tuple[int | None, ...] | None:
    return None if shape.rank is None else tuple(shape.as_list())


def test_dtypes_have_tensorflows_numbers() -> None:
    import tensorflow as tf
    from tensorflow.core.framework import types_pb2

    assert [tf.as_dtype(n).name for n in range(1, len(DTYPES) + 1)] == list(DTYPES)
    assert len(DTYPES) == types_pb2.DT_FLOAT8_E4M3FN


def test_tensorflow_is_not_imported(directory: Path) -> None:
    program = f"""
import sys
from tfspark.saved_models.description import read_signatures
print(*read_signatures({str(directory)!r}), "tensorflow" in sys.modules, "google.protobuf" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "none serving_default False False\n", done.stderr


def test_other_graphs_and_damaged_files_are_told_apart(directory: Path, tmp_path: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    whole = saved_model_pb2.SavedModel.FromString((directory / SAVED_MODEL_FILE).read_bytes())
    small = saved_model_pb2.SavedModel()
    other = small.meta_graphs.add()
    other.meta_info_def.tags.append("train")
    other.signature_def["other"].method_name = PREDICT
    served = small.meta_graphs.add()
    served.meta_info_def.tags.extend(["gpu", "serve"])
    for name, signature in whole.meta_graphs[0].signature_def.items():
        served.signature_def[name].CopyFrom(signature)
    served.signature_def["serving_default"].method_name = CLASSIFY
    data = small.SerializeToString()
    file = tmp_path / SAVED_MODEL_FILE
    file.write_bytes(data)
    expected = read_signatures(str(tmp_path))
    assert list(expected) == ["none", "serving_default"] and expected["serving_default"].method == CLASSIFY

    errors = 0
    for i in range(len(data)):
        for damaged in (data[:i], data[:i] + bytes([data[i] ^ 0x81]) + data[i + 1 :]):
            file.write_bytes(damaged)
            try:
                read_signatures(str(tmp_path))
            except ConfigurationError as e:
                assert str(e).startswith(f"Cannot read {file}: ")
                errors += 1
    assert errors > len(data)
