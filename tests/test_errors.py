"""What errors say."""

from __future__ import annotations

import pytest

from tfspark.errors import FeedError, first_line

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one\n"), "one"),
        (KeyError(), "KeyError"),
        (OSError(""), "OSError"),
        (FeedError("Nothing came.", hint="Send something."), "Nothing came."),
    ],
)
def test_an_error_has_a_first_line(error: BaseException, line: str) -> None:
    assert first_line(error) == line
