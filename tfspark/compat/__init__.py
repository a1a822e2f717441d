"""Runs programs that were written for other libraries.

After `install`, ``import tensorflowonspark`` imports `tfspark.compat.tensorflowonspark`.
``python -m tfspark.compat PROGRAM`` calls `install` and runs a program file unchanged.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from tfspark.errors import ConfigurationError

__all__ = ["install"]

_OLD = "tensorflowonspark"
_NEW = f"{__name__}.{_OLD}"

_STUB = Path(__file__).parent / "stub" / "tensorflowonspark.py"


class _Alias(MetaPathFinder, Loader):
    """Imports the modules of the compatibility package under the names of the original too."""

    def __init__(self) -> None:
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _OLD and not fullname.startswith(f"{_OLD}."):
            return None
        if importlib.util.find_spec(_NEW + fullname.removeprefix(_OLD)) is None:
            return None
        return importlib.util.spec_from_loader(fullname, self, is_package=fullname == _OLD)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(_NEW + spec.name.removeprefix(_OLD))
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The module was already executed under its own name. The import under the other name has replaced its
        # __spec__, which is restored here.
        names = [n for n, s in self._specs.items() if s is not None and s.name == module.__name__]
        module.__spec__ = self._specs[names[0]]


_alias = _Alias()


def install(spark: Any = None) -> None:
    """Make ``import tensorflowonspark`` import tfspark's modules in this process. Safe to call again.

    In the processes of a cluster's nodes, tfspark calls this function itself.

    Parameters
    ----------
    spark
        A SparkSession or SparkContext whose executors must import tfspark's modules too. Functions of the program's
        own RDDs need this.

    Raises
    ------
    ConfigurationError
        If the original was imported before.
    """
    found = sys.modules.get(_OLD)
    if found is not None and found.__name__ != _NEW and not _is_stub(found):
        raise ConfigurationError(
            f"The original tensorflowonspark was imported before, from {found.__file__}.",
            hint="Call tfspark.compat.install() before the program's first import of it.",
        )
    if _alias not in sys.meta_path:
        sys.meta_path.insert(0, _alias)
    sys.modules[_OLD] = importlib.import_module(_NEW)
    if spark is not None:
        _ship(getattr(spark, "sparkContext", spark))


def is_installed() -> bool:
    """Return whether `install` was called in this process."""
    return _alias in sys.meta_path


def _is_stub(module: ModuleType) -> bool:
    """Return whether a module is the stub that `install` sends to executors, while it is being imported."""
    return os.path.basename(module.__file__ or "") == _STUB.name and getattr(module, "IS_TFSPARKS", False)


def _ship(sc: Any) -> None:
    sc.addPyFile(str(_STUB))
