"""Method names of signatures. They tell TensorFlow Serving which requests a signature answers.

TensorFlow 2 writes every signature with the method ``predict``, so the other methods are set afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from tensorflow.core.protobuf import saved_model_pb2

from tfspark.saved_models.versions import SAVED_MODEL_FILE


def set_methods(directory: str, methods: Mapping[str, str]) -> None:
    """Set the method names of signatures of the SavedModel in `directory`; `methods` is keyed by signature name."""
    if not methods:
        return
    path = os.path.join(directory, SAVED_MODEL_FILE)
    proto = saved_model_pb2.SavedModel()
    with open(path, "rb") as f:
        proto.ParseFromString(f.read())
    for graph in proto.meta_graphs:
        for name, method in methods.items():
            graph.signature_def[name].method_name = method
    with open(path, "wb") as f:
        f.write(proto.SerializeToString(deterministic=True))
