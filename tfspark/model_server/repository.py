"""Which models and versions there are, and which of them are loaded; looks again every few seconds.

A new version is loaded while the old one goes on answering; the old one is let go when the new one answers, so a
version that cannot be loaded takes nothing away, and is tried again. Requests under way keep theirs.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfspark.errors import ConfigurationError
from tfspark.model_server.batching import Batcher
from tfspark.model_server.faults import NotFound
from tfspark.saved_models.card import read_card
from tfspark.saved_models.description import read_signatures
from tfspark.saved_models.signatures import Signature
from tfspark.saved_models.versions import SAVED_MODEL_FILE, is_saved_model, local_path, versions_of

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0
"""How often versions are looked for, unless `Repository.watch` is told otherwise."""

MOST_RETRY_SECONDS = 60.0
"""A version that cannot be loaded is tried again after one poll, two, four, and so on, but at least so often."""

Found = Mapping[str, Mapping[int, str]]
"""Model name to version number to directory."""


@dataclass(frozen=True)
class VersionPolicy:
    """Which versions are loaded.

    Attributes
    ----------
    newest
        How many of the newest; ``None`` for all.
    labels
        Label to version number, by model name. Versions with a label are loaded, however old they are.
    """

    newest: int | None = 1
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def wanted(self, model: str, versions: Iterable[int]) -> list[int]:
        """Return which of a model's versions are to be loaded, ascending."""
        there = sorted(versions)
        newest = there if self.newest is None else there[-self.newest :]
        return sorted({*newest, *(v for v in self.labels.get(model, {}).values() if v in there)})


def find_models(directory: str, name: str | None = None) -> dict[str, dict[int, str]]:
    """Return the models under a directory: its own versions, or those of its subdirectories, or itself.

    Parameters
    ----------
    directory
        Of one model with numbered versions, of several such directories, or a SavedModel.
    name
        Name of the model if it is one; by default that of the directory.
    """
    directory = os.path.abspath(local_path(directory))
    own = os.path.basename(directory)
    if is_saved_model(directory):
        number = int(own) if own.isdecimal() else 1
        return {name or (os.path.basename(os.path.dirname(directory)) if own.isdecimal() else own): {number: directory}}
    if versions := versions_of(directory):
        return {name or own: _paths(directory, versions)}
    try:
        below = sorted(d for d in os.listdir(directory) if not d.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    bases = {d: os.path.join(directory, d) for d in below}
    return {d: _paths(base, versions) for d, base in bases.items() if (versions := versions_of(base))}


def _paths(base: str, versions: Iterable[int]) -> dict[int, str]:
    return {v: os.path.join(base, str(v)) for v in versions}


class LoadedVersion:
    """A version that can be called.

    Attributes
    ----------
    signatures
        What can be asked of it, by name.
    card
        Its model card, if it has one.
    batchers
        Joins requests; by signature.
    """

    def __init__(self, model: str, number: int, directory: str) -> None:
        self.model, self.number, self.directory = model, number, directory
        self.signatures: dict[str, Signature] = read_signatures(directory)
        self.card = read_card(directory)
        # The signatures do not keep their model alive.
        self._model = tf.saved_model.load(directory)
        self._functions: dict[str, Any] = dict(self._model.signatures)
        self.batchers: dict[str, Batcher] = {}

    def call(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs, in the order of their names; safe from several threads."""
        infos = self.signatures[signature].inputs
        feeds = {n: tf.constant(a, tf.as_dtype(infos[n].dtype)) for n, a in inputs.items()}
        produced = self._functions[signature](**feeds)
        return {n: produced[n].numpy() for n in self.signatures[signature].outputs}


class Stamp(NamedTuple):
    """What changes when files of a version do: time of the newest, their bytes, and how many there are."""

    newest_ns: int
    size: int
    files: int


def stamp_of(directory: str) -> Stamp:
    """Return the stamp of a version; files that vanish meanwhile do not count.

    Raises
    ------
    OSError
        If there is no SavedModel.
    """
    os.stat(os.path.join(directory, SAVED_MODEL_FILE))
    found = []
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                found.append(os.stat(os.path.join(parent, name)))
            except OSError:
                continue
    return Stamp(max((f.st_mtime_ns for f in found), default=0), sum(f.st_size for f in found), len(found))


@dataclass(frozen=True)
class VersionStatus:
    """One version: loaded, or why not.

    Attributes
    ----------
    stamp
        Of the files that were loaded, or tried last.
    loaded
        What answers. If there is an error too, it is what the files held before.
    failures
        How often these files could not be loaded.
    tried
        When they were tried last, by `time.monotonic`.
    """

    stamp: Stamp
    loaded: LoadedVersion | None = None
    error: str = ""
    failures: int = 0
    tried: float = field(default_factory=time.monotonic)

    def is_due(self, stamp: Stamp, now: float, poll_seconds: float) -> bool:
        """Whether the version is to be loaded anew: its files have changed, or failed long enough ago."""
        if stamp != self.stamp:
            return True
        if not self.failures:
            return False
        # Files that fail may be those of a copy under way, or of a file system that is slow to show them.
        return now - self.tried >= min(MOST_RETRY_SECONDS, poll_seconds * 2.0 ** min(self.failures - 1, 32))

    @property
    def state(self) -> str:
        """As TensorFlow Serving names it."""
        return "AVAILABLE" if self.loaded is not None else "END"


class Repository:
    """The models under a directory.

    Parameters
    ----------
    directory, name
        See `find_models`.
    policy
        Which versions are loaded.

    Raises
    ------
    ConfigurationError
        If there is no model, or none that can be loaded.
    """

    def __init__(self, directory: str, name: str | None = None, policy: VersionPolicy = VersionPolicy()) -> None:
        self._directory, self._name, self.policy = directory, name, policy
        # Replaced as a whole and never changed, so that readers need no lock.
        self._models: dict[str, dict[int, VersionStatus]] = {}
        self._dropped: list[weakref.ref[LoadedVersion]] = []
        self._poll_seconds = POLL_SECONDS
        self._closing = threading.Event()
        self._watcher: threading.Thread | None = None
        self.refresh()
        if not self._models:
            raise ConfigurationError(
                f"{directory!r} holds no SavedModel.",
                hint="Give a directory of numbered versions, as ctx.export writes it, or one of such directories.",
            )
        if not self.healthy:
            errors = [f"version {v} of {m}: {s.error}" for m, vs in self._models.items() for v, s in vs.items()]
            raise ConfigurationError(f"No model can be loaded: {'; '.join(errors)}")

    def watch(self, seconds: float) -> None:
        """Look for new, changed and removed versions, from a thread of its own."""
        self._poll_seconds = seconds
        self._watcher = threading.Thread(target=self._watch, args=(seconds,), name="tfspark-models", daemon=True)
        self._watcher.start()

    def close(self) -> None:
        """End the watching."""
        self._closing.set()
        if self._watcher is not None:
            self._watcher.join()

    def _watch(self, seconds: float) -> None:
        while not self._closing.wait(seconds):
            try:
                self.refresh()
            except Exception:
                logger.exception("looking for new versions failed")

    def refresh(self) -> None:
        """Load what is wanted and not loaded, then let go what is no longer wanted."""
        found: Found = find_models(self._directory, self._name)
        for model in sorted({*found, *self._models}):
            self._refresh_model(model, found.get(model, {}))
        self._collect()

    def _collect(self) -> None:
        """Free the memory of versions that are no longer served and have no requests under way."""
        left = [d for d in self._dropped if d() is not None]
        if len(left) < len(self._dropped):
            # The cycles in what TensorFlow loads hold the weights until the garbage collector comes by.
            gc.collect()
        self._dropped = left

    def _refresh_model(self, model: str, found: Mapping[int, str]) -> None:
        before = self._models.get(model, {})
        wanted = self.policy.wanted(model, found)
        after: dict[int, VersionStatus] = {}
        for number in wanted:
            status = before.get(number)
            try:
                stamp = stamp_of(found[number])
            except OSError:
                # Removed since it was found.
                continue
            if status is None or status.is_due(stamp, time.monotonic(), self._poll_seconds):
                status = _load(model, number, found[number], stamp, status)
            after[number] = status
        if any(s.loaded is None for s in after.values()):
            after = {v: s for v, s in before.items() if s.loaded is not None and v in found} | after
        for number in sorted(set(before) - set(after)):
            logger.info("version %d of %s is no longer served", number, model)
        kept = [s.loaded for s in after.values()]
        self._dropped += [weakref.ref(s.loaded) for s in before.values() if s.loaded and s.loaded not in kept]
        models = {**self._models, model: after}
        self._models = {m: v for m, v in models.items() if v}

    @property
    def healthy(self) -> bool:
        """Whether every model has a version that answers."""
        models = self._models
        return bool(models) and all(any(s.loaded for s in v.values()) for v in models.values())

    def models(self) -> Mapping[str, Mapping[int, VersionStatus]]:
        """Return what is known of all models now."""
        return self._models

    def statuses(self, model: str, version: int | None = None, label: str | None = None) -> dict[int, VersionStatus]:
        """Return what is known of a model's versions, newest first.

        Raises
        ------
        NotFound
            If there is none.
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
        """Return a version that answers: that one, or the newest.

        Raises
        ------
        NotFound
            If there is none.
        """
        if label is not None:
            version = self._labelled(model, label)
        known = self._models.get(model, {})
        for v in sorted(known, reverse=True):
            loaded = known[v].loaded
            if loaded is not None and version in (None, v):
                return loaded
        which = f"Latest({model})" if version is None else f"Specific({model}, {version})"
        raise NotFound(f"Servable not found for request: {which}")

    def _labelled(self, model: str, label: str) -> int:
        version = self.policy.labels.get(model, {}).get(label)
        if version is None:
            raise NotFound(f"Unrecognized servable version label: {label}")
        return version


def _load(model: str, number: int, directory: str, stamp: Stamp, before: VersionStatus | None) -> VersionStatus:
    try:
        loaded = LoadedVersion(model, number, directory)
    except Exception as e:
        # Whatever a SavedModel holds, and whatever TensorFlow makes of it, is no reason to leave the other models.
        error = ": ".join([type(e).__name__, *str(e).splitlines()[:1]])
        if before is None:
            before = VersionStatus(stamp)
        if error != before.error:
            logger.error("version %d of %s cannot be loaded: %s", number, model, error)
        failures = before.failures + 1 if stamp == before.stamp else 1
        return VersionStatus(stamp, before.loaded, error, failures)
    logger.info("serving version %d of %s", number, model)
    return VersionStatus(stamp, loaded)
