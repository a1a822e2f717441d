"""The arguments of `Cluster`, checked together before anything starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tfspark.checks import check_shared_path, check_whole_number
from tfspark.control.gang import GangSpec
from tfspark.errors import ConfigurationError
from tfspark.monitoring.watching import WatchOptions
from tfspark.settings import FROM_SETTINGS, Settings
from tfspark.spark.conf import has_ui, is_local, master_of, settings_of, wants_tls
from tfspark.spark.pickling import pickle_main
from tfspark.spark.profiles import Resources
from tfspark.spark.resources import NodeResources
from tfspark.spec import NodeId, StrategyName, plan_nodes, plan_strategy
from tfspark.tensorflow_options import TensorFlowOptions
from tfspark.transport.auth import new_secret
from tfspark.transport.ports import Ports, check_ports

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


ARGUMENTS_THAT_ARE_SETTINGS = (
    "start_timeout",
    "stop_grace",
    "hang_timeout",
    "stall_timeout",
    "step_timeout",
    "driver_timeout",
    "spool_bytes",
)
"""They take precedence over `settings`; `settings` take precedence over Spark's settings and the environment."""


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """The options of a cluster; `Cluster` documents each of them.

    Raises
    ------
    ConfigurationError
        If an option cannot work.
    DependencyError
        If TensorBoard is requested and not installed.
    """

    workers: int
    ps: int = 0
    chief: bool = False
    evaluator: bool = False
    strategy: str | Callable[[Any], Any] = "auto"
    gpus_per_node: float | None = None
    cpus_per_node: float | None = None
    spread: bool = False
    ports: Ports | None = None
    max_restarts: int = 0
    min_workers: int | None = None
    grow: bool = False
    checkpoint_dir: str | os.PathLike[str] | None = None
    start_timeout: float = FROM_SETTINGS
    stop_grace: float = FROM_SETTINGS
    hang_timeout: float = FROM_SETTINGS
    stall_timeout: float | None = FROM_SETTINGS
    step_timeout: float | None = FROM_SETTINGS
    driver_timeout: float = FROM_SETTINGS
    spool_bytes: int = FROM_SETTINGS
    settings: Mapping[str, Any] | None = None
    env: Mapping[str, str] | None = None
    tensorflow_options: Mapping[str, Any] | None = None
    tls: bool | None = None
    progress: bool | None = None
    log_dir: str | os.PathLike[str] | None = None
    tensorboard: bool = False
    profile: int | tuple[int, int] | None = None
    debug_dumps: bool | str = False
    ui: bool | None = None
    report: str | os.PathLike[str] | None = None
    local: bool = True
    resolved: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        self._check_switches()
        self._check_paths()
        # Each of these checks its own options.
        _ = self.nodes, self.strategy_name, self.node_resources, self.watching
        check_ports(self.ports)
        TensorFlowOptions.of(self.tensorflow_options)
        check_whole_number("max_restarts", self.max_restarts, 0)
        self._check_min_workers()
        Settings.of(self._given_settings())
        for key, value in _items(self.env):
            if not isinstance(key, str) or not isinstance(value, str) or not key or "=" in key or "\0" in key + value:
                raise ConfigurationError(
                    f"env must map names to strings, got {key!r}: {value!r}.", hint=f"For example env={{{key!r}: '1'}}."
                )

    def _check_min_workers(self) -> None:
        if self.grow and (self.min_workers is None or self.checkpoint_dir is None):
            raise ConfigurationError(
                "grow=True needs min_workers and checkpoint_dir.",
                hint="All workers start again, from the checkpoint of the epoch that has ended.",
            )
        if self.min_workers is None:
            return
        check_whole_number("min_workers", self.min_workers, 1)
        if self.min_workers > self.workers:
            raise ConfigurationError(f"min_workers must be <= workers={self.workers}, got {self.min_workers}.")
        if self.ps:
            raise ConfigurationError(
                f"min_workers={self.min_workers} does not work with parameter servers.",
                hint="Leave it out: a lost worker of parameter servers comes back alone, and the others go on.",
            )
        if not self.max_restarts:
            raise ConfigurationError(
                f"min_workers={self.min_workers} needs max_restarts > 0, got 0.",
                hint="Fewer workers go on after a restart, so pass max_restarts=1 or more.",
            )

    def _check_switches(self) -> None:
        for name in ("chief", "evaluator", "spread", "grow", "tensorboard", "tls", "progress", "ui"):
            value = getattr(self, name)
            may_be_none = name in ("tls", "progress", "ui")
            if not isinstance(value, bool) and not (may_be_none and value is None):
                allowed = "True, False or None" if may_be_none else "True or False"
                raise ConfigurationError(f"{name} must be {allowed}, got {value!r}.")

    def _check_paths(self) -> None:
        for name in ("checkpoint_dir", "log_dir", "report"):
            path = getattr(self, name)
            if path is not None and (not isinstance(path, (str, os.PathLike)) or not os.fspath(path)):
                raise ConfigurationError(f"{name} must be a path or None, got {path!r}.")

    def _given_settings(self) -> dict[str, Any]:
        if self.settings is not None and not isinstance(self.settings, Mapping):
            raise ConfigurationError(f"settings must be a dict, got {self.settings!r}.")
        arguments = {name: getattr(self, name) for name in ARGUMENTS_THAT_ARE_SETTINGS}
        return {**(self.settings or {}), **{k: v for k, v in arguments.items() if v is not FROM_SETTINGS}}

    @cached_property
    def nodes(self) -> tuple[NodeId, ...]:
        """All nodes."""
        return plan_nodes(self.workers, self.chief, self.ps, self.evaluator)

    def nodes_with(self, workers: int) -> tuple[NodeId, ...]:
        """Return all nodes of a cluster with `workers` workers."""
        return plan_nodes(workers, self.chief, self.ps, self.evaluator)

    @cached_property
    def strategy_name(self) -> StrategyName:
        """How the nodes train together; if the user passes a function, the value is that of ``strategy="auto"``."""
        return plan_strategy("auto" if callable(self.strategy) else self.strategy, self.nodes)

    @cached_property
    def node_resources(self) -> NodeResources:
        """The resources that the user requests for each node."""
        return NodeResources.of(self.gpus_per_node, self.cpus_per_node, self.spread)

    @cached_property
    def watching(self) -> WatchOptions:
        """The options for monitoring the cluster."""
        given = self.log_dir, self.tensorboard, self.profile, self.debug_dumps
        return WatchOptions.of(*given, bool(self.ui), self.report)

    def told(self) -> dict[str, Any]:
        """Return the options by name, as the user passed them, without settings."""
        apart = {*ARGUMENTS_THAT_ARE_SETTINGS, "settings", "local", "resolved"}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}

    def decided(self, spark: SparkSession) -> ClusterOptions:
        """Return these options with `ui`, `tls` and `resolved` set: the user's values, else those of Spark's settings.

        Raises
        ------
        ConfigurationError
            If Spark's settings or the environment contain an unknown setting of tfspark or a wrong value, or if
            `checkpoint_dir` is relative and executors run elsewhere.
        """
        local = is_local(master_of(spark))
        if self.checkpoint_dir is not None and not local:
            check_shared_path("checkpoint_dir", os.fspath(self.checkpoint_dir))
        ui = has_ui(spark) if self.ui is None else self.ui
        tls = wants_tls(spark) if self.tls is None else self.tls
        return replace(self, ui=ui, tls=tls, local=local, resolved=settings_of(spark, self._given_settings()))

    def gang_spec(self, main: Callable[..., Any], args: Any, resources: Resources) -> GangSpec:
        """Return the spec from which each gang of nodes is started.

        Raises
        ------
        ConfigurationError
            If `main` is not callable, or cannot be pickled with its arguments.
        """
        own = self.strategy if callable(self.strategy) else None
        return GangSpec(
            nodes=self.nodes,
            resources=resources,
            main=pickle_main(main, args, own),
            secret=new_secret(bool(self.tls)),
            settings=self.resolved,
            ports=check_ports(self.ports),
            options={
                "strategy": self.strategy_name.value,
                "own_strategy": own is not None,
                "local": self.local,
                "tensorflow": TensorFlowOptions.of(self.tensorflow_options).given(),
                "checkpoint_dir": None if self.checkpoint_dir is None else os.fspath(self.checkpoint_dir),
                **self.watching.for_nodes(),
            },
            env=dict(self.env or {}),
        )


def _items(env: Mapping[str, str] | None) -> list[tuple[Any, Any]]:
    try:
        return list(dict(env or {}).items())
    except (TypeError, ValueError):
        raise ConfigurationError(f"env must map names to strings, got {type(env).__name__}.") from None
