"""What happens to a cluster, and what is to be done: events and instructions of its state machine (`lifecycle.py`)."""

from __future__ import annotations

from dataclasses import dataclass

from tfspark.errors import TFSparkError
from tfspark.spec import NodeAddress, NodeId


@dataclass(frozen=True)
class TaskAttached:
    """A supervising Spark task has started."""

    node: NodeId
    host: str
    attempt: int
    stage: int = -1


@dataclass(frozen=True)
class NodeRegistered:
    """A node's process listens."""

    address: NodeAddress


@dataclass(frozen=True)
class NodeEntered:
    """A node calls ``main``."""

    node: NodeId


@dataclass(frozen=True)
class Seen:
    """A sign of life of a node's supervising task, which sees whether the process is held by a signal."""

    node: NodeId
    stopped: bool = False


@dataclass(frozen=True)
class Pulse:
    """A sign of life of a node's own process, and how long its dataset has waited for rows.

    `step_seconds`, `busy` and `stack` are those of `tfspark.messages.Pulse`.
    """

    node: NodeId
    waiting: float
    step_seconds: float = 0.0
    busy: bool = False
    stack: str = ""


@dataclass(frozen=True)
class NodeFinished:
    """``main`` returned and its result has arrived."""

    node: NodeId


@dataclass(frozen=True)
class NodeRaised:
    """``main`` raised."""

    node: NodeId
    reason: str
    traceback: str
    hint: str = ""
    final: bool = False


@dataclass(frozen=True)
class NodeExited:
    """A node's process is gone."""

    node: NodeId
    code: int
    log_tail: tuple[str, ...] = ()
    stopped_by_us: bool = False
    out_of_memory: bool = False


@dataclass(frozen=True)
class JobEnded:
    """The Spark job that holds the nodes has ended.

    If it did not succeed, ``error`` says why, and ``blamed`` whose task was to blame, if Spark names one.
    """

    error: str | None = None
    blamed: NodeId | None = None


@dataclass(frozen=True)
class StopAsked:
    """Someone wants the cluster gone."""

    reason: str
    grace: float | None = None


@dataclass(frozen=True)
class Tick:
    """Time passes."""


Event = (
    TaskAttached | NodeRegistered | NodeEntered | Seen | Pulse | NodeFinished | NodeRaised | NodeExited
    | JobEnded | StopAsked | Tick
)  # fmt: skip


# --- instructions


@dataclass(frozen=True)
class PublishSpec:
    """Tell every node the addresses of all."""


@dataclass(frozen=True)
class PublishTrainingEnded:
    """Tell the evaluator that there is one checkpoint more to look at, and no other."""


@dataclass(frozen=True)
class PublishRelease:
    """Tell every node that all have finished."""


@dataclass(frozen=True)
class PublishStop:
    """Tell every node to stop, and every supervisor to kill after the grace."""

    grace: float
    reason: str


@dataclass(frozen=True)
class WarnOfStall:
    """Tell the user that a node waits for rows."""

    node: NodeId
    seconds: float


@dataclass(frozen=True)
class WarnOfSilence:
    """Tell the user that nothing is heard of the task that supervises a node whose process answers."""

    node: NodeId
    seconds: float


@dataclass(frozen=True)
class PublishLoss:
    """A node was lost that the others can do without for a while: forget what it held; it is started again."""

    node: NodeId
    reason: str


@dataclass(frozen=True)
class PublishRejoined:
    """Tell every node that one is back."""

    node: NodeId


@dataclass(frozen=True)
class CancelJob:
    """Cancel the Spark job."""


@dataclass(frozen=True)
class Conclude:
    """The fate of the cluster is known: wake everyone who waits for it."""

    error: TFSparkError | None


Instruction = (
    PublishSpec | PublishTrainingEnded | PublishRelease | PublishStop | WarnOfStall | WarnOfSilence | PublishLoss
    | PublishRejoined | CancelJob | Conclude
)  # fmt: skip
