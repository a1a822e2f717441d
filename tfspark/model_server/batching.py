"""Requests that wait while the model is busy run together in one call.

There is no delay to fill a batch: an idle model answers at once, a busy one finds more rows the busier it is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from tfspark.model_server.faults import Overloaded

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class BatchLimits:
    """How requests are joined.

    Attributes
    ----------
    rows
        Most rows in one call, unless a single request has more; 1 joins nothing.
    waiting_rows
        Most rows that may wait; further requests are refused.
    calls
        Calls at the same time.
    """

    rows: int = 1024
    waiting_rows: int = 65_536
    calls: int = 1


@dataclass
class _Waiting:
    inputs: Arrays
    rows: int
    answer: asyncio.Future[dict[str, np.ndarray]]

    @property
    def form(self) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        """Requests of the same form can be joined."""
        return tuple((n, a.dtype.str, a.shape[1:]) for n, a in sorted(self.inputs.items()))


class Batcher:
    """Joins the requests for one signature; used by one event loop.

    Parameters
    ----------
    call
        From inputs to outputs; runs in threads of `executor`.
    joins
        Whether inputs and outputs have the rows as first dimension; else each request runs alone. So they do from the
        first joined call on whose outputs show that it is not so.
    """

    def __init__(
        self, call: Callable[[Arrays], dict[str, np.ndarray]], executor: Executor, limits: BatchLimits, joins: bool
    ) -> None:
        self._call, self._executor, self._limits, self._joins = call, executor, limits, joins
        self._waiting: deque[_Waiting] = deque()
        self._waiting_rows = 0
        self._running: set[asyncio.Task[None]] = set()
        self.requests = 0
        self.calls = 0

    async def submit(self, inputs: Arrays, rows: int) -> dict[str, np.ndarray]:
        """Return the outputs for these inputs.

        Raises
        ------
        Overloaded
            If too many rows wait.
        """
        if self._waiting and self._waiting_rows + rows > self._limits.waiting_rows:
            raise Overloaded(f"{self._waiting_rows} rows wait for the model; try again later.")
        answer: asyncio.Future[dict[str, np.ndarray]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(inputs, rows, answer))
        self._waiting_rows += rows
        self.requests += 1
        self._start()
        try:
            return await answer
        finally:
            # An error holds this frame, and must not be held by it: the model's memory hangs on it.
            del answer

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._limits.calls:
            group = self._next_group()
            if group:
                task = asyncio.get_running_loop().create_task(self._run(group))
                self._running.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()

    def _next_group(self) -> list[_Waiting]:
        """Take the request that waits longest, and those behind it that fit; requests given up are left out."""
        group: list[_Waiting] = []
        left: deque[_Waiting] = deque()
        rows = 0
        while self._waiting:
            w = self._waiting.popleft()
            if w.answer.done():
                self._waiting_rows -= w.rows
            elif not group or (self._joins and w.form == group[0].form and rows + w.rows <= self._limits.rows):
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
                # One bad request must not fail the others.
                for w in group:
                    await self._run([w])
        else:
            for w, mine in zip(group, answers, strict=True):
                if not w.answer.done():
                    w.answer.set_result(mine)
        finally:
            # As in `submit`.
            group.clear()

    async def _answers(self, group: list[_Waiting]) -> list[dict[str, np.ndarray]]:
        """Return the outputs for each request of a group, from one call."""
        if len(group) == 1:
            return [await self._called(group[0].inputs)]
        ends = list(accumulate(w.rows for w in group))
        outputs = await self._called({n: np.concatenate([w.inputs[n] for w in group]) for n in group[0].inputs})
        if any(a.shape[:1] != (ends[-1],) for a in outputs.values()):
            # A dimension of unknown size is not always that of the rows: the model may select among them.
            self._joins = False
            raise ValueError("An output does not have one value per row.")
        return [{n: a[e - w.rows : e] for n, a in outputs.items()} for w, e in zip(group, ends, strict=True)]

    async def _called(self, inputs: Arrays) -> dict[str, np.ndarray]:
        self.calls += 1
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._call, inputs)
