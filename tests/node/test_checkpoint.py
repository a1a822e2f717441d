"""What is in a directory of checkpoints when a program was killed in the middle of something."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from tfspark.errors import ConfigurationError
from tfspark.node.keras import checkpoint as ck


class KilledError(BaseException):
    """Stands for the death of the process."""


def saved(directory: Path, epochs: int, value: int, agree: Callable[..., int] = max, keep: int = 3) -> Any:
    return ck.TrainingCheckpoint(
        str(directory), {"v": tf.Variable(value)}, keep=keep, writes=True, agree=agree, epochs_read=lambda: epochs
    )


def killed_at(monkeypatch: pytest.MonkeyPatch, name: str, path: str) -> None:
    """Let the process die when it is about to do something to a file."""
    real = getattr(tf.io.gfile, name)

    def dying(*args: Any, **kwargs: Any) -> Any:
        if str(args[-1]).endswith(path):
            raise KilledError
        return real(*args, **kwargs)

    monkeypatch.setattr(tf.io.gfile, name, dying)


def test_a_new_run_killed_at_its_first_save_does_not_go_on_from_the_finished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for epochs in (4, 5):
        saved(tmp_path, epochs, 7).save()
    saved(tmp_path, 5, 7).finish()
    for name in ("remove", "rmtree"):
        with monkeypatch.context() as patch, pytest.raises(KilledError):
            killed_at(patch, name, "epoch-000005/epoch.json" if name == "remove" else "epoch-000005")
            saved(tmp_path, 1, 8).save()
        assert ck.is_finished(str(tmp_path)) or max(ck.complete(str(tmp_path))) == 1
    saved(tmp_path, 1, 8).save()
    assert not ck.is_finished(str(tmp_path)) and list(ck.complete(str(tmp_path))) == [1]


def test_a_checkpoint_counts_only_when_all_of_it_has_been_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tf.io.gfile.rename

    def file_by_file(source: str, target: str) -> None:
        """As on an object store: the process dies when the first file, by name, has been moved."""
        names = sorted(tf.io.gfile.listdir(source)) if tf.io.gfile.isdir(source) else []
        if not names:
            return real(source, target)
        tf.io.gfile.makedirs(target)
        real(f"{source}/{names[0]}", f"{target}/{names[0]}")
        raise KilledError

    saved(tmp_path, 1, 7).save()
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(tf.io.gfile, "rename", file_by_file)
        saved(tmp_path, 2, 8).save()
    assert list(ck.complete(str(tmp_path))) == [1]
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        killed_at(patch, "rename", ck.EPOCH_FILE)
        saved(tmp_path, 2, 8).save()
    assert list(ck.complete(str(tmp_path))) == [1]
    path = saved(tmp_path, 2, 8).save()
    assert list(ck.complete(str(tmp_path))) == [1, 2]
    assert sorted(p.name for p in Path(path).iterdir()) == [
        "epoch.json",
        "state.data-00000-of-00001",
        "state.index",
    ]


def test_a_checkpoint_that_is_being_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for epochs in (1, 2):
        saved(tmp_path, epochs, 7).save()
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        killed_at(patch, "rmtree", "epoch-000001")
        saved(tmp_path, 3, 7, keep=2).save()
    assert list(ck.complete(str(tmp_path))) == [2, 3]
    own = [tmp_path / "epoch-7" / "model.keras", tmp_path / "epoch-000009" / "model.keras", tmp_path / "epoch-8"]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("not a checkpoint")
    saved(tmp_path, 4, 7, keep=2).save()
    assert all(path.exists() for path in own)
    assert not (tmp_path / "epoch-000001").exists() and list(ck.complete(str(tmp_path))) == [3, 4]


@pytest.mark.parametrize("how", ["state gone", "state cut", "index broken"])
def test_a_checkpoint_that_is_damaged_is_told_as_such(tmp_path: Path, how: str) -> None:
    path = Path(saved(tmp_path, 1, 7).save())
    if how == "state gone":
        (path / "state.index").unlink()
    elif how == "state cut":
        (path / "state.data-00000-of-00001").write_bytes(b"")
    else:
        (path / "state.index").write_bytes(b"no index" * 100)
    with pytest.raises(ConfigurationError, match="does not fit the objects to restore"):
        saved(tmp_path, 1, 7).restore()


def test_all_epochs_that_a_node_has_are_offered(tmp_path: Path) -> None:
    for epochs in (1, 2, 3, 4):
        saved(tmp_path, epochs, epochs).save()
    offered: list[Any] = []

    def agree(epochs: list[int]) -> int:
        offered.append(epochs)
        return 3

    variable = saved(tmp_path, 4, 0, agree)
    assert variable.restore() == 3 and offered == [[2, 3, 4]]
    assert int(variable._objects["v"]) == 3


def test_an_evaluator_whose_checkpoint_was_tidied_away_takes_the_newest_one_once(tmp_path: Path) -> None:
    for epochs in (1, 2):
        saved(tmp_path, epochs, 10 * epochs, keep=2).save()
    value = tf.Variable(0)
    evaluator = ck.TrainingCheckpoint(
        str(tmp_path), {"v": value}, keep=2, writes=False, agree=max, epochs_read=lambda: 0
    )
    ended, never = threading.Event(), threading.Event()
    paths = ck.follow(str(tmp_path), ended, never, 0.01, lambda: [evaluator.last_read])
    path = next(paths)
    for epochs in (3, 4, 5):
        saved(tmp_path, epochs, 10 * epochs, keep=2).save()
    assert path.endswith("epoch-000002") and not Path(path).exists()
    assert evaluator.restore(path) == 5 and int(value.numpy()) == 50
    ended.set()
    assert list(paths) == [], "the one that was restored does not come again"


def test_a_checkpoint_that_never_was_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path, 3, 30).save()
    with pytest.raises(ConfigurationError, match="epoch-000007 is not a checkpoint"):
        saved(tmp_path, 3, 30).restore(f"{tmp_path}/epoch-000007")
