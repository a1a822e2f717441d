"""Deprecated names warn their users, and only them."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

import docstring_examples
import pytest

from tfspark import deprecation
from tfspark.deprecation import PACKAGE, deprecated

pytestmark = pytest.mark.unit


@deprecated("double()", since="0.2", removal="0.4")
def twice(x: int) -> int:
    """Return 2 * x."""
    return 2 * x


def test_a_call_warns_at_the_line_of_the_caller() -> None:
    with pytest.warns(DeprecationWarning) as caught:
        assert twice(21) == 42
    (warning,) = caught
    assert str(warning.message) == (
        "twice is deprecated since tfspark 0.2 and may be removed in 0.4. Use double() instead."
    )
    lines = Path(warning.filename).read_text().splitlines()
    assert Path(warning.filename) == Path(__file__) and "twice(21)" in lines[warning.lineno - 1]


def test_the_docstring_says_it() -> None:
    assert inspect.getdoc(twice) == "Return 2 * x.\n\n.. deprecated:: 0.2\n    Use double() instead."


def test_calls_of_tfspark_itself_do_not_warn() -> None:
    inside = compile("twice(1)", f"{PACKAGE}/inside.py", "eval")
    beside = compile("twice(1)", f"{PACKAGE}_plugin/beside.py", "eval")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eval(inside, {"twice": twice})
        with pytest.raises(DeprecationWarning):
            eval(beside, {"twice": twice})


def test_the_example_of_the_docstring() -> None:
    docstring_examples.run("deprecated", deprecation.deprecated, dict(vars(deprecation)))
