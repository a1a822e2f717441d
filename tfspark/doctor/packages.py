"""Which Python packages tfspark needs, by its own metadata, and whether what is installed will do."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping

from packaging.requirements import Requirement

from tfspark.distribution import distribution_name
from tfspark.doctor.findings import Finding, State, ok

NODES_ONLY = frozenset({"tensorflow", "keras", "tensorboard"})
"""A driver can do without these as long as its own code does."""

SHOWN = ("tensorflow", "keras", "pyarrow", "pandas", "numpy")

DRIVER_ONLY = frozenset({"rich", "findspark", "cryptography", "google-crc32c", "pyspark"})
"""Executors can do without these; pyspark comes to them with Spark."""


def requirements() -> list[Requirement]:
    """Return what tfspark requires, extras aside; nothing if it was not installed as a package."""
    try:
        lines = importlib.metadata.requires(distribution_name()) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = [Requirement(line) for line in lines]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]


def judge(check: str, where: str, installed: Mapping[str, str | None], optional: frozenset[str]) -> Iterator[Finding]:
    """Compare installed versions with `requirements`; name those that are missing or will not do.

    Parameters
    ----------
    check
        Name of the check.
    where
        Whose packages they are: ``"the driver"``.
    installed
        Version by name, None for what is missing.
    optional
        Names whose lack is only a warning.
    """
    wrong: dict[State, list[tuple[str, str]]] = {State.BROKEN: [], State.WARNING: []}
    for needed in requirements():
        version = installed.get(needed.name)
        if version is None or not needed.specifier.contains(version, prereleases=True):
            state = State.WARNING if needed.name in optional else State.BROKEN
            found = f"{needed.name} {version}" if version else f"no {needed.name}"
            wrong[state].append((found, f"'{needed.name}{needed.specifier}'"))
    for state, found_and_wanted in wrong.items():
        if found_and_wanted:
            founds, wanted = zip(*found_and_wanted, strict=True)
            yield Finding(check, state, f"{where}: {', '.join(founds)}", f"pip install {' '.join(wanted)} there.")
    if not any(wrong.values()):
        shown = [n for n in SHOWN if installed.get(n)]
        yield ok(check, f"{where}: {', '.join(f'{n} {installed[n]}' for n in shown)}")
