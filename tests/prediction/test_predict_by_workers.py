"""`ctx.serve` and `cluster.predict`: rows go to the workers and come back with their answers."""

from __future__ import annotations

import socket
import ssl
import threading
from typing import Any

import pytest
from pyspark.errors import PySparkException
from pyspark.ml.linalg import Vectors

import tfspark
from tfspark.errors import ConfigurationError, SchemaError
from tfspark.transport.auth import TLS_NAME


def test_everything_is_encrypted_if_asked(spark: Any) -> None:
    def main(args: Any, ctx: Any) -> list[int]:
        ids = [int(i) for batch in ctx.dataset(10) for i in batch["id"]]
        ctx.serve(lambda batch: batch["id"] + 1)
        return ids

    with tfspark.Cluster(spark, main, workers=1, tls=True) as cluster:
        cluster.feed(spark.range(30))
        assert sorted(r.y for r in cluster.predict(spark.range(30), "y long").collect()) == list(range(1, 31))
        port = cluster.nodes.nodes[0].data_port
        context = ssl.create_default_context(cadata=cluster._spec.secret.certificate)
        with socket.create_connection(("127.0.0.1", port)) as s:
            assert context.wrap_socket(s, server_hostname=TLS_NAME).version()
    assert sorted(cluster.results["worker", 0]) == list(range(30))


def serve_sums(args: Any, ctx: Any) -> int:
    import tensorflow as tf

    @tf.function(reduce_retracing=True)
    def score(x: Any, factor: Any) -> Any:
        return tf.reduce_sum(x, axis=1) * tf.cast(factor, tf.float32)

    def answer(batch: dict[str, Any]) -> dict[str, Any]:
        assert batch["x"].shape[0] <= 300
        total = score(batch["x"], batch["id"])
        return {"total": total, "pair": tf.stack([total, -total], axis=1), "worker": [ctx.index] * len(total)}

    return ctx.serve(answer)


def test_answers_come_back_in_order_beside_their_rows(spark: Any) -> None:
    df = spark.range(0, 5000, 1, 6).selectExpr("id", "array(float(id), 1f) as x", "concat('r', id) as name")
    with tfspark.Cluster(spark, serve_sums, workers=2) as cluster:
        asked: dict[str, Any] = {"columns": ["id", "x"], "shapes": {"x": 2}, "batch_size": 300}
        found = cluster.predict(df, "total float, pair array<double>, worker int", **asked)
        assert found.columns == ["id", "x", "name", "total", "pair", "worker"]
        rows = found.collect()
        # Lazy, used again, by two jobs at once, and only in part.
        counts: list[int] = []
        threads = [threading.Thread(target=lambda: counts.append(found.where("total >= 0").count())) for _ in range(2)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert counts == [5000, 5000]
        assert len(found.limit(3).collect()) == 3
        few = cluster.predict(df, "total float, pair array<double>, worker int", keep=["name"], **asked)
        assert few.columns == ["name", "total", "pair", "worker"]
        assert few.select("name", "total").collect() == [(r.name, r.total) for r in rows]
        with pytest.raises(ConfigurationError, match=r"keep refers to unknown columns \['nope'\]"):
            cluster.predict(df, "y int", keep=["nope"])
        with pytest.raises(ConfigurationError, match=r"\['name'\] have the same names as columns"):
            cluster.predict(df, "name string")
        with pytest.raises(ConfigurationError, match="is not a schema"):
            cluster.predict(df, "not a schema at all,")
        with pytest.raises(SchemaError, match="nope"):
            cluster.predict(df, "y int", columns=["nope"])
    assert [r.id for r in rows] == list(range(5000))
    for r in rows:
        assert r.total == pytest.approx((r.id + 1) * r.id, rel=1e-6) and r.name == f"r{r.id}"
        assert r.pair == [r.total, -r.total]
    assert {r.worker for r in rows} == {0, 1}
    assert sum(cluster.results.values()) >= 20_000
    with pytest.raises(PySparkException, match="Use the predictions inside the with block of the cluster"):
        found.collect()


def test_structs_vectors_and_masked_nulls_are_sent_and_the_columns_stay(spark: Any) -> None:
    rows = [(1, Vectors.dense(1.0, 2.0), {"a": 5}), (2, Vectors.sparse(2, [1], [5.0]), {"a": None})]
    df = spark.createDataFrame(rows, ["id", "v", "m"]).selectExpr("id", "v", "named_struct('a', m.a) as s").coalesce(1)

    def main(args: Any, ctx: Any) -> int:
        def fn(batch: Any) -> Any:
            assert set(batch) == {"v", "s"}
            return [f"{v}{a}{m}".encode() for v, a, m in zip(
                batch["v"].numpy().tolist(), batch["s"]["a"].numpy(), batch["s"]["a_mask"].numpy(), strict=True
            )]  # fmt: skip

        return ctx.serve(fn, threads=2)

    with tfspark.Cluster(spark, main, workers=1) as cluster:
        found = cluster.predict(df, "text string", columns=["v", "s"], shapes={"v": 2}, mask=["s/a"]).collect()
    assert [r.text for r in found] == ["[1.0, 2.0]5True", "[0.0, 5.0]0False"]
    assert [r.v for r in found] == [v for _, v, _ in rows] and [r.s.a for r in found] == [5, None]
    assert cluster.results["worker", 0] == 2


FAULTS: dict[str, tuple[str, str]] = {
    "raise": ("y int", r"failed for 100 rows from row 0 of a batch of partition 0: ValueError\('no such thing'\)"),
    "rows": ("y int", r"Output 'y' has shape \(3,\) for 100 rows"),
    "names": ("y int", r"fn returned the outputs \['z'\], but predict\(outputs=...\) names \['y'\]"),
    "type": ("y int", "Output 'y' of type .* does not fit int32"),
    "several": ("y int, z int", r"fn must return a dict with the keys \['y', 'z'\]"),
}


def test_a_function_that_fails_is_named_with_its_rows_and_serving_goes_on(spark: Any) -> None:
    def main(args: Any, ctx: Any) -> int:
        def fn(batch: Any) -> Any:
            fault = batch["fault"].numpy()[0].decode()
            if fault == "raise":
                raise ValueError("no such thing")
            odd = {"rows": [1, 2, 3], "names": {"z": batch["id"]}, "type": ["x"] * 100, "several": batch["id"]}
            return odd.get(fault, batch["id"])

        return ctx.serve(fn)

    df = spark.range(0, 100, 1, 1)
    with tfspark.Cluster(spark, main, workers=1) as cluster:
        for fault, (outputs, message) in FAULTS.items():
            with pytest.raises(PySparkException, match=message):
                cluster.predict(df.selectExpr("id", f"'{fault}' as fault"), outputs).collect()
        good = cluster.predict(df.selectExpr("id", "'none' as fault"), "y long").collect()
    assert [r.y for r in good] == list(range(100))


def test_a_main_that_does_not_serve_is_named(spark: Any) -> None:
    def main(args: Any, ctx: Any) -> None:
        for _ in ctx.dataset(10):
            pass

    with tfspark.Cluster(spark, main, workers=1) as cluster:
        found = cluster.predict(spark.range(0, 10, 1, 1), "y int")
        failed: list[str] = []

        def use() -> None:
            try:
                found.collect()
            except PySparkException as e:
                failed.append(str(e))

        asking = threading.Thread(target=use)
        asking.start()
        cluster.feed(spark.range(10))
        cluster.wait()
        asking.join()
    assert len(failed) == 1
    assert "does not serve" in failed[0] or "gave no answer" in failed[0]


def test_answers_are_held_to_their_types_and_columns_may_share_a_name(spark: Any) -> None:
    def main(args: Any, ctx: Any) -> int:
        def fn(batch: Any) -> Any:
            import tensorflow as tf

            factor = tf.constant(float(batch["factor"].numpy()[0]), tf.float64)
            y = tf.cast(batch["id"], tf.float64) * factor
            return {"y": y, "s": {"twice": 2 * y, "list": tf.stack([y, y], axis=1)}}

        return ctx.serve(fn)

    rows = spark.range(0, 4, 1, 1).selectExpr("id", "id as r", "id as r")
    asked: dict[str, Any] = {"columns": ["id", "factor"]}
    answers = "y float, s struct<twice: int, list: array<double>>"
    with tfspark.Cluster(spark, main, workers=1) as cluster:
        found = cluster.predict(rows.selectExpr("*", "1d as factor"), answers, **asked)
        assert found.columns == ["id", "r", "r", "factor", "y", "s"]
        last = found.collect()[3]
        assert tuple(last)[:5] == (3, 3, 3, 1, 3) and (last.s.twice, last.s.list) == (6, [3, 3])
        for factor, message in [
            ("1e300d", r"Output 'y' holds 1e\+300 in row 1 of its batch, which float cannot hold"),
            ("0.25d", r"Output 'twice' holds 0.5 in row 1 of its batch, which int32 cannot hold"),
        ]:
            with pytest.raises(PySparkException, match=message):
                cluster.predict(rows.selectExpr("*", f"{factor} as factor"), answers, **asked).collect()
        odd = rows.selectExpr("if(id = 2, null, id) as id", "if(id = 3, null, 1d) as factor")
        with pytest.raises(PySparkException, match=r"(?s)'id' .*row 2 of partition 0.*'factor' .*row 3.* predict\(\)"):
            cluster.predict(odd, answers, **asked).collect()
        with pytest.raises(SchemaError, match=r"\['r'\] are ambiguous"):
            cluster.predict(rows, "y float")
