"""The models to serve, from a directory or from a model config file of TensorFlow Serving."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tfspark.errors import ConfigurationError
from tfspark.model_server.places import child_of, names_of, place_of

logger = logging.getLogger(__name__)

DEFAULT_NAME = "default"
"""Name of a model whose directory has no name; the same as in TensorFlow Serving."""


@dataclass(frozen=True)
class VersionPolicy:
    """The versions of a model to load.

    Attributes
    ----------
    newest
        How many of the newest versions to load; ``None`` for all.
    specific
        Numbers of the versions to load instead, if not empty.
    labels
        Version number by label. Versions with a label are always loaded.
    """

    newest: int | None = 1
    specific: tuple[int, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)

    def wanted(self, versions: Iterable[int]) -> list[int]:
        """Return the versions to load, ascending."""
        there = sorted(versions)
        if self.specific:
            chosen = [v for v in there if v in self.specific]
        else:
            chosen = there if self.newest is None else there[-self.newest :]
        return sorted({*chosen, *(v for v in self.labels.values() if v in there)})


@dataclass(frozen=True)
class ModelConfig:
    """One model: its name, the directory of its versions, and its version policy."""

    name: str
    base: str
    policy: VersionPolicy = VersionPolicy()


Configs = Mapping[str, ModelConfig]


class Source(Protocol):
    """A source of the models to serve."""

    def read(self) -> Configs | None:
        """Return the models by name; None if nothing has changed since the last call."""


class DirectorySource:
    """The models of a directory of versions, a directory of such directories, or a SavedModel.

    Parameters
    ----------
    directory
        A directory of numbered versions, a directory of such directories, or a SavedModel; a path or URI.
    name
        Name of the model, if `directory` is that of one model; by default the name of the directory.
    policy
        Version policy of each model; labels are added to it.
    labels
        Version numbers by label, for each model name; the key None is for every model.
    """

    def __init__(
        self,
        directory: str,
        name: str | None = None,
        policy: VersionPolicy = VersionPolicy(),
        labels: Mapping[str | None, Mapping[str, int]] | None = None,
    ) -> None:
        remote = "://" in directory or directory.startswith("file:")
        self._directory = directory if remote else os.path.abspath(directory)
        self._name, self._policy, self._labels = name, policy, labels or {}
        self._checked = False

    def read(self) -> Configs:
        bases = self._bases()
        if None in self._labels and len(bases) > 1 and not self._checked:
            raise ConfigurationError(
                f"--label {', '.join(self._labels[None])} needs the name of a model, because there are several.",
                hint=f"Pass MODEL:LABEL=VERSION; the models are {list(bases)}.",
            )
        self._checked = bool(bases)
        labels = {n: {**self._labels.get(None, {}), **self._labels.get(n, {})} for n in bases}
        return {n: ModelConfig(n, b, replace(self._policy, labels=labels[n])) for n, b in bases.items()}

    def _bases(self) -> dict[str, str]:
        place, (own, parent) = place_of(self._directory), names_of(self._directory)
        if place.versions():
            if place.is_saved_model() and own.isdecimal():
                own = parent
            return {self._name or own or DEFAULT_NAME: self._directory}
        below = {d: child_of(self._directory, d) for d in place.children()}
        return {d: base for d, base in below.items() if place_of(base).versions()}


class ConfigFileSource:
    """The models of a model config file; with `again`, each `read` checks whether its content has changed."""

    def __init__(self, path: str, again: bool = True) -> None:
        self._path, self._again = path, again
        self._text: bytes | None = None

    def read(self) -> Configs | None:
        if self._text is not None and not self._again:
            return None
        try:
            with open(self._path, "rb") as f:
                text = f.read()
        except OSError as e:
            raise ConfigurationError(f"Cannot read the model config file {self._path}: {e.strerror}.") from None
        if text == self._text:
            return None
        # Stored before it is parsed, so that an invalid file is reported only once.
        self._text = text
        return parse_config_file(text, self._path)


def parse_config_file(text: bytes, path: str) -> Configs:
    """Return the models of a model config file.

    Raises
    ------
    ConfigurationError
        If the text is not a model config file.
    """
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    message = model_server_config_pb2.ModelServerConfig()
    try:
        text_format.Parse(text.decode(), message)
    except (text_format.ParseError, UnicodeDecodeError) as e:
        raise ConfigurationError(
            f"{path} is not a model config file: {e}", hint="Its form is model_config_list { config { name: ... } }."
        ) from None
    return configs_of(message)


def configs_of(message: Any) -> Configs:
    """Return the models of a ``ModelServerConfig``.

    Raises
    ------
    ConfigurationError
        If it has no ``model_config_list``, two models with the same name, a model without name or directory, or an
        unsupported value.
    """
    if message.WhichOneof("config") != "model_config_list":
        raise ConfigurationError("The model config has no model_config_list.")
    configs: dict[str, ModelConfig] = {}
    for c in message.model_config_list.config:
        if not c.name or not c.base_path:
            raise ConfigurationError(
                f"A model needs name and base_path, got name {c.name!r} and base_path {c.base_path!r}."
            )
        if c.name in configs:
            raise ConfigurationError(f"The model config has the name {c.name!r} twice.")
        if c.model_platform not in ("", "tensorflow"):
            raise ConfigurationError(
                f"{c.name!r} has model_platform {c.model_platform!r}; only 'tensorflow' is supported."
            )
        configs[c.name] = ModelConfig(c.name, c.base_path, _policy(c))
    return configs


def _policy(config: Any) -> VersionPolicy:
    labels = dict(config.version_labels)
    policy = config.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy(None, labels=labels)
    if choice == "specific":
        specific: Sequence[int] = policy.specific.versions
        if not specific:
            raise ConfigurationError(f"{config.name!r} has a specific version policy without versions.")
        return VersionPolicy(specific=tuple(specific), labels=labels)
    return VersionPolicy(policy.latest.num_versions or 1, labels=labels)
