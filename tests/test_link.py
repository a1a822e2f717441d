"""A node's connection with its coordinator, without a cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tfspark.node.link import CoordinatorLink
from tfspark.transport import messages as m
from tfspark.transport.auth import new_secret
from tfspark.transport.server import MessageServer


@pytest.fixture
def plan(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What a supervisor would hand over, with a coordinator that hears of the node's end and no more."""
    secret = new_secret()
    coordinator = MessageServer("127.0.0.1", secret, {m.Finished: lambda message: b"{}"})
    yield {
        "role": "worker",
        "index": 0,
        "host": "127.0.0.1",
        "port": 0,
        "nodes": [["worker", 0]],
        "coordinator": ["127.0.0.1", coordinator.port],
        "secret": secret.to_json(),
        "spool_bytes": 1 << 20,
        "spool_directory": str(tmp_path),
        "options": {},
        "ports": None,
    }
    coordinator.close()


def later(call: Callable[[], Any], seconds: float = 0.2) -> None:
    threading.Timer(seconds, call).start()


def test_when_main_has_returned_nobody_waits_for_its_spool(plan: dict[str, Any]) -> None:
    link = CoordinatorLink(plan)
    link.finished(b"result")
    assert link.spool.discarding
