"""How a feed is read: decided once in the driver, and announced to every node in one message."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tfspark.checks import check_whole_number
from tfspark.columns.spec import ColumnSpec
from tfspark.errors import ConfigurationError
from tfspark.feeding.shapes import Shapes
from tfspark.json_numbers import plain_value
from tfspark.messages import FeedBegins


@dataclass(frozen=True)
class FeedTerms:
    """The terms of one feed.

    Attributes
    ----------
    columns
        The tensors that the columns become.
    epochs
        How often workers read the rows.
    seed
        Seed of the order in which rows are read.
    reproducible
        Whether that order depends on the seed alone, and not on the order in which partitions arrive.
    in_memory
        Whether rows are kept in memory as long as there is room; if false, rows after the first 256 MB go to disk.
    name
        Name of rows that do not belong to epochs and can be read any number of times; ``""`` for rows to train on.
    number
        Number of the feed in its cluster; -1 before the feed is opened.
    base
        Number of epochs of all feeds before this one.
    epochs_to_come
        Number of epochs of this feed and of the feeds that repeat it.
    shapes
        Shapes that the first rows settle; shared with the feeds that repeat this one, and kept after a restart.
    """

    columns: tuple[ColumnSpec, ...]
    epochs: int = 1
    seed: int = 0
    reproducible: bool = False
    in_memory: bool = False
    name: str = ""
    number: int = -1
    base: int = 0
    epochs_to_come: int = 1
    shapes: Shapes = field(default_factory=lambda: Shapes(()), compare=False)

    @classmethod
    def of(
        cls, columns: tuple[ColumnSpec, ...], epochs: int, cache: str | None, seed: int | None, name: str
    ) -> FeedTerms:
        """Return the terms for the arguments of `Cluster.feed`, which `check` has checked."""
        reproducible, in_memory, shapes = seed is not None, cache == "memory", Shapes([c.on_the_wire for c in columns])
        return cls(columns, epochs, seed or 0, reproducible, in_memory, name, epochs_to_come=epochs, shapes=shapes)

    @staticmethod
    def check(epochs: int, cache: str | None, name: str, seed: int | None, is_iterator: bool) -> None:
        """Check the arguments of `Cluster.feed` that decide how rows are read.

        Raises
        ------
        ConfigurationError
            If an argument is invalid.
        """
        check_whole_number("epochs", epochs, 1)
        if cache not in ("disk", "memory", None):
            raise ConfigurationError(f"cache must be 'disk', 'memory' or None, got {cache!r}.")
        if not isinstance(name, str):
            raise ConfigurationError(f"name must be a string, got {name!r}.")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
            raise ConfigurationError(f"seed must be a whole number >= 0 or None, got {seed!r}.")
        if name and (epochs != 1 or cache is None or is_iterator):
            raise ConfigurationError(
                f"feed(name={name!r}) keeps its rows to be read any number of times; it cannot be combined with "
                "epochs, cache=None or an iterator."
            )

    def each_epoch(self) -> Iterator[FeedTerms]:
        """Yield the terms of one feed for each epoch, for rows that are sent again instead of kept."""
        for e in range(self.epochs):
            yield replace(self, epochs=1, seed=self.seed + e, epochs_to_come=self.epochs - e)

    def announcement(self, first_epoch: int) -> FeedBegins:
        """Return the message that announces the feed; `first_epoch` is its first epoch that is still to be read."""
        return FeedBegins(
            feed=self.number,
            columns=tuple(c.on_the_wire for c in self.columns),
            epochs=self.epochs,
            seed=self.seed,
            in_memory=self.in_memory,
            epochs_to_come=self.epochs_to_come - first_epoch,
            reproducible=self.reproducible,
            base=self.base,
            first_epoch=first_epoch,
            name=self.name,
            fill=self.fill,
        )

    @property
    def fill(self) -> dict[str, Any]:
        """Values that replace nulls, by column; only plain values, which a model card can hold."""
        given = {c.label: plain_value(c.fill) for c in self.columns}
        return {label: value for label, value in given.items() if value is not None}
