"""The source of a model: a SavedModel or ``.keras`` file that executors can read, or a model packed into the task."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from packaging.version import Version

from tfspark.errors import ConfigurationError, first_line
from tfspark.saved_models.description import read_signature
from tfspark.saved_models.masking import masked_values, with_masks
from tfspark.saved_models.outputs import flat_model
from tfspark.saved_models.signatures import DEFAULT, Signature
from tfspark.saved_models.versions import SAVED_MODEL_FILE, is_version, local_path, newest_version
from tfspark.spark.remote_files import RemoteFile, fetch, is_remote, owner_of_files, remote_files, ship, shipped

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

KERAS_SUFFIXES = (".keras", ".h5")


@dataclass(frozen=True)
class StoredModel:
    """A SavedModel directory or a ``.keras`` file."""

    path: str

    @property
    def is_keras_file(self) -> bool:
        """Whether Keras must read it."""
        return self.path.endswith(KERAS_SUFFIXES)

    @property
    def key(self) -> str:
        """Key of the model in a process; it changes when the model is written again."""
        stat = os.stat(self.path if self.is_keras_file else os.path.join(self.path, SAVED_MODEL_FILE))
        return f"{self.path}@{stat.st_mtime_ns}-{stat.st_size}"

    def found(self) -> StoredModel:
        """Return the file, or the directory of the newest version.

        Raises
        ------
        ConfigurationError
            If it does not exist.
        """
        if not self.is_keras_file:
            return StoredModel(newest_version(self.path))
        path = local_path(self.path)
        if not os.path.isfile(path):
            raise ConfigurationError(f"The file {path!r} does not exist.", hint="Executors must be able to read it.")
        return StoredModel(path)


@dataclass(frozen=True)
class ShippedModel:
    """A model that Spark has copied to the executors.

    Attributes
    ----------
    name
        Name under which `tfspark.spark.remote_files.ship` has sent it.
    file
        Name of the ``.keras`` file in the copied directory; ``""`` for a SavedModel.
    """

    name: str
    file: str = ""

    @property
    def is_keras_file(self) -> bool:
        """Whether Keras must read it."""
        return bool(self.file)

    @property
    def path(self) -> str:
        """Path of the model on this executor."""
        return os.path.join(shipped(self.name), self.file) if self.file else shipped(self.name)

    @property
    def key(self) -> str:
        """Key of the model in a process; a model that is written again is shipped under another name."""
        return self.name

    def found(self) -> ShippedModel:
        """Return the model itself: nothing needs to be looked up."""
        return self


@dataclass(frozen=True)
class EmbeddedModel:
    """A SavedModel that is sent with the task: its directory as an archive.

    `signature` is the description of the model's signature; if it is ``None``, it is read from the archive.
    """

    archive: bytes = field(repr=False)
    key: str
    signature: Signature | None = None

    @classmethod
    def of(cls, directory: str) -> EmbeddedModel:
        """Pack a SavedModel directory."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as z:
            for parent, _, files in os.walk(directory):
                for name in sorted(files):
                    path = os.path.join(parent, name)
                    # ZipInfo has a fixed date, so that the same model packed twice has the same key.
                    info = zipfile.ZipInfo(os.path.relpath(path, directory))
                    with open(path, "rb") as f:
                        z.writestr(info, f.read())
        return cls.holding(buffer.getvalue())

    @classmethod
    def holding(cls, archive: bytes, signature: Signature | None = None) -> EmbeddedModel:
        """Return the model in an archive; its key is a hash of the archive."""
        return cls(archive, hashlib.sha256(archive).hexdigest(), signature)

    def unpack(self, directory: str) -> None:
        """Write the SavedModel into an empty directory."""
        with zipfile.ZipFile(io.BytesIO(self.archive)) as z:
            z.extractall(directory)


ModelSource = StoredModel | ShippedModel | EmbeddedModel

_shipped: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
"""Names of the models that have been shipped, by `owner_of_files`."""


def brought(spark: SparkSession, url: str) -> ShippedModel:
    """Copy a model at a URL, or its newest version, to the executors; an unchanged model is copied only once.

    Raises
    ------
    ConfigurationError
        If there is no model, or it cannot be read.
    """
    url = url.rstrip("/")
    files = remote_files(spark, url)
    file = os.path.basename(url) if url.endswith(KERAS_SUFFIXES) else ""
    base = url if file else _remote_version(url, files)
    wanted = [f for f in files if f.path == base or f.path.startswith(f"{base}/")]
    if not wanted:
        raise ConfigurationError(
            f"The file {url!r} does not exist.", hint="Check the path, or list it with hdfs dfs -ls."
        )
    stamps = "\n".join(sorted(f"{f.path} {f.stamp}" for f in wanted))
    name = f"tfspark-model-{hashlib.sha256(stamps.encode()).hexdigest()[:24]}"
    sent = _shipped.setdefault(owner_of_files(spark), set())
    if name not in sent:
        with tempfile.TemporaryDirectory(prefix="tfspark-model-") as directory:
            fetch(spark, wanted, base, directory)
            ship(spark, directory, name)
        sent.add(name)
    return ShippedModel(name, file)


def _remote_version(url: str, files: Sequence[RemoteFile]) -> str:
    """Return the URL of a SavedModel, or of the newest version in a directory of versions."""
    found = {f.path.removesuffix(f"/{SAVED_MODEL_FILE}") for f in files if f.path.endswith(f"/{SAVED_MODEL_FILE}")}
    if url in found:
        return url
    numbered = ((version_number(url, path), path) for path in sorted(found, key=len, reverse=True))
    versions = {number: path for number, path in numbered if number is not None}
    if not versions:
        raise ConfigurationError(
            f"{url!r} holds no SavedModel.", hint="Export one with ctx.export(model, directory), and copy it there."
        )
    return versions[max(versions)]


def version_number(base: str, path: str) -> int | None:
    """Return the version number of a directory directly in `base`; ``None`` if its name is not a version number."""
    parent, _, name = path.rpartition("/")
    return int(name) if parent == base and is_version(name) else None


def model_source_of(spark: SparkSession, model: Any) -> ModelSource:
    """Return the source of a model as users pass it.

    Raises
    ------
    ConfigurationError
        If it is neither a path nor a Keras model that can be exported.
    """
    if isinstance(model, EmbeddedModel):
        return model
    if isinstance(model, (str, os.PathLike)):
        path = os.fspath(model)
        if is_remote(path):
            return brought(spark, path)
        # Executors have other working directories.
        return StoredModel(path if path.startswith("file:") else os.path.abspath(path))
    if not (hasattr(model, "export") and hasattr(model, "layers")):
        raise ConfigurationError(
            f"model must be a SavedModel directory, a .keras file or a Keras model, got {type(model).__name__}."
        )
    with tempfile.TemporaryDirectory(prefix="tfspark-model-") as directory:
        export_keras(model, directory)
        found = with_masks(read_signature(directory), masked_values(model))
        return EmbeddedModel.holding(EmbeddedModel.of(directory).archive, found)


def export_keras(model: Any, directory: str) -> None:
    """Write a Keras model as a SavedModel; outputs in nested dicts are called ``outer/inner``.

    Raises
    ------
    ConfigurationError
        If Keras cannot export the model, in particular if it has not been built.
    """
    try:
        flat = flat_model(model)
        flat.export(directory, verbose=False, input_signature=_inputs_in_dict(flat))
    except (ValueError, TypeError) as e:
        raise ConfigurationError(
            f"Keras cannot export the model {getattr(model, 'name', '')!r}: {first_line(e)}",
            hint="Call or fit it once before, so that it is built.",
        ) from None


def _inputs_in_dict(model: Any) -> list[Any] | None:
    """Return the signature of a functional model that takes a dict, which Keras before 3.10 does not find itself."""
    import keras

    inputs = getattr(model, "_inputs_struct", None)
    if not isinstance(inputs, Mapping) or Version(keras.__version__) >= Version("3.10"):
        return None
    return [keras.tree.map_structure(lambda t: keras.InputSpec(t.dtype, (None, *t.shape[1:]), name=t.name), inputs)]


@dataclass(frozen=True)
class ModelCall:
    """A model, and the name of the signature to call."""

    source: ModelSource
    signature: str = DEFAULT
