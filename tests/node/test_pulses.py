"""Pulses pass through the supervising task while its heartbeats are answered, and else go to the driver directly."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pyarrow.flight as flight
import pytest

from tfspark import messages as m
from tfspark.executor import task
from tfspark.messages import Heartbeat, HeartbeatAnswer, Pulse
from tfspark.node.pulses import PulseCarrier
from tfspark.settings import Settings
from tfspark.spec import NodeId
from tfspark.transport.auth import new_secret

pytestmark = pytest.mark.unit

NODE = NodeId("worker", 0)


class Coordinator:
    """Takes heartbeats while it can be reached, and asks for the next one after so many seconds."""

    def __init__(self) -> None:
        self.rows: list[int | None] = []
        self.reached, self.seconds = True, 10.0

    def ask(self, message: Heartbeat, answer: type[HeartbeatAnswer], timeout: float = 0.0) -> HeartbeatAnswer:
        if not self.reached:
            raise flight.FlightUnavailableError("nobody answers")
        self.rows.append(None if message.pulse is None else message.pulse.rows_read)
        return answer(stop_grace=None, kill=False, seconds=self.seconds)

    def close(self) -> None:
        pass


class Clock:
    """A time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


@pytest.fixture
def both() -> Iterator[tuple[Any, Coordinator, PulseCarrier]]:
    """Return a supervisor, its coordinator, and the supervisor as the node's process sees it."""
    settings = Settings(longest_interval=10.0, silence_timeout=20.0, suspicion_timeout=20.0)
    launch = task.Launch((NODE,), (NODE,), "127.0.0.1", 1, new_secret(), b"", settings=settings)
    made, coordinator = task.Supervisor(launch, NODE, 0), Coordinator()
    made.client.close()
    made.client = coordinator  # type: ignore[assignment]
    made._pulses, of_process = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made._pulses.setblocking(False)
    made._carries_pulses = True
    yield made, coordinator, PulseCarrier(of_process.detach())
    made.close()


def test_a_heartbeat_carries_the_newest_pulse_once(both: Any) -> None:
    supervisor, coordinator, carrier = both
    assert not carrier.takes(Pulse(NODE, 0.0, 1)), "the task has not said yet that it sends anything"
    supervisor._beat()
    assert all(carrier.takes(Pulse(NODE, 0.0, i)) for i in range(2, 30))
    supervisor._beat()
    supervisor._beat()
    assert coordinator.rows == [1, 29, None]


def test_an_old_pulse_is_no_sign_of_life(both: Any) -> None:
    supervisor, coordinator, carrier = both
    carrier.takes(Pulse(NODE, 0.0, 1))
    coordinator.reached = False
    supervisor._beat()
    coordinator.reached = True
    supervisor._beat()
    assert coordinator.rows == [None], "the pulse is as old as the heartbeat that did not arrive"


def test_after_an_unanswered_heartbeat_the_process_sends_its_pulses_itself(both: Any, clock: Clock) -> None:
    supervisor, coordinator, carrier = both
    supervisor._beat()
    assert carrier.takes(Pulse(NODE, 0.0, 1)) == pytest.approx(coordinator.seconds + task.LATE_SECONDS)
    coordinator.reached = False
    supervisor._beat()
    clock.pass_seconds(coordinator.seconds + 2 * task.LATE_SECONDS)
    assert not carrier.takes(Pulse(NODE, 0.0, 2))


def test_a_process_sends_its_pulses_itself_when_the_next_heartbeat_is_late(both: Any, clock: Clock) -> None:
    supervisor, coordinator, carrier = both
    supervisor._beat()
    assert carrier.takes(Pulse(NODE, 0.0, 1))
    clock.pass_seconds(coordinator.seconds + 2 * task.LATE_SECONDS)
    assert not carrier.takes(Pulse(NODE, 0.0, 2))
    # Pulses are not as rare as heartbeats may be set to be.
    coordinator.seconds = 1000.0
    supervisor._beat()
    clock.pass_seconds(Settings.pulse_interval)
    assert carrier.takes(Pulse(NODE, 0.0, 3))
    clock.pass_seconds(supervisor._settings.longest_interval)
    assert not carrier.takes(Pulse(NODE, 0.0, 4))


def test_a_process_sends_its_pulses_itself_when_nobody_reads_them(both: Any) -> None:
    supervisor, _, carrier = both
    supervisor._beat()
    assert carrier.takes(Pulse(NODE, 0.0, 1))
    assert not carrier.takes(Pulse(NODE, 0.0, 1, stack="x" * 10_000_000)), "too long for one message"
    taken = [carrier.takes(Pulse(NODE, 0.0, 1, stack="x" * 1000)) for _ in range(10_000)]
    assert taken[0] and not taken[-1], "the socket is full"
    supervisor.close()
    assert not carrier.takes(Pulse(NODE, 0.0, 1))


@pytest.mark.parametrize("garbage", [b"no pulse", b""])
def test_what_is_no_pulse_ends_the_carrying_and_not_the_task(both: Any, clock: Clock, garbage: bytes) -> None:
    supervisor, coordinator, carrier = both
    supervisor._beat()
    carrier._socket.send(garbage)
    assert carrier.takes(Pulse(NODE, 0.0, 1))
    supervisor._beat()
    clock.pass_seconds(coordinator.seconds + task.LATE_SECONDS)
    supervisor._beat()
    assert coordinator.rows == [None, None, None] and not carrier.takes(Pulse(NODE, 0.0, 2))


def test_the_heartbeat_after_the_end_of_a_process_carries_none(both: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, coordinator, carrier = both
    told: list[m.Message] = []
    answers = {m.Attach: m.AttachAnswer(go=True), m.Exited: m.ExitedAnswer(None)}

    def insist(message: m.Message, answer: Any) -> Any:
        told.append(message)
        return answers[type(message)]

    def watch(process: subprocess.Popen[bytes]) -> int:
        carrier.takes(Pulse(NODE, 0.0, 1))
        return process.wait()

    with subprocess.Popen(["true"]) as process:
        monkeypatch.setattr(supervisor, "_spawn", lambda *_: setattr(supervisor, "_process", process))
        monkeypatch.setattr(supervisor, "_watch", watch)
        monkeypatch.setattr(supervisor, "_end", lambda: None)
        monkeypatch.setattr(supervisor, "_insist", insist)
        supervisor.run()
    monkeypatch.undo()
    supervisor._process = None
    assert coordinator.rows == [None] and isinstance(told[-1], m.Exited)
