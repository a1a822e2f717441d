"""What `Cluster.dump` writes, and what it leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tfspark
from tfspark.errors import NodeFailed
from tfspark.monitoring.dump import without_secrets


def main(args: Any, ctx: Any) -> None:
    print("a line of", ctx.role, flush=True)
    print("the store takes", args, flush=True)
    if ctx.restarts == 1:
        raise RuntimeError("the second time it fails, too")
    raise ValueError("the first time it fails")


def parts_of(text: str) -> dict[str, str]:
    head, *parts = text.split("\n== ")
    assert head.startswith("tfspark dump of ")
    return {name: body for name, _, body in (part.partition("\n") for part in parts)}


def test_after_a_failure_everything_is_told_but_secrets(spark: Any, tmp_path: Path) -> None:
    secrets = {"spark.hadoop.fs.s3a.secret.key": "wJalrXUtnFEMI", "spark.my.api-key": "pa55phrase-x"}
    context_conf = spark.sparkContext._conf
    for key, value in secrets.items():
        context_conf.set(key, value)
    env = {"STORE_PASSWORD": "hunter-2222", "MODE": "fast"}
    cluster = tfspark.Cluster(
        spark, main, "hunter-2222", workers=1, max_restarts=1, tls=True, env=env, settings={"log_tail_lines": 7}
    )
    cluster.dump(tmp_path / "before.txt")
    assert "not started" in parts_of((tmp_path / "before.txt").read_text())["status"]
    try:
        with pytest.raises(NodeFailed, match="the second time"), cluster:
            pass
        cluster.dump(tmp_path / "after.txt")
    finally:
        for key in secrets:
            context_conf.set(key, "")
    text = (tmp_path / "after.txt").read_text()
    secret = cluster._spec.secret
    key_lines = [line for line in secret.key.splitlines() if not line.startswith("-----")]
    assert secret.token and len(key_lines) > 1
    for hidden in (secret.token, *key_lines, *secrets.values(), "hunter-2222"):
        assert hidden not in text
    parts = parts_of(text)
    assert f"tfspark {tfspark.__version__}" in parts["versions"] and "pyspark " in parts["versions"]
    assert "log_tail_lines = 7 (default 80)" in parts["settings"] and "hang_timeout = 60s\n" in parts["settings"]
    assert "workers = 1" in parts["cluster"] and "env MODE = fast" in parts["cluster"]
    assert "env STORE_PASSWORD = (hidden)" in parts["cluster"]
    assert "spark.my.api-key = (hidden)" in parts["settings of Spark"]
    assert "spark.app.name = tfspark-tests" in parts["settings of Spark"]
    assert "restart 1 after NodeFailed" in parts["error"] and "the first time it fails" in parts["error"]
    assert "the second time it fails" in parts["error"]
    assert "worker 0 on 127.0.0.1" in parts["status"] and "failed" in parts["status"]
    before, _, last = parts["story"].partition("NodeRaised")
    assert "-- before restart 1" in before and "NodeRaised" in last and "PublishStop" in last
    assert "-- worker 0\n" in parts["last lines of each node"]
    assert "a line of worker" in parts["last lines of each node"]
    assert "the store takes (hidden)" in parts["last lines of each node"]
    assert "-- MainThread\n" in parts["stacks of the driver"] and "test_dump.py" in parts["stacks of the driver"]


@pytest.mark.unit
def test_secrets_within_texts_are_hidden_and_what_is_common_is_not() -> None:
    text = "-Dstore.password=abc -Dmode=true hdfs://joe:geheim@host:1/x token: 'q r' X_API_KEY=5,y=4 the key 12 s3cr3t!"
    assert without_secrets(text, {"true", "12", "s3cr3t!"}) == (
        "-Dstore.password=(hidden) -Dmode=true hdfs://joe:(hidden)@host:1/x token: (hidden) X_API_KEY=(hidden),y=4 "
        "the key 12 (hidden)"
    )
