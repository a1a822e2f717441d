"""What goes wrong in a task reaches the user in words, however the jar came to the session."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tfrecord_files import example, write

from tfspark.spark.home import is_spark_3

# pyspark brings the server of Spark Connect from Spark 4 on.
CONNECT = () if is_spark_3() else ("connect",)
PROGRAM = Path(__file__).parents[1] / "programs" / "tfrecord_errors.py"


@pytest.mark.parametrize("master", ["local[2]", "local-cluster[1,2,1024]", *CONNECT])
def test_a_jar_added_to_a_running_session_works_and_its_errors_arrive(tmp_path: Path, master: str) -> None:
    good = example(a=("int64", [1]))
    write(tmp_path / "kind", good, example(a=("float", [1.5])))
    write(tmp_path / "many", good, example(a=("int64", [1, 2])))
    cut = Path(write(tmp_path / "cut", good, good))
    cut.write_bytes(cut.read_bytes()[:-1])
    for i in range(6):
        write(tmp_path / "files" / f"{i}", good) if (tmp_path / "files").exists() else (tmp_path / "files").mkdir()
    (tmp_path / "files" / "9.gz").write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), master, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.strip().splitlines()[-1])
    at = len(good) + 16
    assert f"kind, record at offset {at}: feature 'a': expected an Int64List, found a FloatList" in said["kind"]
    assert "Hint:" in said["kind"]
    assert f"many, record at offset {at}: feature 'a': expected a single value, found 2" in said["many"]
    assert "inferSchema=full" in said["many"]
    assert f"cut, record at offset {at}: the file ends within a record" in said["cut"]
    assert "9.gz, record at offset 0: cannot read the rest of the file" in said["infer"]
    assert "column 'c': the array contains a null" in said["write"] and "Hint:" in said["write"]
    if "hadoop" in said:
        assert f"cut, record at offset {at}: the file ends within a record" in said["hadoop"]
    assert not [name for name, words in said.items() if "UnknownReason" in words]
