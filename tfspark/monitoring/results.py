"""The return values of ``main`` on each node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Results(dict[tuple[str, int], Any]):
    """A dict with keys ``(role, index)``; notebooks show it as a table with a curve for each history.

    Parameters
    ----------
    found
        The results.
    nodes
        The keys of all nodes of the cluster, also of those that have no result yet.
    """

    def __init__(self, found: Mapping[tuple[str, int], Any], nodes: Sequence[tuple[str, int]]) -> None:
        super().__init__(found)
        self._nodes = nodes

    def _repr_html_(self) -> str:
        from tfspark.monitoring.html import results_html

        return results_html(self)

    def __missing__(self, key: Any) -> Any:
        if key not in self._nodes:
            raise KeyError(f"The cluster has no node {key}; its nodes are {', '.join(map(str, self._nodes))}.")
        raise KeyError(f"{key} has no result yet. Read cluster.results after the with block, or after cluster.wait().")
