"""Measure how fast ``tfspark serve`` answers REST and gRPC, alone and batched, compared with the bare SavedModel.

Every round measures, one after another:

- ``bare``: the SavedModel is called in one process, as often as one thread can: the upper limit,
- ``rest`` and ``grpc``: every connection sends its next request as soon as it has an answer; one interface at a time,
- ``rest_batched`` and ``grpc_batched``: the same with a server with ``--enable-batching``,
- ``both``: both interfaces at once, each with half of the connections, while a new version is exported every
  ``--reload`` seconds.

The clients are separate processes. The figures are requests per second, and p50 and p99 in milliseconds. Every answer
is checked, and a failed request ends the benchmark.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _common as common

NAME = "serve"
FEATURES = 64
CLIENT_PROCESSES = 2


@dataclass(frozen=True)
class Load:
    """The load of one measurement: the interfaces, connections in total, rows per request and seconds."""

    interfaces: tuple[str, ...]
    connections: int
    rows: int
    seconds: float


def write_model(base: str) -> None:
    """Write the next version of the model."""
    import tensorflow as tf

    class Model(tf.Module):
        def __init__(self) -> None:
            self.weights = tf.Variable(tf.ones([FEATURES, 256]) / 256)

        @tf.function(input_signature=[tf.TensorSpec([None, FEATURES], tf.float32, "x")])
        def __call__(self, x: Any) -> Any:
            return {"y": tf.reduce_sum(tf.matmul(x, self.weights), axis=1)}

    from tfspark.saved_models.versions import new_version

    model = Model()
    with new_version(base) as version:
        tf.saved_model.save(model, version.staging, model.__call__)


def bare(base: str, rows: int, seconds: float) -> None:
    """Print a JSON list with the seconds that each call of the newest version took, for `rows` rows per call."""
    import numpy as np
    import tensorflow as tf

    from tfspark.saved_models.versions import newest_version

    model = tf.saved_model.load(newest_version(base))
    call = model.signatures["serving_default"]
    x = np.ones((rows, FEATURES), np.float32)
    for _ in range(20):
        call(x=tf.constant(x))
    times = []
    end = time.perf_counter() + seconds
    while (now := time.perf_counter()) < end:
        call(x=tf.constant(x))["y"].numpy()
        times.append(time.perf_counter() - now)
    print(json.dumps(times))


def rest_client(address: str, load: Load, connections: int) -> list[float]:
    """Return the seconds that each REST answer took."""
    body = json.dumps({"instances": [[1.0] * FEATURES] * load.rows}).encode()
    times: list[float] = []
    end = time.perf_counter() + load.seconds

    def ask() -> None:
        connection = http.client.HTTPConnection(address, timeout=60)
        while (now := time.perf_counter()) < end:
            connection.request("POST", "/v1/models/m:predict", body)
            answer = connection.getresponse()
            text = answer.read()
            times.append(time.perf_counter() - now)
            if answer.status != 200 or len(json.loads(text)["predictions"]) != load.rows:
                raise RuntimeError(f"REST answered {answer.status}: {text[:200]!r}")
        connection.close()

    with ThreadPoolExecutor(connections) as threads:
        for asking in [threads.submit(ask) for _ in range(connections)]:
            asking.result()
    return times


def grpc_client(address: str, load: Load, connections: int) -> list[float]:
    """Return the seconds that each gRPC answer took."""
    import grpc
    import numpy as np
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.ones((load.rows, FEATURES), np.float32)))

    async def ask(end: float, times: list[float]) -> None:
        # Each task has its own connection, as separate clients would have.
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            while (now := time.perf_counter()) < end:
                answer = await stub.Predict(request, timeout=60)
                times.append(time.perf_counter() - now)
                if len(answer.outputs["y"].float_val) != load.rows:
                    raise RuntimeError("gRPC answered with another number of rows")

    async def run() -> list[float]:
        times: list[float] = []
        end = time.perf_counter() + load.seconds
        await asyncio.gather(*(ask(end, times) for _ in range(connections)))
        return times

    return asyncio.run(run())


def client(interface: str, address: str, load: Load, connections: int) -> list[float]:
    """Run the client of one process; return the seconds that each answer took."""
    return {"rest": rest_client, "grpc": grpc_client}[interface](address, load, connections)


class Server:
    """A ``tfspark serve`` in a separate process."""

    def __init__(self, base: str, *options: str) -> None:
        ports = ["--port", "0", "--grpc-port", "0", "--poll-seconds", "0.5"]
        command = [sys.executable, "-m", "tfspark", "serve", base, *ports, *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.addresses: dict[str, str] = {}
        said = []
        for text in self.process.stderr:
            said.append(text)
            if found := re.search(r"gRPC is at (\S+)", text):
                self.addresses["grpc"] = found[1]
            if found := re.search(r"models are at http://(\S+)", text):
                self.addresses["rest"] = found[1]
                break
        else:
            raise RuntimeError("".join(said))
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def stop(self) -> None:
        """Stop the server."""
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(30):
            raise RuntimeError(f"The server ended with {self.process.returncode}.")


@contextlib.contextmanager
def server(base: str, *options: str) -> Iterator[Server]:
    """Start a server, which stops at the end of the block."""
    found = Server(base, *options)
    try:
        yield found
    finally:
        found.stop()


def measured(running: Server, load: Load, pool: Any) -> dict[str, list[float]]:
    """Return the seconds that answers took, by interface."""
    share = load.connections // (CLIENT_PROCESSES * len(load.interfaces)) or 1
    asked = [
        (interface, pool.apply_async(client, (interface, running.addresses[interface], load, share)))
        for interface in load.interfaces
        for _ in range(CLIENT_PROCESSES)
    ]
    times: dict[str, list[float]] = {i: [] for i in load.interfaces}
    for interface, result in asked:
        times[interface] += result.get()
    return times


@contextlib.contextmanager
def reloading(base: str, seconds: float) -> Iterator[list[int]]:
    """Export a new version every `seconds` within the block; yield a list with their number."""
    done, count = threading.Event(), [0]

    def export() -> None:
        while not done.wait(seconds):
            subprocess.run([sys.executable, __file__, "--write", base], check=True, stdout=subprocess.DEVNULL)
            count[0] += 1

    thread = threading.Thread(target=export)
    thread.start()
    try:
        yield count
    finally:
        done.set()
        thread.join()


def figures(name: str, times: list[list[float]], seconds: float, **more: Any) -> None:
    """Print requests per second, p50 and p99 of all rounds."""
    common.figure(NAME, f"{name}_requests", "requests/s", [len(t) / seconds for t in times], **more)
    for percent in (50, 99):
        at = [statistics.quantiles(t, n=100)[percent - 1] * 1e3 for t in times]
        common.figure(NAME, f"{name}_p{percent}", "ms", at, **more)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--rows", type=int, default=8, help="of each request")
    parser.add_argument("--reload", type=float, default=3.0, help="seconds between versions in 'both'")
    parser.add_argument("--only", nargs="+", default=["bare", "alone", "batched", "both"])
    parser.add_argument("--write", help=argparse.SUPPRESS)
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if chosen.write:
        write_model(chosen.write)
        return
    if chosen.bare:
        bare(chosen.bare, chosen.rows, chosen.seconds)
        return
    common.keep_stdout_for_figures()
    with tempfile.TemporaryDirectory() as directory:
        base = str(Path(directory) / "m")
        subprocess.run([sys.executable, __file__, "--write", base], check=True)
        with multiprocessing.get_context("spawn").Pool(2 * CLIENT_PROCESSES) as pool:
            _measure(chosen, base, pool)


def _measure(chosen: argparse.Namespace, base: str, pool: Any) -> None:
    common.surroundings(NAME, connections=chosen.connections, rows=chosen.rows, seconds=chosen.seconds)
    found: dict[str, list[list[float]]] = {}
    ways = {"alone": ("", ()), "batched": ("_batched", ("--enable-batching",))}
    more = {"connections": chosen.connections, "rows": chosen.rows}
    for _ in range(chosen.rounds):
        if "bare" in chosen.only:
            command = [sys.executable, __file__, "--bare", base, "--rows", str(chosen.rows)]
            out = subprocess.run(
                [*command, "--seconds", str(chosen.seconds)], check=True, capture_output=True, text=True
            )
            found.setdefault("bare", []).append(json.loads(out.stdout))
        for way, (suffix, options) in ways.items():
            if way not in chosen.only:
                continue
            with server(base, *options) as running:
                for interface in ("rest", "grpc"):
                    # The first requests cause imports and open connections, so they are not measured.
                    measured(running, Load((interface,), 4, chosen.rows, 1.0), pool)
                    load = Load((interface,), chosen.connections, chosen.rows, chosen.seconds)
                    times = measured(running, load, pool)[interface]
                    found.setdefault(f"{interface}{suffix}", []).append(times)
        if "both" in chosen.only:
            with server(base) as running, reloading(base, chosen.reload) as versions:
                load = Load(("rest", "grpc"), chosen.connections, chosen.rows, chosen.seconds)
                for interface, times in measured(running, load, pool).items():
                    found.setdefault(f"both_{interface}", []).append(times)
            more["versions"] = versions[0]
    for name, rounds in found.items():
        figures(name, rounds, chosen.seconds, **more)


if __name__ == "__main__":
    main()
