"""The way of a node's pulses: through its supervising task, or, if that is silent, to the coordinator directly.

The heartbeats of the task carry the pulses, so that the driver gets one message of each node and not two. After each
answered heartbeat the task says, on the same socket, until when the next one will have come.
"""

from __future__ import annotations

import contextlib
import socket
import time

from tfspark.messages import CarriesPulses, Pulse

MAX_BYTES = 256
"""Longest message from the task."""


class PulseCarrier:
    """The supervising task, as the node's process sees it.

    Parameters
    ----------
    descriptor
        File descriptor of the process's end of the socket.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self._socket.set_inheritable(False)
        self._carries_until = 0.0  # `time.monotonic` is one clock for all processes of a host.

    def takes(self, pulse: Pulse) -> float:
        """Give a pulse to the task; return for how many seconds the task sends pulses, 0 if it does not."""
        with contextlib.suppress(OSError):
            while said := self._socket.recv(MAX_BYTES):
                self._carries_until = CarriesPulses.decode(said).until
        try:
            self._socket.send(pulse.encode())
        # The task does not read, or has closed the socket, or the stack in the pulse is too long for it.
        except OSError:
            return 0.0
        return max(0.0, self._carries_until - time.monotonic())
