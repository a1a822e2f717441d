"""Warnings and errors of the old API, which name the tfspark form of a call."""

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
    """Return a decorator that makes each call of a function issue a warning with its tfspark form."""

    def decorate(function: F) -> F:
        module = function.__module__.rpartition(".")[2]
        # Users call Spark ML's fit(), which calls _fit().
        method = function.__qualname__.replace("._", ".")
        name = method if method.startswith(module) else f"{module}.{method}"

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            note(name, form)
            return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]

    return decorate


def note(name: str, form: str) -> None:
    """Issue a warning that `name` is written as `form` with tfspark, unless the call came from this package."""
    deprecation.warn(f"tensorflowonspark's {name}: with tfspark, {form}. See {GUIDE}.", _HERE, depth=3)


def gone(name: str, form: str) -> ConfigurationError:
    """Return the error for a call that tfspark does not support."""
    return ConfigurationError(f"{name} does not exist in tfspark.", hint=f"{form}. See {GUIDE}.")
