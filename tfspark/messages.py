"""Every message that crosses a process boundary, written down as data.

A message is a frozen struct that travels as MessagePack, with its type checked when it is read: as the body of a Flight
action whose type is the class name, as its answer, or beside the rows of an upload. Both ends import this module.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from tfspark.columns.lengths import OtherLength
from tfspark.columns.spec import ColumnSpec
from tfspark.spec import NodeAddress, NodeId

PROTOCOL_VERSION = 5

M = TypeVar("M", bound="Message")

_encoder = msgspec.msgpack.Encoder()


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Base of all messages."""

    def encode(self) -> bytes:
        """Encode as MessagePack."""
        return _encoder.encode(self)

    @classmethod
    def decode(cls: type[M], body: bytes) -> M:
        """Decode a message of this type.

        Raises
        ------
        ValueError
            If `body` is not such a message: another type, an unknown or a missing field, a value of another type.
        """
        return msgspec.msgpack.decode(body, type=cls)


# --- from the Spark task that supervises a node to the coordinator


class Attach(Message, frozen=True):
    """A supervising task has started; ``attempt`` and ``stage`` are Spark's numbers of it."""

    node: NodeId
    attempt: int
    host: str
    stage: int = -1
    version: int = PROTOCOL_VERSION


class AttachAnswer(Message, frozen=True):
    """Whether the task is to start its node."""

    go: bool


class Heartbeat(Message, frozen=True):
    """The supervising task is alive; carries what the node printed since the last one.

    ``stopped`` says that the node's process is held by SIGSTOP or a debugger.
    """

    node: NodeId
    lines: list[str] = []
    rss_bytes: int = 0
    stopped: bool = False


class HeartbeatAnswer(Message, frozen=True):
    """What the supervising task is to do: stop the node within a grace, kill it now; and when to send the next one."""

    stop_grace: float | None
    kill: bool
    seconds: float


class Exited(Message, frozen=True):
    """The node's process ended. ``code`` is negative for a signal, as in `subprocess`.

    ``out_of_memory`` says that the kernel killed a process of its control group for want of memory meanwhile;
    ``process`` counts the processes that the task had started before, so that a message that comes twice is known.
    """

    node: NodeId
    code: int
    log_tail: list[str] = []
    stopped_by_us: bool = False
    out_of_memory: bool = False
    process: int = 0


class ExitedAnswer(Message, frozen=True):
    """TensorFlow's port of the process to start in its place, if there is to be one."""

    respawn_port: int | None


# --- from a node to the coordinator


class Register(Message, frozen=True):
    """A node's process listens and waits for the cluster spec."""

    address: NodeAddress


class Poll(Message, frozen=True):
    """Ask for events after ``since``; answered by `Events` when there are some or after ``seconds``."""

    node: NodeId
    since: int
    seconds: float


class Entered(Message, frozen=True):
    """The node is about to call ``main``. ``seconds`` says where start-up went."""

    node: NodeId
    seconds: dict[str, float] = {}


class ResultPart(Message, frozen=True):
    """The next bytes of what ``main`` returned, cloudpickled."""

    node: NodeId
    offset: int
    part: bytes


class Finished(Message, frozen=True):
    """``main`` returned; its result of ``result_bytes`` has been sent in parts.

    ``rows_read`` counts the rows of all epochs that were read to their end; ``is_reading`` says that one was begun.
    """

    node: NodeId
    result_bytes: int
    rows_read: int = 0
    is_reading: bool = False


class Raised(Message, frozen=True):
    """``main`` (or the way to it) raised."""

    node: NodeId
    reason: str
    traceback: str
    hint: str = ""
    final: bool = False


class Resume(Message, frozen=True):
    """The epochs that this node can go on from; answered when all have said theirs or after ``seconds``.

    A node that serves says ``None``: the others need not wait for it.
    """

    node: NodeId
    epochs: list[int] | None
    seconds: float


class ResumeAnswer(Message, frozen=True):
    """The last epoch that all nodes have, or 0: everyone goes on from there; ``None`` if not all have said theirs."""

    epochs: int | None


class EpochEnded(Message, frozen=True):
    """An epoch of a fit has ended: the how-manieth of ``epochs``, counted from 1, and its metrics over all rows."""

    node: NodeId
    epoch: int
    epochs: int
    metrics: dict[str, float] = {}


class OpenColumns(Message, frozen=True):
    """The fed columns whose arrays may have any length, because the chief's model leaves it open."""

    columns: list[str]


class Report(Message, frozen=True):
    """Progress reported by ``main``."""

    node: NodeId
    step: int
    metrics: dict[str, float] = {}


class Pulse(Message, frozen=True):
    """The node's process runs; how long its dataset has waited for rows, and how many it has read in all.

    ``input_seconds`` says where the time of its input went, by the names of `InputState`; ``step`` is the newest that
    ``main`` has reported; ``gpus`` are the addresses of its GPUs.

    ``step_seconds`` says how long it has stood in a step that workers make together, 0 outside of one; ``busy`` that it
    compiles, evaluates or runs callbacks of a fit; ``stack`` where its main thread stands, if it has for a while.
    """

    node: NodeId
    waiting_seconds: float
    rows_read: int
    input_seconds: dict[str, float] = {}
    step: int = 0
    gpus: list[str] = []
    step_seconds: float = 0.0
    busy: bool = False
    stack: str = ""


class PulseAnswer(Message, frozen=True):
    """When the next pulse is due."""

    seconds: float


class Commit(Message, frozen=True):
    """A partition arrived whole: may it be shown to training?"""

    node: NodeId
    feed: int
    partition: int
    upload: str
    rows: int
    bytes_: int


class CommitAnswer(Message, frozen=True):
    """Whether the partition counts; to the node, and from there to the feed task."""

    committed: bool


class EpochBegins(Message, frozen=True):
    """The chief begins an epoch, which its workers are to read: of which feed, and its number within it."""

    feed: int
    epoch: int


class WhichEpoch(Message, frozen=True):
    """Ask which epoch the chief has begun; the answer is an `EpochBegins`."""


class Exported(Message, frozen=True):
    """The chief has exported to a base directory for the ``number``-th time, counted from 1: to ``path``."""

    base: str
    number: int
    path: str


class WhichExport(Message, frozen=True):
    """Ask where the chief has exported to; answered when it has, when its main has returned, or after ``seconds``."""

    base: str
    number: int
    seconds: float


class WhichExportAnswer(Message, frozen=True):
    """The directory of the version; ``None`` if there is none yet, or never if the chief's main has ``returned``."""

    path: str | None
    returned: bool = False


# --- from a feed task to the coordinator


class Assign(Message, frozen=True):
    """Ask which worker takes a partition.

    ``lengths`` says how long arrays of open columns are in its first batch; see `tfspark.columns.lengths`.
    """

    feed: int
    partition: int
    upload: str
    host: str
    attempt: int = 0
    lengths: dict[str, tuple[int | None, ...]] = {}


class AssignAnswer(Message, frozen=True):
    """The worker that takes the partition; ``None`` if none has to.

    ``columns`` are those of the feed with their shapes, if these are settled.
    """

    worker: NodeAddress | None
    columns: tuple[ColumnSpec, ...] | None = None


class LengthVaries(Message, frozen=True):
    """A partition holds an array that is not as long as those in its first batch, and its column may be dense."""

    feed: int
    other: OtherLength


class LengthVariesAnswer(Message, frozen=True):
    """The columns of the feed with their shapes, if these are settled."""

    columns: tuple[ColumnSpec, ...] | None


class FeedFailed(Message, frozen=True):
    """A feed task met rows that cannot be fed; trying again would not help."""

    feed: int
    partition: int
    kind: str
    message: str
    hint: str = ""


# --- from a program on Spark's side to a client of Spark Connect


class Probe(Message, frozen=True):
    """A task asks whether it reaches the client."""


class ProbeAnswer(Message, frozen=True):
    """It does."""


class StreamBatch(Message, frozen=True):
    """A micro-batch of a stream waits, on Spark's side, in a global temporary view; asked until it is fed."""

    stream: str
    view: str
    seconds: float


class StreamBatchAnswer(Message, frozen=True):
    """Whether the client has fed it, and why it could not."""

    done: bool
    error: str = ""


# --- with the rows


class PutHeader(Message, frozen=True):
    """The descriptor of an upload; ``same_host`` asks for memory that both can see.

    If it does, the first answer is `SlotsGranted`, and another one follows each `SlotFilled`.
    """

    feed: int
    partition: int
    upload: str
    same_host: bool = False


class SlotsGranted(Message, frozen=True):
    """Slots of the node's memory that the sender may fill, and where it is; see `tfspark.transport.shared_memory`."""

    pid: int
    fd: int
    key: bytes
    slots: list[int]


class SlotFilled(Message, frozen=True):
    """The next rows of an upload are in a slot, as one message."""

    slot: int
    nbytes: int


class PutEnd(Message, frozen=True):
    """The end marker of an upload: without it, or with another count, the upload never happened."""

    rows: int


class ServeHeader(Message, frozen=True):
    """The descriptor of an exchange: rows of these columns come, and as many of ``outputs`` are expected back.

    ``outputs`` is an Arrow schema, serialized.
    """

    job: str
    partition: int
    columns: tuple[ColumnSpec, ...]
    outputs: bytes
    batch_size: int


# --- events: from the coordinator to every node, in order


class SpecComplete(Message, frozen=True):
    """All nodes have registered."""

    nodes: tuple[NodeAddress, ...]


class NodeRejoined(Message, frozen=True):
    """A node was lost and is back, at the same address, in a new process."""

    address: NodeAddress


class FeedBegins(Message, frozen=True):
    """Rows of these columns are about to come; built from `tfspark.feeding.terms.FeedTerms`, which has the meanings."""

    feed: int
    columns: tuple[ColumnSpec, ...]
    epochs: int
    seed: int
    in_memory: bool
    epochs_to_come: int
    reproducible: bool
    base: int = 0
    first_epoch: int = 0
    name: str = ""
    fill: dict[str, Any] = {}


class ShapesSettled(Message, frozen=True):
    """The shapes of a feed's open columns are known: these are its columns. Nobody reads it before."""

    feed: int
    columns: tuple[ColumnSpec, ...]


class FeedEnds(Message, frozen=True):
    """All partitions of a feed have been committed. ``rows`` counts them by node, keyed ``"worker 0"``."""

    feed: int
    rows: dict[str, int]


class FeedCancelled(Message, frozen=True):
    """A feed failed; what was received of it is dropped."""

    feed: int
    reason: str


class NoMoreFeeds(Message, frozen=True):
    """The driver will not feed again."""


class TrainingEnded(Message, frozen=True):
    """All but the evaluator have finished."""


class AllFinished(Message, frozen=True):
    """Every ``main`` has returned; processes may exit."""


class Stop(Message, frozen=True):
    """Stop now; the process is killed after ``grace_seconds``."""

    grace_seconds: float
    reason: str


Event = (
    SpecComplete
    | NodeRejoined
    | FeedBegins
    | ShapesSettled
    | FeedEnds
    | FeedCancelled
    | NoMoreFeeds
    | TrainingEnded
    | AllFinished
    | Stop
)


class Events(Message, frozen=True):
    """The answer to a `Poll`."""

    events: list[Event]


REQUESTS: dict[str, type[Message]] = {cls.__name__: cls for cls in Message.__subclasses__()}
"""Message classes by the type of the Flight action that carries them."""


def decode_mark(body: bytes) -> SlotFilled | PutEnd:
    """Decode what stands between the rows of an upload.

    Raises
    ------
    ValueError
        If it is neither of the two.
    """
    mark: Any = msgspec.msgpack.decode(body, type=SlotFilled | PutEnd)
    return mark  # type: ignore[no-any-return]
