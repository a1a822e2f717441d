"""`to_example` and `from_example`: in the JVM, in SQL, and by Arrow where there is no JVM."""

from __future__ import annotations

import datetime
import decimal
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tensorflow as tf
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType
from tfrecord_files import example, read

from tfspark.errors import ConfigurationError
from tfspark.functions import from_example, to_example
from tfspark.records.columns import decoded, encoded
from tfspark.records.errors import MalformedMessage
from tfspark.records.example import RecordType

PROGRAM = Path(__file__).parents[1] / "programs" / "connect_functions.py"
SCHEMA = (
    "i long, n int, s short, b byte, t boolean, f float, d double, str string, bin binary, day date, at timestamp_ntz, "
    "m decimal(10,2), ai array<long>, af array<float>, astr array<string>, adec array<decimal(5,1)>"
)
ROWS: list[Any] = [
    (
        *(2**40, -5, 7, -3, True, 1.5, -2.25, "håt", b"\x00\xff\xfe", datetime.date(2024, 2, 29)),
        *(datetime.datetime(2024, 1, 2, 3, 4, 5, 6), decimal.Decimal("1.25"), [1, -(2**62)], [0.5, -1.0], ["a", ""]),
        [decimal.Decimal("-7.5")],
    ),
    (None,) * 16,
    (
        *(0, 0, 0, 0, False, 0.0, 0.0, "", b"", datetime.date(1970, 1, 1)),
        None,
        decimal.Decimal("-0.07"),
        [],
        [],
        [],
        [],
    ),
]
LISTS = "id long, frames array<array<float>>, words array<array<string>>"
LIST_ROWS: list[Any] = [(7, [[1.0, 2.0], []], [["a"], ["", "b"]]), (None, None, []), (8, [], None)]
SEQUENCE = {"recordType": "SequenceExample"}


def by_arrow(df: Any, schema: str, record_type: RecordType) -> list[bytes]:
    arrow = df.toArrow()
    return encoded(arrow.to_struct_array().combine_chunks(), record_type).to_pylist()


def back_by_arrow(records: list[bytes | None], schema: str, record_type: RecordType, **options: Any) -> list[Any]:
    kind = to_arrow_schema(StructType.fromDDL(schema))
    how: dict[str, Any] = {"tolerant": False, "case_sensitive": False, "corrupt": "_corrupt_record"} | options
    found = decoded(pa.array(records, pa.binary()), kind, record_type, **how).to_pylist()
    return [None if r is None else tuple(r.values()) for r in found]


@pytest.mark.parametrize(
    ("schema", "rows", "options"),
    [(SCHEMA, ROWS, None), (LISTS, LIST_ROWS, SEQUENCE)],
    ids=["Example", "SequenceExample"],
)
def test_records_are_those_of_files_in_the_jvm_in_sql_and_by_arrow(
    spark: Any, tmp_path: Path, schema: str, rows: list[Any], options: dict[str, str] | None
) -> None:
    df = spark.createDataFrame(rows, schema).coalesce(1)
    df.write.format("tfrecord").options(**(options or {})).save(str(tmp_path / "x"))
    written = [bytes(r[0]) for r in read(spark, tmp_path / "x", recordType="ByteArray").collect()]
    record_type = RecordType.SEQUENCE_EXAMPLE if options else RecordType.EXAMPLE
    made = df.select(to_example(F.struct("*"), options).alias("value"))
    assert [bytes(r.value) for r in made.collect()] == written
    assert by_arrow(df, schema, record_type) == written
    df.createOrReplaceTempView("rows_of_test")
    more = ", map('recordType', 'sequenceexample')" if options else ""
    in_sql = spark.sql(f"SELECT to_example(struct(*){more}) AS value FROM rows_of_test")
    assert [bytes(r.value) for r in in_sql.collect()] == written

    expected = [tuple(r) for r in df.collect()]
    assert [
        tuple(r) for r in made.select(from_example("value", schema, options).alias("r")).select("r.*").collect()
    ] == expected
    typed = made.select(from_example(F.col("value"), df.schema, options).alias("r"))
    assert [tuple(r.r) for r in typed.collect()] == expected
    again = in_sql.selectExpr(f"from_example(value, '{schema}'{more}) AS r").select("r.*")
    assert [tuple(r) for r in again.collect()] == expected and again.schema == df.schema
    assert back_by_arrow(written, schema, record_type) == expected


def test_tensorflow_reads_and_writes_them(spark: Any) -> None:
    df = spark.range(3).selectExpr("to_example(struct(id, array(float(id)) AS x)) AS value")
    messages = [tf.train.Example.FromString(bytes(r.value)) for r in df.collect()]
    assert [m.features.feature["id"].int64_list.value[0] for m in messages] == [0, 1, 2]
    records = [example(ID=("int64", [n]), s=("bytes", [b"t"])) for n in range(2)]
    kafka = spark.createDataFrame([(bytearray(r),) for r in records] + [(None,)], "value binary")
    rows = kafka.select(from_example("value", "id long, s string, missing float").alias("r")).collect()
    assert [r.r and tuple(r.r) for r in rows] == [(0, "t", None), (1, "t", None), None]
    assert back_by_arrow([*records, None], "id long, s string, missing float", RecordType.EXAMPLE) == [
        (0, "t", None),
        (1, "t", None),
        None,
    ]


CASES = [
    ("a long", {"a": ("float", [1.5])}, "feature 'a': expected an Int64List, found a FloatList"),
    ("a long", {"a": ("int64", [1, 2])}, "feature 'a': expected a single value, found 2"),
    ("a int", {"a": ("int64", [2**40])}, "feature 'a': the value 1099511627776 is out of range for int"),
    ("a array<string>", {"a": ("int64", [1])}, "feature 'a': expected a BytesList, found an Int64List"),
    ("a boolean", {"a": ("int64", [2])}, "feature 'a': the value 2 is out of range for bool"),
    ("a decimal(3,1)", {"a": ("float", [1000.0])}, "out of range for decimal"),
    ("a long", {"A": ("int64", [1]), "a": ("int64", [2])}, "the record also has 'A', which differs only in case"),
]


def test_what_does_not_fit(spark: Any) -> None:
    for schema, features, message in CASES:
        record = example(**features)
        df = spark.createDataFrame([(bytearray(record),)], "value binary")
        with pytest.raises(Exception, match="from_example: feature") as raised:
            df.select(from_example("value", schema)).collect()
        assert message in str(raised.value)
        with pytest.raises(MalformedMessage, match="from_example: feature") as refused:
            back_by_arrow([record], schema, RecordType.EXAMPLE)
        assert message in str(refused.value)
        tolerant = f"{schema}, _corrupt_record binary"
        row = df.select(from_example("value", tolerant, {"mode": "PERMISSIVE"}).alias("r")).first().r
        assert row[0] is None and bytes(row[1]) == record
        assert back_by_arrow([record], tolerant, RecordType.EXAMPLE, tolerant=True) == [(None, record)]
    broken = spark.createDataFrame([(bytearray(b"\xff\xff"),)], "value binary")
    for options in ({}, SEQUENCE):
        with pytest.raises(Exception, match="from_example: "):
            broken.select(from_example("value", "a long", options)).collect()
    with pytest.raises(MalformedMessage):
        back_by_arrow([b"\xff\xff"], "a long", RecordType.EXAMPLE)


def test_what_cannot_be_written(spark: Any) -> None:
    nulls = spark.sql("SELECT array(1.5f, CAST(null AS float)) AS c")
    with pytest.raises(Exception, match="to_example: column 'c': the array contains a null"):
        nulls.select(to_example(F.struct("c"))).collect()
    with pytest.raises(MalformedMessage, match="column 'c': the array contains a null"):
        by_arrow(nulls, "c array<float>", RecordType.EXAMPLE)
    with pytest.raises(Exception, match="out of range for TensorFlow's floats"):
        spark.sql("SELECT to_example(struct(1e300D AS d))").collect()
    with pytest.raises(MalformedMessage, match="out of range for TensorFlow's floats"):
        by_arrow(spark.sql("SELECT 1e300D AS d"), "d double", RecordType.EXAMPLE)
    nested = spark.sql("SELECT array(array(1)) AS c")
    with pytest.raises(Exception, match="recordType=Example cannot hold column 'c'"):
        nested.select(to_example(F.struct("c")))
    with pytest.raises(MalformedMessage, match="recordType=Example cannot hold column 'c'"):
        by_arrow(nested, "", RecordType.EXAMPLE)
    with pytest.raises(Exception, match="to_example needs a struct, got bigint"):
        spark.range(1).select(to_example("id"))
    with pytest.raises(Exception, match="from_example needs a binary column, got bigint"):
        spark.range(1).select(from_example("id", "a long"))
    with pytest.raises(Exception, match="from_example needs its schema as a literal"):
        spark.sql("SELECT from_example(binary('a'), string(id)) FROM range(1)")
    with pytest.raises(Exception, match="mode must be FAILFAST or PERMISSIVE"):
        spark.sql("SELECT from_example(binary('a'), 'a long', map('mode', 'DROPMALFORMED'))").collect()


def test_connect_sessions_have_the_format_and_the_functions(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(PROGRAM), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = json.loads(done.stdout.strip().splitlines()[-1])
    assert ".connect." in shown["kind"]
    assert shown["rows"] == [10, 10, 10]
    assert shown["example"] == [[0, [0.0, 0.5], "a"], [1, [], "a"]]
    assert shown["sequence"] == [[[[0]], 0], [[[1]], 1]]
    assert "from_example: feature 's': expected an Int64List, found a BytesList" in shown["fault"]
    assert "cannot hold column" in shown["nested"]


def test_options_are_checked_where_there_is_no_jvm() -> None:
    from tfspark.functions import _record_type

    assert _record_type({"recordtype": "sequenceEXAMPLE"}) is RecordType.SEQUENCE_EXAMPLE
    for given in ({"recordtype": "ByteArray"}, {"mode": "DROPMALFORMED"}, {"vectors": "sparse"}):
        with pytest.raises(ConfigurationError):
            _record_type(given)
