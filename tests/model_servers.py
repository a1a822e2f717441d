"""Real `tfspark serve` processes, and models for them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import keras
from waiting import eventually

READY_SECONDS = 60.0


class Server:
    """A `tfspark serve` of its own."""

    def __init__(self, *options: Path | str, grpc_port: str | None = "0") -> None:
        command = [sys.executable, "-m", "tfspark", "serve", "--port", "0"]
        command += [] if grpc_port is None else ["--grpc-port", grpc_port]
        command += map(str, options)
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self.url = self.grpc = ""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"gRPC is at (\S+)", line):
                self.grpc = found[1]
            if found := re.search(r"models are at (http://\S+)", line):
                self.url = found[1]
                break
        assert self.url, "".join(self.lines)
        self._drain = threading.Thread(target=lambda: self.lines.extend(self.process.stderr or []), daemon=True)
        self._drain.start()
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def stop(self) -> int:
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(30)
        finally:
            self.process.kill()
        self._drain.join(10)
        return code

    def post(self, path: str, body: Any) -> httpx.Response:
        content = body if isinstance(body, (bytes, str)) else json.dumps(body)
        return self.http.post(f"/v1/models/{path}", content=content)


def until(condition: Callable[[], bool]) -> None:
    assert eventually(condition, READY_SECONDS), "the condition was not met in time"


def linear(factor: float) -> Any:
    x = keras.Input((3,), name="x")
    return keras.Model(x, keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(factor))(x))
