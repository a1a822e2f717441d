"""Small line charts as SVG text, for the notebook and the web page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 300, 120
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 20, 18

COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")

Points = Sequence[tuple[float, float]]


def line_chart(title: str, series: Mapping[str, Points]) -> str:
    """Draw lines over one pair of axes.

    Parameters
    ----------
    title
        Shown above.
    series
        Points ``(x, y)`` by name; those that are not finite are left out.

    Returns
    -------
    str
        An ``<svg>`` element, or nothing if there is no point.
    """
    finite = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    points = [p for line in finite.values() for p in line]
    if not points:
        return ""
    xs, ys = zip(*points, strict=True)
    x_range, y_range = (min(xs), max(xs)), (min(ys), max(ys))

    def place(p: tuple[float, float]) -> str:
        x = LEFT + _share(p[0], x_range) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - _share(p[1], y_range) * (HEIGHT - TOP - BOTTOM)
        return f"{x:.1f},{y:.1f}"

    lines = []
    for i, (name, line) in enumerate(finite.items()):
        if line:
            colour, path = COLOURS[i % len(COLOURS)], " ".join(map(place, line))
            if len(line) == 1:
                x, y = path.split(",")
                mark = f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}">'
            else:
                mark = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5">'
            tag = mark[1:].split(" ")[0]
            lines.append(f"{mark}<title>{escape(name)}: {line[-1][1]:.4g}</title></{tag}>")
    bottom = HEIGHT - BOTTOM
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="10" fill="currentColor" role="img">'
        f'<text x="{LEFT}" y="12" font-weight="bold">{escape(title)}</text>'
        f'<path d="M{LEFT},{TOP}V{bottom}H{WIDTH - RIGHT}" fill="none" stroke="currentColor" opacity="0.4"/>'
        f'<text x="{LEFT - 4}" y="{TOP + 8}" text-anchor="end">{y_range[1]:.4g}</text>'
        f'<text x="{LEFT - 4}" y="{bottom}" text-anchor="end">{y_range[0]:.4g}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 5}">{x_range[0]:g}</text>'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{x_range[1]:g}</text>'
        f"{''.join(lines)}</svg>"
    )


def _share(value: float, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return (value - low) / (high - low) if high > low else 0.5
