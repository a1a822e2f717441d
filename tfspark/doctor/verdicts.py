"""Turns the facts of `survey` into findings. Pure functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from tfspark import __version__
from tfspark.distribution import install_command
from tfspark.doctor import packages
from tfspark.doctor.findings import Finding, broken, ok, unknown, warning
from tfspark.doctor.survey import Survey, describe_python

_SAME_ENVIRONMENT = (
    "Give driver and executors the same environment: install it on every host, or ship one with --archives "
    "env.tar.gz#environment and PYSPARK_PYTHON=./environment/bin/python."
)


def judge_slots(s: Survey) -> Iterator[Finding]:
    """Check that the nodes and a feed task can run at the same time."""
    if s.shortage is not None:
        yield broken("slots", s.shortage.message, s.shortage.hint or "")
    else:
        yield ok("slots", f"{s.slots} task slots on {s.master}")


def judge_connector(s: Survey) -> Iterator[Finding]:
    """Check that Spark has the TFRecord connector."""
    for jar in s.missing_jars:
        yield broken("connector", f"{jar} of spark.jars does not exist", "Run tfspark jar, and correct spark.jars.")
    if s.connector_error is not None:
        yield broken(
            "connector",
            f'Spark does not have format("tfrecord"): {s.connector_error}',
            'Make the session with tfspark.session(...), or pass --jars "$(tfspark jar)" to spark-submit.',
        )
    elif not s.missing_jars:
        yield ok("connector", 'Spark has format("tfrecord")')


def judge_job(s: Survey) -> Iterator[Finding]:
    """Check that a barrier job with Python tasks runs."""
    error = s.job_error
    if error is None:
        if s.executors:
            hosts = sorted({t["host"] for t in s.executors})
            yield ok("executors", f"{len(s.executors)} checked, on {', '.join(hosts)}")
        else:
            yield unknown("executors", "not checked, because there is no free task slot")
        return
    told = describe_python(s.settings)
    if "dynamic resource allocation" in error:
        yield warning(
            "executors",
            "not checked, because Spark does not run barrier stages with spark.dynamicAllocation.enabled",
            "Run the check again with --conf spark.dynamicAllocation.enabled=false. A cluster runs with dynamic "
            "allocation, but its nodes then wait for each other; without it all start at once or none.",
        )
    elif "Cannot run program" in error:
        yield broken("executors", f"executors cannot run {told}: the program does not exist there", _PYTHON_HINT)
    elif "PYTHON_VERSION_MISMATCH" in error or "different version" in error:
        yield broken("executors", _line(error, "different"), _SAME_ENVIRONMENT)
    elif "No module named 'pyspark" in error:
        yield broken("executors", f"{told} has no pyspark", _SAME_ENVIRONMENT)
    else:
        yield broken("executors", f"a barrier job fails: {error}", "See the executors' logs in Spark's web pages.")


_PYTHON_HINT = (
    "Set PYSPARK_PYTHON (or spark.pyspark.python) to a Python >= 3.10 that exists on every executor and has tfspark; "
    "use ./environment/bin/python if --archives ships one."
)


def _line(text: str, word: str) -> str:
    return next((line.strip() for line in text.splitlines() if word in line), text)


def judge_python(s: Survey) -> Iterator[Finding]:
    """Check Python and tfspark on the executors."""
    without = [t for t in s.executors if t["tfspark"] is None]
    other = [t for t in s.executors if t["tfspark"] not in (None, __version__)]
    if without:
        yield broken("python", f"tfspark is not installed on {_places(without)}", _SAME_ENVIRONMENT)
    if other:
        versions = ", ".join(sorted({t["tfspark"] for t in other}))
        yield broken("python", f"tfspark {versions} on {_places(other)}, but {__version__} here", _SAME_ENVIRONMENT)
    if s.executors and not without and not other:
        pythons = ", ".join(sorted({f"{t['python']} ({t['executable']})" for t in s.executors}))
        yield ok("python", f"executors run {pythons} with tfspark {__version__}")


def judge_packages(s: Survey) -> Iterator[Finding]:
    """Check the Python packages of the executors; executors with the same packages share a finding."""
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for t in s.executors:
        alike[tuple(sorted(t["packages"].items()))].append(t)
    for installed, tasks in alike.items():
        if installed:
            yield from packages.judge("packages", _places(tasks), dict(installed), packages.DRIVER_ONLY)
    if len(alike) > 1:
        yield warning("packages", "executors have different packages", _SAME_ENVIRONMENT)


def judge_tensorflow(s: Survey) -> Iterator[Finding]:
    """Check that executors can import TensorFlow and Keras."""
    failed = [t for t in s.executors if "error" in t["tensorflow"]]
    for t in failed:
        yield broken(
            "tensorflow", f"cannot be imported on {_places([t])}: {t['tensorflow']['error']}", _tensorflow_hint()
        )
    versions = {(t["tensorflow"]["tensorflow"], t["tensorflow"]["keras"]) for t in s.executors if t not in failed}
    if len(versions) > 1:
        yield broken("tensorflow", f"executors have different versions: {sorted(versions)}", _SAME_ENVIRONMENT)
    elif versions:
        ((tensorflow, keras),) = versions
        yield ok("tensorflow", f"executors import TensorFlow {tensorflow} and Keras {keras}")


def _tensorflow_hint() -> str:
    return f"Run {install_command()} in the executors' Python, and try the import there with python -c."


def _gpu_hint() -> str:
    return f"Run {install_command('gpu')} in the executors' Python. nvidia-smi must work there."


def judge_gpus(s: Survey) -> Iterator[Finding]:
    """Check the GPUs that Spark assigns to tasks, that TensorFlow sees, and that the host has."""
    able = [t for t in s.executors if "error" not in t["tensorflow"]]
    granted = [t for t in able if t["granted"]]
    blind = [t for t in granted if len(t["tensorflow"]["gpus"]) < len(t["granted"])]
    for t in blind:
        sees, cuda = len(t["tensorflow"]["gpus"]), t["tensorflow"]["cuda"]
        build = "" if cuda else "; this TensorFlow was built without CUDA"
        gave = f"Spark assigns GPU {', '.join(t['granted'])} to a task on {_places([t])}"
        yield broken("gpus", f"{gave}, but TensorFlow sees {sees}{build}", _gpu_hint())
    if granted and not blind:
        yield ok("gpus", f"TensorFlow sees the GPUs that Spark assigns to tasks, on {len(granted)} executors")
    idle = [t for t in able if not t["granted"] and t["nvidia"]]
    if idle:
        yield warning(
            "gpus",
            f"Spark does not assign {sum(t['nvidia'] for t in idle)} GPUs on {_places(idle)} to tasks",
            "Set spark.executor.resource.gpu.amount and spark.executor.resource.gpu.discoveryScript (on a standalone "
            "cluster also those of its workers), and pass Cluster(gpus_per_node=1). Leave "
            "spark.task.resource.gpu.amount unset. conf/ of tfspark has examples and a script.",
        )
    if able and not granted and not idle:
        yield ok("gpus", "no GPUs; TensorFlow will use CPUs")


def judge_network(s: Survey) -> Iterator[Finding]:
    """Check connections between executors and to the driver, on ephemeral ports as nodes use them."""
    deaf = [t for t in s.executors if t["driver"] is not None]
    for t in deaf:
        yield broken("network", f"{_places([t])} cannot reach the driver: {t['driver']}", _DRIVER_HINT)
    apart = [(t, where, why) for t in s.executors for where, why in t["unreachable"].items()]
    for t, where, why in apart:
        yield broken("network", f"{_places([t])} cannot reach an executor on {where}: {why}", _PORT_HINT)
    if s.executors and not deaf and not apart:
        addresses = ", ".join(sorted({t["address"] for t in s.executors}))
        yield ok("network", f"executors reach the driver and each other, at {addresses}")


_DRIVER_HINT = (
    "Set spark.driver.host to an address of this machine that executors can reach, and spark.driver.bindAddress if it "
    "must listen on another address. Firewalls must allow the ports of net.ipv4.ip_local_port_range."
)
_PORT_HINT = "Firewalls must allow all ports of net.ipv4.ip_local_port_range (sysctl) between executors."


def judge_paths(s: Survey) -> Iterator[Finding]:
    """Check the directories that driver and executors should share."""
    for path, complaint in s.paths.items():
        if complaint is not None:
            yield broken("paths", f"the driver cannot write to {path}: {complaint}", _PATH_HINT)
            continue
        failed = [t for t in s.executors if t["paths"].get(path) is not None]
        for t in failed:
            yield broken("paths", f"{path} on {_places([t])}: {t['paths'][path]}", _PATH_HINT)
        written = len(s.executors) - len(failed)
        if s.seen.get(path, 0) < written:
            lost = written - s.seen.get(path, 0)
            yield broken("paths", f"the driver does not see the files of {lost} executors in {path}", _PATH_HINT)
        elif s.executors and not failed:
            yield ok("paths", f"the driver and {written} executors share {path}")


_PATH_HINT = "Use a directory that is mounted on every host and writable for Spark's user, or a URI such as hdfs://."


def judge_memory(s: Survey) -> Iterator[Finding]:
    """Check the settings for memory outside the JVM's heap, which TensorFlow uses."""
    if "spark.executor.pyspark.memory" in s.settings:
        yield warning(
            "memory",
            "spark.executor.pyspark.memory limits the address space of Python and of the TensorFlow it starts",
            "Leave it unset, and set spark.executor.memoryOverhead instead.",
        )
    overhead = ("spark.executor.memoryOverhead", "spark.executor.memoryOverheadFactor")
    if s.master.startswith(("yarn", "k8s")) and not any(k in s.settings for k in overhead):
        yield warning(
            "memory",
            "spark.executor.memoryOverhead is not set: containers that use more than heap + 10 % are killed",
            "Set it to the memory that TensorFlow and your model need; begin with 2g.",
        )


CHECKS: tuple[Callable[[Survey], Iterator[Finding]], ...] = (
    judge_connector,
    judge_slots,
    judge_job,
    judge_python,
    judge_packages,
    judge_tensorflow,
    judge_gpus,
    judge_network,
    judge_paths,
    judge_memory,
)


def judge(s: Survey) -> list[Finding]:
    """Run all checks."""
    return [finding for check in CHECKS for finding in check(s)]


def _places(tasks: list[dict[str, Any]]) -> str:
    hosts = sorted({t["host"] for t in tasks})
    shown = ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more" if len(hosts) > 3 else "")
    return f"{len(tasks)} executors on {shown}" if len(tasks) > 1 else f"the executor on {shown}"
