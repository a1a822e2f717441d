"""Pickle ``main`` and its arguments; code that executors cannot import is pickled by value."""

from __future__ import annotations

import io
import os
import sys
import sysconfig
import threading
from collections import ChainMap
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any, ClassVar

import cloudpickle

from tfspark.errors import ConfigurationError

_pickling = threading.Lock()


def pickle_main(main: Callable[..., Any], args: Any, strategy: Callable[..., Any] | None = None) -> bytes:
    """Pickle `main`, its arguments and the user's strategy for the nodes; pickle code they cannot import by value.

    Raises
    ------
    ConfigurationError
        If `main` is not callable, or one of the three cannot be pickled.
    """
    if not callable(main):
        raise ConfigurationError(
            f"main must be a function main(args, ctx), got {type(main).__name__}.",
            hint="Pass the function without calling it.",
        )
    module = sys.modules.get(getattr(main, "__module__", None) or "")
    by_value = module is not None and module.__name__ != "__main__" and not _is_installed(module)
    try:
        return _dump((main, args, strategy), module if by_value else None)
    except Exception as e:
        raise ConfigurationError(
            f"main or its args cannot be sent to the nodes: {e}",
            hint="Sessions, DataFrames, locks, open files and TensorFlow objects cannot be sent: create them inside "
            "main, and pass plain values in args.",
        ) from e


def _dump(value: Any, by_value: ModuleType | None) -> bytes:
    buffer = io.BytesIO()
    # Registering a module with cloudpickle affects all threads.
    with _pickling:
        if by_value is not None:
            cloudpickle.register_pickle_by_value(by_value)
        try:
            _MainPickler(buffer).dump(value)
        finally:
            if by_value is not None:
                cloudpickle.unregister_pickle_by_value(by_value)
    return buffer.getvalue()


def _reduce_code(code: CodeType) -> tuple[Any, ...]:
    make, parts, *rest = cloudpickle.Pickler.dispatch_table[CodeType](code)
    # Since 3.1.3 cloudpickle drops the file name; without it tracebacks would not say where main failed.
    return (make, tuple(code.co_filename if p == "<dynamic-code>" else p for p in parts), *rest)


class _MainPickler(cloudpickle.Pickler):  # type: ignore[misc]
    dispatch_table: ClassVar[ChainMap[type, Callable[..., Any]]] = ChainMap(
        {CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table
    )


def _is_installed(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if file is None:
        return True
    roots = {sysconfig.get_path(k) for k in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(os.path.realpath(file).startswith(os.path.realpath(r) + os.sep) for r in roots)
