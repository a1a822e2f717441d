"""Directories of models: local, or in a file system that Arrow reads (hdfs, s3, gs), copied to local files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import NamedTuple, Protocol

from tfspark.records.storage import Entry, Storage, storage_of, walk
from tfspark.saved_models.versions import SAVED_MODEL_FILE, is_saved_model, local_path, version_paths

_COPY_BYTES = 1 << 20


class Stamp(NamedTuple):
    """A value that changes with the files of a version: newest modification time, total bytes, number of files."""

    newest_ns: int
    size: int
    files: int


class LocalFiles(NamedTuple):
    """The local directory of a version, and the function that removes the directory if it is a copy."""

    directory: str
    remove: Callable[[], None] | None = None


class Place(Protocol):
    """A directory of versions, or a directory of such directories."""

    def versions(self) -> dict[int, str]:
        """Return the directories of the versions by number; the place itself if it is a SavedModel."""

    def is_saved_model(self) -> bool:
        """Return whether the place itself is a SavedModel."""

    def children(self) -> list[str]:
        """Return the names of the subdirectories."""

    def stamp(self, directory: str) -> Stamp:
        """Return the stamp of a version.

        Raises
        ------
        OSError
            If there is no SavedModel.
        """

    def local(self, directory: str) -> LocalFiles:
        """Return a version as local files."""


@lru_cache(maxsize=256)
def place_of(base: str) -> Place:
    """Return the place at a path or URI."""
    if base.startswith("file:") or "://" not in base:
        return LocalPlace(os.path.abspath(local_path(base)))
    storage, path = storage_of(base, pattern=False)
    return RemotePlace(storage, path.rstrip("/"))


def child_of(base: str, name: str) -> str:
    """Return the path or URI of a subdirectory; the query of a URI stays at its end."""
    path, mark, query = base.partition("?") if "://" in base else (base, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def names_of(base: str) -> tuple[str, str]:
    """Return the names of a directory and of its parent."""
    path = base.partition("?")[0] if "://" in base else base
    parent, name = os.path.split(path.rstrip("/"))
    return name, os.path.basename(parent)


def own_number(directory: str) -> int:
    """Return the version of a single SavedModel: the number in its directory name, or 1."""
    own = os.path.basename(directory)
    return int(own) if own.isdecimal() and own.isascii() and len(own) <= 18 else 1


class LocalPlace:
    """A directory of this machine."""

    def __init__(self, base: str) -> None:
        self._base = base

    def is_saved_model(self) -> bool:
        return is_saved_model(self._base)

    def versions(self) -> dict[int, str]:
        return {own_number(self._base): self._base} if self.is_saved_model() else version_paths(self._base)

    def children(self) -> list[str]:
        try:
            return sorted(d for d in os.listdir(self._base) if not d.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def stamp(self, directory: str) -> Stamp:
        return stamp_of(directory)

    def local(self, directory: str) -> LocalFiles:
        return LocalFiles(directory)


def stamp_of(directory: str) -> Stamp:
    """Return the stamp of a local version; files that disappear during the call are ignored.

    Raises
    ------
    OSError
        If there is no SavedModel.
    """
    os.stat(os.path.join(directory, SAVED_MODEL_FILE))
    found = []
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                status = os.stat(os.path.join(parent, name))
            except OSError:
                continue
            found.append((status.st_mtime_ns, status.st_size))
    return _stamp(found)


def _stamp(files: Iterable[tuple[int, int]]) -> Stamp:
    found = list(files)
    return Stamp(max((time for time, _ in found), default=0), sum(size for _, size in found), len(found))


class RemotePlace:
    """A directory of a file system that Arrow reads."""

    def __init__(self, storage: Storage, base: str) -> None:
        self._storage, self._base = storage, base

    def is_saved_model(self) -> bool:
        return self._is_saved_model(self._base)

    def versions(self) -> dict[int, str]:
        if self.is_saved_model():
            return {own_number(self._base): self._base}
        named = [d for d in self._directories() if _name(d.path).isdecimal() and len(_name(d.path)) <= 18]
        # Of names that differ only in leading zeros, the shortest is used.
        paths = {int(_name(d.path)): d.path for d in sorted(named, key=lambda d: -len(d.path))}
        return {v: paths[v] for v in sorted(paths) if self._is_saved_model(paths[v])}

    def children(self) -> list[str]:
        return [n for d in self._directories() if not (n := _name(d.path)).startswith(".")]

    def stamp(self, directory: str) -> Stamp:
        if not self._is_saved_model(directory):
            raise FileNotFoundError(f"{self._storage.shown(directory)} holds no SavedModel.")
        return _stamp((f.modified_ns, f.size) for f in self._files(directory))

    def local(self, directory: str) -> LocalFiles:
        copy = tempfile.mkdtemp(prefix="tfspark-model-")
        remove = partial(shutil.rmtree, copy, ignore_errors=True)
        try:
            for file in self._files(directory):
                inside = os.path.normpath(file.path.removeprefix(directory.rstrip("/") + "/"))
                if os.path.isabs(inside) or inside.startswith(".."):
                    raise OSError(f"{self._storage.shown(file.path)} is outside of the directory of its model.")
                target = os.path.join(copy, inside)
                os.makedirs(os.path.dirname(target), exist_ok=True)
                with self._storage.open(file.path) as source, open(target, "wb") as f:
                    shutil.copyfileobj(source, f, _COPY_BYTES)
        except BaseException:
            remove()
            raise
        return LocalFiles(copy, remove)

    def _directories(self) -> list[Entry]:
        if self._storage.look(self._base) is None:
            return []
        return [e for e in self._storage.children(self._base) if e.is_dir]

    def _files(self, directory: str) -> Iterable[Entry]:
        return walk(self._storage, directory, lambda _: False)

    def _is_saved_model(self, directory: str) -> bool:
        found = self._storage.look(f"{directory.rstrip('/')}/{SAVED_MODEL_FILE}")
        return found is not None and not found.is_dir


def _name(path: str) -> str:
    return os.path.basename(path.rstrip("/"))
