"""After a failure: whether starting the nodes again can help, and having Spark replace executors that are lost."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tfspark.errors import ClusterError, NodeFailed, TFSparkError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)


def worth_a_restart(error: TFSparkError) -> bool:
    """Tell whether the same nodes, started again, might do better: not after a stop, or a mistake in the program."""
    if isinstance(error, NodeFailed):
        return not error.final
    return type(error) is ClusterError


def replace_executors(spark: SparkSession, addresses: Sequence[str]) -> None:
    """Have Spark give up executors that do not answer, and start others.

    Spark itself notices the loss of a host only after ``spark.network.timeout``, two minutes, and would start nodes
    there again until then.

    Parameters
    ----------
    addresses
        ``host:port`` of executors, as Spark's own list of them has it.
    """
    if not addresses or spark.sparkContext.master.startswith("local["):
        return
    sc = spark.sparkContext._jsc.sc()  # type: ignore[attr-defined]
    try:
        executors = sc.statusStore().executorList(True)
        for i in range(executors.size()):
            executor = executors.apply(i)
            if executor.hostPort() in addresses:
                logger.warning("Executor %s on %s does not answer: it is replaced.", executor.id(), executor.hostPort())
                sc.killAndReplaceExecutor(executor.id())
    except Exception as e:
        # It is an internal call; without it the next start merely takes longer.
        logger.warning("Spark could not be asked to replace executors: %s", e)
