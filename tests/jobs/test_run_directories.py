"""What a job may replace: run ids, and directories that carry the job's mark. Nothing here starts Spark."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from standalone import JOBS

from tfspark import jobs
from tfspark.errors import ConfigurationError, OutputError

sys.path.insert(0, str(JOBS))

NEEDED = {
    "batch_predict": ["--model", "m", "--data", "d"],
    "convert": ["--data", "d", "--format", "csv"],
    "flights": [],
    "images": ["--data", "d"],
    "search": ["--data", "d"],
    "text": [],
    "wide_and_deep": [],
}
"""Jobs with run ids, and the arguments that they need."""

OWN = {"batch_predict": "part-0", "convert": "part-0", "search": "trial-3", "digits": "pipeline", "streaming": "stop"}
"""Something that the job writes, where that is not model/1."""

REFUSED = ["", ".", "..", "/tmp", "a/b", "../a", "a\\b", "a:b", "2026-01-02T00:00:00", "-x", "--help", ".a", "_a"]
REFUSED += [" ", "a b", "a\n", "\ta", "a\x00", "a\x7f", "a*", "a?", "[a]", "{a}", "~", "a,b", "a%2fb", "ä", "a" * 129]


def tree(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): p.read_text() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """OUTPUT with a user's files in it, in the run's directory and beside OUTPUT."""
    output = tmp_path / "output"
    for file in (tmp_path / "beside.txt", output / "in.txt", output / "run" / "model" / "1" / "weights", output / "a"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"a user's {file.name}")
    return output


def main_of(job: str) -> Callable[[list[str]], int]:
    return importlib.import_module(job).main


@pytest.mark.parametrize("job", NEEDED)
def test_a_run_id_that_is_no_plain_name_is_refused_in_one_line_before_anything_else(
    job: str, users: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(users.parent)
    for run_id in REFUSED:
        with pytest.raises(SystemExit) as ended:
            main_of(job)([*NEEDED[job], "--output", str(users), f"--run-id={run_id}"])
        out, err = capsys.readouterr()
        assert ended.value.code == 2 and out == ""
        assert err.count("\n") == 1 and "--run-id" in err and repr(run_id) in err
    assert tree(users.parent) == before


@pytest.mark.parametrize(
    "run_id", ["run", "2026-01-02", "20260102", "manual_1", "date=2026-01-02", "v1.2+b", "a" * 128]
)
def test_run_ids(run_id: str) -> None:
    assert jobs.run_id(run_id) == run_id


@pytest.mark.parametrize("job", [*NEEDED, "digits", "streaming"])
def test_what_a_job_would_replace_and_has_not_written_is_left_alone(job: str, users: Path) -> None:
    """Whatever the job writes is refused under a user's file of that name, and under the mark of another job."""
    has_runs = job in NEEDED
    terms = NEEDED.get(job, ["--data", "d", "--schema", "x float", "--label", "y"] if job == "streaming" else [])
    directory = users / "run" if has_runs else users
    terms = [*terms, "--output", str(users), *(["--run-id", "run"] if has_runs else [])]
    own = directory / OWN.get(job, "model")
    if not own.exists():
        own.write_text("a user's")
    for foreign in (None, {"job": "another"}, {"other": "file"}):
        if foreign is not None:
            (directory / jobs.MARK).write_text(json.dumps(foreign))
        before = tree(users.parent)
        with pytest.raises(OutputError) as refused:
            main_of(job)(terms)
        assert "--output" in str(refused.value) and str(directory) in str(refused.value)
        assert tree(users.parent) == before


def test_a_claimed_directory_keeps_what_others_have_put_there(users: Path) -> None:
    (users / "run" / "model").rename(users / "model")
    run = jobs.RunDirectory("text", str(users), "run", writes=["model", "trial-*", "checkpoints"])
    assert run.result() is None and run.path == users / "run" and run.uri == f"file://{users}/run"
    (run.path / "notes.txt").write_text("a user's")
    run.claim()
    assert json.loads((run.path / jobs.MARK).read_text()) == {"job": "text"}
    for name in ("model/1/weights", "trial-2/weights", "checkpoints/epoch-1"):
        (run.path / name).parent.mkdir(parents=True)
        (run.path / name).write_text("the job's")
    (run.path / "linked").symlink_to(users)
    (run.path / "trial-4").symlink_to(users)

    again = jobs.RunDirectory("text", str(users), "run", writes=["model", "trial-*", "checkpoints"])
    again.claim(keep=["checkpoints"])
    assert sorted(p.name for p in run.path.iterdir()) == [jobs.MARK, "checkpoints", "linked", "notes.txt"]
    assert (users / "in.txt").exists() and (users / "model" / "1" / "weights").exists()
    again.finish({"accuracy": 1.0})
    assert again.result() == {"accuracy": 1.0} and again.has("result.json") and not list(run.path.glob("*.draft"))
    again.claim()
    assert again.result() is None and not (run.path / "checkpoints").exists()
    assert tree(users)["run/notes.txt"] == "a user's" and tree(users.parent)["beside.txt"] == "a user's beside.txt"


def test_rows_of_others_do_not_get_among_those_of_a_job(tmp_path: Path) -> None:
    def rows() -> jobs.RunDirectory:
        return jobs.RunDirectory("convert", str(tmp_path), "run", writes=["part-*"], alone=True)

    rows().claim()
    (tmp_path / "run" / "part-0").touch()
    (tmp_path / "run" / "_hidden").touch()
    rows().claim()
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["_hidden", jobs.MARK]
    (tmp_path / "run" / "mine.parquet").touch()
    with pytest.raises(OutputError, match=r"contains 'mine.parquet', which the job 'convert' did not write"):
        rows().claim()


def test_a_file_is_no_directory_and_a_path_no_run_id(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a user's")
    with pytest.raises(OutputError, match="is a file"):
        jobs.RunDirectory("text", str(tmp_path), "run").claim()
    with pytest.raises(ConfigurationError, match="is not a run id"):
        jobs.RunDirectory("text", str(tmp_path), "..")


def test_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert jobs.directory("a/../b") == str(tmp_path / "b") == jobs.location("b")
    assert jobs.directory(f"file://{tmp_path}") == jobs.directory(f"file:{tmp_path}") == str(tmp_path)
    assert jobs.location("s3a://bucket/a") == "s3a://bucket/a"
    for text in ("", "s3a://bucket/a", "hdfs:/a", "a\0"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a local or mounted directory"):
            jobs.directory(text)
    with pytest.raises(argparse.ArgumentTypeError):
        jobs.location("")
    # What is at a URI is seen as in a path.
    jobs.RunDirectory("text", str(tmp_path), "run").claim()
    assert jobs.RunDirectory("text", f"file://{tmp_path}", "run").has(jobs.MARK)


def run_main(body: str) -> subprocess.Popen[str]:
    program = f"import sys\nfrom tfspark import errors, jobs\ndef main():\n    {body}\nsys.exit(jobs.execute(main))"
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("return jobs.ExitCode.BELOW_BAR", 3, ""),
        ("raise errors.FeedError('No rows.', 'Send some.')", 1, "No rows.\nHint: Send some.\nFeedError: No rows.\n"),
        ("raise errors.OutputError('x holds y.', 'Move it.')", 2, "-c: error: x holds y. Move it.\n"),
    ],
)
def test_exit_codes(body: str, code: int, said: str) -> None:
    job = run_main(body)
    assert job.communicate()[1] == said and job.returncode == code


def test_sigterm_unwinds_a_job() -> None:
    job = run_main(
        "import threading\n    try:\n        print('begun', flush=True)\n        threading.Event().wait()\n"
        "    finally:\n        print('unwound')"
    )
    assert job.stdout is not None and job.stdout.readline() == "begun\n"
    os.kill(job.pid, signal.SIGTERM)
    assert job.communicate()[0] == "unwound\n" and job.returncode == 143


def test_the_module_starts_nothing() -> None:
    program = "import sys, tfspark.jobs; print({'pyspark', 'tensorflow'} & set(sys.modules))"
    done: Any = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
