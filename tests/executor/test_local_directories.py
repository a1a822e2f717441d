"""Where nodes keep files: all of Spark's local directories."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfspark.executor.host import local_directories

pytestmark = pytest.mark.unit


def test_all_writable_directories_are_used_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    monkeypatch.setenv("SPARK_LOCAL_DIRS", f"{second},{tmp_path / 'none'},{first},{second}")
    assert local_directories() == [str(second), str(first)]
    monkeypatch.delenv("SPARK_LOCAL_DIRS")
    monkeypatch.setenv("LOCAL_DIRS", str(first))
    assert local_directories() == [str(first)]
