"""Spark's Python daemon, whose feed tasks fail where a file says: for ``spark.python.daemon.module``.

The file named by ``TFSPARK_FAULTS`` maps ``"<feed> <partition> <attempt>"`` to a fault:

- ``half``: the process is killed after it has sent a part of its rows,
- ``unacknowledged``: it is killed when all its rows and the end marker are sent, before it reads the answer,
- ``late``: its end marker waits until another attempt of the same partition has been committed,
- ``executor``: the JVM of its executor is killed half-way, unless nodes live in it.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pyspark.daemon

from tfspark.feeding import feed_task

checked, finish, send = feed_task._of_expected_lengths, feed_task._finish, feed_task._send
current: dict[str, Any] = {}


def fault_of(plan: Any, partition: int) -> str | None:
    from pyspark import TaskContext

    context = TaskContext.get()
    assert context is not None
    with open(os.environ["TFSPARK_FAULTS"]) as f:
        faults = json.load(f)
    fault = faults.get(f"{plan.feed} {partition} {context.attemptNumber()}")
    # Python worker, its daemon, the executor.
    with open(f"/proc/{os.getppid()}/stat") as f:
        jvm = int(f.read().rsplit(")", 1)[1].split()[1])
    current.update(fault=fault, jvm=jvm, spared=faults["spared"])
    return fault


def faulty_send(plan: Any, header: Any, *args: Any) -> int:
    fault_of(plan, header.partition)
    return send(plan, header, *args)


def faulty_checked(*args: Any) -> Iterator[Any]:
    for i, batch in enumerate(checked(*args)):
        if i == 1 and current["fault"] == "half":
            os.kill(os.getpid(), signal.SIGKILL)
        if i == 1 and current["fault"] == "executor" and current["jvm"] not in current["spared"]:
            os.kill(current["jvm"], signal.SIGKILL)
        yield batch


def faulty_finish(writer: Any, replies: Any, rows: int) -> None:
    if current["fault"] == "unacknowledged":
        writer.write_metadata(feed_task.PutEnd(rows).encode())
        writer.done_writing()
        # The worker has committed when its answer is on the way.
        replies.read()
        os.kill(os.getpid(), signal.SIGKILL)
    if current["fault"] == "late":
        # Spark kills this attempt when its twin has ended; should it not, the worker refuses what comes late.
        deadline, pause = time.monotonic() + 3.0, threading.Event()
        while time.monotonic() < deadline:
            pause.wait(0.1)
    finish(writer, replies, rows)


feed_task._of_expected_lengths, feed_task._finish, feed_task._send = faulty_checked, faulty_finish, faulty_send

if __name__ == "__main__":
    pyspark.daemon.manager()
