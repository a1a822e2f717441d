"""Settles the shapes of array columns that nobody has declared, once for all workers of a feed. Pure, no I/O.

The first Arrow batch that each worker is sent says it: a dimension is dense if its arrays have one length in all of
them. Until then rows travel, but no dataset is made; a worker that gets no rows is not waited for longer than the feed
lasts. A later array of another length fails the feed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from tfspark.columns.lengths import Lengths, OtherLength, expected_lengths, settled
from tfspark.columns.spec import ColumnSpec, Shape
from tfspark.spec import NodeId


class Shapes:
    """The columns of a feed, whose shapes the first rows may have to settle.

    Parameters
    ----------
    planned
        Columns as they are before any row was seen; some may be open.

    Attributes
    ----------
    settled
        The columns as they are read; ``None`` as long as one is open.
    """

    def __init__(self, planned: Sequence[ColumnSpec]) -> None:
        self.planned = tuple(planned)
        self.settled = None if self.has_open else self.planned
        self._seen: dict[NodeId, Mapping[str, Lengths]] = {}
        self._others: list[OtherLength] = []

    @property
    def has_open(self) -> bool:
        """Whether rows have to settle, or had to, what became of a column."""
        return any(c.open for c in self.planned)

    def begin(self) -> None:
        """Forget what was seen of a feed that was not delivered; what is settled stays."""
        self._seen.clear()
        self._others.clear()

    def saw(self, node: NodeId, lengths: Mapping[str, Lengths]) -> None:
        """Note what the first batch for a worker shows; its later partitions do not count."""
        if self.settled is None:
            self._seen.setdefault(node, lengths)

    def has_seen(self, nodes: Collection[NodeId]) -> bool:
        """Tell whether all of these workers have been sent a batch."""
        return set(nodes) <= set(self._seen)

    def saw_other(self, other: OtherLength) -> None:
        """Note that a partition holds arrays that are not as long as those in its first batch.

        Once shapes are settled its task knows what that means.
        """
        if self.settled is None:
            self._others.append(other)

    def settle(self) -> tuple[ColumnSpec, ...]:
        """Decide by what was seen until now, for good.

        Raises
        ------
        SchemaError
            If arrays of another length than a column has now were already seen.
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
        """Return the shapes that were settled, as one would declare them."""
        return {
            c.name: (*[None] * c.ragged, *c.shape) if c.shape else None
            for before, c in zip(self.planned, self.settled or (), strict=False)
            if before.open
        }
