"""A link from Spark's own UI to the cluster's page: beside the job that holds the nodes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from tfspark.spark.internals import add_redirect

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
        self._remove: Callable[[], None] | None = None
        try:
            self._remove = add_redirect(spark, path, url)
        except Exception as e:
            logger.debug("the link could not be added to Spark's UI: %s", e)

    @property
    def description(self) -> str | None:
        """What to describe a job with so that Spark's UI links to the page; ``None`` if it cannot."""
        return f'<a href="{self.path}">tfspark cluster</a>' if self._remove is not None else None

    def close(self) -> None:
        """Take the path away; nothing happens if Spark is gone."""
        if self._remove is not None:
            try:
                self._remove()
            except Exception as e:
                logger.debug("the link in Spark's UI could not be removed: %s", e)
            self._remove = None
