"""The blocks of the guide's page run one after the other, and print what the page says."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "guide" / "ml.md"
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)


def test_the_page_prints_what_it_says(
    spark: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names: dict[str, Any] = {"__name__": "guide"}
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) == 6
    for code, output in blocks:
        exec(compile(code, str(PAGE), "exec"), names)
        assert capsys.readouterr().out.split() == output.split(), code
    assert Path(names["here"], "history.png").stat().st_size > 1000
