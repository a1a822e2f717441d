"""A cluster whose node takes memory without end; says how that ended."""

from __future__ import annotations

import json
import sys
from typing import Any

import tfspark


def main_of_node(args: Any, ctx: Any) -> None:
    import numpy as np

    taken = []
    while True:
        taken.append(np.ones(10_000_000))


def main() -> None:
    conf = {"spark.ui.enabled": "false", "spark.log.level": "OFF", "spark.driver.memory": "512m"}
    spark = tfspark.session("memory", "local[2]", **{**conf, "spark.local.dir": sys.argv[1]})
    try:
        tfspark.run(spark, main_of_node, workers=1)
    except tfspark.errors.NodeFailed as e:
        print(json.dumps({"reason": e.reason, "hint": e.hint}), flush=True)
    spark.stop()


if __name__ == "__main__":
    main()
