"""Assignment and commit of partitions."""

from __future__ import annotations

import random

import pytest

from tfspark.driver.ledger import FeedLedger, Target
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
    lost = sorted(p for p, c in ledger.committed.items() if c.node == first)
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
