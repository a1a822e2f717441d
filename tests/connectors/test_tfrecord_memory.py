"""Memory stays flat: files much larger than an executor, and records that are too large for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from tfrecord_files import example

PROGRAM = Path(__file__).parents[1] / "programs" / "read_large.py"
MB = 1 << 20


def run(path: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(path), *options], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.long
def test_a_gigabyte_in_an_executor_of_half_of_it(tmp_path: Path) -> None:
    body = example(i=("int64", [1]), b=("bytes", [b"x" * 100_000]))
    large = example(i=("int64", [2]), b=("bytes", [b"y" * (60 * MB)]))
    path = tmp_path / "x.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for _ in range(10_000):
            writer.write(body)
        writer.write(large)
    assert path.stat().st_size > 1_000_000_000
    expected = f"rows 10001 bytes {10_000 * 100_000 + 60 * MB}\n"
    assert run(path, "splitFiles=false") == expected
    assert run(path) == expected
    path.unlink()


def test_a_record_beyond_the_limit_is_an_error_and_no_exhausted_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(example(b=("bytes", [b"x" * (300 * MB)])))
    said = run(path)
    assert "x.tfrecord, record at offset 0: the record has 3145" in said
    assert "(option maxRecordBytes)" in said and "OutOfMemory" not in said
