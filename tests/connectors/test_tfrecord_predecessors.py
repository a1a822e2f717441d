"""What users of the older TFRecord connectors stumbled over, each as a test that it is otherwise here."""

from __future__ import annotations

import decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tfrecord_files import example, feature, files, read, write


def save(df: Any, path: Path, **options: Any) -> list[tf.train.Example]:
    df.coalesce(1).write.format("tfrecord").options(**options).save(str(path))
    return [tf.train.Example.FromString(r.numpy()) for r in tf.data.TFRecordDataset(files(path))]


def test_1_decimals_keep_their_scale(spark: Any, tmp_path: Path) -> None:
    df = spark.sql("SELECT CAST('1.25' AS DECIMAL(10,2)) AS d, CAST('-1234567.5' AS DECIMAL(20,1)) AS e")
    (record,) = save(df, tmp_path / "x")
    assert record.features.feature["d"].float_list.value[:] == [1.25]
    back = read(spark, tmp_path / "x", "d decimal(10,2), e decimal(20,1)").first()
    assert tuple(back) == (decimal.Decimal("1.25"), decimal.Decimal("-1234567.5"))


@pytest.mark.parametrize("element", ["float", "double", "bigint", "string", "decimal(10,2)", "binary"])
def test_2_nulls_in_arrays_are_refused_by_name(spark: Any, tmp_path: Path, element: str) -> None:
    df = spark.range(1).selectExpr("array(CAST(1 AS string), null) AS c").selectExpr(f"CAST(c AS array<{element}>) c")
    with pytest.raises(Exception, match="column 'c': the array contains a null"):
        df.write.format("tfrecord").save(str(tmp_path / "x"))


def test_3_numbers_out_of_range_are_errors(spark: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "x", example(a=("int64", [2**40])))
    for narrow in ("int", "short", "byte", "boolean", "date"):
        with pytest.raises(Exception, match=f"the value 1099511627776 is out of range for {narrow}"):
            read(spark, path, f"a {narrow}").collect()
        with pytest.raises(Exception, match=f"the value 1099511627776 is out of range for {narrow}"):
            read(spark, path, f"a array<{narrow}>").collect()
    with pytest.raises(Exception, match="out of range for TensorFlow's floats"):
        save(spark.sql("SELECT 1e300D AS a"), tmp_path / "y")


def test_4_several_values_are_no_single_value(spark: Any, tmp_path: Path) -> None:
    for kind, values, column in (
        ("int64", [1, 2], "long"),
        ("float", [1.0, 2.0], "float"),
        ("bytes", [b"", b""], "binary"),
    ):
        path = write(tmp_path / "x", example(a=(kind, values)))
        with pytest.raises(Exception, match="feature 'a': expected a single value, found 2"):
            read(spark, path, f"a {column}").collect()


def test_5_empty_lists_unset_kinds_and_empty_feature_lists(spark: Any, tmp_path: Path) -> None:
    unset = tf.train.Example(features=tf.train.Features(feature={"a": tf.train.Feature()})).SerializeToString()
    empty = example(a=("float", []))
    path = write(tmp_path / "x", unset, empty)
    assert [r.a for r in read(spark, path, "a float").collect()] == [None, None]
    assert [r.a for r in read(spark, path, "a array<float>").collect()] == [None, []]
    lists = tf.train.FeatureLists(feature_list={"f": tf.train.FeatureList()})
    path = write(tmp_path / "y", tf.train.SequenceExample(feature_lists=lists).SerializeToString(), b"")
    rows = read(spark, path, "f array<array<long>>", recordType="SequenceExample").collect()
    assert [r.f for r in rows] == [[], None]


def test_6_a_file_cut_within_a_header_has_not_ended(spark: Any, tmp_path: Path) -> None:
    path = Path(write(tmp_path / "x", *[example(a=("int64", [1]))] * 2))
    whole = path.read_bytes()
    for kept in range(len(whole) // 2 + 1, len(whole)):
        path.write_bytes(whole[:kept])
        for action in (lambda df: df.collect(), lambda df: df.count()):
            if kept % 9 == 0:
                with pytest.raises(Exception, match="the file ends within"):
                    action(read(spark, path, "a long"))


def test_7_inference_looks_at_all_files_and_sorts_columns(spark: Any, tmp_path: Path) -> None:
    write(tmp_path / "0", *[])
    write(tmp_path / "1", example(z=("int64", [1]), a=("float", [1.0])))
    write(tmp_path / "2", example(m=("bytes", [b"x"]), a=("float", [1.0, 2.0])))
    df = read(spark, tmp_path)
    assert df.schema.simpleString() == "struct<a:array<float>,m:string,z:bigint>"
    assert sorted(map(str, df.collect())) == [
        "Row(a=[1.0, 2.0], m='x', z=None)",
        "Row(a=[1.0], m=None, z=1)",
    ]


def test_8_long_arrays_take_linear_time(spark: Any, tmp_path: Path) -> None:
    values = np.arange(2_000_000)
    record = example(i=("int64", values), f=("float", values), s=("bytes", [b"x"] * 300_000))
    path = write(tmp_path / "x", record)
    sums = "aggregate(i, 0L, (s, v) -> s + v)", "size(f)", "f[1999999]", "size(s)"
    row = read(spark, path).selectExpr(*sums).first()
    assert tuple(row) == (int(values.sum()), 2_000_000, 1_999_999.0, 300_000)


def test_9_large_binaries_make_the_round_trip(spark: Any, tmp_path: Path) -> None:
    blob = np.random.default_rng(1).bytes(30 << 20)
    path = write(tmp_path / "x", example(b=("bytes", [blob])))
    read(spark, path).write.format("tfrecord").save(str(tmp_path / "y"))
    (back,) = (tf.train.Example.FromString(r.numpy()) for r in tf.data.TFRecordDataset(files(tmp_path / "y")))
    assert back.features.feature["b"].bytes_list.value[0] == blob


def test_every_spelling_of_options_and_formats(spark: Any, tmp_path: Path) -> None:
    df = spark.range(3)
    df.write.format("tfrecords").option("RECORDTYPE", "example").option("Compression", "GZIP").save(str(tmp_path / "x"))
    assert files(tmp_path / "x", ".tfrecord.gz")
    assert read(spark, tmp_path / "x", recordtype="EXAMPLE").count() == 3
    with pytest.raises(Exception, match=r"(?i)codec"):
        df.write.format("tfrecord").option("compression", "squeeze").save(str(tmp_path / "y"))


def test_byte_arrays_are_not_taken_from_any_first_column(spark: Any, tmp_path: Path) -> None:
    for columns in (["id"], ["id", "binary(cast(id as string)) b"]):
        with pytest.raises(Exception, match="recordType=ByteArray needs exactly one column of type binary or string"):
            spark.range(1).selectExpr(*columns).write.format("tfrecord").option("recordType", "ByteArray").save(
                str(tmp_path / "x")
            )


def test_binary_is_inferred_as_binary(spark: Any, tmp_path: Path) -> None:
    png = b"\x89PNG\r\n\x1a\n\x00\xff"
    path = write(tmp_path / "x", example(i=("bytes", [b"text"])), example(i=("bytes", [png])))
    df = read(spark, path)
    assert df.schema.simpleString() == "struct<i:binary>"
    assert [bytes(r.i) for r in df.collect()] == [b"text", png]


def test_inference_works_on_compressed_files(spark: Any, tmp_path: Path) -> None:
    for kind in ("GZIP", "ZLIB"):
        path = write(tmp_path / kind, example(a=("int64", [1])), compression=kind)
        assert read(spark, path).first().a == 1


def test_inference_reads_a_bounded_number_of_records(spark: Any, tmp_path: Path) -> None:
    records = [example(a=("int64", [1]))] * 1000
    path = write(tmp_path / "x", *records, example(a=("int64", [1]), late=("int64", [1])))
    assert read(spark, path).columns == ["a"]
    assert read(spark, path, inferSchema="full").columns == ["a", "late"]


def test_nothing_leaks_from_row_to_row(spark: Any, tmp_path: Path) -> None:
    full = example(a=("int64", [1]), b=("bytes", [b"x"]), c=("float", [1.0, 2.0]))
    path = write(tmp_path / "x", full, b"", example(c=("float", [3.0])), full, example(b=("bytes", [b""])))
    rows = [tuple(r) for r in read(spark, path, "a long, b string, c array<float>").collect()]
    whole = (1, "x", [1.0, 2.0])
    assert rows == [whole, (None, None, None), (None, None, [3.0]), whole, (None, "", None)]


def test_rows_without_any_value_are_records(spark: Any, tmp_path: Path) -> None:
    records = save(spark.createDataFrame([(None,), (None,)], "a long"), tmp_path / "x")
    assert [len(r.features.feature) for r in records] == [0, 0]
    assert read(spark, tmp_path / "x", "a long").count() == 2


def test_the_order_of_features_may_change(spark: Any, tmp_path: Path) -> None:
    def entry(name: str, value: int) -> bytes:
        key, message = name.encode(), feature("int64", [value]).SerializeToString()
        body = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(message)]) + message
        return b"\x0a" + bytes([len(body)]) + body

    def record(*entries: bytes) -> bytes:
        body = b"".join(entries)
        return b"\x0a" + bytes([len(body)]) + body

    rng = np.random.default_rng(0)
    records, expected = [], []
    for _ in range(300):
        names = [f"feature_with_a_long_name_{k}" for k in rng.permutation(6)[:3]]
        chosen = dict(zip(names, map(int, rng.integers(99, size=3)), strict=True))
        records.append(record(*[entry(k, v) for k, v in chosen.items()]))
        expected.append([chosen.get(f"feature_with_a_long_name_{k}") for k in (0, 2, 5)])
    twice = record(entry("feature_with_a_long_name_0", 1), entry("feature_with_a_long_name_0", 2))
    path = write(tmp_path / "x", *records, twice)
    schema = ", ".join(f"feature_with_a_long_name_{k} long" for k in (0, 2, 5))
    assert [list(r) for r in read(spark, path, schema).collect()] == [*expected, [2, None, None]]
