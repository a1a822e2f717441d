"""``ctx.export``: what a node knows of its training goes into the model card; the writing is `tfspark.saved_models`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfspark.transport.spool import Feed


def training_data(feed: Feed | None, workers: int) -> dict[str, Any]:
    """Return what a model card tells of the rows that were fed."""
    data: dict[str, Any] = {"workers": workers}
    if feed is not None:
        data["columns"] = {c.name: _described(c.dtype, c.shape, c.ragged) for c in feed.columns}
        if feed.rows_by_node:
            data["rows"] = sum(feed.rows_by_node.values())
    return data


def _described(dtype: str, shape: tuple[int, ...], ragged: int) -> str:
    dims = ["?"] * ragged + [str(d) for d in shape]
    return f"{dtype} ({', '.join(dims)})" if dims else dtype


def export(
    model: Any,
    base: str,
    *,
    metrics: Mapping[str, float],
    data: Mapping[str, Any],
    options: dict[str, Any],
) -> str:
    """Export a model with a card that holds what is given in `options`, and else what the node knows."""
    from tfspark.saved_models.export import export_model

    options.setdefault("metrics", metrics)
    options["data"] = {**data, **options.get("data", {})}
    return export_model(model, base, **options)
