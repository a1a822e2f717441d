"""Checkpoints of training: written atomically, each with the number of epochs that it includes.

    <directory>/epoch-000003/state.index, state.data-*     as tf.train.Checkpoint writes them
    <directory>/epoch-000003/epoch.json                    {"epochs": 3, "version": 1}
    <directory>/finished.json                              the run of these checkpoints has finished

A checkpoint is written to a staging directory, which is then renamed. ``epoch.json`` is written afterwards, also by a
rename, because object stores move a directory file by file, in any order. A checkpoint without ``epoch.json`` is
incomplete.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfspark.checks import check_whole_number
from tfspark.errors import ConfigurationError

logger = logging.getLogger(__name__)

VERSION = 1
PREFIX = "epoch-"
STAGING = ".staging-"
STATE = "state"
EPOCH_FILE = "epoch.json"
FINISHED_FILE = "finished.json"

UNFIT = (AssertionError, ValueError, IndexError, tf.errors.OpError)
"""Errors of TensorFlow for a damaged checkpoint, or for a checkpoint of other objects."""

PASSING = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.ResourceExhaustedError,
)
"""Temporary errors, which a retry may solve: a file system or a parameter server cannot be reached."""


def complete(directory: str) -> dict[int, str]:
    """Return the complete checkpoints of a directory: path by number of epochs, ascending."""
    if not tf.io.gfile.isdir(directory):
        return {}
    found = {}
    for name in tf.io.gfile.listdir(directory):
        name = name.rstrip("/")
        digits = name.removeprefix(PREFIX)
        path = f"{directory}/{name}"
        if name.startswith(PREFIX) and digits.isdigit() and tf.io.gfile.exists(f"{path}/{EPOCH_FILE}"):
            found[int(digits)] = path
    return dict(sorted(found.items()))


def is_finished(directory: str) -> bool:
    """Return whether the run that wrote to this directory has finished."""
    return bool(tf.io.gfile.exists(f"{directory}/{FINISHED_FILE}"))


def _name_of(epochs: int) -> str:
    return f"{PREFIX}{epochs:06d}"


def _is_begun(name: str, path: str) -> bool:
    """Return whether this is an incomplete checkpoint that tfspark wrote; other directories are left alone."""
    digits = name.removeprefix(PREFIX)
    if not (digits.isdigit() and name == _name_of(int(digits)) and tf.io.gfile.isdir(path)):
        return False
    return all(n.startswith((f"{STATE}.", STAGING)) for n in tf.io.gfile.listdir(path))


def _remove(path: str) -> None:
    """Remove a checkpoint; make it incomplete first, so that no reader uses a part of it."""
    if tf.io.gfile.exists(f"{path}/{EPOCH_FILE}"):
        tf.io.gfile.remove(f"{path}/{EPOCH_FILE}")
    tf.io.gfile.rmtree(path)


class TrainingCheckpoint:
    """Saves and restores objects in one directory.

    Parameters
    ----------
    directory
        A path or URL that TensorFlow can write to and that all nodes share.
    objects
        Objects for ``tf.train.Checkpoint``, by name.
    keep
        Number of checkpoints to keep.
    writes
        Whether this node writes checkpoints.
    agree
        Called with the numbers of epochs for which this node has a checkpoint; returns the largest number that all
        nodes have, or 0.
    epochs_read
        Returns the number of epochs that have been read.
    remote
        Whether variables are on parameter servers.
    """

    def __init__(
        self,
        directory: str,
        objects: Mapping[str, Any],
        *,
        keep: int,
        writes: bool,
        agree: Callable[[Sequence[int]], int],
        epochs_read: Callable[[], int],
        remote: bool = False,
    ) -> None:
        if not objects:
            raise ConfigurationError(
                "ctx.checkpoint() needs at least one object to save.", hint="For example ctx.checkpoint(model=model)."
            )
        check_whole_number("keep", keep, 1)
        self.directory = directory.rstrip("/")
        self._objects = dict(objects)
        self._keep, self._writes, self._remote = keep, writes, remote
        self._agree, self._epochs_read = agree, epochs_read
        self._agreed: int | None = None
        self.last_read: str | None = None

    def agreed_epochs(self) -> int:
        """Return the number of epochs of the newest checkpoint that all nodes have; 0 if there is none."""
        if self._agreed is None:
            # After a finished run, a new run begins from scratch.
            found = {} if is_finished(self.directory) else complete(self.directory)
            self._agreed = self._agree(list(found))
        return self._agreed

    def restore(self, path: str | None = None) -> int:
        """Restore the newest checkpoint that all nodes have, or the checkpoint at `path`.

        Models must have been built. The driver then feeds the epochs after the checkpoint. Checkpoints of a finished
        run are restored only by their `path`. If the checkpoint at `path` was deleted meanwhile, because training
        continued and newer ones were saved, the newest one is restored.

        Returns
        -------
        int
            Number of epochs that the checkpoint includes; 0 if there is none.

        Raises
        ------
        ConfigurationError
            If a model has not been built, or the checkpoint does not fit the objects.
        """
        if path is not None:
            return self._read_or_newer(path)
        epochs = self.agreed_epochs()
        if epochs:
            path = complete(self.directory).get(epochs)
            if path is None:
                raise ConfigurationError(
                    f"{self.directory} has no checkpoint of {epochs} epochs on this node, but another node has one.",
                    hint="Pass a checkpoint_dir that all nodes share.",
                )
            self._read(path)
            logger.info("resuming after epoch %d from %s", epochs, path)
        return epochs

    def save(self) -> str | None:
        """Write a checkpoint, on the node that writes; on other nodes this does nothing.

        Call it on every node after the last batch of an epoch.

        Returns
        -------
        str or None
            Directory of the checkpoint.
        """
        if not self._writes:
            return None
        epochs = self._epochs_read()
        gfile = tf.io.gfile
        target = f"{self.directory}/{_name_of(epochs)}"
        staging = f"{self.directory}/{STAGING}{secrets.token_hex(8)}"
        gfile.makedirs(staging)
        try:
            self._checkpoint().write(f"{staging}/{STATE}", self._io_options())
            if gfile.exists(target):
                _remove(target)
            gfile.rename(staging, target)
        except BaseException:
            if gfile.exists(staging):
                gfile.rmtree(staging)
            raise
        with gfile.GFile(f"{target}/{STAGING}{EPOCH_FILE}", "w") as f:
            f.write(json.dumps({"epochs": epochs, "version": VERSION}))
        gfile.rename(f"{target}/{STAGING}{EPOCH_FILE}", f"{target}/{EPOCH_FILE}")
        self._tidy(epochs)
        # Remove this file last: until now the directory could contain later epochs of the finished run.
        if is_finished(self.directory):
            gfile.remove(f"{self.directory}/{FINISHED_FILE}")
        return target

    def finish(self) -> None:
        """Mark the run as finished, on the node that writes."""
        if self._writes and complete(self.directory):
            with tf.io.gfile.GFile(f"{self.directory}/{FINISHED_FILE}", "w") as f:
                f.write("{}")

    def _tidy(self, newest: int) -> None:
        found = complete(self.directory)
        # Checkpoints of later epochs belong to an earlier, longer run; a restart would use them as newer checkpoints.
        stale = [e for e in found if e > newest] + [e for e in found if e <= newest][: -self._keep]
        for epochs in stale:
            _remove(found[epochs])
        # Incomplete checkpoints are from killed processes, because only this node writes here.
        for name in (n.rstrip("/") for n in tf.io.gfile.listdir(self.directory)):
            path = f"{self.directory}/{name}"
            if name.startswith(STAGING) or (path not in found.values() and _is_begun(name, path)):
                tf.io.gfile.rmtree(path)

    def _read_or_newer(self, path: str) -> int:
        """Read a checkpoint; if it was deleted, even during the read, read the newest later one beside it."""
        while True:
            self.last_read = path.rstrip("/")
            try:
                return self._read(path)
            except (ConfigurationError, tf.errors.OpError):
                parent, _, name = path.rstrip("/").rpartition("/")
                newer = {n: p for n, p in complete(parent).items() if _name_of(n) > name}
                if not newer or tf.io.gfile.exists(f"{path}/{EPOCH_FILE}"):
                    raise
                path = newer[max(newer)]
                logger.info("the checkpoint %s was tidied away; restoring %s", name, path)

    def _read(self, path: str) -> int:
        path = path.rstrip("/")
        try:
            with tf.io.gfile.GFile(f"{path}/{EPOCH_FILE}") as f:
                epochs = int(json.loads(f.read())["epochs"])
        except (tf.errors.OpError, ValueError, KeyError, TypeError) as e:
            raise ConfigurationError(f"{path} is not a checkpoint of tfspark: {e}") from None
        try:
            self._checkpoint().read(f"{path}/{STATE}", self._io_options()).assert_existing_objects_matched()
        except PASSING:
            raise
        except UNFIT as e:
            raise ConfigurationError(
                f"The checkpoint {path} does not fit the objects to restore: {e}",
                hint="Another program, or another version of this one, has written it: use another checkpoint_dir.",
            ) from None
        return epochs

    def _io_options(self) -> tf.train.CheckpointOptions | None:
        if not self._remote:
            return None
        # Without this option, each parameter server would write its part to its local disk.
        return tf.train.CheckpointOptions(experimental_io_device="/job:chief/replica:0/task:0/device:CPU:0")

    def _checkpoint(self) -> tf.train.Checkpoint:
        objects = dict(self._objects)
        for name, value in self._objects.items():
            if not isinstance(value, keras.Model):
                continue
            if not value.built:
                raise ConfigurationError(
                    f"The model {name!r} has not been built, so it has no weights to save or restore.",
                    hint="Begin the model with keras.Input(...), or call it once on a batch.",
                )
            optimizer = getattr(value, "optimizer", None)
            if optimizer is not None and not any(optimizer is o for o in objects.values()):
                objects[f"{name}_optimizer"] = optimizer
        for value in objects.values():
            if isinstance(value, keras.optimizers.Optimizer) and not value.built:
                owner = next((o for o in objects.values() if getattr(o, "optimizer", None) is value), None)
                if owner is not None:
                    value.build(owner.trainable_variables)
        return tf.train.Checkpoint(**objects)


class SaveEachEpoch(keras.callbacks.Callback):
    """Restores when training begins and saves after each epoch, as ``ctx.fit`` does."""

    def __init__(self, checkpoint: TrainingCheckpoint) -> None:
        super().__init__()
        self._checkpoint = checkpoint
        self._restored = False

    def agree(self) -> None:
        """Agree with the other nodes on the checkpoint to restore; the model need not be built yet."""
        self._checkpoint.agreed_epochs()

    def restore(self) -> None:
        """Restore the checkpoint in the first call; later calls do nothing."""
        if not self._restored:
            self._restored = True
            self._checkpoint.restore()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Restore; Keras has built the model before this call."""
        self.restore()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save a checkpoint."""
        self._checkpoint.save()


def follow(
    directory: str,
    ended: threading.Event,
    stopping: threading.Event,
    poll_seconds: float,
    read: Callable[[], Collection[str | None]] = tuple,
) -> Iterator[str]:
    """Yield the newest checkpoint whenever there is a new one, until training has ended; the last is always yielded.

    The paths that `read` returns are not new: such a checkpoint was restored in place of a deleted one.
    """
    seen: str | None = None
    while not stopping.is_set():
        last = ended.is_set()
        newest = None if is_finished(directory) else next(reversed(complete(directory).values()), None)
        if newest is not None and newest != seen and newest not in read():
            seen = newest
            yield newest
        elif last:
            return
        else:
            ended.wait(poll_seconds)
