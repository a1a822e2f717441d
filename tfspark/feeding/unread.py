"""Rows that no node reads: rows fed to nodes, compared with rows that their ``main`` has read.

A row counts once for each epoch in which it should be read. An epoch counts as read when the dataset has reached its
end. Pure bookkeeping, no I/O.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from tfspark.spec import NodeId

ADVICE = "Iterate ctx.dataset to its end once for each epoch (for _ in ctx.epochs()), or feed fewer rows or epochs."


class UnreadRows:
    """Counts the rows of one cluster that were fed and not read.

    Parameters
    ----------
    nodes
        All nodes of the cluster; the first one reads the rows of `servers`.
    servers
        Nodes whose rows another node reads: the workers of parameter servers.
    """

    def __init__(self, nodes: Collection[NodeId], servers: Collection[NodeId]) -> None:
        self._reader = {n: next(iter(nodes)) if n in servers else n for n in nodes}
        self._fed: Counter[NodeId] = Counter()
        self._returned: set[NodeId] = set()

    def fed(self, rows: Mapping[NodeId, int], epochs: int) -> list[str]:
        """Note a feed that has ended, and return a warning for each node whose ``main`` had returned before."""
        dropped: Counter[NodeId] = Counter()
        for node, n in rows.items():
            dropped[self._reader[node]] += n * epochs
        self._fed.update(dropped)
        return [
            f"{node} had returned from main before the feed ended: {n:,} rows were dropped. {ADVICE}"
            for node, n in dropped.items()
            if n and node in self._returned
        ]

    def returned(self, node: NodeId, rows_read: int, is_reading: bool) -> str | None:
        """Note that ``main`` has returned, and return a warning if it has not read all rows.

        Parameters
        ----------
        rows_read
            Rows of the epochs that ``main`` has read to their end.
        is_reading
            Whether it has begun to read another epoch.
        """
        self._returned.add(node)
        fed = self._fed[node]
        if rows_read >= fed:
            return None
        most = "up to " if is_reading else ""
        return (
            f"{node} returned from main without reading all rows that it was fed: {most}{fed - rows_read:,} of "
            f"{fed:,} rows were dropped, counted once for each epoch. {ADVICE}"
        )
