"""TensorFlow in Spark ML: an Estimator that trains Keras models, and the Model that it returns.

The driver does not import TensorFlow: models are sent as ``.keras`` bytes or functions and built in the nodes. Nodes
import plans from this package but do not import Spark, so public names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "KerasEstimator": "tfspark.ml.estimator",
    "KerasModel": "tfspark.ml.model",
    "KerasTrainingSummary": "tfspark.ml.summary",
}

__all__ = ["KerasEstimator", "KerasModel", "KerasTrainingSummary"]

if TYPE_CHECKING:
    from tfspark.ml.estimator import KerasEstimator
    from tfspark.ml.model import KerasModel
    from tfspark.ml.summary import KerasTrainingSummary


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tfspark.ml' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
