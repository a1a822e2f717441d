"""Run each part of tfspark once with each set of versions in ``matrix.ini``, and write what came of it into a page.

    python tests/matrix.py [--page docs/support.md] [SET ...]

Packages are installed below ``build/matrix`` when they are first needed. Sets that are not named keep their rows. Exits
with 1 if a stage failed.
"""

from __future__ import annotations

import argparse
import configparser
import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SETS = Path(__file__).with_name("matrix.ini")
SMOKE = Path(__file__).parent / "programs" / "smoke.py"
BEGIN, END = "<!-- matrix: written by make matrix -->\n", "<!-- end of matrix -->\n"
HEAD = "| set | Spark | Python | TensorFlow, Keras | numpy, pandas, pyarrow | stages | date |\n" + "|---" * 7 + "|\n"


def packages_of(name: str, packages: list[str]) -> Path:
    """Return a directory that has these packages, after installing them if need be."""
    directory = ROOT / "build" / "matrix" / re.sub(r"[^a-z0-9.]+", "-", name.lower())
    done = directory / ".installed"
    if not done.is_file():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(directory)]
        subprocess.run([*pip, *packages], check=True)
        done.touch()
    return directory


def run_set(name: str, packages: list[str], remote: str | None) -> dict[str, Any]:
    """Run the smoke program with a set; return its summary, whose stages have failed if it did not get to its end."""
    command = [sys.executable, str(SMOKE), *(["--remote", remote] if remote else [])]
    env = {k: v for k, v in os.environ.items() if k != "PYSPARK_PYTHON"}
    env["PYTHONPATH"] = os.pathsep.join([str(packages_of(name, packages)), str(ROOT)])
    ran = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    last = ran.stdout.splitlines()[-1] if ran.stdout else ""
    return dict(json.loads(last)) if last.startswith("{") else {"versions": {}, "all": {"result": "failed"}}


def row_of(name: str, summary: dict[str, Any], date: str) -> str:
    """Return a set's row of the table."""
    found = summary["versions"]
    tensorflow = found.get("tensorflow-cpu") or found.get("tensorflow", "")
    stages = {n: s["result"] for n, s in summary.items() if isinstance(s, dict) and "result" in s}
    said = [f"{sum(r == 'ok' for r in stages.values())} ok"]
    said += [f"{r}: {n}" for n, r in stages.items() if r != "ok"]
    packages = ", ".join(found.get(p, "") for p in ("numpy", "pandas", "pyarrow"))
    cells = [name, found.get("spark", ""), found.get("python", ""), f"{tensorflow}, {found.get('keras', '')}", packages]
    return f"| {' | '.join([*cells, '; '.join(said), date])} |\n"


def with_rows(page: str, rows: dict[str, str], order: list[str]) -> str:
    """Return a page whose table has these rows, by set, beside those that it had; sets that are gone lose theirs."""
    before, rest = page.split(BEGIN)
    table, after = rest.split(END)
    known = {m[1]: m[0] for m in re.finditer(r"^\| ([^|]+) \|.*\n", table, re.M)}
    known |= rows
    return before + BEGIN + HEAD + "".join(known[n] for n in order if n in known) + END + after


def main() -> int:
    """Run the sets; return the exit code."""
    sets = configparser.ConfigParser()
    sets.read(SETS)
    parser = argparse.ArgumentParser(description="Run the smoke program with sets of versions.")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "support.md")
    parser.add_argument("sets", nargs="*", metavar="SET", help="all by default")
    args = parser.parse_args()
    if unknown := set(args.sets) - set(sets.sections()):
        parser.error(f"unknown sets {sorted(unknown)}; the sets are {sets.sections()}")
    failed = False
    for name in args.sets or sets.sections():
        s = sets[name]
        summary = run_set(name, s["packages"].split(), s.get("remote"))
        row = row_of(name, summary, datetime.date.today().isoformat())
        failed = failed or "failed" in row
        args.page.write_text(with_rows(args.page.read_text(), {name: row}, sets.sections()))
        print(row, end="", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
