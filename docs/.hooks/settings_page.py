"""Generates the page of all settings from `tfspark.settings`; ``python docs/.hooks/settings_page.py`` writes it."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from tfspark.settings import ENVIRONMENT_PREFIX, FOR_EVER, SPARK_PREFIX, described, shown

PAGE = Path(__file__).resolve().parents[1] / "settings.md"

INTRODUCTION = f"""# Settings

Times and sizes that a cluster may need to have changed. Of several values the first counts:

1. an argument of `Cluster`, for those that have one of their own: `Cluster(spark, main, workers=4, hang_timeout=300)`
2. `Cluster(settings={{"silence_timeout": 20.0}})`, and the same of `tfspark.run`
3. Spark's setting: `--conf {SPARK_PREFIX}silence_timeout=20s`, or `spark.conf.set`
4. the driver's environment: `{ENVIRONMENT_PREFIX}SILENCE_TIMEOUT=20s`
5. the default

Arguments are numbers, of seconds or bytes. Texts may have a unit, as Spark's have: `500ms`, `20s`, `2min`, `1h`,
`512k`, `64m`, `1g`; `{FOR_EVER}` means no limit, for a setting that may have none. The driver decides, and sends the
settings to nodes and tasks when it starts them. A wrong value, an unknown name after `{SPARK_PREFIX}`, and a variable
that looks like a misspelt setting are errors before anything starts. `tfspark doctor` says which settings are not at
their defaults, and `tfspark doctor --settings` lists all.
"""


def page() -> str:
    """Return the text of the page."""
    out = [INTRODUCTION]
    for group, settings in groupby(described(), lambda s: s.metadata["group"]):
        out.append(f"## {group}\n\n| setting | default | unit | what it does |\n|---|---|---|---|")
        out += [
            f"| `{s.name}` | {shown(s.name, s.default)} | {s.metadata['unit']} | {s.metadata['meaning']} |"
            for s in settings
        ]
        out.append("")
    return "\n".join(out)


if __name__ == "__main__":
    PAGE.write_text(page())
