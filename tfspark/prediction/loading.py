"""Models in a Spark Python worker: loaded once, and shared by all tasks and batches of the process."""

from __future__ import annotations

import functools
import logging
import os
import sys
import tempfile
import threading
from collections import OrderedDict
from typing import Any

from tfspark.errors import ConfigurationError, first_line
from tfspark.executor.gpu import NONE, VISIBLE, gpus_of_process
from tfspark.prediction.model_source import EmbeddedModel, ModelCall, ModelSource, export_keras
from tfspark.saved_models.card import with_card
from tfspark.saved_models.description import read_signature
from tfspark.saved_models.masking import masked_values, with_masks
from tfspark.saved_models.signatures import Signature
from tfspark.spark.garbage import freeze
from tfspark.tensorflow_import import import_tensorflow

logger = logging.getLogger(__name__)

KEPT_MODELS = 4
"""Models that a process keeps loaded; beyond that, the least recently used model is dropped."""


class LoadedModel:
    """A SavedModel in memory; `signatures` are its functions by name."""

    def __init__(self, directory: str) -> None:
        import tensorflow as tf

        # Keep the model: its signatures hold no reference to it.
        self._model = tf.saved_model.load(directory)
        self.signatures: dict[str, Any] = dict(self._model.signatures)


_models: OrderedDict[str, LoadedModel] = OrderedDict()
_lock = threading.Lock()


def function_of(call: ModelCall) -> Any:
    """Return the callable signature; load the model if this process has not loaded it.

    Raises
    ------
    ConfigurationError
        If the model has no such signature, or cannot be read.
    """
    with _lock:
        key = call.source.key
        if key not in _models:
            start_tensorflow()
            _models[key] = _load(call.source)
            while len(_models) > KEPT_MODELS:
                _models.popitem(last=False)
        _models.move_to_end(key)
        signatures = _models[key].signatures
    if call.signature not in signatures:
        raise ConfigurationError(f"The model has no signature {call.signature!r}.", hint=f"It has {list(signatures)}.")
    return signatures[call.signature]


def _load(source: ModelSource) -> LoadedModel:
    if not isinstance(source, EmbeddedModel) and not source.is_keras_file:
        return LoadedModel(source.path)
    with tempfile.TemporaryDirectory(prefix="tfspark-model-") as directory:
        _write(source, directory)
        return LoadedModel(directory)


def _write(source: ModelSource, directory: str) -> dict[str, float]:
    """Write a model that is not a SavedModel directory as one, and return the mask values of its inputs if known."""
    if isinstance(source, EmbeddedModel):
        source.unpack(directory)
        return {}
    start_tensorflow()
    import keras

    try:
        model = keras.models.load_model(source.path, compile=False)
    except (ValueError, TypeError, OSError) as e:
        raise ConfigurationError(
            f"Keras cannot load {source.path}: {first_line(e)}",
            hint="A model with classes of your own: pass the Keras model itself, or export it as a SavedModel.",
        ) from None
    export_keras(model, directory)
    return masked_values(model)


def describe(call: ModelCall) -> Signature:
    """Return the description of a signature; do not load the model if it is a SavedModel directory.

    Raises
    ------
    ConfigurationError
        If the model has no such signature, or cannot be read.
    """
    if not isinstance(call.source, EmbeddedModel) and not call.source.is_keras_file:
        path = call.source.path
        return with_card(read_signature(path, call.signature), path)
    with tempfile.TemporaryDirectory(prefix="tfspark-model-") as directory:
        masks = _write(call.source, directory)
        return with_masks(read_signature(directory, call.signature), masks)


@functools.cache
def start_tensorflow() -> None:
    """Import TensorFlow, once per process, and limit it to the CPUs and GPUs that Spark gave the task.

    A task without GPUs computes on CPUs, unless ``CUDA_VISIBLE_DEVICES`` says otherwise. Later tasks reuse the Python
    worker, which keeps the GPU of its first task: CUDA cannot be started twice.

    Raises
    ------
    ResourceError
        If Spark assigned a GPU that the executor does not see.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from pyspark import TaskContext

    context = TaskContext.get()
    if context is not None:
        assigned = context.resources().get("gpu")
        addresses = [] if assigned is None else assigned.addresses
        _, told = gpus_of_process(len(addresses) or None, addresses, os.environ, os.environ.get(VISIBLE))
        os.environ.update(told)
    was_there = "tensorflow" in sys.modules
    tf = import_tensorflow()
    try:
        if context is not None:
            # Otherwise each task starts a thread per core, so an executor runs as many threads as its cores squared.
            threads = max(1, int(context.cpus()))
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
            if os.environ[VISIBLE] == NONE:
                # For the case that TensorFlow was imported before.
                tf.config.set_visible_devices([], "GPU")
        for device in tf.config.get_visible_devices("GPU"):
            # Other Python workers may use the GPU at the same time.
            tf.config.experimental.set_memory_growth(device, True)
    except RuntimeError as e:
        # Other code in this worker has already started TensorFlow.
        logger.warning("TensorFlow has started already; its devices and threads cannot be changed: %s", e)
    if not was_there:
        freeze()
