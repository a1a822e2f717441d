"""Requests of `tfspark serve` that run together: each gets its own answer, whatever the model does with its rows."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tfspark.model_server.batching import Batcher, BatchLimits
from tfspark.model_server.errors import Overloaded


def answers(call: Callable[[Any], Any], *inputs: Any) -> tuple[list[Any], list[int]]:
    """Return what each input gets that waits with the others behind a busy model, and the rows of each call."""
    entered, go = threading.Event(), threading.Event()
    sizes: list[int] = []

    def called(given: Any) -> Any:
        sizes.append(np.size(given["x"]))
        entered.set()
        assert go.wait(30)
        return call(given["x"])

    async def ask() -> list[Any]:
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(called, pool, BatchLimits(join=True), joins=True)

            def one(x: Any) -> asyncio.Future[Any]:
                return asyncio.ensure_future(batcher.submit({"x": np.array(x)}, np.size(x) if np.ndim(x) else None))

            first = one([0])
            await asyncio.to_thread(entered.wait, 30)
            waiting = [one(x) for x in inputs]
            await asyncio.sleep(0)
            go.set()
            await asyncio.gather(first, return_exceptions=True)
            found = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30)
            again = await asyncio.gather(*map(one, inputs), return_exceptions=True)
            assert [str(a) for a in again] == [str(a) for a in found]
            return found

    return asyncio.run(ask()), sizes


def test_requests_that_wait_share_a_call() -> None:
    found, sizes = answers(lambda x: {"y": x + 1}, [1, 2], [3])
    assert [a["y"].tolist() for a in found] == [[2, 3], [4]]
    assert sizes[:2] == [1, 3]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: {"y": x[x > 1]}, [[2], [3, 4]]),
        (lambda x: {"y": np.concatenate([x, x])}, [[1, 2, 1, 2], [3, 4, 3, 4]]),
        (lambda x: {"y": x.sum()}, [3, 7]),
    ],
    ids=["selects", "repeats", "reduces"],
)
def test_a_model_that_does_not_answer_row_by_row_gets_each_request_alone(call: Any, expected: list[Any]) -> None:
    found, sizes = answers(call, [1, 2], [3, 4])
    assert [a["y"].tolist() for a in found] == expected
    # Joined once, to find out.
    assert sizes == [1, 4, 2, 2, 2, 2]


def test_inputs_that_cannot_be_joined_run_alone() -> None:
    found, sizes = answers(lambda x: {"y": np.atleast_1d(x) + 1}, 1, 2)
    assert [a["y"].tolist() for a in found] == [[2], [3]]
    assert sizes == [1] * 5


def test_errors_do_not_keep_what_raised_them() -> None:
    class Model:
        def call(self, _: Any) -> Any:
            raise ValueError("no")

    async def refused(batcher: Batcher) -> bool:
        try:
            await batcher.submit({"x": np.ones(1)}, 1)
        except ValueError:
            return True
        return False

    async def ask() -> bool:
        model = Model()
        seen = weakref.ref(model)

        def call(inputs: Any) -> Any:
            found = seen()
            assert found is not None
            return found.call(inputs)

        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(call, pool, BatchLimits(join=True), joins=True)
            assert await asyncio.gather(*(refused(batcher) for _ in range(3))) == [True] * 3
            del model
        # The pool's thread, which may hold the last call a moment longer, has ended.
        return seen() is None

    gc.disable()
    try:
        assert asyncio.run(ask())
    finally:
        gc.enable()


def test_too_many_waiting_rows_are_refused() -> None:
    entered, go = threading.Event(), threading.Event()
    sizes: list[int] = []

    def call(inputs: Any) -> Any:
        sizes.append(len(inputs["x"]))
        entered.set()
        assert go.wait(30)
        return {"y": inputs["x"] + 1}

    async def ask() -> None:
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(call, pool, BatchLimits(join=True, rows=4, waiting_rows=6), joins=True)
            one = lambda n: asyncio.ensure_future(batcher.submit({"x": np.arange(n)}, n))  # noqa: E731
            first = one(1)
            await asyncio.to_thread(entered.wait, 30)
            waiting = [one(n) for n in (2, 2, 2)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded, match="6 rows are waiting"):
                await batcher.submit({"x": np.arange(1)}, 1)
            waiting[1].cancel()
            await asyncio.sleep(0)
            go.set()
            answers = await asyncio.gather(first, waiting[0], waiting[2])
            assert [a["y"].tolist() for a in answers] == [[1], [1, 2], [1, 2]]

    asyncio.run(ask())
    assert sizes == [1, 4]


def test_requests_wait_for_others_and_are_padded_to_sizes_that_are_allowed() -> None:
    seen: list[Any] = []

    def call(inputs: Any) -> Any:
        seen.append(inputs["x"].tolist())
        return {"y": inputs["x"] * 2}

    async def ask() -> list[Any]:
        limits = BatchLimits(join=True, rows=8, wait_seconds=0.05, allowed_rows=(4, 8), pad=True)
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(call, pool, limits, joins=True)
            return await asyncio.gather(
                batcher.submit({"x": np.array([[1, 2, 3]])}, 1), batcher.submit({"x": np.array([[5], [6]])}, 2)
            )

    found = asyncio.run(ask())
    assert seen == [[[1, 2, 3], [5, 5, 5], [6, 5, 5], [1, 2, 3]]]
    assert [a["y"].tolist() for a in found] == [[[2, 4, 6]], [[10, 10, 10], [12, 10, 10]]]


def test_requests_do_not_share_a_call_unless_that_is_asked_for() -> None:
    sizes: list[int] = []

    def call(inputs: Any) -> Any:
        sizes.append(len(inputs["x"]))
        return {"y": inputs["x"]}

    async def ask() -> None:
        with ThreadPoolExecutor(2) as pool:
            batcher = Batcher(call, pool, BatchLimits(calls=2), joins=False)
            await asyncio.gather(*(batcher.submit({"x": np.arange(3)}, 3) for _ in range(10)))

    asyncio.run(ask())
    assert sizes == [3] * 10 and not BatchLimits().join
