"""A step of Keras compiled by XLA, which must not compile the collectives: they run after what it compiles."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfspark.node.keras import gradients
from tfspark.node.keras.step import NeedsCollective, current

logger = logging.getLogger(__name__)


class Compiled:
    """A training or evaluation step of Keras; XLA compiles all of it except the optimizer's update."""

    def __init__(self, step: Callable[..., Any]) -> None:
        self._step = step
        self._forward: Any = None
        self._applied: list[Any] = []

    def __call__(self, data: Any) -> Any:
        """Run the step."""
        if self._forward is None:
            self._forward = tf.function(self._trace, jit_compile=True, autograph=False)
        here = current()
        if here is not None and self._forward is not False:
            mark = len(here.replays)
            here.compiling = True
            try:
                logs, grads = self._forward(data)
            except NeedsCollective:
                logger.info("the step needs the other workers, so it runs without XLA")
                self._forward = False
                del here.replays[mark:]
            finally:
                here.compiling = False
            if self._forward is not False:
                for (apply, variables), found in zip(self._applied, grads, strict=True):
                    apply(found, variables)
                return logs
        return self._step(data)

    def _trace(self, data: Any) -> Any:
        with gradients.captured() as applied:
            logs = self._step(data)
        self._applied = [(apply, variables) for apply, _, variables in applied]
        return logs, [grads for _, grads, _ in applied]
