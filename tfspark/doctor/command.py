"""``tfspark doctor``: the command line and its output."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tfspark.doctor import machine
from tfspark.doctor.findings import Finding, State, guarded, unknown
from tfspark.errors import ConfigurationError

EXECUTOR_SECONDS = 300.0

_COLORS = {State.OK: "green", State.WARNING: "yellow", State.BROKEN: "bold red", State.UNKNOWN: "dim"}


def add_parser(verbs: Any) -> None:
    """Add the command to those of ``tfspark``."""
    parser = verbs.add_parser(
        "doctor",
        help="check Java, Spark, Python, TensorFlow, GPUs, network and paths here and on the executors",
        description="Check a set-up from end to end with a small Spark application; say what to do about what is "
        "broken. The exit code is 0 if nothing is.",
    )
    parser.add_argument("--master", help="as for spark-submit; by default that of spark-defaults.conf, or local[*]")
    parser.add_argument(
        "--conf", action="append", default=[], metavar="KEY=VALUE", help="a Spark setting; may come several times"
    )
    parser.add_argument(
        "--path",
        action="append",
        default=[],
        metavar="DIR",
        help="a directory or URI that driver and executors should share, such as that of checkpoints; may come "
        "several times",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="nodes that should find task slots; 1")
    parser.add_argument(
        "--timeout", type=float, default=EXECUTOR_SECONDS, metavar="S", help="seconds for the executors; %(default)g"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    findings = list(examine(options))
    if options.json:
        listed = [{"check": f.check, "state": f.state.value, "text": f.text, "hint": f.hint} for f in findings]
        sys.stdout.write(json.dumps({"healthy": _healthy(findings), "findings": listed}) + "\n")
    elif sys.stdout.isatty():
        _show_table(findings)
    else:
        for f in findings:
            lines = (f.state.value, f.check, f.text, f.hint)
            sys.stdout.write("\t".join(" ".join(part.split()) for part in lines).rstrip() + "\n")
        sys.stdout.write(f"# {_summary(findings)}\n")
    return 0 if _healthy(findings) else 1


def examine(options: argparse.Namespace) -> Iterator[Finding]:
    """Go through all checks, those of the executors if this machine can start Spark at all."""
    here = list(machine.examine())
    yield from here
    if not _healthy(here):
        yield unknown("executors", "not looked at, as Spark would not start or not do here")
        return
    if options.master:
        reached = list(machine.check_master(options.master))
        yield from reached
        if not _healthy(reached):
            yield unknown("executors", "not looked at, as the master cannot be reached")
            return
    yield from guarded("session", lambda: _there(options))


def _there(options: argparse.Namespace) -> Iterator[Finding]:
    from tfspark.doctor import verdicts
    from tfspark.doctor.survey import survey

    conf = dict(_setting(text) for text in options.conf)
    yield from verdicts.judge(survey(options.master, conf, options.path, options.workers, options.timeout))


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigurationError(f"--conf {text} is no setting.", hint="Write --conf spark.some.key=value.")
    return key, value


def _healthy(findings: list[Finding]) -> bool:
    return all(f.state is not State.BROKEN for f in findings)


def _summary(findings: list[Finding]) -> str:
    counts = Counter(f.state for f in findings)
    return ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state])


def _show_table(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"tfspark doctor: {_summary(findings)}", title_justify="left", show_lines=False)
    for name in ("", "check", "what was found, and what to do"):
        table.add_column(name, overflow="fold")
    for f in findings:
        told = Text(f.text)
        if f.hint:
            told.append(f"\n→ {f.hint}", style="bold")
        table.add_row(Text(f.state.value, style=_COLORS[f.state]), f.check, told)
    Console(file=sys.stdout, highlight=False).print(table)
