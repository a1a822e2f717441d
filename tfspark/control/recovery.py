"""Recovery from a failure: decide whether a restart of the nodes can help, and replace lost executors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tfspark.errors import ClusterError, NodeFailed, StartTimeout, TFSparkError
from tfspark.spark.connect import is_connect
from tfspark.spark.internals import executors_of_task, replace_executor

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)


def worth_a_restart(error: TFSparkError, elastic: bool = False) -> bool:
    """Return whether a restart of the nodes can help: not after a stop or an error in the program.

    After a `StartTimeout` a restart can help only an `elastic` cluster, because it may start fewer nodes.
    """
    if isinstance(error, NodeFailed):
        return not error.final
    return type(error) is ClusterError or (elastic and isinstance(error, StartTimeout))


@dataclass(frozen=True)
class SilentTask:
    """A supervising task that has become silent: its Spark stage id and task attempt id."""

    stage: int
    task: int


def replace_executors(spark: SparkSession, tasks: Sequence[SilentTask]) -> None:
    """Make Spark remove the executors of silent tasks and start other executors.

    Spark itself detects the loss of a host only after ``spark.network.timeout``, two minutes by default, and would
    start nodes on it again until then.
    """
    if not tasks or is_connect(spark) or spark.sparkContext.master.startswith("local["):
        # A client of Spark Connect cannot replace executors: the next start takes as long as Spark needs.
        return
    sc = spark.sparkContext
    try:
        # The addresses of executors cannot identify them: Spark's own lists have other ports.
        for executor in sorted({e for t in tasks for e in executors_of_task(sc, t.stage, t.task)}):
            logger.warning("Executor %s does not answer. Spark replaces it.", executor)
            replace_executor(sc, executor)
    except Exception as e:
        # These are internal calls of Spark; if they fail, the next start only takes longer.
        logger.warning("Spark could not replace executors: %s", e)
