"""The pickled return values of ``main``, which arrive from the nodes in parts."""

from __future__ import annotations

import tempfile
import threading
from typing import Any

import cloudpickle

from tfspark.spec import NodeId

MEMORY_BYTES = 4 << 20
"""A larger result is kept in a temporary file until it is loaded."""


class ResultStore:
    """Results by node: written in parts, unpickled at most once, on first use.

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
        """Store a part of a result; storing the same part twice changes nothing.

        Raises
        ------
        ValueError
            If an earlier part is missing, or the result is already complete.
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
        """Mark a result as complete.

        Raises
        ------
        ValueError
            If the parts do not have `size` bytes in total.
        """
        with self._lock:
            there = self._files[node].seek(0, 2) if node in self._files else 0
            if there != size:
                raise ValueError(f"the result of {node} must have {size} bytes, got {there}")
            self._sizes[node] = size

    def __contains__(self, node: object) -> bool:
        """Return whether a node's result is complete."""
        return node in self._sizes

    def load(self, node: NodeId) -> Any:
        """Return a node's result; every call returns the same object."""
        with self._lock:
            if node not in self._loaded:
                with self._files[node] as file:
                    file.seek(0)
                    self._loaded[node] = cloudpickle.load(file)
            return self._loaded[node]
