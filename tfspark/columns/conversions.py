"""Convert numbers from one dtype to another; the rounding of floats is the only change of a value that is allowed.

These are errors, as in `tfspark serve`: an integer out of range, a fraction that an integer would lose, and a whole
number that a float cannot hold. Each call converts a whole array. If every value of a dtype fits the other dtype, the
check costs nothing.
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
"""Bits of the significand of each float dtype, from the least precise to the most precise."""

_EXPONENT = {
    "float8_e4m3fn": 4,
    "float8_e5m2": 5,
    "float16": 5,
    "bfloat16": 8,
    "float32": 8,
    "float64": 11,
    "float128": 15,
}
"""Bits of the exponent of each float dtype."""


class DoesNotFit(ValueError):
    """The target dtype cannot hold a value.

    Parameters
    ----------
    index
        Position of the first such value in the flattened array.
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
        Array of any shape.
    dtype
        Booleans, integers, floats or complex numbers, including the dtypes of ``ml_dtypes``.

    Raises
    ------
    DoesNotFit
        If a value is out of range, or if a conversion from or to integers would change it.

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
    """Return the converted values `made` if all `values` fit; otherwise raise `DoesNotFit`."""
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
            # Python integers compare correctly across signed and unsigned. This slow path only leads to an error.
            fits = [limits.min <= v <= limits.max for v in values.reshape(-1).tolist()]
            return _require(np.array(fits), values, values)
        return values.astype(dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        made = values.astype(dtype)
        # The first number beyond the range is a power of two, which a float dtype holds exactly, or as infinity.
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
    # max and min make two passes and allocate no arrays. With a NaN both return NaN, and each value is checked below.
    if np.isfinite(wide.max()) and np.isfinite(wide.min()):
        return made
    return _require(np.isfinite(wide) | ~np.isfinite(values), values, made)
