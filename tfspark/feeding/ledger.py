"""Which worker gets which partition, and which upload of it counts. Pure bookkeeping, no I/O.

A partition may be uploaded more than once (Spark retries tasks, and runs slow ones twice); the first upload that is
whole is committed, all others are told that they came late. A partition that is already committed is not assigned
again.

An assignment and a commit cost the same however many partitions a feed has: sums are kept, not made, and a partition
takes 14 bytes.
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
    """A worker that takes rows, and the host it runs on."""

    node: NodeId
    host: str


PAGE_PARTITIONS = 4096
"""Partitions whose books are allocated together."""

NOBODY = -1

KEPT_REFUSALS = 4096
"""Uploads that are remembered after they were told that their partition had already arrived."""


class _Page:
    """Books of neighbouring partitions: whose each is, by which upload, and which attempts of its task were seen."""

    def __init__(self) -> None:
        self.owners = array("h", [NOBODY]) * PAGE_PARTITIONS
        self.uploads = array("q", [0]) * PAGE_PARTITIONS
        self.attempts = array("I", [0]) * PAGE_PARTITIONS


class FeedLedger:
    """The books of one feed.

    Parameters
    ----------
    targets
        The workers to spread rows over; at least one, at most 32,767.
    seed
        Makes the worker of each partition a matter of its number alone, in balance by partitions instead of rows.

    Attributes
    ----------
    committed
        How many partitions have arrived.
    nbytes
        Committed bytes, in the form in which they travel.
    recomputed
        Whether Spark ran the feeding stage again, because what it reads was lost, after partitions of it had been
        committed. If its rows then fall into other partitions than before, some are lost and others come twice.
    missing
        Partitions that have to come again, as the worker was lost that they were committed to.
    ended
        Whether all had arrived; a missing partition can then come only to the worker that had it.
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
        # By target: what has arrived, and how many partitions are on their way that have not arrived.
        self._rows, self._bytes, self._arrived, self._coming = ([0] * len(self.targets) for _ in range(4))
        self._coming_to: dict[int, list[int]] = {}
        self._refused: deque[str] = deque(maxlen=KEPT_REFUSALS)

    def end(self) -> None:
        """Every partition has arrived: from now on each belongs to its worker, even if that is lost."""
        self.ended = True

    def forget(self, node: NodeId) -> None:
        """Note that a worker was lost with all it held."""
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
        """Say in a sentence how a worker's share stands."""
        place = self._place.get(node, NOBODY)
        arrived = 0 if place == NOBODY else self._arrived[place]
        coming = sorted(p for p, places in self._coming_to.items() if place in places)
        listed = ", ".join(map(str, coming[:8])) + (", ..." if len(coming) > 8 else "")
        what = f"partition(s) {listed} are on their way to it" if coming else "none is on its way to it"
        return f"{arrived} of the {self.committed} partitions that have arrived went to it, {what}."

    def assign(
        self, partition: int, upload: str, host: str, attempt: int = 0, away: Collection[NodeId] = ()
    ) -> NodeId | None:
        """Choose the worker for an upload, or ``None`` if the partition is already committed.

        The worker with the fewest rows, counting uploads under way as average partitions; among workers within
        one average partition of the fewest, one on the same host. With a seed, a matter of the number alone.
        Workers that are `away` are passed over if it is not. Asking twice for an upload changes nothing.
        """
        if upload in self._uploading:
            return self.targets[self._uploading[upload][1]].node
        if upload in self._refused:
            return None
        page, i = self._entry(partition)
        # Attempts of a task are counted anew only when its whole stage runs again.
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
        """Record that an upload is whole; return whether it is the one that counts. Asking twice changes nothing.

        An upload to a worker that was lost meanwhile does not count, though its word may come late.
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
            # Those that broke off are not taken back: the partition has come another way now.
            for other in self._coming_to.pop(partition, ()):
                self._coming[other] -= 1
        return place != NOBODY and page.owners[i] == place and page.uploads[i] == name

    def partitions_of(self, node: NodeId) -> Iterator[int]:
        """Yield the partitions that a worker has."""
        place = self._place[node]
        for number, page in self._pages.items():
            yield from (number * PAGE_PARTITIONS + i for i, owner in enumerate(page.owners) if owner == place)


def _name(upload: str) -> int:
    """Return the number under which an upload is remembered; names of uploads are random."""
    return hash(upload)
