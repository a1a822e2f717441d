"""Runs TensorBoard in a separate process, which ends when its owner ends.

TensorBoard's process exits when its standard input ends, which also happens when the owner is killed. It prints the
port, which the kernel chooses. Its address has a secret path. The path is passed through the pipe, because other users
of the host can see argument lists.

    python -m tfspark.monitoring.tensorboard < settings
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from typing import Any

from tfspark.host_names import in_url

logger = logging.getLogger("tfspark")

START_SECONDS = 60.0
"""How long to wait until TensorBoard serves."""

RELOAD_SECONDS = 2.0
"""How often TensorBoard looks for new events."""

END_SECONDS = 5.0


class TensorBoard:
    """A running TensorBoard.

    Parameters
    ----------
    log_dir
        Directory of event files.
    bind
        Address to bind.
    host
        Host name or address for browsers.
    token
        Secret part of the path of its URL.
    with_tensorflow
        Whether it imports TensorFlow, which takes seconds and 700 MB. Only the debugger's page needs it.
    """

    def __init__(self, log_dir: str, bind: str, host: str, token: str, with_tensorflow: bool = False) -> None:
        self._host, self._token = host, token
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "CUDA_VISIBLE_DEVICES": "-1"},
            # In a separate session, it does not get the SIGINT of Ctrl-C in the owner's terminal.
            start_new_session=True,
        )
        settings = {"logdir": log_dir, "host": bind, "path_prefix": f"/{token}", "with_tensorflow": with_tensorflow}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(settings).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            logger.debug("TensorBoard ended at once")

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def url(self, timeout: float = START_SECONDS) -> str | None:
        """Wait until TensorBoard serves and return its address; warn and return ``None`` if it does not start."""
        port = self._read_port(timeout)
        if port is None:
            self._errors.seek(0)
            tail = self._errors.read().decode(errors="replace").strip()[-2000:]
            logger.warning("TensorBoard did not start; training continues without it. %s", tail)
            return None
        return f"http://{in_url(self._host)}:{port}/{self._token}/"

    def _read_port(self, timeout: float) -> int | None:
        out = self._process.stdout
        assert out is not None
        deadline, text = time.monotonic() + timeout, b""
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            while not text.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                data = os.read(out.fileno(), 100)
                if not data:
                    return None
                text += data
        return int(text)

    def close(self) -> None:
        """End TensorBoard and wait until it has ended. Calling it again does nothing."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def _serve(settings: dict[str, Any]) -> str:
    """Start TensorBoard in threads of this process; return its URL."""
    if not settings.pop("with_tensorflow"):
        # TensorBoard runs without TensorFlow if this module exists.
        sys.modules["tensorboard.compat.notf"] = types.ModuleType("notf")
    from tensorboard import default, program

    board = program.TensorBoard(plugins=default.get_plugins())
    # TensorBoard's faster loader is a second process, from whose port every user of the host can read.
    board.configure(argv=("",), port=0, load_fast="false", reload_interval=RELOAD_SECONDS, **settings)
    return str(board.launch())


def _leave_with_owner() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    """Serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = json.loads(sys.stdin.buffer.readline())
    # This thread ends the process as soon as the owner has ended.
    watch = threading.Thread(target=_leave_with_owner, name="owner")
    watch.start()
    try:
        url = _serve(settings)
    except BaseException:
        logger.exception("TensorBoard cannot start")
        os._exit(1)
    sys.stdout.write(f"{url.rsplit(':', 1)[1].split('/')[0]}\n")
    sys.stdout.flush()
    watch.join()


if __name__ == "__main__":
    main()
