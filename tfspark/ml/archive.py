"""A SavedModel directory as bytes, and back."""

from __future__ import annotations

import io
import os
import secrets
import zipfile

from tfspark.errors import ConfigurationError


def packed_directory(directory: str) -> bytes:
    """Pack all files of a directory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as z:
        for parent, _, files in sorted(os.walk(directory)):
            for name in sorted(files):
                path = os.path.join(parent, name)
                # A fixed date: the same files give the same bytes.
                info = zipfile.ZipInfo(os.path.relpath(path, directory))
                with open(path, "rb") as f:
                    z.writestr(info, f.read())
    return buffer.getvalue()


def unpack(archive: bytes, directory: str) -> None:
    """Write what was packed into a directory."""
    with zipfile.ZipFile(io.BytesIO(archive)) as z:
        z.extractall(directory)


def unpack_version(archive: bytes, base: str) -> str:
    """Write a SavedModel as the next version under `base`, atomically, as TensorFlow Serving expects it.

    Returns
    -------
    str
        ``<base>/<version>``.

    Raises
    ------
    ConfigurationError
        If `base` is no local or mounted directory.
    """
    if "://" in base and not base.startswith("file://"):
        raise ConfigurationError(f"Cannot export to {base!r}.", hint="Export to a local or mounted directory.")
    base = os.path.abspath(base.removeprefix("file://"))
    os.makedirs(base, exist_ok=True)
    staging = os.path.join(base, f".staging-{secrets.token_hex(8)}")
    unpack(archive, staging)
    while True:
        version = 1 + max((int(d) for d in os.listdir(base) if d.isdigit()), default=0)
        target = os.path.join(base, str(version))
        try:
            os.rename(staging, target)
            return target
        except OSError:
            if not os.path.isdir(target):
                raise
