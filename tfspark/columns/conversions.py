"""Numbers of one dtype as another: a value changes by the rounding of floats, and by nothing else.

An integer that leaves its range, a fraction that an integer would lose, and a whole number that a float cannot hold are
errors, as they are to `tfspark serve`. Whole arrays at a time, and free where every value of a dtype fits the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_PRECISION = {
    "float8_e5m2": 3,
    "float8_e4m3fn": 4,
    "bfloat16": 8,
    "float16": 11,
    "float32": 24,
    "float64": 53,
}
"""Bits of the significand of each dtype of floats, from the least precise to the most."""

_EXPONENT = {
    "float8_e4m3fn": 4,
    "float8_e5m2": 5,
    "float16": 5,
    "bfloat16": 8,
    "float32": 8,
    "float64": 11,
    "float128": 15,
}
"""Bits of the exponent of each dtype of floats."""


class DoesNotFit(ValueError):
    """A value has no equal in the dtype that it is to become.

    Parameters
    ----------
    index
        Position of the first such value in the array, taken flat.
    value
        The value itself.
    """

    def __init__(self, index: int, value: Any) -> None:
        super().__init__(index, value)
        self.index = index
        self.value = value


def converted(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Return numbers or booleans as another dtype.

    Parameters
    ----------
    values
        Of any shape.
    dtype
        Of booleans, integers, floats or complex numbers; those of ``ml_dtypes`` too.

    Raises
    ------
    DoesNotFit
        If a value is out of range, or an integer, and not held exactly.

    Examples
    --------
    >>> converted(np.array([1, 2]), np.dtype("float32"))
    array([1., 2.], dtype=float32)
    """
    source = values.dtype
    if source == dtype:
        return values
    if dtype.kind == "c":
        return converted(values, np.dtype("float32" if dtype == np.complex64 else "float64")).astype(dtype)
    if not values.size or source.kind == "b":
        return values.astype(dtype)
    if dtype.kind == "b":
        return _require((values == 0) | (values == 1), values, values.astype(dtype))
    if dtype.kind in "iu":
        return _integers(values, dtype)
    return _floats_of_integers(values, dtype) if source.kind in "iu" else _floats_of_floats(values, dtype)


def _require(fits: np.ndarray, values: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Return what was made of values if all of them fit."""
    if not fits.all():
        index = int(np.argmin(fits.reshape(-1)))
        raise DoesNotFit(index, values.reshape(-1)[index].item())
    return made


def _integers(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    limits = np.iinfo(dtype)
    if values.dtype.kind in "iu":
        if not np.can_cast(values.dtype, dtype, "safe") and not (
            limits.min <= int(values.min()) and int(values.max()) <= limits.max
        ):
            # Python's own whole numbers compare across signs; this is on the way to an error only.
            fits = [limits.min <= v <= limits.max for v in values.reshape(-1).tolist()]
            return _require(np.array(fits), values, values)
        return values.astype(dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        made = values.astype(dtype)
        # The first number beyond the range is a power of two, which every dtype of floats holds.
        fits = (values >= float(limits.min)) & (values < float(limits.max + 1)) & (made == values)
    return _require(fits, values, made)


def _floats_of_integers(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    with np.errstate(over="ignore"):
        made = values.astype(dtype)
    exact = 2 ** _PRECISION[dtype.name]
    limits = np.iinfo(values.dtype)
    if (-exact <= limits.min and limits.max <= exact) or (-exact <= int(values.min()) and int(values.max()) <= exact):
        return made
    with np.errstate(invalid="ignore"):
        back = made.astype(np.float64)
        fits = np.isfinite(back) & (back < float(limits.max + 1)) & (back.astype(values.dtype) == values)
    return _require(fits, values, made)


def _floats_of_floats(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    with np.errstate(over="ignore"):
        made = values.astype(dtype)
    if _EXPONENT[dtype.name] >= _EXPONENT[values.dtype.name]:
        return made
    wide = made if dtype.kind == "f" else made.astype(np.float32)
    # Two passes without memory of their own; NaN, which both give if there is one, needs a closer look.
    if np.isfinite(wide.max()) and np.isfinite(wide.min()):
        return made
    return _require(np.isfinite(wide) | ~np.isfinite(values), values, made)
