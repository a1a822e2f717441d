"""Warm-up: runs the requests in a version's files before the version is served, because first calls are slow."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from tensorflow_serving.apis import prediction_log_pb2

from tfspark.errors import ConfigurationError
from tfspark.model_server import messages, metrics
from tfspark.model_server.errors import RequestError
from tfspark.model_server.loaded import LoadedVersion
from tfspark.records.errors import BadRecord
from tfspark.records.framing import RecordReader
from tfspark.saved_models.card import DIRECTORY
from tfspark.saved_models.signatures import CLASSIFY, REGRESS

logger = logging.getLogger(__name__)

FILE = "tf_serving_warmup_requests"
"""Name of a TFRecord file of PredictionLogs in ``assets.extra``."""

MOST_RECORDS = 1000
"""Largest number of records; the same limit as in TensorFlow Serving."""

MOST_BYTES = 1 << 30
"""Largest size of one record and of one input."""


def warm_up(loaded: LoadedVersion) -> None:
    """Run the warm-up requests of a version.

    Raises
    ------
    ConfigurationError
        If the requests cannot be read, fail, or are too many.
    """
    path = os.path.join(loaded.directory, DIRECTORY, FILE)
    if not os.path.isfile(path):
        return
    began = time.monotonic()
    count = 0
    with open(path, "rb") as f:
        try:
            for record in RecordReader(f, path, max_record_bytes=MOST_BYTES):
                count += 1
                if count > MOST_RECORDS:
                    raise ConfigurationError(f"{path} has more than {MOST_RECORDS} warm-up requests.")
                _answer(loaded, prediction_log_pb2.PredictionLog.FromString(bytes(record)))
        except BadRecord as e:
            raise ConfigurationError(f"Cannot read the warm-up requests: {e}") from None
        except RequestError as e:
            raise ConfigurationError(f"Warm-up request {count - 1} of {path} failed: {e.message}") from None
    metrics.warmed_up(loaded.model, time.monotonic() - began)
    logger.info("warmed up version %d of %s with %d requests", loaded.number, loaded.model, count)


def _answer(loaded: LoadedVersion, log: Any) -> None:
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        calls = [messages.predict_call(log.predict_log.request, loaded, MOST_BYTES)]
    elif kind == "classify_log":
        request = log.classify_log.request
        calls = [messages.example_call(request.model_spec, request.input, loaded, CLASSIFY, MOST_BYTES)]
    elif kind == "regress_log":
        request = log.regress_log.request
        calls = [messages.example_call(request.model_spec, request.input, loaded, REGRESS, MOST_BYTES)]
    elif kind == "multi_inference_log":
        calls = [c for _, c in messages.tasks(log.multi_inference_log.request, loaded, MOST_BYTES)]
    else:
        raise RequestError(f"Unsupported log_type for warmup: {kind}")
    for call in calls:
        loaded.call(call.signature, call.inputs, call.outputs)
