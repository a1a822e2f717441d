"""Version directories in the layout of TensorFlow Serving, ``<base>/<version>``, published atomically."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from tfspark.checks import check_whole_number
from tfspark.errors import ConfigurationError

logger = logging.getLogger(__name__)

SAVED_MODEL_FILE = "saved_model.pb"

_MOST_DIGITS = 18
"""Version numbers have 64 bits; names with more digits do not fit."""

_STAGING = ".staging-"
_REMOVED = ".removed-"


def is_saved_model(directory: str) -> bool:
    """Return whether a directory is a SavedModel, not a base directory of versions."""
    return os.path.isfile(os.path.join(directory, SAVED_MODEL_FILE))


def is_version(name: str) -> bool:
    """Return whether the name of a directory is a version number."""
    return name.isdecimal() and name.isascii() and len(name) <= _MOST_DIGITS


def version_paths(base: str) -> dict[int, str]:
    """Return the directories of the versions under `base`, ascending; empty if `base` does not exist.

    A name is a number and may have leading zeros: ``00000123`` is version 123. If ``123`` exists too, it is used.
    """
    try:
        names = [d for d in os.listdir(base) if is_version(d)]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    paths = {int(d): os.path.join(base, d) for d in sorted(names, key=len, reverse=True)}
    return {v: paths[v] for v in sorted(paths) if is_saved_model(paths[v])}


def versions_of(base: str) -> list[int]:
    """Return the numbers of the versions under `base`, ascending."""
    return list(version_paths(base))


def newest_version(directory: str) -> str:
    """Return `directory` if it is a SavedModel, else the directory of its highest version.

    Raises
    ------
    ConfigurationError
        If it holds no SavedModel.
    """
    directory = local_path(directory)
    if is_saved_model(directory):
        return os.path.abspath(directory)
    versions = version_paths(directory)
    if not versions:
        raise ConfigurationError(
            f"{directory!r} holds no SavedModel.",
            hint="Export one with ctx.export(model, directory) or model.export.",
        )
    return os.path.abspath(versions[max(versions)])


def local_path(path: str) -> str:
    """Return a path without its ``file:`` scheme.

    Raises
    ------
    ConfigurationError
        If it has another scheme. SavedModels are read and written as local files.
    """
    if path.startswith("file:"):
        return "/" + path.removeprefix("file:").lstrip("/")
    if "://" in path:
        raise ConfigurationError(
            f"{path!r} is not a local path.", hint="Use a local directory, or a mounted one that all hosts share."
        )
    return path


@contextmanager
def new_version(base: str, keep: int | None = None) -> Iterator[Version]:
    """Make an empty directory, which becomes the next version at the end of the block, unless the block raises.

    Parameters
    ----------
    base
        The directory of the versions; created if it does not exist.
    keep
        Number of versions to keep; older ones are removed afterwards. By default all are kept.

    Yields
    ------
    Version
        Write the model to its `staging` directory. `path` and `number` are set at the end of the block.
    """
    if keep is not None:
        check_whole_number("keep", keep, 1)
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
    """A version that is being written and then published.

    Attributes
    ----------
    staging
        Directory to write to.
    number, path
        Set when the version is published.
    """

    def __init__(self, staging: str) -> None:
        self.staging = staging
        self.number = 0
        self.path = ""


def _publish(staging: str, base: str) -> tuple[int, str]:
    while True:
        # A numbered directory without a model counts too: another process may be exporting to it.
        number = 1 + max((int(d) for d in os.listdir(base) if d.isdecimal()), default=0)
        target = os.path.join(base, str(number))
        try:
            # Fails if another process has created the target in the meantime.
            os.rename(staging, target)
            return number, target
        except OSError:
            if not os.path.isdir(target):
                raise


def _remove_old(base: str, keep: int) -> None:
    for number, path in list(version_paths(base).items())[:-keep]:
        # Renamed before it is deleted, so that no reader finds a partly deleted version.
        doomed = os.path.join(base, f"{_REMOVED}{number}-{secrets.token_hex(8)}")
        try:
            os.rename(path, doomed)
        except FileNotFoundError:
            continue
        shutil.rmtree(doomed, ignore_errors=True)
        logger.info("removed version %d of %s", number, base)
