"""The models, their versions and which versions are loaded; checks for changes every few seconds.

The old version serves while a new one is loaded. When the new version serves, the old one is unloaded. A version that
cannot be loaded therefore does not interrupt service; loading is tried again. Running requests keep their version.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tfspark.errors import ConfigurationError, TFSparkError, first_line
from tfspark.model_server import metrics
from tfspark.model_server.errors import NotFound, RequestError
from tfspark.model_server.loaded import LoadedVersion
from tfspark.model_server.model_config import Configs, DirectorySource, ModelConfig, Source, VersionPolicy
from tfspark.model_server.places import Place, Stamp, place_of
from tfspark.model_server.warmup import warm_up

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0
"""Default pause between two checks for versions; `Repository.watch` replaces it."""

MOST_RETRY_SECONDS = 60.0
"""Longest pause between attempts to load a version; the pause is 1, 2, 4, ... times the pause between checks."""


@dataclass(frozen=True)
class VersionStatus:
    """The status of a version: loaded, loading, or failed with an error.

    Attributes
    ----------
    stamp
        Stamp of the files that were loaded or tried last.
    loaded
        The loaded version. If there is an error too, it was loaded from the earlier files.
    failures
        Number of failed attempts to load these files.
    tried
        Time of the last attempt, by `time.monotonic`.
    """

    stamp: Stamp
    loaded: LoadedVersion | None = None
    error: str = ""
    failures: int = 0
    tried: float = field(default_factory=time.monotonic)

    def is_due(self, stamp: Stamp, now: float, poll_seconds: float) -> bool:
        """Return whether to load the version: its files have changed, or the last failure is long enough ago."""
        if stamp != self.stamp:
            return True
        if not self.failures:
            return False
        # Loading may fail because files are still being copied, or because the file system shows files late.
        return now - self.tried >= min(MOST_RETRY_SECONDS, poll_seconds * 2.0 ** min(self.failures - 1, 32))

    @property
    def state(self) -> str:
        """The state, with TensorFlow Serving's name."""
        return "AVAILABLE" if self.loaded is not None else "END" if self.error else "LOADING"


Statuses = Mapping[int, VersionStatus]


class Repository:
    """The served models.

    Parameters
    ----------
    source
        The source of the models; a directory stands for the models in it.

    Raises
    ------
    ConfigurationError
        If there is no model, or no model can be loaded.
    """

    def __init__(self, source: Source | str) -> None:
        self._source: Source | None = DirectorySource(source) if isinstance(source, str) else source
        # The two mappings are replaced as a whole and never modified, so readers need no lock.
        self._configs: Configs = {}
        self._models: dict[str, dict[int, VersionStatus]] = {}
        self._unreachable: dict[str, str] = {}
        self._problem = ""
        self._dropped: list[weakref.ref[LoadedVersion]] = []
        self._poll_seconds = POLL_SECONDS
        self._closing = threading.Event()
        self._refreshing = threading.Lock()
        self._watcher: threading.Thread | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.refresh()
        if not any(s.loaded for versions in self._models.values() for s in versions.values()):
            errors = [f"version {v} of {m}: {s.error}" for m, vs in self._models.items() for v, s in vs.items()]
            errors += [f"{m}: {e}" for m, e in self._unreachable.items()]
            if errors:
                raise ConfigurationError(f"No model can be loaded: {'; '.join(errors)}")
            where = [c.base for c in self._configs.values()] or [source if isinstance(source, str) else "It"]
            raise ConfigurationError(
                f"{', '.join(where)} holds no SavedModel.",
                hint="Pass a directory of numbered versions, as ctx.export writes it, or a directory of several.",
            )

    def watch(self, seconds: float) -> None:
        """Start a thread that checks for new, changed and removed versions, with pauses of `seconds`."""
        self._poll_seconds = seconds
        self._watcher = threading.Thread(target=self._watch, args=(seconds,), name="tfspark-models", daemon=True)
        self._watcher.start()

    def close(self, seconds: float | None = None) -> None:
        """End the checks; wait up to `seconds` for a version that is being loaded."""
        self._closing.set()
        if self._watcher is not None:
            self._watcher.join(seconds)

    def _watch(self, seconds: float) -> None:
        while not self._closing.wait(seconds):
            try:
                self.refresh()
            except Exception:
                logger.exception("the check for new versions failed")

    def configure(self, configs: Configs) -> dict[str, str]:
        """Serve these models from now on; return the error of each model without a loaded version."""
        with self._refreshing:
            if isinstance(self._source, DirectorySource):
                self._source = None
            self._configs = configs
            self._refresh_models()
        return {m: self._error(m) for m in configs if not self.is_ready(m)}

    def _error(self, model: str) -> str:
        errors = [f"version {v}: {s.error}" for v, s in self._models.get(model, {}).items() if s.error]
        return "; ".join(errors) or self._unreachable.get(model, "no versions were found")

    def refresh(self) -> None:
        """Load missing versions, then unload versions that are no longer needed."""
        with self._refreshing:
            read = None
            try:
                read = self._source.read() if self._source is not None else None
                self._problem = ""
            except TFSparkError as e:
                if not self._configs:
                    raise
                if e.message != self._problem:
                    logger.error("cannot read the models to serve, keeping the current ones: %s", e)
                self._problem = e.message
            self._configs = self._configs if read is None else read
            self._refresh_models()

    def _refresh_models(self) -> None:
        for model in sorted({*self._configs, *self._models}):
            config = self._configs.get(model)
            try:
                self._refresh_model(model, config)
                self._unreachable.pop(model, None)
            except Exception as e:
                # An error of one model must not stop the others.
                if self._unreachable.get(model) != first_line(e):
                    logger.error("cannot list the versions of %s: %s", model, first_line(e))
                self._unreachable[model] = first_line(e)
        self._unreachable = {m: e for m, e in self._unreachable.items() if m in self._configs}
        self._collect()
        self.on_change()

    def _collect(self) -> None:
        """Free the memory of versions that are no longer served and have no running requests."""
        left = [d for d in self._dropped if d() is not None]
        if len(left) < len(self._dropped):
            # Reference cycles in TensorFlow's objects keep the weights alive until a garbage collection.
            gc.collect()
        self._dropped = left

    def _refresh_model(self, model: str, config: ModelConfig | None) -> None:
        before = self._models.get(model, {})
        place = None if config is None else place_of(config.base)
        found = {} if place is None else place.versions()
        after: dict[int, VersionStatus] = {}
        for number in [] if config is None else config.policy.wanted(found):
            status = before.get(number)
            assert place is not None
            try:
                stamp = place.stamp(found[number])
            except FileNotFoundError:
                # The version was removed after it had been listed.
                continue
            if status is None or status.is_due(stamp, time.monotonic(), self._poll_seconds):
                if status is None:
                    self._publish(model, {**before, **after, number: VersionStatus(stamp)})
                status = _load(model, number, place, found[number], stamp, status)
            after[number] = status
        if any(s.loaded is None for s in after.values()):
            after = {v: s for v, s in before.items() if s.loaded is not None and v in found} | after
        for number in sorted(set(before) - set(after)):
            logger.info("version %d of %s is no longer served", number, model)
        kept = [s.loaded for s in after.values()]
        self._dropped += [weakref.ref(s.loaded) for s in before.values() if s.loaded and s.loaded not in kept]
        self._publish(model, after)

    def _publish(self, model: str, versions: dict[int, VersionStatus]) -> None:
        models = {**self._models, model: versions}
        self._models = {m: v for m, v in models.items() if v}

    def is_ready(self, model: str) -> bool:
        """Return whether a model has a loaded version."""
        return any(s.loaded for s in self._models.get(model, {}).values())

    def readiness(self) -> dict[str, bool]:
        """Return, for each model, whether it has a loaded version."""
        return {m: self.is_ready(m) for m in sorted({*self._configs, *self._models})}

    @property
    def healthy(self) -> bool:
        """Whether there are models and every model has a loaded version."""
        ready = self.readiness()
        return bool(ready) and all(ready.values())

    def models(self) -> Mapping[str, Statuses]:
        """Return the statuses of all models."""
        return self._models

    def policy(self, model: str) -> VersionPolicy:
        """Return the version policy of a model."""
        config = self._configs.get(model)
        return VersionPolicy() if config is None else config.policy

    def statuses(self, model: str, version: int | None = None, label: str | None = None) -> dict[int, VersionStatus]:
        """Return the statuses of a model's versions, newest first.

        Raises
        ------
        NotFound
            If there is no such version.
        """
        known = self._models.get(model, {})
        if label is not None:
            version = self._labelled(model, label)
        kept = {v: known[v] for v in sorted(known, reverse=True) if version in (None, v)}
        if not kept:
            of = f"version {version}" if version is not None else "any versions"
            raise NotFound(f"Could not find {of} of model {model}")
        return kept

    def find(self, model: str, version: int | None = None, label: str | None = None) -> LoadedVersion:
        """Return a loaded version: the given one, or the newest.

        Raises
        ------
        NotFound
            If no such version is loaded.
        RequestError
            If the label does not exist.
        """
        known = self._models.get(model, {})
        if label is not None:
            version = self._labelled(model, label)
        for v in sorted(known, reverse=True):
            loaded = known[v].loaded
            if loaded is not None and version in (None, v):
                return loaded
        which = f"Latest({model})" if version is None else f"Specific({model}, {version})"
        raise NotFound(f"Servable not found for request: {which}")

    def _labelled(self, model: str, label: str) -> int:
        version = self.policy(model).labels.get(label)
        if version is None:
            raise RequestError(f"Unrecognized servable version label: {label}")
        return version


def _load(
    model: str, number: int, place: Place, directory: str, stamp: Stamp, before: VersionStatus | None
) -> VersionStatus:
    began = time.monotonic()
    try:
        files = place.local(directory)
        try:
            loaded = LoadedVersion(model, number, files.directory)
            warm_up(loaded)
        except BaseException:
            if files.remove is not None:
                files.remove()
            raise
        if files.remove is not None:
            weakref.finalize(loaded, files.remove)
    except Exception as e:
        # An error of one SavedModel must not stop the others.
        metrics.loaded(model, "error", time.monotonic() - began)
        error = ": ".join([type(e).__name__, *str(e).splitlines()[:1]])
        if before is None:
            before = VersionStatus(stamp)
        if error != before.error:
            logger.error("cannot load version %d of %s: %s", number, model, error)
        failures = before.failures + 1 if stamp == before.stamp else 1
        return VersionStatus(stamp, before.loaded, error, failures)
    metrics.loaded(model, "success", time.monotonic() - began)
    logger.info("serving version %d of %s", number, model)
    return VersionStatus(stamp, loaded)
