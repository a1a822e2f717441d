"""Columns as the tensors that inputs take, without Spark."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tfspark.columns.rows import in_partition
from tfspark.errors import SchemaError
from tfspark.prediction.inputs import rule_of
from tfspark.prediction.tensors import tensors_of
from tfspark.saved_models.signatures import TensorInfo

ROW = in_partition(3, 100)


def tensors(
    values: Any, kind: pa.DataType, dtype: str, row: tuple[int | None, ...] | None, ragged: int = 0, **given: Any
) -> list[Any]:
    array = values if isinstance(values, pa.Array) else pa.array(values, kind)
    info = TensorInfo(dtype, None if row is None else (None, *row))
    rule = rule_of("in", info, ragged, pa.field("c", array.type), **given)
    return [t.numpy() for t in tensors_of(array, rule, ROW, "Fill it.")]


def tensor(*args: Any, **given: Any) -> Any:
    (found,) = tensors(*args, **given)
    return found


floats, ints = pa.list_(pa.float32()), pa.list_(pa.int64())


@pytest.mark.parametrize(
    ("values", "kind", "dtype", "row", "given", "expected"),
    [
        ([1, 2], pa.int64(), "float32", (1,), {}, [[1], [2]]),
        ([1, 2], pa.int64(), "float32", (None,), {}, [[1], [2]]),
        ([True], pa.bool_(), "int32", (), {}, [1]),
        ([[1, 2], [3]], ints, "int32", (None,), {}, [[1, 2], [3, 0]]),
        ([[1, 2], [3]], ints, "float64", (None,), {"padding": -1.5}, [[1, 2], [3, -1.5]]),
        ([["a"], ["b", "c"]], pa.list_(pa.string()), "string", (None,), {}, [[b"a", b""], [b"b", b"c"]]),
        ([["a"], []], pa.list_(pa.string()), "string", (None,), {"padding": "-"}, [[b"a"], [b"-"]]),
        ([[], []], floats, "float32", (None,), {}, [[], []]),
        ([[1, 2, 3, 4]], floats, "float32", (2, 2), {}, [[[1, 2], [3, 4]]]),
        ([[1, 2, 3, 4], [5, 6]], floats, "float32", (None, 2), {}, [[[1, 2], [3, 4]], [[5, 6], [0, 0]]]),
        ([[1, 2], [3]], floats, "float32", (None, 1), {}, [[[1], [2]], [[3], [0]]]),
        ([[1, 2], [3]], floats, "float32", (None, None), {}, [[[1], [2]], [[3], [0]]]),
        ([[[1], [2, 3]], []], pa.list_(floats), "float32", (None, None), {}, [[[1, 0], [2, 3]], [[0, 0], [0, 0]]]),
        ([[[1, 2]], []], pa.list_(floats), "float32", (None, 2), {}, [[[1, 2]], [[0, 0]]]),
        ([[[1], [2, 3]]], pa.list_(floats), "float32", (2, None), {}, [[[1, 0], [2, 3]]]),
        ([[1], [2, 3]], floats, "float32", None, {}, [[1, 0], [2, 3]]),
        ([[1, 2, 3, 4]], floats, "float32", None, {"shape": (2, 2)}, [[[1, 2], [3, 4]]]),
        ([[1, 2, 3, 4]], floats, "float32", (None, None), {"shape": (2, 2)}, [[[1, 2], [3, 4]]]),
        ([[1, 2], None], floats, "float32", (2,), {"fill": 7}, [[1, 2], [7, 7]]),
        ([[1, 2], None], floats, "float32", (2,), {"fill": [5, 6]}, [[1, 2], [5, 6]]),
        ([[1, None], [None, 2]], floats, "float32", (2,), {"fill": 7}, [[1, 7], [7, 2]]),
        ([[1, None], None], floats, "float32", (None,), {"fill": 7}, [[1, 7], [0, 0]]),
        ([[1, 2, 3, 4], None], floats, "float32", (2, 2), {"fill": 7}, [[[1, 2], [3, 4]], [[7, 7], [7, 7]]]),
        ([[[1, 2]], None], pa.list_(floats), "float32", (1, 2), {"fill": 7}, [[[1, 2]], [[7, 7]]]),
        ([1, None], pa.int32(), "int8", (), {"fill": 9}, [1, 9]),
        ([decimal.Decimal("1.25")], pa.decimal128(10, 2), "float32", (), {}, [1.25]),
        ([decimal.Decimal(2**53 + 1)], pa.decimal128(38, 0), "int64", (), {}, [2**53 + 1]),
        ([datetime.date(1970, 1, 3)], pa.date32(), "float32", (), {}, [2]),
        ([datetime.datetime(1970, 1, 1, 0, 0, 1)], pa.timestamp("us"), "int64", (), {}, [1_000_000]),
    ],
)
def test_columns_become_what_inputs_take(
    values: Any, kind: pa.DataType, dtype: str, row: Any, given: Any, expected: Any
) -> None:
    found = tensor(values, kind, dtype, row, **given)
    assert found.tolist() == expected
    assert tf.as_dtype(found.dtype) == tf.as_dtype(dtype)


def test_ragged_signatures_get_row_splits() -> None:
    found = tensors([[1, 2], [], [3]], ints, "int32", (), ragged=1)
    assert [f.tolist() for f in found] == [[1, 2, 3], [0, 2, 2, 3]]
    found = tensors([[[1], [2, 3]], []], pa.list_(floats), "float32", (), ragged=2)
    assert [f.tolist() for f in found] == [[1, 2, 3], [0, 2, 2], [0, 1, 3]]
    found = tensors([[[1, 2], [3, 4]], [[5, 6]]], pa.list_(floats), "float32", (2,), ragged=1)
    assert [f.tolist() for f in found] == [[[1, 2], [3, 4], [5, 6]], [0, 2, 3]]
    # Arrays of one length, too.
    found = tensors([[1, 2], [3, 4]], floats, "float32", (), ragged=1)
    assert [f.tolist() for f in found] == [[1, 2, 3, 4], [0, 2, 4]]


@pytest.mark.parametrize(
    ("values", "kind", "dtype", "row", "message"),
    [
        ([1, 3_000_000_000], pa.int64(), "int32", (), "'c' holds 3000000000 in row 101 of partition 3, which"),
        ([[1, 2], [3, 300]], ints, "uint8", (2,), "'c' holds 300 in row 101 of partition 3"),
        ([[1], [], [3, 300]], ints, "uint8", (None,), "'c' holds 300 in row 102 of partition 3"),
        ([[[1], []], [[2, 300]]], pa.list_(ints), "uint8", (None, None), "'c' holds 300 in row 101"),
        ([2**24 + 1], pa.int64(), "float32", (), "holds 16777217 .* cannot hold exactly.\nHint: .* cast .* to float"),
        ([float("nan")], pa.float64(), "int64", (), "'c' holds nan in row 100"),
        ([decimal.Decimal("1.5"), decimal.Decimal("2")], pa.decimal128(4, 1), "int32", (), "'c' holds 1.5 in row 100"),
        ([datetime.datetime(2024, 1, 1)], pa.timestamp("us"), "int32", (), "holds 2024-01-01 .*unix_timestamp"),
        ([1, None], pa.int64(), "int64", (), r"'c' holds 1 null\(s\) in 2 rows \(first: row 101 .*\nHint: Fill it"),
        ([[1], [None, 2]], ints, "int64", (None,), r"holds 1 null\(s\) inside its arrays \(first: row 101"),
        ([[1, 2], [3]], ints, "int64", (2,), r"an array of 1 values in row 101 .* shape \(2,\), which need 2 values"),
        ([[1, 2], [3]], ints, "int64", (None, 2), "an array of 1 values in row 101 .* a multiple of 2 values"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_are_named(values: Any, kind: pa.DataType, dtype: str, row: Any, message: str) -> None:
    with pytest.raises(SchemaError, match=f"(?s){message}"):
        tensor(values, kind, dtype, row)


@pytest.mark.parametrize(
    ("kind", "dtype", "row", "given", "message"),
    [
        (pa.string(), "float32", (), {}, "takes float32, but the column 'c' holds string"),
        (floats, "float32", (), {}, r"rows of shape \(\), but the column 'c' holds arrays"),
        (pa.float32(), "float32", (3,), {}, r"rows of shape \(3,\), but the column 'c' holds single values"),
        (floats, "float32", (2, None), {}, None),
        (floats, "float32", (None, None, 2), {}, "holds arrays"),
        (pa.list_(floats), "float32", (4,), {}, "holds arrays of depth 2"),
        (pa.map_(pa.string(), pa.int32()), "float32", (), {}, "cannot become a tensor"),
        (pa.struct([("a", pa.int32())]), "float32", (), {}, r"holds structs(.|\n)*inputs=\{'in': 'c.a'\}"),
        (floats, "float32", (3,), {"shape": 4}, r"shapes gives 'c' the shape 4, but the input 'in' takes .* \(3,\)"),
        (pa.int32(), "int32", (), {"fill": [1]}, "not an array column"),
    ],
)
def test_columns_that_cannot_be_inputs_are_refused(
    kind: pa.DataType, dtype: str, row: Any, given: Any, message: str | None
) -> None:
    field, info = pa.field("c", kind), TensorInfo(dtype, (None, *row))
    if message is None:
        assert rule_of("in", info, 0, field, **given).dims == row
        return
    with pytest.raises(SchemaError, match=message):
        rule_of("in", info, 0, field, **given)


@given(
    st.lists(st.lists(st.lists(st.integers(0, 100), max_size=3), max_size=3), min_size=1, max_size=5),
    st.integers(0, 4),
    st.integers(-1, 1),
)
def test_padding_is_that_of_ragged_tensors(rows: Any, skipped: int, padding: int) -> None:
    array = pa.array(rows, pa.list_(pa.list_(pa.int32()))).slice(skipped)
    found = tensor(array, None, "int64", (None, None), padding=padding)
    ragged = tf.ragged.constant(rows[skipped:], tf.int64, ragged_rank=2)
    np.testing.assert_array_equal(found, ragged.to_tensor(default_value=padding))
