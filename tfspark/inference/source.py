"""Where a model comes from: a SavedModel or ``.keras`` file that executors can read, or one packed into the task."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zipfile
from dataclasses import dataclass, field
from typing import Any

from tfspark.errors import ConfigurationError, first_line
from tfspark.saved_models.signatures import DEFAULT, Signature
from tfspark.saved_models.versions import SAVED_MODEL_FILE, local_path, newest_version

KERAS_SUFFIXES = (".keras", ".h5")


@dataclass(frozen=True)
class StoredModel:
    """A SavedModel directory or a ``.keras`` file."""

    path: str

    @property
    def is_keras_file(self) -> bool:
        """Whether Keras has to read it."""
        return self.path.endswith(KERAS_SUFFIXES)

    @property
    def key(self) -> str:
        """What a process knows it by; another one when it has been written anew."""
        stat = os.stat(self.path if self.is_keras_file else os.path.join(self.path, SAVED_MODEL_FILE))
        return f"{self.path}@{stat.st_mtime_ns}-{stat.st_size}"

    def found(self) -> StoredModel:
        """Return the file, or the directory of the newest version.

        Raises
        ------
        ConfigurationError
            If there is none.
        """
        if not self.is_keras_file:
            return StoredModel(newest_version(self.path))
        path = local_path(self.path)
        if not os.path.isfile(path):
            raise ConfigurationError(f"There is no file {path!r}.", hint="Executors must be able to read it.")
        return StoredModel(path)


@dataclass(frozen=True)
class PackedModel:
    """A SavedModel that travels with the task: the directory as an archive.

    `signature` describes it, if it is known; else it is read from the archive.
    """

    archive: bytes = field(repr=False)
    key: str
    signature: Signature | None = None

    @classmethod
    def of(cls, directory: str) -> PackedModel:
        """Pack a SavedModel directory."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as z:
            for parent, _, files in os.walk(directory):
                for name in sorted(files):
                    path = os.path.join(parent, name)
                    # A fixed date, so that the same model packed twice has one key.
                    info = zipfile.ZipInfo(os.path.relpath(path, directory))
                    with open(path, "rb") as f:
                        z.writestr(info, f.read())
        return cls.holding(buffer.getvalue())

    @classmethod
    def holding(cls, archive: bytes, signature: Signature | None = None) -> PackedModel:
        """Name an archive by what it holds."""
        return cls(archive, hashlib.sha256(archive).hexdigest(), signature)

    def unpack(self, directory: str) -> None:
        """Write the SavedModel into an empty directory."""
        with zipfile.ZipFile(io.BytesIO(self.archive)) as z:
            z.extractall(directory)


ModelSource = StoredModel | PackedModel


def source_of(model: Any) -> ModelSource:
    """Return the source of what a user calls a model.

    Raises
    ------
    ConfigurationError
        If it is neither a path nor a Keras model that can be exported.
    """
    if isinstance(model, PackedModel):
        return model
    if isinstance(model, (str, os.PathLike)):
        path = os.fspath(model)
        # Executors have working directories of their own.
        return StoredModel(path if ":" in path.split("/")[0] else os.path.abspath(path))
    if not (hasattr(model, "export") and hasattr(model, "layers")):
        raise ConfigurationError(
            f"A model is a SavedModel directory, a .keras file or a Keras model, not {type(model).__name__}."
        )
    with tempfile.TemporaryDirectory(prefix="tfspark-model-") as directory:
        export_keras(model, directory)
        return PackedModel.of(directory)


def export_keras(model: Any, directory: str) -> None:
    """Write a Keras model as a SavedModel.

    Raises
    ------
    ConfigurationError
        If Keras cannot: above all, if the model has not been built.
    """
    try:
        model.export(directory, verbose=False)
    except (ValueError, TypeError) as e:
        raise ConfigurationError(
            f"Keras cannot export the model {getattr(model, 'name', '')!r}: {first_line(e)}",
            hint="Call or fit it once before, so that it is built.",
        ) from None


@dataclass(frozen=True)
class ModelCall:
    """A model, and under which of its signatures it is called."""

    source: ModelSource
    signature: str = DEFAULT
