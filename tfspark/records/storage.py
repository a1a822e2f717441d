"""File systems that hold records: the local one, and those that Arrow opens by URI."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

from tfspark.errors import ConfigurationError, TFSparkError

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_GLOB = re.compile(r"[*?\[{]")

# Hadoop's URI schemes for S3.
_HADOOP_SCHEMES = ("s3a:", "s3n:")


class Entry(NamedTuple):
    """One file or directory."""

    path: str
    is_dir: bool
    size: int
    modified_ns: int = 0


class Storage(Protocol):
    """The file system operations that this package needs."""

    def look(self, path: str) -> Entry | None:
        """Return the entry at `path`, or None if nothing exists there."""

    def children(self, path: str) -> list[Entry]:
        """Return the entries of a directory, sorted by name."""

    def open(self, path: str) -> BinaryIO:
        """Open a file as a buffered stream for reading and seeking."""

    def shown(self, path: str) -> str:
        """Return the path in the form that users write."""


def storage_of(path: str, pattern: bool = True) -> tuple[Storage, str]:
    """Return the file system of a path or URI, and the path within it.

    Parameters
    ----------
    pattern
        Whether the path may be a glob. If False, a ``?`` in a URI starts the options of its file system.
    """
    match = _URI.match(path)
    if not match:
        return LocalStorage(), path
    return _arrow(path, match.group(1), pattern)


def _arrow(uri: str, scheme: str, pattern: bool) -> tuple[Storage, str]:
    from pyarrow import fs

    if uri.startswith(_HADOOP_SCHEMES):
        uri = f"s3{uri[3:]}"
    # Hadoop writes file:/path; Arrow needs an authority.
    uri = re.sub(r"^file:/(?!/)", "file:///", uri)
    # A glob is not a valid URI, so Arrow gets only the part before it.
    glob = _GLOB.search(uri) if pattern else None
    base = uri[: uri.rindex("/", 0, glob.start()) + 1] if glob else uri
    try:
        found, path = fs.FileSystem.from_uri(base)
    except ValueError as e:
        raise ConfigurationError(
            f"Cannot open the file system of {uri}: {e}", "Supported schemes are file, hdfs, s3, s3a and gs."
        ) from e
    except OSError as e:
        hint = "hdfs needs HADOOP_HOME and CLASSPATH=$(hadoop classpath --glob)." if scheme == "hdfs" else None
        raise TFSparkError(f"Cannot reach {uri}: {e}", hint) from e
    tail = uri[len(base) :]
    inner = f"{path.rstrip('/')}/{tail}" if tail else path
    if isinstance(found, fs.LocalFileSystem):
        return LocalStorage(), inner
    plain = base.split("?")[0].rstrip("/")
    bare = path.rstrip("/")
    prefix = plain[: len(plain) - len(bare)] if bare and plain.endswith(bare) else f"{scheme}://"
    return ArrowStorage(found, prefix), inner


class LocalStorage:
    """The local files of this machine."""

    def look(self, path: str) -> Entry | None:
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return None
        return Entry(path, os.path.isdir(path), status.st_size, status.st_mtime_ns)

    def children(self, path: str) -> list[Entry]:
        try:
            names = sorted(os.listdir(path))
        except OSError as e:
            raise TFSparkError(f"Cannot list {path}: {e.strerror}") from e
        found = (self.look(os.path.join(path, name) if path else name) for name in names)
        return [e for e in found if e is not None]

    def open(self, path: str) -> BinaryIO:
        return open(path, "rb", buffering=1 << 16)

    def shown(self, path: str) -> str:
        return path


class ArrowStorage:
    """Files of an Arrow file system; `prefix` followed by a path is its URI."""

    def __init__(self, filesystem: Any, prefix: str) -> None:
        self._fs = filesystem
        self._prefix = prefix

    def look(self, path: str) -> Entry | None:
        from pyarrow.fs import FileType

        info = self._guarded(path, lambda: self._fs.get_file_info([path.rstrip("/")])[0])
        return None if info.type == FileType.NotFound else _entry(info)

    def children(self, path: str) -> list[Entry]:
        from pyarrow.fs import FileSelector

        infos = self._guarded(path, lambda: self._fs.get_file_info(FileSelector(path.rstrip("/") or "/")))
        return sorted(_entry(i) for i in infos)

    def open(self, path: str) -> BinaryIO:
        import io

        # Records are read in small pieces; the buffer reads larger pieces from the file system.
        return cast(BinaryIO, io.BufferedReader(self._fs.open_input_file(path), 1 << 18))

    def shown(self, path: str) -> str:
        return self._prefix + path

    def _guarded(self, path: str, call: Any) -> Any:
        try:
            return call()
        except OSError as e:
            raise TFSparkError(f"Cannot access {self.shown(path)}: {e}") from e


def _entry(info: Any) -> Entry:
    from pyarrow.fs import FileType

    return Entry(info.path, info.type == FileType.Directory, info.size or 0, info.mtime_ns or 0)


def walk(storage: Storage, directory: str, hidden: Any) -> Iterator[Entry]:
    """Yield the files below a directory, sorted by name, except `hidden` ones; visit each directory once."""
    seen = {os.path.realpath(directory)}
    waiting = [iter(storage.children(directory))]
    while waiting:
        entry = next(waiting[-1], None)
        if entry is None:
            waiting.pop()
        elif hidden(os.path.basename(entry.path.rstrip("/"))):
            continue
        elif not entry.is_dir:
            yield entry
        else:
            # Symbolic links can form cycles; paths of other file systems have no links.
            real = os.path.realpath(entry.path) if isinstance(storage, LocalStorage) else entry.path
            if real not in seen:
                seen.add(real)
                waiting.append(iter(storage.children(entry.path)))
