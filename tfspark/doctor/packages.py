"""Which Python packages tfspark needs, by its own metadata, and whether what is installed will do."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping

from packaging.requirements import Requirement

from tfspark.doctor.findings import Finding, State, ok

NODES_ONLY = frozenset({"tensorflow", "keras", "tensorboard"})
"""A driver can do without these as long as its own code does."""

DRIVER_ONLY = frozenset({"rich", "findspark", "cryptography", "google-crc32c", "pyspark"})
"""Executors can do without these; pyspark comes to them with Spark."""


def requirements() -> list[Requirement]:
    """Return what tfspark requires, extras aside; nothing if it was not installed as a package."""
    try:
        lines = importlib.metadata.requires("tfspark") or []
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
        Whose packages they are, as part of a sentence: ``"the driver"``.
    installed
        Version by name, None for what is missing.
    optional
        Names whose lack is only a warning.
    """
    wrong = []
    for needed in requirements():
        version = installed.get(needed.name)
        if version is not None and needed.specifier.contains(version, prereleases=True):
            continue
        state = State.WARNING if needed.name in optional else State.BROKEN
        text = f"{needed.name} {version}" if version else f"no {needed.name}"
        hint = f"Install '{needed.name}{needed.specifier}' in the Python of {where}."
        wrong.append(Finding(check, state, f"{where} has {text}; tfspark needs {needed.specifier}", hint))
    yield from wrong
    if not wrong:
        shown = [n for n in ("tensorflow", "keras", "pyarrow", "pandas", "numpy") if installed.get(n)]
        yield ok(check, f"{where} has {', '.join(f'{n} {installed[n]}' for n in shown)}")
