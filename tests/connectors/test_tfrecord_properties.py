"""Random and mutated records: what Spark reads and writes against what TensorFlow does with the same bytes."""

from __future__ import annotations

import random
import struct
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import CORPUS, flips, mutants, outcomes
from tfrecord_files import example, feature, files, read, write

NAMES = ["a", "b", "c", "long_name_of_a_feature", "Ünï", ""]
INTS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5)
FLOATS = st.lists(st.floats(width=32), max_size=5)
BLOBS = st.lists(st.binary(max_size=200), max_size=5)
FEATURES = st.one_of(
    st.tuples(st.just("int64"), INTS), st.tuples(st.just("float"), FLOATS), st.tuples(st.just("bytes"), BLOBS)
)
EXAMPLES = st.lists(st.dictionaries(st.sampled_from(NAMES[:5]), FEATURES, max_size=5), min_size=60, max_size=120)
LISTS = st.one_of(
    st.tuples(st.just("int64"), st.lists(INTS, max_size=3)),
    st.tuples(st.just("float"), st.lists(FLOATS, max_size=3)),
    st.tuples(st.just("bytes"), st.lists(BLOBS, max_size=3)),
)
SEQUENCES = st.lists(st.dictionaries(st.sampled_from(NAMES[:5]), LISTS, max_size=3), min_size=40, max_size=80)
SQL = {"int64": "array<bigint>", "float": "array<float>", "bytes": "array<binary>"}
SLOW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def bits(values: Any) -> Any:
    """Floats by their bits, so that NaN equals itself and -0.0 does not equal 0.0."""
    if isinstance(values, float):
        return struct.pack("<f", values)
    if isinstance(values, list):
        return [bits(v) for v in values]
    return bytes(values) if isinstance(values, bytearray) else values


@SLOW
@given(made=EXAMPLES)
def test_examples_that_tensorflow_writes(spark: Any, tmp_path: Path, made: list[dict[str, Any]]) -> None:
    # One column per name and kind: a feature is read where its kind is that of the column, and is malformed elsewhere.
    names = {f"{n}_{k}": SQL[k] for n in NAMES[:5] for k in SQL}
    renamed = [{f"{n}_{k}": (k, v) for n, (k, v) in m.items()} for m in made]
    examples = [
        tf.train.Example(features=tf.train.Features(feature={n: feature(*f) for n, f in m.items()})) for m in renamed
    ]
    path = write(tmp_path / "x", *[e.SerializeToString() for e in examples])
    schema = ", ".join(f"`{n}` {t}" for n, t in names.items())
    rows = read(spark, path, schema).collect()
    assert [{n: bits(r[n]) for n in names if r[n] is not None} for r in rows] == [
        {n: bits(list(v)) for n, (_, v) in m.items()} for m in renamed
    ]


@SLOW
@given(made=EXAMPLES)
def test_examples_that_spark_writes(spark: Any, tmp_path: Path, made: list[dict[str, Any]]) -> None:
    columns = [f"{n}_{k}" for n in NAMES[:5] for k in SQL]
    schema = ", ".join(f"`{c}` {SQL[c.rsplit('_', 1)[1]]}" for c in columns)
    given_rows = [{f"{n}_{k}": v for n, (k, v) in m.items()} for m in made]
    df = spark.createDataFrame([tuple(g.get(c) for c in columns) for g in given_rows], schema).coalesce(1)
    df.write.format("tfrecord").mode("overwrite").save(str(tmp_path / "y"))
    found = [tf.train.Example.FromString(r.numpy()) for r in tf.data.TFRecordDataset(files(tmp_path / "y"))]
    assert len(found) == len(given_rows)
    for message, row in zip(found, given_rows, strict=True):
        lists = {n: getattr(f, f.WhichOneof("kind")).value[:] for n, f in message.features.feature.items()}
        assert {n: bits(list(v)) for n, v in lists.items()} == {n: bits(v) for n, v in row.items()}


@SLOW
@given(made=SEQUENCES)
def test_sequence_examples_both_ways(spark: Any, tmp_path: Path, made: list[dict[str, Any]]) -> None:
    renamed = [{f"{n}_{k}": (k, v) for n, (k, v) in m.items()} for m in made]
    messages = [
        tf.train.SequenceExample(
            context=tf.train.Features(feature={"id": feature("int64", [i])}),
            feature_lists=tf.train.FeatureLists(
                feature_list={
                    n: tf.train.FeatureList(feature=[feature(k, values) for values in v]) for n, (k, v) in m.items()
                }
            ),
        )
        for i, m in enumerate(renamed)
    ]
    path = write(tmp_path / "x", *[m.SerializeToString() for m in messages])
    columns = {f"{n}_{k}": SQL[k] for n in NAMES[:5] for k in SQL}
    schema = "id long, " + ", ".join(f"`{n}` array<{t}>" for n, t in columns.items())
    df = read(spark, path, schema, recordType="SequenceExample")
    assert [{n: bits(r[n]) for n in columns if r[n] is not None} for r in df.collect()] == [
        {n: bits(v) for n, (_, v) in m.items()} for m in renamed
    ]
    target = str(tmp_path / "y")
    df.coalesce(1).write.format("tfrecord").option("recordType", "SequenceExample").mode("overwrite").save(target)
    written = [tf.train.SequenceExample.FromString(r.numpy()) for r in tf.data.TFRecordDataset(files(Path(target)))]
    assert [bits_of(w) for w in written] == [bits_of(m) for m in messages]


def bits_of(message: Any) -> Any:
    return {
        n: [[bits(v) for v in getattr(f, f.WhichOneof("kind")).value[:]] for f in fs.feature]
        for n, fs in message.feature_lists.feature_list.items()
    } | {"": list(message.context.feature["id"].int64_list.value)}


def test_encodings_that_few_writers_choose(spark: Any, tmp_path: Path) -> None:
    rng = random.Random(3)
    records = [CORPUS[rng.randrange(len(CORPUS))] for _ in range(50)]
    path = write(tmp_path / "x", *records)
    rows = read(spark, path, "i array<long>, f array<float>, s array<binary>").collect()
    for row, record in zip(rows, records, strict=True):
        features = tf.train.Example.FromString(record).features.feature
        for name, kind in (("i", "int64_list"), ("f", "float_list"), ("s", "bytes_list")):
            has = name in features and features[name].WhichOneof("kind") is not None
            expected = list(getattr(features[name], kind).value) if has else None
            assert bits(row[name]) == bits(expected), record


def delimited(tag: int, body: bytes) -> bytes:
    return bytes([tag]) + varint(len(body)) + body


def varint(value: int, size: int = 1) -> bytes:
    """`value` in `size` bytes at least: an encoding may be longer than it has to be."""
    groups = [value >> 7 * i & 0x7F for i in range(10)]
    while len(groups) > size and groups[-1] == 0:
        groups.pop()
    return bytes([g | 0x80 for g in groups[:-1]] + groups[-1:])


def values_of(record: bytes) -> list[Any]:
    """Return the values of a record's only feature; none if TensorFlow does not read the record."""
    try:
        (found,) = tf.train.Example.FromString(record).features.feature.values()
    except DecodeError:
        return []
    return list(getattr(found, found.WhichOneof("kind")).value)


def test_single_values_in_every_length(spark: Any, tmp_path: Path) -> None:
    numbers = sorted({s * (b + d) for k in range(64) for b in [1 << k] for d in (-1, 0) for s in (1, -1)})
    encodings = [varint(n % 2**64, size) for n in numbers for size in (1, 5, 9, 10)]
    encodings += [b"\xff" * 9 + bytes([last]) for last in (0, 1, 2, 0x7F)]
    packed = [delimited(0x1A, delimited(0x0A, e)) for e in encodings]
    unpacked = [delimited(0x1A, b"\x08" + e) for e in encodings]
    too_long = [delimited(0x1A, delimited(0x0A, b"\xff" * n + b"\x01")) for n in (10, 11, 15, 16)]
    two = [delimited(0x1A, delimited(0x0A, b"\x01\x02")), delimited(0x1A, b"\x08\x01\x08\x02")]
    texts = [delimited(0x0A, delimited(0x0A, bytes(n % 250 for n in range(length)))) for length in range(300)]
    reals = [delimited(0x12, delimited(0x0A, struct.pack("<f", x))) for x in (0.0, -0.0, 1.5, float("nan"))]
    features = [*packed, *unpacked, *too_long, *two, *texts, *reals]
    named = [(name, f) for f in features for name in (b"x", b"a_name_of_more_than_16_bytes")]
    records = [delimited(0x0A, delimited(0x0A, delimited(0x0A, name) + delimited(0x12, f))) for name, f in named]
    path = write(tmp_path / "x", *records)
    checked = 0
    for sql, kind in (("bigint", 0x1A), ("int", 0x1A), ("float", 0x12), ("binary", 0x0A)):
        schema = f"x {sql}, a_name_of_more_than_16_bytes {sql}, _corrupt_record binary"
        rows = read(spark, path, schema, mode="PERMISSIVE").collect()
        for row, record, (_, body) in zip(rows, records, named, strict=True):
            if body[0] != kind:
                continue
            values = values_of(record)
            fits = len(values) == 1 and not (sql == "int" and not -(2**31) <= values[0] < 2**31)
            found = [v for v in row[:2] if v is not None]
            assert (bits(found) == bits(values)) if fits else (found == [] and row[2] is not None), (sql, record, row)
            checked += fits
    assert checked > 3 * len(numbers)


def check(counts: Counter[str], total: int) -> None:
    assert counts.total() == total
    assert counts["wrong"] == 0
    assert counts["unread"] + counts["dropped"] < total / 20


def test_mutated_records_give_the_right_row_or_an_error(spark: Any, tmp_path: Path) -> None:
    records = mutants(1, 4000)
    counts = outcomes(spark, tmp_path / "x", records)
    check(counts, len(records))
    assert min(counts["row"], counts["error"]) > 300


def test_every_flipped_bit_and_every_cut_of_a_record(spark: Any, tmp_path: Path) -> None:
    records = [changed for body in CORPUS for changed in flips(body)]
    check(outcomes(spark, tmp_path / "x", records), len(records))


def test_every_flipped_bit_and_every_cut_of_a_file(spark: Any, tmp_path: Path) -> None:
    """With framing: the rows before the damage, then the error; read as one directory that tolerates damage."""
    good = Path(write(tmp_path / "good", *[example(i=("int64", [i])) for i in range(3)])).read_bytes()
    (tmp_path / "x").mkdir()
    variants = flips(good)
    for n, body in enumerate(variants):
        (tmp_path / "x" / f"{n:05}").write_bytes(body)
    df = read(spark, tmp_path / "x", "i array<long>", ignoreCorruptFiles="true", maxRecordBytes=1 << 20)
    found: dict[str, list[int]] = {}
    for row in df.selectExpr("i[0] as i", "_metadata.file_name as n").collect():
        found.setdefault(row.n, []).append(row.i)
    third = len(good) // 3
    for n, body in enumerate(variants):
        damaged_at = next((k for k, (a, b) in enumerate(zip(body, good, strict=False)) if a != b), len(body))
        assert found.get(f"{n:05}", []) == list(range(damaged_at // third)), body


def test_absurd_lengths_allocate_nothing(spark: Any, tmp_path: Path) -> None:
    for length in (2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1):
        header = struct.pack("<Q", length)
        (tmp_path / "x").write_bytes(header + struct.pack("<I", tf_crc(header)) + b"x" * 40)
        for limits in ({}, {"maxRecordBytes": 2**31 - 2000}):
            with pytest.raises(Exception, match=r"x, record at offset 0: "):
                read(spark, tmp_path / "x", "i long", **limits).collect()
            with pytest.raises(Exception, match=r"x, record at offset 0: "):
                read(spark, tmp_path / "x", "i long", **limits).count()


def tf_crc(data: bytes) -> int:
    """Return the masked CRC of 8 bytes as TensorFlow's writer computes it: of a record that holds them."""
    with tempfile.NamedTemporaryFile() as file:
        write(Path(file.name), data)
        return struct.unpack("<I", Path(file.name).read_bytes()[-4:])[0]


def test_invalid_text_is_kept_as_it_is(spark: Any, tmp_path: Path) -> None:
    bad = b"ok\xff\xc3("
    path = write(tmp_path / "x", example(s=("bytes", [bad])))
    df = read(spark, path, "s string")
    assert bytes(df.selectExpr("cast(s as binary) as b").first().b) == bad
