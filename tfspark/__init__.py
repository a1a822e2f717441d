"""tfspark: train and run TensorFlow on the Spark cluster you already have.

Spark schedules the processes, Arrow transfers the rows, TensorFlow trains. ``import tfspark`` imports none of the
three: public names are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Cluster": "tfspark.cluster",
    "FeedReport": "tfspark.feeding.report",
    "NodeContext": "tfspark.node.context",
    "add_connector": "tfspark.spark.session",
    "configure": "tfspark.spark.session",
    "errors": "tfspark.errors",
    "jobs": "tfspark.jobs",
    "ml": "tfspark.ml",
    "predict": "tfspark.prediction",
    "predict_udf": "tfspark.prediction",
    "run": "tfspark.cluster",
    "session": "tfspark.spark.session",
}

__all__ = [
    "Cluster",
    "FeedReport",
    "NodeContext",
    "add_connector",
    "configure",
    "errors",
    "jobs",
    "ml",
    "predict",
    "predict_udf",
    "run",
    "session",
]

if TYPE_CHECKING:
    from tfspark import errors, jobs, ml
    from tfspark.cluster import Cluster, run
    from tfspark.feeding.report import FeedReport
    from tfspark.node.context import NodeContext
    from tfspark.prediction import predict, predict_udf
    from tfspark.spark.session import add_connector, configure, session


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tfspark' has no attribute {name!r}")
    module = importlib.import_module(home)
    value = module if home.endswith(f".{name}") and not hasattr(module, name) else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
