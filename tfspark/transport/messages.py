"""Every message that crosses a process boundary, written down as data.

A message is a frozen dataclass that travels as one JSON object in the body of a Flight action; the action's
type is the class name. Rows travel as Arrow record batches beside a `PutHeader`. Both ends import this module.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

PROTOCOL_VERSION = 1

M = TypeVar("M", bound="Message")


@dataclass(frozen=True)
class Message:
    """Base of all messages."""

    _types: ClassVar[dict[str, type[Message]]] = {}

    def __init_subclass__(cls) -> None:
        Message._types[cls.__name__] = cls

    def encode(self) -> bytes:
        """Encode as JSON; bytes fields as base64."""
        return json.dumps(asdict(self), default=_bytes_to_text).encode()

    @classmethod
    def decode(cls: type[M], body: bytes) -> M:
        """Decode the body of a message of this type; unknown keys are refused."""
        data = json.loads(body)
        for f in fields(cls):
            if f.type == "bytes" and f.name in data:
                data[f.name] = base64.b64decode(data[f.name])
        return cls(**data)


def _bytes_to_text(value: object) -> str:
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} does not travel in a message")


def message_type(name: str) -> type[Message] | None:
    """Return the message class with this name, if there is one."""
    return Message._types.get(name)


# --- from the Spark task that supervises a node to the coordinator


@dataclass(frozen=True)
class Attach(Message):
    """A supervising task has started; ``attempt`` and ``stage`` are Spark's numbers of it."""

    role: str
    index: int
    attempt: int
    host: str
    stage: int = -1
    version: int = PROTOCOL_VERSION


@dataclass(frozen=True)
class Heartbeat(Message):
    """The supervising task is alive; carries what the node printed since the last one.

    ``stopped`` tells that the node's process is held by SIGSTOP or a debugger.
    """

    role: str
    index: int
    lines: list[str] = field(default_factory=list)
    rss_bytes: int = 0
    stopped: bool = False


@dataclass(frozen=True)
class Exited(Message):
    """The node's process ended. ``code`` is negative for a signal, as in `subprocess`.

    ``out_of_memory`` tells that the kernel killed a process of its control group for want of memory meanwhile. The
    answer says whether to start it again, and TensorFlow's port.
    """

    role: str
    index: int
    code: int
    log_tail: list[str] = field(default_factory=list)
    stopped_by_us: bool = False
    out_of_memory: bool = False


# --- from a node to the coordinator


@dataclass(frozen=True)
class Register(Message):
    """A node's process listens and waits for the cluster spec."""

    role: str
    index: int
    host: str
    port: int
    data_port: int
    pid: int


@dataclass(frozen=True)
class Poll(Message):
    """Ask for events after ``since``; answered when there are some or after ``seconds``."""

    role: str
    index: int
    since: int
    seconds: float


@dataclass(frozen=True)
class Entered(Message):
    """The node is about to call ``main``. ``seconds`` says where start-up went."""

    role: str
    index: int
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished(Message):
    """``main`` returned; ``result`` is cloudpickled."""

    role: str
    index: int
    result: bytes


@dataclass(frozen=True)
class Raised(Message):
    """``main`` (or the way to it) raised."""

    role: str
    index: int
    reason: str
    traceback: str
    hint: str = ""
    final: bool = False


@dataclass(frozen=True)
class Resume(Message):
    """The epochs that this node can go on from; answered when all have said theirs or after ``seconds``.

    The answer is the last one that all have, or 0: from there everyone goes on, and the driver feeds. A node that
    serves says ``None``: the others need not wait for it.
    """

    role: str
    index: int
    epochs: list[int] | None
    seconds: float


@dataclass(frozen=True)
class Report(Message):
    """Progress reported by ``main``."""

    role: str
    index: int
    step: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Pulse(Message):
    """The node's process runs; how long its dataset has waited for rows, and how many it has read in all.

    ``input_seconds`` says where the time of its input went, by the names of `InputState`; ``step`` is the newest that
    ``main`` has reported; ``gpus`` are the addresses of its GPUs.

    ``step_seconds`` says how long it has stood in a step that workers make together, 0 outside of one; ``busy`` that it
    compiles, evaluates or runs callbacks of a fit; ``stack`` where its main thread stands, if it has for a while.
    """

    role: str
    index: int
    waiting_seconds: float
    rows_read: int
    input_seconds: dict[str, float] = field(default_factory=dict)
    step: int = 0
    gpus: list[str] = field(default_factory=list)
    step_seconds: float = 0.0
    busy: bool = False
    stack: str = ""


@dataclass(frozen=True)
class Commit(Message):
    """A partition arrived whole: may it be shown to training?"""

    role: str
    index: int
    feed: int
    partition: int
    upload: str
    rows: int
    bytes_: int


@dataclass(frozen=True)
class EpochBegins(Message):
    """The chief begins an epoch, which its workers are to read: of which feed, and its number within it."""

    feed: int
    epoch: int


@dataclass(frozen=True)
class WhichEpoch(Message):
    """Ask which epoch the chief has begun; the answer is an `EpochBegins`."""


# --- from a feed task to the coordinator


@dataclass(frozen=True)
class Assign(Message):
    """Ask which worker takes a partition."""

    feed: int
    partition: int
    upload: str
    host: str
    attempt: int = 0


@dataclass(frozen=True)
class FeedFailed(Message):
    """A feed task met rows that cannot be fed; trying again would not help."""

    feed: int
    partition: int
    kind: str
    message: str
    hint: str = ""


# --- with the rows


@dataclass(frozen=True)
class PutHeader(Message):
    """The descriptor of an upload; ``same_host`` asks for memory that both can see.

    If it does, the first answer is `SlotsGranted`, and another one follows each `SlotFilled`.
    """

    feed: int
    partition: int
    upload: str
    same_host: bool = False


@dataclass(frozen=True)
class SlotsGranted(Message):
    """Slots of the node's memory that the sender may fill, and where it is; see `tfspark.transport.shared_memory`."""

    pid: int
    fd: int
    key: bytes
    slots: list[int]


@dataclass(frozen=True)
class SlotFilled(Message):
    """The next rows of an upload are in a slot, as one message."""

    slot: int
    nbytes: int


@dataclass(frozen=True)
class PutEnd(Message):
    """The end marker of an upload: without it, or with another count, the upload never happened."""

    rows: int


def decode_mark(body: bytes) -> SlotFilled | PutEnd:
    """Decode what stands between the rows of an upload."""
    return SlotFilled.decode(body) if b'"slot"' in body else PutEnd.decode(body)


@dataclass(frozen=True)
class ServeHeader(Message):
    """The descriptor of an exchange: rows of these columns come, and as many of `outputs` are expected back."""

    job: str
    partition: int
    columns: list[dict[str, Any]]
    outputs: bytes
    batch_size: int


# --- events: from the coordinator to every node, in order


@dataclass(frozen=True)
class SpecComplete(Message):
    """All nodes have registered."""

    nodes: list[dict[str, Any]]


@dataclass(frozen=True)
class NodeRejoined(Message):
    """A node was lost and is back, at the same address, in a new process; ``node`` as in `SpecComplete`."""

    node: dict[str, Any]


@dataclass(frozen=True)
class FeedBegins(Message):
    """Rows of this schema are about to come.

    ``in_memory`` says where they wait; ``epochs_to_come`` counts the epochs of this feed and of those that repeat it.
    A ``reproducible`` feed is read in an order that does not depend on that in which its partitions arrive.
    ``base`` counts the epochs of all feeds before this one; its own begin with ``first_epoch`` if those before are in
    a checkpoint. A feed with a ``name`` stands beside the epochs and can be read any number of times.
    """

    feed: int
    epochs: int
    columns: list[dict[str, Any]]
    arrow_schema: bytes
    seed: int
    in_memory: bool
    epochs_to_come: int
    reproducible: bool
    base: int = 0
    first_epoch: int = 0
    name: str = ""


@dataclass(frozen=True)
class FeedEnds(Message):
    """All partitions of a feed have been committed. ``rows`` counts them by node, keyed ``"worker 0"``."""

    feed: int
    rows: dict[str, int]


@dataclass(frozen=True)
class FeedCancelled(Message):
    """A feed failed; what was received of it is dropped."""

    feed: int
    reason: str


@dataclass(frozen=True)
class NoMoreFeeds(Message):
    """The driver will not feed again."""


@dataclass(frozen=True)
class TrainingEnded(Message):
    """All but the evaluator have finished."""


@dataclass(frozen=True)
class AllFinished(Message):
    """Every ``main`` has returned; processes may exit."""


@dataclass(frozen=True)
class Stop(Message):
    """Stop now; the process is killed after ``grace_seconds``."""

    grace_seconds: float
    reason: str


def encode_events(events: list[Message]) -> bytes:
    """Encode the answer to a `Poll`."""
    return json.dumps([[type(e).__name__, e.encode().decode()] for e in events]).encode()


def decode_events(body: bytes) -> list[Message]:
    """Decode the answer to a `Poll`."""
    events = []
    for name, text in json.loads(body):
        cls = message_type(name)
        if cls is not None:
            events.append(cls.decode(text.encode()))
    return events
