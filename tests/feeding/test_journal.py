"""Which epochs of which feed come again after a restart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tfspark.control.recovery import worth_a_restart
from tfspark.errors import ClusterError, ClusterStopped, FeedError, NodeFailed, SchemaError, StartTimeout
from tfspark.feeding.journal import FeedEntry, Journal
from tfspark.feeding.terms import FeedTerms

pytestmark = pytest.mark.unit


def entry(epochs: int, name: str = "") -> FeedEntry:
    source: Any = None
    return FeedEntry(source, FeedTerms((), epochs, epochs_to_come=epochs, name=name))


def test_epochs_are_counted_over_all_feeds() -> None:
    journal = Journal(keep=True)
    first, named, second = journal.open(entry(2)), journal.open(entry(1, "validation")), journal.open(entry(3))
    assert [e.terms.number for e in (first, named, second)] == [0, 1, 2]
    assert (first.terms.base, second.terms.base) == (0, 2)
    for completed, expected in [(0, (0, 0)), (1, (1, 0)), (2, (2, 0)), (4, (2, 2)), (5, (2, 3)), (9, (2, 3))]:
        assert (first.epochs_in(completed), second.epochs_in(completed)) == expected
        assert named.epochs_in(completed) == 0, "rows with a name stand beside the epochs, and always come again"
    streamed = replace(second, streamed=True)
    assert streamed.epochs_in(5) == 0, "what a stream gives it has not given before"
    again = second.terms.announcement(2)
    assert again.first_epoch == 2 and again.epochs == 3 and again.epochs_to_come == 1


def test_only_what_was_delivered_comes_again_and_only_if_asked() -> None:
    for keep in (True, False):
        journal = Journal(keep)
        first, _ = journal.open(entry(1)), journal.open(entry(1))
        journal.keep(first)
        assert journal.entries == ([first] if keep else [])


def test_batches_of_a_stream_are_not_kept() -> None:
    journal = Journal(keep=True)
    kept = journal.open(entry(1))
    journal.keep(kept)
    for _ in range(100):
        journal.keep(journal.open(replace(entry(1), streamed=True)))
    assert journal.entries == [kept]


def test_what_a_restart_can_help() -> None:
    failed = ("worker", 0, "host", "reason")
    assert worth_a_restart(NodeFailed(*failed)) and worth_a_restart(ClusterError("the job was lost"))
    for error in (
        NodeFailed(*failed, final=True),
        ClusterStopped("stopped"),
        StartTimeout("late"),
        FeedError("no rows"),
        SchemaError("null"),
    ):
        assert not worth_a_restart(error)
