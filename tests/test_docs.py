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

import docstring_examples
import pytest

from tfspark import errors, jobs

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SHARED = "/shared"
LANGUAGES = {"python", "text", "sh", "yaml", "json", "xml", "sql", "toml", "ini", "properties"}

COLUMNS = 88
SLATE = "#1e2129"
"""The background of the theme's dark look."""

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
# They train most; others show the same calls in small.
LONG_PAGES = {"feeding.md", "training.md", "guide/ml.md", "guide/roles.md", "migration/tensorflowonspark.md"}


def in_docs(page: Path) -> str:
    return str(page.relative_to(DOCS))


def page_param(page: Path) -> Any:
    return pytest.param(page, id=in_docs(page), marks=[pytest.mark.long] if in_docs(page) in LONG_PAGES else [])


@pytest.mark.parametrize("page", [page_param(p) for p in PAGES])
def test_the_blocks_of_a_page_run(spark: Any, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page, tmp_path / "shared")
    assert spark.range(1).count() == 1, "pages leave the session as it was"


def test_the_example_of_the_readme_runs_as_it_stands(spark: Any, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text((ROOT / "README.md").read_text().replace("/tmp/late", str(tmp_path / "late")))
    run_page(page, tmp_path / "shared")
    assert (tmp_path / "late" / "1" / "saved_model.pb").is_file()


def test_wrong_pages_fail(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n\n<!-- run\nx = 1\n-->\n```python\nprint(x)\n```\n\n```text\n2\n```\n")
    with pytest.raises(AssertionError, match=r"page.md, line 6"):
        run_page(page, tmp_path)
    page.write_text("# A\n\n```python\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as raised:
        run_page(page, tmp_path)
    assert raised.traceback[-1].lineno + 1 == 4


@pytest.mark.parametrize("page", ALL_PAGES, ids=in_docs)
def test_every_block_says_what_it_is(page: Path) -> None:
    """Code under another name than python would not be run."""
    unknown = [(b.line, b.language) for b in blocks_of(page) if b.language not in LANGUAGES]
    assert unknown == []


@pytest.mark.unit
def test_code_fits_the_page() -> None:
    """At 1,280 px a page shows 88 columns of code; the rest of a longer line is cut off."""
    long = []
    for page in [*ALL_PAGES, ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob("connectors/*/README.md")]:
        code = False
        for number, line in enumerate(page.read_text().splitlines(), 1):
            if line.lstrip().startswith("```"):
                code = not code
            elif code and len(line) > COLUMNS:
                long.append(f"{page.relative_to(ROOT)}:{number}")
        assert not code, page
    for module in (ROOT / "tfspark").rglob("*.py"):
        for number, line in enumerate(module.read_text().splitlines(), 1):
            if line.lstrip().startswith((">>> ", "... ")) and len(line.strip()) > COLUMNS:
                long.append(f"{module.relative_to(ROOT)}:{number}")
    assert long == []


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.unit
def test_links_have_contrast_in_both_looks() -> None:
    assert round(contrast("#000000", "#ffffff")) == 21
    style = (DOCS / "stylesheets" / "extra.css").read_text()
    rules = dict(re.findall(r"^(\[data-md-color-[^{]*) \{\n(.*?)^\}", style, re.M | re.S))
    for scheme, background in (("default", "#ffffff"), ("slate", SLATE)):
        rule = rules[f"[data-md-color-scheme={scheme}][data-md-color-primary=deep-orange]"]
        colours = re.findall(r"--md-(?:typeset-a|accent-fg)-color: (#\w{6});", rule)
        assert colours and min(contrast(c, background) for c in colours) >= 4.5
    header = re.findall(r"--md-primary-fg-color: (#\w{6});", rules["[data-md-color-primary=deep-orange]"])
    assert header and contrast(header[0], "#ffffff") >= 4.5


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
    reference = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    shown = set(re.findall(r'<h\d id="(tfspark\.[\w.]+)"', reference))
    assert {"tfspark.NodeContext.fit", "tfspark.errors.NodeFailed", "tfspark.jobs.run_id"} <= shown
    assert shown & docstring_examples.CALLED_BY_TFSPARK == set()
    for module in (errors, jobs):
        names = {n.removeprefix(f"{module.__name__}.").partition(".")[0] for n in shown if module.__name__ in n}
        assert names == set(module.__all__)
    gallery = (site / "gallery.html").read_text()
    assert gallery.count("<svg") > 2 and "output of:" not in gallery
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
