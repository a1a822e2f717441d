"""The guide's code runs, and prints what the guide says."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

GUIDE = Path(__file__).parent.parent / "docs" / "guide"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["predict.md", "export.md"])
def test_the_page_prints_what_it_says(page: str, spark: Any, tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    printed = ""
    # The page's session is that of the tests, and its files are in a place of their own.
    text = (GUIDE / page).read_text().replace("/tmp/tfspark-guide", str(tmp_path))
    for kind, block in BLOCK.findall(text):
        if kind == "text":
            assert re.sub(r"\s+\n", "\n", printed).strip() == re.sub(r"\s+\n", "\n", block).strip()
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block, page, "exec"), names)
        printed = out.getvalue()
    shutil.rmtree(tmp_path)
