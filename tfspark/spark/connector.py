"""The jar of the connectors: compiled once per Spark version from the sources in ``connectors/``.

Wheels contain jars for some Spark versions. For other versions, the compiler is the one in Spark's own jars. So the
connector always fits its Spark, and building it needs only the Java that Spark needs too.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tfspark.errors import DependencyError
from tfspark.spark.cache import cache_dir
from tfspark.spark.home import scala_minor, spark_jars, spark_minor, spark_version
from tfspark.spark.java import ensure_java, oldest_java

logger = logging.getLogger(__name__)

BUILD_SECONDS = 600.0
"""Seconds after which compiling is given up; it takes 10 to 30 seconds, unless the machine has a problem."""

SHIPPED = Path(__file__).parent / "jars"
"""Directory of the jars in a wheel; a clone of the repository has none."""

_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


def connector_jar() -> Path:
    """Return the connector's jar for the installed Spark: the one in tfspark's wheel, else one built here.

    Several processes may call this at once: one builds the jar, the others wait for it.

    Returns
    -------
    Path
        Path for ``spark-submit --jars`` or ``spark.jars``.

    Raises
    ------
    DependencyError
        If Java or Spark is missing or the sources do not compile.
    """
    sources = connector_sources()
    shipped = shipped_jar(sources)
    if shipped.is_file():
        return shipped
    jar = cache_dir() / f"tfrecord-spark{spark_version()}-{_digest(sources)}.jar"
    if not jar.is_file():
        with _locked(jar.with_suffix(".lock")):
            if not jar.is_file():
                _build(sources, jar)
    return jar


def shipped_jar(sources: Path) -> Path:
    """Return the path of the wheel's jar of these sources for the installed Spark; all patch versions share one jar."""
    return SHIPPED / f"tfrecord-spark{spark_minor()}-scala{scala_minor()}-{_digest(sources)}.jar"


def ship_jar() -> Path:
    """Build the jar in this package, where `make wheel` finds it, and return its path.

    Raises
    ------
    DependencyError
        As `connector_jar`.
    """
    sources = connector_sources()
    jar = shipped_jar(sources)
    if not jar.is_file():
        SHIPPED.mkdir(exist_ok=True)
        _build(sources, jar)
    return jar


def connector_sources() -> Path:
    """Return the directory of the connectors' sources, in a checkout or in an installed package.

    Raises
    ------
    DependencyError
        If the installation lacks them.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "_connectors", package.parent / "connectors"):
        if (candidate / "tfrecord" / "src").is_dir():
            return candidate
    raise DependencyError("This installation of tfspark lacks the connector's sources.", hint="Install tfspark again.")


def _files(sources: Path) -> list[Path]:
    found = [f for kind in ("src/**/*.scala", "META-INF/**/*") for f in sources.glob(f"*/{kind}")]
    return sorted(f for f in found if f.is_file())


def _digest(sources: Path) -> str:
    digest = hashlib.sha256()
    for file in _files(sources):
        body = file.read_bytes()
        digest.update(f"{file.relative_to(sources)}\0{len(body)}\0".encode())
        digest.update(body)
    return digest.hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(sources: Path, jar: Path) -> None:
    logger.info("compiling the TFRecord connector for Spark %s", spark_version())
    with tempfile.TemporaryDirectory(prefix="tfspark-connector-") as directory:
        classes = Path(directory) / "classes"
        classes.mkdir()
        _compile([str(f) for f in _files(sources) if f.suffix == ".scala"], classes)
        shutil.copytree(sources / "tfrecord" / "META-INF", classes / "META-INF")
        draft = jar.with_name(f"{jar.name}.{os.getpid()}")
        try:
            _zip(classes, draft)
            draft.replace(jar)
        finally:
            draft.unlink(missing_ok=True)


def _compile(files: list[str], classes: Path) -> None:
    java = ensure_java()
    has_signatures = (Path(java.command).resolve().parent.parent / "lib" / "ct.sym").is_file()
    # Only a full JDK has the signatures of older releases, which -release needs.
    target = ["-release", str(oldest_java())] if has_signatures else [f"-target:{oldest_java()}"]
    command = [java.command, "-Xss4m", "-cp", f"{spark_jars()}/*", "scala.tools.nsc.Main", "-usejavacp", "-nowarn"]
    try:
        done = subprocess.run(
            [*command, *target, "-d", str(classes), *files],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
        )
    except subprocess.TimeoutExpired as e:
        raise DependencyError(f"Compiling the connector took longer than {BUILD_SECONDS:.0f} s.") from e
    if done.returncode:
        raise DependencyError(
            f"The TFRecord connector does not compile against Spark {spark_version()}:\n{done.stdout}{done.stderr}",
            hint="tfspark supports Spark 3.5 to 4.3.",
        )


def _zip(classes: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(f for f in classes.rglob("*") if f.is_file()):
            entry = zipfile.ZipInfo(str(file.relative_to(classes)), _ZIP_EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, file.read_bytes())
