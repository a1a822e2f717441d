"""The cache directory for files that tfspark makes on this machine and can make again: connector jar, Java wrapper."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

ENVIRONMENT_NAME = "TFSPARK_CACHE"


def cache_dir() -> Path:
    """Return the cache directory, which exists and is writable.

    It is ``$TFSPARK_CACHE`` if that is set, else ``tfspark`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. If that is not
    writable, or there is no home directory, it is a private directory of this user in the system's temporary directory.
    """
    chosen = os.environ.get(ENVIRONMENT_NAME)
    if chosen:
        path = Path(chosen)
        path.mkdir(parents=True, exist_ok=True)
        return path
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfspark"
        base.mkdir(parents=True, exist_ok=True)
        if os.access(base, os.W_OK):
            return base
    except (OSError, RuntimeError):
        # RuntimeError: neither HOME nor the user database gives a home directory, as for a container's made-up user.
        pass
    return _private_temporary()


def _private_temporary() -> Path:
    path = Path(tempfile.gettempdir()) / f"tfspark-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        # Another user's directory could contain another user's jar.
        return Path(tempfile.mkdtemp(prefix="tfspark-"))
    return path
