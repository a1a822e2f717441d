"""TensorBoard, the live page and its metrics: what they show, to whom, and that they go with the cluster."""

from __future__ import annotations

import json
import logging
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import chromium
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import tfspark
from tfspark.control.node_history import EndedEpoch, InputTimes
from tfspark.errors import ConfigurationError, NodeFailed
from tfspark.feeding.report import FeedReport
from tfspark.monitoring.bottleneck import Bottleneck
from tfspark.monitoring.page import RunView, report_page
from tfspark.monitoring.progress import rendered
from tfspark.monitoring.status import NodeStatus, Snapshot
from tfspark.monitoring.tensorboard import TensorBoard
from tfspark.monitoring.web import MOST_CONNECTIONS, WebServer

SECONDS = 100.0

HOSTILE = "</pre><script>document.title='taken'</script>"


def seen(browser: Any, *words: str) -> str:
    """Wait until the page shows all of the words; returns its text."""

    def shown(_: Any) -> str:
        text = str(browser.execute_script("return document.body.innerText"))
        return text if all(w in text for w in words) else ""

    return WebDriverWait(browser, SECONDS).until(shown)


WITHIN_ELEMENTS = """
const texts = [];
(function walk(root) {
  for (const e of root.querySelectorAll("*")) {
    if (e.shadowRoot) walk(e.shadowRoot);
    if (!e.children.length) texts.push(e.textContent);
  }
})(document);
return texts.join(" ");
"""
"""Returns all text of a page, also of elements that hide what they are made of."""


def fetch(url: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=SECONDS) as answer:
        return str(answer.read().decode())


def answer_to(url: str, **headers: str) -> int:
    """Return the status of an answer that is not a success."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        fetch(url, **headers)
    return caught.value.code


def metrics_of(page: str) -> dict[str, Metric]:
    return {f.name: f for f in text_string_to_metric_families(fetch(page + "metrics"))}


def rows_read(page: str) -> float:
    return sum(s.value for s in metrics_of(page)["tfspark_rows_read"].samples)


TAGS = {"spark/rows_fed", "spark/waiting_seconds", "spark/step_seconds", "reported/loss"}


def has_tags(board: str, expected: dict[str, set[str]]) -> bool:
    """Tell whether TensorBoard has found these tags in these runs."""
    runs = json.loads(fetch(board + "data/plugin/scalars/tags"))
    return all(tags <= set(runs.get(run, ())) for run, tags in expected.items())


def train(args: Any, ctx: Any) -> Any:
    """Fit a model, then wait for the driver to have looked at it."""
    import keras

    with ctx.strategy().scope():
        x = keras.Input((1,), name="x")
        model = keras.Model({"x": x}, keras.layers.Dense(1)(keras.layers.Dense(8, activation="relu")(x)))
        model.compile("adam", "mse")
    history = ctx.fit(model, batch_size=32, label="y")
    print("fitted", HOSTILE, flush=True)
    while ctx._link.spool.wait_for_feed() is not None:
        for _ in ctx.dataset(64):
            pass
    return {"log_dir": ctx.log_dir, "loss": history["loss"]}


def test_a_cluster_can_be_watched_by_tensorboard_and_page_and_takes_them_along(
    spark: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    df = spark.range(0, 4000, 1, 4).selectExpr("array(cast(id / 4000 as float)) x", "cast(id / 2000 as float) y")
    log_dir = tmp_path / "logs"
    options: dict[str, Any] = {"tensorboard": True, "log_dir": str(log_dir), "profile": (3, 5), "ui": True}
    caplog.set_level(logging.INFO, "tfspark")
    with chromium() as browser, tfspark.Cluster(spark, train, workers=2, **options) as cluster:
        board, page = cluster.tensorboard_url, cluster.ui_url
        assert board is not None and page is not None
        for told in (repr(cluster), repr(cluster.status()), caplog.text):
            assert board in told and page in told
        cluster.feed(df, epochs=3, shapes={"x": 1})

        browser.get(page)
        text = seen(browser, "worker 0", "worker 1", "fitted", "loss")
        assert "running" in text and "TensorBoard" in text
        assert browser.title.startswith("tfspark-tests: "), "what a node prints does not run in the page"
        assert "epoch 3 of 3" in seen(browser, "epoch 3 of 3") and page not in browser.page_source
        assert browser.find_elements(By.CSS_SELECTOR, "svg polyline")

        # Nodes say with their next heartbeat how much they have read.
        WebDriverWait(page, SECONDS).until(lambda url: rows_read(url) >= 3 * 4000)
        metrics = metrics_of(page)
        assert {s.labels["name"] for s in metrics["tfspark_reported"].samples} == {"epoch", "loss"}
        (states,) = metrics["tfspark_nodes"].samples
        assert (states.labels["state"], states.value) == ("running", 2.0)
        status = json.loads(fetch(page + "status.json"))
        assert [n["role"] for n in status["nodes"]] == ["worker", "worker"]

        # Its page does not load again by itself what comes later.
        expected = {"train": {"epoch_loss"}, **{f"spark/worker-{i}": TAGS for i in range(2)}}
        WebDriverWait(board, SECONDS).until(lambda b: has_tags(b, expected))
        # Charts are drawn as far as they are in sight.
        browser.set_window_size(1600, 4000)
        browser.get(f"{board}?tagFilter=epoch_loss|reported.loss|rows_fed|waiting_seconds|step_seconds#timeseries")
        seen(browser, "epoch_loss", "/rows_fed", "/waiting_seconds", "/step_seconds", "/loss")
        seen(browser, "train", "spark/worker-0", "spark/worker-1")
        fed = f"{board}data/plugin/scalars/scalars?run=spark%2Fworker-1&tag=spark%2Frows_fed"
        rows = cluster.feed_reports[0].rows_by_worker["worker", 1]
        WebDriverWait(fed, SECONDS).until(lambda url: json.loads(fetch(url))[-1][2] == rows)
        browser.get(f"{board}#graphs")
        WebDriverWait(browser, SECONDS).until(lambda b: "Main Graph" in str(b.execute_script(WITHIN_ELEMENTS)))
        assert answer_to(board.replace(board.split("/")[3], "guessed")) == 404
        pid = cluster._watching._board.pid  # type: ignore[union-attr]
        assert os.path.exists(f"/proc/{pid}")
        assert board.split("/")[3] not in Path(f"/proc/{pid}/cmdline").read_text()
    assert not os.path.exists(f"/proc/{pid}")
    assert cluster.tensorboard_url is None and cluster.ui_url is None
    for url in (board, page):
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(url, timeout=5)
    assert cluster.results["worker", 1]["log_dir"] == str(log_dir)
    assert marked_steps(log_dir) == [3, 4, 5]
    report = (log_dir / "report.html").read_text()
    assert "finished" in report and "<polyline" in report and page not in report and "<h2>Feeds</h2>" in report


def compute(args: Any, ctx: Any) -> None:
    import tensorflow as tf

    tf.debugging.check_numerics(tf.constant([1.0]) / tf.constant([2.0]), "fine")
    raise ValueError("after the operations")


def test_the_debuggers_dumps_are_written_although_main_fails(spark: Any, tmp_path: Path) -> None:
    from tensorflow.python.debug.lib.debug_events_reader import DebugDataReader

    with pytest.raises(tfspark.errors.NodeFailed):
        tfspark.run(spark, compute, workers=1, log_dir=str(tmp_path), debug_dumps=True)
    with DebugDataReader(str(tmp_path)) as reader:
        reader.update()
        assert "RealDiv" in {e.op_type for e in reader.executions()}
    board = TensorBoard(str(tmp_path), "127.0.0.1", "127.0.0.1", "secret", with_tensorflow=True)
    try:
        url = board.url()
        assert url is not None
        with chromium() as browser:
            browser.set_window_size(1600, 1000)
            browser.get(f"{url}#debugger-v2")
            seen(browser, "RealDiv", "FULL_HEALTH")
    finally:
        board.close()


def test_a_second_set_of_dumps_does_not_hide_the_first(tmp_path: Path) -> None:
    from tfspark.node.debugging import _dump_root

    root = str(tmp_path)
    assert _dump_root(root, "worker-0", True, 0) == root
    assert _dump_root(root, "worker-1", False, 0) == str(tmp_path / "debug" / "worker-1")
    (tmp_path / "tfdbg_events.1.metadata").touch()
    assert _dump_root(root, "worker-0", True, 1) == str(tmp_path / "debug" / "worker-0-restart-1")


def marked_steps(log_dir: Path) -> list[int]:
    """Return the numbers of the steps that a profile has marked, as XProf finds them."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    (file,) = log_dir.glob("plugins/profile/*/*.xplane.pb")
    space = xplane_pb2.XSpace.FromString(file.read_bytes())
    found = []
    for plane in space.planes:
        names = {i: m.name for i, m in plane.event_metadata.items()}
        stats = {i: m.name for i, m in plane.stat_metadata.items()}
        for event in (e for line in plane.lines for e in line.events if names[e.metadata_id] == "train"):
            found += [s.int64_value or s.uint64_value for s in event.stats if stats[s.metadata_id] == "step_num"]
    return sorted(set(found))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tensorboard": True}, "needs a log_dir"),
        ({"log_dir": "s3://bucket/logs"}, "local or mounted"),
        ({"report": "/tmp"}, "must be a file"),
        ({"report": "s3://bucket/report.html"}, "report must be a local or mounted path"),
        ({"log_dir": "/tmp/x", "profile": (1, 5)}, "first and the last step"),
        ({"log_dir": "/tmp/x", "profile": (5, 4)}, "first and the last step"),
        ({"log_dir": "/tmp/x", "debug_dumps": "ALL"}, "FULL_HEALTH"),
    ],
)
def test_options_that_cannot_work_are_refused(spark: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        tfspark.Cluster(spark, train, workers=1, **options)


OWNER = """
import sys
from tfspark.monitoring.tensorboard import TensorBoard
board = TensorBoard(sys.argv[1], "127.0.0.1", "127.0.0.1", "secret")
print(board.url(), board.pid, "tensorflow" in sys.modules, flush=True)
sys.stdin.read()
"""


def test_tensorboard_dies_with_an_owner_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        url, pid, with_tensorflow = owner.stdout.readline().split()
        assert url.endswith("/secret/") and with_tensorflow == "False"
        watched = os.pidfd_open(int(pid))
        owner.send_signal(signal.SIGKILL)
    with selectors.DefaultSelector() as selector:
        selector.register(watched, selectors.EVENT_READ)
        assert selector.select(SECONDS), "TensorBoard goes on without its owner"
    os.close(watched)


def test_a_tensorboard_that_cannot_start_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    board = TensorBoard(str(tmp_path), "203.0.113.1", "203.0.113.1", "secret")
    try:
        assert board.url() is None
    finally:
        board.close()
    assert "training continues without it" in caplog.text and "Cannot assign requested address" in caplog.text


SNAPSHOT = Snapshot(
    "feeding",
    10.0,
    [
        NodeStatus("worker", 0, "host-a", "running", 1, 500, 7, {"loss": 0.25}, ("0", "1"), 400, 40.0, 0.5,
                   InputTimes(9.0, 1.0), Bottleneck.FEED, "input-bound: waited for Spark's rows 90% of the time"),
        NodeStatus("worker", 1, HOSTILE, "failed", 2, 0, 0, {"nan": float("nan")}),
    ],
    rows=500,
    bytes=5_000_000,
    lines=[HOSTILE],
    error="worker 1 failed",
)  # fmt: skip


VIEW = RunView(
    replace(SNAPSHOT, links={"Spark UI": "http://spark:4040"}),
    application=f"flights {HOSTILE}",
    application_id="app-1",
    cluster="tfspark-1",
    began="2026-01-02 03:04:05 UTC",
    configuration={"workers": "2", "strategy": HOSTILE},
)


@pytest.fixture
def server() -> Iterator[WebServer]:
    server = WebServer("127.0.0.1", "127.0.0.1", "right", lambda: VIEW, "name")
    yield server
    server.close()


@pytest.mark.unit
def test_the_page_answers_only_those_who_know_its_token(server: WebServer) -> None:
    root = server.url.removesuffix("right/")
    assert "input-bound" in fetch(server.url + "view")
    assert "tfspark_nodes" in fetch(root + "metrics", Authorization="Bearer right")
    for url in (root, root + "metrics", root + "wrong/metrics", root + "right", root + "right/../view"):
        assert answer_to(url) == 404
    assert answer_to(root + "metrics", Authorization="Bearer wrong") == 404
    assert answer_to(root + "metrics", Authorization="Bearer \xff") == 404
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(server.url, data=b"x")


@pytest.mark.unit
def test_the_page_takes_only_so_many_connections_at_a_time(server: WebServer) -> None:
    port = int(re.findall(r":(\d+)/", server.url)[0])
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(MOST_CONNECTIONS)]
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as one_more:
            assert one_more.recv(1) == b""
    finally:
        for connection in held:
            connection.close()


@pytest.mark.unit
def test_what_nodes_say_is_shown_as_text(server: WebServer) -> None:
    view = fetch(server.url + "view")
    assert "<script>" not in view and "&lt;script&gt;" in view
    assert "worker 0 is input-bound: waited for Spark&#x27;s rows 90% of the time" in view
    assert json.loads(fetch(server.url + "status.json"))["nodes"][1]["metrics"] == {"nan": None}


@pytest.mark.unit
def test_the_page_says_what_matters_first_and_links_to_others_only(server: WebServer) -> None:
    view = fetch(server.url + "view")
    for words in ("tfspark-1", "app-1", "2026-01-02 03:04:05 UTC", "http://spark:4040", "<td", "strategy"):
        assert words in view
    places = [view.index(words) for words in ("<h1>", "worker 1 failed", "500</b>", "<table")]
    assert places == sorted(places) and server.url not in view
    page = fetch(server.url)
    assert "width=device-width" in page and "prefers-color-scheme:dark" in page
    assert "<title>flights &lt;/pre&gt;" in page and "<script>" not in page


EPOCHS = tuple(EndedEpoch(n, 3, 10.0 * n, {"loss": 1 / n, "auc": 0.5}) for n in (1, 2))


@pytest.mark.unit
def test_a_report_has_all_of_a_run_in_one_file() -> None:
    nodes = [replace(SNAPSHOT.nodes[0], epoch=2, epochs=3)]
    curves = {"loss by epoch": {"worker 0": [(1, 1.0), (2, 0.5)]}}
    ended = replace(SNAPSHOT, phase="failed", nodes=nodes, curves=curves, ended_epochs=EPOCHS)
    feeds = [FeedReport(1000 * n, 4_000_000, 2.0, {("worker", 0): 1000 * n}, 3) for n in range(1, 31)]
    report = report_page(replace(VIEW, snapshot=ended, feeds=feeds, restarts=["worker 0 on host-a failed: lost"]))
    for words in (
        ": failed</title>",
        "epoch 2 of 3",
        "<b>0.5</b><span>loss</span>",
        "<polyline",
        "worker 1 failed",
        "30,000",
        "The last 20 of 30 feeds.",
        "worker 0 on host-a failed: lost",
        "&lt;script&gt;",
    ):
        assert words in report, words
    assert "<script" not in report and "src=" not in report and "worker 0: 10,000" not in report


def fail_in_the_second_epoch(args: Any, ctx: Any) -> None:
    for epoch in ctx.epochs():
        rows = sum(len(batch["id"]) for batch in ctx.dataset(100))
        ctx.report(epoch + 1, rows=rows, flush=True)
        if epoch == 1:
            raise ValueError("no more")


def test_a_report_is_kept_of_a_cluster_that_fails(spark: Any, tmp_path: Path) -> None:
    report = tmp_path / "reports" / "run.html"
    options: dict[str, Any] = {"workers": 1, "report": report, "env": {"SECRET": "do-not-show"}, "max_restarts": 1}
    with pytest.raises(NodeFailed, match="no more"), tfspark.Cluster(spark, fail_in_the_second_epoch, **options) as c:
        c.feed(spark.range(0, 1000, 1, 2), epochs=3)
    written = report.read_text()
    assert "do-not-show" not in written and "SECRET" in written and os.listdir(report.parent) == ["run.html"]
    with chromium() as browser:
        browser.get(report.as_uri())
        text = seen(browser, "tfspark-tests", "failed", "ValueError: no more", "Restarts", "1,000")
        assert browser.title == "tfspark-tests: failed" and "worker 0" in text
        browser.set_window_size(400, 900)
        wide = browser.execute_script("return document.documentElement.scrollWidth > innerWidth")
        assert not wide, "the page is wider than a narrow screen"


@pytest.mark.unit
def test_the_terminal_shows_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    Console(width=160, force_terminal=False).print(rendered(SNAPSHOT))
    shown = capsys.readouterr().out
    for words in (
        "feeding · 10.0 s · 500 rows, 50 rows/s",
        "90% waiting",
        "loss 0.25 step 7",
        "40 rows/s",
        "input-bound",
    ):
        assert words in shown
    assert SNAPSHOT.line().startswith("feeding: 500 rows (worker 0 500), 50 rows/s, 0.5 MB/s; worker 0 step 7: loss")
