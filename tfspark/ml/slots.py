"""Trials that train at the same time share Spark's task slots: each waits, first come, first served, for its own.

Nodes hold their slots until they end, and whoever feeds them needs one more. Were all slots taken by nodes, nothing
could be fed, and nothing would ever end.
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
"""Slots that no node may take."""


class SlotQueue:
    """Grants slots in the order in which they are asked for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._taken = 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @contextmanager
    def hold(self, wanted: int, capacity: int) -> Iterator[None]:
        """Hold `wanted` of `capacity` slots within the block; waits for them."""
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
    """Hold the slots of a cluster's nodes within the block, and leave one for feeding; waits for other trials.

    Parameters
    ----------
    workers, options
        Arguments of `tfspark.Cluster`, those that say what nodes there are and what each takes among them.

    Raises
    ------
    ResourceError
        If Spark has too little for this cluster alone.
    """
    nodes = plan_nodes(workers, options.get("chief", False), options.get("ps", 0), options.get("evaluator", False))
    gpus, cpus, spread = (options.get(n) for n in ("gpus_per_node", "cpus_per_node", "spread"))
    resources = Resources(spark, nodes, NodeResources.of(gpus, cpus, bool(spread)))
    groups = resources.groups_beside_feeding()
    if resources.settings.dynamic:
        # How many executors there could be, Spark knows when they are asked for.
        yield
        return
    slot = resources.settings.task.cpus
    wanted = sum(len(g.nodes) * math.ceil(g.need.cpus / slot) for g in groups)
    slots = task_slots(spark)
    if slots is None:
        # How many there are, only Spark knows: it makes trials wait that do not fit.
        yield
        return
    with _queues_lock:
        queue = _queues.setdefault(_application(spark), SlotQueue())
    # What fits alone by profiles of its own, such as tasks without GPUs, may be more than there are default slots.
    with queue.hold(wanted, max(wanted, slots - FEEDING)):
        yield


def _application(spark: SparkSession) -> str:
    """Return what names the application of a session; on Spark Connect the session, as a client knows no more."""
    return str(spark.session_id if is_connect(spark) else spark.sparkContext.applicationId)  # type: ignore[attr-defined]
