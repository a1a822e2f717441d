"""Helpers for programs that a scheduler runs: run ids, output directories with a job's mark, exit codes, SIGTERM.

A scheduler may run a job again with the same run id. So a job writes all files of a run into ``OUTPUT/RUN_ID``, and
its result last. `RunDirectory` deletes and replaces only files that the same job has written. ``jobs/*.py`` use this
module, and ``docs/guide/jobs.md`` explains it.
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
from tfspark.spark.session import session as make_session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["ExitCode", "Parser", "RunDirectory", "directory", "execute", "location", "run_id", "session"]

logger = logging.getLogger(__name__)

MARK = "_tfspark_job.json"
"""File with the name of the job that owns the directory; Spark's data sources skip names that begin with ``_``."""

RESULT = "result.json"

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,127}")
_HIDDEN = ("_", ".")
_DRAFT = ".draft"


class ExitCode(IntEnum):
    """Exit code of a job, for the scheduler.

    Attributes
    ----------
    DONE
        The run is complete, now or from an earlier attempt.
    FAILED
        The run failed, for example in a node. The last line of the log says what failed.
    WRONG_USAGE
        The command line is wrong; nothing was started.
    BELOW_BAR
        The run is complete, but its result does not reach the required quality.
    TERMINATED
        SIGTERM ended the run.

    Examples
    --------
    >>> int(ExitCode.WRONG_USAGE)
    2
    """

    DONE = 0
    FAILED = 1
    WRONG_USAGE = 2
    BELOW_BAR = 3
    TERMINATED = 128 + signal.SIGTERM


class Parser(argparse.ArgumentParser):
    """An argument parser that keeps the line breaks of the description and prints errors in one line.

    Parameters
    ----------
    description
        Usually the docstring of the job.

    Examples
    --------
    >>> parser = Parser("Train a model.")
    >>> _ = parser.add_argument("--run-id", type=run_id, required=True)
    >>> parser.parse_args(["--run-id", "2026-01-31"]).run_id
    '2026-01-31'
    """

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """End the program with `ExitCode.WRONG_USAGE`.

        Examples
        --------
        >>> try:
        ...     Parser("Train a model.").error("--epochs must be >= 1, got 0")
        ... except SystemExit as error:
        ...     print(int(error.code))
        2
        """
        self.exit(ExitCode.WRONG_USAGE, _complaint(message))


def run_id(text: str) -> str:
    """Check a run id and return it. Use it as ``type=`` of an argument.

    A run id is a valid directory name on Linux, in Hadoop, in object stores and in Spark.

    Parameters
    ----------
    text
        Up to 128 letters, digits and ``. _ + = -``; the first is a letter or a digit.

    Raises
    ------
    argparse.ArgumentTypeError
        If the text is anything else, such as an empty text, ``..``, a path, or a text with a colon.

    Examples
    --------
    >>> run_id("2026-01-31")
    '2026-01-31'
    """
    if not _RUN_ID.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a run id: use 1 to 128 letters, digits and ._+=-, and begin with a letter or a digit"
        )
    return text


def directory(text: str) -> str:
    """Return the absolute path of a directory that driver and executors share. Use it as ``type=`` of an argument.

    Raises
    ------
    argparse.ArgumentTypeError
        If the text is empty or a URI with another scheme than ``file:``.

    Examples
    --------
    >>> directory("file:///data/flights")
    '/data/flights'
    """
    path = re.sub("^file:/*", "/", text)
    if not path or "\0" in path or re.match(r"[A-Za-z][\w+.-]*:/", path):
        raise argparse.ArgumentTypeError(f"{text!r} is not a local or mounted directory: pass a path like /data")
    return str(Path(path).resolve())


def location(text: str) -> str:
    """Return the absolute path of a directory; return a URI unchanged. Use it as ``type=`` of an argument.

    Raises
    ------
    argparse.ArgumentTypeError
        If the text is empty.

    Examples
    --------
    >>> location("s3a://bucket/flights")
    's3a://bucket/flights'
    """
    return text if "://" in text else directory(text)


def execute(main: Callable[[], int]) -> int:
    """Run the main function of a job and return its exit code.

    Log lines go to standard error. SIGTERM raises `SystemExit` in the main thread, so that ``with`` blocks stop the
    cluster and the session. A `TFSparkError` is logged and becomes the exit code.

    Parameters
    ----------
    main
        A function that returns the exit code.

    Examples
    --------
    >>> def main():
    ...     return ExitCode.BELOW_BAR
    >>> int(execute(main))
    3
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
    """Create a Spark session for a ``with`` block and stop it at the end of the block.

    Parameters
    ----------
    name, master, settings
        As for `tfspark.session`.

    Examples
    --------
    >>> with session("flights", "local[2]") as spark:
    ...     spark.range(3).count()
    3
    """
    spark = make_session(name, master, **settings)
    try:
        yield spark
    finally:
        spark.stop()


class RunDirectory:
    """The directory to which a run of a job writes: ``OUTPUT/RUN_ID``, or OUTPUT itself.

    The job marks its directory with a file that contains the job's name. In a directory with the mark, the job replaces
    the files that it writes. In a directory without the mark, existing files with these names are an error. Other files
    are kept. Nothing changes before `claim`.

    Parameters
    ----------
    job
        Name of the job.
    output
        A directory or a URI, see `directory` and `location`.
    name
        A run id, see `run_id`; None for OUTPUT itself.
    writes
        Names or shell patterns of the files and directories that the job writes in addition to its result.
    alone
        Whether other files are an error, because readers of the directory would read them too.

    Raises
    ------
    ConfigurationError
        If `name` is not a run id.

    Examples
    --------
    >>> run = RunDirectory("train", output, "2026-01-31", writes=["model.keras"])
    >>> if run.result() is None:
    ...     run.claim()
    ...     run.finish({"loss": 0.25})
    >>> run.result()
    {'loss': 0.25}
    """

    def __init__(
        self, job: str, output: str, name: str | None, *, writes: Sequence[str] = (), alone: bool = False
    ) -> None:
        from pyarrow import fs

        if name is not None and not _RUN_ID.fullmatch(name):
            raise ConfigurationError(
                f"{name!r} is not a run id.",
                hint="Use 1 to 128 letters, digits and ._+=-, and begin with a letter or a digit.",
            )
        self._path = output if name is None else f"{output.rstrip('/')}/{name}"
        self._job = job
        self._options = f"--output {output}" if name is None else f"--output {output} --run-id {name}"
        files = [*writes, RESULT]
        self._writes = [*files, *(f"{f}{_DRAFT}" for f in files if f.endswith(".json"))]
        self._alone = alone
        self._files, self._root = fs.FileSystem.from_uri(re.sub("^s3[an]://", "s3://", self._path))

    @property
    def path(self) -> Path:
        """The directory as a path, for programs that read and write files.

        Examples
        --------
        >>> run.path.name
        '2026-01-31'
        """
        return Path(self._root)

    @property
    def uri(self) -> str:
        """The directory as a URI, for Spark, whose default file system may not be the local one.

        Examples
        --------
        >>> run.uri.startswith("file:///")
        True
        """
        return self._path if "://" in self._path else f"file://{self._path}"

    def result(self, name: str = RESULT) -> Any:
        """Return the result of an earlier run of the job; None if there is none.

        Raises
        ------
        OutputError
            If the directory belongs to another job, or has no mark and contains files with names that the job writes.

        Examples
        --------
        >>> RunDirectory("train", output, "2026-02-01").result() is None
        True
        """
        self._owned(self._names())
        return self._get(name)

    def has(self, name: str) -> bool:
        """Return whether an earlier run of the job wrote this file. Raises the same errors as `result`.

        Examples
        --------
        >>> run.has("model.keras")
        False
        """
        names = self._names()
        self._owned(names)
        return name in names

    def claim(self, keep: Collection[str] = ()) -> None:
        """Create and mark the directory, and remove the files that an earlier run of the job wrote.

        Parameters
        ----------
        keep
            Names or patterns of `writes` that are not removed.

        Raises
        ------
        OutputError
            For the same reasons as `result`, and if there are other files although ``alone=True``.

        Examples
        --------
        >>> run.claim()
        >>> run.result() is None
        True
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
        """Write a JSON file atomically; the name must be one of `writes`.

        Examples
        --------
        >>> run = RunDirectory("train", output, "2026-02-02", writes=["history.json"])
        >>> run.claim()
        >>> run.put("history.json", {"loss": [0.5, 0.25]})
        >>> run.result("history.json")
        {'loss': [0.5, 0.25]}
        """
        draft = f"{self._root}/{name}{_DRAFT}"
        with self._files.open_output_stream(draft) as f:
            f.write(json.dumps(value, indent=1).encode())
        self._files.move(draft, f"{self._root}/{name}")

    def finish(self, result: Any) -> None:
        """Write the result. The run is complete when its result exists.

        Examples
        --------
        >>> run.finish({"loss": 0.25})
        >>> run.result()
        {'loss': 0.25}
        """
        self.put(RESULT, result)

    def _owned(self, names: Mapping[str, bool]) -> bool:
        """Return whether the directory has the job's mark; raise if it belongs to another job."""
        if MARK not in names:
            self._refuse_any(n for n in names if _matches(n, self._writes))
            return False
        try:
            owner = self._get(MARK)["job"]
        except (ValueError, TypeError, KeyError):
            self._refuse(f"has a {MARK} without a job name")
        if owner != self._job:
            self._refuse(f"belongs to the job {owner!r}")
        return True

    def _refuse_any(self, names: Iterable[str]) -> None:
        for name in sorted(names):
            self._refuse(f"contains {name!r}, which the job {self._job!r} did not write")

    def _refuse(self, why: str) -> NoReturn:
        raise OutputError(f"{self._options}: {self._path} {why}.", hint="Use another directory, or move it away.")

    def _names(self) -> dict[str, bool]:
        """Return the names in the directory, and for each name whether it is a directory."""
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
    """Return the error line for a wrong command line."""
    return f"{Path(sys.argv[0]).name}: error: {' '.join(message.split())}\n"
