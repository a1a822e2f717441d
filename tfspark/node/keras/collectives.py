"""Sums over the workers, by TensorFlow's own collective operations.

Every worker calls the same operation with the same key. Keys are counted, so workers that run the same program agree
on them.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from tfspark.node.keras import same_host
from tfspark.transport.step_clock import StepClock

GROUP_KEY = 0x7F5A
"""Names the group of all workers towards TensorFlow; +1 for the same group on its GPUs."""

FIRST_INSTANCE_KEY = 1 << 20
"""Instance keys below are those of MultiWorkerMirroredStrategy."""

SIZES = tuple(1 << k for k in range(4, 40))
"""Sizes that tensors of varying size are padded to: an instance of a collective keeps its shape."""

SUMMED = (tf.float32, tf.float64, tf.int32, tf.int64)
"""Kinds of numbers that are added up; others are cast to one of them."""

VARYING_KEYS = len(SIZES) * len(SUMMED)
"""Keys of a collective whose size varies: one for each size and kind."""

KEYS_OF_STEP = 1 << 14
"""Keys of the collectives that one training step may have."""

BROADCAST_BYTES = 32 << 20
"""Variables are broadcast in pieces of about this size, so that no second copy of a large model is made."""


def set_up() -> Any:
    """Start the collective runtime of this process, by ``TF_CONFIG``; must come before any other operation.

    Returns the strategy that has done so; it is kept, not used: it watches the health of the peers.
    """
    return tf.distribute.MultiWorkerMirroredStrategy()


@dataclass
class Group:
    """All workers that train together.

    Attributes
    ----------
    size
        Number of workers.
    rank
        Index of this one; 0 is the chief.
    clock
        Told when this process waits for the others.
    shared
        Memory that all of them see, if they are on one host; known after `meet`.
    """

    size: int
    rank: int
    clock: StepClock | None = None
    shared: same_host.SharedSum | None = None
    _has_met: bool = False
    _keys: Any = field(default_factory=lambda: itertools.count(FIRST_INSTANCE_KEY, KEYS_OF_STEP))

    def new_keys(self) -> int:
        """Return the first of `KEYS_OF_STEP` keys that nobody else has; call it in the same order on all workers."""
        return next(self._keys)

    def meet(self) -> None:
        """Find out, the first time, whether all workers are on one host; to be called by all of them."""
        if self._has_met or self.size == 1:
            return
        self._has_met = True
        if tf.config.list_logical_devices("GPU"):
            return
        key = self.new_keys()

        def tell(numbers: list[int]) -> list[int]:
            chosen = numbers if self.rank == 0 else [0] * len(numbers)
            return self.all_reduce(tf.constant(chosen, tf.int64), key).numpy().tolist()

        def all_agree(mine: bool) -> bool:
            return bool(self.all_reduce(tf.constant([int(mine)]), key + 1, "Min").numpy()[0])

        self.shared = same_host.meet(self.rank, self.size, tell, all_agree)

    def sum_of_gradients(self, value: tf.Tensor, key: int, on_gpu: bool) -> tf.Tensor:
        """As `all_reduce`, for a large vector: through shared memory if all workers are on one host."""
        if self.shared is None or on_gpu:
            return self.all_reduce(value, key, on_gpu=on_gpu)
        total = tf.numpy_function(self.shared.add, [value], value.dtype)
        total.set_shape(value.shape)
        return total

    def _noted(self) -> contextlib.AbstractContextManager[None]:
        """Have the clock know that this process waits for the others, if it does now."""
        waits = self.clock is not None and tf.executing_eagerly()
        return self.clock.step() if waits and self.clock is not None else contextlib.nullcontext()

    def all_reduce(self, value: tf.Tensor, key: Any, merge: str = "Add", on_gpu: bool = False) -> tf.Tensor:
        """Add a tensor up over the workers (or take its ``Max`` or ``Min``); all have the same result, bit by bit.

        Parameters
        ----------
        value
            Of the same shape and dtype on all workers: float32, float64, int32 or int64.
        key
            The same on all workers.
        on_gpu
            Reduce on the GPU that this process sees, by NCCL.
        """
        if self.size == 1:
            return tf.identity(value)
        shape = tf.shape(value)
        with self._noted(), tf.device("/GPU:0" if on_gpu else "/CPU:0"):
            reduced = tf.raw_ops.CollectiveReduceV2(
                input=tf.reshape(value, [-1]),
                group_size=self.size,
                group_key=GROUP_KEY + on_gpu,
                instance_key=key,
                ordering_token=[],
                merge_op=merge,
                final_op="Id",
                communication_hint="nccl" if on_gpu else "auto",
            )
            return tf.reshape(reduced, shape)

    def all_gather(self, value: tf.Tensor, key: Any) -> tf.Tensor:
        """Concatenate the workers' tensors, of the same shape on all, along the first dimension, in order of rank."""
        if self.size == 1:
            return tf.identity(value)
        with self._noted(), tf.device("/CPU:0"):
            return tf.raw_ops.CollectiveGatherV2(
                input=value,
                group_size=self.size,
                group_key=GROUP_KEY,
                instance_key=key,
                ordering_token=[],
            )

    def all_reduce_varying(self, flat: tf.Tensor, key: int, merge: str = "Add") -> tf.Tensor:
        """As `all_reduce`, for a vector whose size is the same on all workers, but not at all times.

        Takes `VARYING_KEYS` keys from `key` on.
        """
        n = tf.shape(flat)[0]
        size, which = padded_size(n, flat.dtype)
        return self.all_reduce(tf.pad(flat, [[0, size - n]]), key + which, merge)[:n]

    def all_gather_varying(self, value: tf.Tensor, rows: tf.Tensor, key: int) -> tf.Tensor:
        """Concatenate the workers' tensors along the first dimension, of which each may have another number.

        Parameters
        ----------
        value
            Of the same shape on all workers but for the first dimension.
        rows
            int32 vector: the first dimension of each worker's.
        key
            The first of `VARYING_KEYS` keys.
        """
        size, which = padded_size(tf.reduce_max(rows), value.dtype)
        rest = tf.concat([[[0, size - tf.shape(value)[0]]], tf.zeros([tf.rank(value) - 1, 2], tf.int32)], 0)
        gathered = self.all_gather(tf.pad(value, rest), key + which)
        return tf.boolean_mask(gathered, tf.reshape(tf.sequence_mask(rows, size), [-1]))

    def add(self, values: Any, key: int) -> np.ndarray:
        """Add numbers up over the workers, now; takes `VARYING_KEYS` keys from `key` on."""
        return self.all_reduce_varying(tf.constant(np.asarray(values, np.float64)), key).numpy()

    def broadcast(self, variables: Sequence[tf.Variable], key: int) -> None:
        """Give all workers the values that the chief's variables have, now.

        Raises
        ------
        ValueError
            If the workers' variables differ in number, shape or dtype.

        Takes 2 keys more than `VARYING_KEYS`.
        """
        self._check_alike(variables, key)
        kinds = sorted({_reduced_as(v.dtype) for v in variables}, key=lambda dtype: dtype.name)
        for kind in kinds:
            alike = [v for v in variables if _reduced_as(v.dtype) == kind]
            for bucket in buckets([v.shape.num_elements() * kind.size for v in alike], BROADCAST_BYTES):
                self._broadcast([alike[i] for i in bucket], kind, key + 2)

    def _check_alike(self, variables: Sequence[tf.Variable], key: int) -> None:
        described = [(tuple(v.shape), v.dtype.name) for v in variables]
        digest = np.array([len(described), _digest(described)], np.float64)
        low = self.all_reduce(tf.constant(digest), key, "Min").numpy()
        high = self.all_reduce(tf.constant(digest), key + 1, "Max").numpy()
        if (low != high).any():
            raise ValueError("The workers' models have different variables.")

    def _broadcast(self, variables: Sequence[tf.Variable], kind: tf.DType, key: int) -> None:
        flat = tf.concat([tf.reshape(tf.cast(v.value(), kind), [-1]) for v in variables], 0)
        received = self.all_reduce_varying(flat if self.rank == 0 else tf.zeros_like(flat), key)
        for v, part in zip(variables, _split(received, variables), strict=True):
            if self.rank != 0:
                v.assign(tf.cast(part, v.dtype))


def _reduced_as(dtype: tf.DType) -> tf.DType:
    """Return the dtype that a variable's values are added up in, which holds all of them exactly."""
    if dtype in SUMMED:
        return dtype
    return tf.float32 if dtype.is_floating else tf.int64


def padded_size(n: tf.Tensor, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the one of `SIZES` that holds `n`, and which of `VARYING_KEYS` is that of a tensor of this size."""
    which = tf.searchsorted(tf.constant(SIZES, tf.int64), tf.cast([n], tf.int64))[0]
    size = tf.cast(tf.gather(tf.constant(SIZES, tf.int64), which), tf.int32)
    return size, which + len(SIZES) * SUMMED.index(dtype)


def _digest(described: Sequence[Any]) -> float:
    import zlib

    return float(zlib.crc32(repr(described).encode()))


def _split(flat: tf.Tensor, like: Sequence[Any]) -> list[tf.Tensor]:
    parts = tf.split(flat, [t.shape.num_elements() for t in like])
    return [tf.reshape(p, t.shape) for p, t in zip(parts, like, strict=True)]


def buckets(sizes: Sequence[int], at_most: int) -> list[list[int]]:
    """Put indices into groups of at most `at_most` bytes, or of one that is larger; the order is kept."""
    found: list[list[int]] = []
    room = 0
    for i, size in enumerate(sizes):
        if not found or size > room:
            found.append([])
            room = at_most
        found[-1].append(i)
        room -= size
    return found
