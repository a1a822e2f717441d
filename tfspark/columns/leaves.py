"""The columns in which a DataFrame is fed: fields of structs, ML vectors as arrays, and mask columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tfspark.columns.spec import ColumnSpec, Shape, plan_columns, repeated, with_path
from tfspark.columns.types import arrow_schema_of, zero_of
from tfspark.errors import SchemaError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import StructField

Columns = Sequence[str] | Mapping[str, str]
"""Names of columns, or a mapping: its keys are the names under which columns are fed, its values the columns."""


def leaves_of(
    df: DataFrame, columns: Columns | None = None, mask: Sequence[str] = (), sparse: Sequence[str] = ()
) -> list[Leaf]:
    """Return the columns in which a DataFrame is fed; see `source_of`."""
    chosen = choose_columns(columns, df.columns) if columns is not None else {c: c for c in df.columns}
    _refuse_ambiguous(df, chosen.values())
    fields = {f.name: f for f in df.schema.fields}
    kept_sparse = {_inside(c) for c in sparse}
    flat = [
        leaf for name, c in chosen.items() for leaf in _leaves(fields[c], partial(_column, c), (name,), kept_sparse)
    ]
    labels = [".".join(leaf.path) for leaf in flat]
    names = [leaf.name for leaf in flat]
    if twice := set(repeated(names)):
        shared = [label for label, name in zip(labels, names, strict=True) if name in twice]
        raise SchemaError(
            f"Columns {shared} would be fed under one name.", hint="Rename one of them: columns={name: column}."
        )
    masks = {_inside(c): c for c in mask}
    masked = [leaf for leaf in flat if leaf.name in masks]
    if missing := sorted(c for inside, c in masks.items() if inside not in {leaf.name for leaf in masked}):
        raise SchemaError(f"mask refers to unknown columns {missing}; the columns are {labels}.")
    flat += [
        replace(leaf, path=_mask_path(leaf.path), make=partial(_is_not_null, leaf.make), whole=False) for leaf in masked
    ]
    return flat


def _described(df: DataFrame, leaves: Sequence[Leaf]) -> tuple[pa.Schema, dict[str, tuple[int, ...]]]:
    """Return the Arrow schema of a DataFrame of leaves, and the known shapes of leaves by name."""
    import pyarrow as pa

    fields = [
        f if leaf.path == (leaf.name,) else with_path(f, leaf.path)
        for f, leaf in zip(arrow_schema_of(df.schema), leaves, strict=True)
    ]
    return pa.schema(fields), {leaf.name: leaf.shape for leaf in leaves if leaf.shape is not None}


@dataclass(frozen=True)
class FedColumns:
    """The columns in which a DataFrame is fed.

    Attributes
    ----------
    leaves
        The fed columns, as expressions of the original DataFrame.
    frame
        A DataFrame of these columns only.
    schema, shapes
        Arrow schema of `frame`, and the known shapes by column.
    """

    leaves: Sequence[Leaf]
    frame: DataFrame
    schema: pa.Schema
    shapes: dict[str, tuple[int, ...]]

    @property
    def columns(self) -> dict[str, Column]:
        """The fed columns by name."""
        return {leaf.name: leaf.make() for leaf in self.leaves}


def fed_columns(df: DataFrame, columns: Columns | None, mask: Sequence[str], sparse: Sequence[str]) -> FedColumns:
    """Return the columns in which a DataFrame is fed; see `source_of`."""
    leaves = leaves_of(df, columns, mask, sparse)
    unchanged = all(leaf.whole for leaf in leaves) and [leaf.name for leaf in leaves] == df.columns
    frame = df if unchanged else df.select(*[leaf.make().alias(leaf.name) for leaf in leaves])
    return FedColumns(leaves, frame, *_described(frame, leaves))


@dataclass(frozen=True)
class Leaf:
    """A column as it is fed; a struct column becomes several leaves.

    Attributes
    ----------
    make
        Returns the column's expression. This takes several calls of the JVM, so it is done only if it is needed.
    whole
        Whether it is a column of the DataFrame as it is, under its own name.
    """

    path: tuple[str, ...]
    make: Callable[[], Column]
    shape: tuple[int, ...] | None = None
    whole: bool = False

    @property
    def name(self) -> str:
        return _inside("/".join(self.path))


def _inside(name: str) -> str:
    """Return the name of a column while it is fed, without dots: Spark splits names at dots when it calls Python."""
    return name.replace(".", "/")


def _refuse_ambiguous(df: DataFrame, wanted: Collection[str]) -> None:
    """Raise an error if a wanted name belongs to several columns.

    Raises
    ------
    SchemaError
        If there are such names.
    """
    matters = df.sparkSession.conf.get("spark.sql.caseSensitive", "false") == "true"
    names = Counter(c if matters else c.lower() for c in df.columns)
    twice = sorted({c for c in wanted if names[c if matters else c.lower()] > 1})
    if twice:
        raise SchemaError(
            f"Column names must be unique, but {twice} occur more than once; the columns are {df.columns}.",
            hint="Rename or drop columns: df.toDF(...) gives all of them new names.",
        )


def _leaves(
    f: StructField, make: Callable[[], Column], path: tuple[str, ...], sparse: Collection[str]
) -> Iterator[Leaf]:
    from pyspark.sql.types import StructType

    if f.dataType.typeName() == "vectorudt":
        size = f.metadata.get("ml_attr", {}).get("num_attrs")
        leaf = Leaf(path, make, (int(size),) if size else None)
        yield leaf if leaf.name in sparse else replace(leaf, make=partial(_vector_floats, make))
    elif isinstance(f.dataType, StructType):
        for inner in f.dataType.fields:
            yield from _leaves(inner, partial(_field, make, inner.name), (*path, inner.name), sparse)
    else:
        yield Leaf(path, make, whole=path == (f.name,))


def _column(name: str) -> Column:
    from pyspark.sql import functions as F

    return F.col(quoted(name))


def _field(make: Callable[[], Column], name: str) -> Column:
    return make().getField(name)


def _is_not_null(make: Callable[[], Column]) -> Column:
    return make().isNotNull()


def _vector_floats(make: Callable[[], Column]) -> Column:
    return vector_values(make(), "float32")


def vector_values(column: Column, dtype: str) -> Column:
    """Return ML vectors as arrays of ``"float32"`` or ``"float64"``; a null stays null."""
    from pyspark.ml.functions import vector_to_array
    from pyspark.sql import functions as F

    return F.when(column.isNotNull(), vector_to_array(column, dtype))


def _mask_path(path: tuple[str, ...]) -> tuple[str, ...]:
    return (*path[:-1], f"{path[-1]}_mask")


def planned(
    schema: pa.Schema,
    known: Mapping[str, Shape],
    shapes: Mapping[str, Shape] | None,
    fill: Mapping[str, Any] | None,
    mask: Sequence[str],
    sparse: Sequence[str],
) -> tuple[ColumnSpec, ...]:
    """Decide the tensor of every column from the schema and shapes of the data and the arguments of the caller."""
    there = set(schema.names)

    def inside(name: str) -> str:
        return name if name in there or _inside(name) not in there else _inside(name)

    zeros = {inside(name): zero_of(schema.field(inside(name)).type) for name in mask}
    asked = {inside(name): shape for name, shape in (shapes or {}).items()}
    filled = {inside(name): value for name, value in (fill or {}).items()}
    return plan_columns(schema, {**known, **asked}, {**zeros, **filled}, [inside(name) for name in sparse])


def quoted(column: str) -> str:
    """Return a column's name quoted for a Spark SQL expression."""
    return "`" + column.replace("`", "``") + "`"


def choose_columns(columns: Columns, existing: Sequence[str]) -> dict[str, str]:
    """Return the columns to feed: the name under which each is fed, and its name in the data.

    Raises
    ------
    SchemaError
        If `columns` names a column that does not exist, the same column twice in a list, or no column.
    """
    if isinstance(columns, str) or not all(isinstance(c, str) for c in columns):
        raise SchemaError(f"columns must be a list of names or a dict of them, got {columns!r}.")
    if not isinstance(columns, Mapping) and (twice := repeated(columns)):
        raise SchemaError(f"columns must name each column once, but {twice} occur more than once.")
    chosen = dict(columns) if isinstance(columns, Mapping) else {c: c for c in columns}
    unknown = sorted(set(chosen.values()) - set(existing))
    if unknown:
        raise SchemaError(f"columns refers to unknown columns {unknown}; the columns are {list(existing)}.")
    if not chosen:
        raise SchemaError(f"columns must name at least one column; the columns are {list(existing)}.")
    return chosen
