"""Which models are served: those under a directory, or those of a model config file as TensorFlow Serving has it."""

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
"""Name of a model whose directory has none, as TensorFlow Serving has it."""


@dataclass(frozen=True)
class VersionPolicy:
    """Which versions of a model are loaded.

    Attributes
    ----------
    newest
        How many of the newest; ``None`` for all.
    specific
        These instead, if there are any.
    labels
        Label to version number. Versions with a label are loaded, however old they are.
    """

    newest: int | None = 1
    specific: tuple[int, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)

    def wanted(self, versions: Iterable[int]) -> list[int]:
        """Return which of a model's versions are to be loaded, ascending."""
        there = sorted(versions)
        if self.specific:
            chosen = [v for v in there if v in self.specific]
        else:
            chosen = there if self.newest is None else there[-self.newest :]
        return sorted({*chosen, *(v for v in self.labels.values() if v in there)})


@dataclass(frozen=True)
class ModelConfig:
    """One model: its name, where its versions are, and which of them are loaded."""

    name: str
    base: str
    policy: VersionPolicy = VersionPolicy()


Configs = Mapping[str, ModelConfig]


class Source(Protocol):
    """Tells which models are to be served."""

    def read(self) -> Configs | None:
        """Return the models by name; None if they are the same as last time."""


class DirectorySource:
    """The models under a directory: its own versions, or those of its subdirectories, or itself.

    Parameters
    ----------
    directory
        Of one model with numbered versions, of several such directories, or a SavedModel; a path or URI.
    name
        Name of the model if it is one; by default that of the directory.
    policy
        Of each model; labels are added to it.
    labels
        Label to version number by model name; of every model under None.
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
                f"--label {', '.join(self._labels[None])} does not say of which model.",
                hint=f"Write MODEL:LABEL; there are {list(bases)}.",
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
    """The models of a model config file; it is read again when its content has changed, if that is asked for."""

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
        # Kept before it is understood, so that a bad file is told of once.
        self._text = text
        return parse_config_file(text, self._path)


def parse_config_file(text: bytes, path: str) -> Configs:
    """Return the models of a model config file.

    Raises
    ------
    ConfigurationError
        If it is none.
    """
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    message = model_server_config_pb2.ModelServerConfig()
    try:
        text_format.Parse(text.decode(), message)
    except (text_format.ParseError, UnicodeDecodeError) as e:
        raise ConfigurationError(
            f"{path} is no model config file: {e}", hint="It holds model_config_list { config { name: ... } }."
        ) from None
    return configs_of(message)


def configs_of(message: Any) -> Configs:
    """Return the models of a ``ModelServerConfig``.

    Raises
    ------
    ConfigurationError
        If it names none, one twice, or no directory.
    """
    if message.WhichOneof("config") != "model_config_list":
        raise ConfigurationError("The model config has no model_config_list.")
    configs: dict[str, ModelConfig] = {}
    for c in message.model_config_list.config:
        if not c.name or not c.base_path:
            raise ConfigurationError(f"A model needs name and base_path, got name {c.name!r}, path {c.base_path!r}.")
        if c.name in configs:
            raise ConfigurationError(f"The model config has {c.name!r} twice.")
        if c.model_platform not in ("", "tensorflow"):
            raise ConfigurationError(f"{c.name!r} has model_platform {c.model_platform!r}; only 'tensorflow' is known.")
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
