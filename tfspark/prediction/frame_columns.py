"""Columns of a DataFrame that a model takes: fields of structs, ML vectors, and names that several columns share."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from tfspark.columns.leaves import quoted, vector_values
from tfspark.errors import SchemaError

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType, StructType


def path_of(schema: StructType, name: str) -> tuple[str, ...] | None:
    """Return the path to a column, or to a struct field named like ``outer.inner``; ``None`` if neither exists.

    A column whose own name has dots takes precedence over fields.
    """
    from pyspark.sql.types import ArrayType, StructType

    if name in schema.names:
        return (name,)
    for i, letter in enumerate(name):
        if letter == "." and name[:i] in schema.names:
            inner: DataType = schema[name[:i]].dataType
            inner = inner.elementType if isinstance(inner, ArrayType) else inner
            rest = path_of(inner, name[i + 1 :]) if isinstance(inner, StructType) else None
            if rest is not None:
                return (name[:i], *rest)
    return None


def at_path(path: Sequence[str]) -> Column:
    """Return the column at a path that `path_of` returned."""
    from pyspark.sql import functions as F

    column = F.col(quoted(path[0]))
    for name in path[1:]:
        column = column.getField(name)
    return column


def as_array(column: Column, kind: DataType) -> Column:
    """Return a column with its ML vectors as arrays of doubles, so that no value is too large for its type."""
    return vector_values(column, "float64") if kind.typeName() == "vectorudt" else column


def has_repeated(df: DataFrame) -> bool:
    """Return whether columns share a name; names that differ only in case count as the same."""
    return len({c.lower() for c in df.columns}) < len(df.columns)


def beside_repeated(
    df: DataFrame,
    needed: Collection[str],
    kept: Sequence[str] | None,
    add: Callable[[DataFrame], DataFrame],
) -> DataFrame:
    """Add columns to a DataFrame in which some columns share a name; Spark alone could not tell them apart.

    Parameters
    ----------
    needed
        Columns that `add` refers to by name.
    kept
        Columns of `df` that the result keeps beside the added ones; ``None`` for all.
    add
        Takes the DataFrame, with unique names, and returns its kept columns and the added ones.

    Raises
    ------
    SchemaError
        If the name of a needed or kept column belongs to several columns.
    """
    names = df.columns
    unclear = {n: c for n, c in Counter(names).items() if c > 1 and (n in needed or n in (kept or ()))}
    if unclear:
        raise SchemaError(
            f"{sorted(unclear)} are ambiguous: {max(unclear.values())} columns of the DataFrame have this name.",
            hint="Rename one of them, or drop it before.",
        )
    alike, mark = Counter(n.lower() for n in names), secrets.token_hex(4)
    wanted = {*needed, *(kept or ())}
    unique = [n if alike[n.lower()] == 1 or n in wanted else f"{n}_{mark}_{i}" for i, n in enumerate(names)]
    added = add(df.toDF(*unique))
    own = names if kept is None else list(kept)
    return added.toDF(*own, *added.columns[len(own) :])
