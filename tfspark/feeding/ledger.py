"""Which worker gets which partition, and which upload of it counts. Pure bookkeeping, no I/O.

A partition may be uploaded more than once (Spark retries tasks, and runs slow ones twice). The first complete upload is
committed; all others are told that they are late. A committed partition is not assigned again.

The cost of an assignment or a commit does not depend on the number of partitions, because totals are kept up to date
and not recomputed. Each partition takes 14 bytes.
"""

from __future__ import annotations

import random
from array import array
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from tfspark.spec import NodeId


@dataclass(frozen=True)
class Target:
    """A worker that takes rows, and its host."""

    node: NodeId
    host: str


PAGE_PARTITIONS = 4096
"""Partitions whose records are allocated together."""

NOBODY = -1

KEPT_REFUSALS = 4096
"""Refused uploads that are remembered: uploads whose partition had already arrived."""


class _Page:
    """Records of consecutive partitions: the worker and upload of each, and the attempts of its task that were seen."""

    def __init__(self) -> None:
        self.owners = array("h", [NOBODY]) * PAGE_PARTITIONS
        self.uploads = array("q", [0]) * PAGE_PARTITIONS
        self.attempts = array("I", [0]) * PAGE_PARTITIONS


class FeedLedger:
    """The ledger of one feed.

    Parameters
    ----------
    targets
        The workers to spread rows over; at least one, at most 32,767.
    seed
        If given, the worker of each partition depends on the partition number and the seed alone, and partitions are
        balanced instead of rows.

    Attributes
    ----------
    committed
        Number of partitions that have arrived.
    nbytes
        Committed bytes, as sent.
    recomputed
        Whether Spark ran the feed stage again, because its input was lost, after partitions of it had been committed.
        If rows then fall into other partitions than before, some rows are lost and others arrive twice.
    missing
        Partitions that must be sent again because their worker was lost after the commit, and that worker.
    ended
        Whether all partitions have arrived; a missing partition then goes only to the worker that had it.
    """

    def __init__(self, targets: Sequence[Target], seed: int | None = None) -> None:
        if not targets:
            raise ValueError("a feed needs at least one worker")
        self.targets = tuple(targets)
        self.committed = self.nbytes = 0
        self.recomputed = False
        self.missing: dict[int, NodeId] = {}
        self.ended = False
        self._seed = seed
        self._place = {t.node: i for i, t in enumerate(self.targets)}
        self._here = {t.host: [i for i, u in enumerate(self.targets) if u.host == t.host] for t in self.targets}
        self._pages: dict[int, _Page] = {}
        self._uploading: dict[str, tuple[int, int]] = {}
        # By target: rows, bytes and partitions that have arrived, and partitions that are on their way.
        self._rows, self._bytes, self._arrived, self._coming = ([0] * len(self.targets) for _ in range(4))
        self._coming_to: dict[int, list[int]] = {}
        self._refused: deque[str] = deque(maxlen=KEPT_REFUSALS)

    def end(self) -> None:
        """Note that every partition has arrived: from now on each belongs to its worker, even if the worker is lost."""
        self.ended = True

    def forget(self, node: NodeId) -> None:
        """Note that a worker was lost with all its rows."""
        place = self._place.get(node)
        if place is None:
            return
        for number, page in self._pages.items():
            for i, owner in enumerate(page.owners):
                if owner == place:
                    page.owners[i] = NOBODY
                    self.missing[number * PAGE_PARTITIONS + i] = node
        self.committed -= self._arrived[place]
        self.nbytes -= self._bytes[place]
        self._rows[place] = self._bytes[place] = self._arrived[place] = self._coming[place] = 0
        for upload in [u for u, (_, p) in self._uploading.items() if p == place]:
            del self._uploading[upload]
        for coming in self._coming_to.values():
            coming[:] = [p for p in coming if p != place]

    @property
    def rows(self) -> dict[NodeId, int]:
        """Committed rows by worker."""
        return {t.node: rows for t, rows in zip(self.targets, self._rows, strict=True)}

    def describe(self, node: NodeId) -> str:
        """Return a sentence about the partitions that have arrived at a worker or are on their way to it."""
        place = self._place.get(node, NOBODY)
        arrived = 0 if place == NOBODY else self._arrived[place]
        coming = sorted(p for p, places in self._coming_to.items() if place in places)
        listed = ", ".join(map(str, coming[:8])) + (", ..." if len(coming) > 8 else "")
        what = f"partition(s) {listed} are on their way to it" if coming else "none is on its way to it"
        return f"{arrived} of the {self.committed} partitions that have arrived went to it, {what}."

    def assign(
        self, partition: int, upload: str, host: str, attempt: int = 0, away: Collection[NodeId] = ()
    ) -> NodeId | None:
        """Return the worker for an upload, or ``None`` if the partition is already committed.

        Without a seed, choose the worker with the fewest rows, where each upload under way counts as an average
        partition. If workers on the same host are within one average partition of the fewest, choose among them. Skip
        workers in `away` unless all are away. With a seed, the partition number and the seed alone decide. Asking twice
        for an upload changes nothing.
        """
        if upload in self._uploading:
            return self.targets[self._uploading[upload][1]].node
        if upload in self._refused:
            return None
        page, i = self._entry(partition)
        # Attempt numbers of a task begin again only when its whole stage runs again.
        seen = 1 << min(attempt, 31)
        self.recomputed |= bool(page.attempts[i] & seen) and self.committed > 0
        page.attempts[i] |= seen
        if page.owners[i] != NOBODY:
            self._refused.append(upload)
            return None
        if self.ended:
            place = self._place[self.missing[partition]]
        elif self._seed is not None:
            place = self._fixed(partition)
        else:
            place = self._balanced(host, away)
        self._uploading[upload] = (partition, place)
        self._coming_to.setdefault(partition, []).append(place)
        self._coming[place] += 1
        return self.targets[place].node

    def _entry(self, partition: int) -> tuple[_Page, int]:
        number, i = divmod(partition, PAGE_PARTITIONS)
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = _Page()
        return page, i

    def _fixed(self, partition: int) -> int:
        block, place = divmod(partition, len(self.targets))
        places = range(len(self.targets))
        return random.Random(f"{self._seed} {block}").sample(places, len(places))[place]

    def _balanced(self, host: str, away: Collection[NodeId]) -> int:
        places: Sequence[int] = range(len(self.targets))
        if away:
            places = [p for p in places if self.targets[p].node not in away] or places
        average = max(sum(self._rows) / self.committed, 1.0) if self.committed else 1.0
        load = [rows + average * coming for rows, coming in zip(self._rows, self._coming, strict=True)]
        fewest = min(load) if not away else min(load[p] for p in places)
        near = [p for p in self._here.get(host, ()) if load[p] < fewest + average and (not away or p in places)]
        return min(near or places, key=load.__getitem__)

    def commit(self, partition: int, upload: str, node: NodeId, rows: int, nbytes: int) -> bool:
        """Record that an upload is complete, and return whether it is the one that counts.

        Asking twice changes nothing. An upload to a worker that was lost meanwhile does not count, even if the message
        about it arrives late.
        """
        page, i = self._entry(partition)
        place, name = self._place.get(node, NOBODY), _name(upload)
        is_under_way = self._uploading.pop(upload, None) == (partition, place)
        if is_under_way and page.owners[i] == NOBODY:
            page.owners[i], page.uploads[i] = place, name
            self.committed += 1
            self.nbytes += nbytes
            self._rows[place] += rows
            self._bytes[place] += nbytes
            self._arrived[place] += 1
            self.missing.pop(partition, None)
            # Uploads that broke off are still counted: stop counting all uploads of this partition, as it has arrived.
            for other in self._coming_to.pop(partition, ()):
                self._coming[other] -= 1
        return place != NOBODY and page.owners[i] == place and page.uploads[i] == name

    def partitions_of(self, node: NodeId) -> Iterator[int]:
        """Yield the partitions that a worker has."""
        place = self._place[node]
        for number, page in self._pages.items():
            yield from (number * PAGE_PARTITIONS + i for i, owner in enumerate(page.owners) if owner == place)


def _name(upload: str) -> int:
    """Return the number that stands for an upload in the ledger; the names of uploads are random."""
    return hash(upload)
