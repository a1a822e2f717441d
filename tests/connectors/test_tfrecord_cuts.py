"""Files that are cut, in every codec: an error wherever the format can tell, never fewer rows without a word."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from tfrecord_files import example, files, read, write

CODECS = {
    "gzip": ".gz",
    "deflate": ".deflate",
    "bzip2": ".bz2",
    "lz4": ".lz4",
    "snappy": ".snappy",
    "zstd": ".zst",
    "none": ".tfrecord",
}
FRAMING = 16


def boundaries(codec: str, body: bytes) -> set[int]:
    """Return the lengths at which a cut file is a whole one: between blocks, and between records."""
    found, at = {0}, 0
    while codec in ("lz4", "snappy") and at < len(body):
        left = struct.unpack_from(">i", body, at)[0]
        at += 4
        while left > 0:
            size = struct.unpack_from(">i", body, at)[0]
            at += 4 + size
            # Blocks here consist of one chunk.
            left = 0
        found.add(at)
    while codec == "none" and at < len(body):
        at += struct.unpack_from("<q", body, at)[0] + FRAMING
        found.add(at)
    return found


@pytest.fixture(scope="module")
def written(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small file of each codec."""
    place = tmp_path_factory.mktemp("cuts")
    made = {}
    for codec, end in CODECS.items():
        df = spark.range(3).selectExpr("id", "sha1(string(id)) as s").coalesce(1)
        df.write.format("tfrecord").option("compression", codec).save(str(place / codec))
        made[codec] = Path(files(place / codec, end)[0]).read_bytes()
    return made


def read_each(spark: Any, directory: Path, bodies: list[bytes], end: str) -> list[tuple[int, str]]:
    """Return the records that each file has, or -1 and what is wrong with it, by the connector's own reader."""
    tfrecord, hadoop = spark._jvm.tfspark.tfrecord, spark._jvm.org.apache.hadoop
    nothing = spark._jvm.org.apache.spark.api.python.PythonUtils.toScalaMap(spark._jvm.java.util.HashMap())
    options = tfrecord.TFRecordOptions(nothing)
    conf = spark.sparkContext._jsc.hadoopConfiguration()
    directory.mkdir()
    found = []
    for n, body in enumerate(bodies):
        path = directory / f"{n:05}{end}"
        path.write_bytes(body)
        rows = 0
        try:
            reader = (
                tfrecord.FilePart(hadoop.fs.Path(str(path)), conf, 0, len(body), len(body)).open(options).get()._1()
            )
            while reader.next():
                rows += 1
            reader.close()
            found.append((rows, ""))
        except Exception as e:
            found.append((-1, str(e)))
    return found


@pytest.mark.parametrize("codec", CODECS)
def test_a_cut_at_any_byte(spark: Any, tmp_path: Path, written: dict[str, bytes], codec: str) -> None:
    body = written[codec]
    whole = boundaries(codec, body)
    cuts = [n for n in range(1, len(body)) if n not in whole]
    assert len(cuts) > 100
    # Formats have their checksums at the end.
    cuts = cuts[:8] + cuts[8:-24:4] + cuts[-24:]
    found = read_each(spark, tmp_path / "cut", [body[:n] for n in cuts], CODECS[codec])
    assert [n for n, (rows, _) in zip(cuts, found, strict=True) if rows >= 0] == []
    assert all(f"{i:05}{CODECS[codec]}" in said for i, (_, said) in enumerate(found))
    assert read_each(spark, tmp_path / "whole", [body], CODECS[codec]) == [(3, "")]


@pytest.mark.parametrize("codec", ["snappy", "lz4"])
def test_blocks(spark: Any, tmp_path: Path, codec: str) -> None:
    df = spark.range(3000).selectExpr("id", "sha2(string(id), 512) as s").coalesce(1)
    df.write.format("tfrecord").option("compression", codec).save(str(tmp_path / "x"))
    path = Path(files(tmp_path / "x", CODECS[codec])[0])
    body = path.read_bytes()
    assert read(spark, path, "id long, s string").selectExpr("sum(id)", "count(s)").first()[:] == (4498500, 3000)
    for kept in (len(body) - 3, len(body) // 2):
        path.write_bytes(body[:kept])
        for mode in ("FAILFAST", "PERMISSIVE"):
            with pytest.raises(Exception, match=rf"{path.name}, record at offset \d+.* within a block"):
                read(spark, path, "id long, s string", mode=mode).collect()
        assert 0 < read(spark, path, "id long", ignoreCorruptFiles="true").count() < 3000
    path.write_bytes(struct.pack(">ii", 100, 2**31 - 1) + body)
    with pytest.raises(Exception, match="the compressed data ends within a block"):
        read(spark, path, "id long").collect()
    path.write_bytes(struct.pack(">i", -5) + body)
    with pytest.raises(Exception, match="has an invalid length of -5 bytes"):
        read(spark, path, "id long").collect()


@pytest.mark.parametrize("end", [".bz2", ".gz", ".deflate", ".zst", ".snappy", ".lz4"])
def test_a_plain_file_under_the_name_of_a_compressed_one(spark: Any, tmp_path: Path, end: str) -> None:
    path = write(tmp_path / f"x{end}", *[example(id=("int64", [i])) for i in range(100)])
    if end == ".gz":
        assert read(spark, path, "id long").count() == 100
        return
    for action in (lambda: read(spark, path, "id long").collect(), lambda: read(spark, path)):
        with pytest.raises(Exception, match=f"x{end}"):
            action()
    sc = spark.sparkContext
    types = ["org.apache.hadoop.io.BytesWritable", "org.apache.hadoop.io.NullWritable"]
    with pytest.raises(Exception, match=f"x{end}"):
        sc.newAPIHadoopFile(path, "tfspark.tfrecord.TFRecordInputFormat", *types).count()
