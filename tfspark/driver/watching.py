"""All by which a cluster can be watched: TensorBoard and its events, the live page, the link in Spark's UI."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfspark.driver.coordinator import Coordinator
from tfspark.driver.launcher import driver_addresses
from tfspark.driver.spark_ui import SparkUiLink
from tfspark.driver.status import Snapshot, snapshot_of
from tfspark.driver.summaries import SummaryWriter
from tfspark.driver.web import WebServer
from tfspark.errors import ConfigurationError, DependencyError
from tfspark.spec import NodeId
from tfspark.tensorboard import TensorBoard

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger("tfspark")

DEBUG_MODES = ("NO_TENSOR", "CURT_HEALTH", "CONCISE_HEALTH", "FULL_HEALTH", "SHAPE", "FULL_TENSOR")
"""What TensorFlow's debugger may dump of each tensor; TensorFlow's own names."""


@dataclass(frozen=True)
class WatchOptions:
    """What of `Cluster`'s arguments is about watching, checked.

    Raises
    ------
    ConfigurationError
        If an argument cannot work.
    DependencyError
        If TensorBoard is not installed.
    """

    log_dir: str | None = None
    tensorboard: bool = False
    profile: tuple[int, int] | None = None
    debug_dumps: str | None = None
    ui: bool = False

    @classmethod
    def of(
        cls, log_dir: Any, tensorboard: Any, profile: int | Sequence[int] | None, debug_dumps: bool | str, ui: bool
    ) -> WatchOptions:
        """Check arguments as users write them."""
        for name, wanted in (("tensorboard", tensorboard), ("profile", profile), ("debug_dumps", debug_dumps)):
            if wanted and log_dir is None:
                raise ConfigurationError(
                    f"{name}={wanted!r} needs a log_dir.", hint='For example log_dir="/shared/logs/run-1".'
                )
        if tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise DependencyError("TensorBoard is not installed here.", hint="pip install tensorboard")
        mode = "FULL_HEALTH" if debug_dumps is True else debug_dumps or None
        if mode is not None and mode not in DEBUG_MODES:
            raise ConfigurationError(f"debug_dumps must be True or one of {DEBUG_MODES}, not {debug_dumps!r}.")
        path = None if log_dir is None else _local_path(os.fspath(log_dir))
        return cls(path, bool(tensorboard), _step_range(profile), mode, ui)

    def for_nodes(self) -> dict[str, Any]:
        """Return what nodes need to know."""
        return {"log_dir": self.log_dir, "profile": self.profile, "debug_dumps": self.debug_dumps}


def _local_path(path: str) -> str:
    path = path.removeprefix("file://")
    if "://" in path:
        raise ConfigurationError(
            f"log_dir={path!r}: TensorBoard's events are written to a local or mounted directory.",
            hint="Mount the bucket, or write to a shared directory and copy it afterwards.",
        )
    return os.path.abspath(path)


def _step_range(profile: int | Sequence[int] | None) -> tuple[int, int] | None:
    if profile is None:
        return None
    first, last = (profile, profile) if isinstance(profile, int) else tuple(profile)
    if not 2 <= first <= last:
        raise ConfigurationError(
            f"profile={profile!r}: give the first and the last step to profile, such as (10, 20).",
            hint="The first step cannot be profiled: it builds the graph.",
        )
    return first, last


class Watching:
    """What serves one cluster's watchers.

    Parameters
    ----------
    options
        What is wanted.
    name
        The cluster's.
    """

    def __init__(self, options: WatchOptions, name: str) -> None:
        self.options, self._name = options, name
        self._token = secrets.token_urlsafe(24)
        self._closing = contextlib.ExitStack()
        self._closes = threading.Lock()
        self._current: Callable[[], Coordinator] | None = None
        self._writer: SummaryWriter | None = None
        self._board: TensorBoard | None = None
        self._spark_url: str | None = None
        self.tensorboard_url: str | None = None
        self.ui_url: str | None = None
        self.description: str | None = None

    def start(self, spark: SparkSession, current: Callable[[], Coordinator]) -> None:
        """Start all that is wanted, while the nodes come up; `finish_start` waits for it.

        Parameters
        ----------
        current
            Returns the coordinator, another one after a restart of the nodes.
        """
        self._current = current
        bind, host = driver_addresses(spark)
        log_dir = self.options.log_dir
        if log_dir is not None:
            self._make_directory(log_dir)
            self._writer = SummaryWriter(current, log_dir)
            self._closing.callback(self._writer.close)
        if self.options.tensorboard and log_dir is not None:
            with_tensorflow = self.options.debug_dumps is not None
            self._board = TensorBoard(log_dir, bind, host, self._token, with_tensorflow)
            self._closing.callback(self._board.close)
        if self.options.ui:
            self._spark_url = spark.sparkContext.uiWebUrl
            server = WebServer(bind, host, self._token, self.snapshot, self._name)
            self._closing.callback(server.close)
            self.ui_url = server.url
            link = SparkUiLink(spark, f"/{self._name}", server.url)
            self._closing.callback(link.close)
            self.description = link.description
            logger.info("the cluster can be watched at %s", self.ui_url)

    def finish_start(self) -> None:
        """Wait for TensorBoard."""
        if self._board is not None:
            self.tensorboard_url = self._board.url()
            if self.tensorboard_url:
                logger.info("TensorBoard is at %s", self.tensorboard_url)

    def report(self, node: NodeId, step: int, metrics: Mapping[str, float]) -> None:
        """Take note of what a node has reported."""
        if self._writer is not None:
            self._writer.report(node, step, metrics)

    def snapshot(self) -> Snapshot:
        """Return what is known of the cluster now."""
        assert self._current is not None
        coordinator = self._current()
        return coordinator.look(lambda: snapshot_of(coordinator, links=self.links))

    @property
    def links(self) -> dict[str, str]:
        """Addresses to show, by name."""
        named = {"TensorBoard": self.tensorboard_url, "live page": self.ui_url, "Spark UI": self._spark_url}
        return {name: url for name, url in named.items() if url}

    def close(self) -> None:
        """End all of it; safe to call twice."""
        with self._closes:
            self.tensorboard_url = self.ui_url = None
            self._closing.close()

    def _make_directory(self, log_dir: str) -> None:
        try:
            os.makedirs(log_dir, exist_ok=True)
        except OSError as e:
            raise ConfigurationError(f"log_dir={log_dir!r} cannot be made: {e}.") from e
