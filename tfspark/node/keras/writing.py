"""Keras callbacks that write files: on workers other than the chief they write to a temporary directory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

WRITERS: dict[type, str] = {
    keras.callbacks.ModelCheckpoint: "filepath",
    keras.callbacks.BackupAndRestore: "backup_dir",
    keras.callbacks.CSVLogger: "filename",
    keras.callbacks.TensorBoard: "log_dir",
}
"""Callbacks that write files, and the attribute that holds their path."""


def flat(callbacks: Any) -> list[Any]:
    """Return the callbacks of a list, of nested lists, or of a ``CallbackList``."""
    if callbacks is None:
        return []
    inner = getattr(callbacks, "callbacks", callbacks)
    if isinstance(inner, (list, tuple)):
        return [c for item in inner for c in flat(item)]
    return [callbacks]


@contextmanager
def only_chief_writes(callbacks: Sequence[Any], is_chief: bool) -> Iterator[None]:
    """Redirect files of callbacks to a temporary directory, except on the chief."""
    if is_chief:
        yield
        return
    scratch = tempfile.mkdtemp(prefix="tfspark-callbacks-")
    undo: list[Callable[[], None]] = []
    try:
        for i, callback in enumerate(callbacks):
            attribute = next((a for cls, a in WRITERS.items() if isinstance(callback, cls)), None)
            if attribute is not None:
                undo.append(_redirect(callback, attribute, os.path.join(scratch, str(i))))
        yield
    finally:
        for restore in undo:
            restore()
        shutil.rmtree(scratch, ignore_errors=True)


def _redirect(callback: Any, attribute: str, directory: str) -> Callable[[], None]:
    place = str(getattr(callback, attribute))
    os.makedirs(directory)
    target = os.path.join(directory, os.path.basename(place.rstrip("/")))
    # BackupAndRestore keeps several paths below its directory.
    own = {k: v for k, v in vars(callback).items() if isinstance(v, (str, os.PathLike)) and str(v).startswith(place)}

    def redirect() -> None:
        for name, value in own.items():
            setattr(callback, name, target + str(value)[len(place) :])

    def restore() -> None:
        vars(callback).pop("on_train_begin", None)
        for name, value in own.items():
            setattr(callback, name, value)

    if isinstance(callback, keras.callbacks.BackupAndRestore):
        # The callback still restores from the chief's directory; only its writes are redirected.
        begin = callback.on_train_begin

        def on_train_begin(logs: Any = None) -> None:
            begin(logs)
            redirect()

        callback.on_train_begin = on_train_begin
    else:
        redirect()
    return restore
