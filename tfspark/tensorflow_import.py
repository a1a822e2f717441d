"""Import TensorFlow faster than ``import tensorflow`` does.

Keras imports matplotlib and scikit-learn for its visualization and wrapper modules, which training seldom uses: these
modules are loaded on first use instead. The garbage collector is off during the import, because the import creates
half a million objects and none of them is garbage. The process then keeps the memory that it frees (`malloc`).
"""

from __future__ import annotations

import gc
import importlib.machinery
import sys
import threading
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import Any

from tfspark.malloc import keep_freed_memory

DEFERRED = frozenset({"keras.visualization", "keras.wrappers", "keras.src.visualization"})
"""Modules that are loaded on first use."""


class _Deferred(Loader):
    """Loads a module when one of its attributes is first used.

    `importlib.util.LazyLoader` also loads a module when its dunder attributes are read, and TensorFlow's AutoGraph
    reads those of all modules.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: Any) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        lock = threading.RLock()
        began = False

        def load_and_get(name: str) -> Any:
            nonlocal began
            if name.startswith("__") and name != "__all__":
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            with lock:
                if not began:
                    began = True
                    try:
                        self._loader.exec_module(module)
                    except BaseException:
                        began = False
                        raise
                    vars(module).pop("__getattr__", None)
                if name in vars(module):
                    return vars(module)[name]
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        vars(module)["__getattr__"] = load_and_get


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(fullname, path) if fullname in DEFERRED else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Deferred(spec.loader)
        return spec


def import_tensorflow() -> Any:
    """Import TensorFlow and Keras; return the module ``tensorflow``.

    Raises
    ------
    ImportError
        As ``import tensorflow`` does.
    """
    if "tensorflow" not in sys.modules:
        finder = _Finder()
        collecting = gc.isenabled()
        keep_freed_memory()
        sys.meta_path.insert(0, finder)
        gc.disable()
        try:
            import tensorflow  # noqa: F401
        finally:
            sys.meta_path.remove(finder)
            if collecting:
                gc.enable()
        gc.freeze()
    return sys.modules["tensorflow"]
