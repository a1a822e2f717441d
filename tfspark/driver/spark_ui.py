"""A link from Spark's own UI to the cluster's page: beside the job that holds the nodes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)


class SparkUiLink:
    """A path of Spark's UI that leads to the cluster's page, as long as the cluster lives.

    Spark lets descriptions of jobs link only to itself, hence the detour. It has no public way to add a path; where
    that fails, the page is still linked from the log and from `Cluster`.

    Parameters
    ----------
    spark
        The session.
    path
        Such as ``"/tfspark-1f2e"``.
    url
        Where it leads.
    """

    def __init__(self, spark: SparkSession, path: str, url: str) -> None:
        self.path = path
        self._ui: Any = None
        self._handler: Any = None
        try:
            self._attach(spark, url)
        except Exception as e:
            logger.debug("Spark's UI does not take a link: %s", e)

    @property
    def description(self) -> str | None:
        """What to describe a job with so that Spark's UI links to the page; ``None`` if it cannot."""
        return f'<a href="{self.path}">tfspark cluster</a>' if self._handler is not None else None

    def _attach(self, spark: SparkSession, url: str) -> None:
        context = spark.sparkContext._jsc.sc()  # type: ignore[attr-defined]
        if context.ui().isEmpty():
            return
        self._ui = context.ui().get()
        jetty = spark._jvm.org.apache.spark.ui.JettyUtils  # type: ignore[attr-defined]
        # Spark 4.3 has one argument more than 4.0; both have defaults for all that follow the second.
        rest = [getattr(jetty, f"createRedirectHandler$default${i}")() for i in (3, 4, 5)]
        try:
            rest.append(getattr(jetty, "createRedirectHandler$default$6")())
        except Exception:
            logger.debug("this Spark's createRedirectHandler takes five arguments")
        handler = jetty.createRedirectHandler(self.path, url, *rest)
        self._ui.attachHandler(handler)
        self._handler = handler

    def close(self) -> None:
        """Take the path away; nothing happens if Spark is gone."""
        if self._handler is not None:
            try:
                self._ui.detachHandler(self._handler)
            except Exception as e:
                logger.debug("the link in Spark's UI could not be removed: %s", e)
            self._handler = None
