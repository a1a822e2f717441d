"""Training with parameter servers: the servers in workers and parameter servers, and the chief's epochs.

The chief's graph runs in the workers' processes, but Python functions in a dataset would run in the chief's process:
``from_generator`` and ``numpy_function`` are bound to the process that created them. A ``PyFunc`` op looks its function
up by a token in the process that runs it. So each worker registers a function that reads its own spool under
`FEED_TOKEN`, and rows never pass through the chief.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import numpy as np
import tensorflow as tf

from tfspark.errors import FeedError
from tfspark.node.chunks import DatasetTerms, read_chunks
from tfspark.node.layout import Layout, graph, rows_of
from tfspark.node.spool import Feed, Spool
from tfspark.spec import ClusterSpec, NodeId, Role

logger = logging.getLogger(__name__)

FEED_TOKEN = "tfspark_feed"
NODE_TOKEN = "tfspark_node"

STEPS_AHEAD = 8
"""Steps per worker that are scheduled before the first result is read."""

EPOCH_ENDED = -1
"""The value that a worker returns instead of a number of rows when it has no rows left in this epoch."""

IDLE_SECONDS = 0.2
"""Pause before the workers are asked again, while a worker restarts or rows are missing."""


def run_server(link: Any, spec: ClusterSpec) -> tuple[Any, ...]:
    """Start TensorFlow's server of a worker or parameter server; it runs while the result is referenced."""
    from tensorflow.python.ops import script_ops

    workers = sum(n.role == Role.WORKER.value for n in link.nodes)
    # TensorFlow's registry holds only weak references.
    source = SpoolSource(link.spool, link.epoch_begun)
    who = np.array([link.node.index, os.getpid()], np.int64)

    def node() -> np.ndarray:
        return who

    script_ops._py_funcs._funcs[FEED_TOKEN] = source
    script_ops._py_funcs._funcs[NODE_TOKEN] = node
    # With fewer threads than workers + 1, servers on few cores deadlock.
    threads = max(os.cpu_count() or 1, workers + 2)
    config = tf.compat.v1.ConfigProto(inter_op_parallelism_threads=threads)
    server = tf.distribute.Server(
        tf.train.ClusterSpec(spec.jobs), job_name=link.node.role, task_index=link.node.index, config=config
    )
    return server, source, node


class SpoolSource:
    """The function that a worker's ``PyFunc`` calls: it returns the rows of the spool in chunks.

    Parameters
    ----------
    spool
        The worker's spool.
    epoch_begun
        Returns the epoch that the chief has begun. A restarted worker needs it: it has not seen the earlier epochs.
    """

    def __init__(self, spool: Spool, epoch_begun: Callable[[], tuple[int, int]]) -> None:
        self._spool, self._epoch_begun = spool, epoch_begun
        self._lock = threading.Lock()
        self._streams: dict[bytes, tuple[Layout, Iterator[Any]]] = {}

    def __call__(self, terms: bytes, i: np.int64) -> list[np.ndarray]:
        """Return whether chunk `i` exists, and its arrays; chunk 0 begins the epoch."""
        with self._lock:
            if i == 0:
                self._streams[terms] = self._open(DatasetTerms.from_json(terms))
            layout, chunks = self._streams[terms]
            chunk = next(chunks, None)
        if chunk is None:
            return [np.array(False), *layout.no_rows()]
        return [np.array(True), *chunk]

    def _open(self, terms: DatasetTerms) -> tuple[Layout, Iterator[Any]]:
        feed, epoch = self._epoch_begun()
        # A chief with its own training loop does not announce epochs. Each worker then counts its own epochs.
        reader = self._spool.next_epoch() if feed < 0 else self._spool.epoch_of(feed, epoch)
        if reader is None:
            raise FeedError(
                "The dataset was iterated more often than epochs were fed.",
                hint="Loop over ctx.epochs(), or pass the number of epochs that main reads to cluster.feed.",
            )
        layout = terms.layout(reader.feed.columns)

        def chunks() -> Iterator[Any]:
            yield from read_chunks(reader, layout, terms)
            reader.complete()

        return layout, chunks()


def remote_chunks(layout: Layout, terms: DatasetTerms) -> tf.data.Dataset:
    """Return a dataset of chunks; its graph reads the spool of the process that runs it."""
    signature = layout.signature
    dtypes = [tf.bool, *(s.dtype for s in signature)]

    def chunk(i: tf.Tensor) -> tuple[tf.Tensor, ...]:
        ok, *arrays = tf.raw_ops.PyFunc(input=[terms.to_json(), i], token=FEED_TOKEN, Tout=dtypes)
        ok.set_shape([])
        for array, spec in zip(arrays, signature, strict=True):
            array.set_shape(spec.shape)
        return ok, *arrays

    dataset = tf.data.Dataset.range(np.iinfo(np.int64).max).map(graph(chunk))
    return dataset.take_while(graph(lambda ok, *_: ok)).map(graph(lambda ok, *arrays: arrays))


class EpochLoop:
    """The chief's loop over the steps of an epoch.

    Each step returns the process that ran it and its number of rows. The epoch ends when the current process of each
    worker has read all rows of that worker; a restarted worker reads its rows again.

    Parameters
    ----------
    link
        The chief's link.
    coordinator
        TensorFlow's coordinator of the cluster.
    step, dataset_fn
        As for `NodeContext.train_epoch`.
    """

    def __init__(
        self,
        link: Any,
        coordinator: tf.distribute.coordinator.ClusterCoordinator,
        step: Callable[..., Any],
        dataset_fn: Callable[[], tf.data.Dataset],
    ) -> None:
        self._link, self._coordinator = link, coordinator
        self._workers = coordinator.strategy._num_workers
        self._dataset = coordinator.create_per_worker_dataset(dataset_fn)
        strategy = coordinator.strategy

        def one(iterator: Any) -> tf.Tensor:
            optional = iterator.get_next_as_optional()

            def some() -> tf.Tensor:
                batch = optional.get_value()
                parts = batch if isinstance(batch, tuple) else (batch,)
                strategy.run(step, args=parts)
                return tf.cast(rows_of(tf.nest.flatten(parts)[0]), tf.int64)

            rows = tf.cond(optional.has_value(), some, lambda: tf.constant(EPOCH_ENDED, tf.int64))
            (who,) = tf.raw_ops.PyFunc(input=[], token=NODE_TOKEN, Tout=[tf.int64])
            return tf.concat([tf.reshape(who, [2]), [rows]], 0)

        self._one = tf.function(one)

    def run(self) -> int:
        """Run the next epoch; return the number of rows used, including those that a failed worker had read."""
        reader = self._link.spool.next_epoch()
        if reader is None:
            raise FeedError(
                "ctx.train_epoch() was called more often than epochs were fed.", hint="Loop over ctx.epochs()."
            )
        self._link.begin_epoch(reader.feed.number, reader.epoch)
        iterator = iter(self._dataset)
        rows: Counter[tuple[int, int]] = Counter()
        ended: set[tuple[int, int]] = set()
        while not self._is_read(reader.feed, rows, ended):
            ahead = range(STEPS_AHEAD * self._workers)
            steps = [self._coordinator.schedule(self._one, args=(iterator,)) for _ in ahead]
            self._coordinator.join()
            before = rows.total()
            for index, pid, n in (s.fetch().tolist() for s in steps):
                if n == EPOCH_ENDED:
                    ended.add((index, pid))
                else:
                    rows[index, pid] += n
            if rows.total() == before:
                self._link.wait_for_news(IDLE_SECONDS)
        reader.complete()
        self._link.spool.rows_completed += sum(reader.feed.rows_by_node.values())
        return rows.total()

    def _is_read(self, feed: Feed, rows: Mapping[tuple[int, int], int], ended: Set[tuple[int, int]]) -> bool:
        """Return whether every worker has used all of its rows or reached their end (it may have dropped a batch)."""
        if not feed.ended:
            return False
        pids = self._link.pids()
        workers = [NodeId(Role.WORKER.value, i) for i in range(self._workers)]
        known = [(w, (w.index, pids[w])) for w in workers]
        return all(one in ended or rows[one] >= feed.rows_by_node.get(str(w), 0) for w, one in known)
