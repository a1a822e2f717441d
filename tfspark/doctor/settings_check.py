"""Checks tfspark's settings and lists those that are set, or all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tfspark.doctor.findings import Finding, guarded, ok, warning
from tfspark.settings import Settings, chosen, described, shown, unknown_variables


def examine(conf: Mapping[str, str], environment: Mapping[str, str], every: bool = False) -> Iterator[Finding]:
    """Check settings in Spark's configuration and in environment variables.

    Yield the settings that are set; with `every`, all settings.
    """
    return guarded("settings", lambda: _examine(conf, environment, every))


def _examine(conf: Mapping[str, str], environment: Mapping[str, str], every: bool) -> Iterator[Finding]:
    found = chosen(None, conf, environment)
    Settings(**{name: value for name, (value, _) in found.items()})
    for setting in described():
        name, default = setting.name, shown(setting.name, setting.default)
        if name in found:
            value, origin = found[name]
            told = f"{name} is {shown(name, value)} by {origin}; its default is {default}"
        elif every:
            told = f"{name} is {default}, its default"
        else:
            continue
        yield ok("settings", f"{told} ({setting.metadata['unit']}). {setting.metadata['meaning']}" if every else told)
    if not found and not every:
        yield ok("settings", f"all {len(described())} settings are at their defaults")
    for variable in unknown_variables(environment):
        yield warning("settings", f"{variable} is not a setting of tfspark", "Unset it, unless it is your own.")
