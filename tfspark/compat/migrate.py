"""``tfspark migrate``: reports the calls of TensorFlowOnSpark in programs with their tfspark form; changes no files.

It also reports code that Keras 3 and TensorFlow 2.21 do not support, which must be changed before the program can run.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfspark.compat.keras2_uses import find_uses
from tfspark.errors import ConfigurationError

PACKAGE = "tensorflowonspark"

CALLS = {
    "TFCluster.run": "tfspark.Cluster(spark, main, args, workers=n), in a with statement; "
    "tfspark.run(spark, main, args, workers=n) if nothing is fed",
    "TFParallel.run": "tfspark.run(spark, main, args, workers=n, strategy='none')",
    "TFNode.DataFeed": "ctx.dataset(batch_size), ctx.stream(batch_size) or ctx.fit(model, batch_size=n); "
    "ctx.rows() for rows as Python objects; ctx.serve(fn) to answer them",
    "TFNode.hdfs_path": "a full path in args",
    "TFNode.start_cluster_server": "ctx.strategy()",
    "TFNode.export_saved_model": "ctx.export(model, directory)",
    "TFNode.next_batch": "ctx.dataset(batch_size)",
    "TFNode.batch_results": "ctx.serve(fn)",
    "TFNode.terminate": "return from main once enough is learned; feed as many epochs as are trained",
    "TFNode.release_port": "nothing: tfspark holds the port for TensorFlow",
    "pipeline.TFEstimator": "tfspark.ml.KerasEstimator",
    "pipeline.TFModel": "tfspark.ml.KerasModel, or tfspark.predict(df, model, inputs=..., outputs=...)",
    "dfutil.saveAsTFRecords": 'df.write.format("tfrecord").save(path)',
    "dfutil.loadTFRecords": 'spark.read.format("tfrecord").load(path)',
    "dfutil.toTFExample": 'df.write.format("tfrecord").save(path)',
    "dfutil.fromTFExample": 'spark.read.format("tfrecord").load(path)',
    "dfutil.infer_schema": 'spark.read.format("tfrecord").load(path).schema',
    "dfutil.isLoadedDF": "nothing: keep the path yourself",
    "compat.export_saved_model": "ctx.export(model, directory)",
    "compat.disable_auto_shard": "nothing: ctx.dataset has it off",
    "compat.is_gpu_available": "bool(ctx.gpus)",
    "gpu_info.get_gpus": "ctx.gpus, which Spark assigns",
    "gpu_info.is_gpu_available": "bool(ctx.gpus)",
    "TFSparkNode.run": "tfspark.Cluster(spark, main, args, workers=n)",
    "TFSparkNode.train": "cluster.feed(df, epochs=n)",
    "TFSparkNode.inference": "cluster.predict(df, 'score float')",
    "TFSparkNode.shutdown": "leaving the with block, or cluster.wait(timeout)",
    "util.single_node_env": "nothing: tfspark sets CUDA_VISIBLE_DEVICES before TensorFlow starts",
}
"""The tfspark form of each function and class, by module and name."""

METHODS = {
    "train": "cluster.feed(df, epochs=n), or cluster.feed_stream(df)",
    "inference": "cluster.predict(df, 'score float')",
    "shutdown": "leaving the with block, or cluster.wait(timeout)",
    "tensorboard_url": "cluster.tensorboard_url",
    "get_data_feed": CALLS["TFNode.DataFeed"],
    "next_batch": "iterating over ctx.dataset(batch_size)",
    "batch_results": "returning the results from the function given to ctx.serve",
    "should_stop": "the end of the dataset",
    "terminate": CALLS["TFNode.terminate"],
    "absolute_path": CALLS["TFNode.hdfs_path"],
    "start_cluster_server": CALLS["TFNode.start_cluster_server"],
    "export_saved_model": CALLS["TFNode.export_saved_model"],
    "release_port": CALLS["TFNode.release_port"],
}
"""The tfspark form of each method, by name only, because the source does not show the class of the object."""

ATTRIBUTES = {
    "job_name": "ctx.role",
    "task_index": "ctx.index",
    "worker_num": "ctx.index",
    "executor_id": "ctx.index",
    "mgr": "ctx",
    "defaultFS": "a full path in args",
}
"""The tfspark form of each attribute of main's context."""

ARGUMENTS = {
    "num_ps": "ps=; main then runs in the chief alone",
    "master_node": "chief=True",
    "eval_node": "evaluator=True",
    "driver_ps_nodes": "nothing: parameter servers run in executors",
    "tensorboard": "tensorboard=True, with a log_dir",
    "log_dir": "log_dir=directory",
    "input_mode": "nothing: cluster.feed may be called or not",
    "reservation_timeout": "start_timeout=",
    "queues": "nothing",
    "release_port": "nothing",
    "feed_timeout": "Cluster(stall_timeout=, hang_timeout=)",
    "grace_secs": "nothing: wait() waits until main has returned",
}
"""The tfspark form of each argument of the calls that start, feed and stop a cluster."""


REFUSED = {
    "TFNode.start_cluster_server",
    "TFNode.export_saved_model",
    "TFNode.next_batch",
    "TFNode.batch_results",
    "TFNode.terminate",
    "TFSparkNode.run",
    "TFSparkNode.train",
    "TFSparkNode.inference",
    "TFSparkNode.shutdown",
}
"""Functions for which `tfspark.compat` raises an error, as the original does with TensorFlow 2."""

REFUSED_METHODS = {"start_cluster_server", "export_saved_model"}
"""Methods of main's context for which `tfspark.compat` raises an error."""


@dataclass(frozen=True)
class Finding:
    """One use of the old API, or one part that Keras 3 or TensorFlow 2.21 treats differently.

    Attributes
    ----------
    runs
        Whether `tfspark.compat` runs it unchanged.
    """

    line: int
    use: str
    becomes: str
    runs: bool = True


def find(source: str, name: str = "<program>") -> list[Finding]:
    """Return the uses of TensorFlowOnSpark in a program, and the changes for Keras 3, in the order of the lines.

    Parameters
    ----------
    source
        The program's text.
    name
        Name of the file, for errors.

    Raises
    ------
    ConfigurationError
        If this version of Python cannot parse the source.
    """
    # A program that imports tfspark.compat.tensorflowonspark still uses the old API.
    source = source.replace(f"tfspark.compat.{PACKAGE}", PACKAGE)
    try:
        tree = ast.parse(source, name)
    except (SyntaxError, ValueError) as e:
        raise ConfigurationError(f"{name} cannot be read as Python: {e}") from None
    names = _imported(tree)
    found = {Finding(u.line, u.use, u.becomes, u.runs) for u in find_uses(tree)}
    if names:
        found |= {f for node in ast.walk(tree) for f in _uses(node, names)}
    return sorted(found, key=lambda f: (f.line, f.use))


def _imported(tree: ast.AST) -> dict[str, str]:
    """Return the name within the package for each name that the program imports; ``""`` for the package itself."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    inner = alias.name.removeprefix(PACKAGE).lstrip(".")
                    names[alias.asname or PACKAGE] = inner if alias.asname else ""
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == PACKAGE:
            inner = str(node.module).removeprefix(PACKAGE).lstrip(".")
            names |= {a.asname or a.name: f"{inner}.{a.name}".lstrip(".") for a in node.names}
    return names


def _uses(node: ast.AST, names: dict[str, str]) -> Iterator[Finding]:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        if any(m.split(".")[0] == PACKAGE for m in modules):
            yield Finding(node.lineno, f"import of {PACKAGE}", "import tfspark")
        yield from _unknown(node, modules)
    elif isinstance(node, ast.Call):
        yield from _calls(node, names)
    elif isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES and _dotted(node.value) in ("ctx", "context"):
        yield Finding(node.lineno, _dotted(node), ATTRIBUTES[node.attr])


def _unknown(node: ast.Import | ast.ImportFrom, modules: list[str]) -> Iterator[Finding]:
    """Yield a finding for each imported module or name that `tfspark.compat` does not have."""
    wanted = (
        [(m, None) for m in modules] if isinstance(node, ast.Import) else [(modules[0], a.name) for a in node.names]
    )
    for module, name in wanted:
        if module.split(".")[0] == PACKAGE and not _exists(module, name):
            use = f"import of {module}{'.' if name else ''}{name or ''}"
            yield Finding(node.lineno, use, "nothing: tfspark does not have it", runs=False)


def _exists(module: str, name: str | None) -> bool:
    own = f"tfspark.compat.{module}"
    try:
        if name is None or name == "*":
            return importlib.util.find_spec(own) is not None
        return hasattr(importlib.import_module(own), name) or importlib.util.find_spec(f"{own}.{name}") is not None
    except ModuleNotFoundError:
        return False


def _calls(node: ast.Call, names: dict[str, str]) -> Iterator[Finding]:
    written = _dotted(node.func)
    known = _resolve(written, names)
    if written.endswith(".mgr.get_queue"):
        yield Finding(node.lineno, f"{written}(...)", CALLS["TFNode.DataFeed"], runs=False)
        return
    if known in CALLS:
        yield Finding(node.lineno, f"{known}(...)", CALLS[known], known not in REFUSED)
    elif known is None and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
        use, runs = f"{written or '...'}(...)", node.func.attr not in REFUSED_METHODS
        yield Finding(node.lineno, use, METHODS[node.func.attr], runs)
    else:
        return
    for keyword in node.keywords:
        if keyword.arg in ARGUMENTS and (known or node.func.attr in METHODS):  # type: ignore[attr-defined]
            yield Finding(keyword.value.lineno, f"{keyword.arg}=", ARGUMENTS[keyword.arg])


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value) or '...'}.{node.attr}"
    return ""


def _resolve(written: str, names: dict[str, str]) -> str | None:
    """Return ``module.name`` for a name that the program imports from the package, otherwise ``None``."""
    for own, inner in names.items():
        if written == own or written.startswith(f"{own}."):
            return f"{inner}{written.removeprefix(own)}".lstrip(".")
    return None


def add_parser(verbs: Any) -> None:
    """Add the ``migrate`` command to ``tfspark``."""
    parser = verbs.add_parser(
        "migrate",
        help="report what a program of TensorFlowOnSpark becomes",
        description="Report each use of TensorFlowOnSpark, and its form with tfspark, and what Keras 3 and TensorFlow "
        "2.21 do not understand. Files are not changed. "
        "The guide is docs/migration/tensorflowonspark.md.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="a Python file, or a directory of them")
    parser.set_defaults(run=_migrate)


def _migrate(options: argparse.Namespace) -> int:
    found: list[Finding] = []
    for file in _files(options.files):
        of_file = find(file.read_text(errors="replace"), str(file))
        for f in of_file:
            must = "" if f.runs else "must change: "
            sys.stdout.write(f"{file}:{f.line}: {must}{f.use} -> {f.becomes}\n")
        found += of_file
    sys.stdout.write(f"{_summary(found)}\n")
    return 0


def _summary(found: list[Finding]) -> str:
    must = sum(not f.runs for f in found)
    if not found:
        return f"No uses of {PACKAGE} found."
    counted = f"{len(found)} use{'s' * (len(found) != 1)} of {PACKAGE} and of old Keras found"
    if must:
        return f"{counted}; {must} must change before tfspark.compat can run the program, the others may stay."
    return f"{counted}; tfspark.compat runs them as they are."


def _files(names: list[str]) -> Iterator[Path]:
    for name in names:
        path = Path(name)
        if path.is_dir():
            yield from sorted(path.rglob("*.py"))
        elif path.is_file():
            yield path
        else:
            raise ConfigurationError(f"{name} is neither a file nor a directory.")
