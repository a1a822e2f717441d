"""The TFRecord connector against TensorFlow's own writer, reader and parser."""

from __future__ import annotations

import datetime
import decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tfrecord_files import example, feature, files, read, write

SCHEMA = (
    "i long, n int, s short, b byte, t boolean, f float, d double, str string, bin binary, day date, at timestamp, "
    "m decimal(10,2), ai array<long>, af array<float>, astr array<string>"
)
ROWS = [
    (
        *(2**40, -5, 7, -3, True, 1.5, -2.25, "håt", b"\x00\xff\xfe", datetime.date(2024, 2, 29)),
        *(datetime.datetime(2024, 1, 2, 3, 4, 5, 6), decimal.Decimal("1.25"), [1, -(2**62)], [0.5, -1.0], ["a", ""]),
    ),
    (None,) * 15,
    (0, 0, 0, 0, False, 0.0, 0.0, "", b"", datetime.date(1970, 1, 1), None, decimal.Decimal("-0.07"), [], [], []),
]


def test_every_type_comes_back_as_it_was_written(spark: Any, tmp_path: Path) -> None:
    df = spark.createDataFrame(ROWS, SCHEMA).coalesce(1)
    df.write.format("tfrecord").save(str(tmp_path / "x"))
    assert [tuple(r) for r in read(spark, tmp_path / "x", SCHEMA).collect()] == [tuple(r) for r in df.collect()]


def test_tensorflow_parses_what_spark_writes(spark: Any, tmp_path: Path) -> None:
    spark.createDataFrame(ROWS[:1], SCHEMA).write.format("tfrecord").save(str(tmp_path / "x"))
    records = list(tf.data.TFRecordDataset(files(tmp_path / "x")))
    parsed = tf.io.parse_single_example(
        records[0],
        {
            "i": tf.io.FixedLenFeature([], tf.int64),
            "t": tf.io.FixedLenFeature([], tf.int64),
            "f": tf.io.FixedLenFeature([], tf.float32),
            "m": tf.io.FixedLenFeature([], tf.float32),
            "bin": tf.io.FixedLenFeature([], tf.string),
            "af": tf.io.FixedLenFeature([2], tf.float32),
            "astr": tf.io.VarLenFeature(tf.string),
        },
    )
    assert len(records) == 1
    assert parsed["i"].numpy() == 2**40 and parsed["t"].numpy() == 1
    assert parsed["f"].numpy() == 1.5 and parsed["m"].numpy() == 1.25
    assert parsed["bin"].numpy() == b"\x00\xff\xfe"
    np.testing.assert_array_equal(parsed["af"], [0.5, -1.0])
    assert tf.sparse.to_dense(parsed["astr"]).numpy().tolist() == [b"a", b""]


@pytest.mark.parametrize("compression", ["", "GZIP", "ZLIB"])
def test_spark_reads_what_tensorflow_writes(spark: Any, tmp_path: Path, compression: str) -> None:
    records = [example(a=("int64", [i]), x=("float", [i / 2, 1.0]), s=("bytes", [b"s%d" % i])) for i in range(5000)]
    path = write(tmp_path / "x.tfrecord", *records, compression=compression)
    df = read(spark, path)
    assert df.schema.simpleString() == "struct<a:bigint,s:string,x:array<float>>"
    assert [tuple(r) for r in df.orderBy("a").collect()] == [(i, f"s{i}", [i / 2, 1.0]) for i in range(5000)]
    assert df.count() == 5000
    assert df.selectExpr("sum(a)").first()[0] == sum(range(5000))


def test_inference_joins_what_files_and_records_hold(spark: Any, tmp_path: Path) -> None:
    write(tmp_path / "1", example(a=("int64", [1]), n=("int64", [1]), v=("float", [1.0]), t=("bytes", [b"x"])))
    write(tmp_path / "2", example(a=("int64", [2]), n=("float", [1.5]), v=("float", []), u=("bytes", [b"\xff"])))
    df = read(spark, tmp_path)
    assert df.schema.simpleString() == "struct<a:bigint,n:double,t:string,u:binary,v:array<float>>"
    assert sorted(tuple(r) for r in df.select("a", "n", "v").collect()) == [(1, 1.0, [1.0]), (2, 1.5, [])]
    write(tmp_path / "3", example(a=("bytes", [b"1"])))
    with pytest.raises(Exception, match="Feature 'a' is a BytesList in some records and a list of numbers in others"):
        read(spark, tmp_path)


def test_many_files_are_inferred_in_parallel(spark: Any, tmp_path: Path) -> None:
    for i in range(12):
        write(tmp_path / f"{i:02}", example(**{f"c{i:02}": ("int64", [i])}))
    assert read(spark, tmp_path).columns == [f"c{i:02}" for i in range(12)]


@pytest.mark.parametrize(
    ("schema", "kind", "values", "message"),
    [
        ("a int", "int64", [2**40], "the value 1099511627776 is out of range for int"),
        ("a long", "int64", [1, 2], "expected a single value, found 2"),
        ("a long", "float", [1.0], "expected an Int64List, found a FloatList"),
        ("a array<string>", "int64", [1], "expected a BytesList, found an Int64List"),
        ("a boolean", "int64", [2], "the value 2 is out of range for boolean"),
    ],
)
def test_a_record_that_disagrees_is_named(
    spark: Any, tmp_path: Path, schema: str, kind: str, values: list[Any], message: str
) -> None:
    fitting = example(b=("int64", [1]))
    path = write(tmp_path / "x", fitting, example(a=(kind, values)))
    with pytest.raises(Exception, match=message) as raised:
        read(spark, path, schema).collect()
    assert f"x, record at offset {len(fitting) + 16}: feature 'a'" in str(raised.value)


def test_nulls_and_empty_lists(spark: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "x", example(a=("int64", []), b=("int64", [])), example(c=("int64", [1])), b"")
    rows = read(spark, path, "a long, b array<long>").collect()
    assert [tuple(r) for r in rows] == [(None, []), (None, None), (None, None)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-3], "the file ends within a record of"),
        (lambda b: b[:5], "the file ends within the header"),
        (lambda b: b[:20] + bytes([b[20] ^ 1]) + b[21:], "the data does not match its checksum"),
        (lambda b: bytes([b[0] ^ 1]) + b[1:], "this is not a TFRecord file"),
    ],
)
def test_damage_is_found(spark: Any, tmp_path: Path, damage: Any, message: str) -> None:
    path = Path(write(tmp_path / "x", example(a=("int64", [1]))))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Exception, match=message):
        read(spark, path, "a long").collect()


def test_good_rows_before_the_damage_are_kept_where_corrupt_files_are_ignored(spark: Any, tmp_path: Path) -> None:
    path = Path(write(tmp_path / "x", *[example(a=("int64", [i])) for i in range(10)]))
    path.write_bytes(path.read_bytes()[:-1])
    df = read(spark, path, "a long", ignoreCorruptFiles="true")
    assert [r.a for r in df.collect()] == list(range(9))
    unchecked = Path(write(tmp_path / "y", example(a=("int64", [1]))))
    body = bytearray(unchecked.read_bytes())
    body[-1] ^= 1
    unchecked.write_bytes(bytes(body))
    assert read(spark, unchecked, "a long", verifyChecksum="false").first().a == 1


def test_partitions_pruning_metadata_and_counting(spark: Any, tmp_path: Path) -> None:
    df = spark.range(100).selectExpr("id", "id % 3 as p", "array(float(id)) as x")
    df.write.format("tfrecords").partitionBy("p").save(str(tmp_path / "x"))
    assert sorted(d.name for d in (tmp_path / "x").glob("p=*")) == ["p=0", "p=1", "p=2"]
    back = read(spark, tmp_path / "x")
    assert back.count() == 100
    assert back.where("p = 1").count() == 33
    assert sorted(tuple(r) for r in back.select("p", "id").collect()) == sorted((i % 3, i) for i in range(100))
    assert back.selectExpr("_metadata.file_name as n", "p").where("n like '%.tfrecord'").count() == 100


def test_many_columns_are_read_without_code_generation(spark: Any, tmp_path: Path) -> None:
    df = spark.range(50).selectExpr(*[f"id + {i} as c{i}" for i in range(150)])
    df.write.format("tfrecord").save(str(tmp_path / "x"))
    back = read(spark, tmp_path / "x")
    assert back.selectExpr("sum(c0)", "sum(c149)").first()[:] == (1225, 1225 + 149 * 50)
    assert sorted(back.select(*df.columns).collect()) == sorted(df.collect())


def test_save_modes_and_compression(spark: Any, tmp_path: Path) -> None:
    df = spark.range(10).coalesce(1)
    target = str(tmp_path / "x")
    df.write.format("tfrecord").option("compression", "gzip").save(target)
    with pytest.raises(Exception, match="already exists"):
        df.write.format("tfrecord").save(target)
    df.write.format("tfrecord").mode("ignore").save(target)
    df.write.format("tfrecord").mode("append").option("codec", "org.apache.hadoop.io.compress.DeflateCodec").save(
        target
    )
    assert sorted(r.id for r in read(spark, target).collect()) == sorted([*range(10)] * 2)
    assert len(list(tf.data.TFRecordDataset(files(tmp_path, ".gz"), compression_type="GZIP"))) == 10
    assert len(list(tf.data.TFRecordDataset(files(tmp_path, ".deflate"), compression_type="ZLIB"))) == 10
    df.write.format("tfrecord").mode("overwrite").save(target)
    assert read(spark, target).count() == 10 and len(files(tmp_path)) == 1


def test_what_cannot_be_written_is_refused_before_any_task(spark: Any, tmp_path: Path) -> None:
    for column in ("named_struct('a', 1)", "map('a', 1)", "array(named_struct('a', 1))"):
        with pytest.raises(Exception, match="UNSUPPORTED_DATA_TYPE"):
            spark.range(1).selectExpr(f"{column} as c").write.format("tfrecord").save(str(tmp_path / "x"))
    with pytest.raises(Exception, match="recordType=Example cannot hold column 'c' of type array<array<int>>"):
        spark.range(1).selectExpr("array(array(1)) as c").write.format("tfrecord").save(str(tmp_path / "x"))
    with pytest.raises(Exception, match="column 'c': the array contains a null"):
        spark.range(1).selectExpr("array(1.5f, null) as c").write.format("tfrecord").save(str(tmp_path / "y"))


def test_sequence_examples(spark: Any, tmp_path: Path) -> None:
    lists = {
        "frames": tf.train.FeatureList(feature=[feature("float", [1.0, 2.0]), feature("float", [])]),
        "words": tf.train.FeatureList(feature=[feature("bytes", [b"a"])]),
    }
    message = tf.train.SequenceExample(
        context=tf.train.Features(feature={"id": feature("int64", [7])}),
        feature_lists=tf.train.FeatureLists(feature_list=lists),
    )
    path = write(tmp_path / "x", message.SerializeToString())
    df = read(spark, path, recordType="sequenceexample")
    assert df.schema.simpleString() == "struct<frames:array<array<float>>,id:bigint,words:array<array<string>>>"
    assert df.select("id", "frames", "words").first()[:] == (7, [[1.0, 2.0], []], [["a"]])
    df.write.format("tfrecord").option("recordType", "SequenceExample").save(str(tmp_path / "y"))
    written = tf.train.SequenceExample.FromString(next(iter(tf.data.TFRecordDataset(files(tmp_path / "y")))).numpy())
    assert written == message


def test_byte_arrays(spark: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "x", b"one", b"", b"\xff")
    df = read(spark, path, recordType="ByteArray")
    assert [bytes(r[0]) for r in df.collect()] == [b"one", b"", b"\xff"] and df.columns == ["byteArray"]
    df.write.format("tfrecord").option("recordType", "ByteArray").save(str(tmp_path / "y"))
    assert sorted(t.numpy() for t in tf.data.TFRecordDataset(files(tmp_path / "y"))) == [b"", b"one", b"\xff"]
    with pytest.raises(Exception, match="needs exactly one column"):
        two = spark.range(1).selectExpr("binary('a') as a", "binary('b') as b")
        two.write.format("tfrecord").option("recordType", "ByteArray").save(str(tmp_path / "z"))


def test_wrong_options_are_refused(spark: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "x", b"")
    for option, message in {
        "recordType": "recordType must be Example",
        "verifyChecksum": "verifyChecksum must be true or false",
        "maxRecordBytes": "maxRecordBytes must be a number",
        "inferSchema": "inferSchema must be one of sample, full, none",
    }.items():
        with pytest.raises(Exception, match=message):
            read(spark, path, "a long", **{option: "maybe"}).collect()
    with pytest.raises(Exception, match="has 1000 bytes; the limit is 100"):
        read(spark, write(tmp_path / "y", b"x" * 1000), "a long", maxRecordBytes=100).collect()


def test_short_values_of_every_length(spark: Any, tmp_path: Path) -> None:
    values = [bytes(range(1, n + 1)) for n in range(140)]
    path = write(tmp_path / "x", *[example(b=("bytes", [v]), c=("bytes", [v[::-1]])) for v in values])
    df = read(spark, path, "b binary, c binary")
    assert [(bytes(r.b), bytes(r.c)) for r in df.collect()] == [(v, v[::-1]) for v in values]
    # Rows are compared by their bytes, the padding after values included.
    same = spark.createDataFrame([(v, v[::-1]) for v in values], "b binary, c binary")
    assert df.union(df).distinct().count() == 140 and df.exceptAll(same).count() == 0
