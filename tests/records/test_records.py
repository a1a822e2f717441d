"""``tfspark records`` on files that TensorFlow has written, and on damaged ones."""

from __future__ import annotations

import bz2
import gzip
import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from mutations import CORPUS, flips, mutants, parsed
from tfrecord_files import example, feature, write

from tfspark.cli import main
from tfspark.records.errors import MalformedMessage
from tfspark.records.example import Kind, RecordType, parse


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main(["records", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two files that differ in kind and number of values, and what Spark passes over."""
    place = tmp_path / "data"
    (place / "p=1").mkdir(parents=True)
    write(
        place / "a.tfrecord", *[example(i=("int64", [n]), x=("float", [1.5, n]), s=("bytes", [b"t"])) for n in range(3)]
    )
    write(place / "p=1" / "b.tfrecord", example(i=("float", [0.5]), s=("bytes", [b"\xff\xfe"])), compression="GZIP")
    (place / "_SUCCESS").write_text("")
    (place / ".a.tfrecord.crc").write_bytes(b"crc")
    return place


def test_count(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "count", directory)
    assert code == 0 and out.splitlines()[-1] == "# 4 records in 2 files"
    code, out, _ = run(capsys, "count", "--json", f"file://{directory}/*.tfrecord")
    found = json.loads(out)
    assert code == 0 and found["records"] == 3
    assert found["files"][0]["bytes"] == (directory / "a.tfrecord").stat().st_size


def test_schema(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "schema", "--json", directory)
    found = json.loads(out)
    assert code == 0 and found["schema"] == "struct<i:double,s:binary,x:array<float>>" and found["records"] == 4
    assert found["features"][2] == {"name": "x", "type": "array<float>", "records": 3, "fewest": 2, "most": 2}
    code, out, _ = run(capsys, "schema", "--files", 1, "--records", 1, directory)
    assert out.splitlines()[1].split("\t")[:4] == ["i", "bigint", "1", "1"]


def test_the_schema_is_the_one_that_spark_infers(
    spark: Any, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = directory.parent / "more"
    mixed.mkdir()
    records = [body for body in CORPUS if parsed(body)]
    for n, body in enumerate(records):
        write(mixed / f"{n:02}", body)
    write(mixed / "empty", example(e=("bytes", []), z=("int64", [])))
    for place in (directory, mixed):
        code, out, _ = run(capsys, "schema", "--json", "--full", place)
        reader = spark.read.format("tfrecord").option("inferSchema", "full").option("recursiveFileLookup", "true")
        assert code == 0 and json.loads(out)["schema"] == reader.load(str(place)).schema.simpleString()


def test_sequence_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists = {"f": tf.train.FeatureList(feature=[feature("int64", [1, 2]), feature("int64", [])])}
    message = tf.train.SequenceExample(
        context=tf.train.Features(feature={"id": feature("bytes", [b"\xff"])}),
        feature_lists=tf.train.FeatureLists(feature_list=lists),
    )
    path = write(tmp_path / "x", message.SerializeToString())
    _, out, _ = run(capsys, "schema", "--json", "--record-type", "sequenceexample", path)
    assert json.loads(out)["schema"] == "struct<f:array<array<bigint>>,id:binary>"
    _, out, _ = run(capsys, "head", "--json", "--record-type", "SequenceExample", path)
    assert json.loads(out) == {"f": [[1, 2], []], "id": [{"base64": "/w=="}]}


def test_head(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "head", "-n", 2, "--json", directory / "a.tfrecord")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [r["i"] for r in rows] == [[0], [1]] and rows[1]["x"] == [1.5, 1.0] and rows[0]["s"] == ["t"]
    _, out, _ = run(capsys, "head", directory)
    assert out.count("feature\tvalues") == 4
    _, out, _ = run(capsys, "head", "-n", 1, "--json", "--record-type", "bytearray", directory / "a.tfrecord")
    assert "byteArray" in json.loads(out)


def test_verify(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = {"a.tfrecord": "", "p=1/b.tfrecord": "GZIP"}
    sizes = sum(len(r.numpy()) for p, k in paths.items() for r in tf.data.TFRecordDataset(str(directory / p), k))
    assert run(capsys, "verify", directory)[:2] == (0, f"4 records ({sizes} bytes) of 2 files are good\n")
    path = directory / "a.tfrecord"
    whole = path.read_bytes()
    size = len(whole) // 3
    body = bytearray(whole)
    body[size + 20] ^= 1
    path.write_bytes(bytes(body))
    code, out, _ = run(capsys, "verify", "--json", directory)
    assert code == 1
    assert json.loads(out)["bad"] == [
        {"file": str(path), "record": 1, "offset": size, "reason": "the data does not match its checksum"}
    ]
    code, out, _ = run(capsys, "verify", "--no-verify-checksum", path)
    assert code in (0, 1) and "checksum" not in out
    path.write_bytes(whole[:-1])
    code, out, _ = run(capsys, "verify", path)
    assert code == 1 and f"\t2\t{2 * size}\tthe file ends within a record of" in out
    assert run(capsys, "count", path)[0] == 1
    write(path, b"\x0a\xff")
    code, out, _ = run(capsys, "verify", path)
    assert code == 1 and "\t0\t0\t" in out


@pytest.mark.parametrize("compression", ["GZIP", "ZLIB"])
def test_compressed_files_and_their_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], compression: str
) -> None:
    path = Path(write(tmp_path / "x", *[example(i=("int64", [n])) for n in range(1000)], compression=compression))
    assert json.loads(run(capsys, "count", "--json", path)[1])["records"] == 1000
    path.write_bytes(path.read_bytes()[:-9])
    code, _, err = run(capsys, "count", path)
    assert code == 1 and "x, record" in err


def test_gzip_of_several_members(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = Path(write(tmp_path / "x", example(i=("int64", [1])))).read_bytes()
    (tmp_path / "y.gz").write_bytes(gzip.compress(plain) + gzip.compress(plain))
    assert json.loads(run(capsys, "count", "--json", tmp_path / "y.gz")[1])["records"] == 2


def test_what_is_not_there_and_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "count", tmp_path / "nothing")
    assert code == 1 and "no such file or directory" in err
    for wrong in (["head", "-n", "0", "x"], ["schema", "--record-type", "json", "x"], ["count"], ["weigh", "x"]):
        with pytest.raises(SystemExit) as raised:
            run(capsys, *wrong)
        assert raised.value.code == 2


def test_the_command_needs_neither_spark_nor_tensorflow(directory: Path) -> None:
    program = (
        "import sys; from tfspark.cli import main; code = main(sys.argv[1:]); "
        "assert not {'pyspark', 'tensorflow', 'keras'} & set(sys.modules), sorted(sys.modules); sys.exit(code)"
    )
    for action in ("schema", "head", "count", "verify"):
        done = subprocess.run(
            [sys.executable, "-c", program, "records", action, str(directory)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0 and done.stdout, done.stderr


def test_every_mutation_is_parsed_as_protobuf_does_it_or_refused() -> None:
    kinds = {"i": Kind.INT64, "f": Kind.FLOAT, "s": Kind.BYTES}
    agreed = refused = 0
    for body in [*mutants(5, 3000), *[f for c in CORPUS for f in flips(c)]]:
        try:
            features = parse(body, RecordType.EXAMPLE).features
        except MalformedMessage:
            refused += 1
            continue
        expected = tf.train.Example.FromString(body).features.feature if parsed(body) is not None else None
        if expected is None:
            continue
        for name in set(kinds) & set(features):
            which = expected[name].WhichOneof("kind") if name in expected else None
            kind = features[name].kind
            if which is not None and kind is not None:
                assert which == f"{kind.value}_list"
                agreed += len(expected[name].ListFields()[0][1].value) == len(features[name].values)
    assert agreed > 1000 and refused > 1000


@given(
    ints=st.lists(st.integers(-(2**63), 2**63 - 1)),
    floats=st.lists(st.floats(width=32, allow_nan=False)),
    blobs=st.lists(st.binary()),
)
def test_values_are_those_that_were_written(ints: list[int], floats: list[float], blobs: list[bytes]) -> None:
    features = parse(example(i=("int64", ints), f=("float", floats), s=("bytes", blobs)), RecordType.EXAMPLE).features
    assert [list(features[n].values) for n in "ifs"] == [ints, floats, blobs]


def test_sizes_of_bytes_and_numbers_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for size in (1, 2, 3, 4, 1500):
        path = write(tmp_path / "x", example(b=("bytes", [b"\xff" * size])))
        assert f"[<{size} bytes>]" in run(capsys, "head", path)[1]
        assert f"[<{size} bytes>]" in run(capsys, "schema", path)[1]
    path = write(tmp_path / "y", *[example(i=("int64", [n])) for n in range(1500)])
    size = Path(path).stat().st_size
    assert run(capsys, "count", path)[1] == f"file\trecords\tbytes\n{path}\t1500\t{size}\n# 1500 records in 1 files\n"
    assert "\tbigint\t1000\t1\t" in run(capsys, "schema", path)[1]
    assert run(capsys, "verify", path)[1] == f"1500 records ({size - 1500 * 16} bytes) of 1 files are good\n"


def test_names_break_no_lines_and_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = "a\tb\nc\x1b[31m\u2028d"
    place = tmp_path / "p\tq"
    place.mkdir()
    path = Path(write(tmp_path / "x", example(**{odd: ("bytes", [b"v\tw\n"])}))).rename(place / "x\n\udcff")
    shown = "a\\tb\\nc\\x1b[31m\\u2028d"
    for action in ("schema", "head", "count"):
        lines = run(capsys, action, path)[1].split("\n")
        assert len(lines) == 4 and {line.count("\t") for line in lines[:2]} == {lines[0].count("\t")}
        assert shown in lines[1] or (action == "count" and "p\\tq/x\\n\\udcff" in lines[1])
    assert list(json.loads(run(capsys, "head", "--json", path)[1])) == [odd]


def test_one_bad_file_hides_no_good_one(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "aa").write_bytes(b"this is no TFRecord file")
    (directory / "b.snappy").write_bytes(b"x")
    good = {"a.tfrecord": 3, "p=1/b.tfrecord": 1}
    code, out, err = run(capsys, "count", directory)
    assert code == 1 and out.splitlines()[-1] == "# 4 records in 2 files"
    assert [line.split("\t")[:2] for line in out.splitlines()[1:-1]] == [
        [f"{directory}/{name}", str(n)] for name, n in good.items()
    ]
    assert (
        f"{directory}/aa, record 0 at offset 0: this is not a TFRecord file" in err and "b.snappy is compressed" in err
    )
    code, out, _ = run(capsys, "count", "--json", directory)
    found = json.loads(out)
    assert code == 1 and found["records"] == 4 and [b["record"] for b in found["bad"]] == [0, None]
    code, out, err = run(capsys, "schema", "--json", directory)
    assert code == 1 and json.loads(out)["records"] == 4 and "aa, record 0" in err
    code, out, _ = run(capsys, "verify", "--json", directory)
    assert code == 1 and json.loads(out)["records"] == 4 and len(json.loads(out)["bad"]) == 2
    code, out, err = run(capsys, "head", directory)
    assert code == 1 and out.count("feature\tvalues") == 4 and "aa, record 0" in err


def test_records_without_a_feature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists = tf.train.FeatureLists(feature_list={"f": tf.train.FeatureList(feature=[feature("int64", [1])])})
    path = write(tmp_path / "x", *[tf.train.SequenceExample(feature_lists=lists).SerializeToString()] * 3)
    code, _, err = run(capsys, "schema", path)
    assert code == 1 and "None of 3 records has a feature" in err
    assert "Try --record-type SequenceExample or ByteArray" in err
    found = json.loads(run(capsys, "schema", "--json", "--record-type", "ByteArray", path)[1])
    assert found["schema"] == "struct<byteArray:binary>" and found["records"] == 3


def test_spark_and_the_command_agree_on_compressed_files(
    spark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Path(write(tmp_path / "plain", *[example(i=("int64", [n])) for n in range(100)])).read_bytes()
    packed = {
        ".bz2": bz2.compress(plain),
        ".gz": gzip.compress(plain),
        ".deflate": zlib.compress(plain),
        ".zst": pyarrow.compress(plain, "zstd", asbytes=True),
        ".zlib": zlib.compress(plain),
        ".tfrecord": plain,
    }
    cases = {
        "whole": lambda body: body,
        "twice": lambda body: body * 2,
        "cut": lambda body: body[:-3],
        "zeros": lambda body: body + bytes(30),
        "text": lambda body: body + b"something else",
        "byte": lambda body: body + b"x",
        "empty": lambda body: b"",
    }
    counts = {}
    for end, body in packed.items():
        for case, change in cases.items():
            path = tmp_path / f"{case}{end}"
            path.write_bytes(change(body))
            code, out, _ = run(capsys, "count", "--json", path)
            by_command = json.loads(out)["records"] if code == 0 else "error"
            try:
                by_spark = spark.read.format("tfrecord").schema("i long").load(str(path)).count()
            except Exception as e:
                assert path.name in str(e)
                by_spark = "error"
            counts[case, end] = by_command, by_spark
    assert {k: v for k, v in counts.items() if v[0] != v[1]} == {}
    expected = {"whole": 100, "twice": 200, "empty": 0}
    assert {k: v for k, v in counts.items() if v[0] != expected.get(k[0], "error")} == {}
