"""Names of rows in errors: the position in the batch, or in the partition where that is known."""

from __future__ import annotations

from collections.abc import Callable

RowName = Callable[[int], str]
"""Takes the position of a row in a batch and returns text that says where the row is."""


def in_batch(index: int) -> str:
    """Return the name of a row by its position in a batch whose partition is not known."""
    return f"row {index} of its batch"


def in_partition(partition: int, first: int) -> RowName:
    """Return a function that names the rows of a batch that begins with row `first` of a partition."""
    return lambda index: f"row {first + index} of partition {partition}"
