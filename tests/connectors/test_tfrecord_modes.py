"""What becomes of malformed records, and of damaged files, in each mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tfrecord_files import example, read, write

GOOD = example(a=("int64", [1]), s=("bytes", [b"one"]))
WRONG_KIND = example(a=("float", [1.5]), s=("bytes", [b"two"]))
NO_MESSAGE = b"\xff\xff\xff"


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A file with a record of a wrong kind, one that is no message, and one whose data miss their checksum."""
    file = Path(write(tmp_path / "x", GOOD, WRONG_KIND, NO_MESSAGE, GOOD))
    body = bytearray(file.read_bytes())
    body[-1] ^= 1
    file.write_bytes(bytes(body) + Path(write(tmp_path / "y", GOOD)).read_bytes())
    return str(file)


def test_failfast_is_the_default(spark: Any, path: str) -> None:
    for options in ({}, {"mode": "FAILFAST"}):
        with pytest.raises(Exception, match="feature 'a': expected an Int64List, found a FloatList"):
            read(spark, path, "a long, s string", **options).collect()


def test_dropmalformed_leaves_them_out_whatever_is_asked_for(spark: Any, path: str) -> None:
    df = read(spark, path, "a long, s string", mode="dropMalformed")
    assert [tuple(r) for r in df.collect()] == [(1, "one"), (1, "one")]
    assert [r.s for r in df.select("s").collect()] == ["one", "one"]
    assert df.count() == 2


def test_permissive_keeps_what_can_be_read_and_the_bytes_of_the_rest(spark: Any, path: str) -> None:
    df = read(spark, path, "a long, s string, _corrupt_record binary", mode="PERMISSIVE")
    rows = [tuple(r) for r in df.collect()]
    assert rows == [
        (1, "one", None),
        (None, "two", WRONG_KIND),
        (None, None, NO_MESSAGE),
        (None, None, GOOD),
        (1, "one", None),
    ]
    assert df.select("_corrupt_record").where("_corrupt_record is not null").count() == 3
    assert [r.s for r in df.select("s").collect()] == ["one", "two", None, None, "one"]
    assert df.count() == 5


def test_permissive_without_the_column_or_with_another_name(spark: Any, path: str) -> None:
    assert [r.a for r in read(spark, path, "a long", mode="PERMISSIVE").collect()] == [1, None, None, None, 1]
    named = read(spark, path, "a long, bad binary", mode="PERMISSIVE", columnNameOfCorruptRecord="bad")
    assert [r.bad is None for r in named.collect()] == [True, False, False, False, True]


def test_the_column_must_be_able_to_hold_them(spark: Any, path: str) -> None:
    with pytest.raises(Exception, match="'_corrupt_record' for malformed records must be binary and nullable"):
        read(spark, path, "a long, _corrupt_record string", mode="PERMISSIVE").collect()


def test_sequence_examples_have_modes_too(spark: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "x", b"\x0a\xff", b"")
    df = read(spark, file, "f array<array<float>>, c long", recordType="SequenceExample", mode="PERMISSIVE")
    assert [tuple(r) for r in df.collect()] == [(None, None), (None, None)]
    assert read(spark, file, "c long", recordType="SequenceExample", mode="DROPMALFORMED").count() == 1


def test_an_entry_with_two_values_is_malformed(spark: Any, tmp_path: Path) -> None:
    """Protobuf merges them, and TensorFlow's parser of examples refuses the record."""
    value = b"\x12\x05\x1a\x03\x0a\x01\x07"  # An Int64List with the value 7.
    entry = b"\x0a\x01a" + value + value
    features = b"\x0a" + bytes([len(entry)]) + entry
    record = b"\x0a" + bytes([len(features)]) + features
    assert list(tf.train.Example.FromString(record).features.feature["a"].int64_list.value) == [7, 7]
    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.io.parse_single_example(record, {"a": tf.io.VarLenFeature(tf.int64)})
    path = write(tmp_path / "x", example(a=("int64", [1])), record)
    for schema in ("a array<long>", "a long", None):
        with pytest.raises(Exception, match="feature 'a': its entry in the record has two values"):
            read(spark, path, schema).collect()
    assert [r.a for r in read(spark, path, "a long", mode="PERMISSIVE").collect()] == [1, None]
    assert [r.b for r in read(spark, path, "b long").collect()] == [None, None]


def test_damaged_framing_is_an_error_in_every_mode(spark: Any, tmp_path: Path) -> None:
    file = Path(write(tmp_path / "x", GOOD, GOOD))
    file.write_bytes(file.read_bytes()[:-1])
    for mode in ("FAILFAST", "DROPMALFORMED", "PERMISSIVE"):
        with pytest.raises(Exception, match="the file ends within a record"):
            read(spark, file, "a long", mode=mode).collect()
        assert len(read(spark, file, "a long", mode=mode, ignoreCorruptFiles="true").collect()) == 1


def test_a_good_record_after_a_bad_one_carries_nothing_of_it(spark: Any, tmp_path: Path) -> None:
    half = example(a=("int64", [7]), s=("int64", [3]))
    file = write(tmp_path / "x", half, example(s=("bytes", [b"ok"])), half, b"")
    df = read(spark, file, "a long, s string", mode="PERMISSIVE")
    assert [tuple(r) for r in df.collect()] == [(7, None), (None, "ok"), (7, None), (None, None)]


def test_inference_leaves_malformed_records_out_where_they_are_tolerated(spark: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "x", GOOD, NO_MESSAGE)
    with pytest.raises(Exception, match="x, record at offset"):
        read(spark, file)
    assert read(spark, file, mode="PERMISSIVE").schema.simpleString() == "struct<a:bigint,s:string>"
