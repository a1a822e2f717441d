"""Parse serialized ``tf.train.Example`` messages into the inputs of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf


def example_features(specs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the features that hold inputs of these specs, or None if an input has a dimension of any length.

    Examples hold floats as float lists, integers and booleans as int64 lists, and strings as bytes lists.
    """
    features = {}
    for name, spec in specs.items():
        row = spec.shape[1:] if spec.shape.rank else None
        if row is None or not row.is_fully_defined():
            return None
        dtype = tf.as_dtype(spec.dtype)
        kind = tf.string if dtype == tf.string else tf.float32 if dtype.is_floating else tf.int64
        features[name] = tf.io.FixedLenFeature(row.as_list(), kind)
    return features


def parse_examples(
    serialized: tf.Tensor, features: Mapping[str, Any], specs: Mapping[str, Any]
) -> dict[str, tf.Tensor]:
    """Parse serialized examples into inputs with the dtypes of `specs`."""
    parsed = tf.io.parse_example(serialized, dict(features))
    return {n: t if t.dtype == specs[n].dtype else tf.cast(t, specs[n].dtype) for n, t in parsed.items()}
