"""What differed between versions of TensorFlow 2, for main functions."""

from __future__ import annotations

import os
import secrets
from typing import Any

from tfspark.compat.tensorflowonspark import _notes


@_notes.now("ctx.export(model, directory)")
def export_saved_model(model: Any, export_dir: str, is_chief: bool = False) -> None:
    """Export a model as a SavedModel; only the chief writes, and the directory is there whole or not at all.

    Parameters
    ----------
    model
        A built Keras model.
    export_dir
        The SavedModel's directory; one that exists is replaced.
    is_chief
        Whether this node is the one that writes.
    """
    import tensorflow as tf

    if not is_chief:
        return
    export_dir = export_dir.rstrip("/")
    staging = f"{export_dir}.staging-{secrets.token_hex(6)}"
    files = tf.io.gfile
    try:
        model.export(staging, verbose=False)
        files.makedirs(os.path.dirname(export_dir) or ".")
        if files.exists(export_dir):
            files.rmtree(export_dir)
        files.rename(staging, export_dir)
    finally:
        if files.exists(staging):
            files.rmtree(staging)


def disable_auto_shard(options: Any) -> None:
    """Have a ``tf.data.Options`` keep strategies from leaving out rows of a worker's own dataset."""
    import tensorflow as tf

    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF


def is_gpu_available() -> bool:
    """Tell whether TensorFlow sees a GPU."""
    import tensorflow as tf

    return len(tf.config.list_physical_devices("GPU")) > 0
