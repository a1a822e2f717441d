"""Finds the files of a path and opens them."""

from __future__ import annotations

import bz2
import fnmatch
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from tfspark.errors import DependencyError, TFSparkError
from tfspark.records.framing import HEADER_BYTES, MAX_RECORD_BYTES, RecordReader, is_header
from tfspark.records.storage import Entry, Storage, storage_of, walk

_UNREADABLE = {
    ".lz4": "Hadoop's LZ4",
    ".snappy": "Hadoop's Snappy",
    ".lzo": "LZO",
    ".xz": "xz",
    ".br": "Brotli",
}
_ZSTD = (".zst", ".zstd")
_PIECE_BYTES = 1 << 16


@dataclass(frozen=True)
class RecordFile:
    """A file of records: its displayed name, its storage and path, and its stored size in bytes."""

    name: str
    path: str
    size: int
    storage: Storage


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading records."""

    verify_checksum: bool = True
    max_record_bytes: int = MAX_RECORD_BYTES


def hidden(name: str) -> bool:
    """Return whether Spark skips a file or directory with this name when it lists a directory."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name) or name.endswith("._COPYING_")


def find(path: str) -> list[RecordFile]:
    """Return the files of a path: a file, a directory (recursively), a glob, or a URI of these.

    Raises
    ------
    TFSparkError
        If the path does not exist.
    """
    storage, inner = storage_of(path)
    entry = storage.look(inner)
    roots = [entry] if entry else list(_matches(storage, inner))
    if not roots:
        raise TFSparkError(f"{path}: no such file or directory")
    found: list[Entry] = []
    for root in roots:
        found.extend(walk(storage, root.path, hidden) if root.is_dir else [root])
    return [RecordFile(storage.shown(e.path), e.path, e.size, storage) for e in dict.fromkeys(found)]


def _matches(storage: Storage, pattern: str) -> Iterator[Entry]:
    for alternative in sorted(set(_braces(pattern))):
        parts = alternative.split("/")
        fixed = next((i for i, p in enumerate(parts) if re.search(r"[*?\[]", p)), len(parts))
        bases = ["/".join(parts[:fixed]) or ("/" if alternative.startswith("/") else "")]
        for part in parts[fixed:-1]:
            bases = [e.path for base in bases for e in _children(storage, base, part) if e.is_dir]
        if fixed == len(parts):
            entry = storage.look(alternative)
            yield from [entry] if entry else []
        else:
            for base in bases:
                yield from _children(storage, base, parts[-1])


def _children(storage: Storage, base: str, pattern: str) -> Iterator[Entry]:
    here = storage.look(base or ".")
    if here is None or not here.is_dir:
        return
    for entry in storage.children(base) if base else _relative(storage):
        name = os.path.basename(entry.path.rstrip("/"))
        if fnmatch.fnmatchcase(name, pattern) and (not hidden(name) or pattern[0] in "._"):
            yield entry


def _relative(storage: Storage) -> list[Entry]:
    return [e._replace(path=e.path.removeprefix("./")) for e in storage.children(".")]


def _braces(pattern: str) -> list[str]:
    """Expand alternatives such as ``part-{0,1}*``."""
    done: list[str] = []
    waiting = [pattern]
    while waiting:
        text = waiting.pop()
        if match := re.search(r"\{([^{}]*)\}", text):
            waiting.extend(text[: match.start()] + a + text[match.end() :] for a in match.group(1).split(","))
        else:
            done.append(text)
    return done


@contextmanager
def open_records(file: RecordFile, options: ReadOptions, strict: bool = True) -> Iterator[RecordReader]:
    """Open a file, decompress it, and yield a reader of its records."""
    try:
        raw = file.storage.open(file.path)
    except OSError as e:
        raise TFSparkError(f"Cannot open {file.name}: {e.strerror or e}") from e
    with raw, raw if not file.size else _decompressed(file, raw) as stream:
        yield RecordReader(
            stream,
            file.name,
            verify_checksum=options.verify_checksum,
            max_record_bytes=options.max_record_bytes,
            strict=strict,
        )


def _decompressed(file: RecordFile, raw: BinaryIO) -> BinaryIO:
    """Return a stream of the decompressed file.

    The extension of the file name selects the codec. gzip and zlib are also detected by their first bytes, because
    TensorFlow writes such files under any name.
    """
    end = os.path.splitext(file.path)[1].lower()
    if end in _UNREADABLE:
        raise TFSparkError(
            f"{file.name} is compressed with {_UNREADABLE[end]}, which tfspark records cannot read",
            'Read it with spark.read.format("tfrecord").',
        )
    if end == ".bz2":
        return _members(raw, bz2.BZ2Decompressor)
    if end in _ZSTD:
        return _zstd(raw)
    if end == ".deflate":
        return _members(raw, _Zlib)
    try:
        head = raw.read(HEADER_BYTES)
        raw.seek(0)
    except OSError as e:
        raise TFSparkError(f"Cannot read {file.name}: {e.strerror or e}") from e
    if is_header(head) or len(head) < 2:
        return raw
    if head[:2] == b"\x1f\x8b":
        return _members(raw, _Gzip)
    if head[0] & 0x0F == 8 and int.from_bytes(head[:2], "big") % 31 == 0:
        return _members(raw, _Zlib)
    return raw


def _members(raw: BinaryIO, new: Callable[[], Any]) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Members(raw, new), 1 << 16))


class _Members(io.RawIOBase):
    """A file of concatenated compressed streams, read by the same rules as in Spark.

    It is an error if a stream ends early, or if other bytes follow the first stream.
    """

    def __init__(self, raw: BinaryIO, new: Callable[[], Any]) -> None:
        self._raw = raw
        self._new = new
        self._stream = new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._stream.eof:
                piece = self._stream.unused_data or self._raw.read(_PIECE_BYTES)
                if not piece:
                    return 0
                self._stream = self._new()
            else:
                piece = self._raw.read(_PIECE_BYTES) if self._stream.needs_input else b""
            ended = self._stream.needs_input and not piece
            data = self._stream.decompress(piece, len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
            if ended and not self._stream.eof:
                raise EOFError("the compressed data ends early")


class _Zlib:
    """A zlib decompressor with the interface of `bz2.BZ2Decompressor`."""

    bits = zlib.MAX_WBITS

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(self.bits)

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._stream.unconsumed_tail

    def decompress(self, piece: bytes, most: int) -> bytes:
        return self._stream.decompress(self._stream.unconsumed_tail + piece, most)


class _Gzip(_Zlib):
    """A decompressor for one member of a gzip file."""

    bits = zlib.MAX_WBITS | 16


def _zstd(raw: BinaryIO) -> BinaryIO:
    import pyarrow

    if not pyarrow.Codec.is_available("zstd"):
        raise DependencyError(
            "This build of pyarrow cannot decompress Zstandard.", "Install the one of PyPI: pip install pyarrow"
        )
    return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"), 1 << 16))


def spread(files: Sequence[RecordFile], most: int) -> list[RecordFile]:
    """Return at most `most` of the files, evenly spread over the list."""
    if len(files) <= most:
        return list(files)
    return [files[i * len(files) // most] for i in range(most)]
