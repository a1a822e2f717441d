"""The state of a cluster as HTML, for the notebook and the web page.

All external text (host names, metrics, log lines) is escaped. Styles are inline, because notebooks drop style sheets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from tfspark.control.node_history import BY_EPOCH
from tfspark.monitoring.bottleneck import Bottleneck
from tfspark.monitoring.chart import line_chart

if TYPE_CHECKING:
    from tfspark.feeding.report import FeedReport
    from tfspark.monitoring.status import Curves, NodeStatus, Snapshot

MOST_CHARTS = 6

STATE_COLOURS = {"running": "#2ca02c", "finished": "#1f77b4", "failed": "#d62728", "gone": "#7f7f7f"}

BOUND = {Bottleneck.FEED: "#d62728", Bottleneck.INPUT: "#ff7f0e", Bottleneck.COMPUTE: "#2ca02c"}


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[str] = ()) -> str:
    """Return a table. Cells are HTML, headings are plain text. Columns in `left` are aligned left, others right."""
    aligned = ["left" if h in left else "right" for h in headings]
    cell = "text-align:{};padding:2px 8px;white-space:nowrap"
    head = "".join(f'<th style="{cell.format(a)}">{escape(h)}</th>' for h, a in zip(headings, aligned, strict=True))
    body = "".join(
        "<tr>" + "".join(f'<td style="{cell.format(a)}">{c}</td>' for c, a in zip(r, aligned, strict=True)) + "</tr>"
        for r in rows
    )
    return f'<table style="border-collapse:collapse"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def nodes_table(nodes: Sequence[NodeStatus]) -> str:
    """Return a table of nodes."""
    headings = ["node", "host", "GPUs", "state", "rows fed", "rows read", "rows/s", "step", "s/step", "waiting",
                "memory", "input", "metrics"]  # fmt: skip
    return table(headings, map(_node_cells, nodes), ("node", "host", "GPUs", "state", "input", "metrics"))


def _node_cells(n: NodeStatus) -> list[str]:
    share = n.input_times.waiting_share
    metrics = ", ".join(f"{escape(k)} {v:.4g}" for k, v in n.metrics.items())
    return [
        escape(n.name),
        escape(n.host),
        escape(", ".join(n.gpus)),
        _coloured(n.state, STATE_COLOURS.get(n.state)),
        f"{n.rows:,}",
        f"{n.rows_read:,}",
        f"{n.rows_per_second:,.0f}",
        str(n.step or ""),
        f"{n.step_seconds:.3g}" if n.step_seconds is not None else "",
        f"{share:.0%}" if share is not None else "",
        f"{n.memory_bytes / 1e6:,.0f} MB" if n.memory_bytes else "",
        _coloured(n.advice, BOUND.get(n.bottleneck)),
        metrics,
    ]


def _coloured(text: str, colour: str | None) -> str:
    return f'<span style="color:{colour}">{escape(text)}</span>' if colour and text else escape(text)


def charts(curves: Curves) -> str:
    """Return one chart per reported metric, except ``epoch``; at most `MOST_CHARTS`."""
    named = [name for name in curves if name != "epoch"][:MOST_CHARTS]
    return "".join(line_chart(name, curves[name], "epoch" if name.endswith(BY_EPOCH) else "step") for name in named)


def links_html(links: Mapping[str, str]) -> str:
    """Return links that open in a new tab and send no referrer."""
    shown = (
        f'<a href="{escape(url, quote=True)}" target="_blank" rel="noopener noreferrer">{escape(name)}</a>'
        for name, url in links.items()
    )
    return f"<div>{' · '.join(shown)}</div>" if links else ""


def snapshot_html(s: Snapshot) -> str:
    """Return a snapshot as HTML."""
    title = f"tfspark · {s.phase} · {s.seconds:.0f} s"
    if s.rows:
        title += f" · {s.rows:,} rows · {s.feed_rates}"
    parts = [f'<div style="font-weight:bold">{escape(title)}</div>', nodes_table(s.nodes)]
    if s.advice:
        parts.append(f'<div style="color:{BOUND[Bottleneck.FEED]}">{escape(s.advice)}</div>')
    parts.append(f"<div>{charts(s.curves)}</div>")
    parts.append(links_html(s.links))
    if s.error:
        parts.append(_pre(s.error, f"color:{STATE_COLOURS['failed']}"))
    if s.lines:
        parts.append(f"<details open><summary>log</summary>{_pre(chr(10).join(s.lines), 'opacity:0.8')}</details>")
    return "".join(parts)


def _pre(text: str, style: str) -> str:
    return f'<pre style="white-space:pre-wrap;{style}">{escape(text)}</pre>'


def feed_report_html(report: FeedReport) -> str:
    """Return a feed report as HTML."""
    rows = [[escape(f"{role} {i}"), f"{n:,}"] for (role, i), n in report.rows_by_worker.items()]
    return f"<div>{escape(str(report))}</div>" + table(["worker", "rows"], rows, ("worker",))


def results_html(results: Mapping[tuple[str, int], Any]) -> str:
    """Return a table of the return values of ``main`` by node; lists of numbers in a dict are drawn as curves."""
    rows = []
    for (role, i), value in results.items():
        curves = _curves_in(value)
        shown = "".join(
            line_chart(name, {name: points}, "epoch") for name, points in list(curves.items())[:MOST_CHARTS]
        )
        text = escape(_shortened(repr(value)))
        rows.append([escape(f"{role} {i}"), shown or f"<code>{text}</code>"])
    return table(["node", "returned"], rows, ("node", "returned"))


def _curves_in(value: Any) -> dict[str, list[tuple[float, float]]]:
    """Return the points of each list of numbers in a result, by name."""
    if not isinstance(value, Mapping):
        return {}
    return {
        str(k): [(float(i + 1), float(y)) for i, y in enumerate(v)]
        for k, v in value.items()
        if isinstance(v, (list, tuple)) and len(v) > 1 and all(isinstance(y, (int, float)) for y in v)
    }


def _shortened(text: str, most: int = 300) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
