"""Assignment and commit of partitions."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfspark.feeding.ledger import FeedLedger, Target
from tfspark.spec import NodeId

pytestmark = pytest.mark.unit

A, B, C = (NodeId("worker", i) for i in range(3))


def test_the_first_whole_upload_counts_and_all_others_come_late() -> None:
    ledger = FeedLedger([Target(A, "h1"), Target(B, "h2")])
    ledger.assign(0, "first", "h1")
    ledger.assign(0, "twin", "h2")
    assert ledger.commit(0, "twin", B, 10, 100)
    assert not ledger.commit(0, "first", A, 10, 100)
    assert ledger.commit(0, "twin", B, 10, 100), "asking again must give the same answer"
    assert ledger.rows == {A: 0, B: 10}


def test_a_committed_partition_is_not_assigned_again() -> None:
    ledger = FeedLedger([Target(A, "h1")])
    ledger.assign(3, "u", "h1")
    ledger.commit(3, "u", A, 1, 1)
    assert ledger.assign(3, "retry", "h1") is None


def test_an_assignment_that_is_asked_for_twice_changes_nothing() -> None:
    ledger = FeedLedger([Target(A, "h1"), Target(B, "h2")])
    first = ledger.assign(0, "u0", "h1")
    assert ledger.assign(0, "u0", "h1") == first == A
    assert ledger.assign(1, "u1", "h1") == B, "the first partition is on its way once"
    assert ledger.commit(0, "u0", A, 5, 50)
    assert ledger.assign(0, "twin", "h1", attempt=1) is ledger.assign(0, "twin", "h1", attempt=1) is None
    assert not ledger.recomputed, "the twin is the same attempt both times"
    assert ledger.assign(0, "again", "h1", attempt=1) is None
    assert ledger.recomputed


def test_a_worker_on_the_same_host_is_preferred_while_balance_allows() -> None:
    ledger = FeedLedger([Target(A, "h1"), Target(B, "h2")])
    assert ledger.assign(0, "u0", "h2") == B
    ledger.commit(0, "u0", B, 100, 1)
    assert ledger.assign(1, "u1", "h2") == A, "one partition ahead is enough"


def test_rows_per_worker_stay_within_five_percent_for_small_partitions() -> None:
    rng = random.Random(7)
    ledger = FeedLedger([Target(A, "h1"), Target(B, "h1"), Target(C, "h2")])
    running: list[tuple[int, str, NodeId]] = []
    for p in range(600):
        node = ledger.assign(p, f"u{p}", rng.choice(["h1", "h2"]))
        assert node is not None
        running.append((p, f"u{p}", node))
        if len(running) == 4:
            done = running.pop(rng.randrange(4))
            ledger.commit(*done, rows=rng.randint(50, 150), nbytes=1)
    for done in running:
        ledger.commit(*done, rows=100, nbytes=1)
    rows = ledger.rows.values()
    assert max(rows) <= 1.05 * min(rows)


def test_what_a_lost_worker_held_has_to_come_again() -> None:
    ledger = FeedLedger([Target(A, "h1"), Target(B, "h2")])
    for p in range(4):
        node = ledger.assign(p, f"u{p}", "elsewhere")
        assert node is not None and ledger.commit(p, f"u{p}", node, 10, 100)
    first, second = A, B
    lost = list(ledger.partitions_of(first))
    ledger.forget(first)
    assert sorted(ledger.missing) == lost and ledger.rows[first] == 0
    assert ledger.assign(lost[0], "again", "elsewhere", away={first}) == second
    assert ledger.commit(lost[0], "again", second, 10, 100) and lost[0] not in ledger.missing
    ledger.end()
    assert ledger.assign(lost[1], "later", "elsewhere", away={first}) == first
    assert ledger.commit(lost[1], "later", first, 10, 100) and not ledger.missing


def test_the_late_word_of_a_lost_worker_does_not_count() -> None:
    ledger = FeedLedger([Target(A, "h1"), Target(B, "h2")])
    assert ledger.assign(0, "first", "h1") == A
    ledger.forget(A)
    assert not ledger.commit(0, "first", A, 10, 100) and not ledger.committed
    assert ledger.assign(0, "again", "h1", away={A}) == B
    assert ledger.commit(0, "again", B, 10, 100)
    assert not ledger.commit(0, "first", A, 10, 100) and ledger.rows == {A: 0, B: 10}


def test_an_upload_that_broke_off_weighs_until_its_partition_has_come() -> None:
    ledger = FeedLedger([Target(A, "h1"), Target(B, "h2")])
    assert ledger.assign(0, "broken", "h1") == A
    assert ledger.assign(0, "again", "h1") == B, "the broken one is still taken to be under way"
    assert ledger.commit(0, "again", B, 10, 100)
    assert ledger.assign(1, "u1", "h2") == A
    assert ledger.commit(1, "u1", A, 10, 100)
    assert ledger.assign(2, "u2", "h1") == A, "both have as much, and it is on this host"
    assert "on their way" not in ledger.describe(B)


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("ACF"), st.integers(0, 3)), max_size=80), st.booleans())
def test_kept_sums_are_those_of_books_that_are_added_up_each_time(
    steps: list[tuple[int, str, int]], fixed: bool
) -> None:
    nodes = (A, B, C)
    ledger = FeedLedger([Target(n, f"h{n.index % 2}") for n in nodes], seed=3 if fixed else None)
    committed: dict[int, tuple[NodeId, int]] = {}
    under_way: dict[str, tuple[int, NodeId]] = {}
    missing: dict[int, NodeId] = {}
    for number, (partition, what, choice) in enumerate(steps):
        if what == "A":
            node = ledger.assign(partition, f"u{number}", f"h{choice % 2}", choice)
            assert (node is None) == (partition in committed)
            if node is not None:
                under_way[f"u{number}"] = (partition, node)
        elif what == "C" and under_way:
            upload = sorted(under_way)[choice % len(under_way)]
            partition, node = under_way.pop(upload)
            counts = ledger.commit(partition, upload, node, 10 + number, 100)
            assert counts == (partition not in committed)
            assert ledger.commit(partition, upload, node, 10 + number, 100) == counts
            if counts:
                committed[partition] = (node, 10 + number)
                missing.pop(partition, None)
        elif what == "F":
            lost = nodes[choice % 3]
            ledger.forget(lost)
            missing |= {p: n for p, (n, _) in committed.items() if n == lost}
            committed = {p: c for p, c in committed.items() if c[0] != lost}
            under_way = {u: w for u, w in under_way.items() if w[1] != lost}
        rows = {n: sum(r for m, r in committed.values() if m == n) for n in nodes}
        assert ledger.rows == rows and ledger.committed == len(committed) and ledger.nbytes == 100 * len(committed)
        assert ledger.missing == missing
        for n in nodes:
            assert list(ledger.partitions_of(n)) == sorted(p for p, c in committed.items() if c[0] == n)


def test_partitions_far_apart_take_no_room_between_them() -> None:
    ledger = FeedLedger([Target(A, "h1")])
    for p in (0, 1 << 31, (1 << 40) + 5):
        assert ledger.assign(p, f"u{p}", "h1") == A and ledger.commit(p, f"u{p}", A, 1, 1)
    assert list(ledger.partitions_of(A)) == [0, 1 << 31, (1 << 40) + 5] and len(ledger._pages) == 3
