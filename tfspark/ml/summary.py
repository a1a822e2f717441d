"""The summary of a fit: metrics by epoch, as numbers, as a DataFrame and as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfspark.errors import DependencyError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pyspark.sql import DataFrame

VALIDATION_PREFIX = "val_"


@dataclass(frozen=True)
class KerasTrainingSummary:
    """The history of a fit.

    Attributes
    ----------
    metrics
        Metric name to its value after each epoch; the names of validation metrics begin with ``val_``.
    rows
        Number of training rows in each epoch.
    validationRows
        Number of validation rows.
    seconds
        Seconds from the start of the cluster to its end.

    Examples
    --------
    >>> history = {"loss": [0.5, 0.25]}
    >>> summary = KerasTrainingSummary(history, rows=1000, validationRows=0, seconds=8.0)
    >>> summary.metrics["loss"][-1]
    0.25
    """

    metrics: Mapping[str, Sequence[float]]
    rows: int
    validationRows: int
    seconds: float

    @property
    def totalIterations(self) -> int:
        """Number of trained epochs; fewer than requested if training stopped early.

        Examples
        --------
        >>> summary.totalIterations
        2
        """
        return max((len(v) for v in self.metrics.values()), default=0)

    @property
    def history(self) -> DataFrame:
        """One row per epoch: ``epoch int``, from 1, and a ``double`` for each metric, null where it has no value.

        Examples
        --------
        >>> [(row.epoch, row.loss) for row in summary.history.collect()]
        [(1, 0.5), (2, 0.25)]
        """
        from pyspark.sql import SparkSession

        names = list(self.metrics)
        rows = [
            (epoch + 1, *(float(v[epoch]) if epoch < len(v) else None for v in self.metrics.values()))
            for epoch in range(self.totalIterations)
        ]
        schema = ", ".join(["epoch int", *(f"`{n.replace('`', '``')}` double" for n in names)])
        return SparkSession.active().createDataFrame(rows, schema)

    def plot(self) -> Figure:
        """Plot each metric over the epochs, together with the same metric of the validation rows.

        Returns
        -------
        matplotlib.figure.Figure
            The figure is not shown and not known to pyplot: use ``figure.savefig("history.png")``, or return it in the
            last line of a notebook cell.

        Raises
        ------
        DependencyError
            If matplotlib is not installed.

        Examples
        --------
        >>> summary.plot().savefig(f"{directory}/history.png")
        """
        try:
            from matplotlib.figure import Figure
            from matplotlib.ticker import MaxNLocator
        except ImportError as e:
            raise DependencyError("matplotlib is not installed.", hint="pip install matplotlib") from e

        beside = {VALIDATION_PREFIX + n for n in self.metrics}
        names = [n for n in self.metrics if n not in beside]
        figure = Figure(figsize=(5 * max(1, len(names)), 3.5), layout="constrained")
        for i, name in enumerate(names):
            axes = figure.add_subplot(1, len(names), i + 1, xlabel="epoch", title=name)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            for drawn, label in ((name, "training"), (VALIDATION_PREFIX + name, "validation")):
                values = self.metrics.get(drawn)
                if values is not None:
                    axes.plot(range(1, len(values) + 1), values, marker="o", markersize=3, label=label)
            axes.legend()
        return figure

    def to_json(self) -> dict[str, Any]:
        """Encode for a file.

        Examples
        --------
        >>> summary.to_json()["metrics"]
        {'loss': [0.5, 0.25]}
        """
        return {
            "metrics": {k: list(v) for k, v in self.metrics.items()},
            "rows": self.rows,
            "validationRows": self.validationRows,
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> KerasTrainingSummary:
        """Decode the result of `to_json`.

        Examples
        --------
        >>> KerasTrainingSummary.from_json(summary.to_json()) == summary
        True
        """
        return cls(d["metrics"], d["rows"], d["validationRows"], d["seconds"])
