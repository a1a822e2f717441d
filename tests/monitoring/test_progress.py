"""What a program shows of its cluster: lines where nobody has configured logging, a live table in a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pyte
import pytest

from tfspark.control.node_history import EndedEpoch, InputTimes, NodeHistory, curves_of
from tfspark.monitoring.chart import line_chart
from tfspark.monitoring.status import NodeStatus, Snapshot, duration
from tfspark.spec import NodeId

PROGRAMS = Path(__file__).parents[1] / "programs"

EPOCHS = tuple(EndedEpoch(n, 3, 10.0 * n, {"loss": 1 / n}) for n in (1, 2))


def unit(f: Any) -> Any:
    return pytest.mark.unit(f)


def nodes(step: int = 120) -> list[NodeStatus]:
    metrics = {"epoch": 3.0, "loss": 0.25, "sparse_categorical_accuracy": 0.9375, "val_loss": 0.5}
    times = InputTimes(1.0, 0.0, 9.0)
    return [
        NodeStatus("worker", i, "a-long-host-name.example.org", "running", 1, 5000, step, metrics, ("0", "1"), 5000,
                   1234.5, 0.01, times, epoch=3, epochs=3)
        for i in range(2)
    ]  # fmt: skip


@unit
def test_the_lines_of_a_run_name_epochs_once_and_its_end() -> None:
    training = Snapshot("training", 30.0, nodes(), ended_epochs=EPOCHS)
    assert training.epoch_lines() == ["epoch 1/3 loss 1", "epoch 2/3 loss 0.5"]
    assert training.epoch_lines(after=1) == ["epoch 2/3 loss 0.5"]
    assert training.line().startswith("training: worker 0 epoch 3/3 step 120: loss 0.25, sparse")
    ended = Snapshot("finished", 125.0, nodes(), ended_epochs=EPOCHS)
    assert ended.line() == "finished after 2:05 min: epoch 2/3 loss 0.5; 10,000 rows read"
    failed = Snapshot("failed", 8.25, error="worker 1 on h failed: ValueError: no\n--- traceback")
    assert failed.line() == "failed after 8.2 s: worker 1 on h failed: ValueError: no"
    assert Snapshot("stopped", 8.25, error="The cluster is stopping").line() == "stopped after 8.2 s"


@unit
@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (59, "59.0 s"), (60, "1:00 min"), (3725, "1:02:05 h")])
def test_times_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@unit
def test_metrics_of_epochs_are_curves_of_their_own_beside_running_averages() -> None:
    histories = {NodeId("worker", i): NodeHistory() for i in range(2)}
    for history in histories.values():
        for step in range(1, 5):
            history.curve.add(step, {"epoch": float(1 + step // 3), "loss": 1.0 / step})
        for e in EPOCHS:
            history.epoch_ended(e)
    curves = curves_of(histories)
    assert list(curves) == ["loss by epoch", "epoch", "loss within the epoch"]
    assert curves["loss by epoch"]["worker 1"] == [(1, 1.0), (2, 0.5)]
    own = NodeHistory()
    own.curve.add(1, {"loss": 1.0})
    assert list(curves_of({NodeId("worker", 0): own})) == ["loss"], "reported by a loop of one's own"


@unit
def test_a_chart_names_its_lines_and_draws_equal_ones_once() -> None:
    line = [(1, 2.0), (2, 1.0)]
    same = line_chart("loss", {"worker 0": line, "worker 1": list(line)}, "epoch")
    assert same.count("<polyline") == 1 and ">epoch</text>" in same and ">worker 0<" not in same
    others = line_chart("loss", {f"worker {i}": [(1, 2.0), (2, float(i))] for i in range(6)}, "step")
    assert others.count("<polyline") == 6 and others.count('text-anchor="end" fill="#') == 5 and ">...<" in others


SHOWN = """
import sys
sys.path[:0] = {path!r}
from test_progress import EPOCHS, nodes
from tfspark.monitoring.progress import Terminal
from tfspark.monitoring.status import Snapshot
view = Terminal()
for step in range(1, 40):
    epochs = EPOCHS[: step // 15]
    lines = ["w" * 200] * 6
    view.show(Snapshot("training", step / 4, nodes(step), ended_epochs=epochs, seconds_left=12.0, lines=lines))
    print("a line of the program", step)
    if step == 20:
        print("READY", file=sys.stderr, flush=True)
        sys.stdin.readline()
view.show(Snapshot("finished", 10.0, nodes(), ended_epochs=EPOCHS), final=True)
view.close()
"""


@unit
def test_a_terminal_of_80_columns_shows_one_line_a_worker_and_nothing_stale_is_left() -> None:
    screen = pyte.HistoryScreen(80, 24, history=1000)
    stream = pyte.ByteStream(screen)
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    program = SHOWN.format(path=[str(Path(__file__).parent), *sys.path])
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=secondary, stderr=secondary, env=env
    )
    os.close(secondary)
    try:
        while not any("READY" in line for line in screen.display):
            stream.feed(os.read(primary, 4096))
        # The table is drawn again below what was printed.
        while not (screen.display[screen.cursor.y].startswith("wwww") and any("5.0 s" in x for x in screen.display)):
            stream.feed(os.read(primary, 4096))
        shown = [line.rstrip() for line in screen.display if line.strip()]
        (title,) = [line for line in shown if line.startswith("tfspark · ")]
        assert title == "tfspark · training · epoch 2/3 ━━━━━━━───────────── 12.0 s left · 5.0 s"
        workers = [line for line in shown if line.startswith("worker ")]
        assert len(workers) == 2 and all("  loss 0.25, sparse_cat" in line for line in workers)
        assert all(line.endswith("1,234 rows/s  10% waiting") for line in workers)
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
        while True:
            try:
                data = os.read(primary, 4096)
            except OSError:
                break
            if not data:
                break
            stream.feed(data)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(primary)
    above = ["".join(line[x].data for x in range(80)) for line in screen.history.top]
    everything = [line.rstrip() for line in [*above, *screen.display] if line.strip()]
    ours = [line for line in everything if not line.startswith(("a line of the program", "READY"))]
    assert ours == [
        "tfspark: epoch 1/3 loss 1",
        "tfspark: epoch 2/3 loss 0.5",
        "tfspark: finished after 10.0 s: epoch 2/3 loss 0.5; 10,000 rows read",
    ]


def lines_of(code: str) -> list[str]:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ran.stderr.splitlines()


@unit
def test_log_lines_are_shown_once_whoever_configures_logging_and_when() -> None:
    begin = "import logging; from tfspark.monitoring.console_log import ensure_log_lines as ensure; "
    log = "logging.getLogger('tfspark').info('a'); logging.getLogger('tfspark.node').info('b'); "
    assert lines_of(f"{begin} ensure(); ensure(); {log}") == ["tfspark: a"]
    assert lines_of(f"{begin} ensure(); logging.basicConfig(level=20, format='mine: %(message)s'); {log}") == [
        "mine: a"
    ]
    configured = "logging.basicConfig(level=logging.INFO, format='mine: %(message)s');"
    assert lines_of(f"{begin} ensure(); {configured} {log}") == ["mine: a"]
    assert lines_of(f"{begin} {configured} ensure(); {log}") == ["mine: a", "mine: b"]
    own = "logging.getLogger('tfspark').addHandler(logging.NullHandler());"
    assert lines_of(f"{begin} {own} ensure(); {log}") == []


def test_a_program_without_logging_shows_its_page_its_epochs_and_its_end() -> None:
    began = time.monotonic()
    ran = subprocess.run(
        [sys.executable, str(PROGRAMS / "plain_training.py")], capture_output=True, text=True, check=True
    )
    said = [line.removeprefix("tfspark: ") for line in re.findall("tfspark: .*", ran.stderr)]
    assert re.fullmatch(r"live page: http://127\.0\.0\.1:\d+/\S+/", said[0])
    assert any(line.startswith("starting: 2 of 2 nodes up after") for line in said)
    epochs = [line for line in said if line.startswith("epoch ")]
    assert [line.split()[:2] for line in epochs] == [["epoch", "1/2"], ["epoch", "2/2"]]
    assert all(re.search(r" loss [\d.]+", line) for line in epochs)
    last = said.index(epochs[-1])
    assert not [line for line in said[last:] if line.startswith("training:")], "the end of an epoch is said once"
    assert re.fullmatch(r"finished after [\d.]+ s: epoch 2/2 loss \S+; 2,000 rows read", said[-1])
    assert time.monotonic() - began > float(said[-1].split()[2])
