"""Which versions `tfspark serve` has: what changes under its directory, whatever state a copy is in."""

from __future__ import annotations

import asyncio
import gc
import logging
import shutil
import weakref
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tensorflow as tf

from tfspark.model_server import repository as repository_module
from tfspark.model_server.app import make_app
from tfspark.model_server.core import Core
from tfspark.model_server.model_config import VersionPolicy
from tfspark.model_server.places import Stamp, stamp_of
from tfspark.model_server.repository import Repository, VersionStatus


class Times(tf.Module):
    def __init__(self, factor: float) -> None:
        self.factor = tf.Variable(factor)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def __call__(self, x: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_less(x, 100.0)]):
            return {"y": self.factor * x}


def save(factor: float, directory: Path) -> None:
    module = Times(factor)
    tf.saved_model.save(module, str(directory), module.__call__)


def answer(repository: Repository, model: str = "m", version: int | None = None) -> float:
    loaded = repository.find(model, version)
    return float(loaded.call("serving_default", {"x": np.ones(1, np.float32)})["y"][0])


async def ask(app: Any, *requests: tuple[str, str, Any]) -> list[httpx.Response]:
    """Return the answers to requests that are sent at the same time."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://m") as client:
        return await asyncio.gather(*(client.request(method, path, json=body) for method, path, body in requests))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models 2 and 3 that multiply by that number."""
    base = tmp_path_factory.mktemp("saved")
    for factor in (2, 3):
        save(float(factor), base / str(factor))
    return base


@pytest.fixture
def base(saved: Path, tmp_path: Path) -> Path:
    """A model "m" with version 2."""
    shutil.copytree(saved / "2", tmp_path / "m" / "2")
    return tmp_path


def test_weights_that_are_copied_into_a_version_are_loaded(base: Path, saved: Path) -> None:
    repository = Repository(str(base))
    assert answer(repository) == 2
    before = repository.find("m")
    repository.refresh()
    assert repository.find("m") is before
    shutil.copytree(saved / "3" / "variables", base / "m" / "2" / "variables", dirs_exist_ok=True)
    repository.refresh()
    assert answer(repository) == 3


def test_a_version_that_is_found_half_copied_is_loaded_when_it_is_whole(base: Path, saved: Path, caplog: Any) -> None:
    repository = Repository(str(base))
    (base / "m" / "3").mkdir()
    shutil.copy(saved / "3" / "saved_model.pb", base / "m" / "3")
    for _ in range(3):
        repository.refresh()
        assert {v: s.state for v, s in repository.statuses("m").items()} == {3: "END", 2: "AVAILABLE"}
    assert answer(repository) == 2
    shutil.copytree(saved / "3", base / "m" / "3", dirs_exist_ok=True)
    repository.refresh()
    assert answer(repository) == 3
    assert [s.error for s in repository.statuses("m").values()] == [""]
    assert len([r for r in caplog.records if "cannot load" in r.message]) == 1


def test_a_version_that_is_broken_in_place_still_answers(base: Path, saved: Path) -> None:
    repository = Repository(str(base))
    for broken in (base / "m" / "2" / "variables").iterdir():
        broken.write_bytes(b"nonsense")
    repository.refresh()
    status = repository.statuses("m")[2]
    assert status.state == "AVAILABLE" and status.error
    assert answer(repository) == 2 and repository.healthy
    shutil.copytree(saved / "3", base / "m" / "2", dirs_exist_ok=True)
    repository.refresh()
    assert answer(repository) == 3 and not repository.statuses("m")[2].error


def test_whatever_goes_wrong_with_a_version_is_its_own_and_is_tried_again(
    base: Path, saved: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository_module, "POLL_SECONDS", 0.0)
    loaded_version = repository_module.LoadedVersion
    fails: list[Exception] = [AssertionError()] * 3 + [RuntimeError("not\nnow")]

    def load(model: str, number: int, directory: str) -> Any:
        if model == "m" and number == 3 and fails:
            raise fails.pop(0)
        return loaded_version(model, number, directory)

    monkeypatch.setattr(repository_module, "LoadedVersion", load)
    repository = Repository(str(base))
    shutil.copytree(saved / "3", base / "m" / "3")
    shutil.copytree(saved / "3", base / "n" / "1")
    with caplog.at_level(logging.ERROR):
        for error in ["AssertionError"] * 3 + ["RuntimeError: not"]:
            repository.refresh()
            assert repository.statuses("m")[3].error == error
            assert answer(repository, "m") == 2 and answer(repository, "n") == 3
    assert len(caplog.records) == 2
    repository.refresh()
    assert answer(repository, "m") == 3


def test_what_cannot_be_loaded_is_tried_less_and_less_often() -> None:
    stamp, other = Stamp(1, 2, 3), Stamp(1, 2, 4)
    for failures, seconds in ((1, 2), (2, 4), (3, 8), (6, 60), (10_000, 60)):
        status = VersionStatus(stamp, error="no", failures=failures, tried=1000.0)
        assert not status.is_due(stamp, 1000.0 + seconds - 0.1, 2.0)
        assert status.is_due(stamp, 1000.0 + seconds, 2.0)
        assert status.is_due(other, 1000.0, 2.0)
    assert not VersionStatus(stamp, tried=0.0).is_due(stamp, 1e9, 2.0)


def test_the_stamp_of_a_version_is_of_all_its_files(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = base / "m" / "2"
    first = stamp_of(str(version))
    (version / "assets" / "words").write_text("a")
    second = stamp_of(str(version))
    assert (second.files, second.size) == (first.files + 1, first.size + 1)
    (version / "assets" / "gone").symlink_to(version / "nothing")
    assert stamp_of(str(version)) == second
    (version / "saved_model.pb").unlink()
    with pytest.raises(FileNotFoundError):
        stamp_of(str(version))


def test_a_version_that_is_replaced_leaves_memory(base: Path, saved: Path) -> None:
    repository = Repository(str(base))
    app = make_app(Core(repository))
    version = weakref.ref(repository.find("m"))
    weights = weakref.ref(repository.find("m")._session)
    requests = [("POST", "/v1/models/m:predict", {"instances": [x]}) for x in (1.0, 200.0, 2.0, 300.0)]
    gc.collect()
    gc.disable()
    try:
        assert [a.status_code for a in asyncio.run(ask(app, *requests))] == [200, 400, 200, 400]
        shutil.copytree(saved / "3", base / "m" / "3")
        repository.refresh()
        assert version() is None and weights() is None
        assert answer(repository) == 3
    finally:
        gc.enable()


def test_a_card_with_numbers_that_json_does_not_know_is_shown(base: Path) -> None:
    card = base / "m" / "2" / "assets.extra" / "model_card.json"
    card.parent.mkdir()
    card.write_text('{"metrics": {"loss": NaN, "auc": 0.5}, "data": [Infinity]}')
    (shown,) = asyncio.run(ask(make_app(Core(Repository(str(base)))), ("GET", "/overview", None)))
    assert "NaN" not in shown.text and "Infinity" not in shown.text
    (version,) = shown.json()["models"][0]["versions"]
    assert version["card"] == {"metrics": {"loss": None, "auc": 0.5}, "data": [None]}


def test_versions_that_are_loaded() -> None:
    labels = {"stable": 1, "gone": 7}
    assert VersionPolicy(1, labels=labels).wanted([3, 1, 2]) == [1, 3]
    assert VersionPolicy(2).wanted([3, 1, 2]) == [2, 3]
    assert VersionPolicy(None).wanted([3, 1, 2]) == [1, 2, 3]
    assert VersionPolicy(specific=(1, 5)).wanted([3, 1, 2]) == [1]
    assert VersionPolicy(1, labels=labels).wanted([]) == []
