"""What a cluster was fed, so that nodes that are started again can be fed again, from the epoch they go on with.

Epochs are counted over all feeds: a checkpoint knows how many of them it has seen. Pure bookkeeping, no I/O.
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
        Where its rows come from, as often as they are asked for.
    terms
        How they are to be read.
    profile
        Spark's resource profile of the tasks that send it; ``None`` for the default one.
    workers
        Indices of the workers that get rows; ``None`` for all.
    streamed
        Whether it is a micro-batch of a stream: the stream's own checkpoint knows what has been seen of it.
    """

    source: Source
    terms: FeedTerms
    profile: ResourceProfile | None = None
    workers: Sequence[int] | None = None
    streamed: bool = False

    @property
    def epochs(self) -> int:
        """How many epochs it has."""
        return self.terms.epochs

    def epochs_in(self, completed: int) -> int:
        """Return how many of its epochs are among the first `completed` of all."""
        return 0 if self.terms.name or self.streamed else min(max(completed - self.terms.base, 0), self.epochs)


class Journal:
    """All feeds of a cluster, in order.

    Parameters
    ----------
    keep
        Whether feeds are remembered, to be fed again.
    """

    def __init__(self, keep: bool) -> None:
        self._keep = keep
        self._feeds = 0
        self._epochs = 0
        self.entries: list[FeedEntry] = []

    @property
    def begun(self) -> bool:
        """Whether anything was fed."""
        return self._feeds > 0

    def open(self, entry: FeedEntry) -> FeedEntry:
        """Give a feed its number and its place in the count of epochs; `keep` it when it has been delivered."""
        numbered = replace(entry, terms=replace(entry.terms, number=self._feeds, base=self._epochs))
        self._feeds += 1
        self._epochs += 0 if entry.terms.name else entry.epochs
        return numbered

    def keep(self, entry: FeedEntry) -> None:
        """Remember a feed that has been delivered, unless it is a batch of a stream, which no restart feeds again."""
        if self._keep and not entry.streamed:
            self.entries.append(entry)
