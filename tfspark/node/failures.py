"""Describes in one line why ``main`` failed.

The useful message is often inside other exceptions: Keras and TensorFlow wrap exceptions of layers, of ``tf.data``
functions and of graph code, and pass some of them on as text only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tfspark.errors import TFSparkError, message_of
from tfspark.tracebacks import without_colours

_KERAS = re.compile(r"^Exception encountered when calling (.+?)\.\n\n\x1b\[1m(.*?)\x1b\[0m", re.DOTALL)
_RAISED_IN_GRAPH = re.compile(r"^(?:[\w.]+\.)?([A-Z]\w*): (.*(?:\nHint: .*)?)", re.MULTILINE)
_GRAPH = "Graph execution error:"
_NOT_SAID = re.compile(r"\s*(Detected at node |File \"|<stack traces unavailable>|\[\[|$)")
_FUNCTION_NODE = re.compile(r"^\{\{function_node .*?\}\} ")
_OPERATION = re.compile(r"\s*\[Op:\w+\]( name: .*)?$")

MOST_CHARACTERS = 400
"""Largest length of a headline; longer headlines are cut."""


def cause_of(e: BaseException) -> tuple[str, str]:
    """Return the cause in one line that begins with the type of the exception, and a hint or ``""``.

    The cause is the first of these that exists: the innermost error of tfspark; the last error of a traceback that
    TensorFlow passed on as text; the sentence that Keras or TensorFlow wrote about a layer or an operation; the first
    line of the message.

    Examples
    --------
    >>> cause_of(ValueError("labels must be numbers\\nlabels: ..."))
    ('ValueError: labels must be numbers', '')
    """
    if isinstance(e, SyntaxError):
        return f"{type(e).__name__}: {e}", ""
    ours = [x for x in _causes(e) if isinstance(x, TFSparkError)]
    if ours:
        return _headline(type(ours[-1]).__name__, ours[-1].message), ours[-1].hint or ""
    text = message_of(e)
    if "Traceback (most recent call last)" in text and (passed_on := _RAISED_IN_GRAPH.findall(without_colours(text))):
        name, message = passed_on[-1]
        message, _, hint = message.partition("\nHint: ")
        return _headline(name, message), hint
    name = type(e).__name__
    if keras := _KERAS.match(text):
        return _headline(name, f"{' '.join(_plain(keras[2]).split())} ({keras[1]})"), ""
    if text.startswith(_GRAPH):
        lines = [line for line in text.removeprefix(_GRAPH).splitlines() if not _NOT_SAID.match(line)]
        text = lines[0] if lines else text
    return _headline(name, next(iter(_plain(text).strip().splitlines()), "")), ""


def _causes(e: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and the exceptions that it was raised from, the outermost first."""
    seen: set[int] = set()
    while e is not None and id(e) not in seen:
        seen.add(id(e))
        yield e
        e = e.__cause__


def _plain(text: str) -> str:
    return _OPERATION.sub("", _FUNCTION_NODE.sub("", without_colours(text)))


def _headline(name: str, message: str) -> str:
    line = " ".join(message.split())
    if len(line) > MOST_CHARACTERS:
        line = f"{line[: MOST_CHARACTERS - 3]}..."
    return f"{name}: {line}" if line else name
