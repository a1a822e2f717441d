"""The configuration of a cluster as text, for the live page and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from platform import python_version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def configuration_of(spark: SparkSession, options: Any) -> dict[str, str]:
    """Return the options of a cluster, its settings that differ from the defaults, and versions.

    Values that are None or False are omitted. Of environment variables, only the names are returned, because the
    values may be secret.
    """
    import pyspark

    from tfspark import __version__
    from tfspark.spark.conf import master_of

    settings = options.resolved
    changed = {f.name: v for f in fields(settings) if (v := getattr(settings, f.name)) != f.default}
    said = {**options.told(), **changed}
    given = {name: _text(name, value) for name, value in said.items() if value is not None and value is not False}
    versions = {"tfspark": __version__, "pyspark": pyspark.__version__, "python": python_version()}
    return {"Spark master": master_of(spark), **given, **versions}


def _text(name: str, value: Any) -> str:
    if name == "env":
        return ", ".join(sorted(value))
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={v!r}" for k, v in value.items())
    return str(value)
