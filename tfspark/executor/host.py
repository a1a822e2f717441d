"""Which address of this host other nodes should use, and where Spark wants local files."""

from __future__ import annotations

import logging
import os
import socket
import tempfile

logger = logging.getLogger(__name__)


def address_towards(host: str, port: int) -> str:
    """Return this host's address on the way to `host`: on several networks, the one that the cluster shares.

    ``SPARK_LOCAL_IP``, where the executor has it, was set by someone who knows better, and comes first.
    """
    if chosen := _own_address(os.environ.get("SPARK_LOCAL_IP", "").strip("[]")):
        return chosen
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    infos = socket.getaddrinfo(host, port, family if ":" in host else 0, socket.SOCK_DGRAM)
    family, kind, proto, _, target = infos[0]
    with socket.socket(family, kind, proto) as s:
        s.connect(target)
        return str(s.getsockname()[0])


def _own_address(name: str) -> str | None:
    """Return the address that `name` stands for, if it is one of this host."""
    if not name:
        return None
    try:
        family, kind, proto, _, address = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as s:
            s.bind(address)
            return str(s.getsockname()[0])
    except OSError as e:
        logger.warning("SPARK_LOCAL_IP=%s is no address of this host: %s", name, e)
        return None


def local_directory() -> str:
    """Return a writable directory for local files that Spark removes when the application ends."""
    from pyspark import SparkFiles

    named = os.environ.get("SPARK_LOCAL_DIRS") or os.environ.get("LOCAL_DIRS") or ""
    # In local mode there is no such variable; the directory of Spark's own files is private to the application.
    for d in [*named.split(","), SparkFiles.getRootDirectory()]:
        if d and os.path.isdir(d) and os.access(d, os.W_OK):
            return os.path.abspath(d)
    return tempfile.gettempdir()
