"""Draw the plots of docs/performance.md, as SVG, from the JSON lines that benchmarks print.

    python benchmarks/plots.py                            # draws benchmarks/results/*.jsonl into docs/images
    python benchmarks/peers.py | python benchmarks/plots.py -

- ``peers.svg``: feed, fit and inference of each library, from `peers.py`
- ``scale.svg``: CPU of the driver against nodes and partitions, from `scale.py` with sizes as options
- ``tfrecord.svg``: TFRecord files compared with Parquet and `tf.data`, from `tfrecord.py`

A benchmark without lines is not drawn. The same lines always result in the same files.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"

Line = dict[str, Any]

COLOURS = {
    "tfspark": ("#1f6feb", "#58a6ff"),
    "its programs on tfspark": ("#79a9e8", "#2f5f9e"),
    "TensorFlowOnSpark": ("#d9730d", "#f0883e"),
    "predict_batch_udf": ("#2e8540", "#56b368"),
    "Parquet": ("#2e8540", "#56b368"),
    "elephas": ("#8250df", "#b392f0"),
    "tf.data": ("#6e7781", "#9aa4ae"),
}
"""Colour on a light and on a dark page, by library; Spark's own ways have one colour."""

CLASSES = {library: f"c{i}" for i, library in enumerate(COLOURS)}
STYLE = "\n".join(
    [
        "svg{font-family:system-ui,sans-serif;font-size:13px}",
        ".page{fill:#ffffff}.text{fill:#1f2933}.soft{fill:#52606d;font-size:12px}.head{font-weight:600}",
        ".grid{stroke:#d5dde5}.range{stroke:#1f2933;stroke-width:1.5}.curve{stroke:#1f6feb;stroke-width:2;fill:none}",
        *(f".{CLASSES[library]}{{fill:{light}}}" for library, (light, _) in COLOURS.items()),
        "@media(prefers-color-scheme:dark){",
        ".page{fill:#16191d}.text{fill:#e6edf3}.soft{fill:#a9b6c3}.grid{stroke:#333d47}.range{stroke:#e6edf3}",
        ".curve{stroke:#58a6ff}",
        *(f".{CLASSES[library]}{{fill:{dark}}}" for library, (_, dark) in COLOURS.items()),
        "}",
    ]
)

PANEL_WIDTH = 460
LABEL_WIDTH = 170
VALUE_WIDTH = 70
"""Room for the figure to the right of the longest bar, in px."""
BAR = 24
"""Height of a bar with the space below it, in px."""
CURVE_HEIGHT = 200
MARGIN = 20


@dataclass(frozen=True)
class Bars:
    """Horizontal bars from 0, with the range of the rounds.

    Attributes
    ----------
    lines
        The library and its line of JSON, from top to bottom.
    """

    title: str
    unit: str
    lines: tuple[tuple[str, Line], ...]

    @property
    def height(self) -> int:
        return 30 + BAR * len(self.lines) + 45

    def svg(self, x: float, y: float) -> list[str]:
        out = [_text(x, y + 16, self.title, "text head")]
        left, top = x + LABEL_WIDTH, y + 30
        bottom = top + BAR * len(self.lines)
        longest = max(max(line["rounds"]) for _, line in self.lines)
        scale = (PANEL_WIDTH - LABEL_WIDTH - VALUE_WIDTH) / longest
        for tick in ticks(longest):
            out.append(_segment(left + tick * scale, top, left + tick * scale, bottom, "grid"))
            out.append(_text(left + tick * scale, bottom + 16, short(tick), "soft", "middle"))
        out.append(_text(left, bottom + 33, self.unit, "soft"))
        for i, (library, line) in enumerate(self.lines):
            middle = top + BAR * i + BAR / 2 - 2
            width = line["value"] * scale
            low, high = (left + end(line["rounds"]) * scale for end in (min, max))
            out += [
                _text(left - 8, middle + 4, library, "text", "end"),
                f'<rect class="{CLASSES[library]}" x="{_n(left)}" y="{_n(middle - 8)}" '
                f'width="{_n(width)}" height="16"/>',
                _segment(low, middle, high, middle, "range"),
                _text(max(high, left + width) + 6, middle + 4, short(line["value"]), "text"),
            ]
        return out


@dataclass(frozen=True)
class Curve:
    """Points joined by lines, over a logarithmic axis; the vertical axis may be logarithmic too."""

    title: str
    across: str
    upward: str
    points: tuple[tuple[float, float], ...]
    logarithmic: bool

    @property
    def height(self) -> int:
        return CURVE_HEIGHT + 95

    def svg(self, x: float, y: float) -> list[str]:
        out = [_text(x, y + 16, self.title, "text head"), _text(x, y + 36, self.upward, "soft")]
        left, right, top, bottom = x + 50, x + PANEL_WIDTH - 40, y + 55, y + 55 + CURVE_HEIGHT - 15
        xs, ys = [p[0] for p in self.points], [p[1] for p in self.points]
        low, high = (10.0 ** math.floor(math.log10(min(ys))), 10.0 ** math.ceil(math.log10(max(ys))))

        def across(value: float) -> float:
            return left + (right - left) * math.log(value / min(xs)) / math.log(max(xs) / min(xs))

        def upward(value: float) -> float:
            part = math.log(value / low) / math.log(high / low) if self.logarithmic else value / max(ys)
            return bottom - (bottom - top) * part

        decades = [low * 10**i for i in range(round(math.log10(high / low)) + 1)]
        for tick in decades if self.logarithmic else ticks(max(ys)):
            out.append(_segment(left, upward(tick), right, upward(tick), "grid"))
            out.append(_text(left - 8, upward(tick) + 4, short(tick), "soft", "end"))
        for value in xs:
            out.append(_segment(across(value), top, across(value), bottom, "grid"))
            out.append(_text(across(value), bottom + 16, short(value), "soft", "middle"))
        out.append(_text((left + right) / 2, bottom + 34, self.across, "soft", "middle"))
        places = " ".join(f"{_n(across(a))},{_n(upward(b))}" for a, b in self.points)
        out.append(f'<polyline class="curve" points="{places}"/>')
        anchors = ["start", *["middle"] * (len(self.points) - 2), "end"]
        for (a, b), anchor in zip(self.points, anchors, strict=True):
            out.append(f'<circle class="{CLASSES["tfspark"]}" cx="{_n(across(a))}" cy="{_n(upward(b))}" r="4"/>')
            out.append(_text(across(a), upward(b) - 9, short(b), "text", anchor))
        return out


Panel = Bars | Curve


def ticks(longest: float) -> list[float]:
    """Return 0 and some round numbers, at most five, that do not exceed `longest`."""
    size = 10.0 ** math.floor(math.log10(longest))
    step = next(step for step in (size / 5, size / 2, size, size * 2, size * 5) if longest / step <= 4.5)
    return [i * step for i in range(math.floor(longest / step + 1e-9) + 1)]


def short(value: float) -> str:
    """Format a number with at most three significant digits below 1,000, and with separators above."""
    return f"{value:,.0f}" if value >= 100 else f"{float(f'{value:.3g}'):g}"


def peers(lines: Sequence[Line]) -> tuple[str, list[Panel], int]:
    """Return the title, the panels and the number of columns of the plot of `peers.py`."""
    jobs = {
        "feed": "Feed, read and dropped",
        "fit": "Keras fit fed from Spark",
        "inference": "Inference over a DataFrame",
        "read": "TFRecord files read",
    }
    panels: list[Panel] = []
    for job, title in jobs.items():
        found = [line for line in lines if line.get("job") == job]
        if not found:
            raise ValueError(f"The lines of peers have no job {job!r}.")
        named = ((line["library"].removesuffix(" alone"), line) for line in found)
        panels.append(Bars(title, "rows/s", tuple(named)))
    return "tfspark compared with other libraries, in rows/s", panels, 2


def scale(lines: Sequence[Line]) -> tuple[str, list[Panel], int]:
    """Return the title, the panels and the number of columns of the plot of `scale.py`."""

    def points(bench: str, size: str, cost: str) -> tuple[tuple[float, float], ...]:
        found = sorted((line[size], line[cost]) for line in lines if line.get("bench") == bench)
        if len(found) < 2:
            raise ValueError(f"The lines of scale have {len(found)} sizes of {bench!r}; a plot needs at least 2.")
        return tuple(found)

    nodes = points("coordinator", "nodes", "cores")
    partitions = points("ledger", "partitions", "cpu_seconds")
    panels: list[Panel] = [
        Curve("CPU of the driver while nodes train", "nodes", "cores", nodes, False),
        Curve("CPU of the driver for one feed", "partitions", "CPU-seconds", partitions, True),
    ]
    return "Cost of the driver, against nodes and partitions", panels, 2


def tfrecord(lines: Sequence[Line]) -> tuple[str, list[Panel], int]:
    """Return the title, the panels and the number of columns of the plot of `tfrecord.py`."""
    figures = {line["figure"]: line for line in lines}
    ways = {
        "read": {"tfspark": "tfrecord read", "Parquet": "parquet read", "tf.data": "tf.data parse"},
        "written": {"tfspark": "tfrecord write", "Parquet": "parquet write"},
    }
    shapes = sorted({figure.split()[0]: line["shape"] for figure, line in figures.items() if "shape" in line}.items())
    panels: list[Panel] = []
    for key, shape in shapes:
        for verb, names in ways.items():
            missing = [f"{key} {name}" for name in names.values() if f"{key} {name}" not in figures]
            if missing:
                raise ValueError(f"The lines of tfrecord have no figure {missing[0]!r}.")
            named = tuple((library, figures[f"{key} {name}"]) for library, name in names.items())
            panels.append(Bars(f"{shape}, {verb}", "MB of TFRecord files per CPU-second", named))
    return "TFRecord files compared with Parquet and tf.data, in MB per CPU-second", panels, 2


PLOTS: dict[str, Callable[[Sequence[Line]], tuple[str, list[Panel], int]]] = {
    "peers": peers,
    "scale": scale,
    "tfrecord": tfrecord,
}
BENCHMARKS = {"coordinator": "scale", "ledger": "scale"}
"""The benchmark, by the ``bench`` of its lines, where these do not have a ``benchmark``."""


def drawn(title: str, panels: Sequence[Panel], columns: int, source: str) -> str:
    """Return a plot as SVG for light and dark pages, with the panels in rows of `columns`."""
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    width = MARGIN + columns * (PANEL_WIDTH + MARGIN)
    body, y = [], MARGIN
    for row in rows:
        for i, panel in enumerate(row):
            body += panel.svg(MARGIN + i * (PANEL_WIDTH + MARGIN), y)
        y += max(panel.height for panel in row)
    body.append(_text(MARGIN, y + 8, source, "soft"))
    height = y + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="page" width="{width}" height="{height}"/>',
            *body,
            "</svg>\n",
        ]
    )


def plots(lines: Iterable[Line]) -> dict[str, str]:
    """Return the SVG by name of its file, for each benchmark that has lines."""
    by_benchmark: dict[str, list[Line]] = {name: [] for name in PLOTS}
    for line in lines:
        name = line.get("benchmark") or BENCHMARKS.get(line.get("bench", ""), "")
        by_benchmark.get(name, []).append(line)
    found = {}
    for name, plot in PLOTS.items():
        measured = [line for line in by_benchmark[name] if line.get("figure") != "surroundings"]
        if measured:
            title, panels, columns = plot(measured)
            around = [line for line in by_benchmark[name] if line.get("figure") == "surroundings"]
            found[f"{name}.svg"] = drawn(title, panels, columns, _source(name, around))
    return found


def read(texts: Iterable[str]) -> list[Line]:
    """Return the JSON lines; other lines, such as tables, are left out."""
    return [json.loads(line) for text in texts for line in text.splitlines() if line.startswith("{")]


def _source(name: str, around: Sequence[Line]) -> str:
    if not around:
        raise ValueError(f"The lines of {name} have no figure 'surroundings'.")
    line = around[0]
    bars = "" if name == "scale" else " Bars: medians; thin lines: lowest to highest round."
    return f"benchmarks/{name}.py, {line['date']}, {line['value']} CPUs, {line['machine']}.{bars}"


def _text(x: float, y: float, text: str, style: str, anchor: str = "start") -> str:
    at = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{style}" x="{_n(x)}" y="{_n(y)}"{at}>{escape(text)}</text>'


def _segment(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"/>'


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def main() -> None:
    """Read the lines and write the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="files of JSON lines, - for standard input")
    parser.add_argument("--images", type=Path, default=IMAGES, help="where the plots are written")
    options = parser.parse_args()
    files = options.files or sorted(RESULTS.glob("*.jsonl"))
    lines = read(sys.stdin.read() if str(file) == "-" else Path(file).read_text() for file in files)
    found = plots(lines)
    if not found:
        parser.error(f"no lines of {', '.join(PLOTS)} in {', '.join(map(str, files)) or RESULTS}")
    for name, svg in found.items():
        (options.images / name).write_text(svg)


if __name__ == "__main__":
    main()
