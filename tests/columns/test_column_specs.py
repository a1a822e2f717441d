"""From Arrow columns to tensors: types, shapes, nulls."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfspark.columns.prepare import prepare_batch
from tfspark.columns.spec import ColumnSpec, arrow_schema, plan_columns
from tfspark.errors import SchemaError

pytestmark = pytest.mark.unit


def prepare(values: list[Any], t: pa.DataType, **rules: Any) -> pa.Array:
    batch = pa.RecordBatch.from_arrays([pa.array(values, t)], names=["x"])
    columns = plan_columns(batch.schema, **rules)
    return prepare_batch(batch, columns, arrow_schema(columns)).column(0)


@pytest.mark.parametrize(
    ("t", "dtype"),
    [
        (pa.bool_(), "bool"),
        (pa.int8(), "int8"),
        (pa.int16(), "int16"),
        (pa.int32(), "int32"),
        (pa.int64(), "int64"),
        (pa.float32(), "float32"),
        (pa.float64(), "float64"),
        (pa.string(), "string"),
        (pa.large_binary(), "string"),
        (pa.date32(), "int32"),
        (pa.timestamp("us", "UTC"), "int64"),
        (pa.decimal128(10, 2), "float64"),
    ],
)
def test_every_scalar_type_has_its_dtype(t: pa.DataType, dtype: str) -> None:
    (column,) = plan_columns(pa.schema([("x", t)]))
    assert column == ColumnSpec("x", dtype)


@pytest.mark.parametrize("t", [pa.map_(pa.string(), pa.int32()), pa.struct([("a", pa.int32())]), pa.null()])
def test_a_type_without_a_tensor_is_named(t: pa.DataType) -> None:
    with pytest.raises(SchemaError, match="'x'"):
        plan_columns(pa.schema([("x", t)]))


def test_dates_timestamps_and_decimals_become_numbers() -> None:
    assert prepare([datetime.date(1970, 1, 3)], pa.date32()).to_pylist() == [2]
    moment = datetime.datetime(1970, 1, 1, 0, 0, 1, tzinfo=datetime.timezone.utc)
    assert prepare([moment], pa.timestamp("us", "UTC")).to_pylist() == [1_000_000]
    assert prepare([decimal.Decimal("1.25")], pa.decimal128(10, 2)).to_pylist() == [1.25]


def test_a_null_is_an_error_that_names_the_column() -> None:
    with pytest.raises(SchemaError, match=r"'x' holds 1 null.*row 1"):
        prepare([1, None], pa.int64())


def test_all_columns_with_nulls_are_named_at_once_with_their_counts() -> None:
    kinds = {"x": pa.int64(), "y": pa.float32(), "z": pa.string(), "ok": pa.int64()}
    schema = pa.schema(list(kinds.items()))
    specs = plan_columns(schema, fill={"z": "?"})
    values = {"x": [1, None, None], "y": [None, None, None], "z": [None, "a", "b"], "ok": [1, 2, 3]}
    batch = pa.RecordBatch.from_pydict(values, schema=schema)
    with pytest.raises(SchemaError) as caught:
        prepare_batch(batch, specs, arrow_schema(specs))
    assert caught.value.message == (
        "Columns 'x' holds 2 null(s) in 3 rows (first: row 1 of its batch), "
        "'y' holds 3 null(s) in 3 rows (first: row 0 of its batch)."
    )
    assert caught.value.hint is not None and "fill={'x': value, 'y': value}" in caught.value.hint


def test_a_fill_value_replaces_nulls() -> None:
    assert prepare([1, None], pa.int64(), fill={"x": -1}).to_pylist() == [1, -1]
    assert prepare([None], pa.string(), fill={"x": "?"}).to_pylist() == [b"?"]
    with pytest.raises(SchemaError, match="does not fit"):
        prepare([None], pa.int64(), fill={"x": "word"})


def test_a_null_inside_an_array_is_an_error() -> None:
    with pytest.raises(SchemaError, match="inside its arrays"):
        prepare([[1.0, None]], pa.list_(pa.float32()))


def test_an_array_without_a_declared_shape_is_open() -> None:
    t = pa.list_(pa.float32())
    assert plan_columns(pa.schema([("x", t)])) == (ColumnSpec("x", "float32", ragged=1, open=True),)
    assert plan_columns(pa.schema([("x", t)]), {"x": None}) == (ColumnSpec("x", "float32", ragged=1),)
    dense = prepare([[1, 2, 3, 4]], t, shapes={"x": (2, 2)})
    assert dense.type == pa.list_(pa.float32(), 4)


def test_a_row_of_another_length_than_declared_is_an_error() -> None:
    with pytest.raises(SchemaError, match="holds 1 values"):
        prepare([[1, 2], [3]], pa.list_(pa.float32()), shapes={"x": 2})


def test_arrays_of_arrays_follow_their_shape() -> None:
    t = pa.list_(pa.list_(pa.int64()))
    rows = [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert prepare(rows, t).to_pylist() == rows
    assert prepare(rows, t, shapes={"x": (2, 2)}).to_pylist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert prepare([[[1, 2]], []], t, shapes={"x": (None, 2)}).to_pylist() == [[[1, 2]], []]
    assert prepare([[1, 2, 3, 4], []], pa.list_(pa.int64()), shapes={"x": (None,)}).to_pylist() == [[1, 2, 3, 4], []]
    assert plan_columns(pa.schema([("x", pa.list_(pa.list_(pa.int64(), 3)))]))[0].shape == (3,)
    assert plan_columns(pa.schema([("x", pa.list_(pa.list_(pa.int64()), 3))]))[0].ragged == 2
    for shape, rows in [((2, 2), [[[1, 2]]]), ((2, 2), [[[1, 2], [3]]]), ((None, 2), [[[1]]])]:
        with pytest.raises(SchemaError, match="but a row holds"):
            prepare(rows, t, shapes={"x": shape})
    for shape in [(2, None), (0,), ()]:
        with pytest.raises(SchemaError, match="every dimension"):
            prepare([], t, shapes={"x": shape})
    with pytest.raises(SchemaError, match="inside its arrays"):
        prepare([[[1], None]], t)


VECTOR = pa.struct(
    [("type", pa.int8()), ("size", pa.int32()), ("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float64()))]
)


@given(st.lists(st.tuples(st.booleans(), st.lists(st.sampled_from([0.0, 1.0, -2.5]), min_size=5, max_size=5))))
def test_vectors_keep_their_values_as_sparse_rows(rows: list[tuple[bool, list[float]]]) -> None:
    vectors: list[Any] = []
    for sparse, values in rows:
        where = [i for i, v in enumerate(values) if v] if sparse else None
        kept = [values[i] for i in where] if where is not None else values
        vectors.append({"type": 0 if sparse else 1, "size": 5 if sparse else None, "indices": where, "values": kept})
    batch = pa.RecordBatch.from_arrays([pa.array([vectors[0], *vectors] if vectors else [], VECTOR)], names=["x"])
    columns = plan_columns(batch.schema, shapes={"x": 5}, sparse=["x"])
    out = prepare_batch(batch.slice(min(1, len(vectors))), columns, arrow_schema(columns)).column(0).to_pylist()
    dense = [[dict(zip(o["indices"], o["values"], strict=True)).get(i, 0.0) for i in range(5)] for o in out]
    assert dense == [values for _, values in rows]
    if vectors:
        with pytest.raises(SchemaError, match="declared with vectors of size 4"):
            columns = plan_columns(batch.schema, shapes={"x": 4}, sparse=["x"])
            prepare_batch(batch, columns, arrow_schema(columns))


def test_sliced_batches_are_prepared_from_their_own_rows() -> None:
    batch = pa.RecordBatch.from_pydict({"x": [[1], [2, 3], [4, 5, 6]], "y": ["a", "b", "c"]}).slice(1, 2)
    columns = plan_columns(batch.schema)
    out = prepare_batch(batch, columns, arrow_schema(columns))
    assert out.to_pydict() == {"x": [[2, 3], [4, 5, 6]], "y": [b"b", b"c"]}


def test_rules_for_columns_that_do_not_exist_are_refused() -> None:
    with pytest.raises(SchemaError, match=r"fill refers to unknown columns \['z'\]; the columns are \['x'\]"):
        plan_columns(pa.schema([("x", pa.int64())]), fill={"z": 0})
