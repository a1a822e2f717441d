"""Clusters in a notebook: the quickstart, and what an interrupted cell leaves behind. Real kernels run them."""

from __future__ import annotations

import os
import queue
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

QUICKSTART = Path(__file__).parents[2] / "jobs" / "notebooks" / "quickstart.ipynb"
SECONDS = 200


@pytest.fixture(autouse=True)
def own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels leave nothing in the home directory."""
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")


def html(cell: Any) -> list[str]:
    """Return what a cell shows as HTML; an output that was updated in place counts once."""
    return [o["data"]["text/html"] for o in cell["outputs"] if "text/html" in o.get("data", {})]


def printed(cell: Any) -> str:
    return "".join(o["text"] for o in cell["outputs"] if o["output_type"] == "stream")


def test_the_quickstart_runs_and_shows_progress_in_place_and_curves_inline() -> None:
    notebook = nbformat.read(QUICKSTART, 4)
    # Without Spark's UI there is one port less to find.
    session = next(c for c in notebook.cells if "tfspark.session" in c["source"])
    session["source"] = session["source"].replace("**{", '**{"spark.ui.enabled": "false", ')
    NotebookClient(notebook, timeout=SECONDS).execute()
    by_source = {c["source"]: c for c in notebook.cells if c["cell_type"] == "code"}
    training = next(c for s, c in by_source.items() if s.startswith("export_dir"))
    (progress,) = html(training)
    assert "tfspark · finished" in progress and "worker 1" in progress
    assert "feeding:" not in printed(training), "no log lines beside the table"
    (cluster,), (report,), (results,) = (html(by_source[s]) for s in ("cluster", "report", "cluster.results"))
    assert "tfspark · finished" in cluster and cluster.count(">finished<") == 2
    assert "<svg" in cluster and "loss" in cluster
    assert "rows/s" in report
    assert "<polyline" in results and "auc" in results
    (accuracy,) = [m[1] for c in by_source.values() if (m := re.search(r"held-out flights: ([\d.]+)%", printed(c)))]
    assert float(accuracy) > 80


def test_the_committed_quickstart_shows_what_its_cells_gave() -> None:
    """As `make notebook` leaves it; an editor or a hook that strips outputs would leave an empty page."""
    cells = [c for c in nbformat.read(QUICKSTART, 4).cells if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    by_source = {c["source"]: c for c in cells}
    (progress,) = html(next(c for s, c in by_source.items() if s.startswith("export_dir")))
    (results,) = html(by_source["cluster.results"])
    assert "tfspark · finished" in progress and "<polyline" in progress and "<polyline" in results
    assert any("Accuracy on held-out flights" in printed(c) for c in cells)
    assert not [o for c in cells for o in c["outputs"] if o.get("name") == "stderr" or o["output_type"] == "error"]


class Kernel:
    """A running kernel, told one cell at a time."""

    def __init__(self, directory: Path) -> None:
        self.manager, self.client = start_new_kernel(cwd=str(directory))

    def begin(self, code: str) -> str:
        return str(self.client.execute(code))

    def messages(self, cell: str) -> Iterator[dict[str, Any]]:
        """Follow what a cell says until it has ended."""
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=SECONDS)
            except queue.Empty:
                raise AssertionError("the kernel says nothing more") from None
            if message["parent_header"].get("msg_id") == cell:
                if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                    return
                yield message

    def run(self, code: str) -> str:
        """Run a cell; returns what it printed, or the name of the error it ended with."""
        text = ""
        for message in self.messages(self.begin(code)):
            if message["msg_type"] == "error":
                return str(message["content"]["ename"])
            text += message["content"].get("text", "")
        return text.strip()


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    kernel = Kernel(tmp_path)
    try:
        yield kernel
    finally:
        kernel.client.stop_channels()
        kernel.manager.shutdown_kernel()


SETUP = """
import os, threading
import tfspark
spark = tfspark.session("interrupt", "local[3]", **{"spark.ui.port": "0", "spark.log.level": "OFF"})
cluster = None
def main(args, ctx):
    with open(f"{args['directory']}/{ctx.index}", "w") as file:
        file.write(str(os.getpid()))
    while not ctx.stopping and args["wait"]:
        ctx._link.stopping.wait(1)
    return os.getpid()
"""

TRAIN = """
with tfspark.Cluster(spark, main, {"wait": wait, "directory": os.getcwd()}, workers=2) as cluster:
    pass
"""


LOOK = """
    from urllib.error import HTTPError
    from urllib.request import urlopen
    ui = spark.sparkContext.uiWebUrl

    def leads_to(path):
        try:
            return urlopen(f"{ui}/{path}").geturl()
        except HTTPError as e:
            return e.geturl()

    described = f'href="/{cluster._tag}"' in urlopen(f"{ui}/jobs/").read().decode()
    print(leads_to(cluster._tag) == cluster.ui_url, described, leads_to(removed).startswith(ui))
"""


@pytest.mark.long
def test_an_interrupted_cell_leaves_nothing_and_can_be_run_again(kernel: Kernel, tmp_path: Path) -> None:
    assert "Error" not in kernel.run(SETUP + "wait = True")
    cell = kernel.begin(TRAIN)
    seen: list[str] = []
    for message in kernel.messages(cell):
        if message["msg_type"] in ("display_data", "update_display_data"):
            seen.append(message["msg_type"])
            if message["content"]["data"]["text/html"].count(">running<") == 2:
                break
    assert seen.count("display_data") == 1 and "update_display_data" in seen
    pids = [int((tmp_path / str(i)).read_text()) for i in range(2)]
    assert all(os.path.exists(f"/proc/{p}") for p in pids)
    kernel.manager.interrupt_kernel()
    errors = [m["content"]["ename"] for m in kernel.messages(cell) if m["msg_type"] == "error"]
    assert errors == ["KeyboardInterrupt"]
    assert kernel.run("print(cluster)").startswith("Cluster(2 nodes, stopping")
    assert not [p for p in pids if os.path.exists(f"/proc/{p}")]
    threads = "print([t.name for t in threading.enumerate() if t.name.startswith('tfspark')])"
    assert kernel.run(threads) == "[]"
    assert kernel.run("wait = False") == ""
    assert kernel.run(TRAIN) == ""
    assert kernel.run("print(len(cluster.results))") == "2"
    # Spark's UI leads to a cluster's page as long as it lives.
    assert kernel.run("removed = cluster._tag") == ""
    assert kernel.run(TRAIN.replace("pass", LOOK)) == "True True True"
