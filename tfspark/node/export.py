"""``ctx.export``: add facts about the training to the model card; `tfspark.saved_models` writes the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfspark.node.spool import Feed


def training_data(feed: Feed | None, workers: int) -> dict[str, Any]:
    """Return the description of the fed rows for the model card."""
    data: dict[str, Any] = {"workers": workers}
    if feed is not None:
        data["columns"] = {c.name: _described(c.dtype, c.shape, c.ragged) for c in feed.columns}
        if feed.fill:
            data["fill"] = feed.fill
        if feed.rows_by_node:
            data["rows"] = sum(feed.rows_by_node.values())
    return data


def _described(dtype: str, shape: tuple[int, ...], ragged: int) -> str:
    dims = ["?"] * ragged + [str(d) for d in shape]
    return f"{dtype} ({', '.join(dims)})" if dims else dtype


def export(
    model: Any,
    base: str,
    feed: Feed | None,
    workers: int,
    metrics: Mapping[str, float],
    options: Mapping[str, Any],
) -> str:
    """Export a model; `options` override the known facts about its training."""
    from tfspark.saved_models.export import export_model

    known: dict[str, Any] = {"metrics": metrics}
    if feed is not None and options.get("preprocessing") is None:
        # With preprocessing, a column of the feed and an input of the same name can have different contents.
        known["fill"] = feed.fill
    data = {**training_data(feed, workers), **options.get("data", {})}
    return export_model(model, base, **{**known, **options, "data": data})
