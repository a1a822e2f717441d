"""Arrays of numbers that travel as bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import functions as F

from tfspark.columns.leaves import fed_columns
from tfspark.columns.packed_arrays import packed_columns, unpacked
from tfspark.columns.spec import plan_columns
from tfspark.columns.types import arrow_schema_of
from tfspark.errors import SchemaError

LISTS = st.lists(st.none() | st.lists(st.floats(width=32, allow_nan=False), max_size=5))


@settings(deadline=None)
@given(LISTS, st.integers(0, 3))
def test_packed_arrays_are_what_they_were(rows: list[list[float] | None], skipped: int) -> None:
    packed = pa.array([r if r is None else np.array(r, np.float32).tobytes() for r in rows], pa.binary())
    batch = pa.RecordBatch.from_arrays([packed], names=["x"]).slice(skipped)
    assert unpacked(batch, {"x": "float32"}).column("x").to_pylist() == rows[skipped:]


@pytest.mark.parametrize("skipped", [0, 2])
def test_packed_arrays_of_one_length_are_of_fixed_size(skipped: int) -> None:
    rows = np.arange(12, dtype=np.int64).reshape(4, 3)
    batch = pa.RecordBatch.from_arrays([pa.array([r.tobytes() for r in rows], pa.binary())], names=["x"]).slice(skipped)
    column = unpacked(batch, {"x": "int64"}).column("x")
    assert column.type == pa.list_(pa.int64(), 3) and column.to_pylist() == rows[skipped:].tolist()


def test_a_null_inside_is_named() -> None:
    packed = pa.array([b"12345678", b"\0", b""], pa.binary())
    batch = pa.RecordBatch.from_arrays([packed, pa.array([1, 2, 3])], names=["x", "y"])
    with pytest.raises(SchemaError, match=r"'x' holds nulls inside 1 of its arrays \(first: row 1"):
        unpacked(batch, {"x": "int64"})


ARRAYS = {"float": 0.5, "double": 0.1, "int": -7, "bigint": 1 << 40}


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("element", ARRAYS)
def test_spark_packs_what_it_holds(element: str, cached: bool, spark: Any) -> None:
    array = f"transform(sequence(1, int(id)), i -> cast(i * {ARRAYS[element]} as {element}))"
    df = spark.range(0, 40, 1, 2).selectExpr("id", f"if(id % 7 = 3, null, {array}) as x", "'a' as s")
    df = df.cache() if cached else df
    specs = plan_columns(arrow_schema_of(df.schema))
    columns, packed = packed_columns(df, {c: F.col(c) for c in df.columns}, specs)
    assert list(packed) == ["x"]
    sent = df.select(*[c.alias(n) for n, c in columns.items()])

    def unpack(batches: Any) -> Any:
        from tfspark.columns.packed_arrays import unpacked as at_work

        return (at_work(b, packed) for b in batches)

    assert "packedarray" in sent._jdf.queryExecution().executedPlan().toString().lower()
    assert sorted(sent.mapInArrow(unpack, df.schema).collect()) == sorted(df.collect())
    df.unpersist()


def test_what_is_short_or_deep_travels_as_it_is(spark: Any) -> None:
    df = spark.sql("select array(1, 2) as short, array(array(1)) as deep, array(1, 2, 3) as any, array('a') as text")
    specs = plan_columns(arrow_schema_of(df.schema), {"short": 2})
    _, packed = packed_columns(df, {c: F.col(c) for c in df.columns}, specs)
    assert packed == {"any": "int32"}


def test_columns_that_are_fed_under_one_name_are_named(spark: Any) -> None:
    with pytest.raises(SchemaError, match=r"Columns \['s/a', 's.a'\] would be fed under one name"):
        fed_columns(spark.sql("select 1 as `s/a`, named_struct('a', 2) as s"), None, (), ())


def test_a_dataframe_of_what_is_fed_is_used_as_it_is(spark: Any) -> None:
    df = spark.sql("select 1 as a, array(1.5f) as x")
    assert fed_columns(df, None, (), ()).frame is df
    assert fed_columns(df, ["a", "x"], (), ()).frame is df
    assert list(fed_columns(df, None, (), ()).columns) == ["a", "x"]
    for columns, mask in (["x", "a"], ()), (["a"], ()), ({"a": "a", "y": "x"}, ()), (None, ["a"]):
        assert fed_columns(df, columns, mask, ()).frame is not df
    swapped = fed_columns(spark.sql("select 1 as a, 2 as b"), {"a": "b", "b": "a"}, (), ()).frame
    assert swapped.first().asDict() == {"a": 2, "b": 1}
    masked = fed_columns(spark.sql("select int(null) as x, true as x_mask"), ["x"], ["x"], ()).frame
    assert masked.first().asDict() == {"x": None, "x_mask": False}
    struct = spark.sql("select struct(1 as a) as s")
    assert fed_columns(struct, None, (), ()).frame.columns == ["s/a"]
