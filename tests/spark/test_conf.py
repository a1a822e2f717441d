"""The files in `conf/`: every setting is one that Spark knows, and each file does its work in a real Spark."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyspark
import pytest
import yaml
from py4j.java_collections import JavaMap
from py4j.protocol import Py4JError
from standalone import daemon, wait_for

from tfspark.spark.session import ARROW_BATCH_BYTES

CONF = Path(__file__).parents[2] / "conf"
PROGRAM = Path(__file__).parents[1] / "programs" / "show_conf.py"
INSTALLED = "/opt/tfspark/conf"
WARNING = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.]+\S+ WARN  shown: a warning$", re.M)
DEFAULTS = [*sorted(CONF.glob("spark-defaults-*.conf")), CONF.parent / "docker" / "spark-defaults.conf"]

HOMES_OF_SETTINGS = [
    "org.apache.spark.internal.config.package$",
    "org.apache.spark.internal.config.Python$",
    "org.apache.spark.internal.config.UI$",
    "org.apache.spark.internal.config.Worker$",
    "org.apache.spark.sql.internal.SQLConf$",
    "org.apache.spark.deploy.yarn.config.package$",
    "org.apache.spark.deploy.k8s.Config$",
]
"""The objects in which Spark declares its settings; they are registered when these are loaded."""

UNDECLARED = [
    r"spark\.master",
    r"spark\.(driver|executor|task|worker)\.resource\.gpu\.(amount|discoveryScript|vendor)",
    r"spark\.kubernetes\.(driver|executor)\.volumes\.persistentVolumeClaim\.\w+\.(options\.claimName|mount\.(path|readOnly))",
]
"""Settings that Spark documents, but reads without having declared them, as part of their name is free."""


def settings(spark: Any, file: Path) -> dict[str, str]:
    """Read a file as spark-submit does."""
    properties = spark._jvm.org.apache.spark.util.Utils.getPropertiesFromFile(str(file))
    return {k: properties.get(k).get() for k in re.findall(r"^(spark\S+)", file.read_text(), re.M)}


@pytest.mark.parametrize("file", DEFAULTS, ids=lambda f: f.stem)
def test_spark_knows_every_setting(spark: Any, file: Path) -> None:
    for name in HOMES_OF_SETTINGS:
        spark._jvm.java.lang.Class.forName(name)
    entry_of = spark._jvm.org.apache.spark.internal.config.ConfigEntry.findEntry
    assert entry_of("spark.executor.no.such.setting") is None
    found = settings(spark, file)
    batch = entry_of("spark.sql.execution.arrow.maxBytesPerBatch").valueConverter()
    assert batch.apply(found["spark.sql.execution.arrow.maxBytesPerBatch"]) == ARROW_BATCH_BYTES
    for key, value in found.items():
        entry = entry_of(key)
        if entry is None:
            assert any(re.fullmatch(p, key) for p in UNDECLARED), f"{file.name}: Spark knows no {key}"
        else:
            entry.valueConverter().apply(value)  # Raises for a value of the wrong kind.


@pytest.mark.unit
@pytest.mark.parametrize("file", DEFAULTS, ids=lambda f: f.stem)
def test_files_that_are_named_exist(file: Path) -> None:
    named = re.findall(rf"{INSTALLED}/([\w./-]+)", file.read_text())
    assert all((CONF / name).is_file() for name in named)


MANIFESTS = [
    pytest.param(document, id=f"{file.stem}-{document['kind']}")
    for file in sorted((CONF / "kubernetes").glob("*.yaml"))
    for document in yaml.safe_load_all(file.read_text())
]


def check_fields(wanted: Any, model: Any, where: str) -> None:
    """Compare YAML with the object that Kubernetes' client has made of it: unknown fields have no getter."""
    if isinstance(wanted, dict):
        if isinstance(model, JavaMap):
            assert dict(model) == wanted, where
            return
        for key, value in wanted.items():
            got = getattr(model, f"get{key[0].upper()}{key[1:]}")()
            assert got is not None, f"{where}.{key}"
            check_fields(value, got, f"{where}.{key}")
    elif isinstance(wanted, list):
        assert len(model) == len(wanted), where
        for i, value in enumerate(wanted):
            check_fields(value, model[i], f"{where}[{i}]")
    elif not where.endswith("sizeLimit"):
        assert model == wanted, where


@pytest.mark.parametrize("document", MANIFESTS)
def test_manifests_hold_only_fields_of_kubernetes(spark: Any, document: dict[str, Any]) -> None:
    client = spark._jvm.io.fabric8.kubernetes.client.utils.KubernetesSerialization()
    check_fields(document, client.unmarshal(json.dumps(document)), document["kind"])


def test_a_field_that_kubernetes_does_not_know_is_noticed(spark: Any) -> None:
    document = {"apiVersion": "v1", "kind": "Pod", "spec": {"runtimeClass": "nvidia"}}
    client = spark._jvm.io.fabric8.kubernetes.client.utils.KubernetesSerialization()
    with pytest.raises(Py4JError, match="getRuntimeClass"):
        check_fields(document, client.unmarshal(json.dumps(document)), "Pod")


@pytest.mark.parametrize("name", ["driver", "executor", "executor-cpu"])
def test_spark_takes_the_pod_templates(spark: Any, name: str) -> None:
    """Spark looks for its container by name, and takes the first one otherwise: a wrong name would go unnoticed."""
    (pod,) = yaml.safe_load_all((CONF / "kubernetes" / f"{name}.yaml").read_text())
    constants = (
        spark._jvm.java.lang.Class.forName("org.apache.spark.deploy.k8s.Constants$").getField("MODULE$").get(None)
    )
    default = getattr(constants, f"DEFAULT_{name.split('-')[0].upper()}_CONTAINER_NAME")()
    assert [c["name"] for c in pod["spec"]["containers"]] == [default]


@pytest.mark.unit
def test_image_operator_and_templates_agree() -> None:
    """On the user of Apache's image, on Spark's version, and on where files are in the image."""
    root = CONF.parent
    recipe = (root / "docker" / "kubernetes" / "Dockerfile").read_text()
    users = re.findall(r"^USER (\S+)", recipe, re.M)
    pods = [yaml.safe_load((CONF / "kubernetes" / f"{n}.yaml").read_text()) for n in ("driver", "executor-cpu")]
    assert users == ["root", "185"] and {p["spec"]["securityContext"]["runAsUser"] for p in pods} == {185}
    assert not re.search(r"^(ENTRYPOINT|CMD)", recipe, re.M), "the entry point is that of Apache's image"
    for sources in re.findall(r"^COPY \S+ (.+) \S+$", recipe, re.M):
        assert all((root / source).exists() for source in sources.split())
    application = yaml.safe_load((CONF / "spark-operator" / "flights.yaml").read_text())
    spec = application["spec"]
    (version,) = re.findall(r"^ARG SPARK_VERSION=(\S+)", recipe, re.M)
    account, role = (
        d
        for d in yaml.safe_load_all((CONF / "kubernetes" / "service-account.yaml").read_text())
        if d["kind"] in ("ServiceAccount", "Role")
    )
    assert spec["sparkVersion"] == version and spec["driver"]["serviceAccount"] == account["metadata"]["name"]
    assert application["metadata"]["namespace"] == account["metadata"]["namespace"] == role["metadata"]["namespace"]
    assert (root / spec["mainApplicationFile"].removeprefix("local:///opt/tfspark/")).is_file()
    assert int(spec["arguments"][1]) <= spec["executor"]["instances"]
    claims = {v["name"] for v in spec["volumes"]}
    assert all({m["name"] for m in spec[r]["volumeMounts"]} == claims for r in ("driver", "executor"))


def discover(path: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    tools = f"{path}:/usr/bin:/bin" if path else "/usr/bin:/bin"
    inherited = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    script = [str(CONF / "discover-gpus.sh")]
    return subprocess.run(script, env={**inherited, "PATH": tools, **environment}, capture_output=True, text=True)


def gpus(*where: Path, **environment: str) -> list[str]:
    answer = json.loads(discover(*where, **environment).stdout)
    assert answer.pop("name") == "gpu" and list(answer) == ["addresses"]
    return list(answer["addresses"])


def nvidia_smi(directory: Path, body: str) -> Path:
    """Put a command of that name, which prints or fails as the real one does, into a directory."""
    command = directory / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{body}\n")
    command.chmod(0o755)
    return directory


LISTED = """cat <<'END'
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-11111111-2222-3333-4444-555555555555)
  MIG 3g.40gb     Device  0: (UUID: MIG-66666666-7777-8888-9999-aaaaaaaaaaaa)
  MIG 3g.40gb     Device  1: (UUID: MIG-bbbbbbbb-cccc-dddd-eeee-ffffffffffff)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-12345678-2222-3333-4444-555555555555)
GPU 10: Tesla T4 (UUID: GPU-87654321-2222-3333-4444-555555555555)
END"""


@pytest.mark.unit
def test_all_gpus_are_found_and_instances_of_those_that_are_cut(tmp_path: Path) -> None:
    instances = ["MIG-66666666-7777-8888-9999-aaaaaaaaaaaa", "MIG-bbbbbbbb-cccc-dddd-eeee-ffffffffffff"]
    assert gpus(nvidia_smi(tmp_path, LISTED)) == [*instances, "1", "10"]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("visible", "addresses"),
    [
        ("1,0", ["1", "0"]),
        ("GPU-11, 3", ["GPU-11", "3"]),
        ("", []),
        ("-1", []),
        ("2,-1,3", ["2"]),
        ("0,$(id),1", ["0"]),
    ],
)
def test_cuda_visible_devices_is_honoured(tmp_path: Path, visible: str, addresses: list[str]) -> None:
    assert gpus(nvidia_smi(tmp_path, LISTED), CUDA_VISIBLE_DEVICES=visible) == addresses


@pytest.mark.unit
def test_a_driver_that_fails_is_no_host_without_gpus(tmp_path: Path) -> None:
    done = discover(nvidia_smi(tmp_path, "echo couldn\\'t communicate with the NVIDIA driver; exit 9"))
    assert done.returncode == 1 and done.stdout == ""
    assert "couldn't communicate with the NVIDIA driver" in done.stderr


def here(file: Path, directory: Path) -> Path:
    """Copy a file so that it names the files of this checkout."""
    copy = directory / file.name
    copy.write_text(file.read_text().replace(INSTALLED, str(CONF)))
    return copy


def submit(properties: Path, *arguments: str, **environment: str) -> tuple[dict[str, Any], str]:
    without = ("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON", "SPARK_CONF_DIR", "CUDA_VISIBLE_DEVICES")
    inherited = {k: v for k, v in os.environ.items() if k not in without}
    spark_submit = str(Path(pyspark.__file__).parent / "bin" / "spark-submit")
    command = [spark_submit, "--properties-file", str(properties), *arguments]
    done = subprocess.run(
        [*command, str(PROGRAM)],
        env={**inherited, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture
def gpu_master(tmp_path: Path) -> Iterator[str]:
    """A standalone cluster of one host that seems to have two GPUs; its worker reads the file from `conf`."""
    properties = here(CONF / "spark-defaults-standalone-gpu.conf", tmp_path)
    loopback, deploy = ("--host", "127.0.0.1"), "org.apache.spark.deploy"
    tools = nvidia_smi(tmp_path, "echo 'GPU 0: A (UUID: GPU-1)'; echo 'GPU 1: A (UUID: GPU-2)'")
    path = {"PATH": f"{tools}:{os.environ['PATH']}"}
    running = [daemon(tmp_path / "master", f"{deploy}.master.Master", *loopback, "--port", "0", "--webui-port", "0")]
    try:
        url = wait_for(tmp_path / "master", r"Starting Spark master at (spark://\S+)", running[0])[1]
        size = ("--cores", "4", "--memory", "2g", "--webui-port", "0", "--work-dir", str(tmp_path / "work"))
        files = ("--properties-file", str(properties))
        worker = daemon(tmp_path / "worker", f"{deploy}.worker.Worker", *loopback, *size, *files, url, **path)
        running.append(worker)
        wait_for(tmp_path / "worker", "Successfully registered with master", worker)
        yield url
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(timeout=30)


def test_a_standalone_cluster_with_gpus(gpu_master: str, tmp_path: Path) -> None:
    """The worker finds GPUs by the script, nodes get one each, and feeding needs none."""
    properties = tmp_path / "spark-defaults-standalone-gpu.conf"
    smaller = ("--conf", "spark.executor.cores=4", "--conf", "spark.executor.memory=1g")
    shown, log = submit(properties, "--master", gpu_master, *smaller)
    assert sorted(shown["gpus"]) == [["0"], ["1"]]
    assert shown["beside"] == 10, "feeding runs beside nodes that hold all GPUs"
    assert shown["settings"]["spark.scheduler.mode"] == "FAIR"
    assert shown["pools"] == ["default", "feeding"]
    assert "jvm_heap_used" in shown["metrics"].lower()
    assert WARNING.search(log)
    assert "Unable to load native-hadoop" not in log


def test_the_local_file_shows_in_the_session(spark: Any, tmp_path: Path) -> None:
    properties = here(CONF / "spark-defaults-local.conf", tmp_path)
    shown, log = submit(properties)
    for key, value in settings(spark, properties).items():
        # Spark puts Java options of its own before those of the user.
        assert shown["settings"][key].endswith(value), key
    assert WARNING.search(log) and "Using Spark's default log4j profile" not in log


def exposed() -> set[str]:
    """Return the names of all metrics of a node that has something to say of each."""
    from prometheus_client.parser import text_string_to_metric_families

    from tfspark.control.node_history import InputTimes
    from tfspark.monitoring.bottleneck import Bottleneck
    from tfspark.monitoring.prometheus import exposition
    from tfspark.monitoring.status import NodeStatus, Snapshot

    times = InputTimes(9.0, 1.0)
    node = NodeStatus("worker", 0, "a", "running", 1, 5, 7, {"loss": 0.2}, (), 4, 4.0, 0.5, times, Bottleneck.FEED)
    text = exposition(Snapshot("feeding", 1.0, [node]), "cluster").decode()
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def test_dashboard_and_alerts_ask_for_metrics_that_there_are() -> None:
    dashboard = json.loads((CONF / "grafana" / "tfspark.json").read_text())
    rules = yaml.safe_load((CONF / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
    expressions = [t["expr"] for p in dashboard["panels"] for t in p["targets"]] + [r["expr"] for r in rules]
    asked = {name for e in expressions for name in re.findall(r"\btfspark_\w+", e)}
    assert len(dashboard["panels"]) == 12 and len({p["id"] for p in dashboard["panels"]}) == 12
    assert asked <= exposed() and exposed() - asked <= {"tfspark_input_ahead_seconds_total"}
    assert all(e.count("(") == e.count(")") and e.count("{") == e.count("}") for e in expressions)
    assert all(r["annotations"]["summary"] and r["labels"]["severity"] for r in rules)
    scrape = yaml.safe_load((CONF / "prometheus" / "prometheus.yml").read_text())
    assert scrape["rule_files"] == ["alerts.yml"] and scrape["scrape_configs"][0]["job_name"] == "tfspark"
