"""How errors name a row: by its position in its batch, or in its partition where that is known."""

from __future__ import annotations

from collections.abc import Callable

RowName = Callable[[int], str]
"""Takes the position of a row in a batch, and says where it is."""


def in_batch(index: int) -> str:
    """Name a row of a batch of which no more is known."""
    return f"row {index} of its batch"


def in_partition(partition: int, first: int) -> RowName:
    """Return what names the rows of a batch that begins with row `first` of a partition."""
    return lambda index: f"row {first + index} of partition {partition}"
