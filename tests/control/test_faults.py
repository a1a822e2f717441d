"""Kill each kind of process, then look for anything left running or on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import eventually

PROGRAM = Path(__file__).parents[1] / "programs" / "hold_cluster.py"
MEMORY = Path(__file__).parents[1] / "programs" / "use_memory.py"
SUBMITTED = Path(__file__).parents[1] / "programs" / "wait_for_cluster.py"


def marked_environment() -> tuple[str, dict[str, str]]:
    """Return a mark, and an environment that carries it to all processes that are started from it."""
    mark = f"TFSPARK_TEST_MARK={uuid.uuid4().hex}"
    name, value = mark.split("=")
    return mark, {**os.environ, name: value, "PYSPARK_PYTHON": sys.executable}


def marked(mark: str) -> dict[int, str]:
    """Return command lines of all processes that carry the mark, by pid."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
                if state != "Z":
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")[:120]
        except OSError:
            continue
    return found


class Driver:
    """The fault-test program, and everything that it and Spark started, found by a mark in the environment."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mark, env = marked_environment()
        # An executor's heap is small here: two executors and two TensorFlow processes share one machine.
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), "local-cluster[2,2,1024]", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=env,
            start_new_session=True,
        )
        assert self.read()["ready"]

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise AssertionError("the driver program ended")

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def ask(self, command: str) -> dict[str, Any]:
        self.tell(command)
        return self.read()

    def wait(self) -> dict[str, Any]:
        assert self.ask("wait")["waiting"]
        return self.read()

    def marked(self) -> dict[int, str]:
        return marked(self.mark)

    def nodes(self) -> dict[int, str]:
        """Return the processes that belong to a cluster: nodes and what they started."""
        return {p: c for p, c in self.marked().items() if "tfspark.node" in c or c.startswith("sleep")}

    def files(self) -> list[Path]:
        return [p for p in self.directory.rglob("*") if p.is_file() and "tfspark-" in str(p)]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    driver = Driver(tmp_path_factory.mktemp("faults"))
    yield driver
    driver.tell("quit")
    driver.process.wait(60)
    assert eventually(lambda: not driver.marked()), driver.marked()
    assert not driver.files()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def nothing_left(driver: Driver) -> None:
    assert eventually(lambda: not driver.nodes()), driver.nodes()
    assert eventually(lambda: not driver.files()), driver.files()


@pytest.mark.alone
@pytest.mark.parametrize(
    ("number", "cause"),
    [(signal.SIGKILL, "out-of-memory"), (signal.SIGSEGV, "Fatal Python error: Segmentation fault")],
    ids=str,
)
def test_a_killed_tensorflow_process_is_named_with_its_signal(
    driver: Driver, number: signal.Signals, cause: str
) -> None:
    pids = driver.ask("start")["pids"]
    os.kill(pids[1], number)
    end = driver.wait()
    assert end["error"] == "NodeFailed"
    assert "worker 1" in end["message"] and number.name in end["message"] and cause in end["message"]
    assert end["seconds"] < 10
    nothing_left(driver)


@pytest.mark.alone
def test_a_killed_python_worker_of_spark_is_a_lost_node(driver: Driver) -> None:
    pids = driver.ask("start")["pids"]
    os.kill(parent(pids[0]), signal.SIGKILL)
    end = driver.wait()
    assert end["error"] == "NodeFailed" and "worker 0" in end["message"], end
    assert end["seconds"] < 12
    nothing_left(driver)


@pytest.mark.alone
def test_a_killed_executor_is_a_lost_node(driver: Driver) -> None:
    pids = driver.ask("start")["pids"]
    daemon = parent(parent(pids[0]))
    os.kill(parent(daemon), signal.SIGKILL)
    end = driver.wait()
    assert end["error"] == "NodeFailed", end
    assert end["seconds"] < 30
    nothing_left(driver)


@pytest.mark.alone
@pytest.mark.parametrize("command", ["start", "train"])
def test_a_stopped_process_is_named_though_it_exists(driver: Driver, command: str) -> None:
    """Also when TensorFlow in the other one notices first, and fails there."""
    pids = driver.ask(command)["pids"]
    os.kill(pids[1], signal.SIGSTOP)
    end = driver.wait()
    assert end["error"] == "NodeFailed"
    assert "worker 1" in end["message"] and "it is stopped" in end["message"], end["message"]
    assert end["seconds"] < 30
    nothing_left(driver)


@pytest.mark.alone
def test_stop_ends_main_and_leaves_nothing(driver: Driver) -> None:
    driver.ask("start")
    assert driver.ask("stop")["seconds"] < 5
    nothing_left(driver)


@pytest.mark.alone
def test_ctrl_c_stops_the_cluster(driver: Driver) -> None:
    driver.ask("start")
    assert driver.ask("wait")["waiting"]
    os.kill(driver.process.pid, signal.SIGINT)
    assert driver.read()["error"] == "KeyboardInterrupt"
    nothing_left(driver)


@pytest.mark.alone
def test_stopping_spark_under_a_cluster_ends_it(driver: Driver) -> None:
    """The last test of this driver: the fixture sees that nothing is left of any."""
    driver.ask("start")
    assert driver.ask("spark-stop") == {"spark": "stopped"}
    assert driver.wait()["error"] in ("ClusterError", "ClusterStopped", "NodeFailed")
    nothing_left(driver)


def test_a_killed_driver_leaves_nothing(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.ask("start")
    assert len(driver.nodes()) >= 2
    os.kill(driver.process.pid, signal.SIGKILL)
    driver.process.wait()
    assert eventually(lambda: not driver.marked(), 40), driver.marked()
    assert not driver.files()


@pytest.mark.parametrize("waiting", [True, False])
def test_sigterm_to_the_driver_lets_main_save_and_leaves_nothing(tmp_path: Path, waiting: bool) -> None:
    """Also where the program is between two calls of the library."""
    driver = Driver(tmp_path)
    driver.ask("start")
    if waiting:
        assert driver.ask("wait")["waiting"]
    driver.process.terminate()
    assert driver.process.wait(60) == 128 + signal.SIGTERM
    assert sorted(p.name for p in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]
    assert eventually(lambda: not driver.marked()), driver.marked()
    assert not driver.files()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_spark_submit_ends_the_program_and_leaves_nothing(tmp_path: Path, sent: signal.Signals) -> None:
    """As Airflow and Kubernetes do: the signal reaches Spark's JVM, and not the Python program that it has started."""
    import pyspark

    mark, env = marked_environment()
    submit = str(Path(pyspark.__file__).parent / "bin" / "spark-submit")
    local = f"spark.local.dir={tmp_path}"
    command = [submit, "--master", "local[2]", "--conf", local, str(SUBMITTED), str(tmp_path)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert eventually(lambda: (tmp_path / "training").exists(), 150)
        process.send_signal(sent)
        assert process.wait(20) != 0
    finally:
        process.kill()
    assert eventually(lambda: not marked(mark)), marked(mark)
    end = json.loads((tmp_path / "ended.json").read_text())
    assert end["error"] in ("ClusterStopped", "ClusterError", "NodeFailed"), end
    assert not [p for p in tmp_path.rglob("*") if "tfspark-" in str(p) and p.is_file()]


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group of processes that may have 2.5 GB in all."""
    root = Path("/sys/fs/cgroup")
    old = root / "memory"
    parent, limit = (old, "memory.limit_in_bytes") if old.is_dir() else (root, "memory.max")
    group = parent / f"tfspark-test-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
    except OSError as e:
        pytest.skip(f"this machine allows no control groups: {e}")
    try:
        if not (group / limit).exists():
            pytest.skip("the memory controller is not on for control groups here")
        (group / limit).write_text(str(2_500_000_000))
        yield group
    finally:
        assert eventually(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_a_node_that_the_kernel_kills_for_want_of_memory(memory_group: Path, tmp_path: Path) -> None:
    def join() -> None:
        (memory_group / "cgroup.procs").write_text(str(os.getpid()))

    command = [sys.executable, str(MEMORY), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=join)
    end = json.loads(done.stdout.strip().splitlines()[-1])
    assert end["reason"] == "its process was killed by SIGKILL: its host or container was out of memory", end
    assert "memoryOverhead" in end["hint"]
