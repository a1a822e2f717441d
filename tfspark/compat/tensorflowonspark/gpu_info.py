"""Which GPUs of this host are free, by ``nvidia-smi``, where Spark does not assign them."""

from __future__ import annotations

import random
import subprocess
from typing import Any

from tfspark.errors import ResourceError

MAX_RETRIES = 3
AS_STRING = "string"
AS_LIST = "list"


def is_gpu_available() -> bool:
    """Tell whether the host has a GPU."""
    try:
        return bool(_query("--list-gpus"))
    except (OSError, subprocess.CalledProcessError):
        return False


def get_gpus(num_gpu: int = 1, worker_index: int = -1, format: str = AS_STRING) -> Any:
    """Return GPUs on which no process computes.

    Parameters
    ----------
    num_gpu
        How many.
    worker_index
        Index among the workers of this host, which then get different ones; -1 for any.
    format
        `AS_STRING` for ``"0,1"``, `AS_LIST` for ``["0", "1"]``.

    Raises
    ------
    ResourceError
        If there are not as many; at once, as waiting for others to end is Spark's business.
    """
    if format not in (AS_STRING, AS_LIST):
        raise ResourceError(f"format must be {AS_STRING!r} or {AS_LIST!r}, got {format!r}.")
    try:
        gpus = [line.split(", ") for line in _query("--query-gpu=index,uuid", "--format=csv,noheader")]
        busy = set(_query("--query-compute-apps=gpu_uuid", "--format=csv,noheader"))
    except (OSError, subprocess.CalledProcessError) as e:
        raise ResourceError(f"nvidia-smi failed to list the GPUs: {e}") from e
    free = [index for index, uuid in gpus if uuid not in busy]
    if len(free) < num_gpu:
        raise ResourceError(
            f"num_gpu={num_gpu}, but only {len(free)} of {len(gpus)} GPU(s) are free on this host.",
            hint="Let Spark assign them: spark.executor.resource.gpu.amount, and tfspark.Cluster(gpus_per_node=...).",
        )
    if worker_index < 0:
        chosen = random.sample(free, num_gpu)
    else:
        first = worker_index * num_gpu
        first = first if first + num_gpu <= len(free) else first % max(1, len(free) - num_gpu + 1)
        chosen = free[first : first + num_gpu]
    return ",".join(chosen) if format == AS_STRING else chosen


def _query(*arguments: str) -> list[str]:
    found = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, check=True)
    return [line.strip() for line in found.stdout.splitlines() if line.strip()]
