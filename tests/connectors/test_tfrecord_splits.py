"""Reading a file in parts: no record is lost, read twice or invented, wherever the file is cut."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tfrecord_files import example, read, write


def rows(df: Any) -> list[int]:
    return sorted(r.a for r in df.select("a").collect())


@pytest.fixture
def read_in_parts(spark: Any) -> Iterator[Callable[..., Any]]:
    """Read with at most so many bytes a task."""
    settings = ["spark.sql.files.maxPartitionBytes", "spark.sql.files.openCostInBytes"]

    def parts(path: Any, part_bytes: int, **options: Any) -> Any:
        for key in settings:
            spark.conf.set(key, str(part_bytes))
        return read(spark, path, "a long, b binary", **options)

    yield parts
    for key in settings:
        spark.conf.unset(key)


def nested(number: int, size: int, value: int, tmp_path: Path) -> bytes:
    """Return the bytes of a TFRecord file whose records could be taken for rows."""
    path = write(tmp_path / "inner", *[example(a=("int64", [value]), b=("bytes", [b"x" * size]))] * number)
    return Path(path).read_bytes()


def test_every_cut_of_a_small_file(spark: Any, tmp_path: Path) -> None:
    inner = nested(3, 5, -1, tmp_path)
    blobs = [b"", b"x" * 40, inner, inner[:-5], inner * 2, b"y"]
    records = [example(a=("int64", [i]), b=("bytes", [blob])) for i, blob in enumerate(blobs)]
    path = write(tmp_path / "x.tfrecord", *records)
    size = Path(path).stat().st_size
    finder = spark._jvm.tfspark.tfrecord.FilePart
    defaults = spark._jvm.org.apache.spark.api.python.PythonUtils.toScalaMap(spark._jvm.java.util.HashMap())
    options = spark._jvm.tfspark.tfrecord.TFRecordOptions(defaults)
    conf = spark.sparkContext._jsc.hadoopConfiguration()
    where = spark._jvm.org.apache.hadoop.fs.Path(path)

    def count(start: int, end: int) -> int:
        opened = finder(where, conf, start, end, size).open(options)
        if opened.isEmpty():
            return 0
        reader, at_end = opened.get()._1(), opened.get()._2()
        n = 0
        while reader.next():
            n += 1
        at_end.apply()
        reader.close()
        return n

    for cut in range(1, size):
        assert count(0, cut) + count(cut, size) == len(records), cut


@pytest.mark.parametrize("part_bytes", [997, 4096, 50_000, 1 << 20])
def test_files_that_hold_files(read_in_parts: Any, tmp_path: Path, part_bytes: int) -> None:
    rng = random.Random(part_bytes)
    records = []
    for i in range(300):
        blob = (
            nested(rng.randrange(40), rng.randrange(100), -1, tmp_path) if i % 3 else rng.randbytes(rng.randrange(3000))
        )
        records.append(example(a=("int64", [i]), b=("bytes", [blob])))
    path = write(tmp_path / "x.tfrecord", *records)
    df = read_in_parts(path, part_bytes)
    assert df.rdd.getNumPartitions() >= min(300, Path(path).stat().st_size // part_bytes)
    assert rows(df) == list(range(300))
    assert df.count() == 300


def test_a_record_larger_than_many_parts(read_in_parts: Any, tmp_path: Path) -> None:
    blobs = [b"a", nested(2000, 50, -1, tmp_path), b"b", b"\0" * 300_000, b"c"]
    path = write(tmp_path / "x", *[example(a=("int64", [i]), b=("bytes", [b])) for i, b in enumerate(blobs)])
    df = read_in_parts(path, 10_000)
    assert df.rdd.getNumPartitions() > 30
    assert [(r.a, len(r.b)) for r in df.orderBy("a").collect()] == [(i, len(b)) for i, b in enumerate(blobs)]


def test_what_fools_the_search_is_an_error_and_no_wrong_row(read_in_parts: Any, tmp_path: Path) -> None:
    inner = nested(6000, 1000, -1, tmp_path)
    assert len(inner) > 5 << 20
    path = write(tmp_path / "x", *[example(a=("int64", [i]), b=("bytes", [inner])) for i in range(2)])
    with pytest.raises(Exception, match=r"the file cannot be split at offset .* splitFiles=false"):
        rows(read_in_parts(path, 1 << 20))
    assert rows(read_in_parts(path, 1 << 20, splitFiles="false")) == [0, 1]


@pytest.mark.parametrize("compression", ["GZIP", "ZLIB"])
def test_compressed_files_are_read_in_one_piece_whatever_their_name(
    read_in_parts: Any, tmp_path: Path, compression: str
) -> None:
    rng = random.Random(1)
    records = [example(a=("int64", [i]), b=("bytes", [rng.randbytes(100)])) for i in range(500)]
    path = write(tmp_path / "x.tfrecord", *records, compression=compression)
    df = read_in_parts(path, 5000)
    assert df.rdd.getNumPartitions() > 5
    assert rows(df) == list(range(500))


def test_damage_is_found_in_whichever_part_it_is(read_in_parts: Any, tmp_path: Path) -> None:
    path = Path(write(tmp_path / "x", *[example(a=("int64", [i]), b=("bytes", [b"x" * 500])) for i in range(200)]))
    whole = path.read_bytes()
    for at in (3, len(whole) // 2, len(whole) - 600, len(whole) - 2):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(Exception, match=r"(x, record at offset|not be split)"):
            rows(read_in_parts(path, 10_000))
        kept = rows(read_in_parts(path, 10_000, ignoreCorruptFiles="true"))
        assert kept == list(range(len(kept))) and len(kept) < 200


def test_tensorflow_reads_the_same(spark: Any, read_in_parts: Any, tmp_path: Path) -> None:
    df = spark.range(20_000).selectExpr("id as a", "cast(repeat('x', cast(id % 97 as int)) as binary) as b")
    df.coalesce(1).write.format("tfrecord").save(str(tmp_path / "x"))
    (path,) = (tmp_path / "x").glob("*.tfrecord")
    parsed = [
        tf.io.parse_single_example(r, {"a": tf.io.FixedLenFeature([], tf.int64)})["a"].numpy()
        for r in tf.data.TFRecordDataset(str(path)).take(5)
    ]
    assert parsed == list(range(5))
    parts = read_in_parts(path, 30_000)
    assert parts.rdd.getNumPartitions() > 10 and rows(parts) == list(range(20_000))
