"""Collects facts about executors, inside Spark tasks, with the executors' Python.

Functions of this module are pickled by value, so that they also work on executors without tfspark, pandas or
TensorFlow. The module therefore imports only the standard library, pyspark and `tfspark.executor.host`, which is
pickled by value too.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tfspark.executor.host import address_towards

CONNECT_SECONDS = 5.0
IMPORT_SECONDS = 180.0
"""Deadline for the import of TensorFlow; even the first import from a slow disk is faster."""

NVIDIA_SMI_SECONDS = 30.0

_SHOW_TENSORFLOW = """
import json
import tensorflow as tf
import keras
print(json.dumps({
    "tensorflow": tf.__version__,
    "keras": keras.__version__,
    "gpus": [d.name for d in tf.config.list_physical_devices("GPU")],
    "cuda": tf.test.is_built_with_cuda(),
}))
"""


@dataclass(frozen=True)
class Order:
    """The facts to collect.

    Attributes
    ----------
    driver
        Host and port of the driver's listener, which sends `word`.
    word
        Random text that listeners send, so that another program at the same port is detected.
    packages
        Names of the Python packages to look up.
    paths
        Directories, as local paths or URIs, that should be shared; the driver has written a file `word` into each.
    """

    driver: tuple[str, int]
    word: str
    packages: tuple[str, ...]
    paths: tuple[str, ...]


class Listener:
    """A server that sends a word to every client until it is closed."""

    def __init__(self, bind: str, word: str) -> None:
        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        self._word = word.encode()
        self._socket = socket.create_server((bind, 0), family=family)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="tfspark-doctor", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.sendall(self._word)
                except OSError:
                    continue

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        # close() alone does not wake the thread.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


def complaint_of(host: str, port: int, word: str) -> str | None:
    """Return why a listener cannot be reached; None if it can."""
    try:
        with socket.create_connection((host, port), CONNECT_SECONDS) as s:
            heard = s.recv(len(word))
    except OSError as e:
        return str(e.strerror or e)
    return None if heard == word.encode() else "another program answers at this port"


def installed_versions(names: Sequence[str]) -> dict[str, str | None]:
    """Return versions by package name; None if the package is not installed."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def examine(order: Order) -> Callable[[Iterator[Any]], Iterator[str]]:
    """Return the function that each barrier task runs; it yields one JSON object of facts."""

    def body(_: Iterator[Any]) -> Iterator[str]:
        from pyspark import BarrierTaskContext

        context = BarrierTaskContext.get()
        try:
            address = address_towards(*order.driver)
        except OSError:
            address = "127.0.0.1"
        with Listener("::" if ":" in address else "0.0.0.0", order.word) as listener:
            # Python workers of one executor have the same parent process.
            me: dict[str, Any] = {
                "executor": f"{socket.gethostname()} {os.getppid()}",
                "host": socket.gethostname(),
                "address": address,
                "port": listener.port,
            }
            seats = [json.loads(s) for s in context.allGather(json.dumps(me))]
            firsts: dict[str, int] = {}
            for i, seat in enumerate(seats):
                firsts.setdefault(seat["executor"], i)
            rank = context.partitionId()
            facts: dict[str, Any] = {**me, "rank": rank}
            granted = context.resources()
            facts["granted"] = list(granted["gpu"].addresses) if "gpu" in granted else []
            if firsts[me["executor"]] == rank:
                others = [seats[i] for i in firsts.values() if i != rank]
                facts.update(_thorough(order, facts["granted"], others))
            # Listeners stay open until all tasks have tried to connect to them.
            context.barrier()
        yield json.dumps(facts)

    return body


def _thorough(order: Order, granted: Sequence[str], others: Sequence[dict[str, Any]]) -> dict[str, Any]:
    host, port = order.driver
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "tfspark": _tfspark_version(),
        "packages": installed_versions(order.packages),
        "tensorflow": _tensorflow(granted),
        "nvidia": _nvidia_gpus(),
        "driver": complaint_of(host, port, order.word),
        "unreachable": {
            f"{o['host']} ({o['address']}:{o['port']})": complaint
            for o in others
            if (complaint := complaint_of(o["address"], o["port"], order.word)) is not None
        },
        "paths": {path: _path_complaint(path, order.word) for path in order.paths},
    }


def _tfspark_version() -> str | None:
    # This function is pickled by value, so the installed package may be missing or have another version.
    if importlib.util.find_spec("tfspark") is None:
        return None
    return str(importlib.import_module("tfspark").__version__)


def _tensorflow(granted: Sequence[str]) -> dict[str, Any]:
    """Import TensorFlow in a separate process, with the GPUs that Spark assigned to this task."""
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    if granted:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(granted)
    command = [sys.executable, "-c", _SHOW_TENSORFLOW]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return {"error": f"the import took longer than {IMPORT_SECONDS:.0f} s"}
    if done.returncode:
        return {"error": (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _nvidia_gpus() -> int:
    """Return the number of GPUs that nvidia-smi lists on this host."""
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines()) if done.returncode == 0 else 0


def _path_complaint(path: str, word: str) -> str | None:
    """Return what is wrong with a shared directory, or None; write a file into it, which the driver looks for."""
    try:
        from pyarrow import fs

        filesystem, inner = fs.FileSystem.from_uri(path)
        if filesystem.get_file_info([f"{inner}/{word}"])[0].type == fs.FileType.NotFound:
            return "the driver's file is not there"
        with filesystem.open_output_stream(f"{inner}/{word}.{socket.gethostname()}.{os.getppid()}") as f:
            f.write(word.encode())
    except (ImportError, OSError, ValueError) as e:
        return str(e)
    return None
