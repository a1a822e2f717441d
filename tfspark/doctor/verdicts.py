"""Judges what `survey` has gathered: pure functions from facts to findings."""

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
    """Whether nodes and a feeding task can run at once."""
    if s.shortage is not None:
        yield broken("slots", s.shortage.message, s.shortage.hint or "")
    else:
        yield ok("slots", f"{s.slots} task slots on {s.master}")


def judge_connector(s: Survey) -> Iterator[Finding]:
    """Whether the running Spark knows TFRecords."""
    for jar in s.missing_jars:
        yield broken("connector", f"spark.jars names {jar}, which is not there", "Run tfspark jar; correct spark.jars.")
    if s.connector_error is not None:
        yield broken(
            "connector",
            f'Spark does not know format("tfrecord"): {s.connector_error}',
            'Make the session with tfspark.session(...), or pass --jars "$(tfspark jar)" to spark-submit.',
        )
    elif not s.missing_jars:
        yield ok("connector", 'Spark knows format("tfrecord")')


def judge_job(s: Survey) -> Iterator[Finding]:
    """Whether a barrier job with Python tasks runs at all."""
    error = s.job_error
    if error is None:
        if s.executors:
            hosts = sorted({t["host"] for t in s.executors})
            yield ok("executors", f"{len(s.executors)} looked at, on {', '.join(hosts)}")
        else:
            yield unknown("executors", "no executor could be looked at, as there is no free slot")
        return
    told = describe_python(s.settings)
    if "dynamic resource allocation" in error:
        yield warning(
            "executors",
            "not looked at: with spark.dynamicAllocation.enabled Spark refuses barrier stages",
            "Look again with --conf spark.dynamicAllocation.enabled=false. Clusters, too, start their nodes together, "
            "or none of them, only without it.",
        )
    elif "Cannot run program" in error:
        yield broken("executors", f"executors cannot run {told}: no such program there", _PYTHON_HINT)
    elif "PYTHON_VERSION_MISMATCH" in error or "different version" in error:
        yield broken("executors", _line(error, "different"), _SAME_ENVIRONMENT)
    elif "No module named 'pyspark" in error:
        yield broken("executors", f"{told} has no pyspark", _SAME_ENVIRONMENT)
    else:
        yield broken("executors", f"a barrier job fails: {error}", "See the executors' logs in Spark's web pages.")


_PYTHON_HINT = (
    "Set PYSPARK_PYTHON (or spark.pyspark.python) to a Python 3.10 or newer that is there on every executor and has "
    "tfspark; ./environment/bin/python if --archives ships one."
)


def _line(text: str, word: str) -> str:
    return next((line.strip() for line in text.splitlines() if word in line), text)


def judge_python(s: Survey) -> Iterator[Finding]:
    """Python and tfspark on the executors."""
    without = [t for t in s.executors if t["tfspark"] is None]
    other = [t for t in s.executors if t["tfspark"] not in (None, __version__)]
    if without:
        yield broken("python", f"no tfspark in {_places(without)}", _SAME_ENVIRONMENT)
    if other:
        versions = ", ".join(sorted({t["tfspark"] for t in other}))
        yield broken("python", f"tfspark {versions} in {_places(other)}, {__version__} here", _SAME_ENVIRONMENT)
    if s.executors and not without and not other:
        pythons = ", ".join(sorted({f"{t['python']} ({t['executable']})" for t in s.executors}))
        yield ok("python", f"executors run {pythons} with tfspark {__version__}")


def judge_packages(s: Survey) -> Iterator[Finding]:
    """Python packages of the executors; one finding for all that have the same."""
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for t in s.executors:
        alike[tuple(sorted(t["packages"].items()))].append(t)
    for installed, tasks in alike.items():
        if installed:
            yield from packages.judge("packages", _places(tasks), dict(installed), packages.DRIVER_ONLY)
    if len(alike) > 1:
        yield warning("packages", "executors have different packages", _SAME_ENVIRONMENT)


def judge_tensorflow(s: Survey) -> Iterator[Finding]:
    """Whether executors can import TensorFlow and Keras."""
    failed = [t for t in s.executors if "error" in t["tensorflow"]]
    for t in failed:
        yield broken(
            "tensorflow", f"cannot be imported in {_places([t])}: {t['tensorflow']['error']}", _tensorflow_hint()
        )
    versions = {(t["tensorflow"]["tensorflow"], t["tensorflow"]["keras"]) for t in s.executors if t not in failed}
    if len(versions) > 1:
        yield broken("tensorflow", f"executors differ: {sorted(versions)}", _SAME_ENVIRONMENT)
    elif versions:
        ((tensorflow, keras),) = versions
        yield ok("tensorflow", f"executors import TensorFlow {tensorflow} and Keras {keras}")


def _tensorflow_hint() -> str:
    return f"{install_command()} in the executors' Python; try the import there with python -c."


def _gpu_hint() -> str:
    return f"{install_command('gpu')} in the executors' Python; nvidia-smi must work there."


def judge_gpus(s: Survey) -> Iterator[Finding]:
    """GPUs: those Spark gives to tasks, those TensorFlow sees, those the host has."""
    able = [t for t in s.executors if "error" not in t["tensorflow"]]
    granted = [t for t in able if t["granted"]]
    blind = [t for t in granted if len(t["tensorflow"]["gpus"]) < len(t["granted"])]
    for t in blind:
        sees, cuda = len(t["tensorflow"]["gpus"]), t["tensorflow"]["cuda"]
        build = "" if cuda else "; this TensorFlow was built without CUDA"
        gave = f"Spark gives GPU {', '.join(t['granted'])} to a task in {_places([t])}"
        yield broken("gpus", f"{gave}, but TensorFlow sees {sees}{build}", _gpu_hint())
    if granted and not blind:
        yield ok("gpus", f"TensorFlow sees the GPUs that Spark gives to tasks, on {len(granted)} executors")
    idle = [t for t in able if not t["granted"] and t["nvidia"]]
    if idle:
        yield warning(
            "gpus",
            f"{sum(t['nvidia'] for t in idle)} GPUs in {_places(idle)} that Spark does not give to tasks",
            "Set spark.executor.resource.gpu.amount and spark.executor.resource.gpu.discoveryScript (on a standalone "
            "cluster those of its workers, too), and ask by Cluster(gpus_per_node=1); leave "
            "spark.task.resource.gpu.amount unset. conf/ of tfspark has examples and a script.",
        )
    if able and not granted and not idle:
        yield ok("gpus", "none; TensorFlow will use CPUs")


def judge_network(s: Survey) -> Iterator[Finding]:
    """Connections between executors and to the driver, on ports such as nodes will use."""
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
    "must listen on another. Firewalls must let ports of net.ipv4.ip_local_port_range pass."
)
_PORT_HINT = "Let executors reach each other on all ports of net.ipv4.ip_local_port_range (sysctl)."


def judge_paths(s: Survey) -> Iterator[Finding]:
    """Directories that driver and executors should share."""
    for path, complaint in s.paths.items():
        if complaint is not None:
            yield broken("paths", f"the driver cannot write to {path}: {complaint}", _PATH_HINT)
            continue
        failed = [t for t in s.executors if t["paths"].get(path) is not None]
        for t in failed:
            yield broken("paths", f"{path} in {_places([t])}: {t['paths'][path]}", _PATH_HINT)
        written = len(s.executors) - len(failed)
        if s.seen.get(path, 0) < written:
            lost = written - s.seen.get(path, 0)
            yield broken("paths", f"what {lost} executors wrote to {path} is not seen here", _PATH_HINT)
        elif s.executors and not failed:
            yield ok("paths", f"{path} is the same for the driver and {written} executors")


_PATH_HINT = "Use a directory that is mounted on every host and writable for Spark's user, or a URI such as hdfs://."


def judge_memory(s: Survey) -> Iterator[Finding]:
    """Memory beside the JVM's heap, where TensorFlow lives."""
    if "spark.executor.pyspark.memory" in s.settings:
        yield warning(
            "memory",
            "spark.executor.pyspark.memory limits the address space of Python and of the TensorFlow it starts",
            "Leave it unset, and give spark.executor.memoryOverhead instead.",
        )
    overhead = ("spark.executor.memoryOverhead", "spark.executor.memoryOverheadFactor")
    if s.master.startswith(("yarn", "k8s")) and not any(k in s.settings for k in overhead):
        yield warning(
            "memory",
            "spark.executor.memoryOverhead is not set; containers that need more than a tenth of the heap are killed",
            "Set it to what TensorFlow and your model need: 2g to begin with.",
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
    """Go through all checks."""
    return [finding for check in CHECKS for finding in check(s)]


def _places(tasks: list[dict[str, Any]]) -> str:
    hosts = sorted({t["host"] for t in tasks})
    shown = ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more" if len(hosts) > 3 else "")
    return f"{len(tasks)} executors on {shown}" if len(tasks) > 1 else f"the executor on {shown}"
