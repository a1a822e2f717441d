"""Settles the shapes of array columns without a declared shape, once for all workers of a feed. Pure, no I/O.

The first Arrow batch for each worker decides: a dimension is dense if its arrays have one length in all these batches.
Until then rows are sent, but no dataset is made. If a worker gets no rows, the shapes are settled when the feed ends at
the latest. A later array of another length fails the feed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from tfspark.columns.lengths import Lengths, OtherLength, expected_lengths, settled
from tfspark.columns.spec import ColumnSpec, Shape
from tfspark.spec import NodeId


class Shapes:
    """The columns of a feed; the first rows settle the shapes of those that are open.

    Parameters
    ----------
    planned
        The columns before any row was seen; some may be open.

    Attributes
    ----------
    settled
        The columns as workers read them; ``None`` as long as one is open.
    """

    def __init__(self, planned: Sequence[ColumnSpec]) -> None:
        self.planned = tuple(planned)
        self.settled = None if self.has_open else self.planned
        self._seen: dict[NodeId, Mapping[str, Lengths]] = {}
        self._others: list[OtherLength] = []

    @property
    def has_open(self) -> bool:
        """Whether a column is, or was, open: its shape depends on the first rows."""
        return any(c.open for c in self.planned)

    def begin(self) -> None:
        """Forget the lengths seen in a feed that was not delivered; settled shapes stay."""
        self._seen.clear()
        self._others.clear()

    def saw(self, node: NodeId, lengths: Mapping[str, Lengths]) -> None:
        """Note the lengths in the first batch for a worker; its later partitions do not count."""
        if self.settled is None:
            self._seen.setdefault(node, lengths)

    def has_seen(self, nodes: Collection[NodeId]) -> bool:
        """Return whether all of these workers have been sent a batch."""
        return set(nodes) <= set(self._seen)

    def saw_other(self, other: OtherLength) -> None:
        """Note that a partition has arrays that are not as long as those in its first batch.

        After the shapes are settled, this does nothing: the feed task itself decides whether it is an error.
        """
        if self.settled is None:
            self._others.append(other)

    def settle(self) -> tuple[ColumnSpec, ...]:
        """Settle the shapes, finally, by the lengths seen until now.

        Raises
        ------
        SchemaError
            If arrays whose length differs from the settled one were already seen.
        """
        if self.settled is None:
            columns = tuple(
                settled(c, [of[c.name] for of in self._seen.values()]) if c.open else c for c in self.planned
            )
            expected = expected_lengths(self.planned, columns)
            for other in self._others:
                if expected[other.column][other.level] is not None:
                    raise other.error()
            self.settled = columns
        return self.settled

    def found(self) -> dict[str, Shape]:
        """Return the shapes of open columns that were settled, in the form of the argument ``shapes``."""
        return {
            c.name: (*[None] * c.ragged, *c.shape) if c.shape else None
            for before, c in zip(self.planned, self.settled or (), strict=False)
            if before.open
        }
