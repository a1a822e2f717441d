"""Sums over the workers, with TensorFlow's collective operations.

Every worker calls the same operation with the same key. Keys are numbered in the order of the program, so workers that
run the same program use the same keys.
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
from tfspark.node.step_clock import StepClock

GROUP_KEY = 0x7F5A
"""TensorFlow's key of the group of all workers; +1 for the same group on GPUs."""

FIRST_INSTANCE_KEY = 1 << 20
"""Smaller instance keys are those of MultiWorkerMirroredStrategy."""

SIZES = tuple(1 << k for k in range(4, 40))
"""Sizes to which tensors of varying size are padded, because an instance of a collective has a fixed shape."""

SUMMED = (tf.float32, tf.float64, tf.int32, tf.int64)
"""Dtypes of sums; other dtypes are cast to one of them."""

VARYING_KEYS = len(SIZES) * len(SUMMED)
"""Number of keys of a collective of varying size: one per size and dtype."""

KEYS_OF_STEP = 1 << 14
"""Largest number of keys for the collectives of one training step."""

BROADCAST_BYTES = 32 << 20
"""Variables are broadcast in pieces of about this size, so that a large model is not copied as a whole."""


def set_up() -> Any:
    """Start the collective runtime of this process from ``TF_CONFIG``, before any other operation.

    Returns the strategy that started it. Keep a reference to it, because it checks the health of the other workers.
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
        Index of this worker; 0 is the chief.
    clock
        Measures the time during which this process waits for the other workers.
    shared
        Shared memory of all workers if they are on one host, else ``None``; known after `meet`.
    """

    size: int
    rank: int
    clock: StepClock | None = None
    shared: same_host.SharedSum | None = None
    _has_met: bool = False
    _keys: Any = field(default_factory=lambda: itertools.count(FIRST_INSTANCE_KEY, KEYS_OF_STEP))

    def new_keys(self) -> int:
        """Return the first of `KEYS_OF_STEP` unused keys; call it in the same order on all workers."""
        return next(self._keys)

    def meet(self) -> None:
        """Determine, in the first call, whether all workers are on one host; all workers must call this."""
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
        """Sum a large vector over the workers, as `all_reduce`; use shared memory if all workers are on one host."""
        if self.shared is None or on_gpu:
            return self.all_reduce(value, key, on_gpu=on_gpu)
        total = tf.numpy_function(self.shared.add, [value], value.dtype)
        total.set_shape(value.shape)
        return total

    def _noted(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that tells the clock that this process waits for the other workers, if the call is eager."""
        waits = self.clock is not None and tf.executing_eagerly()
        return self.clock.step() if waits and self.clock is not None else contextlib.nullcontext()

    def all_reduce(self, value: tf.Tensor, key: Any, merge: str = "Add", on_gpu: bool = False) -> tf.Tensor:
        """Sum a tensor over the workers (or take ``Max`` or ``Min``); all workers get exactly the same result.

        Parameters
        ----------
        value
            The same shape and dtype on all workers: float32, float64, int32 or int64.
        key
            The same on all workers.
        on_gpu
            Use NCCL on the GPU of this process.
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
        """Sum a vector over the workers, as `all_reduce`; its size is equal on all workers but varies by call.

        Uses the `VARYING_KEYS` keys that begin with `key`.
        """
        n = tf.shape(flat)[0]
        size, which = padded_size(n, flat.dtype)
        return self.all_reduce(tf.pad(flat, [[0, size - n]]), key + which, merge)[:n]

    def all_gather_varying(self, value: tf.Tensor, rows: tf.Tensor, key: int) -> tf.Tensor:
        """Concatenate the workers' tensors along the first dimension, whose size may differ by worker.

        Parameters
        ----------
        value
            The same shape on all workers, except the first dimension.
        rows
            int32 vector: the size of the first dimension on each worker.
        key
            The first of `VARYING_KEYS` keys.
        """
        size, which = padded_size(tf.reduce_max(rows), value.dtype)
        rest = tf.concat([[[0, size - tf.shape(value)[0]]], tf.zeros([tf.rank(value) - 1, 2], tf.int32)], 0)
        gathered = self.all_gather(tf.pad(value, rest), key + which)
        return tf.boolean_mask(gathered, tf.reshape(tf.sequence_mask(rows, size), [-1]))

    def add(self, values: Any, key: int) -> np.ndarray:
        """Sum numbers over the workers, eagerly; this uses the `VARYING_KEYS` keys that begin with `key`."""
        return self.all_reduce_varying(tf.constant(np.asarray(values, np.float64)), key).numpy()

    def max(self, values: Any, key: int) -> np.ndarray:
        """Return the largest of each number over the workers, as `add`."""
        return self.all_reduce_varying(tf.constant(np.asarray(values, np.float64)), key, "Max").numpy()

    def are_equal(self, values: Any, key: int) -> np.ndarray:
        """Return, for each number, whether it is equal on all workers; uses the same keys as `max`."""
        values = np.asarray(values, np.float64)
        high, low = np.split(self.max([*values, *-values], key), 2)
        return high == -low

    def broadcast(self, variables: Sequence[tf.Variable], key: int, root: int = 0) -> None:
        """Copy the values of one worker's variables, by default the chief's, to all workers, eagerly.

        Uses twice `VARYING_KEYS` keys.

        Raises
        ------
        ValueError
            If the workers' variables differ in number, shape or dtype.
        """
        self._check_alike(variables, key)
        kinds = sorted({_reduced_as(v.dtype) for v in variables}, key=lambda dtype: dtype.name)
        for kind in kinds:
            alike = [v for v in variables if _reduced_as(v.dtype) == kind]
            for bucket in buckets([v.shape.num_elements() * kind.size for v in alike], BROADCAST_BYTES):
                self._broadcast([alike[i] for i in bucket], kind, key + VARYING_KEYS, root)

    def _check_alike(self, variables: Sequence[tf.Variable], key: int) -> None:
        described = [(tuple(v.shape), v.dtype.name) for v in variables]
        if not self.are_equal([len(described), _digest(described)], key).all():
            raise ValueError("The workers' models have different variables.")

    def _broadcast(self, variables: Sequence[tf.Variable], kind: tf.DType, key: int, root: int) -> None:
        flat = tf.concat([tf.reshape(tf.cast(v.value(), kind), [-1]) for v in variables], 0)
        # Only -0.0 changes no number when it is added: 0.0 would change -0.0.
        nothing = -tf.zeros_like(flat) if kind.is_floating else tf.zeros_like(flat)
        received = self.all_reduce_varying(flat if self.rank == root else nothing, key)
        for v, part in zip(variables, _split(received, variables), strict=True):
            if self.rank != root:
                v.assign(tf.cast(part, v.dtype))


def _reduced_as(dtype: tf.DType) -> tf.DType:
    """Return the dtype in which a variable is broadcast; it represents all values of the variable exactly."""
    if dtype in SUMMED:
        return dtype
    return tf.float32 if dtype.is_floating else tf.int64


def padded_size(n: tf.Tensor, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the smallest of `SIZES` that is at least `n`, and the offset of its key among `VARYING_KEYS`."""
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
    """Group indices in order; a group has at most `at_most` bytes, or one larger item."""
    found: list[list[int]] = []
    room = 0
    for i, size in enumerate(sizes):
        if not found or size > room:
            found.append([])
            room = at_most
        found[-1].append(i)
        room -= size
    return found
