"""`tfspark doctor`: what it finds in good set-ups and in broken ones."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tfspark import __version__, cli
from tfspark.doctor import settings_check, verdicts
from tfspark.doctor.findings import Finding, State, broken, ok
from tfspark.doctor.survey import Survey
from tfspark.settings import described

COMMAND = [sys.executable, "-m", "tfspark.cli", "doctor"]


def doctor(*arguments: str, cwd: Path, **environment: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """Run the command in a process of its own; return its exit code and its findings by check."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYSPARK_PYTHON"}
    done = subprocess.run(
        [*COMMAND, "--json", *arguments],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.stdout.strip(), done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["healthy"] is (done.returncode == 0)
    found: dict[str, list[dict[str, str]]] = {}
    for finding in report["findings"]:
        found.setdefault(finding["check"], []).append(finding)
    return done.returncode, found


def broken_in(found: dict[str, list[dict[str, str]]]) -> set[str]:
    return {check for check, findings in found.items() if any(f["state"] == "broken" for f in findings)}


def test_a_good_set_up(spark: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--workers", "3", "--path", str(tmp_path), "--settings"]) == 0
    lines = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
    assert {line[0] for line in lines[:-1]} == {"ok"}
    assert {"java", "spark", "packages", "connector", "slots", "executors", "tensorflow", "network", "paths"} <= {
        line[1] for line in lines[:-1]
    }
    assert lines[-1] == [f"# {len(lines) - 1} ok"]
    settings = [line[2] for line in lines[:-1] if line[1] == "settings"]
    assert [text.split()[0] for text in settings] == [s.name for s in described()]
    assert "hang_timeout is 60s, its default (s). A process that exists but" in "\n".join(settings)
    assert list(tmp_path.iterdir()) == []
    assert spark.range(3).count() == 3  # A session that was there before goes on.


def test_a_cluster_with_faults_of_many_kinds(tmp_path: Path) -> None:
    """GPUs that TensorFlow does not see, and directories that are not shared."""
    script = tmp_path / "gpus.sh"
    script.write_text("""#!/bin/sh\necho '{"name": "gpu", "addresses": ["0", "1"]}'\n""")
    script.chmod(0o755)
    gpus = {"worker.resource.gpu.amount": 2, "executor.resource.gpu.amount": 2}
    settings = [f"--conf=spark.{k}={v}" for k, v in gpus.items()]
    settings.append(f"--conf=spark.worker.resource.gpu.discoveryScript={script}")
    # /proc/self/cwd is another directory for every process that has one of its own.
    paths = ["--path", "/proc/self/cwd", "--path", str(tmp_path / "none")]
    code, found = doctor("--master", "local-cluster[1,2,1024]", *settings, *paths, cwd=tmp_path)
    assert code == 1
    assert broken_in(found) == {"gpus", "paths"}
    assert "but TensorFlow sees 0" in found["gpus"][0]["text"] and "'tfspark-cluster[gpu]'" in found["gpus"][0]["hint"]
    unshared, absent = found["paths"]
    assert "the driver's file is not there" in unshared["text"]
    assert f"the driver cannot write to {tmp_path}/none" in absent["text"]
    assert sorted(p.name for p in tmp_path.iterdir() if "doctor" in p.name) == []


def test_too_few_slots_and_a_python_that_executors_do_not_have(tmp_path: Path) -> None:
    code, found = doctor("--master", "local[2]", "--workers", "4", cwd=tmp_path, PYSPARK_PYTHON="/nowhere/python")
    assert code == 1 and broken_in(found) == {"slots", "executors"}
    assert "5 are needed" in found["slots"][0]["text"] and "local[5]" in found["slots"][0]["hint"]
    assert "executors cannot run /nowhere/python" in found["executors"][0]["text"]
    assert "PYSPARK_PYTHON" in found["executors"][0]["hint"]


def test_a_python_with_nothing_installed(tmp_path: Path) -> None:
    """Executors whose Python lacks everything can still be asked."""
    base = Path(sysconfig.get_config_var("BINDIR"), f"python{sys.version_info[0]}.{sys.version_info[1]}")
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {base} -S "$@"\n')
    bare.chmod(0o755)
    code, found = doctor("--master", "local[2]", cwd=tmp_path, PYSPARK_PYTHON=str(bare))
    assert code == 1 and broken_in(found) == {"python", "packages", "tensorflow"}
    assert any("tfspark is not installed on the executor" in f["text"] for f in found["python"])
    lacking = next(f for f in found["packages"] if f["state"] == "broken")
    assert "no pyarrow" in lacking["text"] and "pip install 'tensorflow<2.22,>=2.19'" in lacking["hint"]
    assert "No module named 'tensorflow'" in found["tensorflow"][0]["text"]


def test_settings_that_are_not_at_their_defaults_and_wrong_ones() -> None:
    (fine,) = settings_check.examine({"spark.app.name": "x"}, {"HOME": "/"})
    assert fine == ok("settings", f"all {len(described())} settings are at their defaults")
    variables = {"TFSPARK_STOP_GRACE": "9", "TFSPARK_VERSION": "7"}
    grace, longer, other = settings_check.examine({"spark.tfspark.step_timeout": "none"}, variables)
    assert longer.text == "step_timeout is none by spark.tfspark.step_timeout; its default is 600s"
    assert grace.text == "stop_grace is 9s by TFSPARK_STOP_GRACE; its default is 5s"
    assert other.state is State.WARNING and "TFSPARK_VERSION is not a setting" in other.text
    for conf in ({"spark.tfspark.hang": "9"}, {"spark.tfspark.hang_timeout": "1s"}):
        (wrong,) = settings_check.examine(conf, {})
        assert wrong.state is State.BROKEN and "hang" in wrong.text and wrong.hint


def test_no_java(tmp_path: Path) -> None:
    code, found = doctor("--master", "local[2]", cwd=tmp_path, JAVA_HOME=str(tmp_path))
    assert code == 1 and "java" in broken_in(found)
    assert "does not run" in found["java"][0]["text"] and "openjdk-17" in found["java"][0]["hint"]
    assert found["executors"][0]["state"] == "unknown"


def test_a_jar_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, found = doctor(cwd=tmp_path, TFSPARK_CACHE=str(tmp_path / "file" / "cache"))
    assert code == 1 and broken_in(found) == {"connector"}
    assert "TFSPARK_CACHE" in found["connector"][0]["hint"]


def test_a_master_that_is_not_there(tmp_path: Path) -> None:
    code, found = doctor("--master", "spark://127.0.0.1:1", cwd=tmp_path)
    assert code == 1 and broken_in(found) == {"master"}
    assert "127.0.0.1:1: Connection refused" in found["master"][0]["text"]


def test_findings_come_as_they_are_made(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []

    def check() -> Iterator[Finding]:
        yield ok("java", "Java 17")
        said.append(capsys.readouterr().out)
        yield broken("spark", "no Spark", "Install it.")

    monkeypatch.setattr("tfspark.doctor.machine.examine", check)
    assert cli.main(["doctor"]) == 1
    assert said == ["ok\tjava\tJava 17\n"]
    last = "unknown\texecutors\tnot checked: first fix the failed checks above\n# 1 ok, 1 broken, 1 unknown\n"
    assert capsys.readouterr().out == "broken\tspark\tno Spark\tInstall it.\n" + last


def test_a_terminal_gets_a_table(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            COMMAND,
            cwd=tmp_path,
            env={**os.environ, "JAVA_HOME": str(tmp_path), "COLUMNS": "100"},
            stdout=theirs,
            stderr=subprocess.DEVNULL,
            timeout=100,
        )
        shown = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 1
    assert "tfspark doctor: " in shown and "broken" in shown and "→ Install Java 17" in shown


HEALTHY: dict[str, Any] = {
    "executor": "a 1",
    "host": "a",
    "address": "10.0.0.1",
    "port": 4000,
    "python": "3.11.7",
    "executable": "/usr/bin/python3",
    "tfspark": __version__,
    "packages": {},
    "tensorflow": {"tensorflow": "2.21.0", "keras": "3.15.1", "gpus": [], "cuda": False},
    "granted": [],
    "nvidia": 0,
    "driver": None,
    "unreachable": {},
    "paths": {},
}


def surveyed(*changes: dict[str, Any], **fields: Any) -> list[Finding]:
    """Judge executors on hosts a, b, ..., each of them healthy but for its changes; return what is not fine."""
    tasks = [{**HEALTHY, "host": "abcdef"[i], **change} for i, change in enumerate(changes)]
    found = replace(Survey("spark://m:7077", slots=4, tasks=tasks), **fields)
    return [f for f in verdicts.judge(found) if f.state is not State.OK]


@pytest.mark.unit
def test_healthy_facts_give_no_complaint() -> None:
    assert surveyed({}, {}) == []


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "check", "text"),
    [
        ({"tfspark": "0.0.9"}, "python", f"tfspark 0.0.9 on the executor on b, but {__version__} here"),
        ({"driver": "timed out"}, "network", "the executor on b cannot reach the driver: timed out"),
        ({"unreachable": {"a (10.0.0.1:4)": "No route to host"}}, "network", "on a (10.0.0.1:4): No route to host"),
        ({"nvidia": 2}, "gpus", "Spark does not assign 2 GPUs on the executor on b to tasks"),
        (
            {"granted": ["0", "3"]},
            "gpus",
            "Spark assigns GPU 0, 3 to a task on the executor on b, but TensorFlow sees 0",
        ),
        (
            {"tensorflow": {**HEALTHY["tensorflow"], "keras": "3.12.0"}},
            "tensorflow",
            "executors have different versions",
        ),
    ],
)
def test_an_executor_that_differs_is_named(change: dict[str, Any], check: str, text: str) -> None:
    (finding,) = surveyed({}, change)
    assert finding.check == check and text in finding.text and finding.hint


@pytest.mark.unit
@pytest.mark.parametrize(
    ("master", "settings", "text"),
    [
        ("yarn", {}, "spark.executor.memoryOverhead is not set"),
        ("k8s://https://m", {}, "spark.executor.memoryOverhead is not set"),
        ("spark://m:7077", {"spark.executor.pyspark.memory": "1g"}, "limits the address space"),
    ],
)
def test_settings_that_hurt(master: str, settings: dict[str, str], text: str) -> None:
    (finding,) = surveyed({}, master=master, settings=settings)
    assert text in finding.text and finding.hint


@pytest.mark.unit
def test_a_lost_shared_file_is_noticed() -> None:
    (finding,) = surveyed({"paths": {"/x": None}}, {"paths": {"/x": None}}, paths={"/x": None}, seen={"/x": 1})
    assert finding.check == "paths" and "the driver does not see the files of 1 executors in /x" in finding.text


@pytest.mark.unit
@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("[PYTHON_VERSION_MISMATCH] Python in worker has different version: 3.12 than that in driver: 3.11", "3.12"),
        ("Traceback\nNo module named 'pyspark'", "has no pyspark"),
        ("Barrier execution mode does not support dynamic resource allocation for now", "does not run barrier stages"),
        ("something else", "a barrier job fails: something else"),
    ],
)
def test_why_executors_cannot_be_asked(error: str, text: str) -> None:
    (finding,) = surveyed(job_error=error)
    assert finding.check == "executors" and text in finding.text and finding.hint
