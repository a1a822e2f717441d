"""Restarts with fewer workers, where executors do not come back, and with all again, where they do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tfspark.cluster_options import ClusterOptions
from tfspark.control.elastic import watch_room, workers_that_fit
from tfspark.control.recovery import worth_a_restart
from tfspark.errors import ConfigurationError, ResourceError, StartTimeout

PROGRAM = Path(__file__).parents[1] / "programs" / "elastic.py"


def run(*arguments: str) -> tuple[list[dict[str, Any]], str]:
    """Run the program; return what it found, and its log."""
    path = os.pathsep.join(p for p in (str(PROGRAM.parents[1]), os.environ.get("PYTHONPATH", "")) if p)
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.long
def test_fewer_workers_become_all_again_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    (found,), log = run(str(tmp_path), "grow")
    assert found["seen"] == [2, 1, 2] and found["workers"] == 2
    # One node was lost. That the others grew does not count, though nodes were started a third time.
    assert len(found["errors"]) == 1 and found["restarts"] == 2
    # The epoch that the one alone had trained is not trained again.
    assert found["epochs"] == 1
    assert "Spark has room for all 2 workers again: they start." in log


def test_fewer_workers_go_on_exactly_and_all_of_them_after_the_next_restart(tmp_path: Path) -> None:
    (undisturbed, disturbed), log = run(str(tmp_path))
    assert undisturbed["seen"] == [2] and undisturbed["restarts"] == 0
    assert disturbed["seen"] == [2, 1, 2] and disturbed["restarts"] == 2 and disturbed["workers"] == 2
    assert disturbed["weight"] == undisturbed["weight"]
    # Those that the last nodes have trained, after the checkpoint of the one that was alone.
    assert disturbed["epochs"] == [[4, 200.0], [5, 200.0]]
    assert "Spark has no room for 2 workers within 3 s: 1 go on." in log
    assert "killed by SIGKILL" in disturbed["errors"][1]


@pytest.mark.long
def test_fewer_workers_are_fed_when_the_executor_of_the_feed_tasks_is_lost(tmp_path: Path) -> None:
    found, _ = run(str(tmp_path), "starved")
    for each in found:
        assert each["workers"] == 1 and each["fed"] == 200 and each["read"] == list(range(200))
        assert ["ResourceError: Spark has 2 task slot(s), but 3 are needed" in e for e in each["errors"]] == [True]


@pytest.mark.unit
def test_a_shortage_counts_if_it_lasts() -> None:
    lasting = ResourceError("no room")
    answers: list[ResourceError | None] = [lasting, None, lasting, None]
    starved: list[ResourceError] = []
    over = threading.Event()

    def shortage() -> ResourceError | None:
        if len(answers) == 1:
            over.set()
        return answers.pop() if answers else None

    with watch_room(shortage, 30.0, starved.append, "room", pause=0.001):
        assert over.wait(10.0)
    assert starved == []
    told = threading.Event()
    with watch_room(lambda: lasting, 0.01, lambda e: (starved.append(e), told.set()), "room", pause=0.001):
        assert told.wait(10.0)
    assert starved == [lasting]


@pytest.mark.unit
@pytest.mark.parametrize(("room", "fits"), [(8, 8), (9, 8), (6, 6), (4, 4), (2, 4)])
def test_as_many_workers_go_on_as_there_is_room_for(room: int, fits: int) -> None:
    assert workers_that_fit(lambda n: n <= room, 8, 4, 0.01, lambda: False) == fits


@pytest.mark.unit
def test_all_workers_go_on_when_their_room_comes_back_in_time() -> None:
    asked: list[int] = []

    def has_room(workers: int) -> bool:
        asked.append(workers)
        return len(asked) > 2

    assert workers_that_fit(has_room, 8, 4, 60.0, lambda: False) == 8
    assert asked == [8, 8, 8]


@pytest.mark.unit
def test_nobody_waits_for_room_once_the_cluster_is_stopped() -> None:
    assert workers_that_fit(lambda n: n <= 5, 8, 4, 1e9, lambda: True) == 5


@pytest.mark.unit
def test_workers_that_did_not_come_in_time_are_a_reason_to_try_fewer() -> None:
    error = StartTimeout("1 of 2 nodes did not start")
    assert worth_a_restart(error, elastic=True) and not worth_a_restart(error)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min_workers": 0}, "min_workers must be a whole number >= 1, got 0"),
        ({"min_workers": 5}, "min_workers must be <= workers=4, got 5"),
        ({"min_workers": 2, "max_restarts": 0}, "min_workers=2 needs max_restarts > 0"),
        ({"min_workers": 2, "ps": 1}, "min_workers=2 does not work with parameter servers"),
    ],
)
def test_what_cannot_be_elastic_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ClusterOptions(**{"workers": 4, "max_restarts": 2, **wrong})
