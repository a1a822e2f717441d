"""The part that REST and gRPC share: the repository and the calls of its models, made in one event loop."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np

from tfspark.model_server.batching import Arrays, Batcher, BatchLimits
from tfspark.model_server.loaded import LoadedVersion
from tfspark.model_server.repository import Repository
from tfspark.model_server.requests import Call

T = TypeVar("T")

MAX_BODY_BYTES = 64 << 20

PARSING_THREADS = min(4, os.cpu_count() or 1)
"""Number of threads that parse requests, so that parsing does not wait for the model."""

INLINE_BYTES = 16 << 10
"""Requests up to this size are parsed in the event loop, because a thread switch would take longer."""

MOST_CHOICES = 64
"""Number of output selections per version for which TensorFlow keeps a plan; other selections compute all outputs."""


@dataclass(frozen=True)
class ServerLimits:
    """Limits of the server: `BatchLimits`, and the largest size of a request in bytes."""

    batch: BatchLimits = field(default_factory=BatchLimits)
    body_bytes: int = MAX_BODY_BYTES


class Core:
    """Calls the models of a repository."""

    def __init__(self, repository: Repository, limits: ServerLimits = ServerLimits()) -> None:
        self.repository, self.limits = repository, limits
        self._executor = ThreadPoolExecutor(limits.batch.calls, thread_name_prefix="tfspark-model")
        self._parsers = ThreadPoolExecutor(PARSING_THREADS, thread_name_prefix="tfspark-parse")

    def close(self) -> None:
        """Drop waiting calls; do not wait for running calls."""
        for executor in (self._executor, self._parsers):
            executor.shutdown(wait=False, cancel_futures=True)

    async def parse(self, size: int, function: Callable[[], T]) -> T:
        """Call a function that processes `size` bytes, in a thread if `size` is more than `INLINE_BYTES`."""
        if size <= INLINE_BYTES:
            return function()
        return await asyncio.get_running_loop().run_in_executor(self._parsers, function)

    async def ask(self, loaded: LoadedVersion, call: Call) -> dict[str, np.ndarray]:
        """Return the outputs of a call."""
        found = await self._batcher(loaded, call).submit(call.inputs, call.rows)
        return {n: found[n] for n in call.outputs} if call.outputs else found

    def _batcher(self, loaded: LoadedVersion, call: Call) -> Batcher:
        signature = loaded.signatures[call.signature]
        outputs = tuple(n for n in signature.outputs if n in call.outputs)
        if outputs and len(loaded.batchers) >= MOST_CHOICES:
            outputs = ()
        key = (call.signature, outputs)
        if key not in loaded.batchers:
            produced = [signature.outputs[n] for n in outputs or signature.outputs]
            rows = all(i.has_rows for i in (*signature.inputs.values(), *produced))
            batch = self.limits.batch
            joins = batch.join and rows
            called = partial(_call, weakref.ref(loaded), *key)
            loaded.batchers[key] = Batcher(called, self._executor, batch, joins)
        return loaded.batchers[key]


def _call(
    version: weakref.ref[LoadedVersion], signature: str, outputs: tuple[str, ...], inputs: Arrays
) -> dict[str, np.ndarray]:
    """Call a version through a weak reference.

    The version owns the batcher, so a strong reference would keep the version alive.
    """
    loaded = version()
    if loaded is None:
        raise RuntimeError("The version has been unloaded.")
    return loaded.call(signature, inputs, outputs)
