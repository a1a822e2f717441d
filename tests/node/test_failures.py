"""What a failure of main is called: on exceptions that Keras and TensorFlow really raise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfspark.errors import FeedError, SchemaError
from tfspark.node.failures import MOST_CHARACTERS, cause_of


def classifier() -> Any:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def fit(x: Any, y: Any) -> None:
    classifier().fit(x, y, verbose=0)


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def broken_generator() -> None:
    def rows() -> Iterator[Any]:
        raise SchemaError("Column 'x' holds 3 nulls.", hint="Drop them.")
        yield

    spec = (tf.TensorSpec((None, 4)), tf.TensorSpec((None,)))
    classifier().fit(tf.data.Dataset.from_generator(rows, output_signature=spec), verbose=0)


class Divides(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        return tf.py_function(lambda v: 1 / 0, [x], tf.float32)


def wrapped() -> None:
    try:
        raise FeedError("Nothing was fed.", hint="Feed.")
    except FeedError as e:
        raise RuntimeError("my loader failed") from e


def while_handling() -> None:
    try:
        raise FeedError("Nothing was fed.")
    except FeedError:
        {}["step"]


def raises(e: BaseException) -> Callable[[], None]:
    def run() -> None:
        raise e

    return run


CASES: dict[str, tuple[Callable[[], Any], str, str]] = {
    "a layer's input": (
        lambda: fit(np.zeros((8, 5)), np.zeros(8)),
        "expected axis -1 of input shape to have value 4, but received input with shape (None, 5) (Sequential.call())",
        "",
    ),
    "a label": (lambda: fit(np.zeros((8, 4)), np.full(8, 9)), "InvalidArgumentError: Received a label value of 9", ""),
    "shapes of an operation": (lambda: tf.matmul(tf.ones((2, 3)), tf.ones((2, 3))), "Matrix size-incompatible", ""),
    "a number": (
        lambda: tf.debugging.check_numerics(np.nan, "x"),
        "InvalidArgumentError: x : Tensor had NaN values",
        "",
    ),
    "ours within tf.data": (broken_generator, "SchemaError: Column 'x' holds 3 nulls.", "Drop them."),
    "Python within a layer": (lambda: Divides()(tf.ones((2, 2))), "ZeroDivisionError: division by zero", ""),
    "ours, wrapped": (wrapped, "FeedError: Nothing was fed.", "Feed."),
    "theirs, after ours": (while_handling, "KeyError: 'step'", ""),
    "syntax": (lambda: compile("1 +", "job.py", "exec"), "SyntaxError: invalid syntax (job.py, line 1)", ""),
    "several lines": (raises(ValueError("one\ntwo")), "ValueError: one", ""),
    "no text": (raises(NoText()), "NoText: (its message cannot be shown: RuntimeError)", ""),
    "nothing said": (raises(AssertionError()), "AssertionError", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_a_headline_is_the_innermost_cause(case: str) -> None:
    run, expected, hint = CASES[case]
    with pytest.raises(BaseException) as raised:
        run()
    reason, advice = cause_of(raised.value)
    assert expected in reason and advice == hint
    assert "\x1b" not in reason and "\n" not in reason and "{{" not in reason


def test_a_headline_has_an_end() -> None:
    reason, _ = cause_of(ValueError("x" * 10_000))
    assert reason.endswith("x...") and len(reason) == MOST_CHARACTERS + len("ValueError: ")


def test_an_error_that_is_its_own_cause_has_a_headline() -> None:
    e, f = ValueError("a"), ValueError("b")
    e.__cause__, f.__cause__ = f, e
    assert cause_of(e) == ("ValueError: a", "")
