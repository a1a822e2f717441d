"""Compares the installed Python packages with the requirements in tfspark's metadata."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping

from packaging.requirements import Requirement

from tfspark.distribution import distribution_name
from tfspark.doctor.findings import Finding, State, ok

NODES_ONLY = frozenset({"tensorflow", "keras", "tensorboard"})
"""The driver needs these only if its own code uses them."""

SHOWN = ("tensorflow", "keras", "pyarrow", "pandas", "numpy")

DRIVER_ONLY = frozenset({"rich", "findspark", "cryptography", "google-crc32c", "pyspark"})
"""Executors do not need these; they get pyspark from Spark."""


def requirements() -> list[Requirement]:
    """Return the requirements of tfspark, without extras; empty if it is not installed as a package."""
    try:
        lines = importlib.metadata.requires(distribution_name()) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = [Requirement(line) for line in lines]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]


def judge(check: str, where: str, installed: Mapping[str, str | None], optional: frozenset[str]) -> Iterator[Finding]:
    """Compare installed versions with `requirements`; yield findings for missing packages and wrong versions.

    Parameters
    ----------
    check
        Name of the check.
    where
        Where the packages are installed, such as ``"the driver"``.
    installed
        Version by name; None if the package is missing.
    optional
        Packages that give only a warning if they are missing or have a wrong version.
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
            yield Finding(check, state, f"{where}: {', '.join(founds)}", f"Run pip install {' '.join(wanted)} there.")
    if not any(wrong.values()):
        shown = [n for n in SHOWN if installed.get(n)]
        yield ok(check, f"{where}: {', '.join(f'{n} {installed[n]}' for n in shown)}")
