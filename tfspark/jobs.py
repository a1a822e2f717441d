"""What the programs of a scheduler share: run ids, directories that carry a job's mark, exit codes, SIGTERM.

A job that may be asked for twice writes all of a run into ``OUTPUT/RUN_ID`` and its result last. ``jobs/*.py`` are
written with this module; ``docs/guide/jobs.md`` shows how it fits together. It deletes and replaces nothing but what
the same job has written: `RunDirectory`.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import logging
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tfspark.errors import ConfigurationError, OutputError, TFSparkError
from tfspark.spark_session import session as make_session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["ExitCode", "Parser", "RunDirectory", "directory", "execute", "location", "run_id", "session"]

logger = logging.getLogger(__name__)

MARK = "_tfspark_job.json"
"""Names the job whose directory it is; data sources of Spark leave out names with an underscore."""

RESULT = "result.json"

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,127}")
_HIDDEN = ("_", ".")
_DRAFT = ".draft"


class ExitCode(IntEnum):
    """How a job ends, as a scheduler sees it.

    Attributes
    ----------
    DONE
        Done now, or by an earlier run.
    FAILED
        Failed, for example in a node; what failed is said last.
    WRONG_USAGE
        The command line cannot work; nothing was started.
    BELOW_BAR
        Done, but the result is not as good as was asked for.
    TERMINATED
        Ended by SIGTERM.
    """

    DONE = 0
    FAILED = 1
    WRONG_USAGE = 2
    BELOW_BAR = 3
    TERMINATED = 128 + signal.SIGTERM


class Parser(argparse.ArgumentParser):
    """A parser of command lines that prints a description as it is written, and an error in one line.

    Parameters
    ----------
    description
        The job's docstring.
    """

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """End the program with `ExitCode.WRONG_USAGE`."""
        self.exit(ExitCode.WRONG_USAGE, _complaint(message))


def run_id(text: str) -> str:
    """Return a run id that is one plain directory name for Linux, Hadoop, object stores and Spark.

    To be given as ``type=`` of an argument.

    Parameters
    ----------
    text
        Up to 128 letters, digits and ``. _ + = -``; the first is a letter or a digit.

    Raises
    ------
    argparse.ArgumentTypeError
        If it is anything else: empty, ``..``, a path, with a colon.
    """
    if not _RUN_ID.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a run id: up to 128 letters, digits and ._+=-, the first a letter or a digit"
        )
    return text


def directory(text: str) -> str:
    """Return the absolute path of a directory that driver and executors share, for ``type=`` of an argument.

    Raises
    ------
    argparse.ArgumentTypeError
        If it is empty or a URI of anything but a file.
    """
    path = re.sub("^file:/*", "/", text)
    if not path or "\0" in path or re.match(r"[A-Za-z][\w+.-]*:/", path):
        raise argparse.ArgumentTypeError(f"{text!r} is not a directory that driver and executors share")
    return str(Path(path).resolve())


def location(text: str) -> str:
    """Return the absolute path of a directory, or a URI as it is, for ``type=`` of an argument.

    Raises
    ------
    argparse.ArgumentTypeError
        If it is empty.
    """
    return text if "://" in text else directory(text)


def execute(main: Callable[[], int]) -> int:
    """Run the main function of a job; return its exit code.

    Log lines go to standard error. SIGTERM raises `SystemExit` in the main thread, so that ``with`` blocks stop the
    cluster and the session. A `TFSparkError` is logged, and becomes the exit code.

    Parameters
    ----------
    main
        Returns the exit code.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("py4j").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitCode.TERMINATED))
    try:
        return main()
    except OutputError as e:
        sys.stderr.write(_complaint(f"{e.message} {e.hint}"))
        return ExitCode.WRONG_USAGE
    except TFSparkError as e:
        logger.error("%s\n%s: %s", e, type(e).__name__, e.message)
        return ExitCode.FAILED


@contextlib.contextmanager
def session(name: str, master: str | None, **settings: str) -> Iterator[SparkSession]:
    """Give a Spark session within a ``with`` block, and stop it at the end.

    Parameters
    ----------
    name, master, settings
        As for `tfspark.session`.
    """
    spark = make_session(name, master, **settings)
    try:
        yield spark
    finally:
        spark.stop()


class RunDirectory:
    """Where a run of a job writes: ``OUTPUT/RUN_ID``, or OUTPUT itself, with the job's mark in it.

    The mark is a file that names the job. Without it nothing may be there under a name that the job writes; with it,
    those names are the job's to replace. Whatever else is there stays. Nothing is changed before `claim`.

    Parameters
    ----------
    job
        Name of the job.
    output
        A directory or a URI, see `directory` and `location`.
    name
        A run id, see `run_id`; None for OUTPUT itself.
    writes
        Names, or patterns of the shell, of what the job writes there besides its result.
    alone
        Whether nothing else may be there: readers of the directory would read that as well.

    Raises
    ------
    ConfigurationError
        If `name` is not a run id.
    """

    def __init__(
        self, job: str, output: str, name: str | None, *, writes: Sequence[str] = (), alone: bool = False
    ) -> None:
        from pyarrow import fs

        if name is not None and not _RUN_ID.fullmatch(name):
            raise ConfigurationError(f"{name!r} is not a run id.")
        self._path = output if name is None else f"{output.rstrip('/')}/{name}"
        self._job = job
        self._options = f"--output {output}" if name is None else f"--output {output} --run-id {name}"
        files = [*writes, RESULT]
        self._writes = [*files, *(f"{f}{_DRAFT}" for f in files if f.endswith(".json"))]
        self._alone = alone
        self._files, self._root = fs.FileSystem.from_uri(re.sub("^s3[an]://", "s3://", self._path))

    @property
    def path(self) -> Path:
        """The directory for what reads and writes files."""
        return Path(self._root)

    @property
    def uri(self) -> str:
        """The directory for Spark, whose own file system may be another than the local one."""
        return self._path if "://" in self._path else f"file://{self._path}"

    def result(self, name: str = RESULT) -> Any:
        """Return what an earlier run of the job has left as its result; None if there is none.

        Raises
        ------
        OutputError
            If it is another job's directory, or holds something that the job would write and has not written.
        """
        self._owned(self._names())
        return self._get(name)

    def has(self, name: str) -> bool:
        """Tell whether an earlier run of the job has left a file; raises as `result` does."""
        names = self._names()
        self._owned(names)
        return name in names

    def claim(self, keep: Collection[str] = ()) -> None:
        """Mark the directory, which is made if need be, and remove what an earlier run of the job has left in it.

        Parameters
        ----------
        keep
            Those of `writes` that stay.

        Raises
        ------
        OutputError
            As `result` does, or if something else is there and the job must be alone.
        """
        names = self._names()
        owned = self._owned(names)
        if self._alone:
            self._refuse_any(n for n in names if not n.startswith(_HIDDEN) and not _matches(n, self._writes))
        if not owned:
            self._files.create_dir(self._root, recursive=True)
            self.put(MARK, {"job": self._job})
        for name, is_directory in names.items():
            if _matches(name, self._writes) and not _matches(name, keep):
                (self._files.delete_dir if is_directory else self._files.delete_file)(f"{self._root}/{name}")

    def put(self, name: str, value: Any) -> None:
        """Write a JSON file that is there whole or not at all; the name must be one of `writes`."""
        draft = f"{self._root}/{name}{_DRAFT}"
        with self._files.open_output_stream(draft) as f:
            f.write(json.dumps(value, indent=1).encode())
        self._files.move(draft, f"{self._root}/{name}")

    def finish(self, result: Any) -> None:
        """Write the result, which says that the run is done."""
        self.put(RESULT, result)

    def _owned(self, names: Mapping[str, bool]) -> bool:
        """Tell whether the job's mark is there; refuse what is another's."""
        if MARK not in names:
            self._refuse_any(n for n in names if _matches(n, self._writes))
            return False
        try:
            owner = self._get(MARK)["job"]
        except (ValueError, TypeError, KeyError):
            self._refuse(f"has a {MARK} that is not a job's")
        if owner != self._job:
            self._refuse(f"belongs to the job {owner!r}")
        return True

    def _refuse_any(self, names: Iterable[str]) -> None:
        for name in sorted(names):
            self._refuse(f"holds {name!r}, which the job {self._job!r} has not written")

    def _refuse(self, why: str) -> NoReturn:
        raise OutputError(f"{self._options}: {self._path} {why}.", hint="Name another directory, or move that away.")

    def _names(self) -> dict[str, bool]:
        """Return what is in the directory, and whether those are directories."""
        from pyarrow import fs

        try:
            found = self._files.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
        except NotADirectoryError:
            self._refuse("is a file")
        return {f.base_name: f.type == fs.FileType.Directory for f in found}

    def _get(self, name: str) -> Any:
        try:
            with self._files.open_input_stream(f"{self._root}/{name}") as f:
                return json.loads(f.read())
        except FileNotFoundError:
            return None


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _complaint(message: str) -> str:
    """Return the line that says what is wrong with a command line."""
    return f"{Path(sys.argv[0]).name}: error: {' '.join(message.split())}\n"
