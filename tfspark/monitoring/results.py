"""The return values of ``main`` on each node."""

from __future__ import annotations

from typing import Any


class Results(dict[tuple[str, int], Any]):
    """A dict with keys ``(role, index)``; notebooks show it as a table with a curve for each history."""

    def _repr_html_(self) -> str:
        from tfspark.monitoring.html import results_html

        return results_html(self)

    def __missing__(self, key: Any) -> Any:
        raise KeyError(f"{key} has no result yet. Read cluster.results after the with block, or after cluster.wait().")
