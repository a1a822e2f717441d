"""The command ``tfspark doctor``: its options and its output."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from typing import Any

from tfspark.doctor import machine
from tfspark.doctor.findings import Finding, State, guarded, unknown
from tfspark.errors import ConfigurationError

EXECUTOR_SECONDS = 300.0

STATE_WIDTH, CHECK_WIDTH = 7, 12
"""Widths of the first two columns of the output in a terminal, in characters."""

_COLORS = {State.OK: "green", State.WARNING: "yellow", State.BROKEN: "bold red", State.UNKNOWN: "dim"}


def add_parser(verbs: Any) -> None:
    """Add the ``doctor`` command to ``tfspark``."""
    parser = verbs.add_parser(
        "doctor",
        help="check Java, Spark, Python, TensorFlow, GPUs, network and paths here and on the executors",
        description="Check a set-up from end to end with a small Spark application. Every failed check says how to fix "
        "it. The exit code is 0 if no check has failed.",
    )
    parser.add_argument("--master", help="as for spark-submit; by default that of spark-defaults.conf, or local[*]")
    parser.add_argument(
        "--conf", action="append", default=[], metavar="KEY=VALUE", help="a Spark setting; may be repeated"
    )
    parser.add_argument(
        "--path",
        action="append",
        default=[],
        metavar="DIR",
        help="a directory or URI that driver and executors should share, such as the one for checkpoints; may be "
        "repeated",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="number of nodes to find task slots for; 1")
    parser.add_argument(
        "--timeout",
        type=float,
        default=EXECUTOR_SECONDS,
        metavar="S",
        help="seconds to wait for the executors; %(default)g",
    )
    parser.add_argument("--settings", action="store_true", help="list all settings of tfspark, with what they do")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    if options.json:
        findings = list(examine(options))
        listed = [{"check": f.check, "state": f.state.value, "text": f.text, "hint": f.hint} for f in findings]
        sys.stdout.write(json.dumps({"healthy": _healthy(findings), "findings": listed}) + "\n")
    elif sys.stdout.isatty():
        findings = _show_in_terminal(examine(options))
    else:
        findings = []
        for f in examine(options):
            findings.append(f)
            lines = (f.state.value, f.check, f.text, f.hint)
            sys.stdout.write("\t".join(" ".join(part.split()) for part in lines).rstrip() + "\n")
            sys.stdout.flush()
        sys.stdout.write(f"# {_summary(findings)}\n")
    return 0 if _healthy(findings) else 1


def examine(options: argparse.Namespace) -> Iterator[Finding]:
    """Run all checks and yield each finding when it is known; check executors only if this machine can start Spark."""
    if not (yield from _each(machine.examine())):
        yield unknown("executors", "not checked: first fix the failed checks above")
        return
    if options.master and not (yield from _each(machine.check_master(options.master))):
        yield unknown("executors", "not checked, because the master cannot be reached")
        return
    yield from guarded("session", lambda: _there(options))


def _each(findings: Iterable[Finding]) -> Generator[Finding, None, bool]:
    """Yield findings; return whether none of them is broken."""
    healthy = True
    for f in findings:
        healthy = healthy and f.state is not State.BROKEN
        yield f
    return healthy


def _there(options: argparse.Namespace) -> Iterator[Finding]:
    from tfspark.doctor import settings_check, verdicts
    from tfspark.doctor.survey import survey

    conf = dict(_setting(text) for text in options.conf)
    found = survey(options.master, conf, options.path, options.workers, options.timeout)
    yield from settings_check.examine(found.settings, os.environ, options.settings)
    yield from verdicts.judge(found)


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigurationError(
            f"--conf needs KEY=VALUE, got {text!r}.", hint="For example --conf spark.executor.memory=4g."
        )
    return key, value


def _healthy(findings: list[Finding]) -> bool:
    return all(f.state is not State.BROKEN for f in findings)


def _summary(findings: list[Finding]) -> str:
    counts = Counter(f.state for f in findings)
    return ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state])


def _show_in_terminal(findings: Iterable[Finding]) -> list[Finding]:
    """Show each finding when it is known, and a status line while checks are running."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    shown: list[Finding] = []
    with console.status("checking; executors may take a minute to start ..."):
        for f in findings:
            shown.append(f)
            line = Table.grid(padding=(0, 2, 0, 0))
            for width in (STATE_WIDTH, CHECK_WIDTH, None):
                line.add_column(width=width, overflow="fold")
            told = Text(f.text)
            if f.hint:
                told.append(f"\n→ {f.hint}", style="bold")
            line.add_row(Text(f.state.value, style=_COLORS[f.state]), f.check, told)
            console.print(line)
    console.print(f"tfspark doctor: {_summary(shown)}")
    return shown
