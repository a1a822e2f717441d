"""The schema of records: what was seen of each feature, joined to a Spark type as the connector does it.

The lattice is that of ``connectors/tfrecord/src/SchemaInference.scala``; any order of records gives the same result.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tfspark.errors import SchemaError
from tfspark.records.example import Feature, Kind, Record


@dataclass
class Seen:
    """What was seen of one name.

    Attributes
    ----------
    kinds
        ``"text"`` and ``"binary"`` for byte strings that are UTF-8 or not, ``"int64"``, ``"float"``.
    records
        Records that have it.
    fewest, most
        Values in one list.
    in_context, in_lists
        Whether it was a feature, and whether it was a feature list.
    example
        The first values there were.
    """

    kinds: set[str] = field(default_factory=set)
    records: int = 0
    fewest: int | None = None
    most: int = 0
    in_context: bool = False
    in_lists: bool = False
    example: Any = None

    def add(self, feature: Feature) -> None:
        """Note one list of values."""
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
        """Return the type in Spark's SQL, or None if no record sets a list.

        Raises
        ------
        SchemaError
            If no column can hold all that was seen.
        """
        numbers = self.kinds & {"int64", "float"}
        texts = self.kinds - numbers
        if numbers and texts:
            raise SchemaError(
                f"Feature {name!r} is a BytesList in some records and a list of numbers in others: "
                "no column holds both."
            )
        if self.in_context and self.in_lists:
            raise SchemaError(
                f"{name!r} is a feature list in some records and a context feature in others: no column holds both."
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
    """Joins records; ``seen`` is what was found, by name."""

    def __init__(self) -> None:
        self.seen: dict[str, Seen] = {}
        self.records = 0

    def add(self, record: Record) -> None:
        """Note one record."""
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
        """Return the Spark type of each name that has one, in the order of names."""
        found = ((name, self.seen[name].spark_type(name)) for name in sorted(self.seen))
        return {name: t for name, t in found if t is not None}
