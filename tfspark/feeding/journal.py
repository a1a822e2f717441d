"""The list of feeds of a cluster, so that restarted nodes can be fed again from the epoch at which they continue.

Epochs are counted over all feeds: a checkpoint records how many of them it has seen. Pure bookkeeping, no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tfspark.feeding.terms import FeedTerms

if TYPE_CHECKING:
    from pyspark.resource import ResourceProfile

    from tfspark.feeding.sources import Source


@dataclass(frozen=True)
class FeedEntry:
    """One feed.

    Attributes
    ----------
    source
        Source of its rows, which can be read any number of times.
    terms
        How its rows are read.
    profile
        Spark's resource profile of the feed tasks; ``None`` for the default profile.
    workers
        Indices of the workers that get rows; ``None`` for all.
    streamed
        Whether it is a micro-batch of a stream: the stream's own checkpoint records what has been read of the stream.
    """

    source: Source
    terms: FeedTerms
    profile: ResourceProfile | None = None
    workers: Sequence[int] | None = None
    streamed: bool = False

    @property
    def epochs(self) -> int:
        """Number of epochs of this feed."""
        return self.terms.epochs

    def epochs_in(self, completed: int) -> int:
        """Return how many epochs of this feed are among the first `completed` epochs of all feeds."""
        return 0 if self.terms.name or self.streamed else min(max(completed - self.terms.base, 0), self.epochs)


class Journal:
    """All feeds of a cluster, in order.

    Parameters
    ----------
    keep
        Whether feeds are remembered so that they can be fed again.

    Attributes
    ----------
    begun
        Whether a feed has begun, so that feed tasks need room beside the nodes.
    """

    def __init__(self, keep: bool) -> None:
        self._keep = keep
        self.begun = False
        self._feeds = 0
        self._epochs = 0
        self.entries: list[FeedEntry] = []

    def open(self, entry: FeedEntry) -> FeedEntry:
        """Return a feed with its number and its first epoch; call `keep` with it after it has been delivered."""
        numbered = replace(entry, terms=replace(entry.terms, number=self._feeds, base=self._epochs))
        self._feeds += 1
        self._epochs += 0 if entry.terms.name else entry.epochs
        return numbered

    def keep(self, entry: FeedEntry) -> None:
        """Remember a delivered feed, unless it is a micro-batch of a stream, which is never fed again."""
        if self._keep and not entry.streamed:
            self.entries.append(entry)
