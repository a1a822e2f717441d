"""Checks of arguments that many functions take."""

from __future__ import annotations

from typing import Any

from tfspark.errors import ConfigurationError


def check_whole_number(name: str, value: Any, least: int) -> None:
    """Check that an argument is a whole number and at least `least`; a boolean is not a whole number.

    Raises
    ------
    ConfigurationError
        If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name} must be a whole number >= {least}, got {value!r}.")
