"""A loaded version of a model, in a TensorFlow session as in TensorFlow Serving.

A session runs graphs of TensorFlow 1 and 2, and lets the graph decide which shapes it accepts.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from tfspark.model_server.batching import Batcher
from tfspark.model_server.errors import ModelFailed, RequestError
from tfspark.saved_models.card import read_card
from tfspark.saved_models.description import read_signatures
from tfspark.saved_models.signatures import Signature, TensorInfo

Arrays = Mapping[str, np.ndarray]


class LoadedVersion:
    """A version that can be called.

    Attributes
    ----------
    signatures
        Signatures by name.
    definitions
        Signatures as TensorFlow's ``SignatureDef`` messages, including TensorFlow's internal signatures.
    card
        The model card, or None.
    batchers
        Batchers by signature and outputs; only the server's event loop uses them.
    """

    def __init__(self, model: str, number: int, directory: str) -> None:
        self.model, self.number, self.directory = model, number, directory
        self.signatures: dict[str, Signature] = read_signatures(directory)
        self.card = read_card(directory)
        self.batchers: dict[tuple[str, tuple[str, ...]], Batcher] = {}
        graph = tf.Graph()
        # The old version is still loaded, so this one must allocate GPU memory only as needed.
        options = tf.compat.v1.ConfigProto(gpu_options=tf.compat.v1.GPUOptions(allow_growth=True))
        self._session = tf.compat.v1.Session(graph=graph, config=options)
        self._closing = weakref.finalize(self, self._session.close)
        try:
            with graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(self._session, ["serve"], directory)
        except BaseException:
            self._closing()
            raise
        self.definitions: dict[str, Any] = dict(meta_graph.signature_def)
        self.defaults: dict[str, dict[str, np.ndarray]] = {
            n: {k: tf.make_ndarray(v) for k, v in d.defaults.items()} for n, d in self.definitions.items()
        }
        self._callables: dict[tuple[tuple[str, ...], tuple[str, ...]], Any] = {}
        self._lock = threading.Lock()

    def call(self, signature: str, inputs: Arrays, outputs: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Call a signature and return the named outputs, or all outputs if none is named. Thread-safe.

        Raises
        ------
        ModelFailed
            If the graph rejects the inputs or fails.
        """
        of = self.signatures[signature]
        wanted = tuple(outputs or of.outputs)
        fetches = tuple(_tensor(n, of.outputs[n]) for n in wanted)
        feeds = {_tensor(n, of.inputs[n]): a for n, a in inputs.items()}
        names = tuple(sorted(feeds))
        try:
            produced = self._callable(names, fetches)(*(feeds[n] for n in names))
        except tf.errors.OpError as e:
            raise ModelFailed(e) from None
        return {n: _array(p) for n, p in zip(wanted, produced, strict=True)}

    def _callable(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> Any:
        with self._lock:
            if (feeds, fetches) not in self._callables:
                options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
                # Unlike TensorFlow Serving, `Session.run` checks the declared shapes. It takes ten times as long.
                # `make_callable` checks them too if there are inputs.
                self._callables[feeds, fetches] = self._session._make_callable_from_options(options)
            return self._callables[feeds, fetches]


def _tensor(name: str, info: TensorInfo) -> str:
    if not info.tensor:
        raise RequestError(f'"{name}" is not a dense tensor, so it cannot be served.')
    return info.tensor


def _array(value: Any) -> np.ndarray:
    if not isinstance(value, bytes):
        return np.asarray(value)
    # NumPy's string dtypes drop trailing null bytes.
    array = np.empty((), object)
    array[()] = value
    return array
