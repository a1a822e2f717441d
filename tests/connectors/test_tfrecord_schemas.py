"""Schemas that do not fit the records, and records that are no tf.Example: said, never null without a word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tfrecord_files import example, feature, files, read, write


@contextmanager
def setting(spark: Any, name: str, value: str) -> Iterator[None]:
    before = spark.conf.get(name, None)
    spark.conf.set(name, value)
    try:
        yield
    finally:
        spark.conf.unset(name) if before is None else spark.conf.set(name, before)


@contextmanager
def warnings_of(spark: Any) -> Iterator[list[str]]:
    """Collect what the connector's logger warns of."""
    jvm = spark._jvm
    name = "tfspark.tfrecord.TFRecordFileFormat"
    core = jvm.org.apache.logging.log4j.core
    writer = jvm.java.io.StringWriter()
    layout = core.layout.PatternLayout.newBuilder().withPattern("%p %m%n").build()
    appender = core.appender.WriterAppender.createAppender(layout, None, writer, f"test-{id(writer)}", False, True)
    appender.start()
    context = jvm.org.apache.logging.log4j.LogManager.getContext(False)
    logger = context.getLogger(name)
    level = logger.getLevel()
    said: list[str] = []
    core.config.Configurator.setLevel(name, jvm.org.apache.logging.log4j.Level.WARN)
    context.getLogger(name).addAppender(appender)
    try:
        yield said
    finally:
        context.getLogger(name).removeAppender(appender)
        core.config.Configurator.setLevel(name, level)
        said.extend(line for line in writer.toString().splitlines() if line)


def sequence(context: dict[str, Any], lists: dict[str, Any]) -> bytes:
    return tf.train.SequenceExample(
        context=tf.train.Features(feature=context),
        feature_lists=tf.train.FeatureLists(
            feature_list={n: tf.train.FeatureList(feature=f) for n, f in lists.items()}
        ),
    ).SerializeToString()


BOTH = sequence({"c": feature("int64", [7, 8])}, {"f": [feature("int64", [1, 2]), feature("int64", [])]})


# The column for malformed records.


def test_the_column_for_malformed_records_is_null_in_every_good_row(spark: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "x", example(a=("int64", [1])), b"", example(a=("int64", [3])))
    for mode in ("FAILFAST", "PERMISSIVE", "DROPMALFORMED"):
        df = read(spark, path, "_corrupt_record binary, a long", mode=mode)
        assert [tuple(r) for r in df.collect()] == [(None, 1), (None, None), (None, 3)]
        assert df.where("_corrupt_record is null").count() == 3
        assert df.select("_corrupt_record").where("_corrupt_record is null").count() == 3
    for mode in ("FAILFAST", "PERMISSIVE"):
        df = read(spark, path, "_Corrupt_Record binary, a long", mode=mode)
        assert df.where("_corrupt_record is null").count() == 3


def test_a_feature_of_its_name_makes_no_file_unreadable(spark: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "x", example(a=("int64", [1]), _corrupt_record=("bytes", [b"text"])))
    for mode in ("FAILFAST", "PERMISSIVE", "DROPMALFORMED"):
        with warnings_of(spark) as said:
            df = read(spark, path, mode=mode)
        assert [tuple(r) for r in df.collect()] == [(1,)]
        assert len(said) == 1 and "set columnNameOfCorruptRecord to another name" in said[0]
        both = read(spark, path, mode=mode, columnNameOfCorruptRecord="bad")
        assert [tuple(r) for r in both.collect()] == [("text", 1)]
    with pytest.raises(Exception, match="set columnNameOfCorruptRecord to another name"):
        read(spark, path, "a long, _corrupt_record string").collect()


# Nesting and vectors.


@pytest.mark.parametrize(
    ("schema", "record_type", "message"),
    [
        ("f array<bigint>", "SequenceExample", "feature 'f': expected a feature of the context, found a feature list"),
        ("f bigint", "SequenceExample", "Hint: read the column as array<array<...>>"),
        ("c array<array<bigint>>", "SequenceExample", "feature list 'c': expected a feature list, found a feature of"),
        ("f array<bigint>", "Example", "Hint: read it with recordType=SequenceExample"),
        ("F array<bigint>", "Example", "Hint: read it with recordType=SequenceExample"),
    ],
)
def test_nesting_that_does_not_fit(spark: Any, tmp_path: Path, schema: str, record_type: str, message: str) -> None:
    path = write(tmp_path / "x", BOTH)
    with pytest.raises(Exception, match=r"x, record at offset 0: feature") as raised:
        read(spark, path, schema, recordType=record_type).collect()
    assert message in str(raised.value)
    row = read(spark, path, f"{schema}, _corrupt_record binary", recordType=record_type, mode="PERMISSIVE").first()
    assert row[0] is None and bytes(row[1]) == BOTH
    assert read(spark, path, schema, recordType=record_type, mode="DROPMALFORMED").count() == 0


def test_nesting_that_fits_and_columns_that_are_missing(spark: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "x", BOTH, sequence({}, {}), sequence({"f": feature("int64", [1])}, {"f": []}))
    df = read(spark, path, "c array<bigint>, f array<array<bigint>>, n long", recordType="SequenceExample")
    assert [tuple(r) for r in df.collect()] == [([7, 8], [[1, 2], []], None), (None, None, None), (None, [], None)]
    # A name that is both a feature of the context and a feature list is either.
    assert read(spark, path, "f bigint", recordType="SequenceExample", mode="DROPMALFORMED").collect()[-1].f == 1


def test_vectors_that_were_written_in_the_other_way(spark: Any, tmp_path: Path) -> None:
    from pyspark.ml.linalg import Vectors

    df = spark.createDataFrame([(Vectors.sparse(9, [3], [1.5]), 1), (None, 2)], ["v", "i"]).coalesce(1)
    for way, other in (("sparse", "dense"), ("dense", "sparse")):
        df.write.format("tfrecord").option("vectors", way).save(str(tmp_path / way))
        reader = spark.read.format("tfrecord").schema(df.schema)
        assert [r.i for r in reader.option("vectors", way).load(str(tmp_path / way)).collect()] == [1, 2]
        with pytest.raises(Exception, match=f"'v': the record has a .*Hint: read it with vectors={way}"):
            reader.option("vectors", other).load(str(tmp_path / way)).collect()
    write(tmp_path / "part", example(**{"v/values": ("float", [1.0]), "v/size": ("int64", [9])}))
    with pytest.raises(Exception, match="sparse vector 'v': its indices, values or size are missing"):
        spark.read.format("tfrecord").schema(df.schema).option("vectors", "sparse").load(
            str(tmp_path / "part")
        ).collect()


# The case of letters.


def test_names_are_resolved_as_the_session_says(spark: Any, tmp_path: Path) -> None:
    records = [
        example(ID=("int64", [1]), Name=("bytes", [b"a"]), **{"Straße/Ü": ("float", [0.5])}),
        example(id=("int64", [2]), NAME=("bytes", [b"b"]), **{"STRAßE/ü": ("float", [1.5])}),
        # Not in the usual encoding: a name that comes twice.
        example(iD=("int64", [3])) + example(iD=("int64", [4]), name=("bytes", [b"c"])),
    ]
    path = write(tmp_path / "x", *records)
    schema = "Id long, nAME string, `straße/ü` float"
    expected = [(1, "a", 0.5), (2, "b", 1.5), (4, "c", None)]
    for record_type in ("Example", "SequenceExample"):
        df = read(spark, path, schema, recordType=record_type)
        assert [tuple(r) for r in df.collect()] == expected
        assert [r.ID for r in df.select("ID").collect()] == [1, 2, 4]
    spark.sql(f"CREATE TABLE cased (iD BIGINT, naMe STRING, `straße/ü` FLOAT) USING tfrecord LOCATION '{path}'")
    try:
        assert [tuple(r) for r in spark.sql("SELECT * FROM cased").collect()] == expected
    finally:
        spark.sql("DROP TABLE cased")
    lists = write(tmp_path / "y", sequence({"C": feature("int64", [1])}, {"Frames": [feature("float", [0.5])]}))
    row = read(spark, lists, "c long, frames array<array<float>>", recordType="SequenceExample").first()
    assert tuple(row) == (1, [[0.5]])


def test_an_ambiguity_is_an_error(spark: Any, tmp_path: Path) -> None:
    both = example(**{"Image/x": ("int64", [1]), "image/x": ("int64", [2])})
    path = write(tmp_path / "x", both)
    for name, other in (("image/x", "Image/x"), ("Image/x", "image/x"), ("IMAGE/X", "mage/x")):
        with pytest.raises(
            Exception, match=rf"feature '{name}': the record also has '.?{other}'.* only in case.*Hint: set"
        ):
            read(spark, path, f"`{name}` long").collect()
        assert read(spark, path, f"`{name}` long", mode="DROPMALFORMED").count() == 0
    with pytest.raises(Exception, match=r"COLUMN_ALREADY_EXISTS.*spark.sql.caseSensitive=true keeps both"):
        read(spark, path)
    with setting(spark, "spark.sql.caseSensitive", "true"):
        assert read(spark, path).first().asDict() == {"Image/x": 1, "image/x": 2}
        assert read(spark, path, "`image/x` long").first()[0] == 2


def test_a_near_miss_is_logged_once_where_case_counts(spark: Any, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for n in range(3):
        write(tmp_path / "x" / f"{n}", *[example(Label=("int64", [i]), other=("int64", [i])) for i in range(5)])
    with setting(spark, "spark.sql.caseSensitive", "true"), warnings_of(spark) as said:
        assert [r.label for r in read(spark, tmp_path / "x", "label long").collect()] == [None] * 15
        assert read(spark, tmp_path / "x", "Label long, missing long").where("Label is null").count() == 0
    assert len(said) == 1 and "column 'label' is null: the records have 'Label' instead" in said[0]
    twice = write(tmp_path / "y", example(Label=("int64", [1])), example(label=("int64", [2])))
    with setting(spark, "spark.sql.caseSensitive", "true"), warnings_of(spark) as said:
        assert [r.label for r in read(spark, twice, "label long").collect()] == [None, 2]
    assert said == []


# Inference.


def test_inference_knows_the_options_of_the_reader(spark: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "x", example(a=("int64", [1])))
    # A file system that only the options describe.
    options = {"fs.viewfs.mounttable.here.link./data": f"file://{tmp_path}", "fs.viewfs.impl.disable.cache": "true"}
    df = spark.read.format("tfrecord").options(**options).load("viewfs://here/data/x")
    assert df.schema.simpleString() == "struct<a:bigint>" and df.first().a == 1
    assert read(spark, path).first().a == 1


def test_inference_passes_over_what_the_reader_does(spark: Any, tmp_path: Path) -> None:
    for n in range(6):
        write(tmp_path / f"{n}", example(**{f"c{n}": ("int64", [n])}), example(late=("int64", [1])))
    damaged = tmp_path / "3"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    zipped = Path(write(tmp_path / "7.gz", example(z=("int64", [1])), compression="GZIP"))
    zipped.write_bytes(zipped.read_bytes()[:-9])
    for place, name in ((damaged, "/3, record at offset"), (zipped, "/7.gz, record at offset"), (tmp_path, "offset")):
        with pytest.raises(Exception, match=name):
            read(spark, place)
    for mode in ("sample", "full"):
        found = read(spark, tmp_path, ignoreCorruptFiles="true", inferSchema=mode).columns
        assert found[:6] == [f"c{n}" for n in range(6)] and "late" in found
    with setting(spark, "spark.sql.files.ignoreCorruptFiles", "true"):
        assert read(spark, damaged).columns == ["c3"]


def test_full_inference_packs_small_files_and_splits_large_ones(spark: Any, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    for n in range(40):
        write(tmp_path / "small" / f"{n:02}", example(a=("int64", [n]), **{f"c{n:02}": ("int64", [1])}))
    large = write(tmp_path / "large", *[example(a=("int64", [n]), b=("bytes", [b"x" * 5000])) for n in range(6000)])

    def tasks(path: Any) -> int:
        spark.sparkContext.setJobGroup(str(path), "")
        columns = len(read(spark, path, inferSchema="full").columns)
        tracker = spark.sparkContext.statusTracker()
        (job,) = tracker.getJobIdsForGroup(str(path))
        spark.sparkContext.setJobGroup("", "")
        assert columns == (41 if path == tmp_path / "small" else 2)
        return sum(tracker.getStageInfo(s).numTasks for s in tracker.getJobInfo(job).stageIds)

    assert 1 < tasks(tmp_path / "small") <= 8
    with setting(spark, "spark.sql.files.maxPartitionBytes", "8m"):
        assert tasks(large) == 4


def test_a_single_value_that_is_several_later_has_a_hint(spark: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "x", *[example(a=("int64", [1]))] * 1000, example(a=("int64", [1, 2])))
    with pytest.raises(Exception, match=r"expected a single value, found 2\. Hint: .*inferSchema=full"):
        read(spark, path).collect()
    assert read(spark, path, inferSchema="full").count() == 1001


# Records that are no tf.Example.


def event(step: int) -> bytes:
    from tensorflow.core.util.event_pb2 import Event

    return Event(wall_time=1.5, step=step, file_version="brain.Event:2").SerializeToString()


def with_context(n: int) -> bytes:
    def delimited(number: int, body: bytes) -> bytes:
        return bytes([number << 3 | 2, len(body)]) + body

    one = example(score=("float", [0.5 + n]), label=("int64", [n]))
    return delimited(1, one) + delimited(2, one)


VARIANT = b"\x0a\x13tensorflow::Dataset\x12\x05abcde\x1a\x03xyz"
KINDS: dict[str, list[bytes]] = {
    "Event": [event(n) for n in range(3)],
    "ExampleListWithContext": [with_context(n) for n in range(3)],
    "Variant": [VARIANT] * 3,
    "SequenceExample": [sequence({}, {"f": [feature("int64", [n])]}) for n in range(3)],
    "odd names": [b"\x0a\x0c\x0a\x0a\x0a\x01\xff\x12\x05\x1a\x03\x0a\x01\x07"] * 3,
}


@pytest.mark.parametrize("kind", KINDS)
def test_records_that_are_no_example(spark: Any, tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "x", *KINDS[kind])
    with pytest.raises(Exception, match="none of 3 records has a feature; try recordType=SequenceExample or ByteArray"):
        read(spark, path)
    assert read(spark, path, recordType="ByteArray").count() == 3
    if kind == "SequenceExample":
        assert read(spark, path, recordType="SequenceExample").columns == ["f"]
    else:
        with pytest.raises(Exception, match="none of 3 records has a feature; try recordType=ByteArray"):
            read(spark, path, recordType="SequenceExample")
    if kind == "Variant":
        with pytest.raises(Exception, match="x, record at offset 0: "):
            read(spark, path, "a long").collect()
    elif kind != "odd names":
        with pytest.raises(Exception, match="none of 3 records has a feature; try recordType=SequenceExample or Byte"):
            read(spark, path, "a long").collect()


def test_a_name_that_is_no_text_beside_others(spark: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "x", example(a=("int64", [1])), KINDS["odd names"][0])
    with pytest.raises(
        Exception, match=r"x, record at offset \d+: the name of a feature is not UTF-8.*recordType=Byte"
    ):
        read(spark, path)
    assert read(spark, path, mode="PERMISSIVE").columns == ["a"]


def test_empty_examples_are_rows_where_a_schema_is_given(spark: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "x", b"", b"\x0a\x00")
    assert [r.a for r in read(spark, path, "a long").collect()] == [None, None]
    with pytest.raises(Exception, match="none of 2 records has a feature"):
        read(spark, path)


# Hadoop's input format, and options of other connectors.


@pytest.mark.parametrize("mode", ["DROPMALFORMED", "PERMISSIVE", "FAILFAST"])
def test_the_hadoop_format_gives_no_record_that_misses_its_checksum(spark: Any, tmp_path: Path, mode: str) -> None:
    records = [example(a=("int64", [i])) for i in range(4)]
    path = Path(write(tmp_path / "x", *records))
    body = bytearray(path.read_bytes())
    size = len(records[0]) + 16
    for damaged in (0, 3):
        body[damaged * size + 14] ^= 1
    path.write_bytes(bytes(body))
    types = ["org.apache.hadoop.io.BytesWritable", "org.apache.hadoop.io.NullWritable"]
    options = {"tfspark.tfrecord.mode": mode}

    def keys() -> list[bytes]:
        sc = spark.sparkContext
        rdd = sc.newAPIHadoopFile(str(path), "tfspark.tfrecord.TFRecordInputFormat", *types, conf=options)
        return [bytes(k) for k, _ in rdd.collect()]

    if mode == "FAILFAST":
        with pytest.raises(Exception, match="x, record at offset 0: the data does not match its checksum"):
            keys()
    else:
        assert keys() == records[1:3]


def test_write_locality(spark: Any, tmp_path: Path) -> None:
    writer = spark.range(3).coalesce(1).write.format("tfrecord")
    writer.option("writeLocality", "distributed").save(str(tmp_path / "x"))
    assert len(files(tmp_path / "x")) == 1
    with pytest.raises(Exception, match="writeLocality=local is not supported"):
        writer.option("writeLocality", "local").save(str(tmp_path / "y"))
