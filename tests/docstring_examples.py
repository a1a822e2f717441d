"""Finds and runs the examples (``>>>``) in the docstrings of public names."""

from __future__ import annotations

import doctest
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

MORE = ("tfspark.functions", "tfspark.tensorflow_options.TensorFlowOptions", "tfspark.saved_models.export.export_model")
"""Public names that ``tfspark.__all__`` does not lead to."""

CALLED_BY_TFSPARK = {
    "tfspark.NodeContext.close",
    "tfspark.NodeContext.run_finished",
    "tfspark.ml.KerasEstimator.source",
    "tfspark.ml.KerasModel.trained",
}
"""Members that other modules of tfspark use; a program has no use for them."""


def public() -> dict[str, Any]:
    """Return all public functions, classes, methods and properties by name."""
    import tfspark

    found: dict[str, Any] = {}
    for name in tfspark.__all__:
        found |= dict(_named(f"tfspark.{name}", getattr(tfspark, name)))
    for name in MORE:
        found |= dict(_named(name, pkgutil.resolve_name(name)))
    return {name: o for name, o in found.items() if name not in CALLED_BY_TFSPARK}


def _named(name: str, o: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(o, ModuleType):
        for member in o.__all__:
            yield from _named(f"{name}.{member}", getattr(o, member))
        return
    yield name, o
    if inspect.isclass(o):
        for member, value in vars(o).items():
            plain = value.__func__ if isinstance(value, classmethod) else value
            shown = inspect.isfunction(plain) or isinstance(plain, property)
            if shown and not member.startswith("_") and not _is_accessor(o, member):
                yield f"{name}.{member}", plain


def _is_accessor(owner: type, member: str) -> bool:
    """Whether a method is the getter or setter of a Param of Spark ML: all of them are alike."""
    param = getattr(owner, member[3:4].lower() + member[4:], None)
    return member[:3] in ("get", "set") and type(param).__name__ == "Param"


def examples_of(o: Any) -> list[doctest.Example]:
    """Return the examples in the docstring of an object."""
    return doctest.DocTestParser().get_examples(inspect.getdoc(o) or "")


def source_of(o: Any) -> str:
    """Return the code of the examples, without what they print."""
    return "".join(e.source for e in examples_of(o))


def run(name: str, o: Any, namespace: dict[str, Any]) -> None:
    """Run the examples of an object and add what they define to `namespace`.

    Raises
    ------
    AssertionError
        If an example prints something else than its docstring says.
    """
    test = doctest.DocTest(examples_of(o), namespace, name, None, None, None)
    said: list[str] = []
    flags = doctest.ELLIPSIS | doctest.REPORT_NDIFF
    failed = doctest.DocTestRunner(optionflags=flags).run(test, out=said.append, clear_globs=False).failed
    namespace.update(test.globs)
    assert not failed, "".join(said)
