"""Files for contributors: issue forms fit GitHub's schema; hooks before a commit run what make lint runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("schema", "names"), [("forms", "[!c]*.yml"), ("config", "config.yml")])
def test_issue_forms_fit_the_schema_of_github(schema: str, names: str) -> None:
    files = sorted(map(str, (ROOT / ".github/ISSUE_TEMPLATE").glob(names)))
    checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.github-issue-{schema}"]
    done = subprocess.run([*checker, *files], capture_output=True, text=True)
    assert files and done.returncode == 0, done.stdout + done.stderr


def test_hooks_run_what_make_lint_runs_without_a_network() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local" and {hook["language"] for hook in repo["hooks"]} == {"system"}
    tools = {re.sub(r"^\.venv/bin/(python -m )?", "", hook["entry"]).split()[0] for hook in repo["hooks"]}
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert lint is not None and tools == set(re.findall(r"\$\(BIN\)/([\w-]+)", lint[1]))
