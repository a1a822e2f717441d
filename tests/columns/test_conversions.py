"""Numbers become another dtype exactly, or are named."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfspark.columns.conversions import DoesNotFit, converted

pytestmark = pytest.mark.unit

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
FLOATS = ["float16", "float32", "float64"]


@pytest.mark.parametrize(
    ("values", "source", "wanted", "index"),
    [
        ([1, 3_000_000_000], "int64", "int32", 1),
        ([300], "int32", "uint8", 0),
        ([0, -1], "int32", "uint64", 1),
        ([2**64 - 1], "uint64", "int64", 0),
        ([1.0, math.nan], "float64", "int32", 1),
        ([math.inf], "float32", "int64", 0),
        ([2.0**63], "float64", "int64", 0),
        ([2.0**31], "float32", "int32", 0),
        ([2.0, 1.5], "float32", "int8", 1),
        ([2**24, 2**24 + 1], "int64", "float32", 1),
        ([2**53 + 1], "int64", "float64", 0),
        ([2**63 - 1], "int64", "float32", 0),
        ([70_000], "int32", "float16", 0),
        ([math.nan, 1e300], "float64", "float32", 1),
        ([-1e300], "float64", "float32", 0),
        ([65504.0, 70_000.0], "float32", "float16", 1),
        ([0, 1, 5], "int64", "bool", 2),
        ([0.5], "float64", "bool", 0),
        ([1e300], "float64", "complex64", 0),
    ],
)
def test_the_first_value_that_does_not_fit_is_named(values: list[Any], source: str, wanted: str, index: int) -> None:
    with pytest.raises(DoesNotFit) as caught:
        converted(np.array(values, source), np.dtype(wanted))
    assert caught.value.index == index
    assert caught.value.value == values[index] or math.isnan(values[index])


def test_floats_are_rounded_and_what_is_not_finite_stays() -> None:
    found = converted(np.array([0.1, math.inf, -math.inf, math.nan, 1e-300]), np.dtype("float32"))
    np.testing.assert_array_equal(found, np.array([0.1, math.inf, -math.inf, math.nan, 0], np.float32))
    assert converted(np.array([True, False]), np.dtype("float32")).tolist() == [1, 0]
    assert converted(np.zeros((0, 3), np.int64), np.dtype("int8")).shape == (0, 3)
    same = np.arange(3)
    assert converted(same, np.dtype("int64")) is same


@given(
    st.sampled_from(INTEGERS + FLOATS),
    st.sampled_from(INTEGERS + FLOATS),
    st.lists(st.integers(0, 2**64) | st.sampled_from([2**n + d for n in range(64) for d in (-1, 0, 1)]), max_size=5),
    st.booleans(),
)
def test_whole_numbers_are_the_same_or_refused(source: str, wanted: str, numbers: list[int], negative: bool) -> None:
    numbers = [-n if negative else n for n in numbers]
    if source in INTEGERS:
        limits = np.iinfo(source)
        numbers = [n for n in numbers if limits.min <= n <= limits.max]
    with np.errstate(over="ignore"):
        values = np.array(numbers, source)
    # What the array holds, which for floats is rounded already.
    held = values.tolist()
    may_round = source in FLOATS and wanted in FLOATS

    def fits(v: float) -> bool:
        if not math.isfinite(v):
            return wanted in FLOATS
        if wanted in INTEGERS:
            return bool(np.iinfo(wanted).min <= v <= np.iinfo(wanted).max)
        with np.errstate(over="ignore"):
            there = np.dtype(wanted).type(v)
        return bool(np.isfinite(there)) and (may_round or Fraction(float(there)) == Fraction(v))

    wrong = [i for i, v in enumerate(held) if not fits(v)]
    if wrong:
        with pytest.raises(DoesNotFit) as caught:
            converted(values, np.dtype(wanted))
        assert caught.value.index == wrong[0]
    else:
        np.testing.assert_array_equal(converted(values, np.dtype(wanted)), values.astype(wanted))
