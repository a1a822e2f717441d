"""A run as a web page; the live page and the report, which is kept after the run, have the same content.

All external text is escaped. The page contains its style sheet and its curves, and loads nothing from other hosts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from tfspark.control.node_history import BY_EPOCH
from tfspark.monitoring.chart import FLUID, line_chart
from tfspark.monitoring.html import STATE_COLOURS, nodes_table, table
from tfspark.monitoring.status import Snapshot, duration

if TYPE_CHECKING:
    from tfspark.feeding.report import FeedReport

MOST_CHARTS = 24

MOST_FEEDS = 20
"""Largest number of feeds that are listed; a stream has many feeds."""

MOST_METRICS = 8
"""Largest number of metrics that are shown at the top in large figures."""

STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--link:#0b57d0}
@media(prefers-color-scheme:dark){:root{--link:#8ab4f8}}
body{font:14px/1.45 system-ui,sans-serif;margin:0 auto;padding:1.2rem;max-width:110rem}
a{color:var(--link)} h1{font-size:1.35rem;margin:0;overflow-wrap:anywhere} h2{font-size:1rem;margin:1.4rem 0 .4rem}
.about,.state{margin:.2rem 0;opacity:.75;overflow-wrap:anywhere} .links a{margin-right:1em}
.figures{display:flex;flex-wrap:wrap;gap:.6rem;margin:.9rem 0}
.figures div{background:var(--soft);border:1px solid var(--line);border-radius:.5rem;padding:.4rem .8rem;min-width:6rem}
.figures b{display:block;font-size:1.3rem} .figures span{opacity:.75}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:.8rem}
.charts svg{max-width:48rem}
.wide{overflow-x:auto} tbody tr{border-top:1px solid var(--line)}
progress{width:100%;height:.5rem} pre{white-space:pre-wrap;overflow-wrap:anywhere}
.failed{border-left:4px solid #d62728;padding-left:.8rem} .warning{border-left:4px solid #ff7f0e;padding-left:.8rem}
"""

SCRIPT = """
const view = document.getElementById("view"), state = document.getElementById("state");
async function update() {
  try {
    const answer = await fetch("view", {cache: "no-store"});
    if (!answer.ok) throw new Error(answer.status);
    const open = new Map([...view.querySelectorAll("details")].map(d => [d.className, d.open]));
    view.innerHTML = await answer.text();
    for (const d of view.querySelectorAll("details")) if (open.has(d.className)) d.open = open.get(d.className);
    document.title = view.firstElementChild.dataset.title;
    state.textContent = "";
    setTimeout(update, 1000);
  } catch (error) {
    state.textContent = "The cluster has ended or cannot be reached. This is its last state.";
    setTimeout(update, 5000);
  }
}
update();
"""


@dataclass(frozen=True)
class RunView:
    """A run at one moment.

    Attributes
    ----------
    snapshot
        The state of the cluster.
    application, application_id
        Name and id of the Spark application.
    cluster
        Name of the cluster.
    began
        Date and time when the run began.
    configuration
        Options, settings and versions of the cluster, by name.
    feeds
        Reports of the feeds.
    restarts
        The error that caused each restart of the nodes.
    """

    snapshot: Snapshot
    application: str = ""
    application_id: str = ""
    cluster: str = ""
    began: str = ""
    configuration: Mapping[str, str] = field(default_factory=dict)
    feeds: Sequence[FeedReport] = ()
    restarts: Sequence[str] = ()

    @property
    def title(self) -> str:
        """Title of the browser's tab: the application, its phase and its epoch."""
        s = self.snapshot
        node = next((n for n in s.nodes if n.epoch), None)
        place = f" epoch {node.epoch}/{node.epochs or '?'}" if node is not None and not s.is_over else ""
        return f"{self.application or 'tfspark'}: {s.phase}{place}"


def live_page(title: str, nonce: str) -> str:
    """Return the page, which fetches its content about every second; only a script with this nonce may run in it."""
    script = f'<p id="state" class="state"></p><script nonce="{escape(nonce, quote=True)}">{SCRIPT}</script>'
    return document(title, f'<main id="view"></main>{script}')


def report_page(view: RunView) -> str:
    """Return a run that has ended as one page without external files."""
    return document(view.title, f"<main>{run_html(view)}</main>")


def document(title: str, body: str) -> str:
    """Return an HTML document."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>{body}</body></html>\n"
    )


def run_html(view: RunView) -> str:
    """Return a run as HTML, the most important parts first."""
    s = view.snapshot
    parts = [_header(view), _error(s), _advice(s), _figures(view), _curves(s)]
    parts.append(_section("Nodes", f'<div class="wide">{nodes_table(s.nodes)}</div>'))
    parts += [_feeds(view.feeds), _restarts(view.restarts), _configuration(view.configuration), _log(s.lines)]
    return f'<article data-title="{escape(view.title, quote=True)}">{"".join(parts)}</article>'


def _header(view: RunView) -> str:
    s = view.snapshot
    colour = STATE_COLOURS.get(s.phase)
    phase = f'<b style="color:{colour}">{escape(s.phase)}</b>' if colour else f"<b>{escape(s.phase)}</b>"
    about = [phase, f"{'after' if s.is_over else 'for'} {duration(s.seconds)}"]
    about += [f"{name} {escape(value)}" for name, value in _names(view) if value]
    shown = (
        f'<a href="{escape(url, quote=True)}" target="_blank" rel="noopener noreferrer">{escape(name)}</a>'
        for name, url in s.links.items()
    )
    links = f'<nav class="links">{"".join(shown)}</nav>' if s.links else ""
    return (
        f"<header><h1>{escape(view.application or 'tfspark')}</h1>"
        f'<p class="about">{" · ".join(about)}</p>{links}</header>'
    )


def _names(view: RunView) -> list[tuple[str, str]]:
    return [("cluster", view.cluster), ("application", view.application_id), ("run of", view.began)]


def _figures(view: RunView) -> str:
    """Return the newest metrics and the progress of the run, in large figures."""
    s = view.snapshot
    metrics = dict(s.ended_epochs[-1].metrics) if s.ended_epochs else {}
    if not metrics:
        metrics = next((dict(n.metrics) for n in s.nodes if n.metrics), {})
    cards = [_epoch_card(s)]
    cards += [_card(f"{v:.4g}", k) for k, v in metrics.items() if k != "epoch"][:MOST_METRICS]
    if read := sum(n.rows_read for n in s.nodes):
        cards.append(_card(f"{read:,}", "rows read"))
    if not s.is_over and (rate := sum(n.rows_per_second for n in s.nodes)):
        cards.append(_card(f"{rate:,.0f}", "rows/s read"))
    if s.rows and not s.is_over:
        cards.append(_card(f"{s.rows:,}", f"rows fed, {s.feed_rates}"))
    if view.restarts:
        cards.append(_card(str(len(view.restarts)), "restarts"))
    return f'<div class="figures">{"".join(cards)}</div>' if any(cards) else ""


def _epoch_card(s: Snapshot) -> str:
    ended = s.ended_epochs[-1] if s.ended_epochs else None
    node = next((n for n in s.nodes if n.epoch), None)
    if ended is None and node is None:
        return ""
    of = ended.of if ended is not None else node.epochs if node is not None else 0
    number = ended.number if s.is_over and ended is not None else node.epoch if node is not None else 0
    left = f", {duration(s.seconds_left)} left" if s.seconds_left and not s.is_over else ""
    done = ended.number if ended is not None else 0
    bar = f'<progress max="{of}" value="{done}"></progress>' if of else ""
    return f"<div><b>epoch {number}{f' of {of}' if of else ''}</b><span>{done} ended{left}</span>{bar}</div>"


def _card(figure: str, label: str) -> str:
    return f"<div><b>{escape(figure)}</b><span>{escape(label)}</span></div>"


def _error(s: Snapshot) -> str:
    return f'<pre class="failed">{escape(s.error)}</pre>' if s.error else ""


def _advice(s: Snapshot) -> str:
    return f'<p class="warning">{escape(s.advice)}</p>' if s.advice and not s.is_over else ""


def _curves(s: Snapshot) -> str:
    named = [name for name in s.curves if name != "epoch"][:MOST_CHARTS]
    drawn = (line_chart(n, s.curves[n], "epoch" if n.endswith(BY_EPOCH) else "step", FLUID) for n in named)
    shown = "".join(drawn)
    return _section("Curves", f'<div class="charts">{shown}</div>') if shown else ""


def _feeds(feeds: Sequence[FeedReport]) -> str:
    if not feeds:
        return ""
    headings = ["feed", "rows", "MB", "seconds", "rows/s", "MB/s", "epochs", "rows by worker"]
    numbered = list(enumerate(feeds, 1))
    rows = []
    for i, f in numbered[-MOST_FEEDS:]:
        megabytes = f.bytes / 1e6
        by_worker = ", ".join(f"{role} {index}: {n:,}" for (role, index), n in f.rows_by_worker.items())
        rates = [f"{f.rows_per_second:,.0f}", f"{megabytes / max(f.seconds, 1e-9):,.1f}"]
        rows.append(
            [str(i), f"{f.rows:,}", f"{megabytes:,.1f}", f"{f.seconds:.1f}", *rates, str(f.epochs), escape(by_worker)]
        )
    left_out = len(feeds) - len(rows)
    note = f"<p>The last {len(rows)} of {len(feeds)} feeds.</p>" if left_out else ""
    return _section("Feeds", f'<div class="wide">{table(headings, rows, ("rows by worker",))}</div>{note}')


def _restarts(restarts: Sequence[str]) -> str:
    return _section("Restarts", "".join(f'<pre class="warning">{escape(r)}</pre>' for r in restarts))


def _configuration(configuration: Mapping[str, str]) -> str:
    rows = [[escape(name), escape(value)] for name, value in configuration.items()]
    shown = f'<div class="wide">{table(["option", "value"], rows, ("option", "value"))}</div>'
    return _details("configuration", shown, False) if rows else ""


def _log(lines: Iterable[str]) -> str:
    text = "\n".join(lines)
    return _details("log", f"<pre>{escape(text)}</pre>", True) if text else ""


def _details(name: str, content: str, is_open: bool) -> str:
    opened = " open" if is_open else ""
    return f'<details class="{name}"{opened}><summary><b>{name.capitalize()}</b></summary>{content}</details>'


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""
