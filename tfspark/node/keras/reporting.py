"""The Keras callback that sends metrics to the driver."""

from __future__ import annotations

from typing import Any

import keras


class ReportMetrics(keras.callbacks.Callback):
    """Reports loss and metrics after batches (at most one in ``report_interval``, 0.5 s) and after each epoch."""

    def __init__(self, ctx: Any) -> None:
        super().__init__()
        self._ctx = ctx
        self._step = 0
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Store the number of the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Report the running averages of the epoch."""
        self._step += 1
        self._ctx.report(self._step, epoch=self._epoch + 1, **_numbers(logs))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Report the epoch's result."""
        metrics = _numbers(logs)
        self._ctx.report(self._step, flush=True, epoch=epoch + 1, **metrics)
        self._ctx._link.epoch_ended(epoch + 1, self.params["epochs"], metrics)


def _numbers(logs: dict[str, Any] | None) -> dict[str, float]:
    numbers = {}
    for name, value in (logs or {}).items():
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError):
            continue
    return numbers
