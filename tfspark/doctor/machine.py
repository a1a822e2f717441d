"""Checks of the driver's machine; none of them starts Spark."""

from __future__ import annotations

import os
import platform
import socket
import sys
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from tfspark import __version__
from tfspark.distribution import install_command
from tfspark.doctor import packages
from tfspark.doctor.findings import Finding, broken, guarded, ok, warning
from tfspark.doctor.probe import installed_versions

CONNECT_SECONDS = 5.0


def check_python() -> Iterator[Finding]:
    """Check the driver's Python, and report the Python that executors will run."""
    told = os.environ.get("PYSPARK_PYTHON")
    yield ok("python", f"{platform.python_version()} with tfspark {__version__}: {sys.executable}")
    if told:
        yield ok("python", f"executors will run {told} (PYSPARK_PYTHON)")


def check_java() -> Iterator[Finding]:
    """Check the Java that Spark will use."""
    from tfspark.spark.java import ensure_java

    java = ensure_java()
    yield ok("java", f"{java.version}, found by {java.origin}: {java.command}")


def check_spark() -> Iterator[Finding]:
    """Check the installed Spark."""
    from tfspark.spark.home import ensure_pyspark, spark_jars, spark_version

    ensure_pyspark()
    yield ok("spark", f"{spark_version()}: {spark_jars().parent}")


def check_packages() -> Iterator[Finding]:
    """Check the Python packages of the driver."""
    needed = packages.requirements()
    if not needed:
        yield warning(
            "packages",
            "tfspark is not installed as a package, so its requirements are unknown",
            f"Run {install_command()} instead of setting PYTHONPATH.",
        )
        return
    installed = installed_versions([r.name for r in needed])
    yield from packages.judge("packages", "the driver", installed, packages.NODES_ONLY)


def check_jar() -> Iterator[Finding]:
    """Check the jar of the TFRecord connector; compile it if needed."""
    from tfspark.spark.connector import connector_jar

    try:
        yield ok("connector", f"{connector_jar()}")
    except OSError as e:
        yield broken("connector", f"cannot write the jar: {e}", "Set TFSPARK_CACHE to a writable directory.")


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "python": check_python,
    "packages": check_packages,
    "spark": check_spark,
    "java": check_java,
    "connector": check_jar,
}
"""The checks in order; later checks depend on earlier checks."""


def examine() -> Iterator[Finding]:
    """Run all checks."""
    for name, check in CHECKS.items():
        yield from guarded(name, check)


def check_master(master: str) -> Iterator[Finding]:
    """Check that a standalone master listens; Spark itself tries for a minute before it fails."""
    if not master.startswith("spark://"):
        return
    addresses = [urlsplit(f"//{address}") for address in master.removeprefix("spark://").split(",")]
    failures = []
    for address in addresses:
        try:
            with socket.create_connection((address.hostname or "", address.port or 7077), CONNECT_SECONDS):
                yield ok("master", f"{address.netloc} answers")
                return
        except (OSError, ValueError) as e:
            # A port that is not a number raises ValueError.
            failures.append(f"{address.netloc}: {getattr(e, 'strerror', None) or e}")
    yield broken(
        "master",
        f"cannot reach a master at {', '.join(failures)}",
        "Start the master, or take its URL from the top of its web page. Firewalls must allow its port (7077).",
    )
