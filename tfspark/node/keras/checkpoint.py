"""Checkpoints of training: complete or not there at all, and each with the number of epochs that it has seen.

    <directory>/epoch-000003/state.index, state.data-*     as tf.train.Checkpoint writes them
    <directory>/epoch-000003/epoch.json                    {"epochs": 3, "version": 1}
    <directory>/finished.json                              the run that these belong to has come to its end

A checkpoint is written beside its place and moved there by one rename; only then comes ``epoch.json``, by a rename of
its own: object stores move a directory file by file, in any order.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfspark.errors import ConfigurationError

logger = logging.getLogger(__name__)

VERSION = 1
PREFIX = "epoch-"
STAGING = ".staging-"
STATE = "state"
EPOCH_FILE = "epoch.json"
FINISHED_FILE = "finished.json"

UNFIT = (AssertionError, ValueError, IndexError, tf.errors.OpError)
"""What TensorFlow raises when a checkpoint is damaged, or is one of something else."""

PASSING = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.ResourceExhaustedError,
)
"""What may be better the next time: a store or a parameter server is not reached."""


def complete(directory: str) -> dict[int, str]:
    """Return the complete checkpoints of a directory: path by number of epochs, in ascending order."""
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
    """Tell whether the run that wrote here has come to its end."""
    return bool(tf.io.gfile.exists(f"{directory}/{FINISHED_FILE}"))


def _name_of(epochs: int) -> str:
    return f"{PREFIX}{epochs:06d}"


def _is_begun(name: str, path: str) -> bool:
    """Tell whether this is a checkpoint of ours that was never completed, or is half removed; others are not ours."""
    digits = name.removeprefix(PREFIX)
    if not (digits.isdigit() and name == _name_of(int(digits)) and tf.io.gfile.isdir(path)):
        return False
    return all(n.startswith((f"{STATE}.", STAGING)) for n in tf.io.gfile.listdir(path))


def _remove(path: str) -> None:
    """Remove a checkpoint, which is none any more as soon as that has begun."""
    if tf.io.gfile.exists(f"{path}/{EPOCH_FILE}"):
        tf.io.gfile.remove(f"{path}/{EPOCH_FILE}")
    tf.io.gfile.rmtree(path)


class TrainingCheckpoint:
    """Saves and restores objects in one directory.

    Parameters
    ----------
    directory
        A path or URL that TensorFlow's file systems know, shared by all nodes that train together.
    objects
        What ``tf.train.Checkpoint`` takes, by name.
    keep
        How many checkpoints to keep.
    writes
        Whether this node is the one that writes.
    agree
        Given the epochs that this node can go on from, returns the last one that all can, or 0.
    epochs_read
        Tells how many epochs have been read.
    remote
        Whether variables live on parameter servers.
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
            raise ConfigurationError("ctx.checkpoint() was given nothing to save.", hint="Pass model=model.")
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ConfigurationError(f"keep must be a whole number of at least 1, not {keep!r}.")
        self.directory = directory.rstrip("/")
        self._objects = dict(objects)
        self._keep, self._writes, self._remote = keep, writes, remote
        self._agree, self._epochs_read = agree, epochs_read
        self._agreed: int | None = None

    def agreed_epochs(self) -> int:
        """Return how many epochs the checkpoint has that all nodes can restore; 0 if there is none to go on from."""
        if self._agreed is None:
            # In a run that has finished, the next one is a run of its own.
            found = {} if is_finished(self.directory) else complete(self.directory)
            self._agreed = self._agree(list(found))
        return self._agreed

    def restore(self, path: str | None = None) -> int:
        """Restore the newest checkpoint that all nodes have, or the one at `path`; the driver feeds what comes after.

        Models must have been built. A run that has finished is not gone on with: its checkpoints stay, and are
        restored if named.

        Returns
        -------
        int
            Epochs that the checkpoint has seen; 0 if there is none.

        Raises
        ------
        ConfigurationError
            If a model has not been built, or the checkpoint holds other objects than these.
        """
        if path is not None:
            return self._read(path)
        epochs = self.agreed_epochs()
        if epochs:
            path = complete(self.directory).get(epochs)
            if path is None:
                raise ConfigurationError(
                    f"{self.directory} has no checkpoint of {epochs} epochs, from which another node goes on.",
                    hint="checkpoint_dir must be one directory that all nodes share.",
                )
            self._read(path)
            logger.info("going on after epoch %d, from %s", epochs, path)
        return epochs

    def save(self) -> str | None:
        """Write what has been trained so far, on the node that writes; on others nothing happens.

        Call it on every node after the last batch of an epoch.

        Returns
        -------
        str or None
            Where it was written.
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
        # As long as later epochs of a finished run are there, it has to be known that it has finished.
        if is_finished(self.directory):
            gfile.remove(f"{self.directory}/{FINISHED_FILE}")
        return target

    def finish(self) -> None:
        """Note that the run has come to its end; on the node that writes."""
        if self._writes and complete(self.directory):
            with tf.io.gfile.GFile(f"{self.directory}/{FINISHED_FILE}", "w") as f:
                f.write("{}")

    def _tidy(self, newest: int) -> None:
        found = complete(self.directory)
        # Those of a longer run before this one would be taken for newer.
        stale = [e for e in found if e > newest] + [e for e in found if e <= newest][: -self._keep]
        for epochs in stale:
            _remove(found[epochs])
        # A process that was killed has left what it had not completed; none but this one writes here.
        for name in (n.rstrip("/") for n in tf.io.gfile.listdir(self.directory)):
            path = f"{self.directory}/{name}"
            if name.startswith(STAGING) or (path not in found.values() and _is_begun(name, path)):
                tf.io.gfile.rmtree(path)

    def _read(self, path: str) -> int:
        path = path.rstrip("/")
        try:
            with tf.io.gfile.GFile(f"{path}/{EPOCH_FILE}") as f:
                epochs = int(json.loads(f.read())["epochs"])
        except (tf.errors.OpError, ValueError, KeyError, TypeError) as e:
            raise ConfigurationError(f"{path} is no checkpoint that tfspark has written: {e}") from None
        try:
            self._checkpoint().read(f"{path}/{STATE}", self._io_options()).assert_existing_objects_matched()
        except PASSING:
            raise
        except UNFIT as e:
            raise ConfigurationError(
                f"The checkpoint {path} does not fit what it is restored into: {e}",
                hint="Another program has written it, or another version of this one: use another checkpoint_dir.",
            ) from None
        return epochs

    def _io_options(self) -> tf.train.CheckpointOptions | None:
        if not self._remote:
            return None
        # Else each parameter server would write its part to a disk of its own.
        return tf.train.CheckpointOptions(experimental_io_device="/job:chief/replica:0/task:0/device:CPU:0")

    def _checkpoint(self) -> tf.train.Checkpoint:
        objects = dict(self._objects)
        for name, value in self._objects.items():
            if not isinstance(value, keras.Model):
                continue
            if not value.built:
                raise ConfigurationError(
                    f"The model {name!r} has not been built, so it has nothing to save or restore.",
                    hint="Begin it with keras.Input(...), or call it once on a batch.",
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
        """Agree with the other nodes on the checkpoint to restore, before the model may have been built."""
        self._checkpoint.agreed_epochs()

    def restore(self) -> None:
        """Restore, the first time."""
        if not self._restored:
            self._restored = True
            self._checkpoint.restore()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Restore; Keras has built the model by now."""
        self.restore()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save."""
        self._checkpoint.save()


def follow(directory: str, ended: threading.Event, stopping: threading.Event, poll_seconds: float) -> Iterator[str]:
    """Yield the newest checkpoint whenever there is a new one, until training has ended and the last was given."""
    seen: str | None = None
    while not stopping.is_set():
        last = ended.is_set()
        newest = None if is_finished(directory) else next(reversed(complete(directory).values()), None)
        if newest is not None and newest != seen:
            seen = newest
            yield newest
        elif last:
            return
        else:
            ended.wait(poll_seconds)
