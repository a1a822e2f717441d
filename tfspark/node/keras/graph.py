"""The graph of a model for TensorBoard's Graphs tab, which cannot read the graph that Keras 3 writes."""

from __future__ import annotations

import logging
import os
from typing import Any

import keras
import tensorflow as tf

logger = logging.getLogger("tfspark")


class WriteGraph(keras.callbacks.Callback):
    """Writes the operations of the model's call into the run ``train``, after the first epoch has built the model."""

    def __init__(self, log_dir: str) -> None:
        super().__init__()
        self._directory = os.path.join(log_dir, "train")
        self._written = False

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the graph at the end of the first epoch."""
        if self._written:
            return
        self._written = True
        try:
            graph = graph_of(self.model)
        except Exception as e:
            # A user's own model class may not be callable like this. Its training must continue.
            logger.warning("cannot draw the graph of the model for TensorBoard: %s", e)
            return
        if graph is not None:
            writer = tf.summary.create_file_writer(self._directory)
            with writer.as_default(step=0):
                tf.summary.graph(graph)
            writer.close()


def graph_of(model: Any) -> Any:
    """Return the graph of a model's call, or ``None`` if its inputs are not known."""
    try:
        inputs = keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), model._inputs_struct)
    except AttributeError:
        inputs = [tf.TensorSpec(t.shape, t.dtype) for t in getattr(model, "inputs", None) or []]
        if len(inputs) != 1:
            return None
        inputs = inputs[0]
    return tf.function(lambda x: model(x, training=False)).get_concrete_function(inputs).graph
