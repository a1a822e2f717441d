"""How calls of the old API say what they have become."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

from tfspark import deprecation
from tfspark.errors import ConfigurationError

F = TypeVar("F", bound=Callable[..., Any])

_HERE = os.path.dirname(__file__)

GUIDE = "docs/migration/tensorflowonspark.md"


def now(form: str) -> Callable[[F], F]:
    """Have a function say, each time that it is called, what to write instead."""

    def decorate(function: F) -> F:
        module = function.__module__.rpartition(".")[2]
        # Spark ML's fit() calls _fit().
        method = function.__qualname__.replace("._", ".")
        name = method if method.startswith(module) else f"{module}.{method}"

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            note(name, form)
            return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]

    return decorate


def note(name: str, form: str) -> None:
    """Issue the warning that `name` is written as `form` with tfspark, unless this package itself has called it."""
    deprecation.warn(f"tensorflowonspark's {name}: with tfspark, {form}. See {GUIDE}.", _HERE, depth=3)


def gone(name: str, form: str) -> ConfigurationError:
    """Return the error for a call that has no meaning any more."""
    return ConfigurationError(f"{name} does not exist in tfspark.", hint=f"{form}. See {GUIDE}.")
