"""Replace NaN and infinities before values become JSON: JSON has no such numbers, and browsers reject them."""

from __future__ import annotations

import math
from typing import Any


def nonfinite_to_none(value: Any) -> Any:
    """Return plain values with each NaN or infinity replaced by ``None``; tuples become lists.

    Examples
    --------
    >>> nonfinite_to_none({"loss": float("nan"), "sizes": (1, 2)})
    {'loss': None, 'sizes': [1, 2]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: nonfinite_to_none(v) for k, v in value.items()}
    return [nonfinite_to_none(v) for v in value] if isinstance(value, (list, tuple)) else value


def plain_value(value: Any) -> Any:
    """Return a number (Python's or numpy's), string or boolean as a JSON value; return ``None`` for anything else."""
    if hasattr(value, "dtype") and hasattr(value, "item"):
        value = value.item() if value.ndim == 0 else None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (bool, int, float, str)) else None
