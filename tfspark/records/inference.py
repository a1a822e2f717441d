"""Infers the schema of records: the observed values of each feature determine its Spark type.

The connector has the same rules, in ``connectors/tfrecord/src/SchemaInference.scala``. The order of the records does
not matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tfspark.errors import SchemaError
from tfspark.records.example import Feature, Kind, Record


@dataclass
class Seen:
    """The observed values of one name.

    Attributes
    ----------
    kinds
        ``"text"`` (UTF-8 byte strings), ``"binary"`` (other byte strings), ``"int64"``, ``"float"``.
    records
        Number of records with this name.
    fewest, most
        Smallest and largest number of values in one list.
    in_context, in_lists
        Whether the name occurred as a feature, and whether it occurred as a feature list.
    example
        Up to 8 values of the first list that is not empty.
    """

    kinds: set[str] = field(default_factory=set)
    records: int = 0
    fewest: int | None = None
    most: int = 0
    in_context: bool = False
    in_lists: bool = False
    example: Any = None

    def add(self, feature: Feature) -> None:
        """Add one list of values."""
        if feature.kind is None:
            return
        values = feature.values
        self.kinds |= {_kind(feature.kind, v) for v in values} if feature.kind is Kind.BYTES else {feature.kind.value}
        if feature.kind is Kind.BYTES and not len(values):
            self.kinds.add("no bytes")
        self.fewest = len(values) if self.fewest is None else min(self.fewest, len(values))
        self.most = max(self.most, len(values))
        if self.example is None and len(values):
            self.example = list(values[:8])

    def spark_type(self, name: str) -> str | None:
        """Return the Spark SQL type, or None if no record sets a list.

        Raises
        ------
        SchemaError
            If no column type can hold all observed values.
        """
        numbers = self.kinds & {"int64", "float"}
        texts = self.kinds - numbers
        if numbers and texts:
            raise SchemaError(
                f"Feature {name!r} is a BytesList in some records and a list of numbers in others: "
                "no column can hold both."
            )
        if self.in_context and self.in_lists:
            raise SchemaError(
                f"{name!r} is a feature list in some records and a context feature in others: no column can hold both."
            )
        if not self.kinds:
            return None
        if texts:
            element = "binary" if "binary" in texts else "string"
        else:
            element = {"int64": "bigint", "float": "float"}[numbers.pop()] if len(numbers) == 1 else "double"
        if self.in_lists:
            return f"array<array<{element}>>"
        return element if self.fewest == self.most == 1 else f"array<{element}>"


def _kind(kind: Kind, value: Any) -> str:
    try:
        value.decode()
    except UnicodeDecodeError:
        return "binary"
    return "text"


class Observer:
    """Collects the values of records; ``seen`` holds the observed values by name."""

    def __init__(self) -> None:
        self.seen: dict[str, Seen] = {}
        self.records = 0

    def add(self, record: Record) -> None:
        """Add one record."""
        self.records += 1
        for name, feature in record.features.items():
            self._note(name, [feature]).in_context = True
        for name, features in record.lists.items():
            self._note(name, features).in_lists = True

    def _note(self, name: str, features: Iterable[Feature]) -> Seen:
        seen = self.seen.setdefault(name, Seen())
        seen.records += 1
        for feature in features:
            seen.add(feature)
        return seen

    def types(self) -> dict[str, str]:
        """Return the Spark type of each name that has one, sorted by name."""
        found = ((name, self.seen[name].spark_type(name)) for name in sorted(self.seen))
        return {name: t for name, t in found if t is not None}
