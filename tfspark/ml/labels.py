"""Checks of labels: their types by the schema, before anything is launched; their range by the loss, in the nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfspark.errors import ConfigurationError, SchemaError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.types import DataType, StructField

_HINTS = {
    "string": "Number its values from 0: StringIndexer(inputCol={0!r}, outputCol='label').",
    "date": "Make numbers of it in Spark, such as days: datediff({0}, '1970-01-01').",
    "timestamp": "Make numbers of it in Spark, such as seconds: unix_timestamp({0}).",
    "void": "All its values are null.",
}

_RANGE_HINT = "Number classes from 0, as StringIndexer does, and give the last layer as many units as there are."


def check_label_types(df: DataFrame, param: str, columns: list[str]) -> None:
    """Check that labels are numbers, or arrays or vectors of numbers.

    Raises
    ------
    SchemaError
        If a column holds something else, such as strings.
    """
    for column in columns:
        (field,) = [f for f in df.schema.fields if f.name == column]
        if not _is_numeric(field.dataType):
            kind = field.dataType.simpleString()
            raise SchemaError(
                f"{param} names column {column!r} of type {kind}, but labels must be numbers.",
                hint=_HINTS.get(kind.split("_")[0], "Make numbers of it in Spark.").format(column),
            )


def _is_numeric(kind: DataType) -> bool:
    from pyspark.sql.types import ArrayType, BooleanType, NumericType

    while isinstance(kind, ArrayType):
        kind = kind.elementType
    return isinstance(kind, (NumericType, BooleanType)) or kind.typeName() == "vectorudt"


def class_counts(df: DataFrame, columns: list[str]) -> dict[str, int]:
    """Return the number of classes by label column, for columns whose metadata has it, as StringIndexer writes it."""
    counts = {f.name: _class_count(f) for f in df.schema.fields if f.name in columns}
    return {c: n for c, n in counts.items() if n is not None}


def _class_count(field: StructField) -> int | None:
    attribute = field.metadata.get("ml_attr", {})
    if attribute.get("type") == "binary":
        return 2
    values = attribute.get("vals")
    return len(values) if values else attribute.get("num_vals")


# --- in nodes


@dataclass(frozen=True)
class LabelRange:
    """The labels that a loss accepts.

    Attributes
    ----------
    classes
        Labels are whole numbers >= 0 and less than this; ``None`` for any number from 0 to 1.
    """

    classes: int | None

    def __str__(self) -> str:
        return "numbers from 0 to 1" if self.classes is None else f"whole numbers from 0 to {self.classes - 1}"


def label_ranges(
    model: Any, targets: Mapping[str, str], widths: Mapping[str, int | None], counts: Mapping[str, int]
) -> dict[str, LabelRange]:
    """Return, by output, the labels that a compiled model's losses accept, for losses that accept only some labels.

    Parameters
    ----------
    targets
        Label column by output; the only output of a model without output names is ``""``.
    widths
        Size of the last dimension of each output, where it is known.
    counts
        Number of classes by label column, as `class_counts` returns it.

    Raises
    ------
    ConfigurationError
        If a label has more classes than its output has scores.
    """
    losses = model.loss
    if isinstance(losses, (list, tuple)):
        losses = dict(zip(widths, losses, strict=False))
    elif not isinstance(losses, Mapping):
        losses = dict.fromkeys(targets, losses)
    found = {name: _range_of(losses.get(name), widths.get(name)) for name in targets}
    ranges = {name: r for name, r in found.items() if r is not None}
    for name, r in ranges.items():
        count = counts.get(targets[name], 0)
        if r.classes is not None and count > r.classes:
            raise ConfigurationError(
                f"Label column {targets[name]!r} has {count} classes, but the model has {r.classes} outputs.",
                hint=f"Give the last layer {count} units.",
            )
    return ranges


def _range_of(loss: Any, width: int | None) -> LabelRange | None:
    import keras

    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if loss is keras.losses.binary_crossentropy or type(loss) is keras.losses.BinaryCrossentropy:
        return LabelRange(None)
    config: dict[str, Any] = {}
    if type(loss) is keras.losses.SparseCategoricalCrossentropy:
        config = loss.get_config()
    elif loss is not keras.losses.sparse_categorical_crossentropy:
        return None
    # An ignored label may be any number.
    plain = config.get("ignore_class") is None and config.get("axis", -1) == -1
    return LabelRange(width) if width and plain else None


def in_range(value: Any, allowed: LabelRange, column: str) -> Any:
    """Return labels, in graph code that fails if the loss does not accept one; see `tfspark.ml.value_checks`."""
    import tensorflow as tf

    from tfspark.ml.value_checks import checked

    if value.dtype == tf.bool:
        return value
    number = tf.cast(value, tf.float64)
    inside = (number >= 0) & (number <= (1 if allowed.classes is None else allowed.classes - 1))
    if allowed.classes is not None:
        inside &= number == tf.floor(number)
    # The text is computed even if all labels are in range.
    wrong = tf.concat([tf.boolean_mask(number, ~inside), [0.0]], 0)[0]
    shown = tf.strings.as_string(wrong, shortest=True)
    text = [f"Column {column!r} holds the label ", shown, f", but the loss takes {allowed}."]
    return checked(value, tf.reduce_all(inside), text, _RANGE_HINT)
