"""Classes and functions of one's own in a saved model or a Keras object: which of them Keras does not know."""

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
        Its bytes.
    path
        A file to write them to.
    custom_objects
        Classes and functions of one's own, by the names that the file has for them.
    compile
        Whether to compile it as it was.

    Raises
    ------
    ConfigurationError
        If it is no such file, or the model holds classes or functions that Keras does not know.
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
        If it does not; it lists all of them.
    """
    missing = dict(_missing(config, dict(custom_objects)))
    if missing:
        wanted = ", ".join(f"{name!r}: {own}" for name, own in missing.items())
        raise ConfigurationError(
            f"{what} uses custom classes or functions that Keras does not know: {sorted(missing)}.",
            hint=f"Pass customObjects={{{wanted}}}.",
        )


def _missing(config: Any, custom: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name that Keras looks for, and the object's own."""
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
