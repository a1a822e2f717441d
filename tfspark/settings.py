"""Times and sizes that a user may need to change: one typed object, with unit, default and effect of each.

The order of precedence is: an argument of ``Cluster``, ``Cluster(settings={...})``, Spark's setting
``spark.tfspark.NAME``, the driver's environment variable ``TFSPARK_NAME``, the default. The driver computes the values
and sends the object to nodes and tasks. `docs/settings.md` is generated from this module.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any

from tfspark.errors import ConfigurationError

SPARK_PREFIX = "spark.tfspark."
ENVIRONMENT_PREFIX = "TFSPARK_"

FROM_SETTINGS: Any = type("FromSettings", (), {"__repr__": lambda self: "FROM_SETTINGS"})()
"""Default of an argument of ``Cluster`` that is also a setting."""

OTHER_VARIABLES = ("TFSPARK_CACHE", "TFSPARK_CLIENT_HOST", "TFSPARK_JOBS")
"""Environment variables of tfspark that are not settings of a cluster."""

FOR_EVER = "none"
"""Text for "no limit", for settings that may be ``None``."""

_UNITS: dict[str, dict[str, float]] = {
    "s": {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "": 1.0},
    "bytes": {"": 1, "b": 1, "k": 1 << 10, "kb": 1 << 10, "m": 1 << 20, "mb": 1 << 20, "g": 1 << 30, "gb": 1 << 30},
}
"""Factor of each unit in texts; the units are those of Spark."""

_KUBERNETES = re.compile(r"TFSPARK_(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_.*)?)")
"""Variables that Kubernetes sets for a service called ``tfspark``."""


def _setting(group: str, default: float | None, unit: str, meaning: str, *, least: float = 0.0) -> Any:
    """Describe a setting; a time must be greater than `least`, a count or size must be at least `least`."""
    return field(default=default, metadata={"group": group, "unit": unit, "meaning": meaning, "least": least})


_LIFE, _SIGNS, _WORK, _ROWS, _LOGS = "Start and stop", "Signs of life", "Training", "Feeding", "Logs"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a cluster; the metadata of each field contains its meaning.

    Raises
    ------
    ConfigurationError
        If a value has the wrong type or range, or two values do not fit together.

    Examples
    --------
    >>> Settings(silence_timeout=20.0).silence_timeout
    20.0
    """

    start_timeout: float = _setting(
        _LIFE, 300.0, "s", "Time for all nodes to start, also after a restart; then `StartTimeout`."
    )
    shrink_timeout: float = _setting(
        _LIFE, 30.0, "s", "Time that a restart with `min_workers` waits for room for all workers; then it starts fewer."
    )
    slots_timeout: float = _setting(
        _LIFE, 20.0, "s", "Time to wait for executors that have not registered yet, before `ResourceError`."
    )
    stop_grace: float = _setting(
        _LIFE,
        5.0,
        "s",
        "Time that `main` has after a stop, to save; then its processes are killed.",
        least=-1e-9,
    )
    kill_delay: float = _setting(
        _LIFE, 1.0, "s", "Time between SIGTERM and SIGKILL for the processes of a node.", least=-1e-9
    )
    job_end_timeout: float = _setting(
        _LIFE, 8.0, "s", "Time for the Spark job of the nodes to end by itself; then it is cancelled."
    )
    result_part_bytes: int = _setting(
        _LIFE,
        1 << 20,
        "bytes",
        "Results of `main` are sent in parts of this size; larger parts take more memory.",
        least=1,
    )
    result_part_timeout: float = _setting(_LIFE, 60.0, "s", "Deadline of one attempt to send a part of a result.")
    heartbeat_interval: float = _setting(
        _SIGNS, 0.5, "s", "Pause between two heartbeats of a supervising task; printed lines arrive with them."
    )
    heartbeat_timeout: float = _setting(
        _SIGNS, 2.0, "s", "Time that a task waits for the answer to a heartbeat before it sends the next one."
    )
    pulse_interval: float = _setting(
        _SIGNS,
        1.0,
        "s",
        "Longest pause between two pulses of a node's process; heartbeats carry them, with the numbers for views.",
    )
    longest_interval: float = _setting(
        _SIGNS, 2.75, "s", "Pauses between heartbeats, which carry pulses, grow with the number of nodes, up to this."
    )
    signs_per_second: int = _setting(
        _SIGNS,
        300,
        "1/s",
        "Limit of heartbeats for all nodes together; more nodes send them less often.",
        least=1,
    )
    silence_timeout: float = _setting(
        _SIGNS, 7.0, "s", "A node counts as lost when neither its task nor its process has sent anything for this time."
    )
    silence_patience: float = _setting(
        _SIGNS,
        30.0,
        "s",
        "The same if only the task is silent and the process sends pulses; at least `silence_timeout`.",
    )
    suspicion_timeout: float = _setting(
        _SIGNS,
        4.0,
        "s",
        "If a node fails, another node whose process has been silent for this time is reported as the cause.",
    )
    hang_timeout: float = _setting(
        _SIGNS,
        60.0,
        "s",
        "A process that exists but has been silent for this time, for example in native code, has failed.",
    )
    last_words_timeout: float = _setting(_SIGNS, 2.0, "s", "Time to wait for the last log lines of a failed node.")
    driver_timeout: float = _setting(
        _SIGNS, 120.0, "s", "Nodes and feed tasks end themselves when the driver has not answered for this time."
    )
    call_timeout: float = _setting(
        _SIGNS, 10.0, "s", "Deadline of one attempt of a call to the driver; it is repeated."
    )
    poll_interval: float = _setting(
        _SIGNS, 30.0, "s", "The driver answers a node that waits for events after this time, even if there are none."
    )
    rejoins_per_worker: int = _setting(
        _SIGNS,
        3,
        "times",
        "How often a worker of a cluster with parameter servers may be lost and return before it has failed.",
    )
    step_timeout: float | None = _setting(
        _WORK,
        600.0,
        "s",
        "If workers wait for each other in a training step for this time, the cluster fails: `StepTimeout`.",
    )
    report_interval: float = _setting(
        _WORK, 0.5, "s", "`ctx.report` sends at most one report in this time unless `flush=True`.", least=-1e-9
    )
    restore_warning: float = _setting(
        _WORK,
        30.0,
        "s",
        "`cluster.feed` names nodes that have neither restored a checkpoint nor asked for rows after this time.",
    )
    serve_timeout: float = _setting(
        _WORK, 120.0, "s", "`cluster.predict` fails if the worker has not called `ctx.serve` after this time."
    )
    stall_warning: float = _setting(
        _ROWS, 30.0, "s", "A warning names a worker that has waited for rows for this time during a feed."
    )
    stall_timeout: float | None = _setting(
        _ROWS, None, "s", "If a worker has waited for rows for this time during a feed, the cluster fails: `FeedError`."
    )
    spool_bytes: int = _setting(
        _ROWS, 1 << 30, "bytes", "Rows that may wait unread in one node; feed tasks wait when this is full.", least=1
    )
    spool_memory_bytes: int | None = _setting(
        _ROWS,
        None,
        "bytes",
        "Rows that a node keeps in memory, of these; the others go to the disk. By default 256m, and more where the "
        "machine has it to spare and no container is limited in memory (docs/guide/sizing.md).",
    )
    upload_timeout: float = _setting(
        _ROWS,
        60.0,
        "s",
        "In a full spool, an upload that has sent nothing for this time loses its priority to the next one.",
    )
    chunk_bytes: int = _setting(
        _ROWS, 8 << 20, "bytes", "Size of the chunks in which TensorFlow gets rows; four are in memory.", least=1
    )
    shuffle_chunk_bytes: int = _setting(
        _ROWS, 64 << 20, "bytes", "The same with `shuffle`: rows are shuffled within a chunk.", least=1
    )
    log_tail_lines: int = _setting(_LOGS, 80, "lines", "Last lines of a node that `NodeFailed.log_tail` has.", least=1)
    log_lines_waiting: int = _setting(
        _LOGS,
        2000,
        "lines",
        "Lines of a node that may wait for the driver; further lines are only in the executor's log.",
        least=1,
    )
    log_lines_per_heartbeat: int = _setting(_LOGS, 200, "lines", "Lines that one heartbeat carries.", least=1)

    def __post_init__(self) -> None:
        for setting in fields(self):
            check(setting.name, getattr(self, setting.name))
        least = max(self.heartbeat_interval, self.longest_interval) + 2 * self.heartbeat_timeout
        if self.silence_timeout <= least:
            raise ConfigurationError(
                f"silence_timeout must be > {least:g} s, got {self.silence_timeout:g} s: two heartbeats that get lost "
                "must not look like the death of a node.",
                hint="Raise silence_timeout, or lower heartbeat_timeout, heartbeat_interval or longest_interval.",
            )
        pause = max(self.pulse_interval, self.longest_interval)
        for name in ("suspicion_timeout", "hang_timeout"):
            if getattr(self, name) <= pause:
                raise ConfigurationError(
                    f"{name} must be > {pause:g} s, got {getattr(self, name):g} s: so long may two pulses be apart.",
                    hint=f"Raise {name}, or lower pulse_interval or longest_interval.",
                )

    @classmethod
    def of(
        cls,
        given: Mapping[str, Any] | None = None,
        conf: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Settings:
        """Return the settings from arguments, Spark's settings and environment variables, in this order of precedence.

        Raises
        ------
        ConfigurationError
            If a name is unknown or a value is wrong.

        Examples
        --------
        >>> conf = {"spark.tfspark.hang_timeout": "2min"}
        >>> Settings.of({"stop_grace": 2.0}, conf).hang_timeout
        120.0
        """
        return cls(**{name: value for name, (value, _) in chosen(given, conf, environment).items()})

    def to_json(self) -> dict[str, Any]:
        """Return the settings as a dict, to send them to nodes.

        Examples
        --------
        >>> Settings().to_json()["hang_timeout"]
        60.0
        """
        return asdict(self)


def described() -> tuple[Field[Any], ...]:
    """Return the fields of all settings, in order; their metadata has group, unit, meaning and least value."""
    return fields(Settings)


def chosen(
    given: Mapping[str, Any] | None = None,
    conf: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, tuple[Any, str]]:
    """Return the settings that have been set explicitly: value and origin by name.

    Raises
    ------
    ConfigurationError
        If a name is unknown or a value is wrong.
    """
    out: dict[str, tuple[Any, str]] = {}
    for variable, text in (environment or {}).items():
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if variable.startswith(ENVIRONMENT_PREFIX) and _is_meant(variable, name):
            out[name] = parse(variable, name, text), variable
    for key, text in (conf or {}).items():
        if key.startswith(SPARK_PREFIX):
            name = key.removeprefix(SPARK_PREFIX)
            _require_known(key, name)
            out[name] = parse(key, name, text), key
    for name, value in (given or {}).items():
        _require_known(f"settings: {name!r}", name)
        check(name, value)
        out[name] = value, "Cluster"
    return out


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return the environment variables that begin with ``TFSPARK_`` and are not known to tfspark."""
    known = {*OTHER_VARIABLES, *(f"{ENVIRONMENT_PREFIX}{s.name.upper()}" for s in described())}
    ours = (v for v in environment if v.startswith(ENVIRONMENT_PREFIX) and not _KUBERNETES.fullmatch(v))
    return sorted(v for v in ours if v not in known)


def check(name: str, value: Any) -> None:
    """Check the value of a setting.

    Raises
    ------
    ConfigurationError
        If it has the wrong type or range.
    """
    setting = _by_name()[name]
    unit, least = setting.metadata["unit"], setting.metadata["least"]
    if value is None and _may_be_none(setting):
        return
    or_none = " or None" if _may_be_none(setting) else ""
    if unit == "s":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least < value < math.inf:
            relation = "> 0" if least >= 0 else ">= 0"
            raise ConfigurationError(f"{name} must be a number of seconds {relation}{or_none}, got {value!r}.")
    elif isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name} must be a whole number >= {least:g}{or_none}, got {value!r}.")


def parse(key: str, name: str, text: str) -> float | int | None:
    """Parse the text of a setting, such as ``"90"``, ``"90s"``, ``"1.5min"``, ``"512m"`` or ``"none"``.

    Raises
    ------
    ConfigurationError
        If the text is not a valid value; the message names the setting by `key`.
    """
    setting = _by_name()[name]
    unit, trimmed = setting.metadata["unit"], text.strip().lower()
    if trimmed == FOR_EVER and _may_be_none(setting):
        return None
    units = _UNITS.get(unit, {"": 1.0})
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([a-z]*)", trimmed)
    value: float | int | None = None
    if match is not None and match[2] in units:
        number = float(match[1]) * units[match[2]]
        value = number if unit == "s" else int(number) if number.is_integer() else None
    try:
        if value is not None:
            check(name, value)
            return value
    except ConfigurationError:
        # The error below names the key and the text that the user wrote.
        pass
    raise ConfigurationError(
        f"{key} must be {_expected(setting)}, got {text!r}.", hint=f"For example {_example(setting)}."
    )


def shown(name: str, value: Any) -> str:
    """Return a value with its unit, in the format of `parse`."""
    unit = _by_name()[name].metadata["unit"]
    if value is None:
        return FOR_EVER
    if unit == "s":
        return f"{value:g}s"
    if unit != "bytes":
        return str(value)
    for letter, size in (("g", 1 << 30), ("m", 1 << 20), ("k", 1 << 10)):
        if value and value % size == 0:
            return f"{value // size}{letter}"
    return str(value)


def _by_name() -> dict[str, Field[Any]]:
    return {s.name: s for s in fields(Settings)}


def _may_be_none(setting: Field[Any]) -> bool:
    return "None" in str(setting.type)


def _expected(setting: Field[Any]) -> str:
    kinds = {"s": "a time", "bytes": "a size"}
    kind, least = kinds.get(setting.metadata["unit"], "a whole number"), setting.metadata["least"]
    relation = (" > 0" if least >= 0 else " >= 0") if kind == "a time" else f" >= {least:g}"
    return f"{kind}{relation}" + (f" or {FOR_EVER}" if _may_be_none(setting) else "")


def _example(setting: Field[Any]) -> str:
    assert setting.default is not MISSING
    return shown(setting.name, setting.default if setting.default is not None else 600.0)


def _require_known(key: str, name: str) -> None:
    if name not in _by_name():
        raise ConfigurationError(f"{key} is not a setting of tfspark.", hint=_advice(name))


def _is_meant(variable: str, name: str) -> bool:
    """Return whether an environment variable is a setting.

    Other variables may have the same prefix, but a name that is close to that of a setting raises an error.
    """
    if name in _by_name():
        return True
    if variable in unknown_variables({variable: ""}) and difflib.get_close_matches(name, _by_name(), 1, 0.8):
        raise ConfigurationError(f"{variable} is not a setting of tfspark.", hint=_advice(name, ENVIRONMENT_PREFIX))
    return False


def _advice(name: str, prefix: str = "") -> str:
    close = difflib.get_close_matches(name, _by_name(), 1, 0.6)
    meant = f"Did you mean {prefix}{close[0].upper() if prefix else close[0]}? " if close else ""
    return f"{meant}`tfspark doctor --settings` lists all settings."
