"""Which worker gets which partition, and which upload of it counts. Pure bookkeeping, no I/O.

A partition may be uploaded more than once (Spark retries tasks, and runs slow ones twice); the first upload that is
whole is committed, all others are told that they came late. A partition that is already committed is not assigned
again.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tfspark.spec import NodeId


@dataclass(frozen=True)
class Target:
    """A worker that takes rows, and the host it runs on."""

    node: NodeId
    host: str


@dataclass(frozen=True)
class Committed:
    """The upload of a partition that counts."""

    node: NodeId
    upload: str
    rows: int
    nbytes: int


class FeedLedger:
    """The books of one feed.

    Parameters
    ----------
    targets
        The workers to spread rows over; at least one.
    seed
        Makes the worker of each partition a matter of its number alone, in balance by partitions instead of rows.

    Attributes
    ----------
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
        self.recomputed = False
        self._seed = seed
        self._attempts: set[tuple[int, int]] = set()
        self.committed: dict[int, Committed] = {}
        self._uploading: dict[str, tuple[int, NodeId]] = {}
        self.missing: dict[int, NodeId] = {}
        self.ended = False

    def end(self) -> None:
        """Every partition has arrived: from now on each belongs to its worker, even if that is lost."""
        self.ended = True

    def forget(self, node: NodeId) -> None:
        """Note that a worker was lost with all it held."""
        for partition in [p for p, c in self.committed.items() if c.node == node]:
            del self.committed[partition]
            self.missing[partition] = node
        for upload in [u for u, (_, n) in self._uploading.items() if n == node]:
            del self._uploading[upload]

    @property
    def rows(self) -> dict[NodeId, int]:
        """Committed rows by worker."""
        rows = {t.node: 0 for t in self.targets}
        for c in self.committed.values():
            rows[c.node] += c.rows
        return rows

    @property
    def nbytes(self) -> int:
        """Committed bytes, in the form in which they travel."""
        return sum(c.nbytes for c in self.committed.values())

    def describe(self, node: NodeId) -> str:
        """Say in a sentence how a worker's share stands."""
        arrived = sum(c.node == node for c in self.committed.values())
        coming = sorted({p for p, n in self._uploading.values() if n == node and p not in self.committed})
        listed = ", ".join(map(str, coming[:8])) + (", ..." if len(coming) > 8 else "")
        what = f"partition(s) {listed} are on their way to it" if coming else "none is on its way to it"
        return f"{arrived} of the {len(self.committed)} partitions that have arrived went to it, {what}."

    def assign(
        self, partition: int, upload: str, host: str, attempt: int = 0, away: Collection[NodeId] = ()
    ) -> NodeId | None:
        """Choose the worker for an upload, or ``None`` if the partition is already committed.

        The worker with the fewest rows, counting uploads under way as average partitions; among workers within
        one average partition of the fewest, one on the same host. With a seed, a matter of the number alone.
        Workers that are `away` are passed over if it is not.
        """
        # Attempts of a task are counted anew only when its whole stage runs again.
        self.recomputed |= (partition, attempt) in self._attempts and bool(self.committed)
        self._attempts.add((partition, attempt))
        if partition in self.committed:
            return None
        if self.ended:
            chosen = self.missing[partition]
        elif self._seed is not None:
            chosen = self._fixed(partition)
        else:
            chosen = self._balanced(host, away)
        self._uploading[upload] = (partition, chosen)
        return chosen

    def _fixed(self, partition: int) -> NodeId:
        block, place = divmod(partition, len(self.targets))
        return random.Random(f"{self._seed} {block}").sample(self.targets, len(self.targets))[place].node

    def _balanced(self, host: str, away: Collection[NodeId]) -> NodeId:
        targets = [t for t in self.targets if t.node not in away] or self.targets
        rows = self.rows
        average = sum(rows.values()) / len(self.committed) if self.committed else 1.0
        average = max(average, 1.0)
        load = {node: float(n) for node, n in rows.items()}
        for partition, node in self._uploading.values():
            # One that broke off is not taken back; the partition has come another way then.
            if partition not in self.committed:
                load[node] += average
        fewest = min(load[t.node] for t in targets)
        near = [t for t in targets if load[t.node] < fewest + average]
        here = [t for t in near if t.host == host]
        return min(here or near, key=lambda t: (load[t.node], t.node)).node

    def commit(self, partition: int, upload: str, node: NodeId, rows: int, nbytes: int) -> bool:
        """Record that an upload is whole; tell whether it is the one that counts. Asking twice changes nothing.

        An upload to a worker that was lost meanwhile does not count, though its word may come late.
        """
        is_under_way = self._uploading.pop(upload, None) == (partition, node)
        if is_under_way and partition not in self.committed:
            self.committed[partition] = Committed(node, upload, rows, nbytes)
            self.missing.pop(partition, None)
        first = self.committed.get(partition)
        return first is not None and first.upload == upload and first.node == node
