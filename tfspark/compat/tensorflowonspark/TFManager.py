"""The ``ctx.mgr`` of a node: the state of its feed, a few values, and queues of this process.

The original's manager was a separate server in each executor, which exchanged pickled messages. With tfspark, rows
arrive through its transport, so the manager does not listen on a port.
"""

from __future__ import annotations

import hmac
import queue
from collections.abc import Callable, Sequence
from typing import Any

from tfspark.compat.tensorflowonspark import _notes
from tfspark.compat.tensorflowonspark._inbox import Inbox
from tfspark.compat.tensorflowonspark._queue_feed import QueueFeed
from tfspark.errors import ConfigurationError

_started: dict[str, TFManager] = {}


class TFManager:
    """Values and queues of one process.

    Parameters
    ----------
    address
        Address under which `connect` finds the manager.
    authkey
        Key that must be passed to `connect`.
    inbox
        Rows that were sent to the node.
    on_terminate
        Function that tells the driver that the program takes no more rows.
    """

    def __init__(
        self,
        address: str = "",
        authkey: bytes = b"",
        inbox: Inbox | None = None,
        on_terminate: Callable[[], None] = lambda: None,
    ) -> None:
        self.address = address
        self.inbox = inbox
        self._on_terminate = on_terminate
        self._authkey = bytes(authkey)
        self._values: dict[str, Any] = {}
        self._queues: dict[str, queue.Queue[Any]] = {}

    def get(self, key: str) -> Any:
        """Return a value; ``get("state")`` is ``"running"``, ``"terminating"`` or ``"stopped"``."""
        return self._values[key]

    def set(self, key: str, value: Any) -> None:
        """Set a value."""
        self._values[key] = value

    def terminate(self) -> None:
        """Take no more rows, and tell the driver so."""
        self.set("state", "terminating")
        if self.inbox is not None:
            self.inbox.close("called terminate()")
        self._on_terminate()

    def feed_of(self, qname_in: str, qname_out: str, train_mode: bool) -> Inbox | QueueFeed | None:
        """Return the source of rows and target of results for `TFNode.DataFeed`, or ``None`` if there is none."""
        if self.inbox is not None:
            return self.inbox
        source = self._queues.get(qname_in)
        return None if source is None else QueueFeed(source, self._queues.get(qname_out), train_mode)

    def get_queue(self, qname: str) -> Any:
        """Return the queue of this process with this name, or ``None``."""
        if self.inbox is not None:
            raise _notes.gone(
                f"The queue {qname!r} of a node", "TFNode.DataFeed gives its rows, and ctx.rows() of tfspark"
            )
        return self._queues.get(qname)


@_notes.now("ctx.rows() and ctx.serve(fn) need no manager")
def start(authkey: bytes, queues: Sequence[str], mode: str = "local") -> TFManager:
    """Create a manager in this process.

    Parameters
    ----------
    authkey
        Key that must be passed to `connect`.
    queues
        Names of its queues.
    mode
        ``"local"``; ``"remote"`` has the same effect, because the manager does not listen on a port.
    """
    manager = TFManager(f"{len(_started)}", authkey)
    manager._queues = {name: queue.Queue() for name in queues}
    _started[manager.address] = manager
    return manager


@_notes.now("ctx.rows() and ctx.serve(fn) need no manager")
def connect(address: Any, authkey: bytes) -> TFManager:
    """Return the manager that this process has started at an address.

    Raises
    ------
    ConfigurationError
        If there is no manager at the address, or it was started with another `authkey`.
    """
    manager = _started.get(address) if isinstance(address, str) else None
    if manager is None:
        raise ConfigurationError(
            f"This process has no manager at {address!r}.", hint="Managers of other processes cannot be reached."
        )
    if not hmac.compare_digest(manager._authkey, bytes(authkey)):
        raise ConfigurationError("The manager was started with another authkey.")
    return manager
