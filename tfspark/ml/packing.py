"""Python objects in Params, as JSON: what is Keras' own as its configuration, all else pickled.

`pack` makes JSON of them in the driver. `restored` reads it again without loading any code: what was pickled stays
bytes. `live` makes the objects of it, in a node.
"""

from __future__ import annotations

import base64
import sys
from dataclasses import dataclass, field
from typing import Any

import cloudpickle

from tfspark.errors import ConfigurationError

_PICKLED = "tfspark.pickled"
_CONFIGURED = "tfspark.keras"


@dataclass(frozen=True)
class Pickled:
    """A pickled object that is not to be loaded here; `label` says what it was."""

    data: bytes = field(repr=False)
    label: str


@dataclass(frozen=True)
class Configured:
    """The configuration of a Keras object, as ``keras.saving`` has it."""

    config: dict[str, Any]


def is_keras_object(value: Any) -> bool:
    """Tell whether Keras itself knows how to write the object down."""
    return type(value).__module__.partition(".")[0] == "keras" and hasattr(value, "get_config")


def pack(value: Any, what: str = "value") -> Any:
    """Return JSON for a number, a string, a Keras object, a function, or lists and dicts of these.

    Parameters
    ----------
    value
        Anything that cloudpickle can carry.
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
        return [pack(v, what) for v in value]
    if isinstance(value, dict):
        return {str(k): pack(v, what) for k, v in value.items()}
    if isinstance(value, Configured):
        return {_CONFIGURED: value.config}
    if is_keras_object(value):
        return {_CONFIGURED: sys.modules["keras"].saving.serialize_keras_object(value)}
    pickled = value if isinstance(value, Pickled) else pickle(value, what)
    return {_PICKLED: base64.b64encode(pickled.data).decode(), "label": pickled.label}


def restored(packed: Any) -> Any:
    """Return what was packed, with `Pickled` and `Configured` in the place of objects."""
    return _unpacked(packed, lambda p: p)


def live(packed: Any) -> Any:
    """Return what was packed, objects and all. Only in a node: it runs code that the bytes name."""
    return _unpacked(packed, _load)


def _unpacked(packed: Any, make: Any) -> Any:
    if isinstance(packed, list):
        return [_unpacked(p, make) for p in packed]
    if not isinstance(packed, dict):
        return packed
    if _PICKLED in packed:
        return make(Pickled(base64.b64decode(packed[_PICKLED]), packed["label"]))
    if _CONFIGURED in packed:
        return make(Configured(packed[_CONFIGURED]))
    return {k: _unpacked(v, make) for k, v in packed.items()}


def _load(packed: Pickled | Configured) -> Any:
    if isinstance(packed, Configured):
        import keras

        return keras.saving.deserialize_keras_object(packed.config)
    return unpickle(packed)


def pickle(value: Any, what: str) -> Pickled:
    """Pickle a function or an object, code that nodes cannot import by value.

    Raises
    ------
    ConfigurationError
        If it cannot be pickled.
    """
    from tfspark.driver.launcher import pickle_main

    label = getattr(value, "__qualname__", type(value).__qualname__)
    try:
        # The module of the first is what travels by value.
        data = pickle_main(value, None) if hasattr(value, "__qualname__") else pickle_main(type(value), value)
    except ConfigurationError as e:
        raise ConfigurationError(
            f"{what}: {label} cannot be sent to the nodes: {e.__cause__ or e.message}",
            hint="Sessions, DataFrames, locks and open files cannot travel, nor TensorFlow objects: pass a function "
            "that makes them.",
        ) from e
    return Pickled(data, label)


def unpickle(pickled: Pickled) -> Any:
    """Load what `pickle` made."""
    first, instance, _ = cloudpickle.loads(pickled.data)
    return first if instance is None else instance
