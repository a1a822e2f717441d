"""The task that supervises a node, without Spark and without the node."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.flight as flight
import pytest

from tfspark.executor import task
from tfspark.messages import Heartbeat, HeartbeatAnswer
from tfspark.settings import Settings
from tfspark.spec import NodeId
from tfspark.transport.auth import new_secret

pytestmark = pytest.mark.unit

NODE = NodeId("worker", 0)


class Coordinator:
    """Takes heartbeats while it can be reached."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.reached = True

    def ask(self, message: Heartbeat, answer: type[HeartbeatAnswer], timeout: float = 0.0) -> HeartbeatAnswer:
        if not self.reached:
            raise flight.FlightUnavailableError("nobody answers")
        self.lines += message.lines
        return answer(stop_grace=None, kill=False, seconds=0.5)


def supervisor(coordinator: Any, settings: Settings = Settings()) -> task.Supervisor:  # noqa: B008
    launch = task.Launch((NODE,), (NODE,), "127.0.0.1", 1, new_secret(), b"", settings=settings)
    made = task.Supervisor(launch, NODE, 0)
    made.client.close()
    made.client = coordinator
    return made


def test_a_node_that_prints_more_than_can_be_forwarded_has_lines_left_out() -> None:
    coordinator = Coordinator()
    s = supervisor(coordinator)
    most, each = Settings.log_lines_waiting, Settings.log_lines_per_heartbeat
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
    assert coordinator.lines == [
        *map(str, range(most)),
        "... 500 lines omitted; see the executor's log",
        "the last",
    ]
    assert list(s.tail)[-2:] == [str(most + 499), "the last"]


def _no_such_call(pid: int) -> int:
    raise OSError(errno.ENOSYS, "Function not implemented")


@pytest.mark.parametrize("lacking", ["nothing", "the kernel", "python"])
def test_a_node_that_ends_is_noticed_with_and_without_pidfd_open(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if lacking == "the kernel":
        monkeypatch.setattr(os, "pidfd_open", _no_such_call)
    elif lacking == "python":
        monkeypatch.delattr(os, "pidfd_open")
    # A child that keeps the output open hides the end of the node from whoever only reads its output.
    program = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.exit(7)"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True)
    s = supervisor(Coordinator())
    monkeypatch.setattr(s, "_beat", lambda: setattr(s, "_interval", 30.0))
    begun = time.monotonic()
    try:
        assert s._watch(process) == 7
        assert time.monotonic() - begun < 15.0
        assert len(s.tail) == 1
    finally:
        os.kill(int(s.tail[0]), 9)


def test_two_heartbeats_that_time_out_are_no_death() -> None:
    """With the longest pause before them, the third one comes before the silence is too long."""
    sent: list[float] = []
    settings = Settings(heartbeat_timeout=0.4, heartbeat_interval=0.1, longest_interval=0.4, silence_timeout=1.4)

    class Deaf(Coordinator):
        def ask(self, message: Heartbeat, answer: type[HeartbeatAnswer], timeout: float = 0.0) -> HeartbeatAnswer:
            sent.append(time.monotonic())
            if len(sent) in (2, 3):
                threading.Event().wait(timeout)
                raise flight.FlightTimedOutError("late")
            if len(sent) == 4:
                os.killpg(process.pid, 9)
            return answer(stop_grace=None, kill=False, seconds=settings.longest_interval)

    process = subprocess.Popen(["sleep", "60"], stdout=subprocess.PIPE, start_new_session=True)
    s = supervisor(Deaf(), settings)
    assert s._watch(process) == -9
    assert sent[3] - sent[0] < settings.silence_timeout


NOT_READ = """
import os, sys
from tfspark.executor import process

started, lifeline, pulses = process.spawn("no_such_module", sys.argv[1], b"x" * (1 << 20), os.environ)
started.wait()
process.tell_to_stop(started)
if "close" in sys.argv:
    process.close_pipes(started)
os.close(lifeline)
pulses.close()
del started
"""


def test_what_a_process_has_not_read_is_let_go_of_without_a_word(tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        # With -X dev every Python reports what 3.13 always does.
        command = [sys.executable, "-X", "dev", "-c", NOT_READ, str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr

    assert "BrokenPipeError" in said(), "the test sees what it is about"
    assert "BrokenPipeError" not in said("close")
