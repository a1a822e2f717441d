"""Mutated tf.train.Examples, and what the connector makes of them against protobuf's own parser."""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from tfrecord_files import example, read, write

SCHEMA = "i array<long>, f array<float>, s array<binary>, _corrupt_record binary"
KINDS = {"i": "int64_list", "f": "float_list", "s": "bytes_list"}


def delimited(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def record(*entries: bytes, extra: bytes = b"") -> bytes:
    return delimited(1, b"".join(entries)) + extra


def entry(name: bytes, *lists: bytes, extra: bytes = b"") -> bytes:
    return delimited(1, delimited(1, name) + delimited(2, b"".join(lists)) + extra)


CORPUS = [
    b"",
    example(i=("int64", [1, -1, 2**62]), f=("float", [1.5, -0.0]), s=("bytes", [b"a", b"\xff\xfe"])),
    example(i=("int64", []), f=("float", [])),
    example(s=("bytes", [b"x" * 300])),
    # Unpacked lists, mixed with packed ones.
    record(entry(b"i", delimited(3, b"\x08\x05\x0a\x02\x01\x02\x08\x07"))),
    record(entry(b"f", delimited(2, b"\x0d" + struct.pack("<f", 2.5) + delimited(1, struct.pack("<2f", 1, 2))))),
    # A list in two parts, a list of another kind replaced by it, a name that comes twice.
    record(entry(b"i", delimited(3, delimited(1, b"\x01")), delimited(3, delimited(1, b"\x02")))),
    record(entry(b"i", delimited(2, delimited(1, b"\0" * 8)), delimited(3, delimited(1, b"\x02")))),
    record(entry(b"i", delimited(3, delimited(1, b"\x01"))), entry(b"i", delimited(3, delimited(1, b"\x03")))),
    # Unknown fields everywhere, a group, a map in two parts, a feature without a list, an entry without a value.
    record(
        entry(b"i", delimited(3, delimited(1, b"\x01") + b"\x10\x01"), b"\x7a\x01x"),
        extra=b"\x13\x2a\x01z\x14" + varint(1000 << 3) + b"\x05",
    ),
    record(entry(b"i", delimited(3, delimited(1, b"\x01")))) + record(entry(b"s", delimited(1, delimited(1, b"y")))),
    record(entry(b"i")),
    record(delimited(1, delimited(1, b"i"))),
    # Numbers with more bytes than they need.
    record(entry(b"i", delimited(3, delimited(1, b"\x81\x80\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")))),
]


def mutants(seed: int, n: int) -> list[bytes]:
    """Return records with flipped bits, missing, doubled and replaced bytes."""
    rng = random.Random(seed)
    made = []
    while len(made) < n:
        body = bytearray(rng.choice(CORPUS[1:]))
        for _ in range(rng.choice([1, 1, 1, 1, 2])):
            at = rng.randrange(len(body) + 1)
            match rng.choice([0, 0, 0, 1, 2, 3, 4]):
                case 0 if at < len(body):
                    body[at] ^= 1 << rng.randrange(8)
                case 1:
                    del body[at:]
                case 2:
                    body[at:at] = rng.choice([b"\xff" * rng.randrange(12), b"\x0b" * 200, varint(rng.getrandbits(63))])
                case 3:
                    body[at : at + 3] = rng.randbytes(3)
                case _:
                    other = rng.choice(CORPUS)
                    body[at:at] = other[: rng.randrange(len(other) + 1)]
        made.append(bytes(body))
    return made


def flips(body: bytes) -> list[bytes]:
    """Return the record with each of its bits flipped, and cut at each of its lengths."""
    changed = []
    for at in range(len(body)):
        for bit in range(8):
            copy = bytearray(body)
            copy[at] ^= 1 << bit
            changed.append(bytes(copy))
    return changed + [body[:n] for n in range(len(body))]


def outcomes(spark: Any, path: Path, records: list[bytes]) -> Counter[str]:
    """Read records in Spark and in protobuf; count how they agree.

    Returns
    -------
    Counter
        ``row``: the same values. ``error``: refused, and protobuf refuses it, a feature has another kind than asked, or
        an entry has two values.
        ``unread``: protobuf refuses it for something in a part that the connector has no need to parse. ``dropped``:
        protobuf for Python leaves out map entries with unknown fields; other parsers do not. ``wrong``: all else.
    """
    write(path, *records)
    # A flipped bit can change the case of a name, which protobuf does not pass over.
    spark.conf.set("spark.sql.caseSensitive", "true")
    try:
        rows = read(spark, path, SCHEMA, mode="PERMISSIVE", maxRecordBytes=1 << 20).collect()
    finally:
        spark.conf.unset("spark.sql.caseSensitive")
    counts = Counter({"wrong": abs(len(rows) - len(records))})
    for row, body in zip(rows, records, strict=False):
        expected = parsed(body)
        if row._corrupt_record is not None:
            odd = has_unknown_in_entry(body) or has_two_values_in_entry(body)
            refused = expected is None or "another kind" in expected.values() or odd
            counts["error" if refused else "wrong"] += 1
        elif expected is None:
            counts["unread"] += 1
        elif {n: _plain(row[n]) for n in KINDS} == expected:
            counts["row"] += 1
        else:
            counts["dropped" if has_unknown_in_entry(body) else "wrong"] += 1
    return counts


def fields(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the tags and the length-delimited values of a message, up to where it cannot be read."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while at < len(body):
            value |= (body[at] & 127) << shift
            at += 1
            if body[at - 1] < 128:
                break
            shift += 7
        return value

    while at < len(body):
        tag = number()
        size = {0: 0, 1: 8, 2: 0, 5: 4}.get(tag & 7, len(body))
        if tag & 7 == 0:
            number()
        if tag & 7 == 2:
            size = number()
        yield tag, body[at : at + size] if tag & 7 == 2 else b""
        at += size


def entries_of(body: bytes) -> list[bytes]:
    return [e for tag, part in fields(body) if tag == 10 for t, e in fields(part) if t == 10]


def has_unknown_in_entry(body: bytes) -> bool:
    return any(tag not in (10, 18) for e in entries_of(body) for tag, _ in fields(e))


def has_two_values_in_entry(body: bytes) -> bool:
    """Return whether protobuf would merge the values of an entry; ``tf.io.parse_example`` refuses such a record."""
    return any([tag for tag, _ in fields(e)].count(18) > 1 for e in entries_of(body))


def parsed(body: bytes) -> dict[str, Any] | None:
    """Return what protobuf makes of a record, or None if it refuses it."""
    try:
        features = tf.train.Example.FromString(body).features.feature
    except DecodeError:
        return None
    values: dict[str, Any] = {}
    for name, kind in KINDS.items():
        which = features[name].WhichOneof("kind") if name in features else None
        values[name] = None if which is None else "another kind"
        if which == kind or (name == "f" and which == "int64_list"):
            read_as = float if name == "f" else lambda v: v
            values[name] = _plain([read_as(v) for v in getattr(features[name], which).value])
    return values


def _plain(values: Any) -> Any:
    if values is None:
        return None
    return [
        struct.pack("<f", float(v)) if isinstance(v, float) else v if isinstance(v, int) else bytes(v) for v in values
    ]
