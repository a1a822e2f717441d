"""Sessions of Spark Connect: what a client, which has no JVM, can learn about its session and the server.

Only this module uses private names of Connect's client; each has a test (``tests/cluster/test_connect.py``).
"""

from __future__ import annotations

import logging
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tfspark.host_names import bare, in_url

if TYPE_CHECKING:
    from pyspark.resource import ResourceProfile
    from pyspark.sql import DataFrame, SparkSession

logger = logging.getLogger(__name__)

MANY_ROWS = 1 << 16
"""Rows of a range that is large enough for one partition per core on any cluster."""

_DECIDE_PARTITIONS = ("spark.default.parallelism", "spark.sql.leafNodeDefaultParallelism")
"""Settings that fix the number of partitions of a range, whatever the number of cores is."""

_LETTERS = "bcdfghjklmnpqrvx"
_TO_LETTERS, _TO_DIGITS = str.maketrans("0123456789abcdef", _LETTERS), str.maketrans(_LETTERS, "0123456789abcdef")

REACH_SECONDS = 5.0
"""Seconds to wait for the server at an address where it may listen."""


def is_connect(session: Any) -> bool:
    """Return whether a session or a DataFrame belongs to Spark Connect."""
    return type(session).__module__.startswith("pyspark.sql.connect.")


def setting_of(session: SparkSession, key: str) -> str | None:
    """Return a setting of the server; ``None`` if it is not set, or the server does not reveal it."""
    from pyspark.errors import PySparkException

    try:
        return session.conf.get(key, None)
    except PySparkException:
        # Hosted servers hide some settings.
        return None


def server_host(session: SparkSession) -> str:
    """Return the host of the server, as it was given to the client."""
    return str(session._client.host)  # type: ignore[attr-defined]


def encrypts(session: SparkSession) -> bool:
    """Return whether the client uses TLS to talk to the server."""
    builder = session._client._builder  # type: ignore[attr-defined]
    return bool(getattr(builder, "use_ssl", None) or (not hasattr(builder, "use_ssl") and builder.secure))


def register_profile(session: SparkSession, profile: ResourceProfile) -> None:
    """Register a resource profile with the server through the active session, as Connect does; it is set per thread."""
    active = type(session)._active_session  # type: ignore[attr-defined]
    before = getattr(active, "session", None)
    active.session = session
    try:
        logger.debug("the server knows the profile as %d", profile.id)
    finally:
        active.session = before


def plan_of(df: DataFrame) -> str:
    """Return the physical plan of a DataFrame as the server writes it."""
    return str(df._explain_string())  # type: ignore[operator]


def count_cores(session: SparkSession) -> int | None:
    """Return the number of cores of Spark's executors now; ``None`` if a setting hides it.

    A client cannot list executors. Without a setting, Spark gives a range one partition per core.
    """
    from pyspark.sql import functions as F

    if any(setting_of(session, key) for key in _DECIDE_PARTITIONS):
        return None
    found = session.range(MANY_ROWS).select(F.spark_partition_id().alias("p")).agg(F.max("p")).first()
    assert found is not None
    return int(found[0]) + 1


@dataclass(frozen=True)
class SharedSession:
    """How the client and a task find a session of the server that only they know.

    Attributes
    ----------
    addresses
        Where the server may listen, as ``host:port``: as the client knows it, then as executors may know it.
    parameters
        The end of a connection string: the user, the session and, if the client has one, its token.
    """

    addresses: Sequence[str]
    parameters: str

    def connect(self) -> SharedValues:
        """Return the values of the session as the client reads and writes them."""
        return SharedValues(f"sc://{self.addresses[0]}/{self.parameters}")


def shared_session(session: SparkSession) -> SharedSession | None:
    """Return a new session of the same server; ``None`` if the client's connection has no address to give to others."""
    client = session._client  # type: ignore[attr-defined]
    builder = client._builder
    if type(builder).__name__ != "DefaultChannelBuilder":
        return None
    # Both must be the same user, who is by default the user of the process.
    parameters = {**builder._params, "user_id": client._user_id or "tfspark", "session_id": str(uuid.uuid4())}
    if builder.token is not None:
        parameters["token"] = builder.token
    addresses = [str(builder.endpoint)]
    if driver := setting_of(session, "spark.driver.host"):
        port = setting_of(session, "spark.connect.grpc.binding.port") or "15002"
        addresses.append(f"{in_url(driver)}:{port}")
    text = "".join(f";{name}={quote(str(value), safe='')}" for name, value in parameters.items())
    return SharedSession(tuple(dict.fromkeys(addresses)), text)


class SharedValues:
    """Settings of a session that the client and a task both read and write; no Spark job is needed for it.

    A server hides settings whose value matches ``spark.redaction.regex``, by default words such as "token". So each
    byte of a value is written as two consonants, which are no words.

    Parameters
    ----------
    url
        Connection string with the ID of the session.
    """

    def __init__(self, url: str) -> None:
        from pyspark.sql.connect.session import SparkSession

        # Not the builder: it would make this the active session.
        self._session = SparkSession(connection=url)

    def get(self, key: str) -> bytes | None:
        """Return a value; ``None`` if it was never written, or the server hides it."""
        text: str | None = self._session.conf.get(f"tfspark.{key}", None)
        return None if text is None else bytes.fromhex(text.translate(_TO_DIGITS))

    def set(self, key: str, value: bytes) -> None:
        """Write a value."""
        self._session.conf.set(f"tfspark.{key}", value.hex().translate(_TO_LETTERS))

    def has(self, key: str, value: bytes) -> bool:
        """Return whether the server answers now, and a value is `value`; the server may be another one."""
        from pyspark.errors import PySparkException

        client = self._session.client
        policies = client.get_retry_policies()
        client.set_retry_policies([])
        try:
            return self.get(key) == value
        except PySparkException as e:
            logger.debug("the server does not answer: %s", e)
            return False
        finally:
            client.set_retry_policies(policies)

    def close(self) -> None:
        """Close the connection; the session and its values stay."""
        self._session.client.close()

    def release(self) -> None:
        """End the session, which removes its values, and close the connection."""
        self._session.client.release_session()
        self.close()


def is_reachable(address: str) -> bool:
    """Return whether something listens at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((bare(host), int(port)), REACH_SECONDS).close()
    except OSError:
        return False
    return True
