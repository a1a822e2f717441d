"""docker-compose.yml and docker/ agree with each other and with setup.cfg; ``make compose-test`` brings them up."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import tfspark

ROOT = Path(__file__).parent.parent
COMPOSITION = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
GPU = yaml.safe_load((ROOT / "docker" / "gpu.yml").read_text())
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
SERVICES: dict[str, dict[str, Any]] = COMPOSITION["services"]
INSTALLED = "/opt/tfspark/"
PORT = re.compile(r"127\.0\.0\.1:(\$\{([A-Z0-9_]+)_PORT:-(\d+)\}):(.+)")
"""Of the host, which a variable changes, and of the container."""


def published(service: str) -> re.Match[str]:
    """Return the parts of the one port of a service."""
    (port,) = SERVICES[service]["ports"]
    found = PORT.fullmatch(port)
    assert found, port
    return found


def settings(file: str) -> dict[str, str]:
    lines = (ROOT / "docker" / file).read_text().splitlines()
    return dict(line.split(None, 1) for line in lines if line.strip() and not line.startswith("#"))


@pytest.mark.parametrize("name", SERVICES)
def test_a_service(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(rf"localhost/tfspark(-airflow)?:{re.escape(tfspark.__version__)}", service["image"])
    own = ["airflow:/home/tfspark/airflow"] if name == "airflow" else []
    assert service["volumes"] == ["shared:/shared", *own] and "privileged" not in service and "user" not in service
    # Without a limit, a log grows until the disk is full.
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}
    if name == "train":
        assert service["profiles"] == ["train"] and set(service["depends_on"]) == {"worker-1", "worker-2"}
        return
    # What is checked is the port that the service itself listens on.
    assert f"localhost:{published(name)[4]}/" in service["healthcheck"]["test"][-1]


def test_services_wait_for_services_that_have_a_health_check_and_use_what_is_declared() -> None:
    for service in SERVICES.values():
        for awaited, terms in service.get("depends_on", {}).items():
            assert terms == {"condition": "service_healthy"} and "healthcheck" in SERVICES[awaited]
        assert set(service["networks"]) <= set(COMPOSITION["networks"])
        assert {v.split(":")[0] for v in service["volumes"]} <= set(COMPOSITION["volumes"])


def test_each_port_has_its_variable_which_the_docs_name() -> None:
    ports = {name: published(name) for name, service in SERVICES.items() if "ports" in service}
    assert {name.upper().replace("-", "_") for name in ports} == {port[2] for port in ports.values()}
    assert len(ports) == len({port[3] for port in ports.values()}) == 7
    page = (ROOT / "docs" / "clusters" / "compose.md").read_text()
    for port in ports.values():
        assert f"`{port[2]}_PORT`" in page and f"localhost:{port[3]}>" in page


@pytest.mark.parametrize("name", ["master", "worker-1", "worker-2"])
def test_pages_that_link_to_each_other_have_the_same_port_inside_and_outside(name: str) -> None:
    environment, port = SERVICES[name]["environment"], published(name)
    assert environment["SPARK_PUBLIC_DNS"] == "localhost" and port[1] == port[4]
    assert environment[f"SPARK_{name.split('-')[0].upper()}_WEBUI_PORT"] == port[1]
    # An argument would be used instead of the variable.
    assert "--webui-port" not in SERVICES[name]["command"]
    assert "--webui-port" not in GPU["services"].get(name, {}).get("command", [])


def test_a_worker_with_a_gpu_cleans_up_like_the_others() -> None:
    default, gpu = settings("spark-defaults.conf"), settings("spark-worker-gpu.conf")
    assert default["spark.history.fs.cleaner.enabled"] == "true"
    cleanup = {k: v for k, v in default.items() if k.startswith("spark.worker.cleanup.")}
    assert cleanup["spark.worker.cleanup.enabled"] == "true"
    assert cleanup == {k: v for k, v in gpu.items() if k in cleanup}


def test_commands_name_files_that_the_image_has() -> None:
    copied = re.findall(r"^COPY --chown=tfspark (.+) \S+$", DOCKERFILE, re.M)
    sources = [word for words in copied for word in words.split()]
    assert all((ROOT / source).exists() for source in sources)
    commands = [s["command"] for s in [*SERVICES.values(), *GPU["services"].values()] if "command" in s]
    files = [w.removeprefix(INSTALLED) for c in commands for w in c if w.startswith((INSTALLED, "jobs/"))]
    assert "jobs/flights.py" in files and "docker/spark-worker-gpu.conf" in files
    for file in files:
        assert (ROOT / file).is_file() and file.split("/")[0] in " ".join(sources)
    for settings in (ROOT / "docker").glob("*.conf"):
        for path in re.findall(rf"{INSTALLED}(\S+)", settings.read_text()):
            assert (ROOT / path).is_file()


def test_what_changes_often_comes_last_in_the_image() -> None:
    steps = ["requirements/tensorflow.txt", "requirements/spark.txt", "requirements/arrays.txt"]
    steps += ["requirements/others.txt", "tfspark src/tfspark", "jobs jobs"]
    places = [DOCKERFILE.index(step) for step in steps]
    assert places == sorted(places)
    assert places[3] < DOCKERFILE.index("-r jobs/airflow/requirements.txt") < places[4]
    assert re.search(rf"^FROM \S+ AS {SERVICES['airflow']['build']['args']['PACKAGES']}$", DOCKERFILE, re.M)


def test_what_train_is_told_is_what_the_job_takes() -> None:
    import sys

    sys.path.insert(0, str(ROOT / "jobs"))
    import flights

    for services in (SERVICES, GPU["services"]):
        words = services["train"]["command"]
        args = flights.parse(words[words.index("jobs/flights.py") + 1 :])
        assert args.workers == 2 and args.log_dir.startswith("/shared/logs/")
    assert args.gpus_per_node == 1.0


def test_the_override_is_of_services_that_exist() -> None:
    assert set(GPU["services"]) < set(SERVICES)
    for name in ("worker-1", "worker-2"):
        assert GPU["services"][name]["command"][:-3] == SERVICES[name]["command"][:-1]
    devices = [
        GPU["services"][w]["deploy"]["resources"]["reservations"]["devices"][0] for w in ("worker-1", "worker-2")
    ]
    assert [d["device_ids"] for d in devices] == [["0"], ["1"]]


def test_the_image_is_pinned_and_no_root() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)
    assert bases == ["${BASE}", "tfspark-packages", "${PACKAGES}"]
    assert re.search(r"^ARG BASE=docker\.io/library/debian@sha256:[0-9a-f]{64}$", DOCKERFILE, re.M)
    assert DOCKERFILE.index("USER tfspark") < DOCKERFILE.index("pip install") and "USER root" not in DOCKERFILE
    files = sorted((ROOT / "docker" / "requirements").iterdir())
    installed = re.findall(r"--no-deps -r docker/requirements/(\S+)", DOCKERFILE)
    assert sorted(installed) == [f.name for f in files]
    lines = [line for f in files for line in f.read_text().splitlines()]
    pinned = {r.name.lower().replace("_", "-"): r for r in map(Requirement, lines)}
    assert len(pinned) == len(lines)
    versions = {name: str(r.specifier).removeprefix("==") for name, r in pinned.items()}
    assert all(re.fullmatch(r"==[\w.+]+", str(r.specifier)) for r in pinned.values())
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    wanted = [config["options"]["install_requires"], *(config["options.extras_require"][e] for e in ("serve", "demo"))]
    for line in "\n".join(wanted).splitlines():
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line)
            assert requirement.specifier.contains(versions[requirement.name.lower()]), line
