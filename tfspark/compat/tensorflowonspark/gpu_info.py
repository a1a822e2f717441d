"""Finds free GPUs of this host with ``nvidia-smi``, if Spark does not assign GPUs."""

from __future__ import annotations

import random
import subprocess
from typing import Any

from tfspark.errors import ResourceError

MAX_RETRIES = 3
AS_STRING = "string"
AS_LIST = "list"


def is_gpu_available() -> bool:
    """Return whether the host has a GPU."""
    try:
        return bool(_query("--list-gpus"))
    except (OSError, subprocess.CalledProcessError):
        return False


def get_gpus(num_gpu: int = 1, worker_index: int = -1, format: str = AS_STRING) -> Any:
    """Return GPUs that no process uses for computation.

    Parameters
    ----------
    num_gpu
        Number of GPUs.
    worker_index
        Index among the workers of this host, so that they get different GPUs; -1 for a random choice.
    format
        `AS_STRING` for ``"0,1"``, `AS_LIST` for ``["0", "1"]``.

    Raises
    ------
    ResourceError
        If `format` is invalid, nvidia-smi fails, or fewer GPUs are free. The function does not wait until GPUs are
        free, because Spark does that.
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
