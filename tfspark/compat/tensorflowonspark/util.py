"""Small helpers that programs of the old API import."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from typing import Any

from tfspark.compat.tensorflowonspark import _notes, gpu_info
from tfspark.errors import ConfigurationError

logger = logging.getLogger(__name__)

_executor_id: int | None = None


def single_node_env(num_gpus: int = 1, worker_index: int = -1, nodes: Sequence[str] = ()) -> None:
    """Assign GPUs, or none, to this process; call it before TensorFlow looks for GPUs.

    Parameters
    ----------
    num_gpus
        Number of GPUs, if the host has any.
    worker_index, nodes
        Index of this node in `nodes`, a list of ``host:port``; nodes on the same host then get different GPUs.
    """
    if num_gpus < 1 or not gpu_info.is_gpu_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    index = worker_index
    if worker_index >= 0 and nodes:
        host = nodes[worker_index].rpartition(":")[0]
        index = sum(n.rpartition(":")[0] == host for n in nodes[:worker_index])
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu_info.get_gpus(num_gpus, index)


def get_ip_address() -> str:
    """Return the address from which this host reaches other networks, or else the address of its host name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            # Nothing is sent: the kernel only looks up the route.
            s.connect(("192.0.2.1", 9))
            return str(s.getsockname()[0])
        except OSError:
            return socket.gethostbyname(socket.gethostname())


def find_in_path(path: str, file: str) -> Any:
    """Return the first file with this name in a list of directories, or ``False`` if there is none."""
    candidates = (os.path.join(directory, file) for directory in path.split(os.pathsep))
    return next((c for c in candidates if os.path.isfile(c)), False)


@_notes.now("ctx.index needs no file")
def write_executor_id(num: int) -> None:
    """Store the executor id of this process in memory; no file is written."""
    global _executor_id
    _executor_id = int(num)


@_notes.now("ctx.index needs no file")
def read_executor_id() -> int:
    """Return the executor id that `write_executor_id` stored.

    Raises
    ------
    ConfigurationError
        If `write_executor_id` was not called in this process.
    """
    if _executor_id is None:
        raise ConfigurationError("This process has no executor id.", hint="ctx.executor_id of map_fun has it.")
    return _executor_id
