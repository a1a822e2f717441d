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


@pytest.mark.parametrize("name", SERVICES)
def test_a_service(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(rf"localhost/tfspark(-airflow)?:{re.escape(tfspark.__version__)}", service["image"])
    assert all(re.match(r"127\.0\.0\.1:\d+:\d+$", p) for p in service.get("ports", []))
    assert service["volumes"] == ["shared:/shared"] and "privileged" not in service and "user" not in service
    if name == "train":
        assert service["profiles"] == ["train"] and set(service["depends_on"]) == {"worker-1", "worker-2"}
        return
    # What is checked is a port that the service itself listens on.
    port = re.search(r"localhost:(\d+)/", service["healthcheck"]["test"][-1])
    assert port and [p.rsplit(":", 1)[1] for p in service["ports"]] == [port[1]]


def test_services_wait_for_services_that_have_a_health_check_and_use_what_is_declared() -> None:
    for service in SERVICES.values():
        for awaited, terms in service.get("depends_on", {}).items():
            assert terms == {"condition": "service_healthy"} and "healthcheck" in SERVICES[awaited]
        assert set(service["networks"]) <= set(COMPOSITION["networks"])
        assert {v.split(":")[0] for v in service["volumes"]} <= set(COMPOSITION["volumes"])


def test_no_port_is_published_twice() -> None:
    published = [p.rsplit(":", 1)[0] for s in SERVICES.values() for p in s.get("ports", [])]
    assert len(set(published)) == len(published) == 7


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
    assert bases == ["docker.io/library/debian:12.12-slim", "tfspark"]
    assert DOCKERFILE.index("USER tfspark") < DOCKERFILE.index("requirements.txt") and "USER root" not in DOCKERFILE
    lines = (ROOT / "docker" / "requirements.txt").read_text().splitlines()
    pinned = {r.name.lower().replace("_", "-"): r for r in (Requirement(x) for x in lines if not x.startswith("#"))}
    versions = {name: str(r.specifier).removeprefix("==") for name, r in pinned.items()}
    assert all(re.fullmatch(r"==[\w.+]+", str(r.specifier)) for r in pinned.values())
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    wanted = [config["options"]["install_requires"], *(config["options.extras_require"][e] for e in ("serve", "demo"))]
    for line in "\n".join(wanted).splitlines():
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line)
            assert requirement.specifier.contains(versions[requirement.name.lower()]), line
