"""Draws the diagrams of the design; ``python docs/.hooks/diagrams.py`` writes them. A test compares them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"

STYLE = """svg{font-family:system-ui,sans-serif;font-size:13px}
.page{fill:#ffffff}.room{fill:#f5f8fc;stroke:#b9c8d9}.box{fill:#e3eefa;stroke:#5b7fa6}.text{fill:#1f2933}
.soft{fill:#52606d;font-size:12px}.head{font-weight:600}.line{stroke:#486581;stroke-width:1.6;fill:none}.tip{fill:#486581}
@media(prefers-color-scheme:dark){.page{fill:#16191d}.room{fill:#1e242b;stroke:#3d4b5a}.box{fill:#26394d;stroke:#6f9bc7}
.text{fill:#e6edf3}.soft{fill:#a9b6c3}.line{stroke:#8fb0cf}.tip{fill:#8fb0cf}}"""


@dataclass(frozen=True)
class Room:
    """A rectangle for a process or a machine, which contains boxes."""

    x: int
    y: int
    width: int
    height: int
    title: str


@dataclass(frozen=True)
class Box:
    """A part of the design; the first line is its name."""

    x: int
    y: int
    width: int
    lines: tuple[str, ...]

    @property
    def height(self) -> int:
        return 14 + 18 * len(self.lines)


@dataclass(frozen=True)
class Arrow:
    """An arrow through points; `text`, what it carries, is written at `at`."""

    points: tuple[tuple[int, int], ...]
    text: str = ""
    at: tuple[int, int] = (0, 0)


Shape = Room | Box | Arrow


def drawn(title: str, width: int, height: int, shapes: Iterable[Shape]) -> str:
    """Return a diagram as SVG for light and dark pages."""
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>',
        f'<rect class="page" width="{width}" height="{height}"/>',
    ]
    for shape in shapes:
        out += _shape(shape)
    return "\n".join([*out, "</svg>"]) + "\n"


def _shape(shape: Shape) -> list[str]:
    match shape:
        case Room(x, y, width, height, title):
            return [
                f'<rect class="room" x="{x}" y="{y}" width="{width}" height="{height}" rx="10"/>',
                f'<text class="soft head" x="{x + 12}" y="{y + 20}">{escape(title)}</text>',
            ]
        case Box(x, y, width, lines):
            out = [f'<rect class="box" x="{x}" y="{y}" width="{width}" height="{shape.height}" rx="6"/>']
            for i, line in enumerate(lines):
                style = "soft" if i else "text head"
                out.append(f'<text class="{style}" x="{x + 10}" y="{y + 20 + 18 * i}">{escape(line)}</text>')
            return out
        case Arrow(points, text, at):
            path = "L".join(f"{x} {y}" for x, y in points)
            out = [f'<path class="line" d="M{path}" marker-end="url(#tip)"/>']
            return [*out, f'<text class="soft" x="{at[0]}" y="{at[1]}">{escape(text)}</text>'] if text else out


def architecture() -> str:
    """Return the diagram of the processes and of the messages between them."""
    shapes: list[Shape] = [
        Room(10, 10, 270, 400, "driver"),
        Room(330, 10, 560, 250, "executor"),
        Room(330, 290, 560, 120, "any executor with a free slot"),
        Box(30, 45, 230, ("Cluster", "start, feed, wait, stop")),
        Box(30, 125, 230, ("coordinator", "Flight server, token", "state machine, books of feeds")),
        Box(30, 225, 230, ("views", "terminal, notebook, live page,", "TensorBoard, Prometheus, report")),
        Box(30, 325, 230, ("Spark", "barrier job of the nodes,", "ordinary jobs that feed")),
        Box(350, 45, 210, ("supervising task", "a Spark task for each node:", "log, heartbeat, exit code")),
        Box(640, 45, 230, ("node", "TensorFlow in a process of its own", "main(args, ctx), Keras")),
        Box(640, 165, 230, ("spool", "rows of committed partitions", "as Arrow, memory-mapped")),
        Box(350, 325, 250, ("feed task", "a Spark task for each partition:", "Arrow batches, never row by row")),
        Arrow(((145, 95), (145, 125))),
        Arrow(((145, 193), (145, 225))),
        Arrow(((560, 79), (640, 79)), "spawns", (573, 72)),
        Arrow(((755, 165), (755, 113)), "tf.data", (762, 145)),
        Arrow(((350, 100), (305, 100), (305, 150), (260, 150)), "calls", (272, 142)),
        Arrow(((640, 105), (600, 105), (600, 160), (260, 160)), "registers, polls, reports", (400, 153)),
        Arrow(((350, 370), (290, 370), (290, 185), (260, 185)), "which worker?", (296, 280)),
        Arrow(((600, 345), (755, 345), (755, 233)), "rows: shared memory or Flight", (610, 363)),
    ]
    return drawn("Driver, executors and nodes of a cluster", 900, 420, shapes)


def way_of_the_rows() -> str:
    """Return the diagram of the way of a row from a DataFrame to a tensor."""
    stations = [
        ("DataFrame", "partitions,", "columns"),
        ("JVM", "arrays packed", "as bytes"),
        ("feed task", "checks, shapes,", "asks for a worker"),
        ("node", "spools; coordinator", "commits it once"),
        ("dataset", "chunks of whole", "batches, no copy"),
        ("model", "tensors; optimizers", "of all workers meet"),
    ]
    carried = ["scan", "Arrow", "memory, Flight", "mmap", "tf.data"]
    shapes: list[Shape] = [Room(10, 10, 310, 120, "Spark executor"), Room(330, 10, 180, 120, "Spark's Python")]
    shapes.append(Room(520, 10, 510, 120, "TensorFlow process"))
    left = [20, 175, 345, 535, 700, 865]
    for x, lines in zip(left, stations, strict=True):
        shapes.append(Box(x, 45, 150 if x > 300 else 135, lines))
    for i, what in enumerate(carried):
        begin = left[i] + (150 if left[i] > 300 else 135)
        shapes.append(Arrow(((begin, 65), (left[i + 1], 65)), what, ((begin + left[i + 1]) // 2 - 3 * len(what), 148)))
    note = "later epochs replay the spool"
    shapes.append(Arrow(((775, 113), (775, 165), (610, 165), (610, 115)), note, (620, 182)))
    return drawn("The way of a row from a DataFrame to a tensor", 1040, 195, shapes)


DIAGRAMS = {"architecture.svg": architecture, "rows.svg": way_of_the_rows}

if __name__ == "__main__":
    for name, diagram in DIAGRAMS.items():
        (IMAGES / name).write_text(diagram())
