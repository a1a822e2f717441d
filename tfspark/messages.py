"""All messages between processes, defined as data.

A message is a frozen struct, encoded as MessagePack; decoding checks the types. It is the body of a Flight action whose
type is the class name, or the answer to one, or it is sent between the rows of an upload. Both ends import this module.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from tfspark.columns.lengths import OtherLength
from tfspark.columns.spec import ColumnSpec
from tfspark.spec import NodeAddress, NodeId

PROTOCOL_VERSION = 6

M = TypeVar("M", bound="Message")

_encoder = msgspec.msgpack.Encoder()


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Base class of all messages."""

    def encode(self) -> bytes:
        """Return the message as MessagePack."""
        return _encoder.encode(self)

    @classmethod
    def decode(cls: type[M], body: bytes) -> M:
        """Decode a message of this type.

        Raises
        ------
        ValueError
            If `body` is another message, has an unknown or a missing field, or a value has the wrong type.
        """
        return msgspec.msgpack.decode(body, type=cls)


# --- from a supervising task to the coordinator


class Attach(Message, frozen=True):
    """A supervising task has started; ``attempt`` and ``stage`` are its Spark task attempt id and stage id."""

    node: NodeId
    attempt: int
    host: str
    stage: int = -1
    version: int = PROTOCOL_VERSION


class AttachAnswer(Message, frozen=True):
    """Whether the task must start its node."""

    go: bool


class Heartbeat(Message, frozen=True):
    """The supervising task is alive; ``lines`` are the lines that the node has printed since the last heartbeat.

    ``stopped`` is true if SIGSTOP or a debugger holds the node's process. ``pulse`` is the newest pulse of the process,
    if there is one since the last heartbeat.
    """

    node: NodeId
    lines: list[str] = []
    rss_bytes: int = 0
    stopped: bool = False
    pulse: Pulse | None = None


class HeartbeatAnswer(Message, frozen=True):
    """Instructions for the supervising task.

    If ``stop_grace`` is not ``None``, it must stop the node and kill it after so many seconds. If ``kill`` is true, it
    must kill the node now. It sends the next heartbeat after ``seconds``.
    """

    stop_grace: float | None
    kill: bool
    seconds: float


class Exited(Message, frozen=True):
    """The node's process ended. ``code`` is negative for a signal, as in `subprocess`.

    ``out_of_memory`` is true if, while the node ran, the kernel killed a process of the task's control group because it
    was out of memory. ``process`` is the number of processes that the task had started before this one; it identifies a
    message that arrives twice.
    """

    node: NodeId
    code: int
    log_tail: list[str] = []
    stopped_by_us: bool = False
    out_of_memory: bool = False
    process: int = 0


class ExitedAnswer(Message, frozen=True):
    """TensorFlow's port for the process that the task must start next; ``None`` if it must not start another one."""

    respawn_port: int | None


# --- from a node to the coordinator


class Register(Message, frozen=True):
    """A node's process listens and waits for the cluster spec."""

    address: NodeAddress


class Poll(Message, frozen=True):
    """Ask for the events after number ``since``; answered with `Events` when there are some, or after ``seconds``."""

    node: NodeId
    since: int
    seconds: float


class Entered(Message, frozen=True):
    """The node is about to call ``main``. ``seconds`` has the duration of each part of its start."""

    node: NodeId
    seconds: dict[str, float] = {}


class ResultPart(Message, frozen=True):
    """A part of the return value of ``main``, pickled with cloudpickle; ``offset`` is its position in bytes."""

    node: NodeId
    offset: int
    part: bytes


class Finished(Message, frozen=True):
    """``main`` returned; its result of ``result_bytes`` bytes has been sent in parts.

    ``rows_read`` is the number of rows in all epochs that were read to the end; ``is_reading`` is true if another epoch
    was begun.
    """

    node: NodeId
    result_bytes: int
    rows_read: int = 0
    is_reading: bool = False


class Raised(Message, frozen=True):
    """``main`` raised an exception, or the node did before it called ``main``."""

    node: NodeId
    reason: str
    traceback: str
    hint: str = ""
    final: bool = False


class Resume(Message, frozen=True):
    """The epochs from which this node can resume; answered when all nodes have sent theirs, or after ``seconds``.

    A node that serves sends ``None``; the others do not wait for it.
    """

    node: NodeId
    epochs: list[int] | None
    seconds: float


class ResumeAnswer(Message, frozen=True):
    """The last epoch that all nodes have, or 0, from which all resume; ``None`` if some have not sent their epochs."""

    epochs: int | None


class EpochEnded(Message, frozen=True):
    """Epoch ``epoch`` of ``epochs`` of a fit, counted from 1, has ended; ``metrics`` are over all rows."""

    node: NodeId
    epoch: int
    epochs: int
    metrics: dict[str, float] = {}


class OpenColumns(Message, frozen=True):
    """The fed columns whose arrays may have any length, because the chief's model does not set their length."""

    columns: list[str]


class Report(Message, frozen=True):
    """Progress reported by ``main``."""

    node: NodeId
    step: int
    metrics: dict[str, float] = {}


class Pulse(Message, frozen=True):
    """The node's process runs. A heartbeat carries it; if the supervising task is silent, the process sends it itself.

    It says how long the node's dataset has waited for rows, and how many rows it has read in total.

    ``input_seconds`` are the seconds that its input spent in each state, by the names of `InputState`; ``step`` is the
    last step that ``main`` has reported; ``gpus`` are the addresses of its GPUs.

    ``step_seconds`` are the seconds since it began the current step that workers make together, 0 outside of a step;
    ``busy`` is true if it compiles, evaluates or runs callbacks of a fit; ``stack`` is the stack of its main thread if
    that thread has not begun or ended a step for a while.
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


class CarriesPulses(Message, frozen=True):
    """From the supervising task to its node's process: heartbeats carry the pulses until this `time.monotonic`."""

    until: float


class PulseAnswer(Message, frozen=True):
    """Seconds until the node must send the next pulse."""

    seconds: float


class Commit(Message, frozen=True):
    """A node has received a whole partition and asks whether training may read it."""

    node: NodeId
    feed: int
    partition: int
    upload: str
    rows: int
    bytes_: int


class CommitAnswer(Message, frozen=True):
    """Whether the partition counts; the node passes the answer on to the feed task."""

    committed: bool


class EpochBegins(Message, frozen=True):
    """The chief begins an epoch that its workers must read: the number of the feed, and of the epoch within it."""

    feed: int
    epoch: int


class WhichEpoch(Message, frozen=True):
    """Ask which epoch the chief has begun; the answer is an `EpochBegins`."""


class Exported(Message, frozen=True):
    """The chief has written export ``number``, counted from 1, to a base directory; ``path`` is its location."""

    base: str
    number: int
    path: str


class WhichExport(Message, frozen=True):
    """Ask for the path of an export of the chief.

    The answer comes when the chief has written it, when the chief's ``main`` has returned, or after ``seconds``.
    """

    base: str
    number: int
    seconds: float


class WhichExportAnswer(Message, frozen=True):
    """The directory of the version; ``None`` if it does not exist yet.

    If ``returned`` is true, the chief's ``main`` has returned and will not write it any more.
    """

    path: str | None
    returned: bool = False


# --- from a feed task to the coordinator


class Assign(Message, frozen=True):
    """Ask which worker takes a partition.

    ``lengths`` are the lengths of the arrays of open columns in its first batch; see `tfspark.columns.lengths`.
    """

    feed: int
    partition: int
    upload: str
    host: str
    attempt: int = 0
    lengths: dict[str, tuple[int | None, ...]] = {}


class AssignAnswer(Message, frozen=True):
    """The worker that takes the partition; ``None`` if no worker needs it.

    ``columns`` are the columns of the feed with their shapes, if these are settled.
    """

    worker: NodeAddress | None
    columns: tuple[ColumnSpec, ...] | None = None


class LengthVaries(Message, frozen=True):
    """An array of a partition differs in length from those in the first batch, and its column may be dense."""

    feed: int
    other: OtherLength


class LengthVariesAnswer(Message, frozen=True):
    """The columns of the feed with their shapes, if these are settled."""

    columns: tuple[ColumnSpec, ...] | None


class FeedFailed(Message, frozen=True):
    """A feed task has found rows that cannot be fed; another attempt would not help."""

    feed: int
    partition: int
    kind: str
    message: str
    hint: str = ""


# --- from a program on Spark's side to a client of Spark Connect


class Probe(Message, frozen=True):
    """A task checks whether it can reach the client."""


class ProbeAnswer(Message, frozen=True):
    """The task can reach the client."""


class StreamBatch(Message, frozen=True):
    """A micro-batch of a stream is in a global temporary view on Spark's side; sent again until it is fed."""

    stream: str
    view: str
    seconds: float


class StreamBatchAnswer(Message, frozen=True):
    """Whether the client has finished with the micro-batch; ``error`` says why it could not feed it, or is empty."""

    done: bool
    error: str = ""


# --- with the rows


class PutHeader(Message, frozen=True):
    """The descriptor of an upload; ``same_host`` requests shared memory.

    With shared memory, the first answer is `SlotsGranted`, and another `SlotsGranted` follows each `SlotFilled`.
    """

    feed: int
    partition: int
    upload: str
    same_host: bool = False


class SlotsGranted(Message, frozen=True):
    """Slots that the sender may fill, and where the node's memory is; see `tfspark.transport.shared_memory`."""

    pid: int
    fd: int
    key: bytes
    slots: list[int]


class SlotFilled(Message, frozen=True):
    """The next rows of an upload are in a slot, as one message."""

    slot: int
    nbytes: int


class PutEnd(Message, frozen=True):
    """The end marker of an upload: without it, or with another number of rows, the node drops the upload."""

    rows: int


class ServeHeader(Message, frozen=True):
    """The descriptor of a prediction exchange: the sender sends rows of ``columns`` and expects as many rows back.

    ``outputs`` is the serialized Arrow schema of the rows that it expects.
    """

    job: str
    partition: int
    columns: tuple[ColumnSpec, ...]
    outputs: bytes
    batch_size: int


# --- events: from the coordinator to all nodes, in order


class SpecComplete(Message, frozen=True):
    """All nodes have registered."""

    nodes: tuple[NodeAddress, ...]


class NodeRejoined(Message, frozen=True):
    """A lost node runs again, at the same address, in a new process."""

    address: NodeAddress


class FeedBegins(Message, frozen=True):
    """A feed of rows with these columns begins; `tfspark.feeding.terms.FeedTerms`, its source, documents the fields."""

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
    """The shapes of a feed's open columns are known: ``columns`` are its columns. Nodes do not read the feed before."""

    feed: int
    columns: tuple[ColumnSpec, ...]


class FeedEnds(Message, frozen=True):
    """All partitions of a feed have been committed. ``rows`` has the number of rows by node, such as ``"worker 0"``."""

    feed: int
    rows: dict[str, int]


class FeedCancelled(Message, frozen=True):
    """A feed failed; nodes drop the rows that they have received of it."""

    feed: int
    reason: str


class NoMoreFeeds(Message, frozen=True):
    """The driver will not feed again."""


class TrainingEnded(Message, frozen=True):
    """All nodes except the evaluator have finished."""


class AllFinished(Message, frozen=True):
    """Every ``main`` has returned; the nodes' processes may exit."""


class Stop(Message, frozen=True):
    """The node must stop now; its process is killed after ``grace_seconds``."""

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
    """Decode a message that is sent between the rows of an upload.

    Raises
    ------
    ValueError
        If it is neither a `SlotFilled` nor a `PutEnd`.
    """
    mark: Any = msgspec.msgpack.decode(body, type=SlotFilled | PutEnd)
    return mark  # type: ignore[no-any-return]
