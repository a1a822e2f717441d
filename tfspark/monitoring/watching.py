"""The views of a cluster: TensorBoard and its events, the live page, the report, and the link in Spark's UI."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tfspark.control.addresses import driver_addresses
from tfspark.control.coordinator import Coordinator
from tfspark.errors import ConfigurationError, DependencyError
from tfspark.monitoring.page import RunView, report_page
from tfspark.monitoring.status import Snapshot, phase_at_end, snapshot_of
from tfspark.monitoring.summaries import SummaryWriter
from tfspark.monitoring.tensorboard import TensorBoard
from tfspark.monitoring.web import WebServer
from tfspark.spark.conf import application_of
from tfspark.spark.connect import is_connect
from tfspark.spark.ui import SparkUiLink
from tfspark.spec import NodeId

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from tfspark.feeding.report import FeedReport

logger = logging.getLogger("tfspark")

Happened = tuple[Sequence["FeedReport"], Sequence[Exception]]

REPORT_FILE = "report.html"
"""File name of the report in a `log_dir`."""

PAGE_LINES = 200
"""Log lines on the live page and in the report."""

DEBUG_MODES = ("NO_TENSOR", "CURT_HEALTH", "CONCISE_HEALTH", "FULL_HEALTH", "SHAPE", "FULL_TENSOR")
"""TensorFlow's names for the modes of its debugger, which set what it writes about each tensor."""


@dataclass(frozen=True)
class WatchOptions:
    """The arguments of `Cluster` that configure views, after checks.

    Raises
    ------
    ConfigurationError
        If an argument has an invalid value.
    DependencyError
        If TensorBoard is not installed.
    """

    log_dir: str | None = None
    tensorboard: bool = False
    profile: tuple[int, int] | None = None
    debug_dumps: str | None = None
    ui: bool = False
    report: str | None = None

    @classmethod
    def of(
        cls,
        log_dir: Any,
        tensorboard: Any,
        profile: int | Sequence[int] | None,
        debug_dumps: bool | str,
        ui: bool,
        report: Any = None,
    ) -> WatchOptions:
        """Check the arguments as users pass them, and return the options."""
        for name, wanted in (("tensorboard", tensorboard), ("profile", profile), ("debug_dumps", debug_dumps)):
            if wanted and log_dir is None:
                raise ConfigurationError(
                    f"{name}={wanted!r} needs a log_dir.", hint='Pass, for example, log_dir="/shared/logs/run-1".'
                )
        if tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise DependencyError(
                "tensorboard=True needs TensorBoard, which is not installed.", hint="pip install tensorboard"
            )
        if debug_dumps is None or debug_dumps == "":
            raise ConfigurationError(f"debug_dumps must be True, False or one of {DEBUG_MODES}, got {debug_dumps!r}.")
        mode = "FULL_HEALTH" if debug_dumps is True else debug_dumps or None
        if mode is not None and mode not in DEBUG_MODES:
            raise ConfigurationError(f"debug_dumps must be True or one of {DEBUG_MODES}, got {debug_dumps!r}.")
        path = None if log_dir is None else _local_path("log_dir", os.fspath(log_dir))
        kept = None if path is None else os.path.join(path, REPORT_FILE)
        if report is not None:
            kept = _local_path("report", os.fspath(report))
            if os.path.isdir(kept):
                hint = f"Pass report={os.path.join(kept, REPORT_FILE)!r}."
                raise ConfigurationError(f"report must be a file, but {kept!r} is a directory.", hint=hint)
        return cls(path, bool(tensorboard), _step_range(profile), mode, ui, kept)

    def for_nodes(self) -> dict[str, Any]:
        """Return the options for the nodes."""
        return {"log_dir": self.log_dir, "profile": self.profile, "debug_dumps": self.debug_dumps}


def _local_path(name: str, path: str) -> str:
    path = path.removeprefix("file://")
    if "://" in path:
        raise ConfigurationError(
            f"{name} must be a local or mounted path, got {path!r}.",
            hint="Mount the bucket, or use a shared directory and copy it afterwards.",
        )
    return os.path.abspath(path)


def _step_range(profile: Any) -> tuple[int, int] | None:
    if profile is None:
        return None
    steps = list(profile) if isinstance(profile, (tuple, list)) else [profile, profile]
    whole = all(isinstance(s, int) and not isinstance(s, bool) for s in steps)
    if not whole or len(steps) != 2 or not 2 <= steps[0] <= steps[1]:
        raise ConfigurationError(
            f"profile must be the first and the last step to profile, such as (10, 20), got {profile!r}.",
            hint="The first step must be >= 2, because step 1 builds the graph and cannot be profiled.",
        )
    return steps[0], steps[1]


class Watching:
    """The views of one cluster.

    Parameters
    ----------
    options
        Options of the views.
    name
        Name of the cluster.
    happened
        Function that returns the reports of the feeds, and the errors that caused restarts of the nodes.
    """

    def __init__(self, options: WatchOptions, name: str, happened: Callable[[], Happened]) -> None:
        self.options, self._name, self._happened = options, name, happened
        self._run: RunView | None = None
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

    def start(
        self, spark: SparkSession, current: Callable[[], Coordinator], configuration: Mapping[str, str] | None = None
    ) -> None:
        """Start the views while the nodes start; `finish_start` waits for them.

        Parameters
        ----------
        current
            Function that returns the coordinator; each restart of the nodes creates a new coordinator.
        configuration
            Options, settings and versions of the cluster to show, by name.
        """
        self._current = current
        now = datetime.now().astimezone()
        self._run = RunView(
            Snapshot("starting", 0.0),
            *application_of(spark),
            self._name,
            now.strftime("%Y-%m-%d %H:%M:%S %Z"),
            configuration or {},
        )
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
            self._spark_url = None if is_connect(spark) else spark.sparkContext.uiWebUrl
            server = WebServer(bind, host, self._token, self.view, self._name)
            self._closing.callback(server.close)
            self.ui_url = server.url
            link = SparkUiLink(spark, f"/{self._name}", server.url)
            self._closing.callback(link.close)
            self.description = link.description
            logger.info("live page: %s", self.ui_url)

    def finish_start(self) -> None:
        """Wait until TensorBoard serves or has failed to start."""
        if self._board is not None:
            self.tensorboard_url = self._board.url()
            if self.tensorboard_url:
                logger.info("TensorBoard: %s", self.tensorboard_url)

    def report(self, node: NodeId, step: int, metrics: Mapping[str, float]) -> None:
        """Queue a report of a node."""
        if self._writer is not None:
            self._writer.report(node, step, metrics)

    def snapshot(self) -> Snapshot:
        """Return the state of the cluster."""
        assert self._current is not None
        coordinator = self._current()
        return snapshot_of(coordinator, links=self.links)

    def view(self) -> RunView:
        """Return the content of the live page, without a link to the page itself."""
        assert self._current is not None
        shown = {name: url for name, url in self.links.items() if name != "live page"}
        if self._spark_url:
            shown["logs of the executors"] = f"{self._spark_url}/executors/"
        return self._view(snapshot_of(self._current(), links=shown, lines=PAGE_LINES))

    def _view(self, snapshot: Snapshot) -> RunView:
        assert self._run is not None
        feeds, restarts = self._happened()
        return replace(self._run, snapshot=snapshot, feeds=list(feeds), restarts=[str(e) for e in restarts])

    def write_report(self, coordinator: Coordinator) -> None:
        """Write the report of the run, if one is wanted; log a warning with the reason if that fails."""
        path = self.options.report
        if path is None or self._run is None:
            return
        phase = phase_at_end(coordinator.lifecycle.error)
        view = self._view(snapshot_of(coordinator, phase, coordinator.began, lines=PAGE_LINES))
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            draft = f"{path}.{os.getpid()}"
            with open(draft, "w", encoding="utf-8") as f:
                f.write(report_page(view))
            os.replace(draft, path)
            logger.info("report: %s", path)
        except OSError as e:
            logger.warning("cannot write the report %s: %s", path, e)

    @property
    def links(self) -> dict[str, str]:
        """Addresses of the views by name."""
        named = {"TensorBoard": self.tensorboard_url, "live page": self.ui_url, "Spark UI": self._spark_url}
        return {name: url for name, url in named.items() if url}

    def close(self) -> None:
        """End all views. Calling it again does nothing."""
        with self._closes:
            self.tensorboard_url = self.ui_url = None
            self._closing.close()

    def _make_directory(self, log_dir: str) -> None:
        try:
            os.makedirs(log_dir, exist_ok=True)
        except OSError as e:
            raise ConfigurationError(f"Cannot create log_dir={log_dir!r}: {e}.") from e
