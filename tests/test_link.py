"""A node's connection with its coordinator, without a cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tfspark.node.link import CoordinatorLink
from tfspark.node.main import _connect
from tfspark.transport import messages as m
from tfspark.transport.auth import new_secret
from tfspark.transport.ports import Claim
from tfspark.transport.server import MessageServer

pytestmark = pytest.mark.unit


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


def test_a_node_that_is_back_gets_its_old_port_before_rows_are_listened_for(
    plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(code: int) -> None:
        raise AssertionError("it could not have the port")

    monkeypatch.setattr("os._exit", fail)
    with Claim("127.0.0.1") as any_port:
        old = any_port.port
    link, claim = _connect({**plan, "port": old, "ports": (old, old + 20)})
    with claim:
        assert claim.port == old != link._receiver.port


def test_that_all_have_finished_may_be_heard_after_the_supervisors_word(plan: dict[str, Any]) -> None:
    link = CoordinatorLink(plan)
    link.on_stop("the cluster is stopping")
    later(lambda: link._on_event(m.AllFinished()))
    link.wait_for_release()
    assert link.released


@pytest.mark.parametrize("told", [True, False])
def test_a_stop_before_all_have_finished_is_no_release(plan: dict[str, Any], told: bool) -> None:
    link = CoordinatorLink(plan)
    began = time.monotonic()
    if told:
        link._on_event(m.Stop(5.0, "enough"))
    else:
        link.on_stop("the cluster is stopping")
    link.wait_for_release()
    assert not link.released
    assert (time.monotonic() - began < 0.9) == told
