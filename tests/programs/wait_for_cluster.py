"""A job for spark-submit whose cluster waits; what becomes of it is written to ``<directory>/ended.json``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

import tfspark


def main_of_node(args: str, ctx: Any) -> None:
    """Wait; save when the cluster stops."""
    Path(args, "training").touch()
    while not ctx.stopping:
        ctx._link.stopping.wait(1.0)
    Path(args, "saved").touch()


def main() -> None:
    directory = Path(sys.argv[1])
    spark = SparkSession.builder.getOrCreate()
    (directory / "driver").write_text(str(os.getpid()))
    error = None
    try:
        tfspark.run(spark, main_of_node, str(directory), workers=1, stop_grace=2.0)
    except BaseException as e:
        error = e
        raise
    finally:
        (directory / "ended.json").write_text(json.dumps({"error": type(error).__name__, "message": str(error)}))


if __name__ == "__main__":
    main()
