"""Calls a model with limited concurrency; if batching is enabled, waiting requests are joined into one call.

Joining is correct only for models that process each row independently. A SavedModel does not say whether its model
does.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from tfspark.model_server.errors import Overloaded

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class BatchLimits:
    """Limits of concurrent calls and of joined requests.

    Attributes
    ----------
    join
        Whether requests are joined.
    rows
        Largest number of rows in one call, unless a single request has more.
    wait_seconds
        How long a request waits for other requests while the model is idle.
    allowed_rows
        Allowed numbers of rows in a call, ascending; a call is filled up to the next of them with copies of its first
        row. By default, any number is allowed.
    pad
        Whether to join inputs of different shapes; smaller inputs are padded with their first value.
    waiting_rows
        Largest number of waiting rows; further requests are rejected.
    calls
        Number of concurrent calls.
    """

    join: bool = False
    rows: int = 1024
    wait_seconds: float = 0.0
    allowed_rows: tuple[int, ...] = ()
    pad: bool = False
    waiting_rows: int = 65_536
    calls: int = 1


@dataclass
class _Waiting:
    inputs: Arrays
    rows: int
    joins: bool
    answer: asyncio.Future[dict[str, np.ndarray]]
    since: float = field(default_factory=time.monotonic)

    def form(self, pad: bool) -> tuple[tuple[str, str, int | tuple[int, ...]], ...]:
        """Return the names, dtypes and shapes of the inputs as a key; requests with equal keys can be joined."""
        return tuple((n, a.dtype.str, a.ndim if pad else a.shape[1:]) for n, a in sorted(self.inputs.items()))


class Batcher:
    """Calls one signature of a version; only one event loop uses it.

    Parameters
    ----------
    call
        Function from inputs to outputs; runs in threads of `executor`.
    joins
        Whether the first dimension of all inputs and outputs counts rows; otherwise each request is a separate call.
        If a call returns an output with another first dimension, all later requests are separate calls.
    """

    def __init__(
        self, call: Callable[[Arrays], dict[str, np.ndarray]], executor: Executor, limits: BatchLimits, joins: bool
    ) -> None:
        self._call, self._executor, self._limits, self._joins = call, executor, limits, joins
        self._waiting: deque[_Waiting] = deque()
        self._waiting_rows = 0
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.requests = 0
        self.calls = 0

    @property
    def waiting_rows(self) -> int:
        """Number of waiting rows."""
        return self._waiting_rows

    async def submit(self, inputs: Arrays, rows: int | None) -> dict[str, np.ndarray]:
        """Return the outputs for these inputs.

        Parameters
        ----------
        rows
            Number of rows, if it is the same for all inputs; otherwise None.

        Raises
        ------
        Overloaded
            If other requests are waiting and there would be more waiting rows than the limit.
        """
        counted = 1 if rows is None else rows
        if self._waiting and self._waiting_rows + counted > self._limits.waiting_rows:
            raise Overloaded(
                f"The server is overloaded: {self._waiting_rows} rows are waiting for the model. Try again later."
            )
        answer: asyncio.Future[dict[str, np.ndarray]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(inputs, counted, rows is not None, answer))
        self._waiting_rows += counted
        self.requests += 1
        self._start()
        try:
            return await answer
        finally:
            # An exception refers to this frame. A reference back to it would make a cycle, which keeps the model's
            # memory alive.
            del answer

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._limits.calls and not self._waits_for_more():
            group = self._next_group() if self._joins else self._next_alone()
            if group:
                task = asyncio.get_running_loop().create_task(self._run(group))
                self._running.add(task)
                task.add_done_callback(self._ended)

    def _waits_for_more(self) -> bool:
        """Return whether to wait for more requests; if so, a timer calls `_start` when the wait is over."""
        left = self._waiting[0].since + self._limits.wait_seconds - time.monotonic()
        if not self._joins or left <= 0 or self._waiting_rows >= self._limits.rows:
            return False
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(left, self._waited)
        return True

    def _waited(self) -> None:
        self._timer = None
        self._start()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()

    def _next_alone(self) -> list[_Waiting]:
        w = self._waiting.popleft()
        self._waiting_rows -= w.rows
        return [] if w.answer.done() else [w]

    def _next_group(self) -> list[_Waiting]:
        """Take the oldest request and all later requests that can join it; drop cancelled requests."""
        group: list[_Waiting] = []
        left: deque[_Waiting] = deque()
        rows, pad = 0, self._limits.pad
        while self._waiting:
            w = self._waiting.popleft()
            if w.answer.done():
                self._waiting_rows -= w.rows
            elif not group or (
                w.joins and group[0].joins and rows + w.rows <= self._limits.rows and w.form(pad) == group[0].form(pad)
            ):
                group.append(w)
                rows += w.rows
            else:
                left.append(w)
        self._waiting = left
        self._waiting_rows -= rows
        return group

    async def _run(self, group: list[_Waiting]) -> None:
        try:
            answers = await self._answers(group)
        except Exception as e:
            if len(group) == 1:
                if not group[0].answer.done():
                    group[0].answer.set_exception(e)
            else:
                # One invalid request must not fail the others, so each request is now a separate call.
                for w in group:
                    await self._run([w])
        else:
            for w, mine in zip(group, answers, strict=True):
                if not w.answer.done():
                    w.answer.set_result(mine)
        finally:
            # Removes references, for the reason given in `submit`.
            group.clear()

    async def _answers(self, group: list[_Waiting]) -> list[dict[str, np.ndarray]]:
        """Return the outputs of each request of a group, computed in one call."""
        ends = list(accumulate(w.rows for w in group))
        target = next((n for n in self._limits.allowed_rows if n >= ends[-1]), ends[-1])
        if len(group) == 1 and (not self._joins or not group[0].joins or target == ends[-1]):
            return [await self._called(group[0].inputs)]
        joined = {n: _joined([w.inputs[n] for w in group], target) for n in group[0].inputs}
        outputs = await self._called(joined)
        if any(a.shape[:1] != (target,) for a in outputs.values()):
            # A first dimension of unknown size need not count the rows: the model may select some of the rows.
            self._joins = False
            if len(group) == 1:
                return [await self._called(group[0].inputs)]
            raise ValueError("An output does not have one value per row.")
        return [{n: a[e - w.rows : e] for n, a in outputs.items()} for w, e in zip(group, ends, strict=True)]

    async def _called(self, inputs: Arrays) -> dict[str, np.ndarray]:
        self.calls += 1
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._call, inputs)


def _joined(arrays: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """Concatenate arrays, padded to one shape and to `rows` rows."""
    shape = tuple(map(max, zip(*(a.shape[1:] for a in arrays), strict=True)))
    padded = [a if a.shape[1:] == shape else _padded(a, shape) for a in arrays]
    missing = rows - sum(len(a) for a in arrays)
    first = next(a for a in padded if len(a)) if missing else padded[0]
    return np.concatenate([*padded, *([np.repeat(first[:1], missing, axis=0)] if missing else [])])


def _padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    filler = array.flat[0] if array.size else np.zeros((), array.dtype) if array.dtype != object else b""
    full = np.full((len(array), *shape), filler, array.dtype)
    full[tuple(slice(n) for n in array.shape)] = array
    return full
