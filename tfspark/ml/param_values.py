"""Python objects in Params, as JSON: Keras objects as their configuration, other objects pickled.

`as_json` converts objects to JSON in the driver. `restored` reads the JSON without loading any code: pickled objects
stay bytes. `live` makes the objects, in a node, or in the driver for `KerasModel.toKeras`.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cloudpickle

from tfspark.errors import ConfigurationError
from tfspark.ml.custom_objects import require_known

_PICKLED = "tfspark.pickled"
_CONFIGURED = "tfspark.keras"


@dataclass(frozen=True)
class Pickled:
    """A pickled object that must not be loaded in this process; `label` describes it."""

    data: bytes = field(repr=False)
    label: str


@dataclass(frozen=True)
class Configured:
    """The configuration of a Keras object, as ``keras.saving`` returns it, and the custom classes in it, by name."""

    config: dict[str, Any]
    classes: Mapping[str, Pickled] = field(default_factory=dict)


def is_keras_object(value: Any) -> bool:
    """Return whether Keras itself can serialize the object: its class is a class of Keras or a subclass of one."""
    return hasattr(value, "get_config") and _is_of_keras(type(value))


def _is_of_keras(cls: type) -> bool:
    return any(c.__module__.partition(".")[0] == "keras" for c in cls.__mro__)


def _configured(value: Any, what: str) -> Configured:
    """Return the configuration of a Keras object, with the custom classes of the object and of its attributes."""
    saving = sys.modules["keras"].saving
    types = {type(v) for v in (value, *vars(value).values()) if is_keras_object(v)}
    own = [cls for cls in types if cls.__module__.partition(".")[0] != "keras"]
    classes = {saving.get_registered_name(cls): pickle(cls, what) for cls in own}
    return Configured(saving.serialize_keras_object(value), classes)


def as_json(value: Any, what: str = "value") -> Any:
    """Return JSON for a number, a string, a Keras object, a function, or lists and dicts of these.

    Parameters
    ----------
    value
        Any value that cloudpickle can pickle.
    what
        Name of the Param, for errors.

    Raises
    ------
    ConfigurationError
        If an object cannot be pickled.
    """
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [as_json(v, what) for v in value]
    if isinstance(value, dict):
        return {str(k): as_json(v, what) for k, v in value.items()}
    if is_keras_object(value):
        value = _configured(value, what)
    if isinstance(value, Configured):
        return {_CONFIGURED: value.config, "classes": as_json(dict(value.classes), what)}
    pickled = value if isinstance(value, Pickled) else pickle(value, what)
    return {_PICKLED: base64.b64encode(pickled.data).decode(), "label": pickled.label}


def restored(packed: Any) -> Any:
    """Return the packed value, with `Pickled` and `Configured` in place of objects."""
    return _unpacked(packed, lambda p: p)


def live(packed: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Return the packed value with its objects; this runs code that the bytes name.

    Parameters
    ----------
    packed
        The result of `as_json`.
    custom_objects
        Custom classes and functions, by the names that Keras objects have for them.

    Raises
    ------
    ConfigurationError
        If a Keras object contains other custom classes or functions.
    """
    return _unpacked(packed, lambda p: _load(p, custom_objects or {}))


def _unpacked(packed: Any, make: Any) -> Any:
    if isinstance(packed, list):
        return [_unpacked(p, make) for p in packed]
    if not isinstance(packed, dict):
        return packed
    if _PICKLED in packed:
        return make(Pickled(base64.b64decode(packed[_PICKLED]), packed["label"]))
    if _CONFIGURED in packed:
        # Files of earlier versions contain no classes.
        return make(Configured(packed[_CONFIGURED], restored(packed.get("classes", {}))))
    return {k: _unpacked(v, make) for k, v in packed.items()}


def _load(packed: Pickled | Configured, custom_objects: Mapping[str, Any]) -> Any:
    if isinstance(packed, Configured):
        import keras

        custom = {**{name: unpickle(cls) for name, cls in packed.classes.items()}, **custom_objects}
        require_known(packed.config, custom, str(packed.config.get("class_name")))
        return keras.saving.deserialize_keras_object(packed.config, custom_objects=custom)
    return unpickle(packed)


def pickle(value: Any, what: str) -> Pickled:
    """Pickle a function or an object; code that nodes cannot import is pickled by value.

    Raises
    ------
    ConfigurationError
        If the value cannot be pickled.
    """
    from tfspark.spark.pickling import pickle_main

    label = getattr(value, "__qualname__", type(value).__qualname__)
    try:
        # The module of the first argument is pickled by value.
        data = pickle_main(value, None) if hasattr(value, "__qualname__") else pickle_main(type(value), value)
    except ConfigurationError as e:
        raise ConfigurationError(
            f"{what}: {label} cannot be sent to the nodes: {e.__cause__ or e.message}",
            hint="Sessions, DataFrames, locks, open files and TensorFlow objects cannot be sent: pass a function "
            "that makes them.",
        ) from e
    return Pickled(data, label)


def unpickle(pickled: Pickled) -> Any:
    """Load the result of `pickle`."""
    first, instance, _ = cloudpickle.loads(pickled.data)
    return first if instance is None else instance
