"""A link from Spark's own UI to the cluster's page, shown at the job that holds the nodes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from tfspark.spark.internals import add_redirect

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)


class SparkUiLink:
    """A path of Spark's UI that redirects to the cluster's page, as long as the cluster runs.

    Spark allows job descriptions to link only to its own UI, so the path is needed. Spark has no public API to add a
    path; if adding fails, the page is still linked from the log and from `Cluster`.

    Parameters
    ----------
    spark
        The session.
    path
        Path in Spark's UI, such as ``"/tfspark-1f2e"``.
    url
        URL of the cluster's page.
    """

    def __init__(self, spark: SparkSession, path: str, url: str) -> None:
        self.path = path
        self._remove: Callable[[], None] | None = None
        try:
            self._remove = add_redirect(spark, path, url)
        except Exception as e:
            logger.debug("the link could not be added to Spark's UI: %s", e)

    @property
    def description(self) -> str | None:
        """The job description with which Spark's UI links to the page; ``None`` if the path could not be added."""
        return f'<a href="{self.path}">tfspark cluster</a>' if self._remove is not None else None

    def close(self) -> None:
        """Remove the path; do nothing if Spark is gone."""
        if self._remove is not None:
            try:
                self._remove()
            except Exception as e:
                logger.debug("the link in Spark's UI could not be removed: %s", e)
            self._remove = None
