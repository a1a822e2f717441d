"""Deprecation of public names. docs/stability.md defines what is public and how long deprecated names stay."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

PACKAGE = os.path.dirname(os.path.abspath(__file__))


def deprecated(instead: str, *, since: str, removal: str) -> Callable[[F], F]:
    """Mark a function or method as deprecated: each call from outside tfspark issues a warning.

    Parameters
    ----------
    instead
        The replacement.
    since
        Version that deprecates it.
    removal
        First version that may remove it.

    Returns
    -------
    Callable
        A decorator; the docstring of the decorated function gets a note.

    Examples
    --------
    >>> @deprecated("rows_per_second()", since="0.2", removal="0.4")
    ... def speed():
    ...     return 500.0
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     _ = speed()
    >>> print(caught[0].message)
    speed is deprecated since tfspark 0.2 and may be removed in 0.4. Use rows_per_second() instead.
    """

    def decorate(function: F) -> F:
        name = function.__qualname__
        message = f"{name} is deprecated since tfspark {since} and may be removed in {removal}. Use {instead} instead."

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            warn(message)
            return function(*args, **kwargs)

        wrapper.__doc__ = f"{function.__doc__ or name}\n\n.. deprecated:: {since}\n    Use {instead} instead."
        return wrapper  # type: ignore[return-value]

    return decorate


def warn(message: str, own: str = PACKAGE, depth: int = 2) -> None:
    """Issue a `DeprecationWarning` that points to the code that uses a deprecated name.

    Parameters
    ----------
    message
        What is deprecated and what to use instead.
    own
        Directory whose code may use the name without a warning.
    depth
        Number of frames between this function and the code that uses the name.
    """
    caller = sys._getframe(depth).f_code.co_filename
    if not caller.startswith(own + os.sep):
        warnings.warn(message, DeprecationWarning, depth + 1)
