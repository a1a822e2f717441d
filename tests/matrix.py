"""Run each part of tfspark once with each set of versions in ``matrix.ini``, and write what came of it into a page.

    python tests/matrix.py [--tests FILES] [--page docs/support.md] [SET ...]

Packages are installed below ``build/matrix`` when they are first needed, and again when ``setup.cfg`` or the set asks
for others. What a set prints is in a log beside them. Sets that are not named keep their rows. Exits with 1 if a set
could not be run, or if a stage or a test failed.
"""

from __future__ import annotations

import argparse
import configparser
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "matrix"
SETS = Path(__file__).with_name("matrix.ini")
SMOKE = Path(__file__).parent / "programs" / "smoke.py"
TESTS = ["connectors", "node/test_exactness.py", "feeding/test_inputs.py", "prediction", "ml"]
TEST_PACKAGES = ["pytest>=8", "pytest-timeout", "pytest-xdist", "hypothesis", "matplotlib", "pyspark[connect]"]
CHOSEN = "not (alone or long or airflow or exactness or packaging)"
"""The tests of these paths that `make test` runs, and that may run beside others."""
INTERRUPTED = 2
"""Exit code of pytest when it is interrupted, also by an error while it collects tests."""
NOISE = "Exception ignored"
"""What Python prints about an error that nobody can catch, in a process that ends for instance."""
BEGIN, END = "<!-- matrix: written by make matrix -->\n", "<!-- end of matrix -->\n"
HEAD = (
    "| set | Spark | Python | TensorFlow, Keras | numpy, pandas, pyarrow | stages | tests | date |\n"
    + "|---" * 8
    + "|\n"
)


class NotRun(Exception):
    """A set was not run, or not to its end; the text says why."""


def read_sets(path: Path) -> configparser.ConfigParser:
    """Return the sets of a file."""
    sets = configparser.ConfigParser()
    sets.read(path)
    return sets


def requirements(packages: list[str], lowest: bool) -> list[str]:
    """Return what `setup.cfg` requires and a set's packages; with `lowest`, each of the others at its lower bound."""
    config = read_sets(ROOT / "setup.cfg")
    own = [Requirement(line) for line in config["options"]["install_requires"].split("\n") if line]
    java = config["options.extras_require"]["java"].split()
    chosen = {Requirement(p).name for p in packages}
    own_versions = [at_lower_bound(r) if lowest and r.name not in chosen else str(r) for r in own]
    return [*own_versions, *java, *packages]


def at_lower_bound(requirement: Requirement) -> str:
    """Return a requirement of the lowest version that this one allows; itself if it has no lower bound."""
    bounds = [s.version for s in requirement.specifier if s.operator == ">="]
    return f"{requirement.name}=={bounds[0]}" if bounds else str(requirement)


def interpreter(version: str) -> str:
    """Return the path of a Python of this version."""
    found = shutil.which(f"python{version}")
    # pyenv puts a program of that name on PATH even if it cannot run it.
    if found is None or subprocess.run([found, "-c", "import ensurepip, venv"], stderr=subprocess.DEVNULL).returncode:
        raise NotRun(f"python{version} is not on PATH, or lacks the venv module.")
    return found


def install(directory: Path, make: list[str], pip: list[str], packages: list[str]) -> None:
    """Make a directory of packages unless it has these; a directory of other packages is replaced."""
    done = directory / ".installed"
    if done.is_file() and done.read_text().split("\n") == packages:
        return
    shutil.rmtree(directory, ignore_errors=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        if make:
            subprocess.run(make, check=True)
        subprocess.run([*pip, *packages], check=True)
    except subprocess.CalledProcessError as e:
        raise NotRun(f"{' '.join(e.cmd[:4])} ... exited with {e.returncode}.") from e
    done.write_text("\n".join(packages))


def environment_of(name: str, s: configparser.SectionProxy) -> tuple[str, str]:
    """Return the Python of a set and its `PYTHONPATH`, after installing its packages if need be."""
    directory = BUILD / slug(name)
    packages = s.get("packages", "").split()
    pip = ["-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    if "python" not in s:
        install(directory, [], [sys.executable, *pip, "--target", str(directory)], packages)
        return sys.executable, os.pathsep.join([str(directory), str(ROOT)])
    python = str(directory / "bin" / "python")
    wanted = requirements(packages, s.getboolean("lowest", False)) + TEST_PACKAGES
    install(directory, [interpreter(s["python"]), "-m", "venv", str(directory)], [python, *pip], wanted)
    return python, str(ROOT)


def slug(name: str) -> str:
    """Return a set's name as that of a file."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower())


def run_smoke(python: str, env: dict[str, str], remote: str | None, log: Path) -> dict[str, Any]:
    """Run the smoke program; return its summary, whose stages have failed if it did not get to its end."""
    command = [python, str(SMOKE), *(["--remote", remote] if remote else [])]
    with log.open("w") as said:
        ran = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=said, text=True)
    with log.open("a") as said:
        said.write(ran.stdout)
    last = ran.stdout.splitlines()[-1] if ran.stdout else ""
    summary = dict(json.loads(last)) if last.startswith("{") else {"versions": {}, "all": {"result": "failed"}}
    if NOISE in log.read_text():
        summary[f"no '{NOISE}'"] = {"result": "failed"}
    return summary


def run_tests(python: str, env: dict[str, str], at_once: int, log: Path) -> str:
    """Run the tests that say most about versions, some files at a time; return pytest's counts.

    Raises
    ------
    NotRun
        If pytest did not run to its end, so that the counts are of some tests only.
    """
    paths = [str(ROOT / "tests" / t) for t in TESTS]
    with log.open("w") as said:
        side_by_side = [f"--numprocesses={at_once}", "--dist=loadfile"]
        command = [python, "-m", "pytest", "-q", *side_by_side, "-m", CHOSEN, *paths]
        ran = subprocess.run(command, env=env, cwd=ROOT, stdout=said, stderr=said, check=False)
    if ran.returncode == INTERRUPTED:
        raise NotRun(f"its tests did not run to their end: {log}")
    return counts(log.read_text())


def counts(said: str) -> str:
    """Return the counts in the last line of pytest's output; that the tests failed if it has none."""
    last = said.rstrip().rpartition("\n")[2]
    return ", ".join(re.findall(r"\d+ (?:passed|failed|skipped|errors?)", last)) or "failed: no counts"


def row_of(name: str, summary: dict[str, Any], tests: str, date: str) -> str:
    """Return a set's row of the table."""
    found = summary["versions"]
    tensorflow = found.get("tensorflow-cpu") or found.get("tensorflow", "")
    stages = {n: s["result"] for n, s in summary.items() if isinstance(s, dict) and "result" in s}
    said = [f"{sum(r == 'ok' for r in stages.values())} ok"]
    said += [f"{r}: {n}" for n, r in stages.items() if r != "ok"]
    packages = ", ".join(found.get(p, "") for p in ("numpy", "pandas", "pyarrow"))
    cells = [name, found.get("spark", ""), found.get("python", ""), f"{tensorflow}, {found.get('keras', '')}", packages]
    return f"| {' | '.join([*cells, '; '.join(said), tests, date])} |\n"


def with_rows(page: str, rows: dict[str, str], order: list[str]) -> str:
    """Return a page whose table has these rows, by set, beside those that it had; sets that are gone lose theirs."""
    before, rest = page.split(BEGIN)
    table, after = rest.split(END)
    known = {m[1]: m[0] for m in re.finditer(r"^\| ([^|]+) \|.*\n", table, re.M)}
    known |= rows
    return before + BEGIN + HEAD + "".join(known[n] for n in order if n in known) + END + after


def run_set(name: str, s: configparser.SectionProxy, tests: int) -> str:
    """Run a set, with `tests` files of tests at a time; return its row."""
    python, path = environment_of(name, s)
    env = {k: v for k, v in os.environ.items() if k != "PYSPARK_PYTHON"} | {"PYTHONPATH": path}
    if "java_home" in s:
        env["JAVA_HOME"] = str(BUILD / slug(name) / s["java_home"])
    summary = run_smoke(python, env, s.get("remote"), BUILD / f"{slug(name)}.smoke.log")
    # The session of the tests is a classic one.
    wanted = tests > 0 and "remote" not in s
    counted = run_tests(python, env, tests, BUILD / f"{slug(name)}.tests.log") if wanted else "not run"
    return row_of(name, summary, counted, datetime.date.today().isoformat())


def main() -> int:
    """Run the sets; return the exit code."""
    sets = read_sets(SETS)
    parser = argparse.ArgumentParser(description="Run the smoke program with sets of versions.")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "support.md")
    parser.add_argument(
        "--tests", type=int, default=0, metavar="FILES", help=f"run {', '.join(TESTS)} too, so many files at a time"
    )
    parser.add_argument("sets", nargs="*", metavar="SET", help="all by default")
    args = parser.parse_args()
    if unknown := set(args.sets) - set(sets.sections()):
        parser.error(f"unknown sets {sorted(unknown)}; the sets are {sets.sections()}")
    failed = False
    for name in args.sets or sets.sections():
        try:
            row = run_set(name, sets[name], args.tests)
        except NotRun as e:
            print(f"{name} was not run and keeps its row: {e}", file=sys.stderr)
            failed = True
            continue
        failed = failed or bool(re.search("failed|error", row))
        args.page.write_text(with_rows(args.page.read_text(), {name: row}, sets.sections()))
        print(row, end="", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
