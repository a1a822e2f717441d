"""Whether training waits for its input, told from where the time of the input goes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from tfspark.columns.spec import ColumnSpec
from tfspark.control.node_history import Curve, InputTimes, NodeHistory, Sample
from tfspark.monitoring.bottleneck import Bottleneck, bottleneck, describe
from tfspark.monitoring.chart import line_chart
from tfspark.node.input_clock import InputClock, InputState
from tfspark.node.spool import Feed, Spool


@pytest.mark.unit
@pytest.mark.parametrize(
    ("times", "verdict", "words"),
    [
        (InputTimes(), Bottleneck.UNKNOWN, ""),
        (InputTimes(waiting=0.9), Bottleneck.UNKNOWN, ""),
        (InputTimes(waiting=8, preparing=2, ahead=0), Bottleneck.FEED, "input-bound: waited for Spark's rows 80%"),
        (InputTimes(waiting=1, preparing=9, ahead=0.5), Bottleneck.INPUT, "input-bound: made rows into tensors 86%"),
        (InputTimes(waiting=0, preparing=1, ahead=9), Bottleneck.COMPUTE, "compute-bound: rows were ready 90%"),
        # An input that is ahead now and then keeps up.
        (InputTimes(waiting=5, preparing=4, ahead=1), Bottleneck.COMPUTE, "compute-bound"),
        (InputTimes(waiting=5, preparing=4.1, ahead=0.9), Bottleneck.FEED, "input-bound"),
    ],
)
def test_training_is_input_bound_unless_its_input_is_ahead_of_it(
    times: InputTimes, verdict: Bottleneck, words: str
) -> None:
    assert bottleneck(times) is verdict
    assert describe(times).startswith(words)


@pytest.mark.unit
def test_the_clock_of_an_input_adds_up_and_looking_at_it_changes_nothing() -> None:
    now = 0.0
    clock = InputClock(lambda: now)
    now = 1.0
    clock.enter(InputState.WAITING)
    now = 3.0
    assert clock.seconds[InputState.WAITING] == 2.0
    now = 4.0
    assert clock.waiting_seconds == 3.0
    clock.enter(InputState.AHEAD)
    now = 9.0
    assert clock.waiting_seconds == 0.0
    assert clock.seconds == {
        InputState.IDLE: 1.0, InputState.WAITING: 3.0, InputState.PREPARING: 0.0, InputState.AHEAD: 5.0
    }  # fmt: skip


def test_a_dataset_tells_waiting_for_rows_from_being_ahead_of_training(tmp_path: Path) -> None:
    from tfspark.node.chunks import DatasetTerms, read_chunks

    now = 0.0
    waits = threading.Event()

    class Clock(InputClock):
        def enter(self, state: InputState) -> None:
            super().enter(state)
            if state is InputState.WAITING:
                waits.set()

    spool, schema = Spool(str(tmp_path)), pa.schema([pa.field("x", pa.int64(), nullable=False)])
    spool.clock = Clock(lambda: now)
    columns = (ColumnSpec("x", "int64"),)
    spool.begin_feed(Feed(0, 1, columns, schema, seed=0))
    reader = spool.next_epoch()
    assert reader is not None
    terms = DatasetTerms(batch_size=10)
    chunks = read_chunks(reader, terms.layout(columns), terms)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, chunks)
        assert waits.wait(60)
        now = 7.0
        upload = spool.begin_upload(0)
        upload.write(pa.record_batch([pa.array(range(100))], schema=schema))
        spool.commit(upload, upload.seal())
        spool.end_feed(0, {"worker 0": 100})
        assert len(first.result(60)[0]) == 100
    now = 10.0
    assert list(chunks) == []
    now = 12.0
    reader.complete()
    now = 20.0
    assert spool.clock.seconds == {
        InputState.IDLE: 8.0, InputState.WAITING: 7.0, InputState.PREPARING: 0.0, InputState.AHEAD: 5.0
    }  # fmt: skip


@pytest.mark.unit
def test_rates_are_those_of_the_last_ten_seconds() -> None:
    monitor = NodeHistory()
    for t in range(31):
        slow = max(0, t - 20)
        monitor.pulse(Sample(float(t), 1000 * min(t, 20) + 10 * slow, 5 * min(t, 20) + slow, InputTimes(float(slow))))
    rates = monitor.rates
    assert (rates.rows_per_second, rates.step_seconds, rates.times) == (10.0, 1.0, InputTimes(10.0))
    assert monitor.latest.rows_read == 20_100


@pytest.mark.unit
def test_a_node_that_was_started_again_has_no_negative_rates() -> None:
    monitor = NodeHistory()
    for t, rows in enumerate((100, 200, 0, 50)):
        monitor.pulse(Sample(float(t), rows))
    assert monitor.rates.rows_per_second == 50.0


@pytest.mark.unit
def test_a_long_curve_is_thinned_out_and_keeps_its_ends() -> None:
    curve = Curve(most=10)
    for step in range(1000):
        curve.add(step, {"loss": 1.0 / (step + 1)})
    steps = [s for s, _ in curve.series("loss")]
    assert len(steps) <= 11 and steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, 999)
    assert curve.series("auc") == [] and curve.names == ["loss"]


@pytest.mark.unit
def test_a_chart_leaves_out_what_is_not_finite_and_escapes_names() -> None:
    svg = line_chart("<b>", {"worker 0 <script>": [(1, 2.0), (2, float("nan")), (3, 1.0)], "worker 1": [(1, 5.0)]})
    assert svg.count("<polyline") == 1 and svg.count("<circle") == 1
    assert "nan" not in svg and "<script>" not in svg and "<b>" not in svg
    assert line_chart("loss", {"worker 0": [(1, float("inf"))]}) == ""
