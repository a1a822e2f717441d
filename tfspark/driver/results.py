"""What ``main`` returned on each node."""

from __future__ import annotations

from typing import Any


class Results(dict[tuple[str, int], Any]):
    """A dict by ``(role, index)`` that notebooks show as a table, with a curve for each history in it."""

    def _repr_html_(self) -> str:
        from tfspark.driver.html import results_html

        return results_html(self)
