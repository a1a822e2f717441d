"""The engine: every worker runs plain Keras, and the optimizer averages the gradients over the workers.

A process has one `Engine`. It knows the other workers and the synchronized models and optimizers.
`tfspark.node.keras.model_training` replaces the steps of a model during a fit, and `tfspark.node.keras.step` explains a
step. The modules `gradients`, `losses`, `metrics` and `state` handle the values that are summed over the workers.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfspark.errors import ConfigurationError
from tfspark.node.keras import gradients
from tfspark.node.keras.collectives import Group
from tfspark.node.keras.joins import with_joins
from tfspark.node.keras.model_training import ModelTraining
from tfspark.node.keras.state import differ_by_rank, seeds_of, share_variables, watch_normalization
from tfspark.node.step_clock import StepClock


class Engine:
    """Trains Keras models on all workers with the same result as one process on the global batches.

    Parameters
    ----------
    group
        The workers; a group may have one worker.
    reads_fed_rows
        Returns whether fed rows are being read. If so, training without the other workers is an error.
    clock
        Measures the steps.
    """

    def __init__(self, group: Group, reads_fed_rows: Callable[[], bool], clock: StepClock | None = None) -> None:
        self.group = group
        self.clock = clock or StepClock()
        self._reads_fed_rows = reads_fed_rows
        self._synchronized: list[weakref.ref[Any]] = []  # In the order of the program, the same on all workers.
        self._aligned: weakref.WeakSet[Any] = weakref.WeakSet()
        gradients.install(self.refuse)

    def synchronize(self, *objects: Any) -> None:
        """Synchronize models and optimizers with those of the other workers."""
        gradients.install(self.refuse)
        for o in objects:
            if not isinstance(o, (keras.Model, keras.optimizers.Optimizer)):
                raise ConfigurationError(
                    f"ctx.synchronize() takes Keras models and optimizers, got {type(o).__name__}."
                )
            if o not in self._objects():
                self._synchronized.append(weakref.ref(o))

    def _objects(self) -> list[Any]:
        found = [ref() for ref in self._synchronized]
        return [o for o in found if o is not None]

    def is_synchronized(self, model: Any) -> bool:
        """Return whether a model is synchronized with those of the other workers."""
        optimizer = getattr(model, "optimizer", None)
        return any(o is model or (o is optimizer and o is not None) for o in self._objects())

    def align(self) -> None:
        """Copy the chief's models and optimizers to all workers, once for each object; for loops without ``fit``.

        Raises
        ------
        ConfigurationError
            If a model has not been built, or the workers' models differ.
        """
        new = [o for o in self._objects() if o not in self._aligned]
        if self.group.size == 1 or not new:
            return
        # Python's garbage collector frees unreferenced objects at a different time on each worker, so run it here on
        # all.
        del new
        gc.collect()
        new = [o for o in self._objects() if o not in self._aligned]
        if not new:
            return
        self.group.meet()
        for o in new:
            if isinstance(o, keras.Model) and not o.built:
                raise ConfigurationError(
                    f"The model {o.name!r} has not been built, so the workers cannot begin with the same weights.",
                    hint="Begin the model with keras.Input(...), or call it once on a batch before the loop.",
                )
        variables = {id(v.value): v.value for o in new for v in o.variables}
        share_variables(self.group, list(variables.values()), self.group.new_keys())
        for o in new:
            self._aligned.add(o)
            if isinstance(o, keras.Model):
                differ_by_rank(seeds_of(o), self.group.rank)
                watch_normalization(o)

    def note_fit(self, model: Any) -> None:
        """Record that a fit has copied the chief's model to all workers."""
        for o in (model, model.optimizer):
            if o is not None:
                self._aligned.add(o)

    def refuse(self, optimizer: Any) -> None:
        """Reject an optimizer that is applied outside of a step, because the workers' weights would diverge.

        Raises
        ------
        ConfigurationError
            If the optimizer is synchronized, or fed rows are being read.
        """
        if self.group.size == 1:
            return
        if any(optimizer in (o, getattr(o, "optimizer", None)) for o in self._objects()):
            raise ConfigurationError(
                "A synchronized optimizer was applied outside of ctx.strategy().run(step, args=batch), where gradients "
                "are not averaged over the workers.",
                hint="Call your step with ctx.strategy().run on the batches of ctx.distribute(dataset).",
            )
        if self._reads_fed_rows():
            raise ConfigurationError(
                f"{self.group.size} workers train on fed rows, but this optimizer is not synchronized: each would "
                "train a different model.",
                hint="Use ctx.fit, or call ctx.synchronize(model, optimizer) before training. "
                "To train a separate model on each worker, pass Cluster(strategy='none').",
            )

    def training(self, model: Any) -> ModelTraining:
        """Return the `ModelTraining` of a model; the same object until the model is compiled again."""
        gradients.install(self.refuse)
        found = getattr(model, "_tfspark_training", None)
        if found is None or not found.is_current():
            found = ModelTraining(model, self.group, self.clock)
            # Set without Keras' tracking, because it is not part of the model.
            object.__setattr__(model, "_tfspark_training", found)
        return found

    def distribute(self, dataset: Any) -> Any:
        """Return this worker's batches, and then batches of 0 rows until all workers have read their batches."""
        return with_joins(dataset, self.group) if isinstance(dataset, tf.data.Dataset) else dataset
