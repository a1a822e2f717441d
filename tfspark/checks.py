"""Checks of arguments that many functions take."""

from __future__ import annotations

import os
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


def check_shared_path(name: str, path: str) -> None:
    """Check that a path means the same file on all hosts of a Spark cluster.

    Raises
    ------
    ConfigurationError
        If it is relative.
    """
    if not os.path.isabs(path) and not path.startswith("file:") and "://" not in path:
        raise ConfigurationError(
            f"{name} must be an absolute path or a URI, got {path!r}. Each executor has its own working directory, "
            "which Spark removes at the end.",
            hint="Pass a directory that driver and executors share.",
        )
