"""The name under which this package is installed, and the command that installs it or one of its extras.

The distribution and the package have different names, because ``tfspark`` on the package index is another project.
"""

from __future__ import annotations

import functools
import importlib.metadata

from tfspark import __version__

NAME = "tfspark-cluster"
"""The same name as in ``setup.cfg``."""

_STRANGER = "tfspark"


@functools.cache
def distribution_name() -> str:
    """Return the name of the installed distribution that contains this package; `NAME` if none is installed."""
    names = importlib.metadata.packages_distributions().get("tfspark", [])
    own = {n for n in names if n != _STRANGER and importlib.metadata.version(n) == __version__}
    return NAME if NAME in own or not own else min(own)


def install_command(extra: str | None = None) -> str:
    """Return the pip command that installs this package, or one of its extras.

    Parameters
    ----------
    extra
        Name of the extra, such as ``"java"``.
    """
    return f"pip install '{distribution_name()}[{extra}]'" if extra else f"pip install {distribution_name()}"
