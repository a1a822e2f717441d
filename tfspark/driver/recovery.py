"""After a failure: whether starting the nodes again can help, and having Spark replace executors that are lost."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfspark.errors import ClusterError, NodeFailed, TFSparkError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)


def worth_a_restart(error: TFSparkError) -> bool:
    """Tell whether the same nodes, started again, might do better: not after a stop, or a mistake in the program."""
    if isinstance(error, NodeFailed):
        return not error.final
    return type(error) is ClusterError


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
    if not tasks or spark.sparkContext.master.startswith("local["):
        return
    sc = spark.sparkContext._jsc.sc()  # type: ignore[attr-defined]
    try:
        for executor in sorted({e for t in tasks for e in _executors_of(sc, t)}):
            logger.warning("Executor %s does not answer: it is replaced.", executor)
            sc.killAndReplaceExecutor(executor)
    except Exception as e:
        # These are internal calls; without them the next start merely takes longer.
        logger.warning("Spark could not be asked to replace executors: %s", e)


def _executors_of(sc: Any, silent: SilentTask) -> list[str]:
    # What executors call themselves here does not help: Spark's own lists have other ports for them.
    store = sc.statusStore()
    attempt = store.lastStageAttempt(silent.stage).attemptId()
    tasks = store.taskList(silent.stage, attempt, 1 << 16)
    found = (tasks.apply(i) for i in range(tasks.size()))
    return [t.executorId() for t in found if t.taskId() == silent.task]
