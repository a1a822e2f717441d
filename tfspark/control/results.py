"""The pickled return values of ``main``, as they arrive from the nodes in parts."""

from __future__ import annotations

import tempfile
import threading
from typing import Any

import cloudpickle

from tfspark.spec import NodeId

MEMORY_BYTES = 4 << 20
"""A result that is larger waits in a temporary file until it is asked for."""


class ResultStore:
    """Results by node: written part by part, unpickled once, and only if someone asks.

    Examples
    --------
    >>> store, node = ResultStore(), NodeId("worker", 0)
    >>> body = cloudpickle.dumps({"loss": 0.5})
    >>> store.write(node, 0, body)
    >>> store.complete(node, len(body))
    >>> store.load(node)
    {'loss': 0.5}
    """

    def __init__(self) -> None:
        self._files: dict[NodeId, Any] = {}
        self._sizes: dict[NodeId, int] = {}
        self._loaded: dict[NodeId, Any] = {}
        self._lock = threading.Lock()

    def write(self, node: NodeId, offset: int, part: bytes) -> None:
        """Keep a part; one that comes twice changes nothing.

        Raises
        ------
        ValueError
            If parts before it are missing, or the result is already complete.
        """
        with self._lock:
            if node in self._sizes:
                raise ValueError(f"the result of {node} is already complete")
            file = self._files.setdefault(node, tempfile.SpooledTemporaryFile(MEMORY_BYTES))  # noqa: SIM115
            there = file.seek(0, 2)
            if offset > there:
                raise ValueError(f"a part of the result of {node} begins at {offset}, but {there} bytes have arrived")
            file.seek(offset)
            file.write(part)

    def complete(self, node: NodeId, size: int) -> None:
        """Note that all parts have arrived.

        Raises
        ------
        ValueError
            If they are not of this size together.
        """
        with self._lock:
            there = self._files[node].seek(0, 2) if node in self._files else 0
            if there != size:
                raise ValueError(f"the result of {node} must have {size} bytes, got {there}")
            self._sizes[node] = size

    def __contains__(self, node: object) -> bool:
        """Whether a node's result has arrived whole."""
        return node in self._sizes

    def load(self, node: NodeId) -> Any:
        """Return a node's result; every call returns the same object."""
        with self._lock:
            if node not in self._loaded:
                with self._files[node] as file:
                    file.seek(0)
                    self._loaded[node] = cloudpickle.load(file)
            return self._loaded[node]
