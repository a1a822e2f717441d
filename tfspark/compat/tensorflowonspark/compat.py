"""What differed between versions of TensorFlow 2, for main functions."""

from __future__ import annotations

import secrets
from typing import Any

from tfspark.compat.tensorflowonspark import _notes
from tfspark.errors import OutputError


@_notes.now("ctx.export(model, directory)")
def export_saved_model(model: Any, export_dir: str, is_chief: bool = False) -> None:
    """Export a model as a SavedModel; only the chief writes, and the directory is there whole or not at all.

    Inputs and outputs of its signature ``serving_default`` have the names of the model's input and output layers, as
    Keras 2 called them.

    Parameters
    ----------
    model
        A built Keras model.
    export_dir
        The SavedModel's directory; a SavedModel that is there is replaced.
    is_chief
        Whether this node is the one that writes.

    Raises
    ------
    OutputError
        If the directory holds something else.
    """
    import tensorflow as tf

    if not is_chief:
        return
    export_dir = export_dir.rstrip("/")
    staging = f"{export_dir}.staging-{secrets.token_hex(6)}"
    files = tf.io.gfile
    if files.exists(export_dir) and not files.exists(f"{export_dir}/saved_model.pb") and files.listdir(export_dir):
        raise OutputError(f"{export_dir!r} holds something else than a SavedModel.", hint="Name another export_dir.")
    try:
        if getattr(model, "inputs", None):
            tf.saved_model.save(model, staging, signatures={"serving_default": _serving(model)})
        else:
            # A model that is a class of its own names nothing.
            model.export(staging, verbose=False)
        if files.exists(export_dir):
            files.rmtree(export_dir)
        files.rename(staging, export_dir)
    finally:
        if files.exists(staging):
            files.rmtree(staging)


def _serving(model: Any) -> Any:
    import keras
    import tensorflow as tf

    structure = getattr(model, "_inputs_struct", model.inputs[0])
    names = getattr(model, "output_names", None) or [model.layers[-1].name]
    specs = [tf.TensorSpec(t.shape, t.dtype, name=t.name) for t in keras.tree.flatten(structure)]

    @tf.function(input_signature=specs)
    def serve(*inputs: Any) -> dict[str, Any]:
        outputs = model(keras.tree.pack_sequence_as(structure, list(inputs)), training=False)
        return dict(zip(names, keras.tree.flatten(outputs), strict=True))

    return serve


def disable_auto_shard(options: Any) -> None:
    """Have a ``tf.data.Options`` keep strategies from leaving out rows of a worker's own dataset."""
    import tensorflow as tf

    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF


def is_gpu_available() -> bool:
    """Tell whether TensorFlow sees a GPU."""
    import tensorflow as tf

    return len(tf.config.list_physical_devices("GPU")) > 0
