"""Functions for main functions that hide differences between versions of TensorFlow 2."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable
from typing import Any

from tfspark.compat.tensorflowonspark import _notes
from tfspark.errors import OutputError


@_notes.now("ctx.export(model, directory)")
def export_saved_model(model: Any, export_dir: str, is_chief: bool = False) -> None:
    """Export a model as a SavedModel; only the chief writes, and the directory is either complete or missing.

    Inputs and outputs of the signature ``serving_default`` have the names of Keras 2: those that the program gave, or
    else those of the layers, such as ``conv2d_input`` and ``dense_1``. The names do not depend on how many models the
    process has built. Call this function on all workers: models of Keras 2 (``TF_USE_LEGACY_KERAS=1``) contain values
    that all workers must sum when a model is saved.

    Parameters
    ----------
    model
        A built model of Keras 3, or of Keras 2 from the package ``tf_keras``.
    export_dir
        The SavedModel's directory; an existing SavedModel is replaced.
    is_chief
        Whether this node writes the SavedModel.

    Raises
    ------
    OutputError
        If the directory contains files that are not a SavedModel.
    """
    if is_chief:
        _replace(export_dir.rstrip("/"), lambda staging: _save(model, staging))
    elif _is_of_keras_2(model):
        with tempfile.TemporaryDirectory(prefix="tfspark-export-") as scratch:
            _save(model, scratch)


def _replace(export_dir: str, save: Callable[[str], None]) -> None:
    import tensorflow as tf

    staging = f"{export_dir}.staging-{secrets.token_hex(6)}"
    files = tf.io.gfile
    if files.exists(export_dir) and not files.exists(f"{export_dir}/saved_model.pb") and files.listdir(export_dir):
        raise OutputError(f"{export_dir!r} contains files that are not a SavedModel.", hint="Pass another export_dir.")
    try:
        save(staging)
        if files.exists(export_dir):
            files.rmtree(export_dir)
        files.rename(staging, export_dir)
    finally:
        if files.exists(staging):
            files.rmtree(staging)


def _is_of_keras_2(model: Any) -> bool:
    return any(cls.__module__.partition(".")[0] == "tf_keras" for cls in type(model).__mro__)


def _save(model: Any, directory: str) -> None:
    import tensorflow as tf

    if _is_of_keras_2(model):
        model.save(directory, save_format="tf")
    else:
        tf.saved_model.save(model, directory, signatures={"serving_default": _serving(model)})


def _serving(model: Any) -> Any:
    """Return the function to export, which maps tensors in the order of the inputs to a dict of outputs."""
    import keras
    import tensorflow as tf
    from keras.src.export.export_utils import get_input_signature

    from tfspark.compat.tensorflowonspark import _keras2_names
    from tfspark.node.keras.inputs import known_inputs

    structure = list(get_input_signature(model))
    specs = keras.tree.flatten(structure)
    named = known_inputs(model)
    names = _keras2_names.input_names(model) if named else _keras2_names.argument_names(structure)

    @tf.function(input_signature=[tf.TensorSpec(s.shape, s.dtype, name=n) for s, n in zip(specs, names, strict=True)])
    def serve(*inputs: Any) -> dict[str, Any]:
        outputs = model(*keras.tree.pack_sequence_as(structure, list(inputs)), training=False)
        of_model = _keras2_names.output_names(model) if named else _keras2_names.result_names(outputs)
        return dict(zip(of_model, keras.tree.flatten(outputs), strict=True))

    return serve


def disable_auto_shard(options: Any) -> None:
    """Turn off auto-sharding in a ``tf.data.Options``, so that strategies do not skip rows of a worker's dataset."""
    import tensorflow as tf

    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF


def is_gpu_available() -> bool:
    """Return whether TensorFlow sees a GPU."""
    import tensorflow as tf

    return len(tf.config.list_physical_devices("GPU")) > 0
