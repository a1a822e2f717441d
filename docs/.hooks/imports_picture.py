"""Draws which packages of tfspark import which; ``python docs/.hooks/imports_picture.py`` writes the picture.

Rows are the layers of the contract in ``pyproject.toml``. A line goes from a package to each package that it imports,
except packages that it also reaches through another one. A test compares the picture with the code.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "images" / "imports.svg"
WIDTH, ROW, BOX = 760, 58, 26

LEFT_OUT = {
    "checks",
    "cluster_options",
    "distribution",
    "errors",
    "host_names",
    "json_numbers",
    "malloc",
    "settings",
    "spec",
    "tensorflow_import",
    "tensorflow_options",
}
"""Single modules that many packages import (data, errors and small helpers); they are not drawn."""

COLOURS = {"text": "#24292f", "box": "#eef4fb", "border": "#5b7fa6", "line": "#7a8ea3"}


def layers() -> list[list[str]]:
    """Return the packages of each layer, from the top, in the order of the contract."""
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^layers = \[\n(.*?)^\]", text, re.M | re.S)
    assert block is not None, "pyproject.toml has no contract of layers"
    rows = re.findall(r'"([^"]+)"', block[1])
    named = [[name.strip().removeprefix("tfspark.") for name in re.split(r"[|:]", row)] for row in rows]
    return [kept for row in named if (kept := [name for name in row if name not in LEFT_OUT])]


def imports(names: set[str]) -> dict[str, set[str]]:
    """Return the packages that each package imports, without imports for type checking only."""
    graph = grimp.build_graph("tfspark", exclude_type_checking_imports=True, cache_dir=None)
    found: dict[str, set[str]] = {name: set() for name in names}
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            importer, other = (m.split(".")[1] if "." in m else m for m in (module, imported))
            if importer != other and {importer, other} <= names:
                found[importer].add(other)
    return found


def reduced(found: dict[str, set[str]], order: list[str]) -> dict[str, list[str]]:
    """Remove packages that are reached through another one, and upward imports, the exceptions of the contract."""
    rank = {name: i for i, name in enumerate(order)}
    down = {name: {o for o in others if rank[o] > rank[name]} for name, others in found.items()}
    reach: dict[str, set[str]] = {}
    for name in reversed(order):
        reach[name] = down[name].union(*(reach[o] for o in down[name]))
    return {n: sorted(o for o in down[n] if not any(o in reach[p] for p in down[n] - {o})) for n in order}


def picture() -> str:
    """Return the picture as SVG."""
    rows = layers()
    order = [name for row in rows for name in row]
    place: dict[str, tuple[float, float, float]] = {}
    for y, row in enumerate(rows):
        # Rows with one box are staggered, so that lines do not cross boxes.
        centre = WIDTH / 2 + (0 if len(row) > 1 else (-150, 0, 150)[y % 3])
        widths = [len(name) * 7.4 + 22 for name in row]
        x = centre - (sum(widths) + 26 * (len(row) - 1)) / 2
        for name, width in zip(row, widths, strict=True):
            place[name] = (x, 14 + y * ROW, width)
            x += width + 26
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {ROW * len(rows)}" role="img" '
        'font-family="ui-monospace, monospace" font-size="12">',
        "<title>Which packages of tfspark import which</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for name, others in reduced(imports(set(order)), order).items():
        x, y, width = place[name]
        for other in others:
            ox, oy, owidth = place[other]
            x1, y1, x2, y2 = x + width / 2, y + BOX, ox + owidth / 2, oy
            bend = (y2 - y1) / 2
            path = f"M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}"
            out.append(f'<path d="{path}" fill="none" stroke="{COLOURS["line"]}"/>')
    for name, (x, y, width) in place.items():
        out.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{BOX}" rx="5" fill="{COLOURS["box"]}" '
            f'stroke="{COLOURS["border"]}"/>'
        )
        middle = f'x="{x + width / 2:.0f}" y="{y + 17:.0f}"'
        out.append(f'<text {middle} text-anchor="middle" fill="{COLOURS["text"]}">{escape(name)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture())
