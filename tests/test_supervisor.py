"""The task that supervises a node, without Spark and without the node."""

from __future__ import annotations

from typing import Any

import pyarrow.flight as flight
import pytest

from tfspark.executor import task
from tfspark.spec import NodeId
from tfspark.transport.auth import new_secret

pytestmark = pytest.mark.unit

NODE = NodeId("worker", 0)


class Coordinator:
    """Takes heartbeats while it can be reached."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.reached = True

    def ask(self, message: Any, timeout: float = 0.0) -> Any:
        if not self.reached:
            raise flight.FlightUnavailableError("nobody answers")
        self.lines += message.lines
        return {"stop_grace": None, "kill": False}


def supervisor(coordinator: Any) -> task.Supervisor:
    made = task.Supervisor(task.Launch((NODE,), (NODE,), "127.0.0.1", 1, new_secret(), b"", 1), NODE, 0)
    made.client.close()
    made.client = coordinator
    return made


def test_a_node_that_prints_more_than_can_be_forwarded_has_lines_left_out() -> None:
    coordinator = Coordinator()
    s = supervisor(coordinator)
    most, each = task.MAX_LINES_WAITING, task.MAX_LINES_PER_HEARTBEAT
    for i in range(most + 500):
        s._line(b"%d" % i)
    assert len(s._pending) == most
    coordinator.reached = False
    s._beat()
    assert len(s._pending) == most
    coordinator.reached = True
    s._beat()
    s._line(b"the last")
    for _ in range(most // each):
        s._beat()
    assert coordinator.lines == [*map(str, range(most)), "... 500 lines left out", "the last"]
    assert list(s.tail)[-2:] == [str(most + 499), "the last"]
