"""The plots of docs/performance.md show the figures of the benchmarks, and are what their script draws."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))
import plots  # noqa: E402

pytestmark = pytest.mark.unit

SVG = "{http://www.w3.org/2000/svg}"
AROUND = {"figure": "surroundings", "value": 2, "date": "2026-01-02", "machine": "x86_64"}


def measured(value: float, **more: Any) -> dict[str, Any]:
    return {"value": value, "rounds": [value * 0.9, value, value * 1.1], **more}


def of_peers(**feed: float) -> list[dict[str, Any]]:
    """Return lines of peers with these figures of feed, by library."""
    jobs = {"feed": feed, "fit": {"tfspark": 1.0}, "inference": {"tfspark": 1.0}, "read": {"tfspark": 1.0}}
    return [
        {"benchmark": "peers", **AROUND},
        *(
            {"benchmark": "peers", "figure": f"{job}: {library}", "job": job, "library": library, **measured(value)}
            for job, values in jobs.items()
            for library, value in values.items()
        ),
    ]


def of_scale(cores: dict[int, float]) -> list[dict[str, Any]]:
    return [
        {"benchmark": "scale", **AROUND},
        *({"bench": "coordinator", "nodes": nodes, "cores": value} for nodes, value in cores.items()),
        *({"bench": "ledger", "partitions": 10**i, "cpu_seconds": 10.0 ** (i - 6)} for i in (3, 4, 5)),
    ]


def of_tfrecord(*names: str) -> list[dict[str, Any]]:
    shape = {"benchmark": "tfrecord", "shape": "40 <scalars>"}
    return [
        {"benchmark": "tfrecord", **AROUND},
        *({**shape, "figure": f"A {name}", **measured(10.0 * (1 + i))} for i, name in enumerate(names)),
    ]


def bars(svg: str) -> list[tuple[str, float]]:
    """Return the class and the width of each bar, without the page."""
    rects = [rect for rect in ElementTree.fromstring(svg).iter(f"{SVG}rect") if rect.get("class") != "page"]
    return [(rect.get("class", ""), float(rect.get("width", ""))) for rect in rects]


def texts(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_the_plots_are_what_their_script_draws_from_the_results() -> None:
    results = sorted(plots.RESULTS.glob("*.jsonl"))
    drawn = plots.plots(plots.read(path.read_text() for path in results))
    assert results and set(drawn) == {f"{path.stem}.svg" for path in results}
    page = (ROOT / "docs" / "performance.md").read_text()
    for name, svg in drawn.items():
        assert (plots.IMAGES / name).read_text() == svg, "run benchmarks/plots.py"
        assert len(svg) < 30_000 and f"](images/{name})" in page


def test_bars_are_as_long_as_their_figures_and_each_library_has_its_colour() -> None:
    svg = plots.plots(of_peers(tfspark=1000.0, TensorFlowOnSpark=250.0))["peers.svg"]
    (ours, width), (theirs, shorter), *others = bars(svg)
    assert shorter == pytest.approx(width / 4, rel=0.01)
    assert ours != theirs and {colour for colour, _ in others} == {ours}
    assert {"tfspark", "TensorFlowOnSpark", "1,000", "250", "rows/s"} <= set(texts(svg))


def test_a_thin_line_shows_the_range_of_the_rounds() -> None:
    svg = plots.plots(of_peers(tfspark=1000.0))["peers.svg"]
    first = next(line for line in ElementTree.fromstring(svg).iter(f"{SVG}line") if line.get("class") == "range")
    left = next(
        float(r.get("x", "")) for r in ElementTree.fromstring(svg).iter(f"{SVG}rect") if r.get("class") != "page"
    )
    (_, width), *_ = bars(svg)
    assert float(first.get("x1", "")) - left == pytest.approx(0.9 * width, rel=0.01)
    assert float(first.get("x2", "")) - left == pytest.approx(1.1 * width, rel=0.01)


def test_more_cores_are_drawn_higher() -> None:
    svg = plots.plots(of_scale({32: 0.1, 128: 0.4, 512: 0.2}))["scale.svg"]
    heights = [float(c.get("cy", "")) for c in ElementTree.fromstring(svg).iter(f"{SVG}circle")][:3]
    assert heights[1] < heights[2] < heights[0]
    assert {"nodes", "cores", "partitions", "CPU-seconds", "512", "0.4"} <= set(texts(svg))


def test_texts_are_escaped_and_the_source_is_named() -> None:
    ways = ("tfrecord read", "parquet read", "tf.data parse", "tfrecord write", "parquet write")
    svg = plots.plots(of_tfrecord(*ways))["tfrecord.svg"]
    assert "40 <scalars>, read" in texts(svg)
    assert texts(svg)[-1].startswith("benchmarks/tfrecord.py, 2026-01-02, 2 CPUs, x86_64.")


def test_a_figure_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"have no figure 'A tf\.data parse'"):
        plots.plots(of_tfrecord("tfrecord read", "parquet read"))
    with pytest.raises(ValueError, match="have no job 'read'"):
        plots.plots(line for line in of_peers(tfspark=1.0) if line.get("job") != "read")
    with pytest.raises(ValueError, match="have 1 sizes of 'coordinator'"):
        plots.plots(of_scale({32: 0.1}))
    with pytest.raises(ValueError, match="have no figure 'surroundings'"):
        plots.plots(of_peers(tfspark=1.0)[1:])


def test_tables_between_the_lines_are_not_read_and_no_lines_draw_nothing() -> None:
    lines = of_scale({32: 0.1, 64: 0.2})
    text = "       nodes        cores\n" + "\n".join(map(json.dumps, lines))
    assert plots.read([text]) == lines
    assert plots.plots([]) == {}


@pytest.mark.parametrize(
    ("longest", "expected"),
    [(0.39, [0, 0.1, 0.2, 0.3]), (173_000, [0, 50_000, 100_000, 150_000]), (1.0, [0, 0.5, 1.0])],
)
def test_ticks_are_round(longest: float, expected: list[float]) -> None:
    assert plots.ticks(longest) == pytest.approx(expected)
