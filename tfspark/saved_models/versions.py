"""Version directories as TensorFlow Serving reads them: ``<base>/<version>``, complete or not there at all."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from tfspark.errors import ConfigurationError

logger = logging.getLogger(__name__)

SAVED_MODEL_FILE = "saved_model.pb"

_MOST_DIGITS = 18
"""Longer names do not fit the 64 bits that a version number has."""

_STAGING = ".staging-"
_REMOVED = ".removed-"


def is_saved_model(directory: str) -> bool:
    """Whether a directory holds a SavedModel itself."""
    return os.path.isfile(os.path.join(directory, SAVED_MODEL_FILE))


def version_paths(base: str) -> dict[int, str]:
    """Return the directories of the versions under `base`, ascending; none if there is no such directory.

    A name is a number, with leading zeros or without: ``00000123`` is version 123, and ``123`` if both are there.
    """
    try:
        names = [d for d in os.listdir(base) if d.isdecimal() and d.isascii() and len(d) <= _MOST_DIGITS]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    paths = {int(d): os.path.join(base, d) for d in sorted(names, key=len, reverse=True)}
    return {v: paths[v] for v in sorted(paths) if is_saved_model(paths[v])}


def versions_of(base: str) -> list[int]:
    """Return the numbers of the versions under `base`, ascending."""
    return list(version_paths(base))


def newest_version(directory: str) -> str:
    """Return `directory` if it is a SavedModel, else that of its highest version.

    Raises
    ------
    ConfigurationError
        If it holds none.
    """
    directory = local_path(directory)
    if is_saved_model(directory):
        return os.path.abspath(directory)
    versions = version_paths(directory)
    if not versions:
        raise ConfigurationError(
            f"{directory!r} holds no SavedModel.", hint="Export one with ctx.export(model, directory) or model.export."
        )
    return os.path.abspath(versions[max(versions)])


def local_path(path: str) -> str:
    """Return a path without its ``file:`` scheme.

    Raises
    ------
    ConfigurationError
        If it has another scheme: SavedModels are read and written through the file system.
    """
    if path.startswith("file:"):
        return "/" + path.removeprefix("file:").lstrip("/")
    if "://" in path:
        raise ConfigurationError(
            f"{path!r} is no path in the file system.", hint="Use a local directory or a mounted one that all share."
        )
    return path


@contextmanager
def new_version(base: str, keep: int | None = None) -> Iterator[Version]:
    """Give an empty directory to write to; at the end of the block it becomes the next version, unless it raises.

    Parameters
    ----------
    base
        Made if it does not exist.
    keep
        Remove all but so many versions afterwards, the oldest first; by default none.

    Yields
    ------
    Version
        Its `staging` directory is to be filled; when the block has ended, `path` and `number` are known.
    """
    if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 1):
        raise ConfigurationError(f"keep must be a whole number of at least 1, not {keep!r}.")
    base = os.path.abspath(local_path(base))
    os.makedirs(base, exist_ok=True)
    version = Version(os.path.join(base, f"{_STAGING}{os.getpid()}-{secrets.token_hex(8)}"))
    os.mkdir(version.staging)
    try:
        yield version
        version.number, version.path = _publish(version.staging, base)
    finally:
        shutil.rmtree(version.staging, ignore_errors=True)
    if keep is not None:
        _remove_old(base, keep)


class Version:
    """A version that is being written, and then is there.

    Attributes
    ----------
    staging
        Where it is written.
    number, path
        Known when it is there.
    """

    def __init__(self, staging: str) -> None:
        self.staging = staging
        self.number = 0
        self.path = ""


def _publish(staging: str, base: str) -> tuple[int, str]:
    while True:
        # Any numbered directory counts, also one without a model: it may be another exporter's.
        number = 1 + max((int(d) for d in os.listdir(base) if d.isdecimal()), default=0)
        target = os.path.join(base, str(number))
        try:
            # Fails if the target has appeared meanwhile and is not empty.
            os.rename(staging, target)
            return number, target
        except OSError:
            if not os.path.isdir(target):
                raise


def _remove_old(base: str, keep: int) -> None:
    for number, path in list(version_paths(base).items())[:-keep]:
        # Renamed first, so that no reader finds half a version.
        doomed = os.path.join(base, f"{_REMOVED}{number}-{secrets.token_hex(8)}")
        try:
            os.rename(path, doomed)
        except FileNotFoundError:
            continue
        shutil.rmtree(doomed, ignore_errors=True)
        logger.info("removed version %d of %s", number, base)
