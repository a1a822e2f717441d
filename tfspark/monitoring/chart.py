"""Line charts as SVG text, for the notebook, the live page and the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

LEFT, RIGHT, TOP, BOTTOM = 52, 8, 20, 18

COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")

MOST_NAMES = 4
"""Largest number of lines that a legend names."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Size:
    """Width and height of a chart, in pixels; a `fluid` chart fills its container's width, in these proportions."""

    width: int
    height: int
    fluid: bool = False


SMALL = Size(300, 120)
"""For several charts side by side in the output of a notebook cell."""

FLUID = Size(480, 200, fluid=True)
"""For charts in the grid of a web page."""


def line_chart(title: str, series: Mapping[str, Points], x_name: str = "", size: Size = SMALL) -> str:
    """Draw lines on one pair of axes.

    Parameters
    ----------
    title
        Title above the chart.
    series
        Points ``(x, y)`` by name of the line; points with NaN or infinity are omitted. If all lines are equal, one line
        is drawn.
    x_name
        Label of the x axis.

    Returns
    -------
    str
        An ``<svg>`` element, or an empty string if there are no points.
    """
    finite = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    if len(finite) > 1 and len({tuple(line) for line in finite.values()}) == 1:
        finite = {"all": next(iter(finite.values()))}
    points = [p for line in finite.values() for p in line]
    if not points:
        return ""
    xs, ys = zip(*points, strict=True)
    x_range, y_range = (min(xs), max(xs)), (min(ys), max(ys))
    right, bottom = size.width - RIGHT, size.height - BOTTOM

    def place(p: tuple[float, float]) -> str:
        x = LEFT + _share(p[0], x_range) * (right - LEFT)
        y = bottom - _share(p[1], y_range) * (bottom - TOP)
        return f"{x:.1f},{y:.1f}"

    lines = [_line(name, line, COLOURS[i % len(COLOURS)], place) for i, (name, line) in enumerate(finite.items())]
    fixed = 'style="width:100%;height:auto"' if size.fluid else f'width="{size.width}" height="{size.height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size.width} {size.height}" {fixed} '
        f'font-family="sans-serif" font-size="10" fill="currentColor" role="img" aria-label="{escape(title)}">'
        f'<text x="{LEFT}" y="12" font-weight="bold">{escape(title)}</text>'
        f"{_axes(size, x_range, y_range, x_name)}{_legend(list(finite), right)}{''.join(lines)}</svg>"
    )


def _line(name: str, line: Points, colour: str, place: Callable[[tuple[float, float]], str]) -> str:
    if not line:
        return ""
    path = " ".join(map(place, line))
    if len(line) == 1:
        x, y = path.split(",")
        mark = f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}">'
    else:
        mark = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5">'
    tag = mark[1:].split(" ")[0]
    return f"{mark}<title>{escape(name)}: {line[-1][1]:.4g}</title></{tag}>"


def _axes(size: Size, x_range: tuple[float, float], y_range: tuple[float, float], x_name: str) -> str:
    right, bottom = size.width - RIGHT, size.height - BOTTOM
    middle = (TOP + bottom) / 2
    halfway = ""
    if size.fluid and y_range[0] < y_range[1]:
        halfway = (
            f'<path d="M{LEFT},{middle:g}H{right}" stroke="currentColor" opacity="0.15"/>'
            f'<text x="{LEFT - 4}" y="{middle + 4:g}" text-anchor="end">{sum(y_range) / 2:.4g}</text>'
        )
    return (
        f'<path d="M{LEFT},{TOP}V{bottom}H{right}" fill="none" stroke="currentColor" opacity="0.4"/>{halfway}'
        f'<text x="{LEFT - 4}" y="{TOP + 8}" text-anchor="end">{y_range[1]:.4g}</text>'
        f'<text x="{LEFT - 4}" y="{bottom}" text-anchor="end">{y_range[0]:.4g}</text>'
        f'<text x="{LEFT}" y="{size.height - 5}">{x_range[0]:g}</text>'
        f'<text x="{right}" y="{size.height - 5}" text-anchor="end">{x_range[1]:g}</text>'
        f'<text x="{(LEFT + right) / 2:g}" y="{size.height - 5}" text-anchor="middle" opacity="0.7">'
        f"{escape(x_name)}</text>"
    )


def _legend(names: Sequence[str], right: int) -> str:
    """Return the names of the first `MOST_NAMES` lines, at the upper right; nothing if there is only one line."""
    if len(names) < 2:
        return ""
    shown = [*names[:MOST_NAMES], *(["..."] if len(names) > MOST_NAMES else [])]
    return "".join(
        f'<text x="{right}" y="{TOP + 10 + 11 * i}" text-anchor="end" fill="{COLOURS[i % len(COLOURS)]}">'
        f"{escape(name)}</text>"
        for i, name in enumerate(shown)
    )


def _share(value: float, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return (value - low) / (high - low) if high > low else 0.5
