"""Makes the frames to feed from the user's DataFrame: columns, weights, and rows set aside for validation."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfspark.columns.leaves import quoted
from tfspark.columns.spec import Shape
from tfspark.errors import ConfigurationError, SchemaError
from tfspark.ml.plan import fed_name

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType

    from tfspark.cluster import Cluster
    from tfspark.feeding.report import FeedReport

WEIGHT = "tfspark_weight"
"""Column of the weights that are computed from weightCol and classWeight; their average is 1."""

_SPLIT = "tfspark_validates"


@dataclass(frozen=True)
class Frames:
    """Rows for training, and rows for validation if there are any."""

    training: DataFrame
    validation: DataFrame | None


def require_columns(df: DataFrame, wanted: Mapping[str, Sequence[str]]) -> None:
    """Check that columns exist.

    Parameters
    ----------
    wanted
        Names of columns, by the Param that refers to them.

    Raises
    ------
    SchemaError
        If a column does not exist.
    """
    for param, columns in wanted.items():
        missing = [c for c in columns if c not in df.columns]
        if missing:
            raise SchemaError(f"{param} refers to unknown columns {missing}; the columns are {df.columns}.")


def fed_frame(df: DataFrame, columns: Sequence[str]) -> DataFrame:
    """Select columns and rename them to the names with which they are fed; see `tfspark.ml.plan.fed_name`.

    Raises
    ------
    SchemaError
        If two columns would get the same name.
    """
    from pyspark.sql import functions as F

    names = [fed_name(c) for c in columns]
    same = [c for c, n in zip(columns, names, strict=True) if names.count(n) > 1]
    if same:
        raise SchemaError(f"Columns {same} have the same name when '.' is replaced by '/'.", hint="Rename one of them.")
    return df.select(*[F.col(quoted(c)).alias(n) for c, n in zip(columns, names, strict=True)])


def feed_rows(cluster: Cluster, df: DataFrame, shapes: Mapping[str, Shape], **options: Any) -> FeedReport:
    """Feed the rows of a `fed_frame`; an error about nulls gets the hint of `tfspark.ml`.

    Raises
    ------
    SchemaError, FeedError
        If rows cannot be fed.
    """
    fed = {fed_name(c): s for c, s in shapes.items()}
    try:
        return cluster.feed(df, shapes=fed, **options)
    except SchemaError as e:
        if "null(s)" not in e.message:
            raise
        raise SchemaError(e.message, hint="Drop or fill the nulls in Spark: df.dropna() or df.fillna(value).") from e


@contextmanager
def split_frames(
    df: DataFrame, columns: Sequence[str], indicator: str | None, share: float, seed: int
) -> Iterator[Frames]:
    """Set rows aside for validation: the rows that a column marks, or a random share of all rows.

    A random share is drawn once and persisted until the block ends. Otherwise Spark would draw it again for each of the
    two frames, and the results could differ.
    """
    from pyspark.sql import functions as F

    kept = [F.col(quoted(c)) for c in dict.fromkeys(columns)]
    if indicator is not None:
        validates = F.coalesce(F.col(quoted(indicator)).cast("boolean"), F.lit(False))
        yield Frames(df.where(~validates).select(*kept), df.where(validates).select(*kept))
    elif share > 0:
        drawn = df.select(*kept, (F.rand(seed) < share).alias(_SPLIT)).persist()
        try:
            validates = F.col(_SPLIT)
            yield Frames(drawn.where(~validates).select(*kept), drawn.where(validates).select(*kept))
        finally:
            drawn.unpersist()
    else:
        yield Frames(df.select(*kept), None)


def with_weights(df: DataFrame, weight: str | None, label: str = "", class_weight: Any = None) -> DataFrame:
    """Add the column `WEIGHT`: the row's own weight times the weight of its label, divided by the average of all rows.

    Keras divides the weighted losses of a batch by its number of rows, so a row has the same weight in any batch.
    Because the average weight is 1, the result over all batches is the weighted mean.

    Raises
    ------
    SchemaError
        If a row has no weight.
    ConfigurationError
        If the average weight is not greater than 0.
    """
    from pyspark.sql import functions as F

    own: Column = F.col(quoted(weight)).cast("double") if weight else F.lit(1.0)
    if class_weight == "balanced":
        class_weight = balanced(df, own, label)
    of_label: Column = F.lit(1.0)
    for value, factor in (class_weight or {}).items():
        of_label = F.when(F.col(quoted(label)).cast("double") == value, F.lit(factor)).otherwise(of_label)
    weighed = own * of_label
    found = df.agg(F.avg(weighed), F.count(F.when(own.isNull(), 1)), F.count("*")).first()
    assert found is not None
    average, missing, rows = found
    if missing:
        raise SchemaError(f"Column {weight!r} is null in {missing} of {rows} rows, so that they have no weight.")
    if rows and not average > 0:
        raise ConfigurationError(f"The average weight of the rows must be > 0, got {average}.")
    return df.withColumn(WEIGHT, (weighed / F.lit(average or 1.0)).cast("float"))


def balanced(df: DataFrame, weight: Column, label: str) -> dict[float, float]:
    """Return weights by label that give all labels the same total weight, and rows an average weight of 1."""
    from pyspark.sql import functions as F

    counts = df.groupBy(F.col(quoted(label)).cast("double").alias("label")).agg(F.sum(weight).alias("weight")).collect()
    total = sum(r["weight"] or 0.0 for r in counts)
    return {r["label"]: total / (len(counts) * r["weight"]) for r in counts if r["weight"]}


def fed_shapes(
    df: DataFrame, columns: Sequence[str], declared: Mapping[str, Shape], open_: Collection[str]
) -> dict[str, Shape]:
    """Return the shapes with which to feed columns; the first rows set all other shapes, see `Cluster.feed`.

    Parameters
    ----------
    declared
        The Param ``shapes``.
    open_
        Columns of inputs with an open dimension: their arrays may have any length.

    Raises
    ------
    ConfigurationError
        If a shape is declared for a column that is not fed.
    """
    if unknown := sorted(set(declared) - set(columns)):
        raise ConfigurationError(
            f"shapes refers to columns {unknown} that are not fed; the columns are {list(columns)}."
        )
    depths = {f.name: _depth(f.dataType) for f in df.schema.fields}
    return {**{c: [None] * depths[c] for c in columns if c in open_ and depths[c]}, **declared}


def _depth(kind: DataType) -> int:
    from pyspark.sql.types import ArrayType

    return 1 + _depth(kind.elementType) if isinstance(kind, ArrayType) else 0
