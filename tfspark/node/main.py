"""Entry point of a node's process.

Its arguments are the supervisor's process id, the file descriptors of the lifeline and of the socket for pulses, and
the directory for temporary files.

It reads its payload from standard input, listens for rows, registers, waits for the cluster spec, sets ``TF_CONFIG``,
calls ``main(args, ctx)`` and reports the result or the error.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from typing import IO, Any, BinaryIO

PR_SET_PDEATHSIG = 1


def _die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when the supervisor dies; exit at once if the supervisor is already dead."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _fork_guardian(lifeline: int, directory: str) -> None:
    """Fork a small process that kills this process group and removes its files when the supervisor ends.

    It is forked before any thread exists and before TensorFlow is imported, because TensorFlow fails after a fork.
    """
    group = os.getpgid(0)
    if os.fork() == 0:
        os.setpgid(0, 0)
        for fd in (0, 1, 2):
            os.close(fd)
        os.read(lifeline, 1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)
        os._exit(0)
    os.close(lifeline)


def _read_block(stream: BinaryIO, length_bytes: int) -> bytes:
    return stream.read(int.from_bytes(stream.read(length_bytes), "big"))


def _watch_supervisor(stream: BinaryIO, link: Any) -> None:
    """Read the supervisor's commands and stop the node on ``stop``."""
    for line in stream:
        if line.strip() == b"stop":
            link.on_stop("the cluster is stopping")


def _connect(plan: dict[str, Any], descriptor_of_pulses: int | None = None) -> tuple[Any, Any]:
    """Reserve the port of TensorFlow's server and listen for rows; return the link and the reserved port."""
    from tfspark.errors import TFSparkError
    from tfspark.node.link import CoordinatorLink, tell_refusal
    from tfspark.node.pulses import PulseCarrier
    from tfspark.transport.ports import ReservedPort

    # A restarted worker must get the port that the other nodes know. It is reserved first, because the server for rows
    # may take any port of the range.
    ports = (plan["port"], plan["port"]) if plan["port"] else plan["ports"]
    try:
        reserved = ReservedPort(None, ports)
        carrier = None if descriptor_of_pulses is None else PulseCarrier(descriptor_of_pulses)
        return CoordinatorLink(plan, carrier), reserved
    except TFSparkError as e:
        tell_refusal(plan, e)
        os._exit(1)


def main() -> None:
    """Run the node; the exit code is 0 only if ``main`` has returned and the driver has its result."""
    began = time.time()
    # When native code crashes, write the Python stack to the log.
    faulthandler.enable()
    _die_with_parent(int(sys.argv[1]))
    _fork_guardian(int(sys.argv[2]), sys.argv[4])
    stdin = sys.stdin.buffer
    body = _read_block(stdin, 8)
    header_size = int.from_bytes(body[:8], "big")
    plan = json.loads(body[8 : 8 + header_size])
    user_main = body[8 + header_size :]
    sys.path[:] = [*dict.fromkeys([*plan["sys_path"], *sys.path])]
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # At this level, TensorFlow logs every collective that it traces.
    logging.getLogger("tensorflow").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    link, reserved = _connect(plan, descriptor_of_pulses=int(sys.argv[3]))
    threading.Thread(target=_watch_supervisor, args=(stdin, link), name="supervisor", daemon=True).start()
    with reserved:
        link.register(reserved.port)
        _end(_run(plan, user_main, link, began), link)


def _run(plan: dict[str, Any], user_main: bytes, link: Any, began: float) -> int:
    try:
        times = {"process": began - plan["spawned_at"], "listen": time.time() - began}
        t = time.time()
        import cloudpickle

        from tfspark.tensorflow_import import import_tensorflow

        import_tensorflow()  # Imported now, while the other nodes start.
        times["tensorflow"] = time.time() - t
        t = time.time()
        spec = link.wait_for_spec()
        os.environ["TF_CONFIG"] = spec.tf_config(link.node)
        times["rendezvous"] = time.time() - t

        from tfspark.node.context import NodeContext
        from tfspark.node.training import sets_up_collectives, warn_of_idle_gpus
        from tfspark.spec import server_nodes
        from tfspark.tensorflow_options import TensorFlowOptions

        options = plan["options"]
        TensorFlowOptions.of(options["tensorflow"]).sharing(options["cpus"]).apply()
        if sets_up_collectives(options["strategy"], options["own_strategy"], link.node, link.nodes):
            from tfspark.node.keras.collectives import set_up

            # This runs before main is unpickled, because unpickling a model in the closure of main runs TensorFlow.
            collectives = set_up()  # noqa: F841 - lives as long as the process
            warn_of_idle_gpus(options.get("gpus", ()))
        function, args, strategy = cloudpickle.loads(user_main)
        if link.node in server_nodes(link.nodes):
            from tfspark.node.parameter_server import run_server

            serving = run_server(link, spec)
            link.entered(times)
            link.wait_for_release()
            del serving
            return 0
        ctx = NodeContext(link, spec, {**options, "make_strategy": strategy})
        link.entered(times)
        try:
            result = _pickled(function(args, ctx))
        finally:
            ctx.close()
    except BaseException as e:
        return _report_failure(e, link)
    link.finished(result)
    link.wait_for_release()
    if link.released:
        ctx.run_finished()
    return 0


def _pickled(result: Any) -> IO[bytes]:
    """Pickle the return value of ``main``, piece by piece, to a temporary file.

    Raises
    ------
    ConfigurationError
        If the value cannot be pickled.
    """
    import cloudpickle

    from tfspark.errors import ConfigurationError, first_line

    file = tempfile.TemporaryFile()  # noqa: SIM115 - who sends it closes it
    try:
        cloudpickle.dump(result, file)
        return file
    except Exception as e:
        file.close()
        raise ConfigurationError(
            f"main returned a {type(result).__name__} that cannot be pickled: {first_line(e)}",
            hint="Return numbers, arrays and paths, such as model.get_weights() or the result of ctx.export.",
        ) from e


def _report_failure(e: BaseException, link: Any) -> int:
    from tfspark.errors import ConfigurationError
    from tfspark.node.failures import cause_of

    reason, hint = cause_of(e)
    if isinstance(e, SystemExit) and not e.code:
        reason = "main called sys.exit() instead of returning"
    final = isinstance(e, (ConfigurationError, ImportError, SyntaxError))
    if isinstance(e, ModuleNotFoundError):
        hint = (
            f"{e.name!r} is not installed for {sys.executable} on this executor. Install the same environment on all "
            "executors, ship one with --archives, or point PYSPARK_PYTHON to one that has it."
        )
    text = "".join(traceback.format_exception(e))
    sys.stderr.write(text)
    link.raised(reason, text, hint, final)
    return 1


def _end(code: int, link: Any) -> None:
    """Exit at once, because TensorFlow's own teardown would wait seconds for other nodes that also exit."""
    link.close()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
