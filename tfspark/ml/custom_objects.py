"""Custom classes and functions in a saved model or a Keras object: finds those that Keras does not know."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

from tfspark.errors import ConfigurationError


def load_keras(data: bytes, path: str, custom_objects: Mapping[str, Any], *, compile: bool) -> Any:
    """Load a ``.keras`` file.

    Parameters
    ----------
    data
        The bytes of the file.
    path
        A file to which the bytes are written.
    custom_objects
        Custom classes and functions, by the names that the file has for them.
    compile
        Whether to compile the model as it was compiled when it was saved.

    Raises
    ------
    ConfigurationError
        If the bytes are not a ``.keras`` file, or the model contains classes or functions that Keras does not know.
    """
    import keras

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            config = json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, KeyError, ValueError) as e:
        raise ConfigurationError(
            f"The model's file is not a .keras file: {e}", hint="Write it with model.save('model.keras')."
        ) from None
    if not compile:
        config.pop("compile_config", None)
    require_known(config, custom_objects, "The model")
    with open(path, "wb") as f:
        f.write(data)
    return keras.saving.load_model(path, custom_objects=dict(custom_objects), compile=compile)


def require_known(config: Any, custom_objects: Mapping[str, Any], what: str) -> None:
    """Check that Keras knows all classes and functions of a configuration.

    Raises
    ------
    ConfigurationError
        If Keras does not know some of them; the error lists all of these.
    """
    missing = dict(_missing(config, dict(custom_objects)))
    if missing:
        wanted = ", ".join(f"{name!r}: {own}" for name, own in missing.items())
        raise ConfigurationError(
            f"{what} uses custom classes or functions that Keras does not know: {sorted(missing)}.",
            hint=f"Pass customObjects={{{wanted}}}.",
        )


def _missing(config: Any, custom: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield, for each unknown object, the name that Keras looks up and the object's own name."""
    if isinstance(config, (list, tuple)):
        for inner in config:
            yield from _missing(inner, custom)
    if not isinstance(config, Mapping):
        return
    if config.get("class_name") == "function" and isinstance(config.get("config"), str):
        name = config["config"]
        if not _is_known_function(config, custom):
            yield name, name.rpartition(">")[2]
    elif isinstance(config.get("class_name"), str) and "registered_name" in config:
        import keras

        name, own = config["registered_name"], config["class_name"]
        is_custom = name is not None and not str(config.get("module") or "").startswith("keras")
        if is_custom and keras.saving.get_registered_object(name, custom_objects=custom) is None:
            yield name, own
    for inner in config.values():
        yield from _missing(inner, custom)


def _is_known_function(config: Any, custom: dict[str, Any]) -> bool:
    import keras

    try:
        return keras.saving.deserialize_keras_object(dict(config), custom_objects=custom) is not None
    except (TypeError, ValueError):
        return False
