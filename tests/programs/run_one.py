"""Run a cluster of one worker and print, as JSON, what came of it."""

from __future__ import annotations

import json
import sys
from typing import Any


def main(args: Any, ctx: Any) -> int:
    return 42


def export_relative(args: Any, ctx: Any) -> str:
    return str(ctx.export(None, "models"))


if __name__ == "__main__":
    import tfspark

    try:
        master = sys.argv[1] if len(sys.argv) > 1 else "local[3]"
        spark = tfspark.session("run-one", master, **{"spark.log.level": "OFF", "spark.ui.enabled": "false"})
        run = export_relative if "export_relative" in sys.argv else main
        directory = "checkpoints" if "checkpoint_relative" in sys.argv else None
        results = tfspark.run(spark, run, workers=1, checkpoint_dir=directory)
        outcome: dict[str, Any] = {"result": results["worker", 0]}
        spark.stop()
    except tfspark.errors.TFSparkError as e:
        outcome = {"error": type(e).__name__, "message": str(e)}
    sys.stdout.write(json.dumps(outcome) + "\n")
