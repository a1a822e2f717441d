"""Settings: where each comes from, what is refused, and what the page says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tfspark.errors import ConfigurationError
from tfspark.settings import Settings, chosen, described, parse, shown, unknown_variables

pytestmark = pytest.mark.unit


def test_arguments_come_first_then_spark_then_the_environment_then_the_default() -> None:
    given = {"silence_timeout": 20.0}
    conf = {"spark.tfspark.silence_timeout": "30s", "spark.tfspark.hang_timeout": "2min", "spark.app.name": "x"}
    environment = {
        "TFSPARK_SILENCE_TIMEOUT": "40",
        "TFSPARK_HANG_TIMEOUT": "50",
        "TFSPARK_STOP_GRACE": "7",
        "HOME": "/",
    }
    found = Settings.of(given, conf, environment)
    assert (found.silence_timeout, found.hang_timeout, found.stop_grace) == (20.0, 120.0, 7.0)
    assert found.start_timeout == Settings.start_timeout
    assert {name: origin for name, (_, origin) in chosen(given, conf, environment).items()} == {
        "silence_timeout": "Cluster",
        "hang_timeout": "spark.tfspark.hang_timeout",
        "stop_grace": "TFSPARK_STOP_GRACE",
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("hang_timeout", "90", 90.0),
        ("hang_timeout", "1.5min", 90.0),
        ("hang_timeout", "500ms", 0.5),
        ("hang_timeout", " 2 H ", 7200.0),
        ("step_timeout", "none", None),
        ("stop_grace", "0", 0.0),
        ("spool_bytes", "512m", 512 << 20),
        ("spool_bytes", "1.5g", 3 << 29),
        ("spool_bytes", "1000", 1000),
        ("log_tail_lines", "40", 40),
    ],
)
def test_texts_have_units(name: str, text: str, value: Any) -> None:
    assert parse(f"spark.tfspark.{name}", name, text) == value
    assert parse("again", name, shown(name, value)) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hang_timeout", "0"),
        ("hang_timeout", "-1s"),
        ("hang_timeout", "none"),
        ("hang_timeout", "1 day"),
        ("hang_timeout", "inf"),
        ("hang_timeout", ""),
        ("stop_grace", "-1"),
        ("spool_bytes", "0"),
        ("spool_bytes", "1.5"),
        ("spool_bytes", "1s"),
        ("log_tail_lines", "1k"),
        ("log_tail_lines", "1.5"),
    ],
)
def test_a_wrong_text_is_told_with_its_key_and_an_example(name: str, text: str) -> None:
    key = f"spark.tfspark.{name}"
    with pytest.raises(ConfigurationError, match=rf"^{key} must be .*, got '{text}'\.\nHint: For example "):
        Settings.of(None, {key: text})


def test_unknown_names_are_errors_and_tell_what_may_be_meant() -> None:
    with pytest.raises(ConfigurationError, match=r"^spark\.tfspark\.silence_timeuot is not a setting.*") as unknown:
        Settings.of(None, {"spark.tfspark.silence_timeuot": "20s"})
    assert "Did you mean silence_timeout?" in str(unknown.value)
    with pytest.raises(ConfigurationError, match="'patience' is not a setting"):
        Settings.of({"patience": 5.0})
    with pytest.raises(ConfigurationError, match=r"TFSPARK_HANG_TIMEOUTS is not") as misspelt:
        Settings.of(None, None, {"TFSPARK_HANG_TIMEOUTS": "20s"})
    assert "Did you mean TFSPARK_HANG_TIMEOUT?" in str(misspelt.value)


def test_variables_of_others_are_left_alone() -> None:
    others = {
        "TFSPARK_CACHE": "/x",
        "TFSPARK_SERVICE_HOST": "10.0.0.1",
        "TFSPARK_PORT_8501_TCP_ADDR": "10.0.0.1",
        "TFSPARK_UI_SERVICE_PORT": "80",
        "TFSPARK_VERSION": "7",
    }
    assert Settings.of(None, None, others) == Settings()
    assert unknown_variables(others) == ["TFSPARK_VERSION"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"silence_timeout": 6.0}, "silence_timeout must be > 6.75 s, got 6 s: two heartbeats"),
        ({"heartbeat_timeout": 5.0}, "silence_timeout must be > 12.75 s, got 7 s"),
        ({"longest_interval": 4.0, "silence_timeout": 20.0}, "suspicion_timeout must be > 4 s"),
        ({"pulse_interval": 100.0, "suspicion_timeout": 200.0}, "hang_timeout must be > 100 s, got 60 s"),
        ({"stall_timeout": True}, "stall_timeout must be a number of seconds > 0 or None, got True"),
        ({"chunk_bytes": 0}, "chunk_bytes must be a whole number >= 1, got 0"),
        ({"spool_memory_bytes": 2.5}, "spool_memory_bytes must be a whole number >= 0 or None, got 2.5"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Settings(**values)


def test_settings_travel_to_nodes_and_back() -> None:
    settings = Settings(stall_timeout=5.0, step_timeout=None, log_tail_lines=3)
    assert Settings(**settings.to_json()) == settings


def test_the_page_lists_all_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "docs" / ".hooks"))
    import settings_page

    assert settings_page.PAGE.read_text() == settings_page.page(), "run docs/.hooks/settings_page.py"
    for setting in described():
        assert f"| `{setting.name}` | {shown(setting.name, setting.default)} |" in settings_page.PAGE.read_text()
        assert setting.metadata["meaning"].endswith(".") and setting.metadata["unit"]
