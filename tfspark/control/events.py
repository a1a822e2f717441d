"""Events and instructions of a cluster's state machine (`lifecycle.py`)."""

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
    """A node's process listens on its ports."""

    address: NodeAddress


@dataclass(frozen=True)
class NodeEntered:
    """A node is about to call ``main``."""

    node: NodeId


@dataclass(frozen=True)
class Seen:
    """The supervising task of a node is alive; `stopped` is true if a signal or a debugger holds the node's process."""

    node: NodeId
    stopped: bool = False


@dataclass(frozen=True)
class Pulse:
    """A node's own process is alive; `waiting` is the number of seconds that its dataset has waited for rows.

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
    """A node's process has ended."""

    node: NodeId
    code: int
    log_tail: tuple[str, ...] = ()
    stopped_by_us: bool = False
    out_of_memory: bool = False


@dataclass(frozen=True)
class JobEnded:
    """The Spark job that holds the nodes has ended.

    If it failed, ``error`` is the reason, and ``blamed`` the node whose task caused the failure, if Spark names it.
    """

    error: str | None = None
    blamed: NodeId | None = None


@dataclass(frozen=True)
class DriverCutOff:
    """The tunnel by which nodes reach the driver has ended, for `reason`."""

    reason: str


@dataclass(frozen=True)
class StopAsked:
    """The user or the program wants the cluster to stop."""

    reason: str
    grace: float | None = None


@dataclass(frozen=True)
class Tick:
    """Time has passed; deadlines are checked."""


Event = (
    TaskAttached | NodeRegistered | NodeEntered | Seen | Pulse | NodeFinished | NodeRaised | NodeExited
    | JobEnded | DriverCutOff | StopAsked | Tick
)  # fmt: skip


# --- instructions


@dataclass(frozen=True)
class PublishSpec:
    """Send the addresses of all nodes to every node."""


@dataclass(frozen=True)
class PublishTrainingEnded:
    """Tell the evaluator that training has ended, so that the newest checkpoint is the last one."""


@dataclass(frozen=True)
class PublishRelease:
    """Tell every node that all have finished."""


@dataclass(frozen=True)
class PublishStop:
    """Tell every node to stop, and every supervising task to kill its node after `grace` seconds."""

    grace: float
    reason: str


@dataclass(frozen=True)
class WarnOfStall:
    """Warn the user that a node has waited for rows for `seconds`."""

    node: NodeId
    seconds: float


@dataclass(frozen=True)
class WarnOfSilence:
    """Warn the user that a supervising task has been silent for `seconds`, although its node's process answers."""

    node: NodeId
    seconds: float


@dataclass(frozen=True)
class PublishLoss:
    """A lost node is started again while the others continue: drop the records of its rows in the ledgers."""

    node: NodeId
    reason: str


@dataclass(frozen=True)
class PublishRejoined:
    """Tell every node that a lost node has come back."""

    node: NodeId


@dataclass(frozen=True)
class CancelJob:
    """Cancel the Spark job."""


@dataclass(frozen=True)
class Conclude:
    """The cluster has succeeded or, with `error`, failed: wake all threads that wait for this."""

    error: TFSparkError | None


Instruction = (
    PublishSpec | PublishTrainingEnded | PublishRelease | PublishStop | WarnOfStall | WarnOfSilence | PublishLoss
    | PublishRejoined | CancelJob | Conclude
)  # fmt: skip
