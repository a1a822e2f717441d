"""The report of one call of `Cluster.feed`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FeedReport:
    """The rows and bytes that one call of `Cluster.feed` delivered, and the time it took.

    Attributes
    ----------
    rows, bytes
        Rows delivered, and their size in bytes as Arrow data.
    seconds
        Seconds from the call until the last partition was committed.
    rows_by_worker
        Rows delivered by ``(role, index)`` of the worker.
    epochs
        How often workers will read the rows.

    Examples
    --------
    >>> rows_by_worker = {("worker", 0): 600, ("worker", 1): 400}
    >>> report = FeedReport(1000, 4_000_000, 2.0, rows_by_worker, epochs=1)
    >>> print(report)
    1,000 rows (4.0 MB) in 2.0 s: 500 rows/s, 2.0 MB/s
    """

    rows: int
    bytes: int
    seconds: float
    rows_by_worker: dict[tuple[str, int], int]
    epochs: int

    @property
    def rows_per_second(self) -> float:
        """Rows delivered per second.

        Examples
        --------
        >>> FeedReport(1000, 4_000_000, 2.0, {("worker", 0): 1000}, epochs=1).rows_per_second
        500.0
        """
        return self.rows / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows ({self.bytes / 1e6:,.1f} MB) in {self.seconds:.1f} s: "
            f"{self.rows_per_second:,.0f} rows/s, {self.bytes / 1e6 / max(self.seconds, 1e-9):,.1f} MB/s"
        )

    def _repr_html_(self) -> str:
        from tfspark.monitoring.html import feed_report_html

        return feed_report_html(self)

    @classmethod
    def total(cls, reports: Sequence[FeedReport]) -> FeedReport:
        """Return the sum of the reports of several feeds that ran one after the other.

        Examples
        --------
        >>> report = FeedReport(1000, 4_000_000, 2.0, {("worker", 0): 1000}, epochs=1)
        >>> FeedReport.total([report, report]).rows
        2000
        """
        workers = sorted({w for r in reports for w in r.rows_by_worker})
        return cls(
            sum(r.rows for r in reports),
            sum(r.bytes for r in reports),
            sum(r.seconds for r in reports),
            {w: sum(r.rows_by_worker.get(w, 0) for r in reports) for w in workers},
            sum(r.epochs for r in reports),
        )
