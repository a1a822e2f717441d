"""A text for a bug report: all that is known about a cluster, without secrets; `Cluster.dump` writes it.

If a part cannot be collected, such as Spark's settings after Spark has stopped, it contains the error. The other parts
are still written.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tfspark.control.coordinator import Coordinator
from tfspark.errors import TFSparkError
from tfspark.monitoring.status import status_of
from tfspark.settings import Settings, described, shown
from tfspark.spark.conf import all_settings, master_of
from tfspark.transport.auth import Secret

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PACKAGES = ("tensorflow", "keras", "pyspark", "pyarrow", "pandas", "numpy", "msgspec", "cloudpickle", "py4j")

HIDDEN = "(hidden)"

_SECRET_NAME = (
    r"(?:secret|passw(?:or)?d|passphrase|token|credential|access[._-]?key|private[._-]?key|api[._-]?key|auth[._-]?key)"
)
_SECRET_KEY = re.compile(_SECRET_NAME, re.I)
"""Matches names of settings and variables whose values are secret; it matches more names than Spark itself hides."""

_SECRET_WITHIN = re.compile(rf"([\w.-]*{_SECRET_NAME}[\w.-]*\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s,;&]+)", re.I)
"""Matches a secret inside a longer text, such as ``-Dstore.password=x`` in Java options."""

_TOO_COMMON = re.compile(r".{0,3}|\d+|true|false|none|-----.*", re.I)
"""Matches values that are hidden only after their names: they also occur elsewhere, where they reveal nothing."""

_URL_PASSWORD = re.compile(r"(://[^/\s:@]+:)[^@/\s]+(?=@)")


@dataclass(frozen=True)
class Known:
    """The data from which a dump is made.

    Attributes
    ----------
    spark
        The session.
    settings
        Settings of the cluster.
    options
        Other arguments of `Cluster` that describe it, by name.
    secret
        Secret of the cluster, which is removed from the whole text.
    coordinator
        Coordinator of the nodes, or ``None`` before they are started.
    earlier
        Story of the cluster (its last events) before each restart.
    restarts
        The error that caused each restart.
    """

    spark: SparkSession
    settings: Settings
    options: Mapping[str, Any]
    secret: Secret
    coordinator: Coordinator | None = None
    earlier: Sequence[str] = ()
    restarts: Sequence[TFSparkError] = field(default_factory=tuple)


def dump(known: Known) -> str:
    """Return the text of a dump."""
    hidden = {s for s in (known.secret.token, known.secret.key) if s}
    parts: list[tuple[str, Callable[[], Iterable[str]]]] = [
        ("versions", lambda: _versions(known)),
        ("cluster", lambda: _options(known, hidden)),
        ("settings", lambda: _settings(known.settings)),
        ("settings of Spark", lambda: _conf(known, hidden)),
        ("error", lambda: _error(known)),
        ("status", lambda: _status(known)),
        ("story", lambda: _stories(known)),
        ("last lines of each node", lambda: _lines(known)),
        ("stacks of the nodes", lambda: _node_stacks(known)),
        ("stacks of the driver", _driver_stacks),
    ]
    told = [f"tfspark dump of {time.strftime('%Y-%m-%d %H:%M:%S %z')}; secrets are left out"]
    for name, tell in parts:
        try:
            lines = list(tell())
        except Exception as e:
            lines = [f"not known: {type(e).__name__}: {e}"]
        told.append(f"\n== {name}\n" + "\n".join(lines))
    return without_secrets("\n".join(told), hidden) + "\n"


def without_secrets(text: str, values: Iterable[str]) -> str:
    """Return a text without these values, without passwords in URLs, and without values after names of secrets."""
    for value in sorted(values, key=len, reverse=True):
        # The lines of a key may occur separately, so each line is hidden too.
        for piece in {value, *value.splitlines()}:
            if not _TOO_COMMON.fullmatch(piece):
                text = text.replace(piece, HIDDEN)
    return _URL_PASSWORD.sub(rf"\1{HIDDEN}", _SECRET_WITHIN.sub(rf"\1{HIDDEN}", text))


def _pairs(values: Mapping[str, Any], hidden: set[str]) -> list[str]:
    """Return ``name = value`` lines; values with names of secrets are hidden here and added to `hidden`."""
    out = []
    for name, value in sorted(values.items()):
        if _SECRET_KEY.search(name):
            hidden.add(str(value))
            value = HIDDEN
        out.append(f"{name} = {value}")
    return out


def _versions(known: Known) -> Iterable[str]:
    from tfspark import __version__

    yield f"tfspark {__version__}"
    yield f"Python {platform.python_version()} on {platform.platform()}"
    for package in PACKAGES:
        try:
            yield f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{package} is not installed"
    yield f"Spark {known.spark.version}, master {master_of(known.spark)}"


def _options(known: Known, hidden: set[str]) -> Iterable[str]:
    options = dict(known.options)
    env = dict(options.pop("env", None) or {})
    yield from _pairs(options, hidden)
    yield from (f"env {line}" for line in _pairs(env, hidden))


def _settings(settings: Settings) -> Iterable[str]:
    for s in described():
        value = getattr(settings, s.name)
        yield f"{s.name} = {shown(s.name, value)}" + (
            f" (default {shown(s.name, s.default)})" if value != s.default else ""
        )


def _conf(known: Known, hidden: set[str]) -> Iterable[str]:
    return _pairs(all_settings(known.spark), hidden)


def _error(known: Known) -> Iterable[str]:
    for n, error in enumerate(known.restarts, 1):
        yield f"restart {n} after {type(error).__name__}: {error}"
    last = known.coordinator.lifecycle.error if known.coordinator is not None else None
    yield f"{type(last).__name__}: {last}" if last is not None else "none"


def _status(known: Known) -> Iterable[str]:
    coordinator = known.coordinator
    if coordinator is None:
        return ["not started"]
    life = coordinator.lifecycle
    ago = {n: life.now - r.last_seen for n, r in life.records.items() if r.last_seen is not None}
    pulse = {n: life.now - r.last_pulse for n, r in life.records.items() if r.last_pulse is not None}
    out = [f"phase {life.phase.value}, concluded {life.concluded}, over {life.over}"]
    for node, s in zip(coordinator.histories, status_of(coordinator), strict=True):
        out.append(
            f"{s.name} on {s.host}, pid {s.pid}: {s.state}, step {s.step}, metrics {s.metrics}, {s.rows:,} rows fed, "
            f"{s.rows_read:,} read, {s.memory_bytes >> 20} MB, GPUs {list(s.gpus)}, heartbeat {_ago(ago.get(node))}, "
            f"pulse {_ago(pulse.get(node))}. {s.advice}".rstrip()
        )
    return out


def _ago(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f} s ago"


def _stories(known: Known) -> Iterable[str]:
    for n, story in enumerate(known.earlier, 1):
        yield f"-- before restart {n}"
        yield story
    if known.coordinator is not None:
        yield known.coordinator.lifecycle.story.tell()


def _lines(known: Known) -> Iterable[str]:
    if known.coordinator is not None:
        for node, history in known.coordinator.histories.items():
            yield f"-- {node}"
            yield from list(history.lines)


def _node_stacks(known: Known) -> Iterable[str]:
    """Return the stacks of main threads that have been in one step for a long time, as sent with pulses."""
    records = known.coordinator.lifecycle.records if known.coordinator is not None else {}
    standing = [f"-- {n}\n{r.stack.rstrip()}" for n, r in records.items() if r.stack]
    return standing or ["no node stands in a training step for long"]


def _driver_stacks() -> Iterable[str]:
    names = {t.ident: t.name for t in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        yield f"-- {names.get(ident, 'a thread that Python has not started')}"
        yield "".join(traceback.format_stack(frame)).rstrip()
