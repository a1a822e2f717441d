"""The connector as a Spark data source: SQL, streaming, partitions, codecs, ML vectors, Hadoop's formats."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from pyspark.ml.linalg import Vectors
from tfrecord_files import example, files, read, write


def test_tables_and_queries_on_paths(spark: Any, tmp_path: Path) -> None:
    place = tmp_path / "t"
    spark.sql(f"CREATE TABLE t (id BIGINT, name STRING, p INT) USING tfrecord PARTITIONED BY (p) LOCATION '{place}'")
    try:
        spark.sql("INSERT INTO t VALUES (1, 'a', 7), (2, NULL, 8)")
        spark.sql("INSERT INTO t PARTITION (p = 8) SELECT 3, 'c'")
        assert [tuple(r) for r in spark.sql("SELECT * FROM t ORDER BY id").collect()] == [
            (1, "a", 7),
            (2, None, 8),
            (3, "c", 8),
        ]
        assert spark.sql(f"SELECT count(*) FROM tfrecord.`{place}` WHERE p = 8").first()[0] == 2
    finally:
        spark.sql("DROP TABLE t")
    made = tmp_path / "u"
    spark.sql(f"CREATE TABLE u USING tfrecord LOCATION '{made}' AS SELECT id, array(id, id + 1) AS pair FROM range(3)")
    try:
        assert spark.sql("SELECT sum(pair[1]) FROM u").first()[0] == 6
    finally:
        spark.sql("DROP TABLE u")


def test_streaming_reads_and_writes(spark: Any, tmp_path: Path) -> None:
    source, target, checkpoint = (str(tmp_path / n) for n in ("in", "out", "checkpoint"))

    def run_once() -> None:
        stream = spark.readStream.format("tfrecord").schema("id long, x array<float>").load(source)
        query = (
            stream.writeStream.format("tfrecord")
            .option("checkpointLocation", checkpoint)
            .option("path", target)
            .trigger(availableNow=True)
            .start()
        )
        assert query.awaitTermination(120)

    df = spark.range(10).selectExpr("id", "array(float(id)) as x")
    df.write.format("tfrecord").save(source)
    run_once()
    assert read(spark, target).count() == 10
    df.selectExpr("id + 10 as id", "x").write.format("tfrecord").mode("append").save(source)
    run_once()
    run_once()
    assert sorted(r.id for r in read(spark, target).collect()) == list(range(20))


def test_partitions_are_overwritten_statically_and_dynamically(spark: Any, tmp_path: Path) -> None:
    target = str(tmp_path / "x")
    df = spark.range(6).selectExpr("id", "id % 3 as p")
    df.write.format("tfrecord").partitionBy("p").save(target)
    one = spark.createDataFrame([(100, 1)], "id long, p long")
    one.write.format("tfrecord").partitionBy("p").mode("overwrite").option("partitionOverwriteMode", "dynamic").save(
        target
    )
    assert sorted(tuple(r) for r in read(spark, target).select("id", "p").collect()) == [
        (0, 0),
        (2, 2),
        (3, 0),
        (5, 2),
        (100, 1),
    ]
    one.write.format("tfrecord").partitionBy("p").mode("overwrite").save(target)
    assert [tuple(r) for r in read(spark, target).select("id", "p").collect()] == [(100, 1)]


def test_files_of_at_most_so_many_records(spark: Any, tmp_path: Path) -> None:
    df = spark.range(25).coalesce(1)
    df.write.format("tfrecord").option("maxRecordsPerFile", 10).save(str(tmp_path / "x"))
    sizes = [len(list(tf.data.TFRecordDataset(f))) for f in files(tmp_path / "x")]
    assert sorted(sizes) == [5, 10, 10]


def test_a_failed_write_leaves_nothing_visible(spark: Any, tmp_path: Path) -> None:
    target = tmp_path / "x"
    spark.range(5).write.format("tfrecord").save(str(target))
    bad = "if(id = 77, raise_error('boom'), 'x') as s"
    four_tasks = spark.range(100).repartition(4).selectExpr("id", bad)
    with pytest.raises(Exception, match="boom"):
        four_tasks.write.format("tfrecord").mode("append").save(str(target))
    assert read(spark, target).count() == 5
    # Spark ends a failed job before its other tasks have ended; one that commits meanwhile leaves a hidden file.
    # A job of one task leaves none.
    one_task = spark.range(100).coalesce(1).selectExpr("id", bad)
    with pytest.raises(Exception, match="boom"):
        one_task.write.format("tfrecord").option("maxRecordsPerFile", 20).mode("append").save(str(tmp_path / "y"))
    assert not [p for p in (tmp_path / "y").rglob("*") if p.is_file()]


def test_an_empty_dataframe_keeps_being_readable(spark: Any, tmp_path: Path) -> None:
    spark.range(0).write.format("tfrecord").save(str(tmp_path / "x"))
    assert read(spark, tmp_path / "x", "id long").count() == 0
    with pytest.raises(Exception, match="UNABLE_TO_INFER_SCHEMA"):
        read(spark, tmp_path / "x")


@pytest.mark.parametrize(
    ("codec", "end"),
    [
        ("gzip", ".gz"),
        ("zlib", ".deflate"),
        ("deflate", ".deflate"),
        ("bzip2", ".bz2"),
        ("lz4", ".lz4"),
        ("snappy", ".snappy"),
        ("zstd", ".zst"),
        ("org.apache.hadoop.io.compress.GzipCodec", ".gz"),
        ("none", ".tfrecord"),
    ],
)
def test_codecs(spark: Any, tmp_path: Path, codec: str, end: str) -> None:
    df = spark.range(3000).selectExpr("id", "repeat('tfrecord', 5) as s")
    df.coalesce(1).write.format("tfrecord").option("compression", codec).save(str(tmp_path / "x"))
    assert len(files(tmp_path / "x", end)) == 1
    back = read(spark, tmp_path / "x")
    assert back.schema.simpleString() == "struct<id:bigint,s:string>"
    assert back.selectExpr("sum(id)", "max(s)").first()[:] == (sum(range(3000)), "tfrecord" * 5)
    assert back.count() == 3000
    kind = {".gz": "GZIP", ".deflate": "ZLIB", ".tfrecord": ""}.get(end)
    if kind is not None:
        assert sum(1 for _ in tf.data.TFRecordDataset(files(tmp_path / "x", end), kind)) == 3000


def test_gzip_files_of_several_members_and_truncated_ones(spark: Any, tmp_path: Path) -> None:
    plain = Path(write(tmp_path / "x", *[example(a=("int64", [i])) for i in range(1000)])).read_bytes()
    members = gzip.compress(plain[:5000]) + gzip.compress(plain[5000:])
    for name in ("y.gz", "y"):
        (tmp_path / name).write_bytes(members)
        assert read(spark, tmp_path / name, "a long").count() == 1000
        (tmp_path / name).write_bytes(members[:-20])
        with pytest.raises(Exception, match=r"(?i)unexpected end|ends within"):
            read(spark, tmp_path / name, "a long").collect()


def test_choosing_files(spark: Any, tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    for i, name in enumerate(["a/1.tfrecord", "a/2.tfr", "a/_hidden", "a/deep/3.tfrecord"]):
        write(tmp_path / name, example(a=("int64", [i])))

    def found(*paths: str, **options: Any) -> list[int]:
        reader = spark.read.format("tfrecord").schema("a long").options(**options)
        return sorted(r.a for r in reader.load([str(tmp_path / p) for p in paths]).collect())

    assert found("a/*.tfr*") == [0, 1]
    assert found("a/1.tfrecord", "a/deep") == [0, 3]
    assert found("a", recursiveFileLookup="true") == [0, 1, 3]
    assert found("a", recursiveFileLookup="true", pathGlobFilter="*.tfrecord") == [0, 3]
    gone = spark.read.format("tfrecord").schema("a long").option("ignoreMissingFiles", "true")
    df = gone.load([str(tmp_path / "a/1.tfrecord"), str(tmp_path / "a/2.tfr")])
    (tmp_path / "a/2.tfr").unlink()
    assert [r.a for r in df.collect()] == [0]


def test_metadata_columns(spark: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "x.tfrecord", *[example(a=("int64", [i])) for i in range(3)])
    df = read(spark, path, "a long").selectExpr("a", "_metadata.file_path", "_metadata.file_size as size")
    assert [(r.a, r.size) for r in df.collect()] == [(i, Path(path).stat().st_size) for i in range(3)]
    assert df.first().file_path.endswith("/x.tfrecord")


def test_nothing_is_read_before_the_job_where_a_schema_is_given(spark: Any, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"this is no TFRecord file at all")
    df = read(spark, path, "a long")
    assert df.columns == ["a"]
    with pytest.raises(Exception, match="this is not a TFRecord file"):
        df.collect()
    with pytest.raises(Exception, match="this is not a TFRecord file"):
        read(spark, path)
    with pytest.raises(Exception, match="inferSchema=none needs a schema"):
        read(spark, path, inferSchema="none")


def test_vectors(spark: Any, tmp_path: Path) -> None:
    rows = [(Vectors.dense(1.0, 2.5),), (Vectors.sparse(5, [1, 4], [3.0, 0.5]),), (None,), (Vectors.dense(),)]
    df = spark.createDataFrame(rows, ["v"]).coalesce(1)
    df.write.format("tfrecord").save(str(tmp_path / "x"))
    assert [r.v for r in read(spark, tmp_path / "x").collect()] == [[1.0, 2.5], [0.0, 3.0, 0.0, 0.0, 0.5], None, []]
    back = spark.read.format("tfrecord").schema(df.schema).load(str(tmp_path / "x"))
    dense = [r.v for r in back.collect()]
    assert dense == [Vectors.dense(1.0, 2.5), Vectors.dense(0.0, 3.0, 0.0, 0.0, 0.5), None, Vectors.dense()]
    assert all(type(v).__name__ == "DenseVector" for v in dense if v is not None)


def test_hadoop_formats(spark: Any, tmp_path: Path) -> None:
    sc = spark.sparkContext
    formats = "tfspark.tfrecord.TFRecordInputFormat", "tfspark.tfrecord.TFRecordOutputFormat"
    types = ["org.apache.hadoop.io.BytesWritable", "org.apache.hadoop.io.NullWritable"]
    records = [example(a=("int64", [i])) for i in range(1000)]
    sc.parallelize([(bytearray(r), None) for r in records], 2).saveAsNewAPIHadoopFile(
        str(tmp_path / "plain"), formats[1], *types
    )
    compressed = {
        "mapreduce.output.fileoutputformat.compress": "true",
        "mapreduce.output.fileoutputformat.compress.codec": "org.apache.hadoop.io.compress.GzipCodec",
    }
    sc.parallelize([(bytearray(r), None) for r in records], 2).saveAsNewAPIHadoopFile(
        str(tmp_path / "zipped"), formats[1], *types, conf=compressed
    )
    assert sorted(t.numpy() for t in tf.data.TFRecordDataset(files(tmp_path / "plain"))) == sorted(records)
    assert len(files(tmp_path / "zipped", ".tfrecord.gz")) == 2
    for name in ("plain", "zipped"):
        back = sc.newAPIHadoopFile(str(tmp_path / name), formats[0], *types)
        assert sorted(bytes(k) for k, _ in back.collect()) == sorted(records)
        assert read(spark, tmp_path / name).selectExpr("sum(a)").first()[0] == sum(range(1000))
    parts = {"mapreduce.input.fileinputformat.split.maxsize": "2000"}
    split = sc.newAPIHadoopFile(str(tmp_path / "plain"), formats[0], *types, conf=parts)
    assert split.getNumPartitions() > 5
    assert sorted(bytes(k) for k, _ in split.collect()) == sorted(records)


def test_sparse_vectors(spark: Any, tmp_path: Path) -> None:
    rows = [
        (1, Vectors.sparse(1000, [3, 999], [1.5, -2.0])),
        (2, None),
        (3, Vectors.dense(0.0, 4.0)),
        (4, Vectors.sparse(7, {})),
    ]
    df = spark.createDataFrame(rows, ["i", "v"]).coalesce(1)
    df.write.format("tfrecord").option("vectors", "sparse").save(str(tmp_path / "x"))
    records = list(tf.data.TFRecordDataset(files(tmp_path / "x")))
    assert len(records[0].numpy()) < 120
    spec = {"v": tf.io.SparseFeature("v/indices", "v/values", tf.float32, 1000)}
    dense = tf.sparse.to_dense(tf.io.parse_example(records, spec)["v"]).numpy()
    assert (dense[0, 3], dense[0, 999], dense[2, 1]) == (1.5, -2.0, 4.0) and not dense[1].any()
    reader = spark.read.format("tfrecord").schema(df.schema).option("vectors", "sparse")
    back = sorted((r.i, r.v) for r in reader.load(str(tmp_path / "x")).collect())
    assert back == [*rows[:2], (3, Vectors.sparse(2, [1], [4.0])), rows[3]]
    assert [r.v for r in reader.load(str(tmp_path / "x")).select("v").collect()] == [v for _, v in back]
    bad = {"v/indices": ("int64", [5, 1]), "v/values": ("float", [1.0, 2.0]), "v/size": ("int64", [9])}
    write(tmp_path / "y", example(**bad))
    with pytest.raises(Exception, match="sparse vector 'v': its index 1 is out of order"):
        reader.load(str(tmp_path / "y")).collect()
    with pytest.raises(Exception, match="needs the feature 'v/size', which is also a column"):
        df.selectExpr("v", "i AS `v/size`").write.format("tfrecord").option("vectors", "sparse").save(
            str(tmp_path / "z")
        )
