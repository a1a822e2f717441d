"""What errors say."""

from __future__ import annotations

import pytest

from tfspark.errors import FeedError, NodeFailed, first_line
from tfspark.tracebacks import user_frames

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


TRACEBACK = """Traceback (most recent call last):
  File "/opt/tfspark/node/main.py", line 144, in _run
    result = _pickled(function(args, ctx))
                      ^^^^^^^^^^^^^^^^^^^
  File "/home/ada/train.py", line 9, in main
    model.fit(rows)
  File "/env/lib/python3.11/site-packages/keras/src/utils/traceback_utils.py", line 122, in error_handler
    raise e.with_traceback(filtered_tb) from None

  File "/env/lib/python3.11/site-packages/tensorflow/python/eager/execute.py", line 53, in quick_execute
    tensors = pywrap_tfe.TFE_Py_Execute(ctx._handle)
ValueError: \x1b[1mno\x1b[0m
"""


def test_a_failure_shows_the_user_s_frames_and_nothing_twice() -> None:
    tail = ["epoch 3", "", "ValueError: no", "    model.fit(rows)"]
    error = NodeFailed("worker", 1, "10.0.0.7", "ValueError: no", TRACEBACK, tail, "Say yes.")
    assert str(error).splitlines() == [
        "worker 1 on 10.0.0.7 failed: ValueError: no",
        "Hint: Say yes.",
        "--- traceback of worker 1 ---",
        "Traceback (most recent call last):",
        "  ... 1 frame in tfspark",
        '  File "/home/ada/train.py", line 9, in main',
        "    model.fit(rows)",
        "  ... 2 frames in keras, tensorflow",
        "ValueError: no",
        "--- last log lines of worker 1 ---",
        "epoch 3",
    ]
    assert error.remote_traceback == TRACEBACK


def test_a_traceback_of_libraries_alone_is_shown_whole() -> None:
    text = 'Traceback (most recent call last):\n  File "/lib/python3.11/threading.py", line 1, in run\n    f()\nE: no'
    assert user_frames(text) == text


def test_a_notebook_shows_the_cell_and_the_error() -> None:
    code = compile("def cell():\n    raise error\n", "/home/ada/cell.py", "exec")
    scope = {"error": FeedError("Nothing was fed.", hint="Feed.")}
    exec(code, scope)
    with pytest.raises(FeedError) as raised:
        scope["cell"]()  # type: ignore[operator]
    shown = raised.value._render_traceback_()
    assert '  File "/home/ada/cell.py", line 2, in cell' in shown
    assert shown[-1] == "FeedError: Nothing was fed.\nHint: Feed."
