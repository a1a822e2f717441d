"""A node's connection with its coordinator, without a cluster."""

from __future__ import annotations

import io
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tfspark import messages as m
from tfspark.node.link import CoordinatorLink
from tfspark.node.main import _connect, _pickled
from tfspark.settings import Settings
from tfspark.transport.auth import new_secret
from tfspark.transport.ports import ReservedPort
from tfspark.transport.server import MessageServer

pytestmark = pytest.mark.unit


@pytest.fixture
def plan(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What a supervisor would hand over, with a coordinator that hears of the node's end and no more."""
    secret = new_secret()
    coordinator = MessageServer(
        "127.0.0.1", secret, {m.Finished: lambda message: None, m.ResultPart: lambda message: None}
    )
    yield {
        "role": "worker",
        "index": 0,
        "host": "127.0.0.1",
        "port": 0,
        "nodes": [["worker", 0]],
        "coordinator": ["127.0.0.1", coordinator.port],
        "secret": secret.to_json(),
        "spool_directories": [str(tmp_path)],
        "spool_memory_bytes": 1 << 20,
        "options": {},
        "ports": None,
        "settings": Settings(driver_timeout=5.0, spool_bytes=1 << 20).to_json(),
    }
    coordinator.close()


def later(call: Callable[[], Any], seconds: float = 0.2) -> None:
    threading.Timer(seconds, call).start()


def test_when_main_has_returned_nobody_waits_for_its_spool(plan: dict[str, Any]) -> None:
    link = CoordinatorLink(plan)
    link.finished(io.BytesIO(b"result"))
    assert link.spool.discarding


def test_a_node_that_is_back_gets_its_old_port_before_rows_are_listened_for(
    plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(code: int) -> None:
        raise AssertionError("it could not have the port")

    monkeypatch.setattr("os._exit", fail)
    with ReservedPort("127.0.0.1") as any_port:
        old = any_port.port
    link, reserved = _connect({**plan, "port": old, "ports": (old, old + 20)})
    with reserved:
        assert reserved.port == old != link._receiver.port


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


def test_a_result_is_pickled_piece_by_piece() -> None:
    result = [bytes(16 << 20) for _ in range(8)]
    tracemalloc.start()
    try:
        with _pickled(result) as file:
            size = file.tell()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size > 128 << 20 > 16 * peak
