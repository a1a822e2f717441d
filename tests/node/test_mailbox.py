"""Reports on their way to a driver that answers, stands still or refuses."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pyarrow.flight as flight
import pytest

from tfspark.messages import Report
from tfspark.node.mailbox import KEPT_REPORTS, Mailbox
from tfspark.spec import NodeId

pytestmark = pytest.mark.unit


def report(step: int) -> Report:
    return Report(NodeId("worker", 0), step)


class Driver:
    """Takes reports; does not answer while it is stopped."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.tries = threading.Semaphore(0)
        self.stopped = False
        self.refused: set[int] = set()

    def take(self, message: Report) -> None:
        self.tries.release()
        if self.stopped:
            raise flight.FlightTimedOutError("stopped")
        if message.step in self.refused:
            raise flight.FlightServerError("no")
        self.steps.append(message.step)


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def mailbox(driver: Driver) -> Iterator[Mailbox]:
    made = Mailbox(driver.take)
    yield made
    made.close()


def test_of_reports_that_wait_the_newest_is_sent(mailbox: Mailbox, driver: Driver) -> None:
    driver.stopped = True
    for step in range(1000):
        mailbox.put(report(step), keep=False)
    assert driver.tries.acquire(timeout=10)
    assert not mailbox.drain(0.1)
    driver.stopped = False
    assert mailbox.drain(10)
    assert driver.steps == [999]


def test_kept_reports_are_sent_in_order_and_are_bounded(mailbox: Mailbox, driver: Driver) -> None:
    driver.stopped = True
    for step in range(KEPT_REPORTS + 50):
        mailbox.put(report(step), keep=step % 2 == 0)
    for step in range(1000, 1000 + 2 * KEPT_REPORTS):
        mailbox.put(report(step), keep=True)
    driver.stopped = False
    assert mailbox.drain(10)
    assert driver.steps == list(range(1000 + KEPT_REPORTS, 1000 + 2 * KEPT_REPORTS))


def test_a_report_that_the_driver_refuses_does_not_hold_back_others(mailbox: Mailbox, driver: Driver) -> None:
    driver.refused = {1}
    for step in range(3):
        mailbox.put(report(step), keep=True)
    assert mailbox.drain(10)
    assert driver.steps == [0, 2]
