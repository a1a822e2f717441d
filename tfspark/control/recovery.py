"""After a failure: whether starting the nodes again can help, and having Spark replace executors that are lost."""

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
    """Tell whether the same nodes, started again, might do better: not after a stop, or a mistake in the program.

    Fewer nodes, as an `elastic` cluster starts them, may do better where not all came in time.
    """
    if isinstance(error, NodeFailed):
        return not error.final
    return type(error) is ClusterError or (elastic and isinstance(error, StartTimeout))


@dataclass(frozen=True)
class SilentTask:
    """A supervising task that is not heard of any more, by Spark's numbers of it."""

    stage: int
    task: int


def replace_executors(spark: SparkSession, tasks: Sequence[SilentTask]) -> None:
    """Have Spark give up the executors of tasks that are not heard of any more, and start others.

    Spark itself notices the loss of a host only after ``spark.network.timeout``, two minutes, and would start nodes
    there again until then.
    """
    if not tasks or is_connect(spark) or spark.sparkContext.master.startswith("local["):
        # A client of Spark Connect has no say in executors: the next start takes as long as Spark needs.
        return
    sc = spark.sparkContext
    try:
        # What executors call themselves here does not help: Spark's own lists have other ports for them.
        for executor in sorted({e for t in tasks for e in executors_of_task(sc, t.stage, t.task)}):
            logger.warning("Executor %s does not answer. Spark replaces it.", executor)
            replace_executor(sc, executor)
    except Exception as e:
        # These are internal calls; without them the next start merely takes longer.
        logger.warning("Spark could not replace executors: %s", e)
