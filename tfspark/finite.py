"""NaN and infinities out of what becomes JSON, which knows no such numbers: browsers refuse a text that has one."""

from __future__ import annotations

import math
from typing import Any


def finite(value: Any) -> Any:
    """Return plain values with ``None`` for each number that is not finite; tuples become lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, (list, tuple)) else value
