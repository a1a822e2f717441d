"""The settings of a Spark application that tfspark uses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tfspark.host_names import bare
from tfspark.settings import SPARK_PREFIX, Settings
from tfspark.spark import connect

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def setting(spark: SparkSession, key: str) -> str | None:
    """Return a setting of the Spark application; ``None`` if it is not set."""
    return connect.setting_of(spark, key) if connect.is_connect(spark) else spark.sparkContext.getConf().get(key)


def master_of(spark: SparkSession) -> str:
    """Return the master of the Spark application; ``""`` if a Spark Connect server does not report it."""
    return (setting(spark, "spark.master") or "") if connect.is_connect(spark) else str(spark.sparkContext.master)


def is_local(master: str) -> bool:
    """Return whether a master runs tasks in the driver's JVM, and so in its working directory."""
    return master == "local" or master.startswith("local[")


def driver_addresses(spark: SparkSession) -> tuple[str, str]:
    """Return the address to which the driver of a classic session binds, and the one by which executors reach it."""
    if master_of(spark).startswith("local"):
        return "127.0.0.1", "127.0.0.1"
    conf = spark.sparkContext.getConf()
    host = bare(conf.get("spark.driver.host") or "127.0.0.1")
    bind = bare(conf.get("spark.driver.bindAddress") or host)
    return bind, host


def wants_tls(spark: SparkSession) -> bool:
    """Return whether Spark is set to protect its connections, so that tfspark should use TLS too."""
    keys = ("spark.ssl.enabled", "spark.authenticate", "spark.network.crypto.enabled", "spark.ssl.rpc.enabled")
    protected = any((setting(spark, k) or "false").lower() == "true" for k in keys)
    return protected or (connect.is_connect(spark) and connect.encrypts(spark))


def application_of(spark: SparkSession) -> tuple[str, str]:
    """Return the name and the id of the application."""
    if connect.is_connect(spark):
        return setting(spark, "spark.app.name") or "", setting(spark, "spark.app.id") or ""
    return spark.sparkContext.appName, str(spark.sparkContext.applicationId)


def all_settings(spark: SparkSession) -> dict[str, str]:
    """Return all settings of the application; on Spark Connect, those of the session."""
    if connect.is_connect(spark):
        return _settings_of_session(spark)
    return dict(spark.sparkContext.getConf().getAll())


def has_ui(spark: SparkSession) -> bool:
    """Return whether Spark serves its web UI."""
    return (setting(spark, "spark.ui.enabled") or "true").lower() == "true"


def settings_of(spark: SparkSession, given: Mapping[str, Any]) -> Settings:
    """Return the settings of a cluster; `given` ones come first, then Spark's, then environment variables.

    Raises
    ------
    ConfigurationError
        If a name is unknown or a value is wrong.
    """
    return Settings.of(given, conf_of_tfspark(spark), os.environ)


def conf_of_tfspark(spark: SparkSession) -> dict[str, str]:
    """Return the settings ``spark.tfspark.*`` of a session, which include those of its application."""
    return {name: value for name, value in _settings_of_session(spark).items() if name.startswith(SPARK_PREFIX)}


def _settings_of_session(spark: SparkSession) -> dict[str, str]:
    return {row.key: row.value for row in spark.sql("SET").collect()}
