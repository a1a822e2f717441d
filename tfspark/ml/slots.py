"""Shares Spark's task slots among trials that train at the same time: a trial waits until its slots are free.

Slots are granted first come, first served. Nodes hold their slots until they end, and feed tasks need one more slot. If
nodes took all slots, no rows could be fed, and no node would ever end.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tfspark.spark.connect import is_connect
from tfspark.spark.profiles import Resources, task_slots
from tfspark.spark.resources import NodeResources
from tfspark.spec import plan_nodes

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

FEEDING = 1
"""Slots for feed tasks, which no node may take."""


class SlotQueue:
    """Grants slots in the order in which they are requested."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._taken = 0

    @property
    def waiting(self) -> int:
        """Number of waiting requests."""
        return len(self._waiting)

    @contextmanager
    def hold(self, wanted: int, capacity: int) -> Iterator[None]:
        """Wait for `wanted` of `capacity` slots and hold them within the block."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            self._changed.notify_all()
            if self._taken + wanted > capacity or len(self._waiting) > 1:
                logger.info("waiting for %d of %d task slots that other trials hold", wanted, capacity)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is ticket and self._taken + wanted <= capacity)
                self._taken += wanted
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._taken -= wanted
                self._changed.notify_all()


_queues: dict[str, SlotQueue] = {}
_queues_lock = threading.Lock()


@contextmanager
def reserved(spark: SparkSession, workers: int, options: Mapping[str, Any]) -> Iterator[None]:
    """Wait for the slots of a cluster's nodes and hold them within the block; one slot stays free for feed tasks.

    Parameters
    ----------
    workers, options
        Arguments of `tfspark.Cluster`; those that set the nodes and the resources of each node are used.

    Raises
    ------
    ResourceError
        If Spark has too few resources for this cluster, even without other trials.
    """
    nodes = plan_nodes(workers, options.get("chief", False), options.get("ps", 0), options.get("evaluator", False))
    gpus, cpus, spread = (options.get(n) for n in ("gpus_per_node", "cpus_per_node", "spread"))
    resources = Resources(spark, nodes, NodeResources.of(gpus, cpus, bool(spread)))
    groups = resources.groups_beside_feeding()
    if resources.settings.dynamic:
        # With dynamic allocation, Spark knows the possible number of executors only when they are requested.
        yield
        return
    slot = resources.settings.task.cpus
    wanted = sum(len(g.nodes) * math.ceil(g.need.cpus / slot) for g in groups)
    slots = task_slots(spark)
    if slots is None:
        # Only Spark knows the number of slots. It makes trials that do not fit wait.
        yield
        return
    with _queues_lock:
        queue = _queues.setdefault(_application(spark), SlotQueue())
    # A cluster with its own resource profiles, such as tasks without GPUs, may fit although it needs more slots than
    # there are default slots.
    with queue.hold(wanted, max(wanted, slots - FEEDING)):
        yield


def _application(spark: SparkSession) -> str:
    """Return the ID of a session's application; on Spark Connect, where it is unknown, return the ID of the session."""
    return str(spark.session_id if is_connect(spark) else spark.sparkContext.applicationId)  # type: ignore[attr-defined]
