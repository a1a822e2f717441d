"""Write a SavedModel version as TensorFlow Serving expects it: ``<base>/<version>``, complete or not there at all."""

from __future__ import annotations

import os
import secrets
from typing import Any

from tfspark.errors import ConfigurationError


def export_saved_model(model: Any, base: str, verbose: bool = False) -> str:
    """Export a built Keras model to the next version under `base`, atomically.

    Parameters
    ----------
    model
        A Keras model that has been called or fitted.
    base
        A directory that all readers share; a local or mounted path.

    Returns
    -------
    str
        The directory of the new version.
    """
    if "://" in base and not base.startswith("file://"):
        raise ConfigurationError(f"Cannot export to {base!r}.", hint="Export to a local or mounted directory.")
    base = base.removeprefix("file://")
    os.makedirs(base, exist_ok=True)
    staging = os.path.join(base, f".staging-{secrets.token_hex(8)}")
    model.export(staging, verbose=verbose)
    while True:
        version = 1 + max((int(d) for d in os.listdir(base) if d.isdigit()), default=0)
        target = os.path.join(base, str(version))
        try:
            os.rename(staging, target)
            return target
        except OSError:
            if not os.path.isdir(target):
                raise
