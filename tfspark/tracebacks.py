"""Text of tracebacks and logs of a node: without frames of libraries, and without log lines of the traceback."""

from __future__ import annotations

import re
from collections.abc import Sequence

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

_FRAME = re.compile(r'^\s+File "(?P<path>[^"]+)", line \d+')
_LIBRARY = re.compile(
    r"[/\\](?:site|dist)-packages[/\\](?P<name>\w+)"
    r"|[/\\](?P<own>tfspark)[/\\](?:cluster\.py|(?:node|ml|prediction|columns|control|feeding|transport|executor|saved_models|spark|compat)[/\\])"
    r"|[/\\]lib[/\\]python3\.\d+[/\\](?!site-packages|dist-packages)"
)


def without_colours(text: str) -> str:
    """Return `text` without the escape sequences that set colours in a terminal."""
    return _COLOURS.sub("", text)


def user_frames(traceback: str) -> str:
    """Return a formatted traceback in which the frames of libraries are counted instead of shown.

    A traceback that contains only such frames is returned whole. Colours are removed.

    Examples
    --------
    >>> text = '''Traceback (most recent call last):
    ...   File "/usr/lib/python3/dist-packages/keras/a.py", line 1, in fit
    ...     step()
    ...   File "/home/ada/train.py", line 3, in step
    ...     raise ValueError("no")
    ... ValueError: no'''
    >>> print(user_frames(text))
    Traceback (most recent call last):
      ... 1 frame in keras
      File "/home/ada/train.py", line 3, in step
        raise ValueError("no")
    ValueError: no
    """
    lines = without_colours(traceback).splitlines()
    shown: list[str] = []
    hidden: list[str] = []
    own = False

    def count() -> None:
        if hidden:
            names = ", ".join(dict.fromkeys(hidden))
            shown.append(f"  ... {len(hidden)} frame{'s' if len(hidden) > 1 else ''} in {names}")
            hidden.clear()

    skipping = False
    for line in lines:
        frame = _FRAME.match(line)
        if frame:
            library = _LIBRARY.search(frame["path"])
            skipping = library is not None
            if library is not None:
                hidden.append(library["name"] or library["own"] or "Python")
                continue
            own = True
        elif skipping and (line.startswith("    ") or not line.strip()):
            continue
        skipping = False
        count()
        shown.append(line)
    count()
    return "\n".join(shown if own else lines)


def said_more(lines: Sequence[str], traceback: str) -> list[str]:
    """Return the lines of a log that are not part of a traceback.

    Examples
    --------
    >>> traceback = "Traceback (most recent call last):\\nValueError: no"
    >>> said_more(["epoch 3", "ValueError: no"], traceback)
    ['epoch 3']
    """
    known = {line.strip() for line in without_colours(traceback).splitlines()}
    return [line for line in map(without_colours, lines) if line.strip() and line.strip() not in known]
