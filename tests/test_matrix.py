"""The table of versions that `make matrix` writes."""

from __future__ import annotations

import configparser
from typing import Any

import pytest
from matrix import BEGIN, END, HEAD, SETS, row_of, with_rows

pytestmark = pytest.mark.unit

SUMMARY: dict[str, Any] = {
    "versions": {"python": "3.11.7", "spark": "4.0.5", "tensorflow": "2.21.0", "keras": "3.15.1", "numpy": "2.4"},
    "session": "classic",
    "tfrecord": {"result": "ok", "why": "", "seconds": 1.0},
    "rdd": {"result": "skipped", "why": "no RDDs", "seconds": 0.0},
    "stream": {"result": "failed", "why": "x", "seconds": 2.0},
}


def test_a_row_names_versions_and_stages_that_did_not_run() -> None:
    row = row_of("Spark 4.0", SUMMARY, "2026-11-29")
    cells = [c.strip() for c in row.strip().strip("|").split("|")]
    assert cells[:4] == ["Spark 4.0", "4.0.5", "3.11.7", "2.21.0, 3.15.1"]
    assert cells[5:] == ["1 ok; skipped: rdd; failed: stream", "2026-11-29"]


def test_rows_of_other_sets_stay_and_those_of_unknown_sets_go() -> None:
    page = f"text\n{BEGIN}{HEAD}| a | 1 |\n| gone | 2 |\n{END}more\n"
    assert with_rows(page, {"b": "| b | 3 |\n"}, ["b", "a"]) == f"text\n{BEGIN}{HEAD}| b | 3 |\n| a | 1 |\n{END}more\n"
    assert with_rows(page, {"a": "| a | 4 |\n"}, ["a"]) == f"text\n{BEGIN}{HEAD}| a | 4 |\n{END}more\n"


def test_the_sets_are_readable() -> None:
    sets = configparser.ConfigParser()
    sets.read(SETS)
    assert "Spark 3.5" in sets and {k for s in sets.sections() for k in sets[s]} <= {"packages", "remote"}
