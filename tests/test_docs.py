"""The documentation: each Python block runs, prints what the page says it prints, and the site is built."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SHARED = "/shared"
LANGUAGES = {"python", "text", "sh", "yaml", "json", "xml", "sql", "toml", "ini", "properties"}

_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$|^<!-- run\n(.*?)^-->$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, or hidden code, whose language is python, too."""

    language: str
    code: str
    line: int
    begin: int
    end: int


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        hidden = match[3] is not None
        code = match[3] if hidden else match[2]
        line = text.count("\n", 0, match.start(3 if hidden else 2))
        found.append(Block("python" if hidden else match[1], code, line, match.start(), match.end()))
    return found


def expected_output(text: str, blocks: list[Block], i: int) -> str | None:
    """Return the text block that follows a block with nothing but white space between."""
    if i + 1 == len(blocks) or blocks[i + 1].language != "text":
        return None
    return blocks[i + 1].code if not text[blocks[i].end : blocks[i + 1].begin].strip() else None


def run_page(page: Path, shared: Path) -> None:
    """Run the blocks of a page in one namespace."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    text, blocks = page.read_text(), blocks_of(page)
    for i, block in enumerate(blocks):
        if block.language != "python":
            continue
        # With its true lines, a traceback points into the page.
        code = compile("\n" * block.line + block.code.replace(SHARED, str(shared)), str(page), "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        expected = expected_output(text, blocks, i)
        if expected is not None:
            # Tables may have white space at their ends.
            got = printed.getvalue().replace(str(shared), SHARED)
            assert got.split() == expected.split(), f"{page.name}, line {block.line}"


ALL_PAGES = sorted(DOCS.rglob("*.md"))
PAGES = [p for p in ALL_PAGES if any(b.language == "python" for b in blocks_of(p))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_the_blocks_of_a_page_run(spark: Any, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page, tmp_path / "shared")
    assert spark.range(1).count() == 1, "pages leave the session as it was"


def test_wrong_pages_fail(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n\n<!-- run\nx = 1\n-->\n```python\nprint(x)\n```\n\n```text\n2\n```\n")
    with pytest.raises(AssertionError, match=r"page.md, line 6"):
        run_page(page, tmp_path)
    page.write_text("# A\n\n```python\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as raised:
        run_page(page, tmp_path)
    assert raised.traceback[-1].lineno + 1 == 4


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_every_block_says_what_it_is(page: Path) -> None:
    """Code under another name than python would not be run."""
    unknown = [(b.line, b.language) for b in blocks_of(page) if b.language not in LANGUAGES]
    assert unknown == []


def test_the_reference_has_every_public_name() -> None:
    """Whoever adds a public name writes ``::: tfspark.name`` into a page of the reference."""
    import tfspark

    pages = "\n".join(p.read_text() for p in (DOCS / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: tfspark\.(\w+)", pages, re.M))
    assert set(tfspark.__all__) - shown == set()


def test_the_site_is_built_without_network_spark_and_tensorflow(tmp_path: Path) -> None:
    """With warnings as errors. Modules that must not be imported are replaced by ones that cannot be."""
    for name in ("tensorflow", "pyspark", "keras"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the documentation imports ' + __name__)\n")
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n\n\ndef refuse(*_):\n    raise SystemExit('the documentation wants a network')\n\n\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
    )
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Seconds within which all nodes must have started" in (site / "reference" / "cluster.html").read_text()
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?(https?://[^\" >]+)", page.read_text())
        assert loaded == [], f"{page} loads from elsewhere"


@pytest.mark.unit
def test_the_picture_of_imports_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS / ".hooks"))
    import imports_picture

    assert imports_picture.PICTURE.read_text() == imports_picture.picture(), "run docs/.hooks/imports_picture.py"


@pytest.mark.unit
def test_the_diagrams_are_what_their_script_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS / ".hooks"))
    import diagrams

    for name, diagram in diagrams.DIAGRAMS.items():
        assert (diagrams.IMAGES / name).read_text() == diagram(), "run docs/.hooks/diagrams.py"
        ElementTree.fromstring(diagram())
