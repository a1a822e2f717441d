"""Checks of values in TensorFlow's graph; their failures become errors of tfspark."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from tfspark.errors import ConfigurationError

_MARK, _HINT, _UNTIL = "tfspark check: ", " [hint] ", " [end of check]"


def checked(value: Any, holds: Any, text: Sequence[Any], hint: str) -> Any:
    """Return `value`, in graph code that fails unless `holds` is true; see `in_words`.

    Parameters
    ----------
    holds
        A scalar ``tf.bool``.
    text
        Strings and string scalars that are joined to the error message. They are computed even if the check passes.
    """
    joined = tf.strings.join([_MARK, *text, _HINT, hint, _UNTIL])
    with tf.control_dependencies([tf.debugging.Assert(holds, [joined])]):
        return tf.identity(value)


@contextmanager
def in_words() -> Iterator[None]:
    """Raise a failed check of `checked` as an error of tfspark.

    Raises
    ------
    ConfigurationError
        If a check failed.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as e:
        pattern = f"{_MARK}(.*?){re.escape(_HINT)}(.*?){re.escape(_UNTIL)}"
        found = re.search(pattern, str(e), re.DOTALL)
        if found is None:
            raise
        raise ConfigurationError(_plain(found[1]), hint=_plain(found[2])) from e


def _plain(shown: str) -> str:
    """Return the original of a string that TensorFlow shows with escapes, with bytes beyond ASCII in octal."""
    return shown.encode().decode("unicode_escape").encode("latin-1").decode()
